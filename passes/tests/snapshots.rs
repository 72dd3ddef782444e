//! Every case of `tests/passes/<pass>/*.tir`, run through the pass that its folder names.
//!
//! A snapshot shows what fired and the module that came out; the interpreter has compared it with the module that went in.

mod kit;

use std::fmt::Write as _;
use std::path::Path;

use transc_ir::text::parse_module;
use transc_passes::{Class, Codes, Facts, PASSES, PassCx, Precision, Range, run};

/// Random inputs that each case is evaluated on.
const SEEDS: u64 = 8;

/// Relative to 1 + |value|; for passes that round elsewhere, on inputs of order one.
const REASSOC_TOLERANCE: f64 = 1e-5;

fn snapshot(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).expect("a folder").to_string_lossy().into_owned();
    let pass = PASSES.iter().find(|p| p.name == folder).expect("a folder named after a pass");
    let text = std::fs::read_to_string(path).expect("a case");
    let before = parse_module(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut after, mut cx) = (before.clone(), PassCx::default());
    cx.verify_each = true;
    // A case of a lossy pass says in its first lines what is asked for.
    let asked =
        |option: &str| text.lines().take_while(|l| l.starts_with("//")).find_map(|l| l.strip_prefix(&format!("// {option}: ")));
    cx.merge = asked("merge").map(|l| l.parse().expect("a codec"));
    cx.cuts.nested = asked("mat").map(|l| l.parse().expect("sizes"));
    cx.cuts.shares = asked("prune-structured").map(|l| l.parse().expect("shares"));
    cx.precision = asked("dtype").map_or(Precision::Model, |l| l.parse().expect("a type"));
    cx.weights.prune = asked("sparse").map(|l| l.parse().expect("a pattern"));
    let codes = asked("int8")
        .map(Codes::int8)
        .or_else(|| asked("w4").map(Codes::weights4))
        .or_else(|| asked("llm-int8").map(Codes::outliers))
        .or_else(|| asked("factorize").map(|f| f.parse().map(Codes::Factored)));
    cx.weights.codes = codes.map(|c| c.expect("a way"));
    cx.weights.facts = asked("outliers").map_or_else(Vec::new, |columns| {
        let outliers: Vec<usize> = columns.split(' ').map(|c| c.parse().expect("a column")).collect();
        vec![Facts { range: Range { lo: -4.0, hi: 4.0 }, outliers, ..Facts::default() }; transc_passes::sites(&before.main).len()]
    });
    cx.weights.attention = asked("range").map_or_else(Vec::new, |hi| {
        let hi: f32 = hi.parse().expect("a number");
        vec![[Range { lo: -1.0, hi }; 3]; transc_passes::attentions(&before.main, &cx.weights).len()]
    });
    run(&mut after, &[pass.name], &mut cx).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tolerance = if pass.class == Class::Exact { 0.0 } else { REASSOC_TOLERANCE };
    let seeds = if pass.class == Class::Lossy { 0 } else { SEEDS };
    for seed in 0..seeds {
        kit::agree(&before, &after, seed, tolerance, pass.class == Class::Exact)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let stats = &cx.stats[0];
    let fired: Vec<String> = stats.fired.iter().map(|(rule, n)| format!("{rule} x{n}")).collect();
    let fired = if fired.is_empty() { "nothing".into() } else { fired.join(", ") };
    let mut out = format!(
        "pass: {}   stage: {} -> {}   class: {}\n",
        pass.name,
        pass.stage_in.name(),
        pass.stage_out.name(),
        pass.class.name()
    );
    let _ = writeln!(out, "fired: {fired}   nodes: {} -> {}", stats.nodes_before, stats.nodes_after);
    for r in &cx.remarks {
        let _ = writeln!(out, "remark at {:?}: {}", r.loc.path(), r.message);
    }
    for l in &cx.ledger {
        let _ = writeln!(out, "ledger: {} at {:?}: {}", l.codec, l.site, l.parameters);
    }
    if seeds > 0 {
        let _ = writeln!(out, "check: {seeds} seeds agree with the interpreter");
    }
    let _ = write!(out, "---\n{after}");
    out
}

#[test]
fn cases() {
    insta::glob!("../../tests/passes", "*/*.tir", |path| {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(path.parent().expect("a folder"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(snapshot(path)));
    });
}

#[test]
fn every_pass_has_cases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/passes");
    for pass in PASSES {
        let files = std::fs::read_dir(root.join(pass.name)).into_iter().flatten().flatten();
        let cases = files.filter(|f| f.path().extension().is_some_and(|e| e == "tir")).count();
        assert!(cases >= 3, "pass `{}` has {cases} cases", pass.name);
    }
}

#[test]
fn every_snapshot_has_its_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/passes");
    for folder in std::fs::read_dir(root).expect("the cases").flatten() {
        for file in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some((_, case)) = name.strip_suffix(".snap").and_then(|n| n.split_once("__")) else { continue };
            assert!(folder.path().join(case).exists(), "{name} belongs to no case");
        }
    }
}
