//! The rules, one row each, in a file per topic.

use egg::Id;
use transc_ir::op::Op;

use super::graph::Graph;
pub use crate::miss::Miss;
pub(super) use crate::miss::OrMiss;
use crate::registry::Class;

mod activations;
mod attention;
mod codes;
mod int_attention;
mod norms;
mod positions;
mod rows;

/// The place where a rule is tried: an e-node of the class `id`.
pub struct Site<'s> {
    /// The class.
    pub id: Id,
    /// The op of the e-node.
    pub op: &'s Op,
    /// Its operands.
    pub args: &'s [Id],
}

/// What a rule gives: the class that equals the site's.
pub type Outcome = Result<Id, Miss>;

/// A rewrite rule. The folder `tests/rules/<name>` holds the graphs on which it must fire and those on which it must not.
pub struct Rule {
    /// Name.
    pub name: &'static str,
    /// How far it may change results.
    pub class: Class,
    /// Largest difference between both sides in tests, relative to 1 + |value|, on values of order one; 0 for exact rules.
    pub bound: f64,
    /// One line of why both sides are equal.
    pub why: &'static str,
    /// Mnemonics of the ops where it is tried.
    pub at: &'static [&'static str],
    /// Adds the right side for a site that matches.
    pub apply: fn(&mut Graph<'_>, &Site<'_>) -> Outcome,
}

/// Every rule, in the order in which they are tried.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    [attention::RULES, codes::RULES, int_attention::RULES, norms::RULES, activations::RULES, positions::RULES, rows::RULES]
        .into_iter()
        .flatten()
}
