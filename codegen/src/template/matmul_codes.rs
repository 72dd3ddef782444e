//! Matrix product of `f32` rows by a constant weight in 4 or 8 bits.
//!
//! **Contract.** `B` is a constant in panels of codes with scales and zero points ([`crate::Packing::Codes`]); a row of a panel is decoded as
//! `(code - zero) * scale`, rounded once, which is the number that stood in the constant. From there on sums are those of
//! [`super::matmul`], to the bit.
//!
//! **Schedule.** A few rows (`FEW`) read each code once, decoded in registers on its way into the sums: such a product takes as long as its weights take
//! to arrive. For more rows a panel is decoded into scratch memory once per chunk.

use transc_ir::loops::{Buf, KernelBuilder, Reg, Unroll};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim};

use super::matmul::{self, Epilogue, GATHERED_CHUNK, Lhs, MatmulProblem, Rhs, Schedule};
use super::tile::{self, TileShape};
use crate::codes::Codes;

/// Rows that decode in registers: their sums leave room for scales and zero points.
const FEW: i64 = 2;

/// A weight in codes.
#[derive(Clone, Copy)]
pub struct Weight {
    /// Its layout.
    pub layout: Codes,
    /// The codes.
    pub codes: Buf,
    /// Scales and zero points.
    pub scales: Buf,
}

/// The schedule for `n` columns on a machine with vectors of `lanes` floats.
pub fn schedule(lanes: u16, n: &Dim) -> Schedule {
    Schedule { chunk: GATHERED_CHUNK, ..Schedule::choose(lanes, n) }
}

/// The kernel's name under a schedule.
pub fn name(s: Schedule, c: &Codes) -> String {
    format!("matmul_w{}g{}_m{}n{}c{}", c.bits, c.group, s.tile.rows, s.tile.width(), s.chunk)
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`], and the problem has no batch.
pub fn build(kb: &mut KernelBuilder, p: &MatmulProblem, s: Schedule, lhs: &mut Lhs<'_>, w: Weight, epilogue: &mut Epilogue<'_>) {
    let few = p.m.as_const().map(|m| m <= FEW);
    let (m, most) = (kb.dim(&p.m), kb.index(FEW));
    if few != Some(false) {
        let small = kb.bin(BinOp::Le, m, most);
        kb.if_(small, |kb| few_rows(kb, p, s.tile, lhs, w, epilogue), |_| {});
    }
    if few != Some(true) {
        let width = s.tile.width();
        let mut gather = |kb: &mut KernelBuilder, _: &[Reg], n0: Reg, panel: Buf| {
            let len = kb.index(width);
            let which = kb.bin(BinOp::Div, n0, len);
            each_row(kb, s.tile, w, which, &mut |kb, k, row| {
                let len = kb.index(width);
                let to = kb.mul(k, len);
                for (x, at) in row.iter().zip(s.tile.columns()) {
                    let at = kb.index(at);
                    let to = kb.add(to, at);
                    kb.store(panel, to, *x);
                }
            });
        };
        let large = kb.bin(BinOp::Gt, m, most);
        kb.if_(large, |kb| matmul::build(kb, p, s, lhs, &mut Rhs::Gathered(&mut gather), epilogue), |_| {});
    }
}

/// The product of at most [`FEW`] rows: a unit is a panel.
fn few_rows(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    shape: TileShape,
    lhs: &mut Lhs<'_>,
    w: Weight,
    epilogue: &mut Epilogue<'_>,
) {
    let stage = kb.local(DType::F32, Dim::from(shape.width() * FEW));
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, panel| {
        let width = kb.index(shape.width());
        let n0 = kb.mul(panel, width);
        let (zero, m_end) = (kb.index(0), kb.dim(&p.m));
        tile::sweep_rows(kb, zero, m_end, FEW as u16, &mut |kb, row, rows| {
            let offsets: Vec<Reg> = (0..i64::from(rows))
                .map(|r| {
                    let r = kb.index(r);
                    let m = kb.add(row, r);
                    (lhs.row)(kb, &[], m)
                })
                .collect();
            let acc = tile::accumulators(kb, shape, rows.into(), None);
            each_row(kb, shape, w, panel, &mut |kb, k, weights| {
                let stride = kb.dim(&lhs.k_stride);
                let k = kb.mul(k, stride);
                for (offset, acc) in offsets.iter().zip(acc.chunks(shape.vectors.into())) {
                    let at = kb.add(*offset, k);
                    let x = kb.load(lhs.buf, at, 1);
                    let x = kb.splat(shape.lanes, x);
                    for (w, var) in weights.iter().zip(acc) {
                        let sum = kb.get(*var);
                        let sum = kb.fma(x, *w, sum);
                        kb.set(*var, sum);
                    }
                }
            });
            let (start, rows) = (kb.index(0), kb.index(rows.into()));
            tile::store_accumulators(kb, shape, &acc, (stage, start));
            let end = kb.add(row, rows);
            tile::hand_on(kb, shape, stage, (row, end), (n0, &p.n), &mut |kb, m, n, x, count| epilogue(kb, &[], m, n, x, count));
        });
    });
}

/// Calls `body` with the decoded vectors of every row of a panel, in ascending order.
fn each_row(
    kb: &mut KernelBuilder,
    shape: TileShape,
    w: Weight,
    panel: Reg,
    body: &mut dyn FnMut(&mut KernelBuilder, Reg, &[Reg]),
) {
    let (bits, rows, group) = (w.layout.bits, w.layout.matrix.k as i64, w.layout.group as i64);
    let per_byte = (8 / bits) as i64;
    let (groups, bytes, width) = ((rows + group - 1) / group, (rows + per_byte - 1) / per_byte, shape.width());
    let (codes_len, scales_len) = (kb.index(bytes * width), kb.index(groups * 2 * width));
    let (codes_at, scales_at) = (kb.mul(panel, codes_len), kb.mul(panel, scales_len));
    let (zero, end) = (kb.index(0), kb.index(groups));
    kb.for_(zero, end, 1, Unroll::No, |kb, g| {
        let len = kb.index(2 * width);
        let at = kb.mul(g, len);
        let at = kb.add(scales_at, at);
        let load = |kb: &mut KernelBuilder, from: i64| {
            let from = kb.index(from);
            let at = kb.add(at, from);
            kb.load(w.scales, at, shape.lanes)
        };
        let scale: Vec<Reg> = shape.columns().map(|v| load(kb, v)).collect();
        let offset: Vec<Reg> = shape.columns().map(|v| load(kb, width + v)).collect();
        // The codes of one row, or of two that share bytes.
        let bytes_of = |kb: &mut KernelBuilder, row: Reg| -> Vec<Reg> {
            let len = kb.index(width);
            let at = kb.mul(row, len);
            let at = kb.add(codes_at, at);
            let one = |v: i64| {
                let v = kb.index(v);
                let at = kb.add(at, v);
                kb.load(w.codes, at, shape.lanes)
            };
            shape.columns().map(one).collect()
        };
        let decode = |kb: &mut KernelBuilder, codes: &[Reg]| -> Vec<Reg> {
            let one = |((code, scale), offset): ((&Reg, &Reg), &Reg)| {
                let x = kb.cast(DType::F32, *code);
                let x = kb.sub(x, *offset);
                kb.mul(x, *scale)
            };
            codes.iter().zip(&scale).zip(&offset).map(one).collect()
        };
        let (len, all) = (kb.index(group), kb.index(rows));
        let start = kb.mul(g, len);
        let stop = kb.add(start, len);
        let stop = kb.bin(BinOp::Min, stop, all);
        if bits == 8 {
            kb.for_(start, stop, 1, Unroll::Auto, |kb, k| {
                let codes = bytes_of(kb, k);
                let weights = decode(kb, &codes);
                body(kb, k, &weights);
            });
            return;
        }
        let half = |kb: &mut KernelBuilder, bytes: &[Reg], op: BinOp, by: i64| -> Vec<Reg> {
            let by = kb.lit(Literal::from_i64(DType::I32, by));
            let by = kb.splat(shape.lanes, by);
            let one = |b: &Reg| {
                let wide = kb.cast(DType::I32, *b);
                kb.bin(op, wide, by)
            };
            bytes.iter().map(one).collect()
        };
        let two = kb.index(2);
        let pairs = kb.bin(BinOp::Div, stop, two);
        let even = kb.mul(pairs, two);
        kb.for_(start, even, 2, Unroll::Auto, |kb, k| {
            let (two, one) = (kb.index(2), kb.index(1));
            let row = kb.bin(BinOp::Div, k, two);
            let bytes = bytes_of(kb, row);
            for (op, by, next) in [(BinOp::And, 15, false), (BinOp::Shr, 4, true)] {
                let codes = half(kb, &bytes, op, by);
                let weights = decode(kb, &codes);
                let k = if next { kb.add(k, one) } else { k };
                body(kb, k, &weights);
            }
        });
        if rows % 2 == 1 {
            kb.for_(even, stop, 1, Unroll::No, |kb, k| {
                let bytes = bytes_of(kb, pairs);
                let codes = half(kb, &bytes, BinOp::And, 15);
                let weights = decode(kb, &codes);
                body(kb, k, &weights);
            });
        }
    });
}
