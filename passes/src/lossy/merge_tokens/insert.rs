//! Insertion at one site.

use std::sync::Arc;

use transc_ir::Value;
use transc_ir::op::{Planner, Reduce, ReduceKind, TokenApply, TokenPlan, TokenUnmerge, TypeError};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstPool, Func, NodeId};
use transc_ir::types::Dim;

use super::site::SelfAttention;
use crate::exact::carry_unmerge::{Sweep, rules};

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
    let out = rewrite(f.clone(), consts, |b, id, node, operands| {
        for (old, new) in node.operands.iter().zip(operands) {
            renamed[old.index()] = Some(*new);
        }
        let carried = match node.results.as_slice() {
            [_] => Sweep::new(b, &mut fired).carry(&node.op, operands),
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
    Ok((compact(out), fired))
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
        None => rules::ones(&mut Sweep::new(b, &mut Vec::new()), dims.clone()).unwrap_or(x),
    };
    let plan = TokenPlan { planner: m.planner, remove: m.remove, protect: m.protect };
    let plan = b.add(plan, &[metric, size])?;
    let groups = &dims[1] - &Dim::from(m.remove);
    let y = b.add(TokenApply { tokens: groups }, &[x, plan, size])?;
    b.add(TokenUnmerge { batch: 0, axis: 1 }, &[y, plan])
}
