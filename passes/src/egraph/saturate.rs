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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone)]
pub struct Step {
    /// The rule.
    pub rule: &'static Rule,
    /// The user's node.
    pub loc: Loc,
    /// The e-node where it fired.
    pub site: Term,
    /// The class that it made equal.
    pub result: Id,
    /// The e-nodes that it added.
    pub added: Vec<Term>,
    /// The classes that it looked into, if the graph records that.
    pub reads: BTreeSet<Id>,
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

/// What happened so far.
#[derive(Default)]
struct Journal {
    steps: Vec<Step>,
    misses: BTreeMap<(&'static str, Id), (Loc, String)>,
    fired: BTreeSet<(&'static str, Id)>,
}

impl Journal {
    /// The report. A miss counts if the function itself had the class, and no other form of it made the rule fire.
    fn report(self, g: &Graph<'_>, given: &[Id], stop: Stop, iterations: usize) -> Report {
        let given: BTreeSet<Id> = given.iter().map(|id| g.find(*id)).collect();
        let fired: BTreeSet<(&str, Id)> = self.fired.iter().map(|(rule, id)| (*rule, g.find(*id))).collect();
        let real = |(rule, id): &(&'static str, Id)| given.contains(&g.find(*id)) && !fired.contains(&(*rule, g.find(*id)));
        let misses = self.misses.into_iter().filter(|(k, _)| real(k)).map(|((rule, _), (loc, why))| (rule, loc, why)).collect();
        Report { stop, iterations, steps: self.steps, misses }
    }
}

/// Applies rules until nothing changes or a limit is reached. `fuel` counts down with every union.
///
/// A sweep tries the rules at every term, then at the terms that these added, and so on: what moves through a chain of ops, such as a box of rows, gets
/// to its end in one sweep.
pub fn saturate(g: &mut Graph<'_>, rules: &[&'static Rule], limits: &Limits, fuel: &mut Option<u32>) -> Report {
    let given: Vec<Id> = g.classes().into_iter().map(|c| c.0).collect();
    let mut journal = Journal::default();
    for iteration in 0..limits.iterations {
        let before = g.size();
        let mut changed = false;
        let all = |(id, terms): (Id, &[Term])| terms.iter().map(|t| (id, t.clone())).collect::<Vec<_>>();
        let mut sites: Vec<(Id, Term)> = g.classes().into_iter().flat_map(all).collect();
        while !sites.is_empty() && g.size() <= limits.nodes {
            let mark = g.mark();
            let mut by_op: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
            for (i, (_, term)) in sites.iter().enumerate() {
                if let Some((op, _)) = term.as_op() {
                    by_op.entry(op.mnemonic()).or_default().push(i);
                }
            }
            for rule in rules {
                for i in rule.at.iter().flat_map(|m| by_op.get(m)).flatten() {
                    if *fuel == Some(0) {
                        g.rebuild();
                        return journal.report(g, &given, Stop::Fuel, iteration);
                    }
                    changed |= apply(g, rule, &sites[*i], fuel, &mut journal);
                }
            }
            sites = (mark..).zip(g.added_since(mark)).map(|(id, term)| (g.find(Id::from(id)), term)).collect();
        }
        g.rebuild();
        if !changed && g.size() == before {
            return journal.report(g, &given, Stop::Saturated, iteration + 1);
        }
        if g.size() > limits.nodes {
            return journal.report(g, &given, Stop::Nodes, iteration + 1);
        }
    }
    journal.report(g, &given, Stop::Iterations, limits.iterations)
}

/// Tries a rule at a site; true if two classes became one.
fn apply(g: &mut Graph<'_>, rule: &'static Rule, (id, term): &(Id, Term), fuel: &mut Option<u32>, journal: &mut Journal) -> bool {
    let Some((op, args)) = term.as_op() else { return false };
    let loc = g.known(*id).loc.clone();
    g.set_loc(&loc);
    let mark = g.mark();
    g.take_reads();
    match (rule.apply)(g, &Site { id: *id, op, args }) {
        Ok(new) => {
            journal.fired.insert((rule.name, *id));
            let united = g.unite(*id, new);
            if united {
                *fuel = fuel.map(|f| f - 1);
                let added = g.added_since(mark);
                let reads = g.take_reads();
                journal.steps.push(Step { rule, loc, site: term.clone(), result: new, added, reads });
            }
            united
        }
        Err(Miss::Near(why)) => {
            journal.misses.insert((rule.name, *id), (loc, why));
            false
        }
        Err(Miss::Other) => false,
    }
}
