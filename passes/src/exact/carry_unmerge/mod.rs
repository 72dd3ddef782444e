//! `carry-unmerge`: an un-merge of tokens moves behind what treats tokens alike, until it meets what reads the result. What stands between the
//! place where tokens were merged and the read-out then works on the groups.

pub mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use transc_ir::op::Op;
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstPool, Func, Node, NodeId};
use transc_ir::{Loc, Module, TensorType, Value};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;
use crate::miss::Miss;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let mut fired = Vec::new();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| match node.results.as_slice() {
        [_] => Ok(Sweep::new(b, &mut fired).carry(&node.op, operands).map(|v| vec![v])),
        _ => Ok(None),
    });
    module.main = compact(sweep::typed(cx, rewritten)?);
    fired.into_iter().for_each(|rule| cx.fired(rule));
    for (_, loc, why) in barriers(&module.main, &module.consts) {
        cx.remark(&loc, format!("the un-merge stays: {why}"));
    }
    Ok(())
}

/// A function that grows; every node goes through the rules first.
pub struct Sweep<'b, 'c> {
    b: &'b mut Builder<'c>,
    fired: &'b mut Vec<&'static str>,
    near: Option<String>,
}

impl<'b, 'c> Sweep<'b, 'c> {
    /// A sweep at the end of a function, which notes the rules that fire.
    pub fn new(b: &'b mut Builder<'c>, fired: &'b mut Vec<&'static str>) -> Self {
        Self { b, fired, near: None }
    }

    /// The value of a node by the first rule that fires.
    pub fn carry(&mut self, op: &Op, args: &[Value]) -> Option<Value> {
        for (name, rule) in rules::ALL {
            match rule(self, op, args) {
                Ok(v) => {
                    self.fired.push(name);
                    return Some(v);
                }
                Err(Miss::Near(why)) => self.near = Some(why),
                Err(Miss::Other) => {}
            }
        }
        None
    }

    fn func(&self) -> &Func {
        self.b.func
    }

    fn ty(&self, v: Value) -> &TensorType {
        self.b.ty(v)
    }

    /// Adds a term with one result; `None` if the op does not take such operands.
    fn add(&mut self, op: Op, args: &[Value]) -> Option<Value> {
        self.carry(&op, args).or_else(|| self.b.add(op, args).ok())
    }

    /// True if both are the same value, or come from nodes that compute the same, as plans do that were composed twice.
    fn same(&self, a: Value, b: Value) -> bool {
        let equal = |(x, y): (&Node, &Node)| {
            x.op == y.op && x.results.len() == 1 && x.operands.iter().zip(&y.operands).all(|(p, q)| self.same(*p, *q))
        };
        a == b || self.func().def_node(a).zip(self.func().def_node(b)).is_some_and(equal)
    }
}

/// The nodes in front of which an un-merge stays, with the reason.
pub fn barriers(f: &Func, consts: &Arc<ConstPool>) -> Vec<(NodeId, Loc, String)> {
    let unmerged = |v: &Value| f.def_node(*v).is_some_and(|n| matches!(n.op, Op::TokenUnmerge(_)));
    // A plan may be a composed one; that is data, not tokens.
    let tokens = |n: &Node| match n.op {
        Op::TokenUnmerge(_) | Op::TokenSize(_) => 0,
        Op::TokenApply(_) => 1,
        _ => n.operands.len(),
    };
    let stuck = f.nodes().filter(|(_, n)| n.operands[..tokens(n)].iter().any(unmerged));
    stuck
        .map(|(id, n)| {
            let (mut copy, mut pool, mut fired) = (f.clone(), Arc::clone(consts), Vec::new());
            let mut b = Builder::new(&mut copy, &mut pool);
            let mut sweep = Sweep::new(&mut b, &mut fired);
            sweep.carry(&n.op, &n.operands);
            let why = sweep.near.unwrap_or_else(|| "it does not treat all tokens alike".into());
            (id, n.loc.clone(), format!("`{}` needs all tokens: {why}", n.op.mnemonic()))
        })
        .collect()
}

/// All nodes that depend on some nodes.
pub fn downstream(f: &Func, from: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
    let mut reached: BTreeSet<NodeId> = from.into_iter().collect();
    let mut values: BTreeSet<Value> = reached.iter().flat_map(|id| f.node(*id).results.iter().copied()).collect();
    for (id, n) in f.nodes() {
        if reached.contains(&id) || n.operands.iter().any(|v| values.contains(v)) {
            reached.insert(id);
            values.extend(n.results.iter().copied());
        }
    }
    reached
}
