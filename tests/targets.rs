//! Targets and tuning: what code may use, which code is chosen, and that measured choices decide alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::kit;

fn example() -> PathBuf {
    kit::root().join("examples/digits-vit")
}

fn compile(out: &Path, more: &[&str]) -> Output {
    let (model, out) = (example().join("model.onnx").display().to_string(), out.display().to_string());
    kit::transc(&[&["compile", &model, "-q", "-O1", "-o", &out], more].concat())
}

/// Runs an artefact as if the processor lacked features.
fn run_without(artefact: &Path, features: &str) -> Output {
    let at = |name: &str| example().join(name).display().to_string();
    Command::new(env!("CARGO_BIN_EXE_transc"))
        .args(["run", &artefact.display().to_string(), "-q", "-i", &at("heldout.npz"), "--expect", &at("golden.npz")])
        .env("TRANSC_WITHOUT", features)
        .output()
        .expect("the binary runs")
}

fn inspect_without(artefact: &Path, features: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_transc"));
    let out = command.args(["inspect", &artefact.display().to_string()]).env("TRANSC_WITHOUT", features).output();
    String::from_utf8_lossy(&out.expect("the binary runs").stdout).into_owned()
}

#[test]
fn code_for_v3_has_no_wide_registers() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let asm = |target: &str| {
        let out = dir.path().join("m.s");
        let done = compile(&out, &["--target", target]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read_to_string(out).expect("assembly")
    };
    for target in ["x86-64-v3", "haswell", "znver3"] {
        let text = asm(target);
        assert!(text.contains("ymm") && !text.contains("zmm") && !text.contains("{%k"), "{target}");
    }
    assert!(asm("znver4").contains("zmm"));
    assert_eq!(compile(&dir.path().join("m.s"), &["--target", "x86-64-v3,z80"]).status.code(), Some(4));
    assert_eq!(compile(&dir.path().join("m.s"), &["--target", "x86-64-v3,cuda:sm_80"]).status.code(), Some(4));
}

#[test]
fn an_artefact_for_several_targets_takes_the_best_that_fits() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (v3, v4) = (transc::Target::X86_64_V3, transc::Target::X86_64_V4);
    let fits = |t: &transc::Target| t.features().iter().all(|f| transc::runtime::has_feature(f));
    if !fits(&v3) {
        eprintln!("skipped: no AVX2");
        return;
    }
    for form in ["so", "tsc"] {
        let out = dir.path().join(format!("m.{form}"));
        // In whatever order they are named.
        let done = compile(&out, &["--target", "x86-64-v3,x86-64-v4"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let ran = |without: &str| run_without(&out, without);
        for without in ["", "avx512f"] {
            let done = ran(without);
            assert!(done.status.success(), "{form} without `{without}`: {}", String::from_utf8_lossy(&done.stderr));
        }
        let none = ran("avx2");
        let text = String::from_utf8_lossy(&none.stderr).into_owned();
        assert!(none.status.code() == Some(7) && text.contains("R0107") && text.contains("avx2"), "{text}");
        let text = inspect_without(&out, "avx512f");
        assert!(
            text.contains("targets x86-64-v4, x86-64-v3") && !text.contains("needs avx2 bmi1 bmi2 f16c fma lzcnt movbe avx512f"),
            "{text}"
        );
        if fits(&v4) {
            assert!(inspect_without(&out, "").contains("movbe avx512f"));
        } else {
            eprintln!("skipped: no AVX-512, so the wide code of {form} was not run");
        }
    }
    // Weights that both read alike stand once.
    let len = |targets: &str| {
        let out = dir.path().join("n.tsc");
        assert!(compile(&out, &["--target", targets]).status.success());
        transc::runtime::artefact::Sections::read(&std::fs::read(out).expect("an artefact"), true).expect("whole").weights.len()
    };
    assert!(len("x86-64-v3,x86-64-v4") < len("x86-64-v3") + len("x86-64-v4"));
}

#[test]
fn tuning_files_decide_and_foreign_ones_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| dir.path().join(name);
    let (model, file) = (example().join("model.onnx").display().to_string(), at("t.json"));
    let path = file.display().to_string();
    if !transc::Backend::Llvm.is_built() {
        eprintln!("skipped: this build has no LLVM");
        return;
    }
    let tuned = kit::transc(&["tune", &model, "-q", "-O1", "-o", &path, "--rounds", "2", "--json"]);
    assert!(tuned.status.success(), "{}", String::from_utf8_lossy(&tuned.stderr));
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    assert!(written["problems"].as_u64() > Some(3) && written["gain"].is_number());
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut v = written.clone();
        change(&mut v);
        std::fs::write(&file, v.to_string()).expect("written");
        let out = compile(&at("m.tsc"), &["--tuning", &path]);
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let width = transc::Target::host().lanes();
    let choice = |schedule: &str| serde_json::json!([{ "problem": "matmul_f32 k=64 n=64", "schedule": schedule }]);
    let one = format!("m8n{width}c64");
    assert_eq!(with(&|v| v["choices"] = choice(&one)).0, Some(0));
    let first = std::fs::read(at("m.tsc")).expect("an artefact");
    let shown = String::from_utf8_lossy(&kit::transc(&["inspect", &at("m.tsc").display().to_string()]).stdout).into_owned();
    assert!(shown.contains(&format!("tuned matmul_f32 k=64 n=64: {one}")), "{shown}");
    assert_eq!(with(&|v| v["choices"] = choice(&one)).0, Some(0));
    assert!(first == std::fs::read(at("m.tsc")).expect("an artefact"), "the file decides, and nothing else");
    assert_eq!(with(&|v| v["choices"] = serde_json::json!([])).0, Some(0));
    assert!(first != std::fs::read(at("m.tsc")).expect("an artefact"), "the choice made a difference");
    let refused = |change: &dyn Fn(&mut serde_json::Value), code: i32| {
        let (got, text) = with(change);
        assert!(got == Some(code) && text.contains("T0931"), "{got:?} {text}");
    };
    refused(&|v| v["schema_version"] = 2.into(), 4);
    refused(&|v| v["transc"] = "0.0.1".into(), 4);
    refused(&|v| v["features"] = serde_json::json!(["sse2"]), 4);
    refused(&|v| v["choices"] = choice("m7n3c1"), 4);
    refused(&|v| v["choices"] = serde_json::json!([{ "problem": 1 }]), 4);
    std::fs::write(&file, "no JSON").expect("written");
    assert_eq!(compile(&at("m.tsc"), &["--tuning", &path]).status.code(), Some(4));
    assert_eq!(compile(&at("m.tsc"), &["--tuning", "/no/such.json"]).status.code(), Some(7));
}
