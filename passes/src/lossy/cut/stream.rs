//! The residual stream: all values along whose axis the hidden dims of a model lie, from the embeddings to the heads.

use std::collections::BTreeMap;

use transc_ir::Value;
use transc_ir::op::{Op, ReduceKind};
use transc_ir::tensor::{Func, Node, NodeId};
use transc_ir::types::Dim;

use super::CutError;
use super::find::{Layer, fixed};
use super::reads::{axis_after, axis_before};
use crate::analysis::uses::Uses;

/// Where hidden dims are made, read and given away.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Products that sum over them, with the axis in each operand.
    pub(super) products: Vec<(NodeId, [usize; 2])>,
    /// Norms and sums over them, with the axis.
    pub(super) inside: Vec<(NodeId, usize)>,
    /// Results of the function, with the axis.
    pub(super) results: Vec<(Value, usize)>,
    /// What the embeddings add up to, with the axis.
    pub(super) embeddings: Vec<(Value, usize)>,
}

/// The stream that the residual sums of `layers` are a part of.
///
/// # Errors
/// No residual sum, another number of hidden dims than `count`, or an op for which these are more than places side by side.
pub(super) fn stream(f: &Func, layers: &[Layer], count: usize) -> Result<Stream, CutError> {
    let mut flood =
        Flood { f, uses: Uses::of(f), fixed: fixed(f), members: BTreeMap::new(), open: Vec::new(), stream: Stream::default() };
    for (sum, _) in layers.iter().filter_map(|l| l.residual) {
        let v = f.node(sum).results[0];
        let axis = f.ty(v).rank() - 1;
        if f.ty(v).dims[axis] != Dim::from(count) {
            let why = format!("has {count} numbers, `{}` has {} hidden dims", f.node(sum).loc.path(), f.ty(v).dims[axis]);
            return Err(CutError::Mask { name: "hidden".into(), why });
        }
        flood.join(v, axis, sum)?;
    }
    if flood.members.is_empty() {
        return Err(CutError::NoLayer("block with a residual sum"));
    }
    while let Some(v) = flood.open.pop() {
        let axis = flood.members[&v];
        if let Some(id) = f.def_id(v) {
            flood.back(id, f.node(id), axis)?;
        }
        for id in flood.uses.nodes(v).to_vec() {
            for i in (0..f.node(id).operands.len()).filter(|i| f.node(id).operands[*i] == v) {
                flood.forth(id, f.node(id), i, axis)?;
            }
        }
    }
    flood.finish()
}

struct Flood<'a> {
    f: &'a Func,
    uses: Uses,
    fixed: Vec<bool>,
    /// Values of the stream, and the axis of the hidden dims.
    members: BTreeMap<Value, usize>,
    open: Vec<Value>,
    stream: Stream,
}

impl Flood<'_> {
    fn refuse<T>(&self, id: NodeId, what: &str) -> Result<T, CutError> {
        let n = self.f.node(id);
        let site = n.loc.path().to_string();
        Err(CutError::Size { why: format!("the hidden dims cannot go: `{site}` ({}) {what}", n.op.mnemonic()), site })
    }

    /// Takes in a value. Constants stay out: each reader takes its part of them.
    fn join(&mut self, v: Value, axis: usize, at: NodeId) -> Result<(), CutError> {
        if self.fixed[v.index()] {
            return Ok(());
        }
        match self.members.insert(v, axis) {
            None => self.open.push(v),
            Some(known) if known != axis => return self.refuse(at, "mixes them with another axis"),
            Some(_) => {}
        }
        Ok(())
    }

    fn extent(&self, v: Value, axis: usize) -> &Dim {
        &self.f.ty(v).dims[axis]
    }

    /// From the axis of a result to what has it among the operands. An op that makes it anew is where the stream comes from.
    fn back(&mut self, id: NodeId, n: &Node, axis: usize) -> Result<(), CutError> {
        let out = n.results[0];
        match &n.op {
            Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::Broadcast(_) => {
                for v in &n.operands {
                    let a = (axis + self.f.ty(*v).rank()).checked_sub(self.f.ty(out).rank());
                    if let Some(a) = a.filter(|a| self.extent(*v, *a) == self.extent(out, axis)) {
                        self.join(*v, a, id)?;
                    }
                }
                Ok(())
            }
            Op::LayerNorm(_) | Op::RmsNorm(_) => self.join(n.operands[0], axis, id),
            Op::Softmax(s) if s.axis != axis => self.join(n.operands[0], axis, id),
            Op::Transpose(t) => self.join(n.operands[0], t.perm[axis], id),
            Op::Slice(_) if self.extent(n.operands[0], axis) == self.extent(out, axis) => self.join(n.operands[0], axis, id),
            Op::Concat(c) if c.axis != axis => n.operands.iter().try_for_each(|v| self.join(*v, axis, id)),
            Op::Reshape(_) => match axis_before(self.f, n, axis) {
                Some(a) => self.join(n.operands[0], a, id),
                None => Ok(()),
            },
            Op::Gather(g) => {
                let index = self.f.ty(n.operands[1]).rank();
                match axis {
                    a if a < g.axis => self.join(n.operands[0], a, id),
                    a if a >= g.axis + index => self.join(n.operands[0], a + 1 - index, id),
                    _ => Ok(()),
                }
            }
            Op::Contract(c) => {
                let label = c.out[axis];
                for (v, labels) in n.operands.iter().zip([&c.lhs, &c.rhs]) {
                    if let Some(a) = labels.iter().position(|l| *l == label) {
                        // A product of two activations hands on the axis of one of them; a weight makes it.
                        self.join(*v, a, id)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// From the axis of an operand to what reads it.
    fn forth(&mut self, id: NodeId, n: &Node, operand: usize, axis: usize) -> Result<(), CutError> {
        let (v, out) = (n.operands[operand], n.results[0]);
        let ranks = [self.f.ty(v).rank(), self.f.ty(out).rank()];
        match &n.op {
            Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::Broadcast(_) => {
                let a = axis + ranks[1] - ranks[0];
                self.join(out, a, id)
            }
            Op::LayerNorm(_) | Op::RmsNorm(_) if operand == 0 => {
                let first = match &n.op {
                    Op::LayerNorm(l) => l.axis,
                    Op::RmsNorm(r) => r.axis,
                    _ => 0,
                };
                if first <= axis {
                    if first + 1 != ranks[0] {
                        return self.refuse(id, "normalises them together with another axis");
                    }
                    self.stream.inside.push((id, axis));
                }
                self.join(out, axis, id)
            }
            Op::Softmax(s) if s.axis != axis => self.join(out, axis, id),
            Op::Transpose(t) => match t.perm.iter().position(|p| *p == axis) {
                Some(a) => self.join(out, a, id),
                None => Ok(()),
            },
            Op::Slice(_) if self.extent(v, axis) == self.extent(out, axis) => self.join(out, axis, id),
            Op::Concat(c) if c.axis != axis => self.join(out, axis, id),
            Op::Reshape(_) => match axis_after(self.f, n, axis) {
                Some(a) => self.join(out, a, id),
                None => self.refuse(id, "splits them or merges them with another axis"),
            },
            Op::Gather(g) if operand == 0 && g.axis != axis => {
                let index = self.f.ty(n.operands[1]).rank();
                self.join(out, if axis < g.axis { axis } else { axis + index - 1 }, id)
            }
            Op::Reduce(r) if !r.axes.contains(&axis) => {
                let before = r.axes.iter().filter(|a| **a < axis).count();
                self.join(out, if r.keep { axis } else { axis - before }, id)
            }
            Op::Reduce(r) if r.kind == ReduceKind::Sum => {
                self.stream.inside.push((id, axis));
                Ok(())
            }
            Op::Contract(c) => {
                let labels = [&c.lhs, &c.rhs];
                let label = labels[operand][axis];
                if let Some(a) = c.out.iter().position(|l| *l == label) {
                    return self.join(out, a, id);
                }
                let axes = labels.map(|of| of.iter().position(|l| *l == label));
                let [Some(l), Some(r)] = axes else { return self.refuse(id, "sums over them in one operand alone") };
                self.stream.products.push((id, [l, r]));
                Ok(())
            }
            _ => self.refuse(id, "reads them in a way of its own"),
        }
    }

    fn finish(mut self) -> Result<Stream, CutError> {
        let f = self.f;
        self.stream.products.sort_unstable();
        self.stream.products.dedup();
        self.stream.results = self.members.iter().filter(|(v, _)| self.uses.is_result(**v)).map(|(v, a)| (*v, *a)).collect();
        // Values on which no weight has worked yet: tables, and sums of their rows.
        let mut plain = vec![true; f.value_count()];
        for (_, n) in f.nodes() {
            let worked = matches!(&n.op, Op::Contract(_) | Op::Conv(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Attention(_));
            let all = !worked && n.operands.iter().all(|v| plain[v.index()]);
            n.results.iter().for_each(|r| plain[r.index()] = all);
        }
        let last = |v: Value| self.uses.nodes(v).iter().all(|u| f.node(*u).results.iter().all(|r| !plain[r.index()]));
        let ends = self.members.iter().filter(|(v, _)| plain[v.index()] && last(**v) && f.def_id(**v).is_some());
        self.stream.embeddings = ends.map(|(v, a)| (*v, *a)).collect();
        Ok(self.stream)
    }
}
