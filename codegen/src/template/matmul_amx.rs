//! Matrix product `C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]` by a constant on matrix registers: of `bf16` in `f32`, or of `u8` by `i8`, exact in
//! `i32`.
//!
//! **Contract.** `A` is `u8`, or `bf16`, or rounded to that here; `B` is packed in panels of groups of 32 bits along `k`, as many as fill whole registers
//! ([`crate::Panels`], depth [`Schedule::depth`]). Every row takes the same instructions whatever the number of rows, so a result depends on nothing
//! but its row and its column. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** Tiles of matrix registers ([`super::amx`]). A unit is one panel of columns times `chunk` rows, in the order of the rows. Each thread packs the
//! rows of a chunk once, register by register and with zeros up to whole ones; the tiles of a panel read the next one ahead ([`super::ahead`]).

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::ReadAhead;
use super::amx::{self, Panel, ROWS, Registers};
use super::bytes::Waiting;
use super::groups::{self, Group};
use super::matmul::{Epilogue, Lhs, MatmulProblem, Weight};
use super::tile::{self, TileShape};

/// Most bytes of a chunk of packed rows: what stays in a second-level cache beside a panel.
const CHUNK_BYTES: i64 = 1024 * 1024;
/// Lines of the next panel that a step of a tile asks for.
const LINES: i64 = 8;

/// How a product is computed; `Display` is part of the kernel's symbol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// What is multiplied.
    pub group: Group,
    /// The tile.
    pub tile: TileShape,
    /// Rows of a chunk, a multiple of the tile's.
    pub chunk: i64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.group == Group::Bytes { "int8" } else { "bf16" };
        write!(f, "matmul_amx_{kind}_m{}n{}c{}", self.tile.rows, self.tile.width(), self.chunk)
    }
}

impl Schedule {
    /// The schedule for sums of `k` products of bytes or of `bf16` in `n` columns.
    pub fn choose(group: Group, n: &Dim, k: &Dim) -> Schedule {
        let tile = amx::shape(n.as_const());
        let row = k.as_const().unwrap_or(1024) * group.dtypes()[0].size_bytes() as i64;
        let chunk = (0..4).map(|i| 512 >> i).find(|c| c * row <= CHUNK_BYTES);
        Schedule { group, tile, chunk: chunk.unwrap_or(2 * i64::from(tile.rows)) }
    }

    /// Number of independent units: a panel of columns by a chunk of rows.
    pub fn extent(self, p: &MatmulProblem) -> Dim {
        let units = &p.n.ceil_div(&self.tile.width().into()) * &p.m.ceil_div(&self.chunk.into());
        p.batch.iter().fold(units, |a, d| &a * d)
    }

    /// Multiply-adds per nanosecond that one core reaches about: matrix registers give twice that, memory does not.
    pub fn macs_per_ns(self) -> i64 {
        if self.group == Group::Bytes { 1000 } else { 500 }
    }

    /// Elements along `k` of which a panel has whole multiples.
    pub fn depth(self) -> i64 {
        amx::depth(self.group)
    }
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`]. What waits for tables is stored chunk by chunk.
pub fn build(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    s: Schedule,
    lhs: &mut Lhs<'_>,
    b: &Weight,
    epilogue: &mut Epilogue<'_>,
    waiting: Option<&Waiting>,
) {
    let shape = s.tile;
    let depth = Dim::from(s.depth());
    let steps = p.k.ceil_div(&depth);
    let panel_len = &(&steps * &depth) * &shape.width().into();
    let rows = Rows { buf: kb.local(s.group.dtypes()[0], &(&steps * &depth) * &s.chunk.into()), steps: &steps, depth: s.depth() };
    let stage = kb.local(amx::sums(s.group), (shape.width() * i64::from(shape.rows)).into());
    let registers = Registers::new(kb);
    let (n_panels, chunks) = (p.n.ceil_div(&shape.width().into()), p.m.ceil_div(&s.chunk.into()));
    let none = kb.index(-1);
    let packed = kb.var(none);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (part, panel) = tile::div_rem(kb, unit, &n_panels);
        let (flat_batch, chunk) = tile::div_rem(kb, part, &chunks);
        let batch = tile::unflatten(kb, flat_batch, &p.batch);
        let (chunk_len, m_end) = (kb.index(s.chunk), kb.dim(&p.m));
        let m0 = kb.mul(chunk, chunk_len);
        let m1 = kb.add(m0, chunk_len);
        let m1 = kb.bin(BinOp::Min, m1, m_end);
        let here = kb.get(packed);
        let other = kb.bin(BinOp::Ne, here, part);
        kb.if_(
            other,
            |kb| {
                kb.set(packed, part);
                rows.pack(kb, p, lhs, &batch, (m0, m1));
            },
            |_| {},
        );
        let (width, panels, len) = (kb.index(shape.width()), kb.dim(&n_panels), kb.dim(&panel_len));
        let n0 = kb.mul(panel, width);
        let first = kb.mul(flat_batch, panels);
        let which = if b.batched { kb.add(first, panel) } else { panel };
        let column = kb.mul(which, len);
        let next = kb.add(column, len);
        let next = ReadAhead::new(kb, (b.buf, next), (shape.width(), s.depth(), LINES), ((m0, m1), shape.rows));
        kb.for_(m0, m1, shape.rows.into(), Unroll::No, |kb, m| {
            let (inside, zero, end) = (kb.sub(m, m0), kb.index(0), kb.dim(&(&steps * &depth)));
            let ahead = next.tile(kb, m, (zero, end));
            b.touched.ask(kb, (&p.m, &p.n), (m, shape.rows), (n0, shape.width()));
            if let Some(waiting) = waiting {
                waiting.ask(kb, (m, shape.rows), m0, n0);
            }
            let a = rows.registers(kb, inside);
            let b = Panel { buf: b.buf, at: column, ahead: Some(ahead) };
            let (left, all) = (kb.sub(m1, m), kb.dim(&steps));
            registers.multiply(kb, (s.group, shape.vectors), (&a, &b), (left, all), ((stage, zero, width), None));
            let most = kb.index(shape.rows.into());
            let end = kb.add(m, most);
            let end = kb.bin(BinOp::Min, end, m1);
            tile::hand_on(kb, shape, stage, (m, end), (n0, &p.n), &mut |kb, m, n, x, count| epilogue(kb, &batch, m, n, x, count));
        });
        if let Some(waiting) = waiting {
            waiting.store(kb, (m0, m1), n0);
        }
    });
}

/// The rows of a chunk as registers take them: `[row / 16][step][row % 16][depth]`.
struct Rows<'a> {
    buf: Buf,
    steps: &'a Dim,
    depth: i64,
}

impl Rows<'_> {
    /// Where a row of the chunk starts.
    fn at(&self, kb: &mut KernelBuilder, row: Reg) -> Reg {
        let (block, inside) = tile::div_rem(kb, row, &ROWS.into());
        let (block_len, row_len) = (kb.dim(&(self.steps * &Dim::from(ROWS * self.depth))), kb.index(self.depth));
        let (block, inside) = (kb.mul(block, block_len), kb.mul(inside, row_len));
        kb.add(block, inside)
    }

    /// Those of a tile.
    fn registers(&self, kb: &mut KernelBuilder, row: Reg) -> amx::Rows {
        let block = kb.dim(&(self.steps * &Dim::from(ROWS * self.depth)));
        amx::Rows { buf: self.buf, at: self.at(kb, row), row: kb.index(self.depth), block, step: kb.index(ROWS * self.depth) }
    }

    /// Packs some rows, with zeros up to a whole register.
    fn pack(&self, kb: &mut KernelBuilder, p: &MatmulProblem, lhs: &mut Lhs<'_>, batch: &[Reg], (m0, m1): (Reg, Reg)) {
        let dtype = kb.buf_dtype(self.buf);
        let (zero, step_len) = (kb.index(0), kb.index(ROWS * self.depth));
        kb.for_(m0, m1, 1, Unroll::No, |kb, m| {
            let from = (lhs.row)(kb, batch, m);
            let inside = kb.sub(m, m0);
            let to = self.at(kb, inside);
            let (stride, k_end, depth) = (kb.dim(&lhs.k_stride), kb.dim(&p.k), kb.index(self.depth));
            let copy = |kb: &mut KernelBuilder, step: Reg, count: Option<Reg>| {
                let (k, place) = (kb.mul(step, depth), kb.mul(step, step_len));
                let (from, to) = (kb.add(from, k), kb.add(to, place));
                let x = kb.load_part(lhs.buf, from, self.depth as u16, count);
                let x = if dtype == DType::Bf16 { groups::to_bf16(kb, x) } else { x };
                kb.store(self.buf, to, x);
            };
            if lhs.k_stride.is(1) {
                let whole = kb.bin(BinOp::Div, k_end, depth);
                kb.for_(zero, whole, 1, Unroll::Auto, |kb, step| copy(kb, step, None));
                if !p.k.modulo(&self.depth.into()).is(0) {
                    let steps = kb.dim(self.steps);
                    let done = kb.mul(whole, depth);
                    let left = kb.sub(k_end, done);
                    kb.for_(whole, steps, 1, Unroll::No, |kb, step| copy(kb, step, Some(left)));
                }
                return;
            }
            let steps = kb.dim(self.steps);
            kb.for_(zero, steps, 1, Unroll::No, |kb, step| {
                let (k0, place) = (kb.mul(step, depth), kb.mul(step, step_len));
                let to = kb.add(to, place);
                let none = kb.num(Ty::vector(dtype, self.depth as u16), 0.0);
                kb.store(self.buf, to, none);
                let left = kb.sub(k_end, k0);
                let count = kb.bin(BinOp::Min, left, depth);
                kb.for_(zero, count, 1, Unroll::No, |kb, i| {
                    let k = kb.add(k0, i);
                    let (k, to) = (kb.mul(k, stride), kb.add(to, i));
                    let from = kb.add(from, k);
                    let x = kb.load(lhs.buf, from, 1);
                    let x = kb.cast(dtype, x);
                    kb.store(self.buf, to, x);
                });
            });
        });
        let rows = kb.sub(m1, m0);
        let blocks = tile::ceil_div(kb, rows, ROWS);
        let whole = kb.index(ROWS);
        let end = kb.mul(blocks, whole);
        kb.for_(rows, end, 1, Unroll::No, |kb, row| {
            let (to, steps) = (self.at(kb, row), kb.dim(self.steps));
            kb.for_(zero, steps, 1, Unroll::No, |kb, step| {
                let place = kb.mul(step, step_len);
                let to = kb.add(to, place);
                let none = kb.num(Ty::vector(dtype, self.depth as u16), 0.0);
                kb.store(self.buf, to, none);
            });
        });
    }
}
