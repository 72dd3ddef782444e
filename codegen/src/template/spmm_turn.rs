//! Sparse products: how the activation becomes a panel, and what becomes of the sums, with rows and columns exchanged or not.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, TargetInst, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::LINE;
use super::matmul_int8::{Epilogue, RowOffset};
use super::spmm::{Bytes, Problem, Schedule, VECTORS, clipped};
use super::tile::{self, TileShape};
use super::transpose::{interleave, transpose};

/// Bytes of a column's table.
const TABLE: i64 = 256;

/// Stores the bytes of a strip, `[column][row]`, where they belong, after a look at their tables.
pub(super) fn store_bytes(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    b: &Bytes<'_>,
    ((from, scratch), m0, n0): ((Buf, Buf), Reg, Reg),
) {
    let rows = s.rows() as u16;
    let (zero, columns, m_end, width) = (kb.index(0), kb.index(p.n), kb.dim(p.m), kb.index(s.rows()));
    let (rows_left, columns_left) = (kb.sub(m_end, m0), kb.sub(columns, n0));
    let columns_left = kb.bin(BinOp::Min, columns_left, width);
    let looked_up = |kb: &mut KernelBuilder, c: Reg| {
        let at = kb.mul(c, width);
        let x = kb.load(from, at, rows);
        match b.table {
            None => x,
            Some(table) => {
                let n = kb.add(n0, c);
                look_up(kb, (table, n), x)
            }
        }
    };
    if s.turned_out {
        let count = clipped(kb, p.m, s, rows_left, (zero, s.rows()));
        kb.for_(zero, columns_left, 1, Unroll::No, |kb, c| {
            let (y, n) = (looked_up(kb, c), kb.add(n0, c));
            let at = kb.mul(n, m_end);
            let at = kb.add(at, m0);
            match count {
                Some(count) => kb.store_count(b.out, at, y, count),
                None => kb.store(b.out, at, y),
            }
        });
        return;
    }
    let last = kb.index(p.n - 1);
    let last = kb.sub(last, n0);
    let natural = |kb: &mut KernelBuilder, j: Reg| {
        let four = kb.index(4);
        kb.mul(j, four)
    };
    let mut load = |kb: &mut KernelBuilder, c: Reg| {
        // Columns beyond the end repeat the last one.
        let c = if p.n % s.rows() == 0 { c } else { kb.bin(BinOp::Min, c, last) };
        looked_up(kb, c)
    };
    turn_bytes(kb, s, scratch, &natural, &mut load, &mut |kb, r, x| {
        let exists = kb.bin(BinOp::Lt, r, rows_left);
        kb.if_(
            exists,
            |kb| {
                let m = kb.add(m0, r);
                let at = kb.mul(m, columns);
                let at = kb.add(at, n0);
                let x = kb.push(Inst::Bitcast(kb.buf_dtype(b.out), x));
                if p.n % s.rows() == 0 {
                    kb.store(b.out, at, x);
                } else {
                    kb.store_count(b.out, at, x, columns_left);
                }
            },
            |_| {},
        );
    });
}

/// Asks for the tables of the columns of a block row, which are read when its strip ends.
pub(super) fn ask_for_tables(kb: &mut KernelBuilder, table: Buf, (block, height): (Reg, i64)) {
    let size = kb.index(height * TABLE);
    let from = kb.mul(block, size);
    for line in (0..height * TABLE).step_by(LINE as usize) {
        let line = kb.index(line);
        let at = kb.add(from, line);
        kb.prefetch(table, at);
    }
}

/// What the table of column `n` says of some bytes.
fn look_up(kb: &mut KernelBuilder, (table, n): (Buf, Reg), x: Reg) -> Reg {
    let (ty, size) = (kb.ty(x), kb.index(TABLE));
    let from = kb.mul(n, size);
    let index = kb.push(Inst::Bitcast(DType::U8, x));
    let parts: Vec<Reg> = (0..TABLE / i64::from(ty.lanes))
        .map(|i| {
            let i = kb.index(i * i64::from(ty.lanes));
            let at = kb.add(from, i);
            kb.load(table, at, ty.lanes)
        })
        .collect();
    let halves: Vec<Reg> = parts.chunks_exact(2).map(|t| kb.target(TargetInst::VPermI2B, &[index, t[0], t[1]])).collect();
    let upper = kb.num(kb.ty(index), 128.0);
    let lower = kb.bin(BinOp::Lt, index, upper);
    let y = kb.select(lower, halves[0], halves[1]);
    kb.push(Inst::Bitcast(ty.dtype, y))
}

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

/// Copies columns `m0..` of an activation `[k, m]` into the panel; bytes in the order of [`Schedule::quad_at`].
pub(super) fn copy_panel(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, m0: Reg, row: &mut RowOffset<'_>) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let (zero, end, stride, m_end) = (kb.index(0), kb.index(p.k), kb.index(rows), kb.dim(p.m));
    let left = kb.sub(m_end, m0);
    kb.for_(zero, end, 1, Unroll::No, |kb, k| {
        let (from, to) = (row(kb, k), kb.mul(k, stride));
        let from = kb.add(from, m0);
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

/// Turns a square of bytes. `first` says which four rows are group `j` of the columns that result, in [`Schedule::quad_at`]'s order or as they are; `load`
/// gives a row, `store` takes a column. All columns are stored one after the other.
fn turn_bytes(
    kb: &mut KernelBuilder,
    s: Schedule,
    scratch: Buf,
    first: &dyn Fn(&mut KernelBuilder, Reg) -> Reg,
    load: &mut dyn FnMut(&mut KernelBuilder, Reg) -> Reg,
    store: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg),
) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let (zero, end, four, stride) = (kb.index(0), kb.index(lanes), kb.index(4), kb.index(rows));
    let square_len = kb.index(lanes * rows);
    // Quads of rows first.
    kb.for_(zero, end, 1, Unroll::No, |kb, j| {
        let first = first(kb, j);
        let bytes = [0, 1, 2, 3].map(|i| {
            let i = kb.index(i);
            let r = kb.add(first, i);
            let x = load(kb, r);
            kb.push(Inst::Bitcast(DType::U8, x))
        });
        let to = kb.mul(j, stride);
        for (v, x) in interleave(kb, bytes).into_iter().enumerate() {
            let v = kb.index(v as i64);
            let square = kb.mul(v, square_len);
            let to = kb.add(square, to);
            kb.store(scratch, to, x);
        }
    });
    kb.for_(zero, four, 1, Unroll::No, |kb, v| {
        let from = kb.mul(v, square_len);
        let square: Vec<Reg> = (0..lanes)
            .map(|j| {
                let j = kb.index(j * rows);
                let at = kb.add(from, j);
                kb.load(scratch, at, rows as u16)
            })
            .collect();
        let column = kb.mul(v, four);
        for (d, x) in transpose(kb, &square, 4).into_iter().enumerate() {
            let d = d as i64;
            let inside = kb.index(16 * (d / 4) + d % 4);
            let k = kb.add(column, inside);
            store(kb, k, x);
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
        turn_bytes(kb, s, scratch, &in_order, &mut load, &mut |kb, k, x| {
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
