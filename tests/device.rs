//! Code for devices, on a machine without one: the assembler accepts the PTX of models, and what needs a device says so. What the code
//! computes is simulated in the tests of all ways.

#[path = "../codegen/tests/main/ptxas.rs"]
mod ptxas;

use std::path::Path;

use transc::{Compiler, Target};
use transc_codegen::Text;

use crate::kit;

/// Emits the PTX of a model for both targets, and assembles it where that is possible: no kernel spills.
fn assemble(model: &Path) {
    let module = transc::load(model).expect("the model imports");
    for target in [Target::CUDA_SM_80, Target::CUDA_SM_90A] {
        let arch = target.processor();
        let compiler = Compiler::new().target(target.clone());
        let ptx = || compiler.compile(&module).expect("the model compiles").code().text(Text::Ptx).expect("a device has PTX");
        let text = ptx();
        assert!(text.contains(&format!(".target {arch}")), "the head names the target");
        let Some(log) = ptxas::assemble(&text, arch) else { continue };
        assert_eq!(text, ptx(), "the same model gives the same PTX");
        let spills = |k: &&str| k.contains(" spill stores") && !k.contains(" 0 bytes spill stores");
        assert_eq!(log.split("Compiling entry function").find(spills), None, "{arch}: a kernel spills");
    }
}

#[test]
fn the_ptx_of_the_digits_assembles() {
    assemble(&kit::root().join("examples/digits-vit/model.onnx"));
}

#[test]
fn the_ptx_of_minilm_assembles() {
    if let Some(model) = kit::minilm() {
        assemble(&model);
    }
}

#[test]
fn a_model_for_a_device_says_so_on_the_host() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let tsc = tmp.path().join("digits.tsc");
    let root = kit::root();
    let (model, inputs) = (root.join("examples/digits-vit/model.onnx"), root.join("examples/digits-vit/heldout.npz"));
    let [model, inputs, tsc] = [&model, &inputs, &tsc].map(|p| p.to_str().expect("UTF-8"));
    let made = kit::transc(&["compile", model, "--target", "cuda:sm_80", "-o", tsc]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let run = |args: &[&str]| {
        let out = kit::transc(args);
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, text) = run(&["run", tsc, "-i", inputs]);
    assert!(code == Some(7) && text.contains("R0151"), "{code:?} {text}");
    let (code, text) = run(&["compile", model, "--target", "cuda:sm_80", "-o", tmp.path().join("d.so").to_str().expect("UTF-8")]);
    assert!(code == Some(3) && text.contains("T0609"), "{code:?} {text}");
    // What a lossy step does to the outputs is measured on the host, by the code of the same plan.
    let lossy = tmp.path().join("lossy.tsc");
    let lossy = lossy.to_str().expect("UTF-8");
    let made = kit::transc(&["compile", model, "--target", "cuda:sm_80", "--merge", "tome:r=4", "--calib", inputs, "-o", lossy]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ledger = String::from_utf8(kit::transc(&["inspect", lossy, "--ledger"]).stdout).expect("UTF-8");
    assert!(ledger.contains("tome") && ledger.contains("error"), "{ledger}");
    // It is shown without a device, launches and all.
    let shown = String::from_utf8(kit::transc(&["inspect", tsc]).stdout).expect("UTF-8");
    assert!(shown.contains("sm_80: k0_") && shown.contains(" block 256 shared 24576 bytes"), "{shown}");
    // The device of this number is on no machine.
    for model in [model, tsc] {
        let (code, text) = run(&["run", model, "-i", inputs, "-d", "cuda:4000000000"]);
        assert!(code == Some(7) && text.contains("R0150"), "{code:?} {text}");
    }
}
