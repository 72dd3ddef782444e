//! `saturate`: equality saturation. All forms of a function that the rules reach stand side by side in an e-graph, and the one of
//! least estimated time is taken out.
//!
//! * The e-node is the tensor IR's own op; types are inferred by the op.
//! * A rule is a row ([`rules`]), with a folder of cases in `tests/rules` on which it must fire and must not.
//! * Bounds are counts of sweeps and e-nodes, ties are broken by a total order: the same module gives the same module.
//!
//! Lossy rewrites are no rules: a union asserts equality, and congruence would carry an error anywhere.

mod dump;
mod explain;
mod extract;
mod graph;
mod index;
mod language;
mod meaning;
pub mod rules;
mod saturate;
mod sharing;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use transc_ir::op::{Shared, TypeError};
use transc_ir::tensor::{ConstPool, Func};
use transc_ir::types::Ranges;
use transc_ir::{Loc, Module};

pub use dump::ENode;
pub use explain::{Link, Outcome, Proof};
pub use graph::Graph;
pub use saturate::{Limits, Report, Step, Stop};

use self::sharing::{Assembly, Piece};
use crate::analysis::coverage;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// What saturation made of a piece.
struct Saturated {
    func: Func,
    report: Report,
    proof: Option<Proof>,
}

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rules: Vec<&'static rules::Rule> = rules::all().filter(|r| r.class <= cx.numerics).collect();
    let f = module.take_main();
    let pieces = sharing::pieces(&f, &module.consts);
    let mut done: BTreeMap<(Shared, &[bool]), (usize, Saturated)> = BTreeMap::new();
    let mut whole = Assembly::new(&f);
    let mut stop = Stop::Saturated;
    let mut proofs: Vec<(usize, Proof)> = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let key = (Shared(Arc::new(piece.func.clone())), piece.constant.as_slice());
        if !done.contains_key(&key) {
            let made = saturated(piece, &module.consts, &module.symbols, &rules, cx);
            let made = sweep::typed(cx, made)?;
            stop = stop.max(made.report.stop);
            if let Some(step) = made.report.steps.last() {
                cx.current.last = Some(format!("rule `{}` at node \"{}\"", step.rule.name, step.loc.path()));
            }
            if let Some(proof) = &made.proof {
                proofs.push((i, proof.clone()));
            }
            done.insert(key.clone(), (i, made));
        }
        let (first, made) = &done[&key];
        if *first < i {
            proofs.iter_mut().filter(|(of, _)| of == first).for_each(|(_, p)| p.copies += 1);
        }
        let places = pieces[*first].places_in(piece);
        let place = |loc: &Loc| (*places.get(loc.path()).unwrap_or(&loc)).clone();
        for step in &made.report.steps {
            cx.fired(step.rule.name);
        }
        for (rule, loc, why) in &made.report.misses {
            cx.remark(&place(loc), format!("`{rule}` did not fire: {why}"));
        }
        whole.add(piece, &made.func, &place);
    }
    let out = whole.finish();
    cx.current.stop = Some(stop);
    cx.fused = coverage::fused(&out);
    cx.proofs.extend(proofs.into_iter().map(|p| p.1));
    module.main = out;
    Ok(())
}

fn saturated(
    piece: &Piece,
    consts: &Arc<ConstPool>,
    ranges: &Ranges,
    rules: &[&'static rules::Rule],
    cx: &mut PassCx,
) -> Result<Saturated, TypeError> {
    let mut g = Graph::new(&piece.func, &piece.constant, consts.clone(), ranges);
    let given = g.mark();
    if cx.explain {
        g.record_reads();
    }
    let report = saturate::saturate(&mut g, rules, &cx.limits, &mut cx.fuel);
    let choice = extract::choose(&g, &cx.costs);
    let func = extract::emit(&g, &choice, &piece.func, &mut consts.clone())?;
    let proof = cx.explain.then(|| explain::proof((&g, given), &report, &choice, &piece.func, &func, consts)).transpose()?;
    if let Some(all) = &mut cx.egraph {
        all.extend(dump::nodes(&g, &cx.costs, &format!("p{}.", cx.current.graphs)));
        cx.current.graphs += 1;
    }
    Ok(Saturated { func, report, proof })
}

/// Forms of the module that all rules reach, each drawn by prices that are asked for once per term. For tests.
///
/// # Errors
/// An ill-typed right side.
pub fn drawn(module: &Module, forms: usize, price: &mut dyn FnMut() -> f64) -> Result<Vec<Module>, TypeError> {
    let mut g = Graph::new(&module.main, &[], module.consts.clone(), &module.symbols);
    let rules: Vec<&'static rules::Rule> = rules::all().collect();
    saturate::saturate(&mut g, &rules, &Limits::default(), &mut None);
    let price = RefCell::new(price);
    let draw = |_| {
        let choice = extract::choose_by(&g, &|_| (price.borrow_mut())());
        let mut out = module.clone();
        out.main = extract::emit(&g, &choice, &module.main, &mut out.consts)?;
        Ok(out)
    };
    (0..forms).map(draw).collect()
}

/// The module with what one rule makes of it, preferred whatever it costs, and why both are equal; `None` if the rule does not fire.
/// For the tests of the rules.
///
/// # Errors
/// An ill-typed right side.
pub fn rewritten_by(rule: &'static rules::Rule, module: &Module) -> Result<Option<(Module, Proof)>, TypeError> {
    let mut g = Graph::new(&module.main, &[], module.consts.clone(), &module.symbols);
    let given = g.mark();
    g.record_reads();
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
    let proof = explain::proof((&g, given), &report, &choice, &module.main, &out.main, &module.consts)?;
    Ok(Some((out, proof)))
}
