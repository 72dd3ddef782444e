//! Every rule on the graphs of `tests/rules/<rule>`: on `yes-*.tir` it must fire, and both sides must agree under the interpreter at
//! random sizes and values; on `no-*.tir` it must not.

mod kit;

use std::path::{Path, PathBuf};

use transc_ir::Module;
use transc_ir::text::parse_module;
use transc_passes::Class;
use transc_passes::egraph::rewritten_by;
use transc_passes::egraph::rules::{self, Rule};

/// Random instances per case; `TRANSC_RULE_SEEDS` asks for more.
const SEEDS: u64 = 200;

fn seeds() -> u64 {
    std::env::var("TRANSC_RULE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/rules")
}

fn cases(rule: &Rule, prefix: &str) -> Vec<(PathBuf, Module)> {
    let files = std::fs::read_dir(root().join(rule.name)).into_iter().flatten().flatten().map(|f| f.path());
    let mut files: Vec<PathBuf> =
        files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))).collect();
    files.sort();
    let parse = |p: PathBuf| {
        let text = std::fs::read_to_string(&p).expect("a case");
        let module = parse_module(&text).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
        (p, module)
    };
    files.into_iter().map(parse).collect()
}

#[test]
fn both_sides_are_equal() {
    for rule in rules::all() {
        let cases = cases(rule, "yes-");
        assert!(!cases.is_empty(), "rule `{}` has no case on which it fires", rule.name);
        for (path, before) in cases {
            let after = rewritten_by(rule, &before).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let after = after.unwrap_or_else(|| panic!("{}: the rule does not fire", path.display()));
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
            assert!(after.is_none(), "{}: the rule fired\n{}", path.display(), after.expect("checked"));
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
