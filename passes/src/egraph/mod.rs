//! `saturate`: equality saturation. All forms of a function that the rules reach stand side by side in an e-graph, and the one of
//! least estimated time is taken out.
//!
//! * The e-node is the tensor IR's own op; types are inferred by the op.
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
mod sharing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use transc_ir::op::{Shared, TypeError};
use transc_ir::tensor::{Builder, ConstPool, Func};
use transc_ir::types::Ranges;
use transc_ir::{Loc, Module};

pub use graph::Graph;
pub use saturate::{Limits, Report, Step, Stop};

use self::sharing::{Assembly, Piece};
use crate::analysis::coverage;
use crate::analysis::estimate::CostTable;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// What saturation made of a piece.
struct Saturated {
    func: Func,
    report: Report,
}

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rules: Vec<&'static rules::Rule> = rules::all().filter(|r| r.class <= cx.numerics).collect();
    let f = std::mem::replace(&mut module.main, Func::new("main"));
    let pieces = sharing::pieces(&f, &module.consts);
    let mut done: BTreeMap<(Shared, &[bool]), (usize, Saturated)> = BTreeMap::new();
    let mut out = Func::new(&f.name);
    let pool = module.consts.clone();
    let mut whole = Assembly::new(&f, Builder::new(&mut out, &mut module.consts));
    let mut stop = Stop::Saturated;
    for (i, piece) in pieces.iter().enumerate() {
        let key = (Shared(Arc::new(piece.func.clone())), piece.constant.as_slice());
        if !done.contains_key(&key) {
            let made = saturated(piece, &pool, &module.symbols, &rules, cx_parts(cx));
            let made = sweep::typed(cx, made)?;
            stop = stop.max(made.report.stop);
            done.insert(key.clone(), (i, made));
        }
        let (first, made) = &done[&key];
        let places = pieces[*first].places_in(piece);
        let place = |loc: &Loc| places.get(loc.path()).unwrap_or(loc).clone();
        for step in &made.report.steps {
            cx.fired(step.rule);
        }
        for (rule, loc, why) in &made.report.misses {
            cx.remark(&place(loc), format!("`{rule}` did not fire: {why}"));
        }
        let added = whole.add(piece, &made.func, &place);
        sweep::typed(cx, added)?;
    }
    sweep::typed(cx, whole.finish())?;
    cx.current.stop = Some(stop);
    cx.fused = coverage::fused(&out);
    module.main = out;
    Ok(())
}

/// The options that saturation reads, and the fuel that it spends.
type Parts<'a> = (&'a Limits, &'a mut Option<u32>, &'a CostTable);

fn cx_parts(cx: &mut PassCx) -> Parts<'_> {
    (&cx.limits, &mut cx.fuel, &cx.costs)
}

fn saturated(
    piece: &Piece,
    consts: &Arc<ConstPool>,
    ranges: &Ranges,
    rules: &[&'static rules::Rule],
    (limits, fuel, costs): Parts<'_>,
) -> Result<Saturated, TypeError> {
    let mut g = Graph::new(&piece.func, &piece.constant, consts.clone(), ranges);
    let report = saturate::saturate(&mut g, rules, limits, fuel);
    let choice = extract::choose(&g, costs);
    let func = extract::emit(&g, &choice, &piece.func, &mut consts.clone())?;
    Ok(Saturated { func, report })
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
    Ok(Some(out))
}
