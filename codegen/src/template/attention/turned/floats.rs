//! Attention of floats that lie turned.
//!
//! **Contract.** As [`super::super::floats`], for operands of any type of floats up to `f32` and without causality. The sum of a row runs over the keys in
//! ascending order, four sums side by side in a block.
//!
//! **Schedule.** A unit is [`QUERIES`] queries of one head; it takes the keys in blocks, as [`super::super::floats`] does. Both products broadcast
//! elements of copies of keys and values, which lie as the operands do.

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::super::tile::{self, TileInput, TileShape};
use super::super::floats::KEYS;
use super::super::{AttentionProblem, Operand, Step, Unit, capped, each_step, inverse, larger, shift};
use super::{Added, Epilogue, Masking, QUERIES, Queries, fold};
use crate::math::softmax_exp;

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of both products.
    pub tile: TileShape,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attention_f32_m{}n{}t", self.tile.rows, self.tile.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` floats.
    pub fn choose(lanes: u16) -> Schedule {
        Schedule { tile: super::tile(lanes, if lanes == 16 { 8 } else { 6 }) }
    }
}

/// Scratch memory.
struct Scratch {
    /// `[D][Sk, padded]` and `[E][Sk, padded]`.
    keys: Buf,
    values: Buf,
    /// Queries times the factor of the logits, `[panel][D][width]`.
    queries: Buf,
    /// Logits of a block, then weights, `[panel][KEYS][width]`.
    weights: Buf,
    /// Weighted sums, `[panel][E][width]`.
    sums: Buf,
    /// Largest logit of each query, sum of its weights, and what its sums so far are multiplied by.
    top: Buf,
    total: Buf,
    factor: Buf,
}

/// What a kernel is built from.
struct Parts<'a, 'm, 'f> {
    p: &'a AttentionProblem,
    s: Schedule,
    memory: Scratch,
    /// Keys of a row of scratch memory.
    len: Dim,
    mask: Option<Added<'m, 'f>>,
}

/// A block of keys.
struct Block {
    first: Reg,
    count: Reg,
}

/// Builds the kernel's body. Its extent must be [`AttentionProblem::extent`] for units of [`QUERIES`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    s: Schedule,
    [q, k, v]: [&Operand; 3],
    mask: Option<Masking<'_, '_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let lanes = Dim::from(i64::from(s.tile.lanes));
    // An odd number of vectors: rows a power of two apart would meet in the cache.
    let twice = &lanes * &2.into();
    let len = &(&p.sk.ceil_div(&twice) * &twice) + &lanes;
    let queries = Dim::from(QUERIES);
    let memory = Scratch {
        keys: kb.local(DType::F32, &p.d * &len),
        values: kb.local(DType::F32, &p.e * &len),
        queries: kb.local(DType::F32, &p.d * &queries),
        weights: kb.local(DType::F32, Dim::from(KEYS * QUERIES)),
        sums: kb.local(DType::F32, &p.e * &queries),
        top: kb.local(DType::F32, queries.clone()),
        total: kb.local(DType::F32, queries.clone()),
        factor: kb.local(DType::F32, queries),
    };
    let mask = mask.map(|mask| Added::new(kb, s.tile, &KEYS.into(), mask));
    let mut a = Parts { p, s, memory, len, mask };
    each_step(kb, (p, QUERIES), [k, v], &mut |kb, step| match step {
        Step::Pack([key, value]) => {
            a.copy(kb, (k, key), &p.d, a.memory.keys);
            a.copy(kb, (v, value), &p.e, a.memory.values);
        }
        Step::Compute(unit) => a.unit(kb, q, &unit, epilogue),
    });
}

impl Parts<'_, '_, '_> {
    /// Copies the features of all keys of a head.
    fn copy(&self, kb: &mut KernelBuilder, (from, base): (&Operand, Reg), features: &Dim, to: Buf) {
        let lanes = self.s.tile.lanes;
        let (zero, end, keys) = (kb.index(0), kb.dim(features), kb.dim(&self.p.sk));
        let (stride, len) = (kb.dim(&from.strides[3]), kb.dim(&self.len));
        let whole = tile::whole_turns(kb, (zero, keys), lanes.into());
        kb.for_(zero, end, 1, Unroll::No, |kb, j| {
            let (row, out) = (kb.mul(j, stride), kb.mul(j, len));
            let row = kb.add(base, row);
            let copy = |kb: &mut KernelBuilder, key: Reg, count: Option<Reg>| {
                let place = from.row(kb, key);
                let (at, to_at) = (kb.add(row, place), kb.add(out, key));
                let x = kb.load_part(from.buf, at, lanes, count);
                let x = kb.cast(DType::F32, x);
                kb.store(to, to_at, x);
            };
            kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, key| copy(kb, key, None));
            if !self.p.sk.modulo(&i64::from(lanes).into()).is(0) {
                let left = kb.sub(keys, whole);
                copy(kb, whole, Some(left));
            }
        });
    }

    fn unit(&mut self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, epilogue: &mut Epilogue<'_>) {
        let (p, shape) = (self.p, self.s.tile);
        let (zero, width) = (kb.index(0), kb.index(shape.width()));
        let panels = tile::ceil_div(kb, u.rows, shape.width());
        let (lowest, none) = [f64::NEG_INFINITY, 0.0].map(|x| kb.num(Ty::vector(DType::F32, shape.lanes), x)).into();
        let end = kb.index(QUERIES);
        kb.for_(zero, end, shape.lanes.into(), Unroll::No, |kb, j| {
            kb.store(self.memory.top, j, lowest);
            kb.store(self.memory.total, j, none);
        });
        kb.for_(zero, panels, 1, Unroll::No, |kb, panel| {
            let first = kb.mul(panel, width);
            self.take_queries(kb, q, u, (panel, first));
        });
        let (keys, size) = (kb.dim(&p.sk), kb.index(KEYS));
        kb.for_(zero, keys, KEYS, Unroll::No, |kb, first| {
            let left = kb.sub(keys, first);
            let count = kb.bin(BinOp::Min, left, size);
            let block = Block { first, count };
            kb.for_(zero, panels, 1, Unroll::No, |kb, panel| {
                let query = kb.mul(panel, width);
                self.logits(kb, &block, panel);
                self.weights(kb, u, &block, (panel, query));
                self.weighted_sums(kb, &block, (panel, query));
            });
        });
        kb.for_(zero, panels, 1, Unroll::No, |kb, panel| {
            let query = kb.mul(panel, width);
            self.results(kb, u, (panel, query), epilogue);
        });
    }

    /// Where row `i` of a panel of `rows` rows lies.
    fn row(&self, kb: &mut KernelBuilder, panel: Reg, rows: &Dim, i: Reg) -> Reg {
        let (rows, width) = (kb.dim(rows), kb.index(self.s.tile.width()));
        let first = kb.mul(panel, rows);
        let row = kb.add(first, i);
        kb.mul(row, width)
    }

    /// Copies the queries of a panel, multiplied by the factor of the logits, with zeros behind them.
    fn take_queries(&self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, (panel, first): (Reg, Reg)) {
        let (p, shape) = (self.p, self.s.tile);
        let (zero, features, stride) = (kb.index(0), kb.dim(&p.d), kb.dim(&q.strides[3]));
        let token = kb.add(u.row, first);
        let base = q.at(kb, &[u.b, u.h, token, zero]);
        let left = kb.sub(u.rows, first);
        let counts = tile::column_counts(kb, shape, &p.sq, left);
        kb.for_(zero, features, 1, Unroll::No, |kb, j| {
            let step = kb.mul(j, stride);
            let from = kb.add(base, step);
            let to = self.row(kb, panel, &p.d, j);
            let (from, to) = (tile::row_places(kb, shape, from), tile::row_places(kb, shape, to));
            for ((from, to), count) in from.into_iter().zip(to).zip(&counts) {
                let x = kb.load_part(q.buf, from, shape.lanes, *count);
                let x = kb.cast(DType::F32, x);
                let scale = kb.num(kb.ty(x), p.scale);
                let x = kb.mul(x, scale);
                kb.store(self.memory.queries, to, x);
            }
        });
    }

    fn logits(&self, kb: &mut KernelBuilder, block: &Block, panel: Reg) {
        let (p, shape, m) = (self.p, self.s.tile, &self.memory);
        let (zero, features, len, width) = (kb.index(0), kb.dim(&p.d), kb.dim(&self.len), kb.index(shape.width()));
        let column = self.row(kb, panel, &p.d, zero);
        let counts = vec![None; shape.vectors.into()];
        tile::sweep_rows(kb, zero, block.count, shape.rows, &mut |kb, row, rows| {
            let acc = tile::accumulators(kb, shape, rows.into(), None);
            let key = kb.add(block.first, row);
            let one = kb.index(1);
            let at = tile::tile_rows(kb, key, rows, one);
            let input = TileInput {
                a: m.keys,
                rows: &at,
                a_stride: len,
                b: m.queries,
                column,
                b_stride: width,
                counts: &counts,
                k: &p.d,
                ahead: None,
            };
            tile::add_steps(kb, shape, &input, (zero, features), &acc);
            let start = self.row(kb, panel, &KEYS.into(), zero);
            let places = tile::tile_places(kb, shape, (row, rows), width, start);
            tile::store_at(kb, m.weights, &places, &acc);
        });
    }

    /// Turns the logits of a block into weights `e^(x - max)`, and brings what the queries carry up to date.
    fn weights(&mut self, kb: &mut KernelBuilder, u: &Unit, block: &Block, (panel, query): (Reg, Reg)) {
        let (p, shape) = (self.p, self.s.tile);
        let queries = Queries::new(kb, (p, shape), u, query);
        if let Some(mask) = &mut self.mask {
            mask.take(kb, (p, shape), &queries, (block.first, block.count));
        }
        let (lanes, zero) = (shape.lanes, kb.index(0));
        let base = self.row(kb, panel, &KEYS.into(), zero);
        let m = &self.memory;
        let mut mask = self.mask.as_mut();
        let mut logit = |kb: &mut KernelBuilder, (key, v): (Reg, usize), at: Reg| {
            let x = kb.load(m.weights, at, lanes);
            let mut x = capped(kb, p, x);
            if let Some(mask) = &mut mask {
                let y = mask.vector(kb, shape, &queries, (block.first, key), v);
                x = kb.add(x, y);
            }
            if mask.is_some() || p.softcap != 0.0 {
                kb.store(m.weights, at, x);
            }
            x
        };
        let tops = fold(kb, shape, (base, block.count, f64::NEG_INFINITY), &mut logit, &larger);
        let shifts: Vec<Reg> = tile::row_places(kb, shape, query)
            .into_iter()
            .zip(tops)
            .map(|(at, top)| {
                let before = kb.load(m.top, at, lanes);
                let top = larger(kb, top, before);
                kb.store(m.top, at, top);
                let shift = shift(kb, top);
                let fall = kb.sub(before, shift);
                let factor = softmax_exp(kb, fall);
                kb.store(m.factor, at, factor);
                shift
            })
            .collect();
        kb.for_(zero, block.count, 1, Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, key| {
            let at = self.row(kb, panel, &KEYS.into(), key);
            for (at, shift) in tile::row_places(kb, shape, at).into_iter().zip(&shifts) {
                let x = kb.load(m.weights, at, lanes);
                let x = kb.sub(x, *shift);
                let x = softmax_exp(kb, x);
                kb.store(m.weights, at, x);
            }
        });
        let mut weight = |kb: &mut KernelBuilder, _: (Reg, usize), at: Reg| kb.load(m.weights, at, lanes);
        let sums = fold(kb, shape, (base, block.count, 0.0), &mut weight, &|kb, a, b| kb.add(a, b));
        for (at, sum) in tile::row_places(kb, shape, query).into_iter().zip(sums) {
            let (total, factor) = (kb.load(m.total, at, lanes), kb.load(m.factor, at, lanes));
            let total = kb.fma(total, factor, sum);
            kb.store(m.total, at, total);
        }
    }

    /// Multiplies the sums so far by their factor and adds the values of a block times their weights.
    fn weighted_sums(&self, kb: &mut KernelBuilder, block: &Block, (panel, query): (Reg, Reg)) {
        let (p, shape, m) = (self.p, self.s.tile, &self.memory);
        let (zero, one, features) = (kb.index(0), kb.index(1), kb.dim(&p.e));
        let (len, width) = (kb.dim(&self.len), kb.index(shape.width()));
        let column = self.row(kb, panel, &KEYS.into(), zero);
        let start = self.row(kb, panel, &p.e, zero);
        let later = kb.bin(BinOp::Gt, block.first, zero);
        let counts = vec![None; shape.vectors.into()];
        tile::sweep_rows(kb, zero, features, shape.rows, &mut |kb, row, rows| {
            let acc = tile::accumulators(kb, shape, rows.into(), None);
            let places = tile::tile_places(kb, shape, (row, rows), width, start);
            let factors = tile::row_places(kb, shape, query);
            kb.if_(
                later,
                |kb| {
                    for (i, (at, var)) in places.iter().zip(&acc).enumerate() {
                        let factor = kb.load(m.factor, factors[i % usize::from(shape.vectors)], shape.lanes);
                        let sum = kb.load(m.sums, *at, shape.lanes);
                        let sum = kb.mul(sum, factor);
                        kb.set(*var, sum);
                    }
                },
                |_| {},
            );
            let at: Vec<Reg> = tile::tile_rows(kb, row, rows, len).into_iter().map(|at| kb.add(at, block.first)).collect();
            let input = TileInput {
                a: m.values,
                rows: &at,
                a_stride: one,
                b: m.weights,
                column,
                b_stride: width,
                counts: &counts,
                k: &p.sk,
                ahead: None,
            };
            tile::add_steps(kb, shape, &input, (zero, block.count), &acc);
            tile::store_at(kb, m.sums, &places, &acc);
        });
    }

    /// Divides the sums by those of the weights.
    fn results(&self, kb: &mut KernelBuilder, u: &Unit, (panel, query): (Reg, Reg), epilogue: &mut Epilogue<'_>) {
        let (p, shape, m) = (self.p, self.s.tile, &self.memory);
        let (zero, features) = (kb.index(0), kb.dim(&p.e));
        let queries = Queries::new(kb, (p, shape), u, query);
        let states = tile::row_places(kb, shape, query);
        let inverses: Vec<Reg> = states
            .iter()
            .map(|at| {
                let (top, total) = (kb.load(m.top, *at, shape.lanes), kb.load(m.total, *at, shape.lanes));
                inverse(kb, p.clear, top, total)
            })
            .collect();
        kb.for_(zero, features, 1, Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| {
            let at = self.row(kb, panel, &p.e, j);
            let from = tile::row_places(kb, shape, at);
            for (v, (from, inverse)) in from.into_iter().zip(&inverses).enumerate() {
                let x = kb.load(m.sums, from, shape.lanes);
                let x = kb.mul(x, *inverse);
                let token = queries.token(kb, shape, v);
                epilogue(kb, &[u.b, u.h, j], token, x, queries.counts[v]);
            }
        });
    }
}
