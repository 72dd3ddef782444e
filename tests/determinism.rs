//! Same model and options, same artefact bytes; same input, same output bits for any number of threads.

use std::path::PathBuf;

use transc::passes::Precision;

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

/// How often each model runs with each number of threads; `TRANSC_REPEAT=1000` for a long look.
fn repetitions() -> usize {
    std::env::var("TRANSC_REPEAT").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// The example and four families of the zoo: an encoder of text, a vision transformer, a decoder, and 8-bit codes.
fn models() -> Vec<(PathBuf, PathBuf)> {
    let zoo = |name: &str| kit::root().join("tests/data/zoo").join(name);
    let mut all = vec![(kit::root().join("examples/digits-vit/model.onnx"), kit::root().join("examples/digits-vit/heldout.npz"))];
    for name in ["bert-d18", "vit-hf", "llama-hf", "bert-int8-qdq-legacy17"] {
        all.push((kit::model_in(&zoo(name)), zoo(name).join("inputs.npz")));
    }
    all
}

#[test]
fn output_bits_depend_on_neither_threads_nor_neighbours() {
    for precision in [Precision::Model, Precision::Bf16] {
        output_bits(precision);
    }
}

fn output_bits(precision: Precision) {
    for (model, inputs) in models() {
        let module = transc::load(&model).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        let compiled = transc::Compiler::new().precision(precision).compile(&module).expect("it compiles");
        let inputs = kit::npz(&inputs);
        let one = compiled.session(1).expect("a session");
        let want = kit::run(&one, &inputs).expect("it runs");
        for threads in [1, 2, 3] {
            let session = compiled.session(threads).expect("a session");
            for _ in 0..repetitions() {
                assert!(kit::run(&session, &inputs).expect("it runs") == want, "{}: {threads} threads", model.display());
            }
        }
        // Alone and in a batch: inputs and outputs that all begin with one and the same symbolic dim.
        let batch = inputs[0].1.dims.first().copied().unwrap_or(0);
        let batched = |specs: &[transc::runtime::TensorSpec]| {
            specs.iter().all(|s| matches!(s.dims.first(), Some(transc::runtime::Expr::Sym(0))))
        };
        if batch < 2 || !batched(one.inputs()) || !batched(one.outputs()) {
            eprintln!("skipped: {} has no batch to take apart", model.display());
            continue;
        }
        for row in 0..batch.min(8) {
            let alone = kit::run(&one, &kit::rows(&inputs, row..row + 1)).expect("it runs");
            assert!(alone == kit::rows(&want, row..row + 1), "{}: row {row} alone", model.display());
        }
    }
}
