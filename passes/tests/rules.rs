//! Every rule on the graphs of `tests/rules/<rule>`: on `yes-*.tir` it must fire, and both sides must agree under the interpreter at
//! random sizes and values; on `no-*.tir` it must not.

#[path = "kit/cases.rs"]
mod cases;
mod kit;

use std::path::{Path, PathBuf};

use egg::Id;
use transc_ir::op::{Map, Op};
use transc_ir::scalar::{BinOp, Body, Ref};
use transc_ir::text::parse_module;
use transc_ir::{DType, Module};
use transc_passes::Class;
use transc_passes::egraph::rules::{self, Miss, Rule, Site};
use transc_passes::egraph::{Graph, Outcome, rewritten_by};

/// Random instances per case; `TRANSC_RULE_SEEDS` asks for more.
const SEEDS: u64 = 200;

fn seeds() -> u64 {
    std::env::var("TRANSC_RULE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/rules")
}

fn cases(rule: &Rule, prefix: &str) -> Vec<(PathBuf, Module)> {
    let all = cases::of(&root().join(rule.name)).into_iter();
    all.filter(|(p, _)| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))).collect()
}

#[test]
fn both_sides_are_equal() {
    for rule in rules::all() {
        let cases = cases(rule, "yes-");
        assert!(!cases.is_empty(), "rule `{}` has no case on which it fires", rule.name);
        for (path, before) in cases {
            let after = rewritten_by(rule, &before).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let (after, proof) = after.unwrap_or_else(|| panic!("{}: the rule does not fire", path.display()));
            for outcome in proof.check() {
                assert!(!matches!(outcome, Outcome::Fails(_)), "{}: its proof: {outcome:?}", path.display());
            }
            assert_ne!(before.to_string(), after.to_string(), "{}: nothing changed", path.display());
            let special = rule.class == Class::Exact;
            let mut compared = 0;
            for seed in 0..seeds() {
                match kit::agree(&before, &after, seed, rule.bound, special) {
                    Ok(both) => compared += u64::from(both),
                    Err(e) => panic!("{}: {e}\n{after}", path.display()),
                }
            }
            assert!(compared * 2 > seeds(), "{}: only {compared} instances have a value", path.display());
        }
    }
}

#[test]
fn lookalikes_are_left_alone() {
    for rule in rules::all() {
        let cases = cases(rule, "no-");
        assert!(!cases.is_empty(), "rule `{}` has no case on which it must not fire", rule.name);
        for (path, before) in cases {
            let after = rewritten_by(rule, &before).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(after.is_none(), "{}: the rule fired\n{}", path.display(), after.expect("checked").0);
        }
    }
}

#[test]
fn every_row_is_complete() {
    let mut names: Vec<&str> = rules::all().map(|r| r.name).collect();
    for rule in rules::all() {
        assert!(!rule.why.is_empty() && !rule.at.is_empty(), "{}", rule.name);
        assert_eq!(rule.class == Class::Exact, rule.bound == 0.0, "{}: exact rules have bound 0, others have not", rule.name);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rules::all().count(), "two rules of one name");
    let folders = std::fs::read_dir(root()).into_iter().flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned());
    for folder in folders {
        assert!(names.contains(&folder.as_str()), "tests/rules/{folder} belongs to no rule");
    }
}

/// A rule that is wrong: a product becomes `wrong`.
const fn planted(apply: fn(&mut Graph<'_>, &Site<'_>) -> Result<Id, Miss>) -> Rule {
    Rule { name: "planted", class: Class::Reassoc, bound: 1e-4, why: "it is not", at: &["map"], apply }
}

/// What a body makes of the operands of a product of two.
fn instead(g: &mut Graph<'_>, site: &Site<'_>, factor: Option<f64>) -> Result<Id, Miss> {
    let product = matches!(site.op, Op::Map(m) if m.body == Body::bin(BinOp::Mul));
    if !product {
        return Err(Miss::Other);
    }
    let mut b = Body::builder(2);
    let mut y = b.bin(if factor.is_some() { BinOp::Mul } else { BinOp::Add }, Ref::Arg(0), Ref::Arg(1));
    if let Some(factor) = factor {
        let factor = b.num(DType::F32, factor);
        y = b.bin(BinOp::Mul, y, factor);
    }
    g.add(Map { body: b.finish(y) }, site.args).ok_or(Miss::Other)
}

/// Below the product stands a sharp softmax, which makes errors of rounding grow.
const PLANTED_IN: &str = r#"
module "planted" {
  func @"main"(%0 "x": f32[3,8], %1 "y": f32[3,8]) {
    %2: f32[3,8] = map(%0, %1) {body = {2: i0 = mul a0 a1; i0}}
    %3: f32[3,8] = map(%2) {body = {1: i0 = const f32 10000.0; i1 = mul a0 i0; i1}}
    %4: f32[3,8] = softmax(%3) {axis = 1, log = false}
    %5: f32[3,8] = map(%4, %2) {body = {2: i0 = add a0 a1; i0}}
    return %5 "z"
  }
}
"#;

#[test]
fn a_wrong_step_is_caught() {
    static SUM: Rule = planted(|g, site| instead(g, site, None));
    static THOUSANDTH: Rule = planted(|g, site| instead(g, site, Some(1.001)));
    static ROUNDED: Rule = planted(|g, site| instead(g, site, Some(1.0 + 2f64.powi(-23))));
    let module = parse_module(PLANTED_IN).expect("it parses");
    let check = |rule: &'static Rule| rewritten_by(rule, &module).expect("typed").expect("it fires").1.check();
    for wrong in [&SUM, &THOUSANDTH] {
        assert!(matches!(check(wrong)[0], Outcome::Fails(_)), "the step: {:?}", check(wrong));
    }
    assert!(matches!(check(&SUM)[1], Outcome::Fails(_)), "the whole: {:?}", check(&SUM));
    assert!(check(&ROUNDED).iter().all(|o| matches!(o, Outcome::Holds(_))), "{:?}", check(&ROUNDED));
}
