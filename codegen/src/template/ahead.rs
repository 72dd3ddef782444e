//! Reading ahead: the tiles of a panel ask for the next one while they work.

use transc_ir::loops::{Buf, KernelBuilder, Reg, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::Dim;

use super::tile;

/// Bytes of a cache line.
pub(super) const LINE: i64 = 64;
/// Matrices of so many rows stay in a second-level cache from one layer to the next.
const NEAR_ROWS: i64 = 256;
/// Most lines that a turn of vectors asks for.
pub(super) const LINES: i64 = 2;

/// The next panel, and how far each turn of the inner loop goes so that all turns together ask for it once, in order: memory gives lines that
/// follow each other soonest.
#[derive(Clone, Copy)]
pub struct ReadAhead {
    buf: Buf,
    next: Reg,
    step: Reg,
    unroll: i64,
    lines: i64,
    tiles: Tiles,
}

/// The tiles that read one panel.
#[derive(Clone, Copy)]
struct Tiles {
    first_row: Reg,
    rows: u16,
    count: Reg,
}

/// Row-major matrices `[m, n]` that an epilogue reads or writes. The tiles of a panel ask for their rows, so that these are near when the epilogue
/// comes to them.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Where they lie.
    pub bufs: Vec<Buf>,
}

impl Touched {
    /// Asks for some rows, `stride` apart, of a panel of `width` columns from `n0` on, where the activation has so many rows `m` that they are not near
    /// anyway.
    pub fn ask(&self, kb: &mut KernelBuilder, (m, stride): (&Dim, &Dim), (row, rows): (Reg, u16), (n0, width): (Reg, i64)) {
        if self.bufs.is_empty() || m.as_const().is_some_and(|m| m <= NEAR_ROWS) {
            return;
        }
        let (most, all) = (kb.index(NEAR_ROWS), kb.dim(m));
        let far = kb.bin(BinOp::Gt, all, most);
        kb.if_(
            far,
            |kb| {
                for buf in &self.bufs {
                    for r in 0..i64::from(rows) {
                        let (r, stride) = (kb.index(r), kb.dim(stride));
                        let m = kb.add(row, r);
                        let start = kb.mul(m, stride);
                        let start = kb.add(start, n0);
                        for at in (0..width).step_by(line(kb, *buf) as usize) {
                            let at = kb.index(at);
                            let at = kb.add(start, at);
                            kb.prefetch(*buf, at);
                        }
                    }
                }
            },
            |_| {},
        );
    }
}

impl ReadAhead {
    /// For a panel that starts at element `next` of `buf`, while the tiles of the rows `m0..m1` read the one before: `width` elements per step
    /// along `k`, `unroll` steps per turn, which asks for at most so many lines.
    pub fn new(
        kb: &mut KernelBuilder,
        (buf, next): (Buf, Reg),
        (width, unroll, lines): (i64, i64, i64),
        ((m0, m1), rows): ((Reg, Reg), u16),
    ) -> ReadAhead {
        let span = kb.sub(m1, m0);
        let count = tile::ceil_div(kb, span, rows.into());
        let (per_turn, one, most) = (kb.index(width * unroll), kb.index(1), kb.index(lines * line(kb, buf)));
        let step = kb.bin(BinOp::Div, per_turn, count);
        let step = kb.add(step, one);
        let step = kb.bin(BinOp::Min, step, most);
        ReadAhead { buf, next, step, unroll, lines, tiles: Tiles { first_row: m0, rows, count } }
    }

    /// What the tile at `row` asks for while it takes the steps `from..to`: all tiles take those before first.
    pub fn tile(self, kb: &mut KernelBuilder, row: Reg, (from, to): (Reg, Reg)) -> Asking {
        let (before, rows, unroll) = (kb.mul(from, self.tiles.count), kb.index(self.tiles.rows.into()), kb.index(self.unroll));
        let (tile, len) = (kb.sub(row, self.tiles.first_row), kb.sub(to, from));
        let tile = kb.bin(BinOp::Div, tile, rows);
        let in_block = kb.mul(tile, len);
        let steps = kb.add(before, in_block);
        let turns = kb.bin(BinOp::Div, steps, unroll);
        let at = kb.mul(turns, self.step);
        let at = kb.add(self.next, at);
        Asking { place: kb.var(at), ahead: self }
    }
}

/// Where the turns of a tile have come to.
#[derive(Clone, Copy)]
pub struct Asking {
    place: Var,
    ahead: ReadAhead,
}

impl Asking {
    /// One turn.
    pub fn turn(self, kb: &mut KernelBuilder) {
        let ReadAhead { buf, step, lines, .. } = self.ahead;
        let at = kb.get(self.place);
        for i in 0..lines {
            let i = kb.index(i * line(kb, buf));
            let at = kb.add(at, i);
            kb.prefetch(buf, at);
        }
        let at = kb.add(at, step);
        kb.set(self.place, at);
    }
}

/// Elements of a line.
fn line(kb: &KernelBuilder, buf: Buf) -> i64 {
    LINE / kb.buf_dtype(buf).size_bytes() as i64
}
