//! Matrix product `C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]` of `bf16` by a constant, in `f32`.
//!
//! **Contract.** `A` is `bf16` or rounded to it here; `B` is packed in panels of pairs along `k` ([`crate::Panels`], group 2). One
//! accumulator per element takes the pairs in ascending order, the odd element of a pair first, one rounding to nearest even per element, as
//! `vdpbf16ps` does: products of `bf16` are exact in `f32`. Every form below gives the same sums, denormals apart, so neither the target nor the
//! number of rows changes a result. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** Units and their order as [`super::matmul`]. Each thread packs the rows of a chunk once. With the instruction, rows are pairs that it
//! takes as they lie. Without it, rows are `f32`, the two of each pair swapped, and a panel is widened to `f32` before whole tiles of rows; the few rows
//! that are left widen it in registers, since they would not pay for the panel. A panel is worked off in blocks along `k`; the sums of the rows wait in
//! memory between blocks.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Ty, Unroll, Var};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim};

use super::ahead::{LINES, ReadAhead};
use super::groups::{self, Group};
use super::matmul::{Epilogue, Lhs, MatmulProblem, Schedule, Weight, each_panel};
use super::sums::Sums;
use super::tile::{self, Part, TileInput, TileShape};

/// Tiles of rows from which a panel is widened in memory.
const TILES: i64 = 4;

/// Bytes of a block of a panel, as it is read.
const BLOCK_BYTES: i64 = 48 * 1024;

/// The kernel's name under a schedule.
pub fn name(s: Schedule) -> String {
    format!("matmul_bf16_m{}n{}c{}", s.tile.rows, s.tile.width(), s.chunk)
}

const PAIR: i64 = Group::Bf16.size();

/// The element type under which a kernel reads the packed weight: pairs, or the words that they fill.
pub fn weight_type(has_instruction: bool) -> DType {
    if has_instruction { DType::Bf16 } else { DType::U32 }
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`]. The weight has elements of [`weight_type`].
pub fn build(kb: &mut KernelBuilder, p: &MatmulProblem, s: Schedule, lhs: &mut Lhs<'_>, b: &Weight, epilogue: &mut Epilogue<'_>) {
    let shape = s.tile;
    let native = kb.buf_dtype(b.buf) == DType::Bf16;
    let pair_count = p.k.ceil_div(&PAIR.into());
    let (width, lanes) = (Dim::from(shape.width()), Dim::from(i64::from(shape.lanes)));
    let row_len = &p.k.ceil_div(&lanes) * &lanes;
    // Distance between panels, in elements of the buffer.
    let panel_len = &(&pair_count * &width) * &Dim::from(if native { PAIR } else { 1 });
    let rows = Rows {
        buf: kb.local(if native { DType::Bf16 } else { DType::F32 }, &row_len * &Dim::from(s.chunk)),
        len: &row_len,
        chunk: s.chunk,
    };
    let block = BLOCK_BYTES / (shape.width() * if native { 2 } else { 4 }) / 8 * 8;
    let wide = (!native).then(|| kb.local(DType::F32, &width * &Dim::from(block)));
    let sums = Sums::new(kb, s);
    let n_panels = p.n.ceil_div(&width);
    // Both closures address rows of the left operand.
    let lhs = std::cell::RefCell::new(lhs);
    let mut pack = |kb: &mut KernelBuilder, flat_batch: Reg, range: (Reg, Reg)| {
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        rows.pack(kb, p, shape, &mut lhs.borrow_mut(), &batch, range);
    };
    each_panel(kb, p, s, Some(&mut pack), &mut |kb, flat_batch, panel, (m0, m1)| {
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        let panel_width = kb.dim(&width);
        let n0 = kb.mul(panel, panel_width);
        let panels = kb.dim(&n_panels);
        let first = kb.mul(flat_batch, panels);
        let which = if b.batched { kb.add(first, panel) } else { panel };
        let len = kb.dim(&panel_len);
        let column = kb.mul(which, len);
        let steps = &pair_count * &Dim::from(PAIR);
        if let Some(wide) = wide {
            let (tile_rows, enough) = (kb.index(shape.rows.into()), kb.index(TILES * i64::from(shape.rows)));
            let span = kb.sub(m1, m0);
            let many = kb.bin(BinOp::Ge, span, enough);
            let whole = kb.bin(BinOp::Div, span, tile_rows);
            let whole = kb.mul(whole, tile_rows);
            let whole = kb.add(m0, whole);
            let mut in_tiles = |kb: &mut KernelBuilder, from: Reg, to: Reg, all: bool| {
                widen(kb, shape, (b.buf, column), wide, (from, to));
                let len = kb.sub(to, from);
                kb.for_(m0, whole, shape.rows.into(), Unroll::No, |kb, row| {
                    let at = rows.offsets(kb, row, shape.rows);
                    let at: Vec<Reg> = at.into_iter().map(|at| kb.add(at, from)).collect();
                    let (start, one) = (kb.index(0), kb.index(1));
                    let input = TileInput {
                        a: rows.buf,
                        rows: &at,
                        a_stride: one,
                        b: wide,
                        column: start,
                        b_stride: panel_width,
                        counts: &vec![None; shape.vectors.into()],
                        k: &steps,
                        ahead: None,
                    };
                    let place = sums.at(kb, m0, row);
                    let part = Part { from: start, to: len, sums: (!all).then_some(place) };
                    let acc = tile::accumulate_part(kb, shape, &input, part);
                    tile::store_accumulators(kb, shape, &acc, place);
                });
            };
            kb.if_(many, |kb| sums.in_blocks(kb, (m0, whole), &steps, block, &mut in_tiles), |_| {});
            let from = kb.select(many, whole, m0);
            tile::sweep_rows(kb, from, m1, shape.rows / 2, &mut |kb, row, n| {
                let at = rows.offsets(kb, row, n);
                let acc = dot_words(kb, shape, (rows.buf, &at), (b.buf, column), &pair_count);
                let place = sums.at(kb, m0, row);
                tile::store_accumulators(kb, shape, &acc, place);
            });
        } else {
            let next = kb.add(column, len);
            let next = ReadAhead::new(kb, (b.buf, next), (shape.width(), Group::Bf16.step(), LINES), ((m0, m1), shape.rows));
            sums.in_blocks(kb, (m0, m1), &steps, block, &mut |kb, from, to, all| {
                tile::sweep_rows(kb, m0, m1, shape.rows, &mut |kb, row, n| {
                    let at = rows.offsets(kb, row, n);
                    let place = sums.at(kb, m0, row);
                    let ahead = next.tile(kb, row, (from, to));
                    b.touched.ask(kb, (&p.m, &p.n), (row, n), (n0, shape.width()));
                    let acc = tile::accumulators(kb, shape, n.into(), (!all).then_some(place));
                    Group::Bf16.add_steps(kb, shape, (rows.buf, &at), (b.buf, column, Some(ahead)), (from, to), &acc);
                    tile::store_accumulators(kb, shape, &acc, place);
                });
            });
        }
        tile::hand_on(kb, shape, sums.buf, (m0, m1), (n0, &p.n), &mut |kb, m, n, x, count| epilogue(kb, &batch, m, n, x, count));
    });
}

/// The rows of a chunk as the tiles read them: as they are for the instruction, else in `f32` with the elements of each pair swapped; zeros beyond
/// the end.
struct Rows<'a> {
    buf: Buf,
    /// Elements of a row, a multiple of the lanes.
    len: &'a Dim,
    /// Rows of a chunk.
    chunk: i64,
}

impl Rows<'_> {
    /// Where `n` rows from one on start.
    fn offsets(&self, kb: &mut KernelBuilder, row: Reg, n: u16) -> Vec<Reg> {
        let (chunk, len) = (kb.index(self.chunk), kb.dim(self.len));
        let first = kb.bin(BinOp::Rem, row, chunk);
        tile::tile_rows(kb, first, n, len)
    }

    fn pack(
        &self,
        kb: &mut KernelBuilder,
        p: &MatmulProblem,
        shape: TileShape,
        lhs: &mut Lhs<'_>,
        batch: &[Reg],
        (m0, m1): (Reg, Reg),
    ) {
        let native = kb.buf_dtype(self.buf) == DType::Bf16;
        kb.for_(m0, m1, 1, Unroll::No, |kb, m| {
            let from = (lhs.row)(kb, batch, m);
            let to = self.offsets(kb, m, 1)[0];
            let (zero, k_end) = (kb.index(0), kb.dim(&p.k));
            if lhs.k_stride.is(1) {
                let step = |kb: &mut KernelBuilder, k: Reg, count: Option<Reg>| {
                    let (from, to) = (kb.add(from, k), kb.add(to, k));
                    let x = kb.load_part(lhs.buf, from, shape.lanes, count);
                    let mut x = if native { groups::to_bf16(kb, x) } else { kb.cast(DType::Bf16, x) };
                    if !native {
                        x = kb.cast(DType::F32, x);
                        x = kb.push(Inst::Shuffle(x, x, (0..shape.lanes).map(|i| i ^ 1).collect()));
                    }
                    kb.store(self.buf, to, x);
                };
                let width = kb.index(shape.lanes.into());
                let turns = kb.bin(BinOp::Div, k_end, width);
                let main = kb.mul(turns, width);
                kb.for_(zero, main, shape.lanes.into(), Unroll::No, |kb, k| step(kb, k, None));
                if !p.k.modulo(&i64::from(shape.lanes).into()).is(0) {
                    let left = kb.sub(k_end, main);
                    let some = kb.bin(BinOp::Gt, left, zero);
                    kb.if_(some, |kb| step(kb, main, Some(left)), |_| {});
                }
                return;
            }
            let (one, stride, end) = (kb.index(1), kb.dim(&lhs.k_stride), kb.dim(self.len));
            let nothing = kb.num(Ty::scalar(kb.buf_dtype(self.buf)), 0.0);
            kb.for_(k_end, end, 1, Unroll::No, |kb, k| {
                let to = kb.add(to, k);
                kb.store(self.buf, to, nothing);
            });
            if !native && !p.k.modulo(&PAIR.into()).is(0) {
                // The last element may go one further; where it would have been is nothing.
                let last = kb.sub(k_end, one);
                let to = kb.add(to, last);
                kb.store(self.buf, to, nothing);
            }
            kb.for_(zero, k_end, 1, Unroll::Auto, |kb, k| {
                let at = kb.mul(k, stride);
                let from = kb.add(from, at);
                let x = kb.load(lhs.buf, from, 1);
                let x = kb.cast(DType::Bf16, x);
                let (x, place) = if native { (x, k) } else { (kb.cast(DType::F32, x), kb.bin(BinOp::Xor, k, one)) };
                let to = kb.add(to, place);
                kb.store(self.buf, to, x);
            });
        });
    }
}

/// The two `f32` of every word: the odd elements, then the even ones.
fn split(kb: &mut KernelBuilder, words: Reg) -> [Reg; 2] {
    let ty = kb.ty(words);
    let constant = |kb: &mut KernelBuilder, v: i64| {
        let v = kb.lit(Literal::from_i64(DType::U32, v));
        kb.splat(ty.lanes, v)
    };
    let (mask, half) = (constant(kb, 0xffff_0000), constant(kb, 16));
    let odd = kb.bin(BinOp::And, words, mask);
    let even = kb.bin(BinOp::Shl, words, half);
    [odd, even].map(|x| kb.push(Inst::Bitcast(DType::F32, x)))
}

/// The words of one pair of rows of a panel.
fn load_words(kb: &mut KernelBuilder, shape: TileShape, (b, column): (Buf, Reg), pair: Reg) -> Vec<Reg> {
    let width = kb.index(shape.width());
    let at = kb.mul(pair, width);
    let at = kb.add(column, at);
    let load = |v: i64| {
        let v = kb.index(v);
        let at = kb.add(at, v);
        kb.load(b, at, shape.lanes)
    };
    shape.columns().map(load).collect()
}

/// Writes a block of a panel in `f32`, one row per element of `k`, the two of a pair swapped.
fn widen(kb: &mut KernelBuilder, shape: TileShape, b: (Buf, Reg), wide: Buf, (from, to): (Reg, Reg)) {
    kb.for_(from, to, PAIR, Unroll::No, |kb, k| {
        let two = kb.index(PAIR);
        let pair = kb.bin(BinOp::Div, k, two);
        let words = load_words(kb, shape, b, pair);
        let width = kb.index(shape.width());
        let first = kb.sub(k, from);
        let first = kb.mul(first, width);
        for (word, at) in words.into_iter().zip(shape.columns()) {
            let at = kb.index(at);
            let mut to = kb.add(first, at);
            for x in split(kb, word) {
                kb.store(wide, to, x);
                to = kb.add(to, width);
            }
        }
    });
}

/// A tile of few rows by words.
fn dot_words(kb: &mut KernelBuilder, shape: TileShape, (a, rows): (Buf, &[Reg]), b: (Buf, Reg), pairs: &Dim) -> Vec<Var> {
    let acc = tile::accumulators(kb, shape, rows.len(), None);
    let (zero, end) = (kb.index(0), kb.dim(pairs));
    kb.for_(zero, end, 1, Unroll::Auto, |kb, pair| {
        let words = load_words(kb, shape, b, pair);
        let halves: Vec<[Reg; 2]> = words.into_iter().map(|w| split(kb, w)).collect();
        let two = kb.index(PAIR);
        let k = kb.mul(pair, two);
        for (row, acc) in rows.iter().zip(acc.chunks(shape.vectors.into())) {
            let at = kb.add(*row, k);
            for half in 0..2 {
                let place = kb.index(half);
                let place = kb.add(at, place);
                let x = kb.load(a, place, 1);
                let x = kb.splat(shape.lanes, x);
                for (w, var) in halves.iter().zip(acc) {
                    let sum = kb.get(*var);
                    let sum = kb.fma(x, w[half as usize], sum);
                    kb.set(*var, sum);
                }
            }
        }
    });
    acc
}
