//! `saturate`: equality saturation. All forms of a function that the rules reach stand side by side in an e-graph, and the one of
//! least estimated time is taken out.
//!
//! * The e-node is the tensor IR's own op ([`language`]); types are inferred by the op.
//! * A rule is a row ([`rules`]), with a folder of cases in `tests/rules` on which it must fire and must not.
//! * Bounds are counts of sweeps and e-nodes, ties are broken by a total order: the same module gives the same module.
//!
//! Lossy rewrites are no rules: a union asserts equality, and congruence would carry an error anywhere.

mod extract;
mod graph;
mod index;
mod language;
mod meaning;
pub mod rules;
mod saturate;

use std::collections::BTreeSet;

use transc_ir::Module;
use transc_ir::op::TypeError;

pub use graph::Graph;
pub use saturate::{Limits, Report, Step, Stop};

use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rules: Vec<&'static rules::Rule> = rules::all().filter(|r| r.class <= cx.numerics).collect();
    let mut g = Graph::new(&module.main, &[], module.consts.clone(), &module.symbols);
    let report = saturate::saturate(&mut g, &rules, &cx.limits, &mut cx.fuel);
    let choice = extract::choose(&g, &cx.costs);
    for step in &report.steps {
        cx.fired(step.rule);
    }
    for (rule, loc, why) in &report.misses {
        cx.remark(loc, format!("`{rule}` did not fire: {why}"));
    }
    cx.current.stop = Some(report.stop);
    let emitted = extract::emit(&g, &choice, &module.main, &mut module.consts);
    module.main = sweep::typed(cx, emitted)?;
    Ok(())
}

/// The module with what one rule makes of it, preferred whatever it costs; `None` if the rule does not fire. For the tests of the rules.
///
/// # Errors
/// An ill-typed right side.
pub fn rewritten_by(rule: &'static rules::Rule, module: &Module) -> Result<Option<Module>, TypeError> {
    let mut g = Graph::new(&module.main, &[], module.consts.clone(), &module.symbols);
    let report = saturate::saturate(&mut g, &[rule], &Limits { iterations: 1, ..Limits::default() }, &mut None);
    if report.steps.is_empty() {
        return Ok(None);
    }
    let added: BTreeSet<_> = report.steps.iter().flat_map(|s| &s.added).map(|t| t.canonical(&g)).collect();
    let replaced: BTreeSet<_> = report.steps.iter().map(|s| s.site.canonical(&g)).collect();
    let choice = extract::choose_by(&g, &|term| {
        let term = term.canonical(&g);
        // A right side may be a part of the left side: then nothing was added, and what it replaces is dear.
        if added.contains(&term) {
            1.0
        } else if replaced.contains(&term) {
            1e6
        } else {
            10.0
        }
    });
    let mut out = module.clone();
    out.main = extract::emit(&g, &choice, &module.main, &mut out.consts)?;
    out.consts = g.into_consts();
    Ok(Some(out))
}
