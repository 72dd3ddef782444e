//! Every model of the zoo in every way: right outputs, or a complete refusal. Never a wrong value, a crash or a hang.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use transc::ir::Module;
use transc::ir::interp::Tensor as Plain;

use crate::kit;
use crate::ways::{self, Failure, Ready, Way};

/// What became of a model in one way.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Right,
    Unsupported(String),
    Wrong(String),
}

impl From<Failure> for Outcome {
    fn from(f: Failure) -> Self {
        match f {
            Failure::Refused(why) => Outcome::Unsupported(why),
            Failure::Fault(why) => Outcome::Wrong(why),
        }
    }
}

/// The ways at full effort. The loops for a processor are what its backends compile: no model needs their simulation as well.
fn ways_of_models() -> Vec<Way> {
    ways::ways(3).into_iter().filter(|w| w.name != "loops").collect()
}

/// The ways that a model goes: all of them if it is in the tree or `TRANSC_WHOLE_ZOO=1` asks for it, else the first.
fn asked<'a>(name: &str, ways: &'a [Way]) -> &'a [Way] {
    let whole = ["TRANSC_WHOLE_ZOO", "TRANSC_BLESS"].iter().any(|v| std::env::var_os(v).is_some());
    let all = whole || kit::root().join("tests/data/zoo").join(name).exists();
    if all { ways } else { &ways[..1] }
}

/// The outcome in each of the ways, in their order.
fn check(dir: &Path, ways: &[Way]) -> Vec<Outcome> {
    match transc::load(kit::model_in(dir)) {
        Ok(module) => ways
            .iter()
            .map(|w| (w.prepare)(&module).map_or_else(Outcome::from, |run| check_outputs(dir, &module, &run, w.simulated)))
            .collect(),
        Err(e) => vec![Failure::from(e).into(); ways.len()],
    }
}

/// Compares a model with the outputs of its reference, on all inputs of its folder; a simulation has time for one.
fn check_outputs(dir: &Path, module: &Module, run: &Ready, simulated: bool) -> Outcome {
    let allowed = kit::tolerance(dir);
    let sets = [("inputs", "outputs"), ("inputs_dyn", "outputs_dyn"), ("inputs_b3", "outputs_b3")];
    for (inputs, outputs) in if simulated { &sets[..1] } else { &sets } {
        let file = dir.join(format!("{inputs}.npz"));
        if !file.exists() {
            continue;
        }
        let got = match run(&ways::inputs(module, &kit::npz(&file))) {
            Ok(got) => got,
            Err(e) => return e.into(),
        };
        let got: Vec<(String, Plain)> = module.main.results().iter().map(|(n, _)| n.clone()).zip(got).collect();
        let want = kit::npz(&dir.join(format!("{outputs}.npz")));
        if let Some(d) = kit::outputs_differ(&got, &want, allowed.rtol, allowed.atol) {
            return Outcome::Wrong(format!("{inputs}: {d}"));
        }
        let worst = want.iter().map(|(n, w)| (n, mean_difference(&got, n, w))).max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((name, mean)) = worst.filter(|w| w.1 > allowed.mean_abs) {
            return Outcome::Wrong(format!("{inputs}: {name}: the mean difference is {mean:e}"));
        }
    }
    Outcome::Right
}

/// The mean absolute difference of an output.
fn mean_difference(got: &[(String, Plain)], name: &str, want: &Plain) -> f64 {
    let Some((_, got)) = got.iter().find(|(n, _)| n == name) else { return f64::INFINITY };
    let sum: f64 = (0..want.count()).map(|i| (got.get_f64(i) - want.get_f64(i)).abs()).sum();
    sum / want.count().max(1) as f64
}

#[test]
fn every_model_is_right_or_refused_in_every_way() {
    // Two at a time: the last test to end would else leave a core idle.
    let (models, outcomes) = (Mutex::new(kit::zoo().into_iter()), Mutex::new(BTreeMap::new()));
    let work = || {
        let ways = ways_of_models();
        while let Some(dir) = { models.lock().expect("no panic").next() } {
            let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
            let found = check(&dir, asked(&name, &ways));
            outcomes.lock().expect("no panic").insert(name, found);
        }
    };
    std::thread::scope(|s| (0..2).for_each(|_| drop(s.spawn(work))));
    let outcomes = outcomes.into_inner().expect("no panic");
    let names: Vec<&str> = ways_of_models().iter().map(|w| w.name).collect();
    let of_way = |w: usize| outcomes.values().filter_map(move |found| found.get(w));
    let right: Vec<usize> = (0..names.len()).map(|w| of_way(w).filter(|o| **o == Outcome::Right).count()).collect();
    for (w, (name, right)) in names.iter().zip(&right).enumerate() {
        println!("zoo: {right} of {} models are right by {name}", of_way(w).count());
    }
    for (model, found) in outcomes.iter().filter(|(_, found)| found.iter().any(|o| *o != Outcome::Right)) {
        println!("  {model}: {found:?}");
    }
    write_support(&names, &right, &outcomes);
    let wrong: Vec<_> = outcomes.iter().filter(|(_, found)| found.iter().any(|o| matches!(o, Outcome::Wrong(_)))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(right.iter().enumerate().all(|(w, n)| n * 4 >= of_way(w).count() * 3), "too many models are refused");
}

/// With `TRANSC_BLESS=1` the table in `docs/support.md` is written anew from the models that ran.
fn write_support(ways: &[&str], right: &[usize], outcomes: &BTreeMap<String, Vec<Outcome>>) {
    if std::env::var_os("TRANSC_BLESS").is_none() {
        return;
    }
    let mut text = String::from(
        "# What runs\n\nWritten by the test `zoo` (`TRANSC_BLESS=1 ./x test`): every model in every way, against the outputs of its reference. \
         `ptx` is\nthe simulation of the loops for `cuda:sm_80` and `cuda:sm_90a`, which are the same.\n\n",
    );
    let _ = write!(text, "| model |{}\n|---|{}\n", cells(ways.iter()), cells(ways.iter().map(|_| "---")));
    let _ = writeln!(text, "| right, of {} |{}", outcomes.len(), cells(right.iter()));
    let mut reasons = Vec::new();
    for (model, found) in outcomes {
        let cell = |o: &Outcome| match o {
            Outcome::Right => "right".to_string(),
            Outcome::Unsupported(why) => {
                let n = reasons.iter().position(|r| r == why).unwrap_or_else(|| {
                    reasons.push(why.clone());
                    reasons.len() - 1
                });
                format!("unsupported ({})", n + 1)
            }
            Outcome::Wrong(why) => format!("WRONG: {}", why.replace('|', "\\|")),
        };
        let row: Vec<String> = found.iter().map(cell).collect();
        let _ = writeln!(text, "| {model} |{}", cells(row.iter()));
    }
    text.push('\n');
    for (i, why) in reasons.iter().enumerate() {
        let _ = writeln!(text, "{}. {why}", i + 1);
    }
    let path = kit::root().join("docs/support.md");
    let conformance = std::fs::read_to_string(&path)
        .ok()
        .and_then(|t| t.find("# ONNX operators").map(|i| t[i..].to_string()))
        .unwrap_or_default();
    let _ = write!(text, "\n{conformance}");
    std::fs::write(path, text).expect("docs can be written");
}

/// Cells of a table row.
fn cells(of: impl Iterator<Item = impl std::fmt::Display>) -> String {
    of.map(|c| format!(" {c} |")).collect()
}
