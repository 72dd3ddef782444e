//! What the tests share: paths, npz files, comparison, the binary under test.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use transc::ir::interp::Tensor as Plain;
use transc::runtime::{self, Tensor};
use transc::{Compiler, Session};

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The `transc` binary with arguments.
pub fn transc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_transc")).args(args).output().expect("the binary runs")
}

/// All arrays of an npz file.
pub fn npz(path: &Path) -> Vec<(String, Plain)> {
    transc_frontend::npz::read_file(path, &Default::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The models of the tree, and the whole zoo where it is at hand.
pub fn zoo() -> Vec<PathBuf> {
    zoo_in(&["tests/data/zoo", "../shared/zoo"])
}

/// The models in these folders, by name; of two with one name the last.
pub fn zoo_in(dirs: &[&str]) -> Vec<PathBuf> {
    let mut all = BTreeMap::new();
    for dir in dirs {
        let entries = std::fs::read_dir(root().join(dir)).into_iter().flatten().flatten();
        let models = entries.filter(|e| e.path().join("meta.json").exists());
        all.extend(models.map(|e| (e.file_name(), e.path())));
    }
    assert!(!all.is_empty(), "the models of the tree are there");
    all.into_values().collect()
}

/// The model of a folder of the zoo: a file, or the folder.
pub fn model_in(dir: &Path) -> PathBuf {
    let onnx = dir.join("model.onnx");
    if onnx.exists() { onnx } else { dir.to_path_buf() }
}

/// How far a model of the zoo may be off.
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
    /// Of the mean absolute difference.
    pub mean_abs: f64,
}

/// What the folder of a model allows.
pub fn tolerance(dir: &Path) -> Tolerance {
    let meta = std::fs::read_to_string(dir.join("meta.json")).expect("meta.json");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("meta.json is JSON");
    let number = |key: &str, default: f64| meta.get(key).and_then(serde_json::Value::as_f64).unwrap_or(default);
    Tolerance { rtol: number("rtol", 1e-4), atol: number("atol", 1e-4), mean_abs: number("mean_abs", f64::INFINITY) }
}

/// Some rows of arrays whose first axis is the batch, as far as an array has them.
pub fn rows(arrays: &[(String, Plain)], rows: Range<usize>) -> Vec<(String, Plain)> {
    let cut = |t: &Plain| match t.dims.first().filter(|n| **n > 0) {
        Some(n) => {
            let (len, rows) = (t.data.len() / n, rows.start.min(*n)..rows.end.min(*n));
            let dims = [&[rows.len()], &t.dims[1..]].concat();
            Plain { dtype: t.dtype, dims, data: t.data[rows.start * len..rows.end * len].to_vec() }
        }
        None => t.clone(),
    };
    arrays.iter().map(|(name, t)| (name.clone(), cut(t))).collect()
}

/// The folder of the trained MiniLM; says so where it is absent.
pub fn minilm() -> Option<PathBuf> {
    let model = root().join("models/minilm");
    let there = model.join("model.safetensors").exists();
    if !there {
        println!("skipped: the MiniLM weights are not here (./x models fetches them)");
    }
    there.then_some(model)
}

/// A session of the JIT for a model file.
pub fn jit(model: &Path, threads: usize) -> Result<Session, transc::Error> {
    let module = transc::load(model)?;
    Compiler::new().compile(&module)?.session(threads)
}

/// Runs a session on those arrays that are its inputs.
pub fn run(session: &Session, arrays: &[(String, Plain)]) -> Result<Vec<(String, Plain)>, runtime::Error> {
    let given = session.inputs().iter().filter_map(|spec| arrays.iter().find(|(n, _)| *n == spec.name));
    let inputs: Vec<(&str, Tensor)> = given.map(|(n, t)| (n.as_str(), tensor(t))).collect();
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    Ok(session.run(&views)?.into_iter().map(|(n, t)| (n, plain(&t))).collect())
}

/// The runtime's form of a tensor.
pub fn tensor(t: &Plain) -> Tensor {
    let dtype = runtime::DType::from_number(t.dtype.onnx_number()).expect("same numbering");
    Tensor::from_bytes(dtype, &t.dims, &t.data).expect("a whole tensor")
}

/// The interpreter's form of a tensor.
pub fn plain(t: &Tensor) -> Plain {
    let dtype = transc::ir::DType::from_onnx(t.dtype().number()).expect("same numbering");
    Plain { dtype, dims: t.shape().to_vec(), data: t.bytes().to_vec() }
}

/// The first reason why `got` is not `want` within `atol + rtol * |want|` (integers exactly), or `None`.
pub fn difference(got: &Plain, want: &Plain, rtol: f64, atol: f64) -> Option<String> {
    if got.dtype != want.dtype || got.dims != want.dims {
        return Some(format!("expected {}, got {}", want.ty(), got.ty()));
    }
    for i in 0..want.count() {
        if want.dtype.is_float() {
            let (g, w) = (got.get_f64(i), want.get_f64(i));
            if g != w && !(g.is_nan() && w.is_nan()) && (!(g - w).is_finite() || (g - w).abs() > atol + rtol * w.abs()) {
                return Some(format!("element {i}: expected {w}, got {g}"));
            }
        } else if got.get(i) != want.get(i) {
            return Some(format!("element {i}: expected {:?}, got {:?}", want.get(i), got.get(i)));
        }
    }
    None
}

/// The class of the largest logit, per row.
pub fn argmax(logits: &Plain) -> Vec<usize> {
    let classes = logits.dims[1];
    (0..logits.dims[0])
        .map(|row| {
            let value = |c: &usize| logits.get_f64(row * classes + c);
            (0..classes).max_by(|a, b| value(a).total_cmp(&value(b))).unwrap_or(0)
        })
        .collect()
}

/// Compares outputs by name.
pub fn outputs_differ(got: &[(String, Plain)], want: &[(String, Plain)], rtol: f64, atol: f64) -> Option<String> {
    want.iter().find_map(|(name, w)| match got.iter().find(|(n, _)| n == name) {
        Some((_, g)) => difference(g, w, rtol, atol).map(|d| format!("{name}: {d}")),
        None => Some(format!("{name} is missing")),
    })
}
