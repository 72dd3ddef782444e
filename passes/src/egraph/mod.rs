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
mod language;
pub mod rules;
mod saturate;

use std::sync::Arc;

use transc_ir::Module;
use transc_ir::tensor::{ConstPool, Func};
use transc_ir::types::Ranges;

pub use graph::Graph;
pub use saturate::{Limits, Report, Step, Stop};

use crate::analysis::estimate::CostTable;
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
