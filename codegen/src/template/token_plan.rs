//! The plan of token merging by bipartite soft matching (Bolya et al. 2023) in one kernel; no matrix of similarities in memory.
//!
//! **Contract.** Features `[B, N, D]` in `f32` at any strides, `N` constant; the plan as `ir`'s op `token_plan` with planner `tome` states it, for at
//! least one token that goes. Sums of products run in order of `D`; ties go to the lowest index.
//!
//! **Schedule.** A unit is one image: tokens at even and at odd positions are packed into panels `[D][width]` and brought to length one; register
//! tiles of similarities are folded to each even token's best partner; ranks are counted, which is a sort by a total order.

use std::fmt;

use transc_ir::loops::{Buf, Inst, KernelBuilder, ReduceOp, Reg, Ty, Unroll};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::{DType, Dim};

use super::tile::{self, Source, TileInput, TileShape};

/// Least norm that a token is divided by.
const TINY: f64 = 1e-12;

/// The sizes of a plan.
#[derive(Clone, Debug)]
pub struct PlanProblem {
    /// Images.
    pub b: Dim,
    /// Tokens.
    pub n: i64,
    /// Features.
    pub d: Dim,
    /// Tokens that go.
    pub remove: i64,
    /// Leading tokens that stay.
    pub protect: i64,
}

impl PlanProblem {
    /// First position and number of the unprotected tokens of a parity.
    fn half(&self, parity: i64) -> (i64, i64) {
        let first = self.protect + (self.protect + parity) % 2;
        (first, (self.n - first + 1) / 2)
    }
}

/// How a plan is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of the similarities.
    pub tile: TileShape,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token_plan_tome_f32_m{}n{}", self.tile.rows, self.tile.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` floats.
    pub fn choose(lanes: u16, p: &PlanProblem) -> Schedule {
        Schedule { tile: TileShape::choose(lanes, &p.half(1).1.into()) }
    }
}

/// The features in memory.
pub struct Features {
    /// Where they lie.
    pub buf: Buf,
    /// Element offset of the first.
    pub offset: Dim,
    /// Distance along image, token and feature, in elements.
    pub strides: [Dim; 3],
}

/// Tokens of one parity in panels `[D][width]`.
struct Half {
    buf: Buf,
    first: i64,
    len: i64,
}

/// Scratch memory of one image.
struct Scratch {
    /// Similarities of a block of rows.
    rows: Buf,
    /// Similarity of each even token's best partner.
    best: Buf,
    /// That partner.
    partner: Buf,
}

/// Builds the kernel's body, which writes `plan[B, N]`. The kernel's extent must be `B`.
pub fn build(kb: &mut KernelBuilder, p: &PlanProblem, s: Schedule, x: &Features, plan: Buf) {
    let width = s.tile.width();
    let panels = |len: i64| (len + width - 1) / width;
    let halves = [0, 1].map(|parity| {
        let (first, len) = p.half(parity);
        Half { buf: kb.local(DType::F32, &Dim::from(panels(len) * width) * &p.d), first, len }
    });
    let [even, odd] = &halves;
    let scratch = Scratch {
        rows: kb.local(DType::F32, (i64::from(s.tile.rows) * panels(odd.len) * width).into()),
        best: kb.local(DType::F32, even.len.into()),
        partner: kb.local(DType::I64, even.len.into()),
    };
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, image| {
        let (offset, stride) = (kb.dim(&x.offset), kb.dim(&x.strides[0]));
        let start = kb.mul(image, stride);
        let start = kb.add(offset, start);
        for half in &halves {
            unit_panels(kb, p, s.tile, x, start, half);
        }
        let (zero, end) = (kb.index(0), kb.index(even.len));
        tile::sweep_rows(kb, zero, end, s.tile.rows, &mut |kb, row, rows| {
            similarities(kb, p, s.tile, (even, odd), &scratch, (row, rows));
            for r in 0..i64::from(rows) {
                let a = kb.index(r);
                let a = kb.add(row, a);
                best_partner(kb, s.tile, odd, &scratch, r, a);
            }
        });
        let n = kb.index(p.n);
        let out = kb.mul(image, n);
        write_plan(kb, p, (even, odd), &scratch, (plan, out));
    });
}

/// Packs one half of the tokens and brings each to length one.
fn unit_panels(kb: &mut KernelBuilder, p: &PlanProblem, shape: TileShape, x: &Features, start: Reg, half: &Half) {
    let width = shape.width();
    let step = &x.strides[1] * &Dim::from(2);
    let first = kb.dim(&(&x.strides[1] * &Dim::from(half.first)));
    let base = kb.add(start, first);
    let (zero, end, features, panel) = (kb.index(0), kb.index(half.len), kb.dim(&p.d), kb.dim(&p.d));
    kb.for_(zero, end, width, Unroll::No, |kb, n0| {
        let at = kb.mul(n0, panel);
        let src = Source { buf: x.buf, base, k_stride: &x.strides[2], n_stride: &step };
        tile::pack_panel(kb, shape, (&p.d, &half.len.into()), &src, n0, (half.buf, at));
        for column in shape.columns() {
            let column = kb.index(column);
            let column = kb.add(at, column);
            let ty = Ty::vector(DType::F32, shape.lanes);
            let (none, one, tiny) = (kb.num(ty, 0.0), kb.num(ty, 1.0), kb.num(ty, TINY));
            let square = kb.var(none);
            let row = |kb: &mut KernelBuilder, k: Reg| {
                let w = kb.index(width);
                let k = kb.mul(k, w);
                kb.add(column, k)
            };
            kb.for_(zero, features, 1, Unroll::Auto, |kb, k| {
                let at = row(kb, k);
                let v = kb.load(half.buf, at, shape.lanes);
                let sum = kb.get(square);
                let sum = kb.fma(v, v, sum);
                kb.set(square, sum);
            });
            let norm = kb.get(square);
            let norm = kb.un(UnOp::Sqrt, norm);
            let norm = kb.bin(BinOp::Max, norm, tiny);
            let inverse = kb.bin(BinOp::Div, one, norm);
            kb.for_(zero, features, 1, Unroll::Auto, |kb, k| {
                let at = row(kb, k);
                let v = kb.load(half.buf, at, shape.lanes);
                let v = kb.mul(v, inverse);
                kb.store(half.buf, at, v);
            });
        }
    });
}

/// Similarities of a block of even tokens to all odd tokens.
fn similarities(
    kb: &mut KernelBuilder,
    p: &PlanProblem,
    shape: TileShape,
    (even, odd): (&Half, &Half),
    scratch: &Scratch,
    (row, rows): (Reg, u16),
) {
    let width = kb.index(shape.width());
    let panel = kb.dim(&(&Dim::from(shape.width()) * &p.d));
    let padded = (odd.len + shape.width() - 1) / shape.width() * shape.width();
    let a_rows: Vec<Reg> = (0..i64::from(rows))
        .map(|r| {
            let r = kb.index(r);
            let a = kb.add(row, r);
            let (block, column) = (kb.bin(BinOp::Div, a, width), kb.bin(BinOp::Rem, a, width));
            let block = kb.mul(block, panel);
            kb.add(block, column)
        })
        .collect();
    let (zero, end) = (kb.index(0), kb.index(padded));
    kb.for_(zero, end, shape.width(), Unroll::No, |kb, n0| {
        let d = kb.dim(&p.d);
        let column = kb.mul(n0, d);
        let counts = vec![None; shape.vectors.into()];
        let input = TileInput {
            a: even.buf,
            rows: &a_rows,
            a_stride: width,
            b: odd.buf,
            column,
            b_stride: width,
            counts: &counts,
            k: &p.d,
            ahead: None,
        };
        let acc = tile::accumulate(kb, shape, &input);
        for (r, acc) in acc.chunks(shape.vectors.into()).enumerate() {
            for (var, column) in acc.iter().zip(shape.columns()) {
                let at = kb.index(r as i64 * padded + column);
                let at = kb.add(n0, at);
                let v = kb.get(*var);
                kb.store(scratch.rows, at, v);
            }
        }
    });
}

/// The largest similarity of row `r` of the block, and the first column that has it.
fn best_partner(kb: &mut KernelBuilder, shape: TileShape, odd: &Half, scratch: &Scratch, r: i64, a: Reg) {
    let lanes = shape.lanes;
    let padded = (odd.len + shape.width() - 1) / shape.width() * shape.width();
    let (floats, ints) = (Ty::vector(DType::F32, lanes), Ty::vector(DType::I64, lanes));
    let (least, nowhere, end) = (kb.num(floats, f64::NEG_INFINITY), kb.num(ints, 0.0), kb.num(ints, odd.len as f64));
    let (best, at_best) = (kb.var(least), kb.var(nowhere));
    let lane = kb.push(Inst::Lanes(ints));
    let (from, to) = (kb.index(0), kb.index(padded));
    kb.for_(from, to, lanes.into(), Unroll::No, |kb, j| {
        let row = kb.index(r * padded);
        let at = kb.add(row, j);
        let v = kb.load(scratch.rows, at, lanes);
        let first = kb.splat(lanes, j);
        let column = kb.add(first, lane);
        let (old, old_at) = (kb.get(best), kb.get(at_best));
        // False for NaN, and for the padding.
        let (larger, real) = (kb.bin(BinOp::Gt, v, old), kb.bin(BinOp::Lt, column, end));
        let take = kb.bin(BinOp::And, larger, real);
        let (new, new_at) = (kb.select(take, v, old), kb.select(take, column, old_at));
        kb.set(best, new);
        kb.set(at_best, new_at);
    });
    let (v, column) = (kb.get(best), kb.get(at_best));
    let top = kb.reduce(ReduceOp::Max, v);
    let tops = kb.splat(lanes, top);
    let is_top = kb.bin(BinOp::Eq, v, tops);
    let column = kb.select(is_top, column, end);
    let column = kb.reduce(ReduceOp::Min, column);
    kb.store(scratch.best, a, top);
    kb.store(scratch.partner, a, column);
}

/// Numbers the groups: protected tokens, even tokens that stay, odd tokens.
fn write_plan(kb: &mut KernelBuilder, p: &PlanProblem, (even, odd): (&Half, &Half), scratch: &Scratch, (plan, out): (Buf, Reg)) {
    let (zero, one) = (kb.index(0), kb.index(1));
    let first_odd = kb.index(p.protect + even.len - p.remove);
    let protected = kb.index(p.protect);
    kb.for_(zero, protected, 1, Unroll::No, |kb, j| {
        let at = kb.add(out, j);
        kb.store(plan, at, j);
    });
    let position = |kb: &mut KernelBuilder, half: &Half, i: Reg| {
        let (two, first) = (kb.index(2), kb.index(half.first));
        let i = kb.mul(i, two);
        let i = kb.add(first, i);
        kb.add(out, i)
    };
    let end = kb.index(odd.len);
    kb.for_(zero, end, 1, Unroll::No, |kb, j| {
        let at = position(kb, odd, j);
        let group = kb.add(first_odd, j);
        kb.store(plan, at, group);
    });
    let kept = kb.var(zero);
    let end = kb.index(even.len);
    kb.for_(zero, end, 1, Unroll::No, |kb, a| {
        let mine = kb.load(scratch.best, a, 1);
        let before = kb.var(zero);
        kb.for_(zero, end, 1, Unroll::Auto, |kb, c| {
            let other = kb.load(scratch.best, c, 1);
            let (larger, equal) = (kb.bin(BinOp::Gt, other, mine), kb.bin(BinOp::Eq, other, mine));
            let earlier = kb.bin(BinOp::Lt, c, a);
            let tie = kb.bin(BinOp::And, equal, earlier);
            let ahead = kb.bin(BinOp::Or, larger, tie);
            let ahead = kb.cast(DType::I64, ahead);
            let count = kb.get(before);
            let count = kb.add(count, ahead);
            kb.set(before, count);
        });
        let (rank, removed) = (kb.get(before), kb.index(p.remove));
        let goes = kb.bin(BinOp::Lt, rank, removed);
        let partner = kb.load(scratch.partner, a, 1);
        let there = kb.add(first_odd, partner);
        let number = kb.get(kept);
        let here = if p.protect > 0 { number } else { kb.sub(rank, removed) };
        let here = kb.add(protected, here);
        let group = kb.select(goes, there, here);
        let at = position(kb, even, a);
        kb.store(plan, at, group);
        let step = kb.select(goes, zero, one);
        let next = kb.add(number, step);
        kb.set(kept, next);
    });
}
