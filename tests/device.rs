//! Code for devices, on a machine without one: simulated models give their golden outputs, and the PTX assembler accepts the PTX.

use std::path::{Path, PathBuf};
use std::process::Command;

use transc::ir::Module;
use transc::ir::interp::Tensor as Plain;
use transc::{Compiler, Target};
use transc_codegen::Text;

use crate::kit;

/// The PTX assembler: `$TRANSC_PTXAS`, or on the path.
fn assembler() -> Option<PathBuf> {
    let path = std::env::var_os("TRANSC_PTXAS").map_or_else(|| PathBuf::from("ptxas"), PathBuf::from);
    let found = Command::new(&path).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skipped: PTX is not assembled (no ptxas: set TRANSC_PTXAS, see docs/gpu.md)");
    }
    found.then_some(path)
}

/// Emits the PTX of a model for both targets, twice, and assembles it where that is possible.
fn assemble(model: &Path) {
    let ptxas = assembler();
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let module = transc::load(model).expect("the model imports");
    for target in [Target::CUDA_SM_80, Target::CUDA_SM_90A] {
        let arch = target.name().trim_start_matches("cuda:").to_string();
        let compiler = Compiler::new().target(target);
        let ptx = || compiler.compile(&module).expect("the model compiles").code().text(Text::Ptx).expect("a device has PTX");
        let text = ptx();
        assert!(text.contains(&format!(".target {arch}")), "the head names the target");
        let Some(ptxas) = &ptxas else { continue };
        assert_eq!(text, ptx(), "the same model gives the same PTX");
        let source = tmp.path().join("model.ptx");
        std::fs::write(&source, &text).expect("a file");
        let out = tmp.path().join("model.cubin");
        let run = Command::new(ptxas)
            .arg(format!("-arch={arch}"))
            .args(["-v", "-o"])
            .args([&out, &source])
            .output()
            .expect("ptxas runs");
        let log = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{arch}: {log}");
        let spilled =
            log.split("Compiling entry function").find(|k| k.contains(" spill stores") && !k.contains(" 0 bytes spill stores"));
        assert_eq!(spilled, None, "{arch}: a kernel spills");
    }
}

fn simulate(module: &Module, inputs: &[(String, Plain)]) -> Vec<(String, Plain)> {
    let program = Compiler::new().target(Target::CUDA_SM_80).lower(module).expect("the model lowers");
    let given: Vec<Plain> = program
        .inputs
        .iter()
        .map(|(name, _)| inputs.iter().find(|(n, _)| n == name).expect("every input is given").1.clone())
        .collect();
    let program = program.expanded().expect("no function is missing");
    let values = transc::simulate(&program, &given).unwrap_or_else(|e| panic!("{}: {e}", module.name));
    program.outputs.into_iter().map(|(n, _)| n).zip(values).collect()
}

#[test]
fn simulated_digits_have_the_golden_logits() {
    let dir = kit::root().join("examples/digits-vit");
    // One image: the interpreter runs every thread.
    let first = |file: &str| kit::first_rows(kit::npz(&dir.join(file)), 1);
    let want: Vec<_> = first("golden.npz").into_iter().filter(|(n, _)| n == "logits").collect();
    let module = transc::load(dir.join("model.onnx")).expect("the example imports");
    let got = simulate(&module, &first("heldout.npz"));
    assert_eq!(kit::outputs_differ(&got, &want, 0.0, 1e-4), None);
}

#[test]
fn simulated_models_have_their_golden_outputs() {
    let mut simulated = 0;
    for dir in kit::zoo_in(&["tests/data/zoo"]) {
        // What does not import is refused for the host as well.
        let Ok(module) = transc::load(kit::model_in(&dir)) else { continue };
        let got = simulate(&module, &kit::npz(&dir.join("inputs.npz")));
        let allowed = kit::tolerance(&dir);
        let differs = kit::outputs_differ(&got, &kit::npz(&dir.join("outputs.npz")), allowed.rtol, allowed.atol);
        assert_eq!(differs, None, "{}", dir.display());
        simulated += 1;
    }
    assert!(simulated >= 40, "only {simulated} models are simulated");
}

#[test]
fn the_ptx_of_the_digits_assembles() {
    assemble(&kit::root().join("examples/digits-vit/model.onnx"));
}

#[test]
fn the_ptx_of_minilm_assembles() {
    let model = kit::root().join("models/minilm");
    if model.join("model.safetensors").exists() {
        assemble(&model);
    } else {
        println!("skipped: the MiniLM weights are not here (./x models fetches them)");
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
    // It is shown without a device, launches and all.
    let shown = String::from_utf8(kit::transc(&["inspect", tsc]).stdout).expect("UTF-8");
    assert!(shown.contains("sm_80: k0_") && shown.contains(" block 256 shared 24576 bytes"), "{shown}");
    // The device of this number is on no machine.
    for model in [model, tsc] {
        let (code, text) = run(&["run", model, "-i", inputs, "-d", "cuda:4000000000"]);
        assert!(code == Some(7) && text.contains("R0150"), "{code:?} {text}");
    }
}
