//! Insertion at one site, and the sweep that carries the un-merge from there to the read-out.

use std::collections::BTreeSet;
use std::sync::Arc;

use transc_ir::op::{Op, Planner, Reduce, ReduceKind, TokenApply, TokenPlan, TokenUnmerge, TypeError};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstPool, Func, NodeId};
use transc_ir::types::Dim;
use transc_ir::{Loc, TensorType, Value};

use super::site::SelfAttention;
use super::tokens::{self, Miss, Terms};

/// A function that is only read.
pub struct Read<'a>(pub &'a Func);

impl Terms for Read<'_> {
    type Id = Value;

    fn ty(&self, v: Value) -> &TensorType {
        self.0.ty(v)
    }

    fn first<T>(&self, v: Value, mut f: impl FnMut((&Op, &[Value])) -> Option<T>) -> Option<T> {
        self.0.def_node(v).and_then(|n| f((&n.op, &n.operands)))
    }

    fn add(&mut self, _: Op, _: &[Value]) -> Option<Value> {
        None
    }

    fn same(&self, a: Value, b: Value) -> bool {
        a == b
    }
}

/// A function that grows; every node goes through the rules first.
struct Sweep<'b, 'c> {
    b: &'b mut Builder<'c>,
    fired: &'b mut Vec<&'static str>,
    near: Option<String>,
}

impl Terms for Sweep<'_, '_> {
    type Id = Value;

    fn ty(&self, v: Value) -> &TensorType {
        self.b.ty(v)
    }

    fn first<T>(&self, v: Value, mut f: impl FnMut((&Op, &[Value])) -> Option<T>) -> Option<T> {
        self.b.func.def_node(v).and_then(|n| f((&n.op, &n.operands)))
    }

    fn add(&mut self, op: Op, args: &[Value]) -> Option<Value> {
        self.carry(&op, args).or_else(|| self.b.add(op, args).ok())
    }

    fn same(&self, a: Value, b: Value) -> bool {
        a == b
    }
}

impl Sweep<'_, '_> {
    /// The value of a node by the first rule that fires.
    fn carry(&mut self, op: &Op, args: &[Value]) -> Option<Value> {
        for (name, rule) in tokens::rules::<Self>() {
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
}

/// What is merged at a site.
pub struct Merge<'a> {
    /// The attention whose keys are compared.
    pub attention: &'a SelfAttention,
    /// The node whose result is merged.
    pub site: NodeId,
    /// How.
    pub planner: Planner,
    /// Number of tokens that vanish.
    pub remove: usize,
    /// Number of leading tokens that stay.
    pub protect: usize,
}

/// The function with `decode(encode(x))` at a site and the decoding carried on as far as it goes, and the rules that carried it.
pub fn insert(f: &Func, consts: &mut Arc<ConstPool>, m: &Merge<'_>) -> Result<(Func, Vec<&'static str>), TypeError> {
    let mut fired = Vec::new();
    let mut renamed: Vec<Option<Value>> = vec![None; f.value_count()];
    let out = rewrite(f, consts, |b, id, node, operands| {
        for (old, new) in node.operands.iter().zip(operands) {
            renamed[old.index()] = Some(*new);
        }
        let carried = match node.results.as_slice() {
            [_] => Sweep { b, fired: &mut fired, near: None }.carry(&node.op, operands),
            _ => None,
        };
        if id != m.site {
            return Ok(carried.map(|v| vec![v]));
        }
        let x = match carried {
            Some(v) => v,
            None => b.add(node.op.clone(), operands)?,
        };
        let new = |v: Value| renamed[v.index()].unwrap_or(v);
        merged(b, m, x, new(m.attention.keys), m.attention.sizes.map(new)).map(|v| Some(vec![v]))
    })?;
    Ok((compact(&out), fired))
}

/// Plan by the keys, apply, and un-merge.
fn merged(b: &mut Builder<'_>, m: &Merge<'_>, x: Value, keys: Value, sizes: Option<Value>) -> Result<Value, TypeError> {
    let (tokens, features) = m.attention.key_axes;
    // The mean over the heads; its scale does not matter to a cosine.
    let heads: Vec<usize> = (1..b.ty(keys).rank()).filter(|a| *a != tokens && *a != features).collect();
    let metric =
        if heads.is_empty() { keys } else { b.add(Reduce { kind: ReduceKind::Sum, axes: heads, keep: false }, &[keys])? };
    let metric = if features < tokens { b.transpose(metric, &[0, 2, 1])? } else { metric };
    let dims = b.ty(x).dims[..2].to_vec();
    let size = match sizes {
        Some(s) => s,
        None => tokens::ones(&mut Sweep { b, fired: &mut Vec::new(), near: None }, dims.clone()).unwrap_or(x),
    };
    let plan = TokenPlan { planner: m.planner, remove: m.remove, protect: m.protect };
    let plan = b.add(plan, &[metric, size])?;
    let groups = &dims[1] - &Dim::from(m.remove);
    let y = b.add(TokenApply { tokens: groups }, &[x, plan, size])?;
    b.add(TokenUnmerge { batch: 0, axis: 1 }, &[y, plan])
}

/// The nodes in front of which an un-merge stays, with the reason.
pub fn barriers(f: &Func, consts: &Arc<ConstPool>) -> Vec<(NodeId, Loc, String)> {
    let unmerged = |v: &Value| f.def_node(*v).is_some_and(|n| matches!(n.op, Op::TokenUnmerge(_)));
    let stuck = f.nodes().filter(|(_, n)| !matches!(n.op, Op::TokenUnmerge(_)) && n.operands.iter().any(unmerged));
    stuck
        .map(|(id, n)| {
            let (mut copy, mut pool, mut fired) = (f.clone(), Arc::clone(consts), Vec::new());
            let mut sweep = Sweep { b: &mut Builder::new(&mut copy, &mut pool), fired: &mut fired, near: None };
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
