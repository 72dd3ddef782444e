//! Matrix product of bytes `C[m, n] = sum over k of A[m, k] * B[k, n]`: `u8` by `i8`, exact in `i32`.
//!
//! **Contract.** Rows of `A` are contiguous along `k`. `B` is a constant in panels of quads or pairs ([`crate::Panels`]). The sums wrap as
//! 32-bit integers; no step saturates, so every target gives the same integers. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** A register tile: four bytes of each row, broadcast, against the panel's vectors (`vpdpbusd`: Intel 2018, "Lower numerical
//! precision deep learning inference and training"). A unit is one panel of columns times `chunk` rows, in the order
//! of the rows; the tiles of a panel read the next one ahead ([`super::ahead`]). Without that instruction, pairs of 16-bit numbers are multiplied
//! (`pmaddwd`), since sums of products of bytes do not fit 16 bits: the weight is stored so, and the rows of a chunk are widened once for all
//! panels that one thread computes.

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::{Asking, LINES, ReadAhead, Touched};
use super::bytes::Waiting;
use super::groups::Group;
use super::tile::{self, TileShape};

/// Steps of `k` per turn of the inner loop.
const STEP: i64 = 4;
/// Most rows of a chunk.
const CHUNK: i64 = 128;
/// Most bytes of a chunk of widened rows: what stays in a second-level cache beside a panel.
const WIDE_BYTES: i64 = 200_000;

/// How a product is computed; `Display` is part of the kernel's symbol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule {
    /// The register tile.
    pub tile: TileShape,
    /// Rows of a chunk.
    pub chunk: i64,
    /// Operands in 16 bits.
    pub words: bool,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = if self.words { "w" } else { "" };
        write!(f, "matmul_int8{words}_m{}n{}c{}", self.tile.rows, self.tile.width(), self.chunk)
    }
}

impl Schedule {
    /// The schedule for sums of `k` products in `n` columns on a machine with vectors of `lanes` 32-bit numbers, with an instruction for sums of products of
    /// bytes or not.
    pub fn choose(lanes: u16, byte_dot: bool, n: i64, k: i64) -> Schedule {
        if byte_dot {
            return Schedule { tile: TileShape::choose(lanes, &n.into()), chunk: CHUNK, words: false };
        }
        // The products take a register before they are added.
        let tile = if lanes == 16 { TileShape::choose(lanes, &n.into()) } else { TileShape { lanes, rows: 4, vectors: 2 } };
        let chunk = (0..).map(|i| CHUNK >> i).find(|c| c * k * 2 <= WIDE_BYTES || *c <= tile.rows.into());
        Schedule { tile, chunk: chunk.unwrap_or(CHUNK), words: true }
    }

    /// Number of independent units for `m` rows and `n` columns: a panel of columns by a chunk of rows.
    pub fn extent(self, m: &Dim, n: &Dim) -> Dim {
        &n.ceil_div(&self.tile.width().into()) * &m.ceil_div(&self.chunk.into())
    }

    /// What one instruction takes.
    pub(crate) fn group(self) -> Group {
        if self.words { Group::Words } else { Group::Bytes }
    }
}

/// Gives the element offset of row `m` of `A`.
pub type RowOffset<'a> = dyn FnMut(&mut KernelBuilder, Reg) -> Reg + 'a;
/// Consumes finished elements: row, first column, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg, Option<Reg>) + 'a;

/// The sizes of a product and its operands.
pub struct Problem<'a> {
    /// Rows of the result.
    pub m: &'a Dim,
    /// Columns of the result.
    pub n: i64,
    /// Length of the sums.
    pub k: i64,
    /// The activation.
    pub a: Buf,
    /// The packed weight.
    pub b: Buf,
    /// What the epilogue reads and writes.
    pub touched: Touched,
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`]. What waits for tables is stored chunk by chunk.
pub fn build(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    row: &mut RowOffset<'_>,
    epilogue: &mut Epilogue<'_>,
    waiting: Option<&Waiting>,
) {
    let (shape, n, group) = (s.tile, Dim::from(p.n), s.group().size());
    let n_panels = n.ceil_div(&shape.width().into());
    let stage = kb.local(DType::I32, Dim::from(shape.width() * i64::from(shape.rows)));
    // Whole vectors, the last one filled up with zeros.
    let words = i64::from(shape.lanes) * 2;
    let wide_len = (p.k + words - 1) / words * words;
    let wide = s.words.then(|| {
        let none = kb.index(-1);
        (kb.local(DType::I16, Dim::from(s.chunk * wide_len)), kb.var(none))
    });
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (chunk, panel) = tile::div_rem(kb, unit, &n_panels);
        let (chunk_len, width) = (kb.index(s.chunk), kb.index(shape.width()));
        let (m0, n0) = (kb.mul(chunk, chunk_len), kb.mul(panel, width));
        let m_end = kb.dim(p.m);
        let m1 = kb.add(m0, chunk_len);
        let m1 = kb.bin(BinOp::Min, m1, m_end);
        let panel_len = kb.index((p.k + group - 1) / group * group * shape.width());
        let column = kb.mul(panel, panel_len);
        if let Some((buf, current)) = wide {
            let here = kb.get(current);
            let other = kb.bin(BinOp::Ne, here, chunk);
            kb.if_(
                other,
                |kb| {
                    kb.set(current, chunk);
                    widen(kb, p, (m0, m1), (buf, wide_len, words), row);
                },
                |_| {},
            );
        }
        let next = kb.add(column, panel_len);
        let next = ReadAhead::new(kb, (p.b, next), (shape.width(), STEP, LINES), ((m0, m1), shape.rows));
        tile::sweep_rows(kb, m0, m1, shape.rows, &mut |kb, m, rows| {
            let offsets: Vec<Reg> = (0..i64::from(rows))
                .map(|r| {
                    let r = kb.index(r);
                    let m = kb.add(m, r);
                    if !s.words {
                        return row(kb, m);
                    }
                    let (inside, len) = (kb.sub(m, m0), kb.index(wide_len));
                    kb.mul(inside, len)
                })
                .collect();
            let (start, end) = (kb.index(0), kb.index(p.k));
            let ahead = next.tile(kb, m, (start, end));
            p.touched.ask(kb, (p.m, &n), (m, rows), (n0, shape.width()));
            if let Some(waiting) = waiting {
                waiting.ask(kb, (m, rows), m0, n0);
            }
            accumulate(kb, p, s, (wide.map_or(p.a, |w| w.0), &offsets), (column, ahead), stage);
            let rows = kb.index(rows.into());
            let end = kb.add(m, rows);
            tile::hand_on(kb, shape, stage, (m, end), (n0, &n), epilogue);
        });
        if let Some(waiting) = waiting {
            waiting.store(kb, (m0, m1), n0);
        }
    });
}

/// Copies rows of the activation to `[row][len]` in 16 bits.
fn widen(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    (m0, m1): (Reg, Reg),
    (buf, len, words): (Buf, i64, i64),
    row: &mut RowOffset<'_>,
) {
    kb.for_(m0, m1, 1, Unroll::No, |kb, m| {
        let from = row(kb, m);
        let (inside, row_len) = (kb.sub(m, m0), kb.index(len));
        let to = kb.mul(inside, row_len);
        let copy = |kb: &mut KernelBuilder, k: Reg, count: Option<Reg>| {
            let (from, to) = (kb.add(from, k), kb.add(to, k));
            let x = kb.load_part(p.a, from, words as u16, count);
            let x = kb.cast(DType::I16, x);
            kb.store(buf, to, x);
        };
        let whole = p.k / words * words;
        let (start, end) = (kb.index(0), kb.index(whole));
        kb.for_(start, end, words, Unroll::Auto, |kb, k| copy(kb, k, None));
        if whole < p.k {
            let left = kb.index(p.k - whole);
            copy(kb, end, Some(left));
        }
    });
}

/// The sums of one tile, left in `stage`.
fn accumulate(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    (a, rows): (Buf, &[Reg]),
    (column, ahead): (Reg, Asking),
    stage: Buf,
) {
    let shape = s.tile;
    let zero = kb.num(Ty::vector(DType::I32, shape.lanes), 0.0);
    let acc: Vec<_> = (0..rows.len() * usize::from(shape.vectors)).map(|_| kb.var(zero)).collect();
    let group = s.group();
    let step = |kb: &mut KernelBuilder, k: Reg, count: Option<Reg>| {
        group.add_group(kb, shape, (a, rows), (p.b, column), (k, count), &acc);
    };
    let (start, whole) = (kb.index(0), p.k / STEP * STEP);
    let end = kb.index(whole);
    kb.for_(start, end, STEP, Unroll::No, |kb, k| {
        ahead.turn(kb);
        for at in (0..STEP).step_by(group.size() as usize) {
            let at = kb.index(at);
            let k = kb.add(k, at);
            step(kb, k, None);
        }
    });
    for k in (whole..p.k).step_by(group.size() as usize) {
        // Widened rows end in zeros; the bytes beyond the end of a row belong to the next one.
        let (k, left) = (kb.index(k), (!s.words).then(|| kb.index(p.k - k)));
        step(kb, k, left);
    }
    tile::store_accumulators(kb, shape, &acc, (stage, start));
}
