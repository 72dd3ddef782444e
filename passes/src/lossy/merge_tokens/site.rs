//! Where tokens may be merged: behind the residual sum of a block's self-attention (Bolya et al. 2023, section 3).

use transc_ir::Value;
use transc_ir::op::{Op, Softmax};
use transc_ir::scalar::{BinOp, Body};
use transc_ir::tensor::{Func, Node, NodeId};

use crate::analysis::uses::Uses;
use crate::exact::carry_unmerge::rules::sizes_of_bias;

/// Most nodes between an attention and its residual sum.
const MAX_STEPS: usize = 16;

/// An attention, as one op or as two contractions around a softmax.
pub struct SelfAttention {
    /// Its last node.
    pub node: NodeId,
    /// The keys.
    pub keys: Value,
    /// Axes of the tokens and of the features of the keys; the first axis is the batch, the others are heads.
    pub key_axes: (usize, usize),
    /// What its keys are weighted with, if tokens were merged before.
    pub sizes: Option<Value>,
}

/// All attentions in order, and the nodes that look like one but have other masks than sizes.
pub fn attentions(f: &Func) -> Vec<SelfAttention> {
    f.nodes().filter_map(|(id, n)| fused(f, id, n).or_else(|| explicit(f, id, n))).collect()
}

fn fused(f: &Func, node: NodeId, n: &Node) -> Option<SelfAttention> {
    let Op::Attention(_) = &n.op else { return None };
    let sizes = n.operands.get(3).and_then(|m| sizes_of_bias(f, *m, 3));
    Some(SelfAttention { node, keys: n.operands[1], key_axes: (2, 3), sizes })
}

fn explicit(f: &Func, node: NodeId, n: &Node) -> Option<SelfAttention> {
    let Op::Contract(c) = &n.op else { return None };
    let s = f.def_node(n.operands[0])?;
    let Op::Softmax(Softmax { axis, .. }) = s.op else { return None };
    if c.out.contains(&c.lhs[axis]) {
        return None;
    }
    let (mut v, mut sizes) = (s.operands[0], None);
    loop {
        let n = f.def_node(v)?;
        match &n.op {
            Op::Map(_) => {
                let full = |x: &&Value| f.ty(**x).dims == f.ty(v).dims;
                sizes = sizes.or_else(|| n.operands.iter().find_map(|x| sizes_of_bias(f, *x, axis)));
                v = *n.operands.iter().find(full)?;
            }
            Op::Contract(c) => {
                let label = c.out.get(axis)?;
                let (keys, labels) = if c.lhs.contains(label) { (n.operands[0], &c.lhs) } else { (n.operands[1], &c.rhs) };
                let tokens = labels.iter().position(|l| l == label)?;
                let features = labels.iter().position(|l| !c.out.contains(l))?;
                return Some(SelfAttention { node, keys, key_axes: (tokens, features), sizes });
            }
            _ => return None,
        }
    }
}

/// The value behind the residual sum of an attention; if that sum is only normalised, the normalised one.
pub fn residual(f: &Func, uses: &Uses, a: &SelfAttention) -> Result<NodeId, String> {
    let mut v = f.node(a.node).results[0];
    let constant = |x: &Value| f.def_node(*x).is_some_and(|n| matches!(n.op, Op::Constant(_)) || n.operands.is_empty());
    for _ in 0..MAX_STEPS {
        let Some(id) = uses.single(v) else { break };
        let n = f.node(id);
        let others_constant = n.operands.iter().all(|x| *x == v || constant(x));
        match &n.op {
            Op::Transpose(_) | Op::Reshape(_) => {}
            Op::Map(_) | Op::Contract(_) if others_constant => {}
            Op::Map(m) if m.body == Body::bin(BinOp::Add) && n.operands.iter().all(|x| f.ty(*x) == f.ty(n.results[0])) => {
                let x = n.results[0];
                let norm = uses.single(x).filter(|u| matches!(f.node(*u).op, Op::LayerNorm(_) | Op::RmsNorm(_)));
                return fits(f, a, norm.unwrap_or(id));
            }
            op => return Err(format!("`{}` stands where the residual sum of the block was expected", op.mnemonic())),
        }
        v = n.results[0];
    }
    Err("no residual sum follows this attention".into())
}

/// Checks that the keys are the tokens of the residual stream.
fn fits(f: &Func, a: &SelfAttention, site: NodeId) -> Result<NodeId, String> {
    let (x, keys) = (f.ty(f.node(site).results[0]), f.ty(a.keys));
    if x.rank() != 3 || x.dims[0] != keys.dims[0] {
        return Err(format!("the residual stream {x} is not [batch, tokens, channels] with the batch of the keys {keys}"));
    }
    let n = &x.dims[1];
    if *n != keys.dims[a.key_axes.0] {
        return Err(format!("the residual stream has {n} tokens, the keys have {}", keys.dims[a.key_axes.0]));
    }
    if n.as_usize().is_none() {
        return Err(format!("the number of tokens `{n}` is not constant; fix it with --dim"));
    }
    Ok(site)
}
