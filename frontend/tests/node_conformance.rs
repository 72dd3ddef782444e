//! The node tests of the ONNX standard: every case gives the stored outputs, or is reported as unsupported.
//!
//! The data of the `onnx` 1.22 package (`onnx/backend/test/data/node`) is looked for in `TRANSC_ONNX_NODE` and in
//! `models/onnx-node` of the repository; without it nothing is tested. `TRANSC_ONNX_NODE_ONLY` takes only cases whose name contains a
//! text.
#![allow(clippy::print_stdout, reason = "says what is skipped")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Tolerance, compare, evaluate};
use transc_frontend::onnx::{self, proto};
use transc_frontend::{Fixed, FrontendError, ImportOptions};
use transc_ir::Module;
use transc_ir::diag::Fault;
use transc_ir::interp::Tensor;

/// The relative tolerance of the standard's own runner; results of cancellation near zero get more room than its 1e-7.
const TOLERANCE: Tolerance = Tolerance { atol: 1e-6, rtol: 1e-3 };

enum Outcome {
    Passed,
    Unsupported(String),
    Failed(String),
}

fn data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("TRANSC_ONNX_NODE").map(PathBuf::from);
    given.into_iter().chain([root.join("models/onnx-node")]).find(|p| p.is_dir())
}

/// The stored tensors of a data set, in order. `None` if one is not a tensor of a supported type.
fn tensors(dir: &Path, kind: &str) -> Option<Vec<Tensor>> {
    let mut out = Vec::new();
    loop {
        let path = dir.join(format!("{kind}_{}.pb", out.len()));
        if !path.is_file() {
            return Some(out);
        }
        out.push(onnx::tensor_from_pb(std::fs::read(path).ok()?).ok()?);
    }
}

/// Imports a model. Where shapes depend on the contents of inputs, these inputs are fixed.
fn import(path: &Path, inputs: &[(String, Tensor)]) -> Result<Module, FrontendError> {
    let first = onnx::load(path, &ImportOptions::default());
    match first {
        Err(e) if e.problems.iter().any(|p| p.code == "T0304") => {
            // Integers and booleans first: they are the shapes, axes and conditions.
            let fixed = |keep: fn(&Tensor) -> bool| {
                let kept = inputs.iter().filter(|(_, t)| keep(t)).map(|(n, t)| (n.clone(), Fixed::Tensor(t.clone()))).collect();
                ImportOptions { fixed_inputs: kept, ..ImportOptions::default() }
            };
            let (some, all) = (fixed(|t| !t.dtype.is_float()), fixed(|_| true));
            onnx::load(path, &some).or_else(|_| onnx::load(path, &all))
        }
        other => other,
    }
}

fn run(case: &Path) -> Outcome {
    let path = case.join("model.onnx");
    let names = |v: &[proto::ValueInfoProto]| v.iter().map(|i| i.name().to_owned()).collect::<Vec<_>>();
    let (inputs, outputs) = match onnx::read_model(&path, &ImportOptions::default()) {
        Ok(m) => m.graph.map(|g| (names(&g.input), names(&g.output))).unwrap_or_default(),
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let set = case.join("test_data_set_0");
    let stored = tensors(&set, "input").zip(tensors(&set, "output"));
    let named: Vec<(String, Tensor)> = stored.iter().flat_map(|(i, _)| inputs.iter().cloned().zip(i.iter().cloned())).collect();
    let module = match import(&path, &named) {
        Ok(m) => m,
        Err(e) if e.fault() == Fault::Unsupported => {
            let p = &e.problems[0];
            return Outcome::Unsupported(format!("{} [{}]", p.message, p.op));
        }
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let Some((_, want)) = stored else { return Outcome::Failed("has data of a type that is not supported".into()) };
    let checked = evaluate(&module, &named).and_then(|got| {
        for (name, want) in outputs.iter().zip(&want) {
            let (_, got) = got.iter().find(|(n, _)| n == name).ok_or_else(|| format!("there is no output `{name}`"))?;
            compare(name, got, want, TOLERANCE)?;
        }
        Ok(())
    });
    checked.map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

#[test]
fn every_case_is_right_or_unsupported() {
    let Some(data) = data() else {
        println!("skipped: no ONNX node test data");
        return;
    };
    let only = std::env::var("TRANSC_ONNX_NODE_ONLY").unwrap_or_default();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(data).unwrap().flatten().map(|e| e.path()).collect();
    cases.retain(|c| c.join("model.onnx").is_file() && c.to_string_lossy().contains(&only));
    cases.sort();
    let (mut passed, mut gaps, mut failed) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for c in &cases {
        match run(c) {
            Outcome::Passed => passed += 1,
            Outcome::Unsupported(why) => *gaps.entry(why).or_default() += 1,
            Outcome::Failed(why) => failed.push(format!("{}: {why}", c.file_name().unwrap_or_default().to_string_lossy())),
        }
    }
    let mut gaps: Vec<_> = gaps.into_iter().collect();
    gaps.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    for (why, n) in &gaps {
        println!("{n:5} {why}");
    }
    println!(
        "{passed} of {} cases passed, {} unsupported, {} failed",
        cases.len(),
        cases.len() - passed - failed.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
