//! Same model and options, same artefact bytes; same input, same output bits for any number of threads.

use crate::kit;

#[test]
fn artefact_bytes_do_not_depend_on_the_folder() {
    let model = kit::root().join("examples/digits-vit/model.onnx");
    let mut artefacts = Vec::new();
    for _ in 0..2 {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let copy = dir.path().join("model.onnx");
        std::fs::copy(&model, &copy).expect("a copy");
        let both = ["so", "tsc"].map(|form| {
            let out = dir.path().join(format!("out.{form}"));
            let run = kit::transc(&["compile", copy.to_str().expect("utf-8"), "-q", "-o", out.to_str().expect("utf-8")]);
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            std::fs::read(out).expect("an artefact")
        });
        artefacts.push(both);
    }
    assert!(artefacts[0] == artefacts[1], "two compiles differ");
}

#[test]
fn output_bits_do_not_depend_on_the_threads() {
    let dir = kit::root().join("examples/digits-vit");
    let module = transc::load(dir.join("model.onnx")).expect("the example imports");
    let compiled = transc::Compiler::new().compile(&module).expect("the example compiles");
    let inputs = kit::npz(&dir.join("heldout.npz"));
    let one = kit::run(&compiled.session(1).expect("a session"), &inputs).expect("it runs");
    for threads in [2, 3] {
        let session = compiled.session(threads).expect("a session");
        for _ in 0..3 {
            assert!(kit::run(&session, &inputs).expect("it runs") == one, "{threads} threads");
        }
    }
}
