//! What the hidden dims that stay change at the nodes of the residual stream.

use std::collections::BTreeMap;

use transc_ir::Value;
use transc_ir::interp::Tensor;
use transc_ir::op::{Concat, Gather, Op, Slice, TypeError};
use transc_ir::scalar::Literal;
use transc_ir::tensor::{Builder, NodeId};
use transc_ir::types::Dim;

use super::narrow::{Cut, constant, scaled};
use super::reads::Keep;
use super::stream::Stream;

/// Hidden dims that stay.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hidden {
    /// Their places, ascending; `None` for all.
    pub(super) keep: Keep,
    /// Number of places.
    count: usize,
    /// Norms take those that go for zeros.
    dense_zeros: bool,
    /// Norms and sums over them, with the axis.
    inside: BTreeMap<NodeId, usize>,
    /// Results of the function, with the axis.
    results: BTreeMap<Value, usize>,
    /// What is multiplied by `scale`, with the axis.
    scaled: BTreeMap<Value, usize>,
    /// By hidden dim that stays.
    scale: Vec<f32>,
}

impl Hidden {
    /// The changes for what each hidden dim is multiplied by, 0 to drop it.
    pub(super) fn new(stream: &Stream, mask: &[f32], dense_zeros: bool) -> Self {
        let kept: Vec<usize> = (0..mask.len()).filter(|i| mask[*i] != 0.0).collect();
        let scale: Vec<f32> = kept.iter().map(|i| mask[*i]).collect();
        let plain = scale.iter().all(|m| *m == 1.0);
        let keep = (kept.len() < mask.len()).then_some(kept);
        let cut = keep.is_some();
        Self {
            keep,
            count: mask.len(),
            dense_zeros,
            inside: stream.inside.iter().filter(|_| cut).copied().collect(),
            results: stream.results.iter().filter(|_| cut).copied().collect(),
            scaled: stream.embeddings.iter().filter(|_| !plain).copied().collect(),
            scale,
        }
    }

    /// The products that read them, with what they keep.
    pub(super) fn cuts<'a>(&'a self, stream: &'a Stream) -> impl Iterator<Item = (NodeId, Cut)> + 'a {
        let products = stream.products.iter().filter(|_| self.keep.is_some());
        products.map(|(id, axes)| {
            let keep = self.keep.clone().unwrap_or_default();
            (*id, Cut { axes: *axes, inputs: self.count, keep, scale: Vec::new(), weight: 0 })
        })
    }

    /// The axis that a norm or a sum goes over.
    pub(super) fn inside(&self, id: NodeId) -> Option<usize> {
        self.inside.get(&id).copied()
    }

    /// The indices that somebody outside reads of a result of the function, if it is of the stream.
    pub(super) fn read_of_result(&self, v: Value, rank: usize) -> Vec<Keep> {
        let at = self.results.get(&v);
        (0..rank).map(|a| self.keep.clone().filter(|_| at == Some(&a))).collect()
    }

    /// True if a value is multiplied.
    pub(super) fn scales(&self, old: Value) -> bool {
        self.scaled.contains_key(&old)
    }

    /// A value of the embeddings, multiplied; `old` is what it was before the rewrite.
    pub(super) fn scale(&self, b: &mut Builder<'_>, old: Value, v: Value) -> Result<Value, TypeError> {
        self.scaled.get(&old).map_or(Ok(v), |axis| scaled(b, v, *axis, &self.scale))
    }

    /// A norm of operands that have the kept dims alone.
    pub(super) fn norm(&self, b: &mut Builder<'_>, op: Op, operands: &[Value], axis: usize) -> Result<Value, TypeError> {
        let kept = b.ty(operands[0]).dims[axis].clone();
        if !self.dense_zeros || matches!(op, Op::Reduce(_)) {
            return b.add(op, operands);
        }
        // Mean and variance are those of the whole row: the zeros stand at its end for the time of the norm.
        let mut whole = Vec::with_capacity(operands.len());
        for v in operands {
            let last = b.ty(*v).rank().checked_sub(1).filter(|a| b.ty(*v).dims[*a] == kept);
            whole.push(last.map_or(Ok(*v), |a| self.with_zeros(b, *v, a))?);
        }
        let v = b.add(op, &whole)?;
        let mut sizes = b.ty(v).dims.clone();
        sizes[axis] = kept;
        let (starts, steps) = (vec![Dim::from(0); sizes.len()], vec![1; sizes.len()]);
        b.add(Slice { starts, sizes, steps }, &[v])
    }

    /// A result of the function with zeros where a hidden dim went, so that it has the places that it had.
    pub(super) fn filled(&self, b: &mut Builder<'_>, old: Value, v: Value) -> Result<Option<Value>, TypeError> {
        let (Some(axis), Some(keep)) = (self.results.get(&old), &self.keep) else { return Ok(None) };
        let v = self.with_zeros(b, v, *axis)?;
        let place = |i| keep.binary_search(&i).unwrap_or(keep.len()) as i64;
        let index: Vec<i64> = (0..self.count).map(place).collect();
        let index = constant(b, "", Tensor::from_i64(&[self.count], &index))?;
        b.add(Gather { axis: *axis }, &[v, index]).map(Some)
    }

    /// As long as before along an axis, with zeros at the end.
    fn with_zeros(&self, b: &mut Builder<'_>, v: Value, axis: usize) -> Result<Value, TypeError> {
        let (dtype, mut dims) = (b.ty(v).dtype, b.ty(v).dims.clone());
        dims[axis] = &Dim::from(self.count) - &dims[axis];
        let zero = b.scalar(Literal::from_f64(dtype, 0.0))?;
        let zeros = b.broadcast(zero, dims)?;
        b.add(Concat { axis }, &[v, zeros])
    }
}
