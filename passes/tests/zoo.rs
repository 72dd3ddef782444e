//! The passes on every model of the zoo: how much of what a model holds becomes one op.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use transc_frontend::ImportOptions;
use transc_ir::Module;
use transc_passes::egraph::Outcome;
use transc_passes::{Counts, PassCx, coverage, pipeline};

/// The columns of the table of what each model holds.
const COLUMNS: [&str; 7] = ["attention", "layer_norm", "rms_norm", "gelu", "silu", "softmax", "rope"];

/// Percent of what the models hold that must become one op.
const MIN_SHARE: usize = 95;

/// The models of the tree.
const TREE: &str = "tests/data/zoo";

/// All of them, where they are at hand.
const ZOO: &str = "../shared/zoo";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The models in these folders that import; the others are refused as `tests/zoo.rs` checks.
fn models(dirs: &[&str]) -> BTreeMap<String, Module> {
    let mut all = BTreeMap::new();
    for dir in dirs {
        for entry in std::fs::read_dir(root().join(dir)).into_iter().flatten().flatten() {
            let onnx = entry.path().join("model.onnx");
            let path = if onnx.exists() { onnx } else { entry.path() };
            if entry.path().join("meta.json").exists()
                && let Ok(module) = transc_frontend::load(&path, &ImportOptions::default())
            {
                all.insert(entry.file_name().to_string_lossy().into_owned(), module);
            }
        }
    }
    assert!(!all.is_empty(), "the models of the tree are there");
    all
}

/// What each model holds by its architecture.
fn table() -> BTreeMap<String, Counts> {
    let text = std::fs::read_to_string(root().join("tests/data/coverage.txt")).expect("the table");
    let rows = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    rows.map(|l| {
        let mut words = l.split_whitespace();
        let name = words.next().expect("a model").to_string();
        let counts: Vec<usize> = words.map(|w| w.parse().unwrap_or_else(|_| panic!("{l}"))).collect();
        assert_eq!(counts.len(), COLUMNS.len(), "{l}");
        (name, COLUMNS.into_iter().zip(counts).collect())
    })
    .collect()
}

#[test]
fn what_a_model_holds_is_found_and_fused() {
    let table = table();
    let (mut wrong, mut missed) = (String::new(), String::new());
    let mut sums: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, module) in models(&[TREE, ZOO]) {
        let Some(holds) = table.get(&name) else { panic!("{name} has no row in tests/data/coverage.txt") };
        let mut cx = PassCx::default();
        let passes = pipeline::until("saturate");
        transc_passes::run(&mut module.clone(), &passes, &mut cx).unwrap_or_else(|e| panic!("{name}: {e}"));
        let got = coverage(&module, &cx.fused);
        for column in COLUMNS {
            let (want, (found, fused)) = (holds[column], got.get(column).copied().unwrap_or((0, 0)));
            if found != want {
                let _ = writeln!(wrong, "{name}: {column}: holds {want}, found {found}");
            }
            if fused < want {
                let _ = writeln!(missed, "  {name}: {column} {fused}/{want}");
            }
            let sum = sums.entry(column).or_default();
            *sum = (sum.0 + fused.min(want), sum.1 + want);
        }
    }
    let all = sums.values().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("missed:\n{missed}");
    for (column, (fused, want)) in &sums {
        println!("{column} {fused}/{want}");
    }
    println!("coverage {}/{}: {:.1} %", all.0, all.1, 100.0 * all.0 as f64 / all.1 as f64);
    assert!(wrong.is_empty(), "{wrong}");
    assert!(all.0 * 100 >= all.1 * MIN_SHARE, "only {} of {}", all.0, all.1);
}

/// On the models of the tree; on all with `TRANSC_WHOLE_ZOO=1`.
#[test]
fn explanations_replay() {
    let (mut steps, mut unknown, mut worst) = (0, 0, 0.0f64);
    let whole = std::env::var_os("TRANSC_WHOLE_ZOO").is_some();
    for (name, mut module) in models(if whole { &[TREE, ZOO] } else { &[TREE] }) {
        let mut cx = PassCx::default();
        cx.explain = true;
        transc_passes::run(&mut module, &pipeline::until("saturate"), &mut cx).unwrap_or_else(|e| panic!("{name}: {e}"));
        for p in &cx.proofs {
            for (i, outcome) in p.check().into_iter().enumerate() {
                steps += 1;
                let rule = p.links.get(i).map_or("the whole piece", |l| l.rule);
                match outcome {
                    Outcome::Holds(error) => worst = worst.max(error),
                    Outcome::Unknown(_) => unknown += 1,
                    Outcome::Fails(why) => panic!("{name}, {rule} at {:?}: {why}", p.links.get(i).map(|l| &l.loc)),
                }
            }
        }
    }
    println!("{steps} steps, {unknown} without a value on random inputs, worst relative error {worst:e}");
    assert!(unknown * 20 <= steps, "{unknown} of {steps} steps have no value on random inputs");
}

/// Families of the ONNX node cases whose operator is one op, with that op's mnemonic.
const FAMILIES: [(&str, &str); 8] = [
    ("attention", "attention"),
    ("flexattention", "attention"),
    ("gelu", "map"),
    ("layer_normalization", "layer_norm"),
    ("logsoftmax", "softmax"),
    ("rms_normalization", "rms_norm"),
    ("rotary_embedding", "rope"),
    ("softmax", "softmax"),
];

/// Percent of the twins that must become the op.
const MIN_TWINS: usize = 90;

/// The ONNX node cases have twins that spell the operator out, as its specification does.
#[test]
fn spelt_out_twins_become_the_op() {
    let cases = root().join("models/onnx-node");
    let mut names: Vec<String> =
        std::fs::read_dir(&cases).into_iter().flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() {
        println!("skipped: {} is absent (`./x models` fetches it)", cases.display());
        return;
    }
    let (mut sums, mut missed) = (BTreeMap::<&str, (usize, usize)>::new(), String::new());
    for name in names.iter().filter(|n| n.contains("_expanded")) {
        let of =
            |family: &str| name.strip_prefix("test_").and_then(|n| n.strip_prefix(family)).is_some_and(|n| n.starts_with('_'));
        let Some((family, op)) = FAMILIES.into_iter().find(|(family, _)| of(family)) else { continue };
        let mut module = transc_frontend::load(&cases.join(name).join("model.onnx"), &ImportOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut cx = PassCx::default();
        transc_passes::run(&mut module, &pipeline::until("saturate"), &mut cx).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = match op {
            "map" => cx.fused.contains_key(family),
            _ => module.main.nodes().any(|(_, n)| n.op.mnemonic() == op),
        };
        let sum = sums.entry(family).or_default();
        *sum = (sum.0 + usize::from(found), sum.1 + 1);
        if !found {
            let _ = writeln!(missed, "  {name}");
        }
    }
    println!("missed:\n{missed}");
    for (family, (found, of)) in &sums {
        println!("{family} {found}/{of}");
    }
    let (found, of) = sums.values().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("twins {found}/{of}: {:.1} %", 100.0 * found as f64 / of as f64);
    assert!(found * 100 >= of * MIN_TWINS, "only {found} of {of}");
}
