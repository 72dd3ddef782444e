//! Sparse products: how the activation becomes a panel, and what becomes of the sums, with rows and columns exchanged or not.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::Dim;

use super::bytes::{self, Strip};
use super::matmul_int8::{Epilogue, RowOffset};
use super::spmm::{Bytes, Problem, Schedule, VECTORS, clipped};
use super::tile::{self, TileShape};
use super::transpose::transpose;

impl Schedule {
    /// Which four rows of a tile stand at place `j` of a row of the panel, such that unpacking brings them into order.
    fn quad_at(self, j: u16) -> u16 {
        let per_vector = self.lanes / 4;
        if self.words {
            let (load, j) = (j / (2 * per_vector), j % (2 * per_vector));
            load * 2 * per_vector + j % 2 * per_vector + j / 2
        } else {
            j % 4 * per_vector + j / 4
        }
    }
}

/// Rows of the activation by which they are asked for before they are copied, since they are far apart.
const ROWS_AHEAD: i64 = 16;

/// Stores the bytes of a strip, `[column][row]`, where they belong, after a look at their tables.
pub(super) fn store_bytes(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    b: &Bytes<'_>,
    ((from, scratch), m0, n0): ((Buf, Buf), Reg, Reg),
) {
    let (m_end, width) = (kb.dim(p.m), kb.index(s.rows()));
    let rows_left = kb.sub(m_end, m0);
    if !s.turned_out {
        let strip = Strip { out: b.out, n: p.n, width: s.strip() };
        strip.store(kb, (from, scratch), b.table, (m0, rows_left), n0);
        return;
    }
    let (zero, columns) = (kb.index(0), kb.index(p.n));
    let columns_left = kb.sub(columns, n0);
    let columns_left = kb.bin(BinOp::Min, columns_left, width);
    let count = clipped(kb, p.m, s, rows_left, (zero, s.rows()));
    kb.for_(zero, columns_left, 1, Unroll::No, |kb, c| {
        let (at, n) = (kb.mul(c, width), kb.add(n0, c));
        let y = bytes::load(kb, (from, at), s.rows(), (b.table, n));
        let at = kb.mul(n, m_end);
        let at = kb.add(at, m0);
        match count {
            Some(count) => kb.store_count(b.out, at, y, count),
            None => kb.store(b.out, at, y),
        }
    });
}

/// Copies columns `m0..` of an activation `[k, m]` into the panel; bytes in the order of [`Schedule::quad_at`].
pub(super) fn copy_panel(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, m0: Reg, row: &mut RowOffset<'_>) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let (zero, end, stride, m_end) = (kb.index(0), kb.index(p.k), kb.index(rows), kb.dim(p.m));
    let left = kb.sub(m_end, m0);
    kb.for_(zero, end, 1, Unroll::No, |kb, k| {
        let ahead = kb.index(ROWS_AHEAD);
        let ahead = kb.add(k, ahead);
        let (from, ahead, to) = (row(kb, k), row(kb, ahead), kb.mul(k, stride));
        let (from, ahead) = (kb.add(from, m0), kb.add(ahead, m0));
        kb.prefetch(p.a, ahead);
        let width = if s.int8 { rows } else { lanes };
        for at in (0..rows).step_by(width as usize) {
            let at = kb.index(at);
            let (from, to) = (kb.add(from, at), kb.add(to, at));
            let count = clipped(kb, p.m, s, left, (at, width));
            let mut x = match count {
                Some(c) => kb.load_count(p.a, from, width as u16, c),
                None => kb.load(p.a, from, width as u16),
            };
            if s.int8 {
                let picks = (0..s.lanes).flat_map(|j| (0..4).map(move |i| 4 * s.quad_at(j) + i)).collect();
                x = kb.push(Inst::Shuffle(x, x, picks));
                x = kb.cast(s.dtype(), x);
            }
            kb.store(panel, to, x);
        }
    });
}

/// Copies the rows `m0..` of the activation into the panel `[k][rows]`. Rows beyond the end repeat the last one.
pub(super) fn turn_panel(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    (panel, scratch): (Buf, Buf),
    m0: Reg,
    row: &mut RowOffset<'_>,
) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let (zero, one, m_end) = (kb.index(0), kb.index(1), kb.dim(p.m));
    let last = kb.sub(m_end, one);
    let mut start_of = |kb: &mut KernelBuilder, r: Reg| {
        let m = kb.add(m0, r);
        let m = kb.bin(BinOp::Min, m, last);
        row(kb, m)
    };
    // Columns of `A` per step: one vector.
    let width = if s.int8 { rows } else { lanes };
    let mut piece = |kb: &mut KernelBuilder, k0: Reg, count: Option<Reg>| {
        let mut load = |kb: &mut KernelBuilder, r: Reg| {
            let start = start_of(kb, r);
            let at = kb.add(start, k0);
            let len = kb.index(width);
            let next = kb.add(at, len);
            kb.prefetch(p.a, next);
            match count {
                Some(c) => kb.load_count(p.a, at, width as u16, c),
                None => kb.load(p.a, at, width as u16),
            }
        };
        let stride = kb.index(rows);
        let base = kb.mul(k0, stride);
        if !s.int8 {
            let (end, step) = (kb.index(i64::from(VECTORS)), kb.index(lanes));
            kb.for_(zero, end, 1, Unroll::No, |kb, v| {
                let first = kb.mul(v, step);
                let square: Vec<Reg> = (0..lanes)
                    .map(|i| {
                        let i = kb.index(i);
                        let r = kb.add(first, i);
                        load(kb, r)
                    })
                    .collect();
                let to = kb.add(base, first);
                for (i, x) in transpose(kb, &square, 1).into_iter().enumerate() {
                    let i = kb.index(i as i64 * rows);
                    let to = kb.add(to, i);
                    kb.store(panel, to, x);
                }
            });
            return;
        }
        let in_order = |kb: &mut KernelBuilder, j: Reg| {
            let (zero, four, step) = (kb.index(0), kb.index(4), kb.index(lanes));
            let (base, j_in, vectors) = if s.words {
                let (per_load, load_rows) = (kb.index(lanes / 2), kb.index(2 * lanes));
                let (load, inside) = (kb.bin(BinOp::Div, j, per_load), kb.bin(BinOp::Rem, j, per_load));
                (kb.mul(load, load_rows), inside, kb.index(2))
            } else {
                (zero, j, four)
            };
            let (t, l) = (kb.bin(BinOp::Rem, j_in, vectors), kb.bin(BinOp::Div, j_in, vectors));
            let (t, l) = (kb.mul(t, step), kb.mul(l, four));
            let first = kb.add(t, l);
            kb.add(base, first)
        };
        bytes::turn(kb, s.lanes, (scratch, rows), &in_order, &mut load, &mut |kb, k, x| {
            let k = kb.mul(k, stride);
            let to = kb.add(base, k);
            let x = kb.cast(s.dtype(), x);
            kb.store(panel, to, x);
        });
    };
    let whole = p.k / width * width;
    let end = kb.index(whole);
    kb.for_(zero, end, width, Unroll::No, |kb, k0| piece(kb, k0, None));
    if whole < p.k {
        let left = kb.index(p.k - whole);
        piece(kb, end, Some(left));
    }
}

/// Hands over the sums of a strip, `[column][row]`: vectors along the columns.
pub(super) fn turn_back(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    sums: Buf,
    (m0, n0): (Reg, Reg),
    epilogue: &mut Epilogue<'_>,
) {
    let lanes = i64::from(s.lanes);
    let shape = TileShape { lanes: s.lanes, rows: s.lanes, vectors: VECTORS };
    let turned = kb.local(s.sums(), Dim::from(lanes * shape.width()));
    let (m_end, zero) = (kb.dim(p.m), kb.index(0));
    let (tile_rows, vectors) = (kb.index(s.rows()), kb.index(VECTORS.into()));
    let end = kb.add(m0, tile_rows);
    let end = kb.bin(BinOp::Min, end, m_end);
    kb.for_(m0, end, lanes, Unroll::No, |kb, m| {
        let first = kb.sub(m, m0);
        kb.for_(zero, vectors, 1, Unroll::No, |kb, v| {
            let width = kb.index(lanes);
            let to = kb.mul(v, width);
            let from = kb.mul(to, tile_rows);
            let from = kb.add(from, first);
            let square: Vec<Reg> = (0..lanes)
                .map(|i| {
                    let i = kb.index(i * s.rows());
                    let at = kb.add(from, i);
                    kb.load(sums, at, s.lanes)
                })
                .collect();
            for (i, x) in transpose(kb, &square, 1).into_iter().enumerate() {
                let i = kb.index(i as i64 * shape.width());
                let to = kb.add(to, i);
                kb.store(turned, to, x);
            }
        });
        let width = kb.index(lanes);
        let next = kb.add(m, width);
        let next = kb.bin(BinOp::Min, next, end);
        tile::hand_on(kb, shape, turned, (m, next), (n0, &Dim::from(p.n)), epilogue);
    });
}
