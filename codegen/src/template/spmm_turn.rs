//! Sparse products: how the activation becomes a panel, and what becomes of the sums, with rows and columns exchanged or not.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::bytes;
use super::groups::Group;
use super::lies::Lies;
use super::matmul_int8::{Epilogue, RowOffset};
use super::spmm::{Problem, Schedule, VECTORS, clipped};
use super::tile::{self, TileShape};
use super::transpose::{interleave, transpose, turn_square, unpack};

impl Schedule {
    /// Which four rows of a tile stand at place `j` of a row of the panel, such that unpacking brings them into order.
    fn quad_at(self, j: u16) -> u16 {
        let per_vector = self.lanes / 4;
        match self.quad() {
            1 => j,
            2 => {
                let (load, j) = (j / (2 * per_vector), j % (2 * per_vector));
                load * 2 * per_vector + j % 2 * per_vector + j / 2
            }
            _ => j % 4 * per_vector + j / 4,
        }
    }

    /// The order of [`Schedule::quad_at`] for the first `width` rows of a tile.
    fn picks(self, width: u16) -> Vec<u16> {
        (0..width / 4).flat_map(|j| (0..4).map(move |i| 4 * self.quad_at(j) + i)).collect()
    }
}

/// Columns of the activation by which they are asked for before they are copied, where they are far apart.
const COLUMNS_AHEAD: i64 = 16;

/// Copies the rows `m0..` of an activation that lies turned into the panel.
pub(super) fn copy_panel(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, m0: Reg, row: &mut RowOffset<'_>) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let (zero, end, stride, m_end) = (kb.index(0), kb.index(p.k), kb.index(rows), kb.dim(p.m));
    let left = kb.sub(m_end, m0);
    let distance = kb.dim(&p.a_stride);
    let start = kb.mul(m0, distance);
    // Whose order is all that unpacking needs.
    let width = match s.group {
        None => lanes,
        Some(Group::Bf16) => 2 * lanes,
        Some(Group::Bytes | Group::Words) => rows,
    };
    let picks = s.picks(width as u16);
    let mut load = |kb: &mut KernelBuilder, k: Reg, at: Reg| {
        let (from, place) = (row(kb, k), kb.add(start, at));
        let from = kb.add(from, place);
        if s.from == Lies::Turned {
            let ahead = kb.index(COLUMNS_AHEAD);
            let ahead = kb.add(k, ahead);
            let ahead = row(kb, ahead);
            let ahead = kb.add(ahead, place);
            kb.prefetch(p.a, ahead);
        }
        let count = clipped(kb, p.m, s, left, (at, width));
        let mut x = kb.load_part(p.a, from, width as u16, count);
        if s.group.is_some() {
            x = kb.push(Inst::Shuffle(x, x, picks.clone()));
        }
        s.encode(kb, x, p.rounded)
    };
    let together = s.block.rows.into();
    let last = kb.index(p.k - 1);
    kb.for_(zero, end, together, Unroll::No, |kb, k| {
        let to = kb.mul(k, stride);
        for at in (0..rows).step_by(width as usize) {
            let place = kb.index(at);
            let x: Vec<Reg> = (0..together)
                .map(|i| {
                    let i = kb.index(i);
                    let k = kb.add(k, i);
                    // Rows beyond the end repeat the last one.
                    let k = if p.k % together == 0 { k } else { kb.bin(BinOp::Min, k, last) };
                    load(kb, k, place)
                })
                .collect();
            let out = match x.as_slice() {
                [a, b, c, d] => interleave(kb, [*a, *b, *c, *d]),
                [a, b] => unpack_all(kb, [*a, *b], 2 * s.lanes),
                one => one.to_vec(),
            };
            let len = width * together / out.len() as i64;
            for (i, x) in out.into_iter().enumerate() {
                let at = kb.index(at * together + i as i64 * len);
                let to = kb.add(to, at);
                kb.store(panel, to, x);
            }
        }
    });
}

/// Pairs of two rows of 16-bit numbers, `width` at a time.
fn unpack_all(kb: &mut KernelBuilder, rows: [Reg; 2], width: u16) -> Vec<Reg> {
    let parts = kb.ty(rows[0]).lanes / width;
    let mut out = Vec::new();
    for part in 0..parts {
        let picks: Vec<u16> = (part * width..(part + 1) * width).collect();
        let part = rows.map(|r| kb.push(Inst::Shuffle(r, r, picks.clone())));
        out.extend([false, true].map(|upper| unpack(kb, part, 8, 1, upper)));
    }
    out
}

/// Copies the rows `m0..` of the activation into the panel. Rows beyond the end repeat the last one.
pub(super) fn turn_panel(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    (panel, scratch): (Buf, Buf),
    m0: Reg,
    row: &mut RowOffset<'_>,
) {
    let (one, m_end) = (kb.index(1), kb.dim(p.m));
    let last = kb.sub(m_end, one);
    let squares = !s.is_int() || s.whole_groups();
    // Columns of `A` per step: one vector.
    let width = if squares { i64::from(s.lanes) * i64::from(s.block.rows) } else { s.rows() };
    let mut load = |kb: &mut KernelBuilder, r: Reg, k0: Reg, count: Option<Reg>| {
        let m = kb.add(m0, r);
        let m = kb.bin(BinOp::Min, m, last);
        let start = row(kb, m);
        let at = kb.add(start, k0);
        let len = kb.index(width);
        let next = kb.add(at, len);
        kb.prefetch(p.a, next);
        kb.load_part(p.a, at, width as u16, count)
    };
    let mut piece = |kb: &mut KernelBuilder, k0: Reg, count: Option<Reg>| {
        let stride = kb.index(s.rows());
        let base = kb.mul(k0, stride);
        let mut load = |kb: &mut KernelBuilder, r: Reg| load(kb, r, k0, count);
        if squares {
            turn_squares(kb, p, s, (panel, base), &mut load);
        } else {
            turn_bytes(kb, s, (panel, base, scratch), &mut load);
        }
    };
    let whole = p.k / width * width;
    let (zero, end) = (kb.index(0), kb.index(whole));
    kb.for_(zero, end, width, Unroll::No, |kb, k0| piece(kb, k0, None));
    if whole < p.k {
        let left = kb.index(p.k - whole);
        piece(kb, end, Some(left));
    }
}

/// Turns squares of floats, or of whole groups, to `panel[base..]`: `lanes` rows of the tile each.
fn turn_squares(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    (panel, base): (Buf, Reg),
    load: &mut dyn FnMut(&mut KernelBuilder, Reg) -> Reg,
) {
    let (lanes, together) = (i64::from(s.lanes), i64::from(s.block.rows));
    // Pairs of floats that are no neighbours in the panel are unpacked later, so that rows of the tile stand in another order. Of two squares side
    // by side each holds half of the 128-bit lanes.
    let unpacked = s.quad() > together;
    let (zero, one, end) = (kb.index(0), kb.index(1), kb.index(VECTORS.into()));
    kb.for_(zero, end, 1, Unroll::No, |kb, v| {
        let (step, half_step) = (kb.index(lanes), kb.index(lanes / 2));
        let place = kb.mul(v, step);
        let first = if unpacked {
            let half = kb.bin(BinOp::And, v, one);
            let (even, half_place) = (kb.sub(v, half), kb.mul(half, half_step));
            let pair = kb.mul(even, step);
            kb.add(pair, half_place)
        } else {
            place
        };
        let order: Vec<u16> = if unpacked { s.picks(s.lanes) } else { (0..s.lanes).collect() };
        let square: Vec<Reg> = order
            .into_iter()
            .map(|i| {
                let i = kb.index(i.into());
                let r = kb.add(first, i);
                let x = load(kb, r);
                if together > 1 { s.encode(kb, x, p.rounded) } else { kb.cast(DType::F32, x) }
            })
            .collect();
        let inside = kb.index(together);
        let inside = kb.mul(place, inside);
        let to = kb.add(base, inside);
        for (i, x) in transpose(kb, &square, s.block.rows).into_iter().enumerate() {
            let i = kb.index(i as i64 * s.rows() * together);
            let to = kb.add(to, i);
            let x = if together > 1 { x } else { s.encode(kb, x, p.rounded) };
            kb.store(panel, to, x);
        }
    });
}

/// Turns bytes to `panel[base..]`, in the order of [`Schedule::quad_at`].
fn turn_bytes(
    kb: &mut KernelBuilder,
    s: Schedule,
    (panel, base, scratch): (Buf, Reg, Buf),
    load: &mut dyn FnMut(&mut KernelBuilder, Reg) -> Reg,
) {
    let (rows, lanes) = (s.rows(), i64::from(s.lanes));
    let in_order = |kb: &mut KernelBuilder, j: Reg| {
        let (zero, four, step) = (kb.index(0), kb.index(4), kb.index(lanes));
        let (base, j_in, vectors) = if s.group == Some(Group::Words) {
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
    let stride = kb.index(rows);
    bytes::turn(kb, s.lanes, (scratch, rows), &in_order, load, &mut |kb, k, x| {
        let k = kb.mul(k, stride);
        let to = kb.add(base, k);
        let x = kb.cast(s.dtype(), x);
        kb.store(panel, to, x);
    });
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
            let step = kb.index(shape.width());
            turn_square(kb, s.lanes, (sums, from, tile_rows), (turned, to, step));
        });
        let width = kb.index(lanes);
        let next = kb.add(m, width);
        let next = kb.bin(BinOp::Min, next, end);
        tile::hand_on(kb, shape, turned, (m, next), (n0, &Dim::from(p.n)), epilogue);
    });
}
