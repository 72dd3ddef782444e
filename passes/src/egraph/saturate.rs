//! Equality saturation of one function.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use transc_ir::Loc;

use super::graph::Graph;
use super::language::Term;
use super::rules::{Miss, Rule, Site};

/// What bounds the work: counts, never a clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sweeps over all rules.
    pub iterations: usize,
    /// E-nodes.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { iterations: 12, nodes: 50_000 }
    }
}

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No rule has anything to add.
    Saturated,
    /// See [`Limits::iterations`].
    Iterations,
    /// See [`Limits::nodes`].
    Nodes,
    /// The fuel is spent.
    Fuel,
}

/// One union that a rule made.
#[derive(Clone, Debug)]
pub struct Step {
    /// The rule.
    pub rule: &'static str,
    /// The user's node.
    pub loc: Loc,
    /// The e-node where it fired.
    pub site: Term,
    /// The class that it made equal.
    pub result: Id,
    /// The e-nodes that it added.
    pub added: Vec<Term>,
}

/// What saturation did.
pub struct Report {
    /// Why it ended.
    pub stop: Stop,
    /// Sweeps.
    pub iterations: usize,
    /// Unions, in order.
    pub steps: Vec<Step>,
    /// Near misses: rule, user's node and the condition that failed. Only of classes where the rule has not fired either.
    pub misses: Vec<(&'static str, Loc, String)>,
}

/// Applies rules until nothing changes or a limit is reached. `fuel` counts down with every union.
pub fn saturate(g: &mut Graph<'_>, rules: &[&'static Rule], limits: &Limits, fuel: &mut Option<u32>) -> Report {
    let mut steps = Vec::new();
    let mut misses: BTreeMap<(&'static str, Id), (Loc, String)> = BTreeMap::new();
    let mut fired: BTreeSet<(&'static str, Id)> = BTreeSet::new();
    let mut tried: BTreeSet<(&'static str, Term)> = BTreeSet::new();
    let report = |stop, iterations, steps, misses: BTreeMap<(&'static str, Id), (Loc, String)>, fired: &BTreeSet<_>| Report {
        stop,
        iterations,
        steps,
        misses: misses.into_iter().filter(|(k, _)| !fired.contains(k)).map(|((rule, _), (loc, why))| (rule, loc, why)).collect(),
    };
    for iteration in 0..limits.iterations {
        let before = g.size();
        let mut changed = false;
        let sites: Vec<(Id, Term)> =
            g.classes().into_iter().flat_map(|(id, ts)| ts.iter().map(move |t| (id, t.clone()))).collect();
        let mut by_op: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        for (i, (_, term)) in sites.iter().enumerate() {
            if let Some((op, _)) = term.as_op() {
                by_op.entry(op.mnemonic()).or_default().push(i);
            }
        }
        for rule in rules {
            for i in rule.at.iter().flat_map(|m| by_op.get(m)).flatten() {
                let (id, term) = &sites[*i];
                let Some((op, args)) = term.as_op() else { continue };
                if *fuel == Some(0) {
                    g.rebuild();
                    return report(Stop::Fuel, iteration, steps, misses, &fired);
                }
                let loc = g.known(*id).loc.clone();
                g.set_loc(&loc);
                let mark = g.mark();
                match (rule.apply)(g, &Site { id: *id, op, args }) {
                    Ok(new) => {
                        fired.insert((rule.name, g.find(*id)));
                        if g.unite(*id, new) {
                            changed = true;
                            if let Some(f) = fuel {
                                *f -= 1;
                            }
                            let added = g.added_since(mark);
                            steps.push(Step { rule: rule.name, loc, site: term.clone(), result: new, added });
                        }
                    }
                    Err(Miss::Near(why)) => {
                        if tried.insert((rule.name, term.clone())) {
                            misses.insert((rule.name, *id), (loc, why));
                        }
                    }
                    Err(Miss::Other) => {}
                }
            }
        }
        g.rebuild();
        if !changed && g.size() == before {
            return report(Stop::Saturated, iteration + 1, steps, misses, &fired);
        }
        if g.size() > limits.nodes {
            return report(Stop::Nodes, iteration + 1, steps, misses, &fired);
        }
    }
    report(Stop::Iterations, limits.iterations, steps, misses, &fired)
}
