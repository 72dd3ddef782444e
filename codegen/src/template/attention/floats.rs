//! Attention of floats: logits, softmax and the weighted sum, block of keys by block.
//!
//! **Contract.** `softmax(cap(scale * q k^T) + mask) v` per batch and head as `ir`'s `attention` op states it, grouped heads included. The
//! operands are strided, of any type of floats, and are widened to `f32` where they are packed. Key rows beyond the end and keys hidden by causality take no part; a row that
//! sees no key gives NaN, or zeros on request. The sum of a row runs in a fixed order that does not depend on the partition. For operands of `bf16` and a
//! target that multiplies pairs of them ([`super::super::groups`]) or has matrix registers ([`super::super::amx`]), queries times the factor of the logits and the weights
//! before their division are rounded to `bf16`; sums and softmax stay in `f32`.
//!
//! **Schedule.** A unit is some query rows of one head. Keys and values of a key head are packed once per call into panels `[D][width]` and
//! `[Sk][width]`. A unit takes the keys in blocks of [`KEYS`]: logits (register tile over `D`), softmax in scratch memory, weighted sum (register tile
//! over the keys); each panel goes to the nearest cache once for all rows of the unit. Maximum and sum of a row are carried from block to block, as in
//! FlashAttention-2 (Dao 2023, algorithm 1). Blocks of keys that causality hides from all rows of a unit are left out. A few queries take another way
//! ([`super::few`]).

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, ReduceOp, Reg, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::amx::{self, Registers};
use super::super::groups::{self, Form, Group};
use super::super::tile::{self, Source, TileInput, TileShape};
use super::merge::Records;
use super::{
    AttentionProblem, Epilogue, Mask, Operand, ROWS, Step, Unit, capped, each_step, few, inverse, larger, largest_lane, masked,
    seen_keys, shift, visible_keys,
};
use crate::math::softmax_exp;

/// Keys of a block, a multiple of the width of every tile of logits.
pub const KEYS: i64 = 128;

/// What computes the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Vectors of `f32`.
    Floats,
    /// Vectors of pairs of `bf16`.
    Pairs,
    /// Matrix registers of `bf16`.
    Matrices,
}

impl Engine {
    /// What suits operands of `bf16` on a target.
    pub fn of_bf16(pairs: bool, matrices: bool) -> Engine {
        if matrices {
            Engine::Matrices
        } else if pairs {
            Engine::Pairs
        } else {
            Engine::Floats
        }
    }
}

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of the logits.
    pub logits: TileShape,
    /// Tile of the weighted sum.
    pub values: TileShape,
    /// What computes the products.
    pub engine: Engine,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.engine {
            Engine::Floats => "f32",
            Engine::Pairs => "bf16",
            Engine::Matrices => "amx_bf16",
        };
        write!(f, "attention_{kind}_m{}k{}n{}", self.logits.rows, self.logits.width(), self.values.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` floats.
    pub fn choose(lanes: u16, engine: Engine, p: &AttentionProblem) -> Schedule {
        if engine == Engine::Matrices {
            return Schedule { logits: amx::shape(None), values: amx::shape(p.e.as_const()), engine };
        }
        // Two vectors per row: few columns are lost at the end of the keys.
        let logits = TileShape { lanes, rows: if lanes == 16 { 8 } else { 6 }, vectors: 2 };
        let mut space = TileShape::space(lanes);
        space.push(logits);
        Schedule { logits, values: TileShape::fastest(&space, &p.e), engine }
    }

    /// Query rows of a unit.
    pub fn rows(self) -> i64 {
        if self.engine == Engine::Matrices { self.logits.rows.into() } else { ROWS }
    }

    /// Products that one step adds up.
    fn depth(self) -> i64 {
        match self.engine {
            Engine::Floats => 1,
            Engine::Pairs => Group::Bf16.size(),
            Engine::Matrices => amx::depth(Group::Bf16),
        }
    }

    /// Rows of a panel for sums of `len` products.
    fn padded(self, len: &Dim) -> Dim {
        let depth = Dim::from(self.depth());
        &len.ceil_div(&depth) * &depth
    }
}

/// Scratch memory. What a row carries is a vector with an element per row of the unit, up to a multiple of the lanes.
struct Scratch {
    /// Panels of all keys, `[panel][D][width]`.
    keys: Buf,
    /// Panels of all values, `[panel][Sk][width]`.
    values: Buf,
    /// Query rows times the factor of the logits, `[rows][D]`.
    queries: Buf,
    /// Logits of a block, then weights, `[rows][KEYS]`.
    logits: Buf,
    /// The weights as they are multiplied: where the logits were, or rounded to `bf16`.
    weights: Buf,
    /// Weighted sums, `[rows][E up to a multiple of the width]`.
    sums: Buf,
    /// Largest logit of a row.
    top: Buf,
    /// Sum of the weights of a row.
    total: Buf,
    /// The number that is taken from a row's logits.
    shift: Buf,
    /// What the sums so far are multiplied by.
    factor: Buf,
    /// Largest logit, then sum of weights, of the block.
    block: Buf,
}

/// A block of keys.
struct KeyBlock {
    first: Reg,
    /// Number of keys to add up.
    count: Reg,
    /// Number of logits that are computed: whole tiles.
    padded: Reg,
}

/// Builds the kernel's body. Its extent must be [`AttentionProblem::extent`], or where it leaves records of few queries [`Records::extent`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    (s, records): (Schedule, Option<(Records, Buf)>),
    of: [&Operand; 3],
    mut mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let as_few = |kb: &mut KernelBuilder, mask: Option<&mut Mask<'_>>, epilogue: &mut Epilogue<'_>| match records {
        Some((records, out)) => few::build_part(kb, (p, records), of, mask, out),
        None => few::build(kb, (p, s.rows(), s.logits.lanes), of, mask, epilogue),
    };
    let fits = few::fits([&of[1].strides, &of[2].strides]);
    match p.sq.as_const().map(|n| n <= few::FEW) {
        Some(true) if fits => as_few(kb, mask, epilogue),
        None if fits => {
            let (queries, most) = (kb.dim(&p.sq), kb.index(few::FEW));
            let small = kb.bin(BinOp::Le, queries, most);
            kb.if_(small, |kb| as_few(kb, mask.as_deref_mut(), epilogue), |_| {});
            let large = kb.bin(BinOp::Gt, queries, most);
            kb.if_(large, |kb| many(kb, p, s, of, mask, epilogue), |_| {});
        }
        _ => many(kb, p, s, of, mask, epilogue),
    }
}

/// With keys and values packed.
fn many(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    s: Schedule,
    [q, k, v]: [&Operand; 3],
    mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let lanes = i64::from(s.logits.lanes);
    let (key_width, value_width) = (Dim::from(s.logits.width()), Dim::from(s.values.width()));
    let (key_panels, value_panels) = (p.sk.ceil_div(&key_width), p.e.ceil_div(&value_width));
    let row_state = |kb: &mut KernelBuilder| kb.local(DType::F32, ((s.rows() + lanes - 1) / lanes * lanes).into());
    let narrow = s.engine != Engine::Floats;
    let operand = if narrow { DType::Bf16 } else { DType::F32 };
    let [depth, count] = [&p.d, &p.sk].map(|len| s.padded(len));
    let rows = Dim::from(s.rows());
    let logits = kb.local(DType::F32, &rows * &KEYS.into());
    let memory = Scratch {
        keys: kb.local(operand, &(&key_panels * &key_width) * &depth),
        values: kb.local(operand, &(&value_panels * &value_width) * &count),
        queries: kb.local(operand, &rows * &depth),
        logits,
        weights: if narrow { kb.local(operand, &rows * &KEYS.into()) } else { logits },
        sums: kb.local(DType::F32, &(&value_panels * &value_width) * &rows),
        top: row_state(kb),
        total: row_state(kb),
        shift: row_state(kb),
        factor: row_state(kb),
        block: row_state(kb),
    };
    let registers = (s.engine == Engine::Matrices).then(|| Registers::new(kb));
    let mut a = Parts { p, s, memory, registers, mask };
    each_step(kb, (p, s.rows()), [k, v], &mut |kb, step| {
        let base = match step {
            Step::Pack(base) => base,
            Step::Compute(unit) => return a.unit(kb, q, &unit, epilogue),
        };
        let pack = |kb: &mut KernelBuilder, shape: TileShape, dims: (&Dim, &Dim), src: &Source<'_>, n0: Reg, to: (Buf, Reg)| {
            if narrow {
                let form = Form { shape, group: Group::Bf16, depth: s.depth(), encode: &groups::to_bf16 };
                groups::pack_panel(kb, form, dims, src, n0, to);
            } else {
                tile::pack_panel(kb, shape, dims, src, n0, to);
            }
        };
        tile::each_panel(kb, &key_panels, s.logits, &depth, &mut |kb, n0, at| {
            let src = Source { buf: k.buf, base: base[0], k_stride: &k.strides[3], n_stride: &k.strides[2] };
            pack(kb, s.logits, (&p.d, &p.sk), &src, n0, (a.memory.keys, at));
        });
        tile::each_panel(kb, &value_panels, s.values, &count, &mut |kb, n0, at| {
            let src = Source { buf: v.buf, base: base[1], k_stride: &v.strides[2], n_stride: &v.strides[3] };
            pack(kb, s.values, (&p.sk, &p.e), &src, n0, (a.memory.values, at));
        });
    });
}

/// What a kernel is built from.
struct Parts<'a, 'm, 'f> {
    p: &'a AttentionProblem,
    s: Schedule,
    memory: Scratch,
    registers: Option<Registers>,
    mask: Option<&'m mut Mask<'f>>,
}

impl Parts<'_, '_, '_> {
    fn unit(&mut self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, epilogue: &mut Epilogue<'_>) {
        let (p, zero, one) = (self.p, kb.index(0), kb.index(1));
        self.take_queries(kb, q, u);
        self.each_state(kb, &mut |kb, m, j, ty| {
            let (lowest, nothing) = (kb.num(ty, f64::NEG_INFINITY), kb.num(ty, 0.0));
            for (buf, x) in [(m.top, lowest), (m.block, lowest), (m.total, nothing)] {
                kb.store(buf, j, x);
            }
        });
        let end = seen_keys(kb, p, u);
        let (size, width) = (kb.index(KEYS), kb.index(self.s.logits.width()));
        let blocks = tile::ceil_div(kb, end, KEYS);
        // A row that sees no key has sums too.
        let blocks = kb.bin(BinOp::Max, blocks, one);
        kb.for_(zero, blocks, 1, Unroll::No, |kb, block| {
            let first = kb.mul(block, size);
            let left = kb.sub(end, first);
            let count = kb.bin(BinOp::Min, left, size);
            let panels = tile::ceil_div(kb, count, self.s.logits.width());
            let padded = kb.mul(panels, width);
            let block = KeyBlock { first, count, padded };
            self.logits(kb, u, &block);
            self.weights(kb, u, &block);
            self.weighted_sums(kb, u, &block);
        });
        self.results(kb, u, epilogue);
    }

    /// Calls `body` with places and type of the vectors of what the rows carry.
    fn each_state(&self, kb: &mut KernelBuilder, body: &mut dyn FnMut(&mut KernelBuilder, &Scratch, Reg, Ty)) {
        let lanes = self.s.logits.lanes;
        let (zero, end) = (kb.index(0), kb.index(self.s.rows()));
        kb.for_(zero, end, lanes.into(), Unroll::No, |kb, j| body(kb, &self.memory, j, Ty::vector(DType::F32, lanes)));
    }

    /// Copies the rows, multiplied by the factor of the logits.
    fn take_queries(&self, kb: &mut KernelBuilder, q: &Operand, u: &Unit) {
        let (p, lanes, to) = (self.p, self.s.logits.lanes, self.memory.queries);
        let (zero, features, stride) = (kb.index(0), kb.dim(&p.d), kb.dim(&q.strides[3]));
        let depth = kb.dim(&self.s.padded(&p.d));
        let operand = kb.buf_dtype(to);
        // In `f32`, then as the products take it.
        let scaled = |kb: &mut KernelBuilder, x: Reg| {
            let x = kb.cast(DType::F32, x);
            let scale = kb.num(kb.ty(x), p.scale);
            let x = kb.mul(x, scale);
            if operand == DType::Bf16 { groups::to_bf16(kb, x) } else { x }
        };
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let i = kb.add(u.row, r);
            let (from, at) = (q.at(kb, &[u.b, u.h, i, zero]), kb.mul(r, depth));
            let mut rest = zero;
            if q.strides[3].is(1) {
                rest = tile::whole_turns(kb, (zero, features), lanes.into());
                kb.for_(zero, rest, lanes.into(), Unroll::No, |kb, j| {
                    let (from, at) = (kb.add(from, j), kb.add(at, j));
                    let x = kb.load(q.buf, from, lanes);
                    let x = scaled(kb, x);
                    kb.store(to, at, x);
                });
            }
            kb.for_(rest, features, 1, Unroll::No, |kb, j| {
                let step = kb.mul(j, stride);
                let (from, at) = (kb.add(from, step), kb.add(at, j));
                let x = kb.load(q.buf, from, 1);
                let x = scaled(kb, x);
                kb.store(to, at, x);
            });
            let nothing = kb.num(Ty::scalar(operand), 0.0);
            kb.for_(features, depth, 1, Unroll::No, |kb, j| {
                let at = kb.add(at, j);
                kb.store(to, at, nothing);
            });
        });
        self.fill_registers(kb, u, to, depth);
    }

    /// Zeros behind the rows of a unit: registers take whole ones.
    fn fill_registers(&self, kb: &mut KernelBuilder, u: &Unit, buf: Buf, len: Reg) {
        if self.registers.is_none() {
            return;
        }
        let lanes = 2 * self.s.logits.lanes;
        let none = kb.num(Ty::vector(kb.buf_dtype(buf), lanes), 0.0);
        let rows = kb.index(self.s.rows());
        let (from, to) = (kb.mul(u.rows, len), kb.mul(rows, len));
        kb.for_(from, to, lanes.into(), Unroll::No, |kb, at| kb.store(buf, at, none));
    }

    /// Products of rows `[rows][stride]` by a panel, added up in matrix registers for the steps up to element `end` and left in memory. They start from zero or,
    /// if that is given and true, from what is there.
    fn multiply(
        &self,
        kb: &mut KernelBuilder,
        (registers, u, shape): (&Registers, &Unit, TileShape),
        (a, stride): (Buf, Reg),
        (b, column): (Buf, Reg),
        (end, later): (Reg, Option<Reg>),
        sums: amx::Place,
    ) {
        let (zero, height, depth) = (kb.index(0), kb.index(amx::ROWS), kb.index(self.s.depth()));
        let block = kb.mul(height, stride);
        let rows = amx::Rows { buf: a, at: zero, row: stride, block, step: depth };
        let panel = amx::Panel { buf: b, at: column, ahead: None };
        let steps = kb.bin(BinOp::Div, end, depth);
        registers.multiply(kb, (Group::Bf16, shape.vectors), (&rows, &panel), (u.rows, steps), (sums, later));
    }

    fn logits(&self, kb: &mut KernelBuilder, u: &Unit, block: &KeyBlock) {
        let (p, shape, m) = (self.p, self.s.logits, &self.memory);
        let (zero, depth) = (kb.index(0), kb.dim(&self.s.padded(&p.d)));
        kb.for_(zero, block.padded, shape.width(), Unroll::No, |kb, n0| {
            let key = kb.add(block.first, n0);
            let column = kb.mul(key, depth);
            if let Some(registers) = &self.registers {
                let stride = kb.index(KEYS);
                let (a, b) = ((m.queries, depth), (m.keys, column));
                return self.multiply(kb, (registers, u, shape), a, b, (depth, None), (m.logits, n0, stride));
            }
            tile::sweep_rows(kb, zero, u.rows, shape.rows, &mut |kb, row, rows| {
                let acc = tile::accumulators(kb, shape, rows.into(), None);
                let at = tile::tile_rows(kb, row, rows, depth);
                self.add_steps(kb, shape, (m.queries, &at), (m.keys, column), (&p.d, (zero, depth)), &acc);
                let stride = kb.index(KEYS);
                let places = tile::tile_places(kb, shape, (row, rows), stride, n0);
                tile::store_at(kb, m.logits, &places, &acc);
            });
        });
    }

    /// Turns the logits of a block into weights `e^(x - max)`, with the largest logit of the row so far, and brings what the rows carry up to date.
    fn weights(&mut self, kb: &mut KernelBuilder, u: &Unit, block: &KeyBlock) {
        let lanes = self.s.logits.lanes;
        let (zero, stride) = (kb.index(0), kb.index(KEYS));
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let base = kb.mul(r, stride);
            let top = self.largest(kb, u, block, r, base);
            kb.store(self.memory.block, r, top);
        });
        self.each_state(kb, &mut |kb, m, j, _| {
            let (before, block) = (kb.load(m.top, j, lanes), kb.load(m.block, j, lanes));
            let top = larger(kb, block, before);
            kb.store(m.top, j, top);
            let shift = shift(kb, top);
            kb.store(m.shift, j, shift);
            let fall = kb.sub(before, shift);
            let factor = softmax_exp(kb, fall);
            kb.store(m.factor, j, factor);
        });
        let m = &self.memory;
        // Side by side go rows, of which there are usually a multiple of so many; vectors of a row are not.
        kb.for_(zero, block.padded, lanes.into(), Unroll::No, |kb, j| {
            kb.for_(zero, u.rows, 1, Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, r| {
                let (base, shift) = (kb.mul(r, stride), kb.load(m.shift, r, 1));
                let (at, shift) = (kb.add(base, j), kb.splat(lanes, shift));
                let x = kb.load(m.logits, at, lanes);
                let x = kb.sub(x, shift);
                let e = softmax_exp(kb, x);
                kb.store(m.logits, at, e);
                if m.weights != m.logits {
                    let e = groups::to_bf16(kb, e);
                    kb.store(m.weights, at, e);
                }
            });
        });
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let base = kb.mul(r, stride);
            let nothing = kb.num(Ty::vector(DType::F32, lanes), 0.0);
            let sum = kb.var(nothing);
            kb.for_(zero, block.padded, lanes.into(), Unroll::No, |kb, j| {
                let at = kb.add(base, j);
                let (s, e) = (kb.get(sum), kb.load(m.logits, at, lanes));
                let s = kb.add(s, e);
                kb.set(sum, s);
            });
            let sum = kb.get(sum);
            let sum = kb.reduce(ReduceOp::Add, sum);
            kb.store(m.block, r, sum);
        });
        self.fill_registers(kb, u, m.weights, stride);
        self.each_state(kb, &mut |kb, m, j, _| {
            let [total, factor, block] = [m.total, m.factor, m.block].map(|buf| kb.load(buf, j, lanes));
            let total = kb.fma(total, factor, block);
            kb.store(m.total, j, total);
        });
    }

    /// The largest logit of a row in a block, after cap, mask and causality, which the logits have then too.
    fn largest(&mut self, kb: &mut KernelBuilder, u: &Unit, block: &KeyBlock, r: Reg, base: Reg) -> Reg {
        let (p, lanes, buf) = (self.p, self.s.logits.lanes, self.memory.logits);
        let zero = kb.index(0);
        let i = kb.add(u.row, r);
        // Keys of the block below this bound are visible.
        let bound = visible_keys(kb, p, i);
        let bound = kb.sub(bound, block.first);
        let bound = kb.bin(BinOp::Max, bound, zero);
        let bound = kb.bin(BinOp::Min, bound, block.padded);
        let whole = tile::whole_turns(kb, (zero, bound), lanes.into());
        let lowest = kb.num(Ty::vector(DType::F32, lanes), f64::NEG_INFINITY);
        let top = kb.var(lowest);
        let mut some = |kb: &mut KernelBuilder, j: Reg, ragged: bool| {
            let at = kb.add(base, j);
            let mut x = kb.load(buf, at, lanes);
            x = capped(kb, p, x);
            let (key, visible) = (kb.add(block.first, j), ragged.then(|| kb.sub(bound, j)));
            x = masked(kb, p, self.mask.as_deref_mut(), (&[u.b, u.h, i], key), x, visible);
            if ragged || p.softcap != 0.0 || self.mask.is_some() {
                kb.store(buf, at, x);
            }
            let t = kb.get(top);
            let t = larger(kb, x, t);
            kb.set(top, t);
        };
        kb.for_(zero, whole, lanes.into(), Unroll::No, |kb, j| some(kb, j, false));
        if p.causal.is_some() || !p.sk.modulo(&self.s.logits.width().into()).is(0) {
            kb.for_(whole, block.padded, lanes.into(), Unroll::No, |kb, j| some(kb, j, true));
        }
        let top = kb.get(top);
        largest_lane(kb, top)
    }

    /// Multiplies the sums so far by their factor and adds the values of a block times their weights.
    fn weighted_sums(&self, kb: &mut KernelBuilder, u: &Unit, block: &KeyBlock) {
        let (p, shape, m) = (self.p, self.s.values, &self.memory);
        let (zero, one, width) = (kb.index(0), kb.index(1), kb.index(shape.width()));
        // Whole steps: weights beyond the last key are zero.
        let count = if self.s.depth() > 1 {
            let (steps, depth) = (tile::ceil_div(kb, block.count, self.s.depth()), kb.index(self.s.depth()));
            kb.mul(steps, depth)
        } else {
            block.count
        };
        let panels = p.e.ceil_div(&shape.width().into());
        let (weight_stride, sum_stride) = (kb.index(KEYS), kb.dim(&(&panels * &shape.width().into())));
        let later = kb.bin(BinOp::Gt, block.first, zero);
        tile::each_panel(kb, &panels, shape, &self.s.padded(&p.sk), &mut |kb, n0, at| {
            let skipped = kb.mul(block.first, width);
            let column = kb.add(at, skipped);
            if let Some(registers) = &self.registers {
                kb.if_(later, |kb| self.scale_sums(kb, u, (sum_stride, n0)), |_| {});
                let (a, b) = ((m.weights, weight_stride), (m.values, column));
                return self.multiply(kb, (registers, u, shape), a, b, (count, Some(later)), (m.sums, n0, sum_stride));
            }
            tile::sweep_rows(kb, zero, u.rows, shape.rows, &mut |kb, row, rows| {
                let weights = tile::tile_rows(kb, row, rows, weight_stride);
                let places = tile::tile_places(kb, shape, (row, rows), sum_stride, n0);
                let acc = tile::accumulators(kb, shape, rows.into(), None);
                let factors = tile::tile_rows(kb, row, rows, one);
                kb.if_(
                    later,
                    |kb| {
                        for (i, (at, var)) in places.iter().zip(&acc).enumerate() {
                            let factor = kb.load(m.factor, factors[i / usize::from(shape.vectors)], 1);
                            let (factor, sum) = (kb.splat(shape.lanes, factor), kb.load(m.sums, *at, shape.lanes));
                            let sum = kb.mul(sum, factor);
                            kb.set(*var, sum);
                        }
                    },
                    |_| {},
                );
                self.add_steps(kb, shape, (m.weights, &weights), (m.values, column), (&p.sk, (zero, count)), &acc);
                tile::store_at(kb, m.sums, &places, &acc);
            });
        });
    }

    /// Multiplies the sums of a panel by the factors of their rows.
    fn scale_sums(&self, kb: &mut KernelBuilder, u: &Unit, (stride, n0): (Reg, Reg)) {
        let (shape, m, zero) = (self.s.values, &self.memory, kb.index(0));
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let (row, factor) = (kb.mul(r, stride), kb.load(m.factor, r, 1));
            let (row, factor) = (kb.add(row, n0), kb.splat(shape.lanes, factor));
            for v in shape.columns() {
                let v = kb.index(v);
                let at = kb.add(row, v);
                let x = kb.load(m.sums, at, shape.lanes);
                let x = kb.mul(x, factor);
                kb.store(m.sums, at, x);
            }
        });
    }

    /// Adds the steps `from..to` of sums of `k` products to the accumulators of a tile.
    fn add_steps(
        &self,
        kb: &mut KernelBuilder,
        shape: TileShape,
        (a, rows): (Buf, &[Reg]),
        (b, column): (Buf, Reg),
        (k, (from, to)): (&Dim, (Reg, Reg)),
        acc: &[Var],
    ) {
        if self.s.engine == Engine::Pairs {
            return Group::Bf16.add_steps(kb, shape, (a, rows), (b, column, None), (from, to), acc);
        }
        let (a_stride, b_stride) = (kb.index(1), kb.index(shape.width()));
        let counts = vec![None; shape.vectors.into()];
        tile::add_steps(
            kb,
            shape,
            &TileInput { a, rows, a_stride, b, column, b_stride, counts: &counts, k, ahead: None },
            (from, to),
            acc,
        );
    }

    /// Divides the sums by those of the weights.
    fn results(&self, kb: &mut KernelBuilder, u: &Unit, epilogue: &mut Epilogue<'_>) {
        let (p, shape) = (self.p, self.s.values);
        self.each_state(kb, &mut |kb, m, j, ty| {
            let (top, total) = (kb.load(m.top, j, ty.lanes), kb.load(m.total, j, ty.lanes));
            let inverse = inverse(kb, p.clear, top, total);
            kb.store(m.factor, j, inverse);
        });
        let (zero, features) = (kb.index(0), kb.dim(&p.e));
        let stride = kb.dim(&(&p.e.ceil_div(&shape.width().into()) * &shape.width().into()));
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let (i, base) = (kb.add(u.row, r), kb.mul(r, stride));
            let factor = kb.load(self.memory.factor, r, 1);
            let factor = kb.splat(shape.lanes, factor);
            kb.for_(zero, features, shape.width(), Unroll::No, |kb, n0| {
                let left = kb.sub(features, n0);
                let counts = tile::column_counts(kb, shape, &p.e, left);
                for (column, count) in shape.columns().zip(counts) {
                    let column = kb.index(column);
                    let n = kb.add(n0, column);
                    let at = kb.add(base, n);
                    let x = kb.load(self.memory.sums, at, shape.lanes);
                    let x = kb.mul(x, factor);
                    epilogue(kb, &[u.b, u.h, i], n, x, count);
                }
            });
        });
    }
}
