//! Layers by what they compute: feed-forward layers, and the projections behind attention.

use std::collections::BTreeSet;

use transc_ir::Value;
use transc_ir::op::{Contract, Op};
use transc_ir::scalar::{BinOp, Body, Inst, UnOp};
use transc_ir::tensor::{Func, Node, NodeId};

use super::reads::{Group, axis_before, groups};
use crate::analysis::uses::Uses;

/// Most nodes between a product and what it belongs to.
const MAX_STEPS: usize = 16;

/// What a layer is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Matrix products around an activation.
    FeedForward,
    /// The product behind an attention.
    Attention,
}

/// A product with a constant weight whose inputs are units that can go.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is.
    pub kind: Kind,
    /// The product.
    pub node: NodeId,
    /// The activation.
    pub activation: Value,
    /// The summed axis in each operand.
    pub axes: [usize; 2],
    /// Which operand the weight is.
    pub weight: usize,
    /// Number of units: hidden units, or heads that share nothing with others.
    pub units: usize,
    /// Inputs per unit, neighbours.
    pub width: usize,
    /// The residual sum of the block, and its other operand.
    pub residual: Option<(NodeId, Value)>,
}

/// All layers in order.
pub fn layers(f: &Func) -> Vec<Layer> {
    let look = Look { f, uses: Uses::of(f), fixed: fixed(f) };
    f.nodes().filter_map(|(id, n)| look.layer(id, n)).collect()
}

/// By value: whether it depends on constants alone.
pub(super) fn fixed(f: &Func) -> Vec<bool> {
    let mut fixed = vec![false; f.value_count()];
    for (_, n) in f.nodes() {
        let all = n.operands.iter().all(|v| fixed[v.index()]);
        for r in &n.results {
            fixed[r.index()] = all;
        }
    }
    fixed
}

struct Look<'a> {
    f: &'a Func,
    uses: Uses,
    fixed: Vec<bool>,
}

impl Look<'_> {
    fn is_fixed(&self, v: Value) -> bool {
        self.fixed[v.index()]
    }

    fn layer(&self, node: NodeId, n: &Node) -> Option<Layer> {
        let Op::Contract(c) = &n.op else { return None };
        let weight = self.weight(n)?;
        let activation = n.operands[1 - weight];
        let mut summed = c.lhs.iter().filter(|l| !c.out.contains(l));
        let (Some(label), None) = (summed.next(), summed.next()) else { return None };
        let axes = [c.lhs.iter().position(|l| l == label)?, c.rhs.iter().position(|l| l == label)?];
        let axis = axes[1 - weight];
        let extent = self.f.ty(activation).dims[axis].as_usize()?;
        let (kind, units) = match (self.is_hidden(node, activation, axis), self.heads(activation, axis)) {
            (true, _) => (Kind::FeedForward, extent),
            (_, Some(heads)) => (Kind::Attention, heads),
            _ => return None,
        };
        let residual = self.residual(n.results[0]);
        Some(Layer { kind, node, activation, axes, weight, units, width: extent / units.max(1), residual })
    }

    /// The operand that depends on constants alone, if the other one does not.
    fn weight(&self, n: &Node) -> Option<usize> {
        match (self.is_fixed(*n.operands.first()?), self.is_fixed(*n.operands.get(1)?)) {
            (true, false) => Some(0),
            (false, true) => Some(1),
            _ => None,
        }
    }

    /// True if the elements along an axis are computed apart from each other from columns of constant weights, through an activation, for
    /// this product alone.
    fn is_hidden(&self, product: NodeId, v: Value, axis: usize) -> bool {
        let (mut open, mut seen) = (vec![(v, axis)], BTreeSet::from([v]));
        let (mut nodes, mut products, mut curved) = (BTreeSet::from([product]), 0, false);
        while let Some((v, axis)) = open.pop() {
            let Some(id) = self.f.def_id(v) else { return false };
            let n = self.f.node(id);
            nodes.insert(id);
            let from: Vec<(Value, usize)> = match &n.op {
                Op::Contract(c) if self.columns(n, c, axis) => {
                    products += 1;
                    continue;
                }
                Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) => {
                    curved |= matches!(&n.op, Op::Map(m) if self.is_curved(n, &m.body));
                    let rank = self.f.ty(v).rank();
                    let along = n.operands.iter().filter_map(|o| {
                        let t = self.f.ty(*o);
                        let a = (axis + t.rank()).checked_sub(rank)?;
                        (t.dims[a] == self.f.ty(v).dims[axis] && !self.is_fixed(*o)).then_some((*o, a))
                    });
                    along.collect()
                }
                Op::Slice(_) => vec![(n.operands[0], axis)],
                Op::Transpose(t) => vec![(n.operands[0], t.perm[axis])],
                Op::Reshape(_) => match axis_before(self.f, n, axis) {
                    Some(a) => vec![(n.operands[0], a)],
                    None => return false,
                },
                _ => return false,
            };
            if from.is_empty() {
                return false;
            }
            open.extend(from.into_iter().filter(|(v, _)| seen.insert(*v)));
        }
        let inside = |v: &Value| !self.uses.is_result(*v) && self.uses.nodes(*v).iter().all(|u| nodes.contains(u));
        products > 0 && curved && seen.iter().all(inside)
    }

    /// True if an axis of a product's result runs over the columns of a constant weight.
    fn columns(&self, n: &Node, c: &Contract, axis: usize) -> bool {
        let labels = |w: usize| if w == 0 { &c.lhs } else { &c.rhs };
        self.weight(n).is_some_and(|w| labels(w).contains(&c.out[axis]) && !labels(1 - w).contains(&c.out[axis]))
    }

    /// True if a body does more than add, and scale by what is constant.
    fn is_curved(&self, n: &Node, body: &Body) -> bool {
        let moving = n.operands.iter().filter(|v| !self.is_fixed(**v)).count();
        body.insts.iter().any(|i| match i {
            Inst::Const(_) | Inst::Dim(_) | Inst::Cast(..) | Inst::Un(UnOp::Neg, _) => false,
            Inst::Bin(BinOp::Add | BinOp::Sub, ..) => false,
            Inst::Bin(BinOp::Mul | BinOp::Div, ..) => moving > 1,
            _ => true,
        })
    }

    /// Number of heads that share no keys, if an axis holds their features side by side.
    fn heads(&self, v: Value, axis: usize) -> Option<usize> {
        let (mut v, mut axis) = (v, axis);
        for _ in 0..MAX_STEPS {
            let n = self.f.def_node(v)?;
            match &n.op {
                Op::Transpose(t) => axis = t.perm[axis],
                Op::Reshape(_) => {
                    let (from, to) = (&self.f.ty(n.operands[0]).dims, &self.f.ty(n.results[0]).dims);
                    let Group { from: sides, to: merged } = groups(from, to).into_iter().find(|g| g.to.contains(&axis))?;
                    if merged.len() != 1 {
                        return None;
                    }
                    if sides.len() > 1 {
                        let heads = from[sides].iter().find(|d| !d.is(1))?.as_usize()?;
                        let shared = self.attention(n.operands[0])?;
                        return heads.is_multiple_of(shared).then(|| heads / shared);
                    }
                    axis = sides.start;
                }
                _ => {
                    let same = |x: &&Value| self.f.ty(**x).dims == self.f.ty(v).dims;
                    v = self.only_moving(n).filter(|x| same(&x))?;
                    continue;
                }
            }
            v = n.operands[0];
        }
        None
    }

    /// The operand of an element-wise op whose others depend on constants alone.
    fn only_moving(&self, n: &Node) -> Option<Value> {
        if !matches!(n.op, Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_)) {
            return None;
        }
        let mut moving = n.operands.iter().filter(|v| !self.is_fixed(**v));
        moving.next().filter(|_| moving.next().is_none()).copied()
    }

    /// How many query heads read the same keys in the attention that gives a value, through views and scales.
    fn attention(&self, v: Value) -> Option<usize> {
        let mut v = v;
        for _ in 0..MAX_STEPS {
            let n = self.f.def_node(v)?;
            v = match &n.op {
                Op::Attention(_) => {
                    let heads = |i: usize| self.f.ty(n.operands[i]).dims[1].as_usize();
                    return heads(0)?.checked_div(heads(1)?);
                }
                Op::Contract(_) => return n.operands.iter().all(|o| !self.is_fixed(*o)).then_some(1),
                Op::Transpose(_) | Op::Reshape(_) | Op::Slice(_) => n.operands[0],
                _ => self.only_moving(n)?,
            };
        }
        None
    }

    /// The residual sum that a value goes into, and its other operand.
    fn residual(&self, v: Value) -> Option<(NodeId, Value)> {
        let mut v = v;
        for _ in 0..MAX_STEPS {
            let id = self.uses.single(v)?;
            let n = self.f.node(id);
            match &n.op {
                Op::Map(m) if m.body == Body::bin(BinOp::Add) && n.operands.iter().all(|o| !self.is_fixed(*o)) => {
                    let other = *n.operands.iter().find(|o| **o != v)?;
                    return (self.f.ty(other) == self.f.ty(n.results[0])).then_some((id, other));
                }
                Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) if self.only_moving(n).is_some() => {}
                Op::Reshape(_) | Op::Transpose(_) => {}
                _ => return None,
            }
            v = n.results[0];
        }
        None
    }
}
