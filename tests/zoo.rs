//! Every model of the zoo: right outputs from compiled code, or a complete refusal. Never a wrong value, a crash or a hang.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use transc::ir::diag::{Diagnose, Fault};
use transc::ir::interp::Tensor as Plain;

use crate::kit;

/// What became of a model.
#[derive(Debug, PartialEq)]
enum Outcome {
    Ok,
    Unsupported(String),
    Wrong(String),
}

fn check(dir: &Path) -> Outcome {
    let allowed = kit::tolerance(dir);
    let session = match kit::jit(&kit::model_in(dir), 2) {
        Ok(s) => s,
        Err(e) => {
            let problems = e.diagnostics();
            let unsupported = problems.iter().all(|d| d.fault == Fault::Unsupported);
            let text = problems.first().map_or_else(String::new, |d| format!("{}: {}", d.code, d.message));
            return if unsupported { Outcome::Unsupported(text) } else { Outcome::Wrong(text) };
        }
    };
    for (inputs, outputs) in [("inputs", "outputs"), ("inputs_dyn", "outputs_dyn"), ("inputs_b3", "outputs_b3")] {
        let file = dir.join(format!("{inputs}.npz"));
        if !file.exists() {
            continue;
        }
        let want = kit::npz(&dir.join(format!("{outputs}.npz")));
        match kit::run(&session, &kit::npz(&file)) {
            Ok(got) => {
                if let Some(d) = kit::outputs_differ(&got, &want, allowed.rtol, allowed.atol) {
                    return Outcome::Wrong(format!("{inputs}: {d}"));
                }
                let worst = want.iter().map(|(n, w)| (n, mean_difference(&got, n, w))).max_by(|a, b| a.1.total_cmp(&b.1));
                if let Some((name, mean)) = worst.filter(|w| w.1 > allowed.mean_abs) {
                    return Outcome::Wrong(format!("{inputs}: {name}: the mean difference is {mean:e}"));
                }
            }
            Err(e) => return Outcome::Wrong(format!("{inputs}: {e}")),
        }
    }
    Outcome::Ok
}

/// The mean absolute difference of an output.
fn mean_difference(got: &[(String, Plain)], name: &str, want: &Plain) -> f64 {
    let Some((_, got)) = got.iter().find(|(n, _)| n == name) else { return f64::INFINITY };
    let sum: f64 = (0..want.count()).map(|i| (got.get_f64(i) - want.get_f64(i)).abs()).sum();
    sum / want.count().max(1) as f64
}

#[test]
fn every_model_is_right_or_refused() {
    let mut outcomes = BTreeMap::new();
    for dir in kit::zoo() {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        outcomes.insert(name, check(&dir));
    }
    let ok = outcomes.values().filter(|o| **o == Outcome::Ok).count();
    println!("zoo: {ok} of {} models run", outcomes.len());
    for (name, o) in outcomes.iter().filter(|(_, o)| **o != Outcome::Ok) {
        println!("  {name}: {o:?}");
    }
    write_support(&outcomes);
    let wrong: Vec<_> = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Wrong(_))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ok * 2 >= outcomes.len(), "fewer than half of the models run");
}

/// With `TRANSC_BLESS=1` the table in `docs/support.md` is written anew from the models that ran.
fn write_support(outcomes: &BTreeMap<String, Outcome>) {
    if std::env::var_os("TRANSC_BLESS").is_none() {
        return;
    }
    let ok = outcomes.values().filter(|o| **o == Outcome::Ok).count();
    let mut text = String::from("# What runs\n\nWritten by the test `zoo` (`TRANSC_BLESS=1 ./x test`).\n\n");
    let _ = writeln!(
        text,
        "{ok} of {} model files run with the outputs of their reference.\n\n| model | outcome |\n|---|---|",
        outcomes.len()
    );
    for (name, o) in outcomes {
        let _ = match o {
            Outcome::Ok => writeln!(text, "| {name} | runs |"),
            Outcome::Unsupported(why) => writeln!(text, "| {name} | unsupported: {} |", why.replace('|', "\\|")),
            Outcome::Wrong(why) => writeln!(text, "| {name} | WRONG: {} |", why.replace('|', "\\|")),
        };
    }
    let conformance = std::fs::read_to_string(kit::root().join("docs/support.md"))
        .ok()
        .and_then(|t| t.find("# ONNX operators").map(|i| t[i..].to_string()))
        .unwrap_or_default();
    let _ = write!(text, "\n{conformance}");
    std::fs::write(kit::root().join("docs/support.md"), text).expect("docs can be written");
}
