//! The ONNX node test cases, where `./x models` has fetched them: right, or refused as unsupported.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use transc::ir::diag::{Diagnose, Fault};
use transc::ir::interp::Tensor as Plain;

use crate::kit;

/// The suite's own tolerances.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-5;

/// Share of the cases that must pass, in per cent.
const FLOOR: usize = 55;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Verdict {
    Pass,
    Unsupported,
    Fail,
}

fn tensors(dir: &Path, stem: &str) -> Result<Vec<Option<Plain>>, String> {
    let mut all = Vec::new();
    loop {
        let file = dir.join(format!("{stem}_{}.pb", all.len()));
        if !file.exists() {
            return Ok(all);
        }
        let bytes = std::fs::read(&file).map_err(|e| e.to_string())?;
        // Sequences and optionals are not tensors; such a model is refused before its data matter.
        all.push(transc_frontend::onnx::tensor_from_pb(bytes).ok());
    }
}

fn check(case: &Path) -> (Verdict, String) {
    let session = match kit::jit(&case.join("model.onnx"), 1) {
        Ok(s) => s,
        Err(e) => {
            let all = e.diagnostics();
            let verdict = if all.iter().all(|d| d.fault == Fault::Unsupported) { Verdict::Unsupported } else { Verdict::Fail };
            return (verdict, all.first().map_or_else(String::new, |d| format!("{} {}", d.code, d.message)));
        }
    };
    let data = case.join("test_data_set_0");
    let sets = tensors(&data, "input").and_then(|i| Ok((i, tensors(&data, "output")?)));
    let (inputs, outputs) = match sets {
        Ok(s) => s,
        Err(e) => return (Verdict::Fail, e),
    };
    // Inputs come in the order of the graph; names that the compiler dropped as unused keep their place.
    let names = input_names(&case.join("model.onnx"));
    let arrays: Vec<(String, Plain)> = names.into_iter().zip(inputs).filter_map(|(n, t)| Some((n, t?))).collect();
    match kit::run(&session, &arrays) {
        Ok(got) => {
            for ((name, g), want) in got.iter().zip(&outputs) {
                let Some(want) = want else { return (Verdict::Fail, format!("{name}: the expected value cannot be read")) };
                if let Some(d) = kit::difference(g, want, RTOL, ATOL) {
                    return (Verdict::Fail, format!("{name}: {d}"));
                }
            }
            (Verdict::Pass, String::new())
        }
        Err(e) => (Verdict::Fail, e.to_string()),
    }
}

#[test]
fn node_cases_pass_or_are_refused() {
    let dir = kit::root().join("models/onnx-node");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        println!("skipped: the ONNX node cases are not here (./x models fetches them)");
        return;
    };
    let mut cases: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.join("model.onnx").exists()).collect();
    cases.sort();
    let mut families: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut passed = 0;
    for case in &cases {
        let name = case.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let (verdict, why) = check(case);
        families.entry(family(&name)).or_default()[verdict as usize] += 1;
        match verdict {
            Verdict::Pass => passed += 1,
            Verdict::Fail => failures.push(format!("{name}: {why}")),
            Verdict::Unsupported => {}
        }
    }
    println!("node cases: {passed} of {} pass, {} wrong", cases.len(), failures.len());
    write_table(&families, passed, cases.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(passed * 100 >= cases.len() * FLOOR, "{passed} of {} pass", cases.len());
}

/// Names of the graph's inputs, in its order.
fn input_names(model: &Path) -> Vec<String> {
    let model = transc_frontend::onnx::read_model(model, &transc::ImportOptions::default()).ok();
    let graph = model.and_then(|m| m.graph);
    graph.map_or_else(Vec::new, |g| g.input.iter().map(|i| i.name().to_string()).collect())
}

/// `test_softmax_axis_0_expanded` belongs to `softmax`.
fn family(name: &str) -> String {
    name.trim_start_matches("test_").split('_').next().unwrap_or(name).to_string()
}

/// With `TRANSC_BLESS=1` the operator table of `docs/support.md` is written anew.
fn write_table(families: &BTreeMap<String, [usize; 3]>, passed: usize, all: usize) {
    if std::env::var_os("TRANSC_BLESS").is_none() {
        return;
    }
    let path = kit::root().join("docs/support.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let before = before.find("# ONNX operators").map_or(before.as_str(), |i| &before[..i]);
    let mut text = format!("{}\n\n# ONNX operators\n\n", before.trim_end());
    let _ = writeln!(text, "{passed} of {all} node cases of onnx 1.22.0 pass; the others are refused as unsupported.\n");
    text.push_str("| family | pass | unsupported |\n|---|---|---|\n");
    for (name, [pass, unsupported, _]) in families {
        let _ = writeln!(text, "| {name} | {pass} | {unsupported} |");
    }
    std::fs::write(path, text).expect("docs can be written");
}
