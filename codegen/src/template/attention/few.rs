//! Attention of a few query rows, as a step of decoding has them: keys and values are read where they lie.
//!
//! **Contract.** That of [`super::floats`], with every operand widened to `f32` as it is read. Features of keys or the keys themselves are neighbours in memory,
//! and so are features of values ([`fits`]).
//!
//! **Schedule.** Packing keys and values would cost more than all products with them. Logits of all keys, then softmax, then the weighted sum, in which some
//! vectors of features go over the keys side by side. The rows of a unit take turns on a block of keys or values while it is in the nearest cache. The order
//! of all sums is fixed.
//!
//! [`build`] makes units of query rows of one head. [`build_part`] makes units of *parts* of the keys: all rows of all heads that share a key head, against so
//! many keys, so that a long cache of few heads is read once and by all threads. Such a unit leaves a record per row, which [`super::merge`] joins
//! (LeanAttention, Sanovar et al. 2024; the parts do not depend on the number of threads, so neither do the results).

use transc_ir::loops::{Buf, KernelBuilder, ReduceOp, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::tile;
use super::super::transpose::transpose;
use super::merge::Records;
use super::{
    AttentionProblem, Epilogue, Mask, Operand, Step, Unit, capped, each_step, inverse, larger, largest_lane, masked, shift,
    visible_keys,
};
use crate::math::softmax_exp;

/// Most query rows.
pub const FEW: i64 = 4;
/// Vectors of features, or of keys, that are summed side by side.
const VECTORS: i64 = 8;
/// Keys whose values the rows of a unit take turns on.
const TURN: i64 = 32;
/// Keys and values of a part fill about this many bytes: they stay in the second cache while the rows of a unit pass over them.
const PART_BYTES: i64 = 1 << 18;
/// Keys of a part are a multiple of this, and so of all lanes.
const STEP: i64 = 64;

/// True if keys and values of these strides lie as this form reads them.
pub fn fits([k, v]: [&[Dim]; 2]) -> bool {
    (k[3].is(1) || k[2].is(1)) && v[3].is(1)
}

/// The parts of the keys; `None` where queries are many, or keys are no more than one part has.
pub fn parts(p: &AttentionProblem, lanes: u16) -> Option<Records> {
    // Of as many keys as queries there are few too.
    if p.sk == p.sq || p.sq.as_const().is_some_and(|n| n > FEW) {
        return None;
    }
    let row = &(&p.d + &p.e) + &rows_of_key_head(p);
    let keys = (PART_BYTES / (4 * row.as_const()?).max(1) / STEP * STEP).clamp(STEP, 16 * STEP);
    p.sk.as_const().is_none_or(|n| n > keys).then_some(Records { keys, lanes })
}

/// Most query rows of all heads that share a key head.
fn rows_of_key_head(p: &AttentionProblem) -> Dim {
    &p.h.floor_div(&p.g) * &p.sq.as_const().unwrap_or(FEW).into()
}

/// 1 for sizes with few queries, 0 for others.
pub fn is_few(p: &AttentionProblem) -> Dim {
    (&Dim::from(FEW + 1) - &p.sq).max_with(&0.into()).min_with(&1.into())
}

/// Scratch memory, with a row for each row of a unit.
struct Memory {
    /// The query times the factor of the logits, with zeros up to whole vectors.
    queries: Rows,
    /// Logits, then weights.
    weights: Rows,
    /// Weighted sums.
    sums: Rows,
    /// What softmax found.
    found: [Buf; 2],
}

/// Rows of floats in whole vectors.
struct Rows {
    buf: Buf,
    len: Dim,
}

impl Rows {
    fn new(kb: &mut KernelBuilder, rows: &Dim, len: &Dim, lanes: u16) -> Rows {
        let lanes = Dim::from(i64::from(lanes));
        let len = &len.ceil_div(&lanes) * &lanes;
        Rows { buf: kb.local(DType::F32, rows * &len), len }
    }

    fn at(&self, kb: &mut KernelBuilder, row: Reg) -> Reg {
        let len = kb.dim(&self.len);
        kb.mul(row, len)
    }
}

/// Where keys and values of a unit lie.
struct Cache<'a> {
    keys: (&'a Operand, Reg),
    values: (&'a Operand, Reg),
    /// The first key, and how many there are.
    first: Reg,
    count: Reg,
}

/// What softmax found in a row: largest logit and sum of the weights.
type Found = [Reg; 2];
/// Takes the sums of a row at an offset, which are not divided yet: `[batch, head, query]`, what softmax found.
type Finish<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Found, (Buf, Reg)) + 'a;

struct Parts<'a, 'm, 'f> {
    p: &'a AttentionProblem,
    lanes: u16,
    memory: Memory,
    mask: Option<&'m mut Mask<'f>>,
    /// Keys whose values the rows take turns on.
    turn: Dim,
}

/// Builds the kernel's body, for units of `rows` rows. The kernel's extent must be [`AttentionProblem::extent`], and no more than [`FEW`] queries there when it runs.
pub fn build(
    kb: &mut KernelBuilder,
    (p, rows, lanes): (&AttentionProblem, i64, u16),
    [q, k, v]: [&Operand; 3],
    mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let mut a = Parts::new(kb, (p, lanes), (&p.sq.as_const().unwrap_or(FEW).into(), &p.sk), mask);
    // Where the head's keys and values start: set before its units.
    let zero = kb.index(0);
    let bases = [kb.var(zero), kb.var(zero)];
    each_step(kb, (p, rows), [k, v], &mut |kb, step| match step {
        Step::Pack(starts) => bases.iter().zip(starts).for_each(|(var, at)| kb.set(*var, at)),
        Step::Compute(unit) => {
            let [keys, values] = bases.map(|var| kb.get(var));
            let cache = Cache { keys: (k, keys), values: (v, values), first: zero, count: kb.dim(&p.sk) };
            a.unit(kb, q, &unit, &cache, &mut |kb, at, [top, total], sums| {
                let inverse = inverse(kb, p.clear, top, total);
                each_vector(kb, &p.e, lanes, &mut |kb, n, count| {
                    let from = kb.add(sums.1, n);
                    let (x, factor) = (kb.load(sums.0, from, lanes), kb.splat(lanes, inverse));
                    let x = kb.mul(x, factor);
                    epilogue(kb, at, n, x, count);
                });
            });
        }
    });
}

/// Builds the body of a kernel that leaves `records` of parts of the keys. Its extent must be [`Records::extent`], and no more than [`FEW`] queries there when it
/// runs.
pub fn build_part(
    kb: &mut KernelBuilder,
    (p, records): (&AttentionProblem, Records),
    [q, k, v]: [&Operand; 3],
    mask: Option<&mut Mask<'_>>,
    out: Buf,
) {
    let group = p.h.floor_div(&p.g);
    let mut a = Parts::new(kb, (p, records.lanes), (&rows_of_key_head(p), &records.keys.into()), mask);
    let parts = records.parts(p);
    let (lo, hi, zero) = (kb.lo(), kb.hi(), kb.index(0));
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (key_head, part) = tile::div_rem(kb, unit, &parts);
        let (b, g) = tile::div_rem(kb, key_head, &p.g);
        let (most, all) = (kb.index(records.keys), kb.dim(&p.sk));
        let first = kb.mul(part, most);
        let left = kb.sub(all, first);
        let count = kb.bin(BinOp::Min, left, most);
        let [keys, values] = [k, v].map(|x| x.at(kb, &[b, g, first, zero]));
        let (rows, group) = (kb.dim(&(&group * &p.sq)), kb.dim(&group));
        let unit = Unit { b, h: kb.mul(g, group), row: zero, rows };
        let cache = Cache { keys: (k, keys), values: (v, values), first, count };
        a.unit(kb, q, &unit, &cache, &mut |kb, at, found, sums| records.store(kb, p, (at, part), found, sums, out));
    });
}

/// Takes the vectors of a row of `len` elements: first element, and active lanes for one that is not whole.
fn each_vector(kb: &mut KernelBuilder, len: &Dim, lanes: u16, body: &mut dyn FnMut(&mut KernelBuilder, Reg, Option<Reg>)) {
    let (zero, end) = (kb.index(0), kb.dim(len));
    let whole = tile::whole_turns(kb, (zero, end), lanes.into());
    kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, n| body(kb, n, None));
    if !len.modulo(&i64::from(lanes).into()).is(0) {
        let left = kb.sub(end, whole);
        let some = kb.bin(BinOp::Gt, left, zero);
        kb.if_(some, |kb| body(kb, whole, Some(left)), |_| {});
    }
}

/// `sum over j < len of x[j] * m[j, n]` for the columns `n` up to `end` of a matrix whose columns are neighbours, in ascending order: blocks of
/// [`VECTORS`] vectors, then single ones, the last with a count.
pub(super) fn sums(
    kb: &mut KernelBuilder,
    lanes: u16,
    (m, base, stride): (Buf, Reg, Reg),
    (x, from, len): (Buf, Reg, Reg),
    end: Reg,
    body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Option<Reg>),
) {
    let zero = kb.index(0);
    let mut block = |kb: &mut KernelBuilder, n: Reg, vectors: i64, count: Option<Reg>| {
        let none = kb.num(Ty::vector(DType::F32, lanes), 0.0);
        let sums: Vec<_> = (0..vectors).map(|v| (kb.index(v * i64::from(lanes)), kb.var(none))).collect();
        kb.for_(zero, len, 1, Unroll::No, |kb, j| {
            let (row, at) = (kb.mul(j, stride), kb.add(from, j));
            let factor = kb.load(x, at, 1);
            let (row, factor) = (kb.add(base, row), kb.splat(lanes, factor));
            let row = kb.add(row, n);
            for (v, sum) in &sums {
                let at = kb.add(row, *v);
                let y = kb.load_part(m, at, lanes, count);
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

impl<'a, 'm, 'f> Parts<'a, 'm, 'f> {
    /// For units of at most `rows` rows and `keys` keys.
    fn new(
        kb: &mut KernelBuilder,
        (p, lanes): (&'a AttentionProblem, u16),
        (rows, keys): (&Dim, &Dim),
        mask: Option<&'m mut Mask<'f>>,
    ) -> Self {
        let turn = if rows.is(1) { keys.clone() } else { TURN.into() };
        let mut memory = |len: &Dim| Rows::new(kb, rows, len, lanes);
        let (queries, weights, sums) = (memory(&p.d), memory(keys), memory(&p.e));
        let found = [0, 1].map(|_| kb.local(DType::F32, rows.clone()));
        Parts { p, lanes, memory: Memory { queries, weights, sums, found }, mask, turn }
    }

    fn float(&self) -> Ty {
        Ty::vector(DType::F32, self.lanes)
    }

    /// `[batch, head, query]` of a row of a unit, whose rows go from head to head.
    fn place(&self, kb: &mut KernelBuilder, u: &Unit, r: Reg) -> [Reg; 3] {
        let row = kb.add(u.row, r);
        let (head, i) = tile::div_rem(kb, row, &self.p.sq);
        [u.b, kb.add(u.h, head), i]
    }

    /// Number of the unit's keys that a query sees.
    fn seen(&self, kb: &mut KernelBuilder, c: &Cache<'_>, i: Reg) -> Reg {
        if self.p.causal.is_none() {
            return c.count;
        }
        let (zero, seen) = (kb.index(0), visible_keys(kb, self.p, i));
        let seen = kb.sub(seen, c.first);
        let seen = kb.bin(BinOp::Max, seen, zero);
        kb.bin(BinOp::Min, seen, c.count)
    }

    fn unit(&mut self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, c: &Cache<'_>, finish: &mut Finish<'_>) {
        let zero = kb.index(0);
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| self.take_query(kb, q, u, r));
        if c.keys.0.strides[3].is(1) {
            self.dot_rows(kb, u, c);
        } else {
            self.sum_columns(kb, u, c);
        }
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let at = self.place(kb, u, r);
            let seen = self.seen(kb, c, at[2]);
            let found = self.softmax(kb, (&at, r), c.first, seen);
            self.memory.found.iter().zip(found).for_each(|(buf, x)| kb.store(*buf, r, x));
        });
        self.weighted_sums(kb, u, c);
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let (at, sums) = (self.place(kb, u, r), self.memory.sums.at(kb, r));
            let found = self.memory.found.map(|buf| kb.load(buf, r, 1));
            finish(kb, &at, found, (self.memory.sums.buf, sums));
        });
    }

    fn take_query(&self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, r: Reg) {
        let at = self.place(kb, u, r);
        let (zero, features) = (kb.index(0), kb.dim(&self.p.d));
        let (from, stride) = (q.at(kb, &[at[0], at[1], at[2], zero]), kb.dim(&q.strides[3]));
        let (buf, to) = (self.memory.queries.buf, self.memory.queries.at(kb, r));
        kb.for_(zero, features, 1, Unroll::Auto, |kb, j| {
            let step = kb.mul(j, stride);
            let (from, to) = (kb.add(from, step), kb.add(to, j));
            let x = kb.load(q.buf, from, 1);
            let (x, scale) = (kb.cast(DType::F32, x), kb.num(Ty::F32, self.p.scale));
            let x = kb.mul(x, scale);
            kb.store(buf, to, x);
        });
        let (end, none) = (kb.dim(&self.memory.queries.len), kb.num(Ty::F32, 0.0));
        kb.for_(features, end, 1, Unroll::No, |kb, j| {
            let to = kb.add(to, j);
            kb.store(buf, to, none);
        });
    }

    /// Number of the unit's keys that its last row sees, and so as many as any of its rows does.
    fn seen_by_some(&self, kb: &mut KernelBuilder, u: &Unit, c: &Cache<'_>) -> Reg {
        let one = kb.index(1);
        let last = kb.sub(u.rows, one);
        let at = self.place(kb, u, last);
        self.seen(kb, c, at[2])
    }

    /// Logits of keys whose features are neighbours: a vector of sums per key, as many keys as a vector has lanes, which then change places with the lanes.
    fn dot_rows(&self, kb: &mut KernelBuilder, u: &Unit, c: &Cache<'_>) {
        let (lanes, zero, one) = (self.lanes, kb.index(0), kb.index(1));
        let (k, base) = c.keys;
        let (features, stride) = (kb.dim(&self.p.d), kb.dim(&k.strides[2]));
        let whole = tile::whole_turns(kb, (zero, features), lanes.into());
        let seen = self.seen_by_some(kb, u, c);
        let last = kb.sub(seen, one);
        kb.for_(zero, seen, lanes.into(), Unroll::No, |kb, key| {
            let rows: Vec<Reg> = (0..i64::from(lanes))
                .map(|i| {
                    let i = kb.index(i);
                    let key = kb.add(key, i);
                    // Beyond the last one, the last once more.
                    let key = kb.bin(BinOp::Min, key, last);
                    let row = kb.mul(key, stride);
                    kb.add(base, row)
                })
                .collect();
            kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
                let (query, to) = (self.memory.queries.at(kb, r), self.memory.weights.at(kb, r));
                let none = kb.num(self.float(), 0.0);
                let sums: Vec<_> = rows.iter().map(|_| kb.var(none)).collect();
                let step = |kb: &mut KernelBuilder, j: Reg, count: Option<Reg>| {
                    let from = kb.add(query, j);
                    let x = kb.load(self.memory.queries.buf, from, lanes);
                    for (row, sum) in rows.iter().zip(&sums) {
                        let at = kb.add(*row, j);
                        let y = kb.load_part(k.buf, at, lanes, count);
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
                let mut sums: Vec<Reg> = sums.iter().map(|sum| kb.get(*sum)).collect();
                sums = transpose(kb, &sums, 1);
                while sums.len() > 1 {
                    sums = sums.chunks_exact(2).map(|s| kb.add(s[0], s[1])).collect();
                }
                let to = kb.add(to, key);
                kb.store(self.memory.weights.buf, to, sums[0]);
            });
        });
    }

    /// Logits of keys that are neighbours themselves.
    fn sum_columns(&self, kb: &mut KernelBuilder, u: &Unit, c: &Cache<'_>) {
        let (k, base) = c.keys;
        let (zero, stride, features) = (kb.index(0), kb.dim(&k.strides[3]), kb.dim(&self.p.d));
        let seen = self.seen_by_some(kb, u, c);
        let block = VECTORS * i64::from(self.lanes);
        let most = kb.index(block);
        kb.for_(zero, seen, block, Unroll::No, |kb, key| {
            let left = kb.sub(seen, key);
            let (end, base) = (kb.bin(BinOp::Min, left, most), kb.add(base, key));
            kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
                let (query, to) = (self.memory.queries.at(kb, r), self.memory.weights.at(kb, r));
                let to = kb.add(to, key);
                let query = (self.memory.queries.buf, query, features);
                sums(kb, self.lanes, (k.buf, base, stride), query, end, &mut |kb, n, x, _| {
                    // What lies beyond the last key is hidden before it is read.
                    let to = kb.add(to, n);
                    kb.store(self.memory.weights.buf, to, x);
                });
            });
        });
    }

    /// Turns the logits of a row into weights `e^(x - max)`, zero beyond the keys that it sees; the first one is key `first`.
    fn softmax(&mut self, kb: &mut KernelBuilder, (at, r): (&[Reg; 3], Reg), first: Reg, seen: Reg) -> Found {
        let (p, lanes, ty, buf) = (self.p, self.lanes, self.float(), self.memory.weights.buf);
        let row = self.memory.weights.at(kb, r);
        let (zero, width) = (kb.index(0), kb.index(lanes.into()));
        let whole = tile::whole_turns(kb, (zero, seen), lanes.into());
        let vectors = tile::ceil_div(kb, seen, lanes.into());
        let end = kb.mul(vectors, width);
        let lowest = kb.num(ty, f64::NEG_INFINITY);
        let top = kb.var(lowest);
        let mut some = |kb: &mut KernelBuilder, j: Reg, ragged: bool| {
            let (from, key) = (kb.add(row, j), kb.add(first, j));
            let x = kb.load(buf, from, lanes);
            let x = capped(kb, p, x);
            let visible = ragged.then(|| kb.sub(seen, j));
            let x = masked(kb, p, self.mask.as_deref_mut(), (at, key), x, visible);
            kb.store(buf, from, x);
            let old = kb.get(top);
            let new = larger(kb, x, old);
            kb.set(top, new);
        };
        kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, j| some(kb, j, false));
        kb.for_(whole, end, lanes.into(), Unroll::No, |kb, j| some(kb, j, true));
        let top = kb.get(top);
        let top = largest_lane(kb, top);
        let shift = shift(kb, top);
        let shift = kb.splat(lanes, shift);
        kb.for_(zero, end, lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| {
            let from = kb.add(row, j);
            let x = kb.load(buf, from, lanes);
            let x = kb.sub(x, shift);
            let e = softmax_exp(kb, x);
            kb.store(buf, from, e);
        });
        let nothing = kb.num(ty, 0.0);
        let total = kb.var(nothing);
        kb.for_(zero, end, lanes.into(), Unroll::No, |kb, j| {
            let from = kb.add(row, j);
            let (old, e) = (kb.get(total), kb.load(buf, from, lanes));
            let new = kb.add(old, e);
            kb.set(total, new);
        });
        let total = kb.get(total);
        [top, kb.reduce(ReduceOp::Add, total)]
    }

    fn weighted_sums(&self, kb: &mut KernelBuilder, u: &Unit, c: &Cache<'_>) {
        let (lanes, buf) = (self.lanes, self.memory.sums.buf);
        let (v, base) = c.values;
        let (zero, stride, features) = (kb.index(0), kb.dim(&v.strides[2]), kb.dim(&self.p.e));
        let (some, most) = (self.seen_by_some(kb, u, c), kb.dim(&self.turn));
        let none = kb.num(self.float(), 0.0);
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let (to, len) = (self.memory.sums.at(kb, r), kb.dim(&self.memory.sums.len));
            let end = kb.add(to, len);
            kb.for_(to, end, lanes.into(), Unroll::No, |kb, at| kb.store(buf, at, none));
        });
        let (one, some) = (kb.index(1), kb.add(some, most));
        let some = kb.sub(some, one);
        let turns = kb.bin(BinOp::Div, some, most);
        kb.for_(zero, turns, 1, Unroll::No, |kb, turn| {
            let key = kb.mul(turn, most);
            let row = kb.mul(key, stride);
            let base = kb.add(base, row);
            kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
                let at = self.place(kb, u, r);
                let seen = self.seen(kb, c, at[2]);
                let left = kb.sub(seen, key);
                let count = kb.bin(BinOp::Min, left, most);
                let (weights, to) = (self.memory.weights.at(kb, r), self.memory.sums.at(kb, r));
                let weights = (self.memory.weights.buf, kb.add(weights, key), count);
                sums(kb, lanes, (v.buf, base, stride), weights, features, &mut |kb, n, x, _| {
                    let to = kb.add(to, n);
                    let old = kb.load(buf, to, lanes);
                    let new = kb.add(old, x);
                    kb.store(buf, to, new);
                });
            });
        });
    }
}
