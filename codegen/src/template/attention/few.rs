//! Attention of a few query rows, as a step of decoding has them: keys and values are read where they lie, once per row.
//!
//! **Contract.** That of [`super::floats`], with every operand widened to `f32` as it is read. Features of keys or the keys themselves are neighbours in memory,
//! and so are features of values ([`fits`]).
//!
//! **Schedule.** A unit is the rows of one head. Packing keys and values would cost more than all products with them. Logits of all keys, then softmax, then the
//! weighted sum, in which some vectors of features go over all keys side by side. The order of all sums is fixed.

use transc_ir::loops::{Buf, KernelBuilder, ReduceOp, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::tile;
use super::super::transpose::transpose;
use super::{
    AttentionProblem, Epilogue, Mask, Operand, Step, Unit, capped, each_step, larger, largest_lane, masked, visible_keys,
};
use crate::math::softmax_exp;

/// Most query rows.
pub const FEW: i64 = 4;
/// Vectors of features, or of keys, that are summed side by side.
const VECTORS: i64 = 8;

/// True if operands lie as this form reads them.
pub fn fits([_, k, v]: [&Operand; 3]) -> bool {
    (k.strides[3].is(1) || k.strides[2].is(1)) && v.strides[3].is(1)
}

/// Scratch memory of a row.
struct Memory {
    /// The query times the factor of the logits, with zeros up to whole vectors.
    query: Buf,
    /// Logits, then weights, in whole vectors.
    weights: Buf,
}

struct Parts<'a, 'm, 'f> {
    p: &'a AttentionProblem,
    lanes: u16,
    memory: Memory,
    mask: Option<&'m mut Mask<'f>>,
}

/// Builds the kernel's body, for units of `rows` rows. The kernel's extent must be [`AttentionProblem::extent`], and no more than [`FEW`] queries there when it runs.
pub fn build(
    kb: &mut KernelBuilder,
    (p, rows, lanes): (&AttentionProblem, i64, u16),
    [q, k, v]: [&Operand; 3],
    mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let whole = |n: &Dim| &n.ceil_div(&i64::from(lanes).into()) * &i64::from(lanes).into();
    let memory = Memory { query: kb.local(DType::F32, whole(&p.d)), weights: kb.local(DType::F32, whole(&p.sk)) };
    let mut a = Parts { p, lanes, memory, mask };
    // Where the head's keys and values start: set before its units.
    let zero = kb.index(0);
    let bases = [kb.var(zero), kb.var(zero)];
    each_step(kb, (p, rows), [k, v], &mut |kb, step| match step {
        Step::Pack(starts) => bases.iter().zip(starts).for_each(|(var, at)| kb.set(*var, at)),
        Step::Compute(unit) => {
            let [keys, values] = bases.map(|var| kb.get(var));
            kb.for_(zero, unit.rows, 1, Unroll::No, |kb, r| {
                let i = kb.add(unit.row, r);
                a.row(kb, &unit, i, (q, (k, keys), (v, values)), epilogue);
            });
        }
    });
}

impl Parts<'_, '_, '_> {
    fn row(
        &mut self,
        kb: &mut KernelBuilder,
        u: &Unit,
        i: Reg,
        (q, k, v): (&Operand, (&Operand, Reg), (&Operand, Reg)),
        epilogue: &mut Epilogue<'_>,
    ) {
        self.take_query(kb, q, u, i);
        // Keys below this bound are visible.
        let (zero, seen) = (kb.index(0), visible_keys(kb, self.p, i));
        let seen = kb.bin(BinOp::Max, seen, zero);
        if k.0.strides[3].is(1) {
            self.dot_rows(kb, k, seen);
        } else {
            self.sum_columns(kb, k, seen);
        }
        let inverse = self.softmax(kb, u, i, seen);
        self.weighted_sum(kb, v, seen, &mut |kb, n, x, count| {
            let factor = kb.splat(kb.ty(x).lanes, inverse);
            let x = kb.mul(x, factor);
            epilogue(kb, &[u.b, u.h, i], n, x, count);
        });
    }

    fn float(&self) -> Ty {
        Ty::vector(DType::F32, self.lanes)
    }

    fn take_query(&self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, i: Reg) {
        let (zero, features) = (kb.index(0), kb.dim(&self.p.d));
        let (from, stride) = (q.at(kb, &[u.b, u.h, i, zero]), kb.dim(&q.strides[3]));
        kb.for_(zero, features, 1, Unroll::Auto, |kb, j| {
            let step = kb.mul(j, stride);
            let from = kb.add(from, step);
            let x = kb.load(q.buf, from, 1);
            let (x, scale) = (kb.cast(DType::F32, x), kb.num(Ty::F32, self.p.scale));
            let x = kb.mul(x, scale);
            kb.store(self.memory.query, j, x);
        });
        let width = kb.index(self.lanes.into());
        let vectors = tile::ceil_div(kb, features, self.lanes.into());
        let end = kb.mul(vectors, width);
        let none = kb.num(Ty::F32, 0.0);
        kb.for_(features, end, 1, Unroll::No, |kb, j| kb.store(self.memory.query, j, none));
    }

    /// Logits of keys whose features are neighbours: a vector of sums per key, as many keys as a vector has lanes, which then change places with the lanes.
    fn dot_rows(&self, kb: &mut KernelBuilder, (k, base): (&Operand, Reg), seen: Reg) {
        let (lanes, zero, one) = (self.lanes, kb.index(0), kb.index(1));
        let (features, stride) = (kb.dim(&self.p.d), kb.dim(&k.strides[2]));
        let whole = tile::whole_turns(kb, (zero, features), lanes.into());
        let last = kb.sub(seen, one);
        kb.for_(zero, seen, lanes.into(), Unroll::No, |kb, key| {
            let none = kb.num(self.float(), 0.0);
            let rows: Vec<_> = (0..i64::from(lanes))
                .map(|i| {
                    let i = kb.index(i);
                    let key = kb.add(key, i);
                    // Beyond the last one, the last once more.
                    let key = kb.bin(BinOp::Min, key, last);
                    let row = kb.mul(key, stride);
                    (kb.add(base, row), kb.var(none))
                })
                .collect();
            let step = |kb: &mut KernelBuilder, j: Reg, count: Option<Reg>| {
                let x = kb.load(self.memory.query, j, lanes);
                for (row, sum) in &rows {
                    let at = kb.add(*row, j);
                    let y = match count {
                        Some(c) => kb.load_count(k.buf, at, lanes, c),
                        None => kb.load(k.buf, at, lanes),
                    };
                    let (y, old) = (kb.cast(DType::F32, y), kb.get(*sum));
                    let new = kb.fma(x, y, old);
                    kb.set(*sum, new);
                }
            };
            kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, j| step(kb, j, None));
            if !self.p.d.modulo(&i64::from(lanes).into()).is(0) {
                let left = kb.sub(features, whole);
                step(kb, whole, Some(left));
            }
            let mut sums: Vec<Reg> = rows.iter().map(|(_, sum)| kb.get(*sum)).collect();
            sums = transpose(kb, &sums, 1);
            while sums.len() > 1 {
                sums = sums.chunks_exact(2).map(|s| kb.add(s[0], s[1])).collect();
            }
            kb.store(self.memory.weights, key, sums[0]);
        });
    }

    /// Logits of keys that are neighbours themselves.
    fn sum_columns(&self, kb: &mut KernelBuilder, (k, base): (&Operand, Reg), seen: Reg) {
        let stride = kb.dim(&k.strides[3]);
        let features = kb.dim(&self.p.d);
        self.sums(kb, (k.buf, base, stride), (self.memory.query, features), seen, &mut |kb, key, x, _| {
            // What lies beyond the last key is hidden before it is read.
            kb.store(self.memory.weights, key, x);
        });
    }

    /// `sum over j of x[j] * m[j, n]` for the columns `n` up to `end` of a matrix whose columns are neighbours, in ascending order: blocks of
    /// [`VECTORS`] vectors, then single ones, the last with a count.
    fn sums(
        &self,
        kb: &mut KernelBuilder,
        (m, base, stride): (Buf, Reg, Reg),
        (x, len): (Buf, Reg),
        end: Reg,
        body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Option<Reg>),
    ) {
        let (lanes, zero) = (self.lanes, kb.index(0));
        let mut block = |kb: &mut KernelBuilder, n: Reg, vectors: i64, count: Option<Reg>| {
            let none = kb.num(self.float(), 0.0);
            let sums: Vec<_> = (0..vectors).map(|v| (kb.index(v * i64::from(lanes)), kb.var(none))).collect();
            kb.for_(zero, len, 1, Unroll::No, |kb, j| {
                let (row, factor) = (kb.mul(j, stride), kb.load(x, j, 1));
                let (row, factor) = (kb.add(base, row), kb.splat(lanes, factor));
                let row = kb.add(row, n);
                for (v, sum) in &sums {
                    let at = kb.add(row, *v);
                    let y = match count {
                        Some(c) => kb.load_count(m, at, lanes, c),
                        None => kb.load(m, at, lanes),
                    };
                    let (y, old) = (kb.cast(DType::F32, y), kb.get(*sum));
                    let new = kb.fma(factor, y, old);
                    kb.set(*sum, new);
                }
            });
            for (v, sum) in sums {
                let (n, x) = (kb.add(n, v), kb.get(sum));
                body(kb, n, x, count);
            }
        };
        let mut from = zero;
        for vectors in [VECTORS, VECTORS / 2, 1] {
            let step = vectors * i64::from(lanes);
            let to = tile::whole_turns(kb, (from, end), step);
            kb.for_(from, to, step, Unroll::No, |kb, n| block(kb, n, vectors, None));
            from = to;
        }
        let left = kb.sub(end, from);
        let some = kb.bin(BinOp::Gt, left, zero);
        kb.if_(some, |kb| block(kb, from, 1, Some(left)), |_| {});
    }

    /// Turns logits into weights `e^(x - max)`, zero beyond the visible keys; gives what the weighted sum is multiplied by: NaN for a row that sees no key, or
    /// zero if it is to be cleared.
    fn softmax(&mut self, kb: &mut KernelBuilder, u: &Unit, i: Reg, seen: Reg) -> Reg {
        let (p, lanes, ty, buf) = (self.p, self.lanes, self.float(), self.memory.weights);
        let (zero, width) = (kb.index(0), kb.index(lanes.into()));
        let whole = tile::whole_turns(kb, (zero, seen), lanes.into());
        let vectors = tile::ceil_div(kb, seen, lanes.into());
        let end = kb.mul(vectors, width);
        let lowest = kb.num(ty, f64::NEG_INFINITY);
        let top = kb.var(lowest);
        let mut some = |kb: &mut KernelBuilder, j: Reg, ragged: bool| {
            let x = kb.load(buf, j, lanes);
            let x = capped(kb, p, x);
            let visible = ragged.then(|| kb.sub(seen, j));
            let x = masked(kb, p, self.mask.as_deref_mut(), (&[u.b, u.h, i], j), x, visible);
            kb.store(buf, j, x);
            let old = kb.get(top);
            let new = larger(kb, x, old);
            kb.set(top, new);
        };
        kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, j| some(kb, j, false));
        kb.for_(whole, end, lanes.into(), Unroll::No, |kb, j| some(kb, j, true));
        let top = kb.get(top);
        let top = largest_lane(kb, top);
        let (lowest, none, one) = (kb.num(Ty::F32, f64::NEG_INFINITY), kb.num(Ty::F32, 0.0), kb.num(Ty::F32, 1.0));
        let hidden = kb.bin(BinOp::Eq, top, lowest);
        let shift = kb.select(hidden, none, top);
        let shift = kb.splat(lanes, shift);
        kb.for_(zero, end, lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| {
            let x = kb.load(buf, j, lanes);
            let x = kb.sub(x, shift);
            let e = softmax_exp(kb, x);
            kb.store(buf, j, e);
        });
        let nothing = kb.num(ty, 0.0);
        let total = kb.var(nothing);
        kb.for_(zero, end, lanes.into(), Unroll::No, |kb, j| {
            let (old, e) = (kb.get(total), kb.load(buf, j, lanes));
            let new = kb.add(old, e);
            kb.set(total, new);
        });
        let total = kb.get(total);
        let total = kb.reduce(ReduceOp::Add, total);
        let inverse = kb.bin(BinOp::Div, one, total);
        if p.clear { kb.select(hidden, none, inverse) } else { inverse }
    }

    fn weighted_sum(
        &self,
        kb: &mut KernelBuilder,
        (v, base): (&Operand, Reg),
        seen: Reg,
        body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Option<Reg>),
    ) {
        let (stride, features) = (kb.dim(&v.strides[2]), kb.dim(&self.p.e));
        self.sums(kb, (v.buf, base, stride), (self.memory.weights, seen), features, body);
    }
}
