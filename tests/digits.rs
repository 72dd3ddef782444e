//! The digits example: shared library, JIT and interpreter agree with the golden outputs on every held-out image.

use transc::ir::interp::{self, Tensor};
use transc::runtime::{Model, Session, SessionOptions};

use crate::kit;

/// Largest allowed absolute difference to ONNX Runtime's logits.
const ATOL: f64 = 1e-4;

#[test]
fn every_way_gives_the_golden_logits_and_the_same_classes() {
    let dir = kit::root().join("examples/digits-vit");
    let arrays = kit::npz(&dir.join("heldout.npz"));
    let golden = kit::npz(&dir.join("golden.npz"));
    let golden = &golden.iter().find(|(n, _)| n == "logits").expect("golden logits").1;
    let labels = &arrays.iter().find(|(n, _)| n == "labels").expect("labels").1;
    let classes = kit::argmax(golden);

    let module = transc::load(dir.join("model.onnx")).expect("the example imports");
    let compiled = transc::Compiler::new().compile(&module).expect("the example compiles");
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let so = tmp.path().join("digits.so");
    compiled.write_so(&so).expect("a linker");
    let so = Session::new(Model::open(&so).expect("a library"), SessionOptions { threads: 2, ..Default::default() })
        .expect("a session");

    let pixels = arrays.iter().find(|(n, _)| n == "pixel_values").expect("images").1.clone();
    // Two images are enough for the slow way.
    let two = Tensor {
        dtype: pixels.dtype,
        dims: [2].iter().chain(&pixels.dims[1..]).copied().collect(),
        data: pixels.data[..pixels.data.len() / pixels.dims[0] * 2].to_vec(),
    };
    let simulated = transc::simulate(&compiled.program.expanded().expect("no function is missing"), &[two])
        .expect("no kernel does wrong")
        .remove(0);
    let interpreted = interp::eval_module(&module, &[pixels]).expect("the interpreter runs").remove(0);
    let jit = kit::run(&compiled.session(2).expect("a session"), &arrays).expect("the JIT runs");
    let linked = kit::run(&so, &arrays).expect("the library runs");
    for (way, logits) in [("interpreter", &interpreted), ("jit", &jit[0].1), ("so", &linked[0].1)] {
        assert_eq!(kit::difference(logits, golden, 0.0, ATOL), None, "{way}");
        assert_eq!(kit::argmax(logits), classes, "{way}");
    }
    assert_eq!(jit[0].1, linked[0].1, "the same kernels give the same bits");
    assert!(jit[0].1.data.starts_with(&simulated.data), "the loop-IR interpreter gives the bits of LLVM's code");
    let right = (0..classes.len()).filter(|i| labels.get_f64(*i) == classes[*i] as f64).count();
    assert!(right * 100 >= classes.len() * 97, "{right} of {} right", classes.len());
}
