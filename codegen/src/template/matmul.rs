//! Matrix product `C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]` in `f32`.
//!
//! **Contract.** `A` is read through a row offset and a constant stride along `k`. `B` is either a constant packed into column
//! panels (`[batch][ceil(n/width)][k][width]`, zero padded) or an activation, from which each unit gathers its panel into scratch memory. The
//! sum over `k` runs in ascending order in one accumulator per element, one rounding per multiply-add, whatever the partition: error at
//! most `k * eps * sum |a||b|`. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** A register tile ([`super::tile`]); a unit is one tile. Units are ordered by chunks of rows, then panels of columns, then
//! rows: a thread's share is a stripe of rows as far as there are enough, so that activations stay in the cache of the core that wrote
//! them, and a panel is read once per chunk, in blocks along `k` ([`super::sums`]).

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, Reg, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::{LINES, ReadAhead, Touched};
use super::sums::Sums;
use super::tile::{self, Part, TileInput, TileShape};

/// Bytes of a block of a panel.
const BLOCK_BYTES: i64 = 72 * 1024;

/// Bytes of the rows of a chunk that are gathered.
const ROWS_BYTES: i64 = 192 * 1024;

/// Rows of a chunk where each of them gathers its panels anew.
pub const GATHERED_CHUNK: i64 = 512;

/// The sizes of a product; each may be symbolic.
#[derive(Clone, Debug)]
pub struct MatmulProblem {
    /// Extents of the batch loops, outermost first.
    pub batch: Vec<Dim>,
    /// Rows of the result.
    pub m: Dim,
    /// Columns of the result.
    pub n: Dim,
    /// Length of the sums.
    pub k: Dim,
}

/// How a product is computed; `Display` is part of the kernel's symbol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule {
    /// The register tile.
    pub tile: TileShape,
    /// Rows of a chunk, a multiple of the tile's.
    pub chunk: i64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "matmul_f32_m{}n{}c{}", self.tile.rows, self.tile.width(), self.chunk)
    }
}

impl Schedule {
    /// The schedule for `n` columns on a machine with vectors of `lanes` floats.
    pub fn choose(lanes: u16, n: &Dim) -> Schedule {
        Schedule { tile: TileShape::choose(lanes, n), chunk: 128 }
    }

    /// The schedule of [`build_turned`] for `m` rows: even chunks of as many as fit the second cache. They are an odd number of half lines, so that the
    /// steps of `k` fall into all sets of the nearest cache.
    pub fn turned(lanes: u16, m: i64, n: &Dim, k: i64) -> Schedule {
        let step = i64::from(lanes.max(8));
        let odd = |rows: i64| rows / step / 2 * 2 * step + step;
        let most = odd((ROWS_BYTES / 4 / k.max(1)).clamp(2 * step, 112));
        let chunks = (m + most - 1) / most;
        Schedule { tile: TileShape::choose(lanes, n), chunk: odd((m / chunks.max(1)).min(most - 1)) }
    }

    /// Time of a product of `m` rows by `n` columns, in steps of `k`.
    pub fn time(self, m: i64, n: i64) -> i64 {
        let rows = i64::from(self.tile.rows);
        self.tile.time(n) * ((m + rows - 1) / rows * rows)
    }

    /// Number of independent units.
    pub fn extent(self, p: &MatmulProblem) -> Dim {
        let units = &p.n.ceil_div(&self.tile.width().into()) * &p.m.ceil_div(&i64::from(self.tile.rows).into());
        p.batch.iter().fold(units, |a, d| &a * d)
    }
}

/// Gives the element offset of row `m` of `A` for batch indices.
pub type RowOffset<'a> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg) -> Reg + 'a;
/// Fills a buffer with the panel `[k][width]` of the columns from a given one on, zero beyond the last, for batch indices.
pub type Gather<'a> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg, Buf) + 'a;
/// Consumes finished elements: batch indices, row, first column, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg, Reg, Reg, Option<Reg>) + 'a;

/// The left operand.
pub struct Lhs<'a> {
    /// Where it lies.
    pub buf: Buf,
    /// Offset of a row.
    pub row: &'a mut RowOffset<'a>,
    /// Distance between neighbours along `k`, in elements.
    pub k_stride: Dim,
}

/// A packed weight.
pub struct Weight {
    /// Where it lies.
    pub buf: Buf,
    /// True if each batch has its own matrix.
    pub batched: bool,
    /// What the epilogue reads and writes.
    pub touched: Touched,
}

/// The right operand.
pub enum Rhs<'a> {
    /// A constant in column panels.
    Packed(Weight),
    /// An activation, gathered panel by panel.
    Gathered(&'a mut Gather<'a>),
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    s: Schedule,
    lhs: &mut Lhs<'_>,
    rhs: &mut Rhs<'_>,
    epilogue: &mut Epilogue<'_>,
) {
    let shape = s.tile;
    let width = Dim::from(shape.width());
    let n_panels = p.n.ceil_div(&width);
    let panel_len = &p.k * &width;
    let b = match rhs {
        Rhs::Packed(w) => w.buf,
        Rhs::Gathered(_) => kb.local(DType::F32, panel_len.clone()),
    };
    let sums = Sums::new(kb, s);
    each_panel(kb, p, s, None, &mut |kb, flat_batch, panel, (m0, m1)| {
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        let panel_width = kb.dim(&width);
        let n0 = kb.mul(panel, panel_width);
        let column = match rhs {
            Rhs::Packed(w) => {
                let panels = kb.dim(&n_panels);
                let first = kb.mul(flat_batch, panels);
                let which = if w.batched { kb.add(first, panel) } else { panel };
                let len = kb.dim(&panel_len);
                kb.mul(which, len)
            }
            Rhs::Gathered(gather) => {
                gather(kb, &batch, n0, b);
                kb.index(0)
            }
        };
        let next = matches!(rhs, Rhs::Packed(_)).then(|| {
            let len = kb.dim(&panel_len);
            let next = kb.add(column, len);
            ReadAhead::new(kb, (b, next), (shape.width(), tile::UNROLL, LINES), ((m0, m1), shape.rows))
        });
        let a_stride = kb.dim(&lhs.k_stride);
        let panel = Panel { buf: b, column, next };
        multiply(kb, (p, s), &sums, (m0, m1), (lhs.buf, a_stride), &panel, &mut |kb, row, rows| {
            if let Rhs::Packed(w) = rhs {
                w.touched.ask(kb, (&p.m, &p.n), (row, rows), (n0, shape.width()));
            }
            let each = (0..i64::from(rows)).map(|r| {
                let r = kb.index(r);
                let m = kb.add(row, r);
                (lhs.row)(kb, &batch, m)
            });
            each.collect()
        });
        tile::hand_on(kb, shape, sums.buf, (m0, m1), (n0, &p.n), &mut |kb, m, n, x, count| epilogue(kb, &batch, m, n, x, count));
    });
}

/// As [`build`] with packed weights, one matrix for each last batch index, and rows that each unit gathers: `gather` gives some rows of `A` as columns,
/// `[k][chunk]`. The epilogue gets vectors of rows: batch indices, first row, column, vector of values, active lanes. [`Schedule::turned`] fits.
pub fn build_turned(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    s: Schedule,
    gather: &mut Gather<'_>,
    weight: Buf,
    epilogue: &mut Epilogue<'_>,
) {
    let (shape, width) = (s.tile, Dim::from(s.tile.width()));
    let a = kb.local(DType::F32, &p.k * &Dim::from(s.chunk));
    let square = kb.local(DType::F32, i64::from(shape.lanes).pow(2).into());
    let sums = Sums::new(kb, s);
    let zero = kb.index(0);
    let first = kb.var(zero);
    let mut enter = |kb: &mut KernelBuilder, flat_batch: Reg, (from, _): (Reg, Reg)| {
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        kb.set(first, from);
        gather(kb, &batch, from, a);
    };
    each_panel(kb, p, s, Some(&mut enter), &mut |kb, flat_batch, panel, (m0, m1)| {
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        let (panel_width, len, a_stride) = (kb.dim(&width), kb.dim(&(&p.k * &width)), kb.index(s.chunk));
        let n0 = kb.mul(panel, panel_width);
        let panels = kb.dim(&p.n.ceil_div(&width));
        let matrix = batch.last().map_or(zero, |g| kb.mul(*g, panels));
        let which = kb.add(matrix, panel);
        let column = kb.mul(which, len);
        let next = kb.add(column, len);
        let next = ReadAhead::new(kb, (weight, next), (shape.width(), tile::UNROLL, LINES), ((m0, m1), shape.rows));
        let panel = Panel { buf: weight, column, next: Some(next) };
        multiply(kb, (p, s), &sums, (m0, m1), (a, a_stride), &panel, &mut |kb, row, rows| {
            let start = kb.get(first);
            let row = kb.sub(row, start);
            let each = (0..i64::from(rows)).map(|r| {
                let r = kb.index(r);
                kb.add(row, r)
            });
            each.collect()
        });
        let mut hand_on = |kb: &mut KernelBuilder, m: Reg, n: Reg, x: Reg, count: Reg| epilogue(kb, &batch, m, n, x, Some(count));
        tile::hand_on_turned(kb, shape, (sums.buf, square), (m0, m1), (n0, &p.n), &mut hand_on);
    });
}

/// A panel of the right operand.
struct Panel {
    buf: Buf,
    /// Where it begins.
    column: Reg,
    /// Asks for the one after it.
    next: Option<ReadAhead>,
}

/// The sums of some rows in a panel. `offsets` gives the offset in `a` of each row of a tile.
fn multiply(
    kb: &mut KernelBuilder,
    (p, s): (&MatmulProblem, Schedule),
    sums: &Sums,
    (m0, m1): (Reg, Reg),
    (a, a_stride): (Buf, Reg),
    panel: &Panel,
    offsets: &mut dyn FnMut(&mut KernelBuilder, Reg, u16) -> Vec<Reg>,
) {
    let shape = s.tile;
    sums.in_blocks(kb, (m0, m1), &p.k, BLOCK_BYTES / shape.width() / 4 / 8 * 8, &mut |kb, from, to, all| {
        tile::sweep_rows(kb, m0, m1, shape.rows, &mut |kb, row, rows| {
            let offsets = offsets(kb, row, rows);
            let input = TileInput {
                a,
                rows: &offsets,
                a_stride,
                b: panel.buf,
                column: panel.column,
                b_stride: kb.index(shape.width()),
                counts: &vec![None; shape.vectors.into()],
                k: &p.k,
                ahead: panel.next.map(|next| next.tile(kb, row, (from, to))),
            };
            let place = sums.at(kb, m0, row);
            let acc = tile::accumulate_part(kb, shape, &input, Part { from, to, sums: (!all).then_some(place) });
            tile::store_accumulators(kb, shape, &acc, place);
        });
    });
}

/// What is done before the first panel of a chunk: batch, rows of the chunk.
pub(super) type Enter<'a> = dyn FnMut(&mut KernelBuilder, Reg, (Reg, Reg)) + 'a;

/// Calls `body` with the batch, the panel and the rows of every panel of every chunk that this call has units of.
pub(super) fn each_panel(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    s: Schedule,
    mut enter: Option<&mut Enter<'_>>,
    body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, (Reg, Reg)),
) {
    let rows = i64::from(s.tile.rows);
    let blocks = p.m.ceil_div(&rows.into());
    let per_batch = &p.n.ceil_div(&s.tile.width().into()) * &blocks;
    let panels = p.n.ceil_div(&s.tile.width().into());
    let (lo, hi) = (kb.lo(), kb.hi());
    let len = kb.dim(&per_batch);
    pieces(kb, (lo, hi), len, &mut |kb, batch, units| {
        let (all, most, panels) = (kb.dim(&blocks), kb.index(s.chunk / rows), kb.dim(&panels));
        let len = kb.mul(panels, most);
        pieces(kb, units, len, &mut |kb, chunk, units| {
            let first = kb.mul(chunk, most);
            let left = kb.sub(all, first);
            let len = kb.bin(BinOp::Min, left, most);
            let row = |kb: &mut KernelBuilder, r: Reg| {
                let (rows, end) = (kb.index(rows), kb.dim(&p.m));
                let block = kb.add(first, r);
                let row = kb.mul(block, rows);
                kb.bin(BinOp::Min, row, end)
            };
            if let Some(enter) = enter.as_mut() {
                let zero = kb.index(0);
                let range = (row(kb, zero), row(kb, len));
                enter(kb, batch, range);
            }
            pieces(kb, units, len, &mut |kb, panel, (r0, r1)| {
                let range = (row(kb, r0), row(kb, r1));
                body(kb, batch, panel, range);
            });
        });
    });
}

/// Cuts `lo..hi` at the multiples of `len`; `body` gets the number of each piece and its range inside it.
pub(super) fn pieces(
    kb: &mut KernelBuilder,
    (lo, hi): (Reg, Reg),
    len: Reg,
    body: &mut dyn FnMut(&mut KernelBuilder, Reg, (Reg, Reg)),
) {
    let one = kb.index(1);
    let first = kb.bin(BinOp::Div, lo, len);
    let last = kb.sub(hi, one);
    let last = kb.bin(BinOp::Div, last, len);
    let end = kb.add(last, one);
    kb.for_(first, end, 1, Unroll::No, |kb, i| {
        let start = kb.mul(i, len);
        let (from, to) = (kb.sub(lo, start), kb.sub(hi, start));
        let zero = kb.index(0);
        let range = (kb.bin(BinOp::Max, from, zero), kb.bin(BinOp::Min, to, len));
        body(kb, i, range);
    });
}
