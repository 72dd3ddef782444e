//! Imports the models of the zoo, evaluates them and compares with their stored outputs.
//!
//! The zoo is looked for in `TRANSC_ZOO`, `../shared/zoo` and `tests/data/zoo` of the repository; without one nothing is tested.
//! `TRANSC_ZOO_ONLY` takes only folders whose name contains a text.
#![allow(clippy::print_stdout, reason = "says what is skipped")]

mod common;

use std::path::{Path, PathBuf};

use common::{Tolerance, compare, evaluate};
use transc_frontend::npz::{self, NpzLimits};
use transc_frontend::{ImportOptions, load};
use transc_ir::diag::Fault;

/// Folders whose shapes depend on the contents of their inputs.
const DATA_DEPENDENT: [&str; 4] =
    ["bert-packed-legacy17", "moe-dropless-legacy17", "shiftaddvit_dispatch-a-dyn18", "shiftaddvit_dispatch-a-ts17"];

fn zoo() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("TRANSC_ZOO").map(PathBuf::from);
    given.into_iter().chain([root.join("../shared/zoo"), root.join("tests/data/zoo")]).find(|p| p.is_dir())
}

/// The model of a folder: a file, or the folder.
fn model_in(dir: &Path) -> PathBuf {
    let onnx = dir.join("model.onnx");
    if onnx.is_file() { onnx } else { dir.to_path_buf() }
}

fn check(dir: &Path) -> Result<(), String> {
    let meta = std::fs::read_to_string(dir.join("meta.json")).map_err(|e| e.to_string())?;
    let meta: serde_json::Value = serde_json::from_str(&meta).map_err(|e| e.to_string())?;
    let number = |key: &str| meta[key].as_f64().unwrap_or(0.0);
    let tolerance = Tolerance { atol: number("atol"), rtol: number("rtol") };
    let module = load(&model_in(dir), &ImportOptions::default()).map_err(|e| e.to_string())?;
    for set in ["", "_dyn", "_b3"] {
        let (inputs, outputs) = (dir.join(format!("inputs{set}.npz")), dir.join(format!("outputs{set}.npz")));
        if !inputs.is_file() {
            continue;
        }
        let read = |p: &Path| npz::read_file(p, &NpzLimits::default()).map_err(|p| p.to_string());
        let results = evaluate(&module, &read(&inputs)?).map_err(|e| format!("{set} {e}"))?;
        for (name, want) in read(&outputs)? {
            let (_, got) = results.iter().find(|(n, _)| *n == name).ok_or_else(|| format!("there is no output `{name}`"))?;
            compare(&name, got, &want, tolerance).map_err(|e| format!("{set} {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn models_of_the_zoo_give_their_outputs() {
    let Some(zoo) = zoo() else {
        println!("skipped: no zoo");
        return;
    };
    let only = std::env::var("TRANSC_ZOO_ONLY").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&zoo).unwrap().flatten().map(|e| e.path()).collect();
    folders.retain(|f| f.join("meta.json").is_file() && f.to_string_lossy().contains(&only));
    folders.sort();
    let mut failed = Vec::new();
    for f in &folders {
        let name = f.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if DATA_DEPENDENT.contains(&name.as_str()) {
            let fault = load(&model_in(f), &ImportOptions::default()).map_err(|e| e.fault()).err();
            if fault != Some(Fault::Unsupported) {
                failed.push(format!("{name}: expected to be unsupported, got {fault:?}"));
            }
        } else if let Err(e) = check(f) {
            failed.push(format!("{name}: {e}"));
        }
    }
    assert!(failed.is_empty(), "{} of {} models:\n{}", failed.len(), folders.len(), failed.join("\n"));
}
