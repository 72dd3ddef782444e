//! An e-graph as plain data, in the terms of the egraph-serialize format that viewers read.

use std::collections::BTreeMap;

use egg::{Id, Language};

use super::extract;
use super::graph::Graph;
use super::language::Term;
use crate::analysis::estimate::CostTable;

/// An e-node.
#[derive(Clone, Debug, PartialEq)]
pub struct ENode {
    /// Its name.
    pub id: String,
    /// The op, or the number of a parameter or a result.
    pub op: String,
    /// An e-node of the class of each operand.
    pub children: Vec<String>,
    /// The name of its class.
    pub eclass: String,
    /// The type of the class.
    pub ty: String,
    /// Estimated nanoseconds.
    pub cost: f64,
    /// True if its class is a result of the piece.
    pub root: bool,
}

/// All e-nodes of a graph, their names behind a prefix.
pub fn nodes(g: &Graph<'_>, costs: &CostTable, prefix: &str) -> Vec<ENode> {
    let classes = g.classes();
    let roots: Vec<Id> = g.roots.iter().map(|r| g.find(*r)).collect();
    let name = |id: Id, i: usize| format!("{prefix}{id}.{i}");
    let first: BTreeMap<Id, String> = classes.iter().map(|c| (c.0, name(c.0, 0))).collect();
    let node = |id: Id, i: usize, term: &Term| ENode {
        id: name(id, i),
        op: match term {
            Term::Param(p) => format!("param {p}"),
            Term::Result(r, _) => format!("result {r}"),
            Term::Op(op, _) => op.mnemonic().into(),
        },
        children: term.children().iter().map(|c| first[&g.find(*c)].clone()).collect(),
        eclass: format!("{prefix}{id}"),
        ty: g.known(id).types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        cost: extract::cost(g, term, costs),
        root: roots.contains(&id),
    };
    classes.iter().flat_map(|(id, terms)| terms.iter().enumerate().map(|(i, t)| node(*id, i, t))).collect()
}
