//! Joins what attentions over parts of the keys leave.
//!
//! **Contract.** The record of a row and a part has the largest logit `m`, the sum of weights `l = sum e^(x - m)`, and the weighted sums `o = sum e^(x - m) v` of
//! its keys. With the largest `m` of all parts as `M`, the result is `sum e^(m - M) o / sum e^(m - M) l` (LeanAttention, Sanovar et al. 2024; the
//! same algebra as the blocks of FlashAttention-2), summed in the order of the parts. A row that sees no key gives NaN, or zeros on request.

use transc_ir::TensorType;
use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::types::{DType, Dim};

use super::super::tile;
use super::few::{is_few, sums};
use super::{AttentionProblem, Epilogue, inverse, larger, shift};
use crate::math::softmax_exp;

/// The records of an attention, `[batch, head, query, part]`: largest logit, sum of weights, and in the following vectors the weighted sums.
#[derive(Clone, Copy, Debug)]
pub struct Records {
    /// Keys of a part, a multiple of the lanes.
    pub keys: i64,
    /// Lanes of a vector.
    pub lanes: u16,
}

impl Records {
    /// Number of parts.
    pub fn parts(self, p: &AttentionProblem) -> Dim {
        p.sk.ceil_div(&self.keys.into())
    }

    /// Number of independent units of the kernel that writes them; where queries are not few, it has units of so many query rows.
    pub fn extent(self, p: &AttentionProblem, rows: i64) -> Dim {
        let few = is_few(p);
        let many = &Dim::from(1) - &few;
        &(&(&(&p.b * &p.g) * &self.parts(p)) * &few) + &(&p.extent(rows) * &many)
    }

    /// Number of independent units of the kernel that reads them, none where queries are not few.
    pub fn rows(self, p: &AttentionProblem) -> Dim {
        &(&(&p.b * &p.h) * &p.sq) * &is_few(p)
    }

    /// Elements of a record.
    fn len(self, p: &AttentionProblem) -> Dim {
        let lanes = Dim::from(i64::from(self.lanes));
        &(&p.e.ceil_div(&lanes) + &1.into()) * &lanes
    }

    /// The memory that they take.
    pub fn ty(self, p: &AttentionProblem) -> TensorType {
        TensorType::new(DType::F32, vec![self.rows(p), self.parts(p), self.len(p)])
    }

    /// Writes the record of `[batch, head, query]` and a part; the sums lie in whole vectors.
    pub(super) fn store(
        self,
        kb: &mut KernelBuilder,
        p: &AttentionProblem,
        ([b, h, i], part): (&[Reg; 3], Reg),
        [top, total]: [Reg; 2],
        sums: (Buf, Reg),
        out: Buf,
    ) {
        let (heads, queries, parts, len) = (kb.dim(&p.h), kb.dim(&p.sq), kb.dim(&self.parts(p)), kb.dim(&self.len(p)));
        let mut at = kb.mul(*b, heads);
        for (next, extent) in [(*h, queries), (*i, parts), (part, len)] {
            at = kb.add(at, next);
            at = kb.mul(at, extent);
        }
        let (one, end) = (kb.index(1), kb.add(at, len));
        kb.store(out, at, top);
        let next = kb.add(at, one);
        kb.store(out, next, total);
        let width = kb.index(self.lanes.into());
        let first = kb.add(at, width);
        kb.for_(first, end, self.lanes.into(), Unroll::No, |kb, to| {
            let n = kb.sub(to, first);
            let from = kb.add(sums.1, n);
            let x = kb.load(sums.0, from, self.lanes);
            kb.store(out, to, x);
        });
    }
}

/// Builds the kernel's body. Its extent must be [`Records::rows`].
pub fn build(kb: &mut KernelBuilder, p: &AttentionProblem, records: Records, from: Buf, epilogue: &mut Epilogue<'_>) {
    let (lanes, parts, len) = (records.lanes, records.parts(p), records.len(p));
    let factors = kb.local(DType::F32, parts.clone());
    let (lo, hi, zero, one) = (kb.lo(), kb.hi(), kb.index(0), kb.index(1));
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (head, i) = tile::div_rem(kb, unit, &p.sq);
        let (b, h) = tile::div_rem(kb, head, &p.h);
        let (count, stride) = (kb.dim(&parts), kb.dim(&len));
        let first = kb.mul(unit, count);
        let base = kb.mul(first, stride);
        let record = |kb: &mut KernelBuilder, part: Reg| {
            let step = kb.mul(part, stride);
            kb.add(base, step)
        };
        let lowest = kb.num(Ty::F32, f64::NEG_INFINITY);
        let top = kb.var(lowest);
        kb.for_(zero, count, 1, Unroll::No, |kb, part| {
            let at = record(kb, part);
            let (x, old) = (kb.load(from, at, 1), kb.get(top));
            let new = larger(kb, x, old);
            kb.set(top, new);
        });
        let top = kb.get(top);
        let shift = shift(kb, top);
        let none = kb.num(Ty::F32, 0.0);
        let total = kb.var(none);
        kb.for_(zero, count, 1, Unroll::No, |kb, part| {
            let at = record(kb, part);
            let x = kb.load(from, at, 1);
            let x = kb.sub(x, shift);
            let factor = softmax_exp(kb, x);
            kb.store(factors, part, factor);
            let at = kb.add(at, one);
            let (x, old) = (kb.load(from, at, 1), kb.get(total));
            let new = kb.fma(factor, x, old);
            kb.set(total, new);
        });
        let total = kb.get(total);
        let inverse = inverse(kb, p.clear, top, total);
        let (width, features) = (kb.index(lanes.into()), kb.dim(&p.e));
        let base = kb.add(base, width);
        sums(kb, lanes, (from, base, stride), (factors, zero, count), features, &mut |kb, n, x, live| {
            let factor = kb.splat(lanes, inverse);
            let x = kb.mul(x, factor);
            epilogue(kb, &[b, h, i], n, x, live);
        });
    });
}
