//! Full-size encoders: one session serves every batch size and length.
//!
//! The trained MiniLM from its Hugging Face folder on sentences (golden outputs are in the tree), and whatever folders of
//! `models/` hold `model.onnx` with `inputs_*.npz` and `outputs_*.npz` (`tests/gen/bert_random.py` writes them).

use std::path::{Path, PathBuf};

use crate::kit;

/// Largest allowed absolute difference to ONNX Runtime.
const ATOL: f64 = 1e-4;

/// Golden sets of a folder: files of inputs with their outputs, sorted.
fn sets(dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let inputs = files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("inputs_")));
    let mut sets: Vec<_> = inputs
        .map(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy().replacen("inputs", "outputs", 1);
            (p.clone(), p.with_file_name(name))
        })
        .collect();
    sets.sort();
    sets
}

fn check(model: &Path, sets: &[(PathBuf, PathBuf)]) {
    let session = kit::jit(model, 2).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    for (inputs, outputs) in sets {
        let got = kit::run(&session, &kit::npz(inputs)).unwrap_or_else(|e| panic!("{}: {e}", inputs.display()));
        assert_eq!(kit::outputs_differ(&got, &kit::npz(outputs), 0.0, ATOL), None, "{}", inputs.display());
    }
}

#[test]
fn minilm_on_real_sentences() {
    let Some(model) = kit::minilm() else { return };
    let sets = sets(&kit::root().join("tests/data/minilm"));
    assert!(sets.len() >= 2, "the golden sets are in the tree");
    check(&model, &sets);
}

#[test]
fn encoders_from_onnx() {
    for name in ["bert-base", "minilm-golden"] {
        let dir = kit::root().join("models").join(name);
        let sets = sets(&dir);
        if sets.is_empty() {
            println!("skipped: {name} is not here (tests/gen/bert_random.py writes it)");
            continue;
        }
        check(&dir.join("model.onnx"), &sets);
    }
}
