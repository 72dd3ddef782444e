//! Product of an activation by a constant weight with many zeros, `C[m, n] = sum over k of A[m, k] * W[k, n]`: bytes (exact in `i32`), `f32`, or
//! `bf16` in `f32`.
//!
//! **Contract.** The weight is stored by blocks ([`crate::sparse::Sparse`]); those of zeros are not there. Each sum runs over the kept rows in
//! ascending order, in one accumulator (of a pair of `bf16` the odd one first); with blocks of one column a second one takes every other group of
//! a piece, since four sums alone wait for each other. A zero weight does not spread a NaN or an infinity of
//! the activation. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** As Shen et al. 2023 ("An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs"): the
//! activation is turned so that the rows of `A` are neighbours, four vectors of rows are one tile, and a block of weights is broadcast
//! against them. Where an instruction sums products of a group of rows of the weight, four for bytes and two for `bf16`, the kept rows of a group are
//! interleaved by unpacking within 128-bit lanes; the rows of `A` stand in the panel in the order that makes the interleaved vectors come out sorted.
//! Blocks as high as a group need no unpacking: such rows are neighbours in the panel. Without an instruction for sums of products of bytes, both
//! operands have 16 bits, and kept rows go by twos. With 16 registers a block row takes two passes over half of a tile each, but for unpacked bytes, of
//! which four vectors come at once. A panel is turned once for all units of it that one thread computes, and lives in the second-level cache; a strip of
//! columns goes over it piece by piece. The sums of a strip wait in memory and turn back together.

use std::fmt;
use std::ops::Range;

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::Touched;
use super::bytes::{self, Coding, Strip, ask_for_tables};
use super::groups::{self, Group};
use super::lies::Lies;
use super::matmul_int8::{Epilogue, RowOffset};
use super::spmm_turn::{copy_panel, turn_back, turn_panel};
use super::tile;
use super::transpose::{interleave, unpack};
use crate::sparse::Block;

/// Vectors of rows per tile, and of columns per strip: a strip's rows fill whole cache lines, even those of bytes.
pub(super) const VECTORS: u16 = 4;
/// Bytes of a piece of a panel.
const PIECE_BYTES: i64 = 48 * 1024;
/// Bytes of the weight's values by which it is asked for before it is read.
const AHEAD_BYTES: i64 = 1024;
/// Groups per turn where there is more than one chain.
const TURN: i64 = 4;

/// Rows of `A` in a tile, for vectors of so many lanes.
pub fn tile_rows(lanes: u16) -> i64 {
    i64::from(lanes * VECTORS)
}

/// How a product is computed; `Display` is part of the kernel's symbol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule {
    /// 32-bit numbers per vector.
    pub lanes: u16,
    /// What is kept or left out of the weight. Its rows are one, or those of a group.
    pub block: Block,
    /// What one instruction sums; `None` for `f32`.
    pub group: Option<Group>,
    /// The activation `[m, k]`: if it lies turned, it has not to be.
    pub from: Lies,
    /// The result: if it lies turned, the sums have not to be turned back.
    pub to: Lies,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match self.group {
            None => "f32",
            Some(Group::Bf16) => "bf16",
            Some(Group::Bytes) => "int8",
            Some(Group::Words) => "int8w",
        };
        write!(f, "spmm{}_{dtype}_m{}n{}{}{}", self.block, self.rows(), self.lanes, self.from, self.to)
    }
}

impl Schedule {
    /// Rows of `A` in a tile.
    pub fn rows(self) -> i64 {
        tile_rows(self.lanes)
    }

    /// Rows of the weight that one group holds.
    pub fn quad(self) -> i64 {
        self.group.map_or(1, Group::size)
    }

    /// Blocks of a group.
    pub(super) fn blocks(self) -> i64 {
        self.quad() / i64::from(self.block.rows)
    }

    /// True if the rows of a group are neighbours in the weight, and in the panel.
    pub fn whole_groups(self) -> bool {
        self.blocks() == 1 && self.quad() > 1
    }

    /// True if sums are integers.
    pub fn is_int(self) -> bool {
        matches!(self.group, Some(Group::Bytes | Group::Words))
    }

    /// Vectors of rows whose sums are taken at once.
    fn pass(self) -> u16 {
        let unpacked = self.group == Some(Group::Bytes) && !self.whole_groups();
        if self.lanes == 16 || self.block.columns == 1 || unpacked { VECTORS } else { VECTORS / 2 }
    }

    /// Columns of a strip.
    pub(super) fn strip(self) -> i64 {
        self.rows()
    }

    /// Rows of the weight that are worked off at once: those of the panel stay in the first-level cache for all columns of a strip.
    pub fn piece(self) -> i64 {
        let bytes = if self.is_int() && self.block.columns > 1 { i64::MAX } else { PIECE_BYTES };
        bytes / self.rows() / self.dtype().size_bytes() as i64
    }

    /// Accumulators of an element.
    fn chains(self) -> usize {
        if self.block.columns == 1 { 2 } else { 1 }
    }

    /// Number of independent units for `m` rows and `n` columns: a tile of rows by a strip of columns.
    pub fn extent(self, m: &Dim, n: &Dim) -> Dim {
        &m.ceil_div(&self.rows().into()) * &n.ceil_div(&self.strip().into())
    }

    /// Element type of the panel.
    pub(super) fn dtype(self) -> DType {
        self.group.map_or(DType::F32, |g| g.dtypes()[0])
    }

    /// Element type of the weight's blocks.
    pub fn values(self) -> DType {
        self.group.map_or(DType::F32, |g| g.dtypes()[1])
    }

    pub(super) fn sums(self) -> DType {
        if self.is_int() { DType::I32 } else { DType::F32 }
    }

    /// Elements of the activation as those of the panel; floats `rounded` to `bf16` or not.
    pub(super) fn encode(self, kb: &mut KernelBuilder, x: Reg, rounded: bool) -> Reg {
        match self.group {
            Some(Group::Bf16) => groups::to_bf16(kb, x),
            None if rounded => {
                let x = kb.cast(DType::Bf16, x);
                kb.cast(DType::F32, x)
            }
            _ => kb.cast(self.dtype(), x),
        }
    }
}

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
    /// Where that lies turned: the distance between two tiles by the rows between them.
    pub a_stride: Dim,
    /// Its elements are rounded to `bf16` before they are multiplied.
    pub rounded: bool,
    /// First group of each block row, and the end.
    pub starts: Buf,
    /// First row of a block times the rows of a tile, for each block of each group.
    pub offsets: Buf,
    /// `[groups][columns][quad]` of type [`Schedule::values`].
    pub values: Buf,
    /// What the epilogue reads and writes.
    pub touched: Touched,
    /// The epilogue may stand once per vector of a tile: where results are not turned back, it takes the sums from registers.
    pub short: bool,
}

/// What happens to the sums.
pub enum Finish<'a> {
    /// All is up to the caller. Vectors run along the columns, or if the result lies turned along the rows.
    Each(&'a mut Epilogue<'a>),
    /// They become bytes that depend on the column alone, which are stored here.
    Bytes(Bytes<'a>),
}

/// A result of bytes. For vectors of 16 lanes and dot products of bytes.
pub struct Bytes<'a> {
    /// Gives what is coded, `f32`, for row, column, and sums of rows from there on.
    pub real: &'a mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg) -> Reg,
    /// What makes bytes of it.
    pub coding: Coding,
    /// `u8[n, 256]`: what becomes of each of them.
    pub table: Option<Buf>,
    /// The result.
    pub out: Buf,
}

impl Problem<'_> {
    /// Where the first column of the result has the row `m0` of a tile, and the distance between columns; `None` if rows do not lie beside each other.
    fn turned_result(&self, kb: &mut KernelBuilder, s: Schedule, m0: Reg) -> Option<(Reg, Dim)> {
        match s.to {
            Lies::Rows => None,
            Lies::Turned => Some((m0, self.m.clone())),
            Lies::Blocks => {
                let n = kb.index(self.n);
                Some((kb.mul(m0, n), s.rows().into()))
            }
        }
    }
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`]. `row` gives the offset of a row of `A`, or if that lies turned that of a
/// column's first row.
pub fn build(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, row: &mut RowOffset<'_>, mut finish: Finish<'_>) {
    let (rows, height, columns) = (s.rows(), i64::from(s.block.columns), s.strip());
    let panel = kb.local(s.dtype(), Dim::from((p.k + rows - 1) / rows * rows * rows));
    let scratch = kb.local(DType::U8, Dim::from(if s.is_int() { rows * rows } else { 0 }));
    let sums = kb.local(s.sums(), Dim::from(columns * rows));
    let (is_bytes, table) = match &finish {
        Finish::Bytes(b) => (true, b.table),
        Finish::Each(_) => (false, None),
    };
    let square = kb.local(DType::U8, Dim::from(if is_bytes && !s.to.turned() { columns * rows } else { 0 }));
    let strips = Dim::from((p.n + columns - 1) / columns);
    let none = kb.index(-1);
    let current = kb.var(none);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (which, strip) = tile::div_rem(kb, unit, &strips);
        let (tile_rows, width) = (kb.index(rows), kb.index(columns));
        let (m0, n0) = (kb.mul(which, tile_rows), kb.mul(strip, width));
        let here = kb.get(current);
        let other = kb.bin(BinOp::Ne, here, which);
        kb.if_(
            other,
            |kb| {
                kb.set(current, which);
                if s.from.turned() {
                    copy_panel(kb, p, s, panel, m0, row);
                } else {
                    turn_panel(kb, p, s, (panel, scratch), m0, row);
                }
            },
            |_| {},
        );
        let (blocks, per_strip) = (kb.index((p.n + height - 1) / height), kb.index(columns / height));
        let b0 = kb.mul(strip, per_strip);
        let b1 = kb.add(b0, per_strip);
        let b1 = kb.bin(BinOp::Min, b1, blocks);
        let pieces = (p.k + s.piece() - 1) / s.piece();
        let (zero, len) = (kb.index(0), kb.index(height * rows));
        let clear = |kb: &mut KernelBuilder, from: Reg| {
            let (end, nothing) = (kb.index(columns * rows), kb.num(Ty::vector(s.sums(), s.lanes), 0.0));
            kb.for_(from, end, s.lanes.into(), Unroll::No, |kb, at| kb.store(sums, at, nothing));
        };
        let at_once = pieces == 1 && (s.to.turned() || is_bytes);
        if pieces > 1 {
            clear(kb, zero);
        } else if p.n % columns != 0 && !at_once {
            // What turns with the last columns.
            let done = kb.sub(b1, b0);
            let from = kb.mul(done, len);
            clear(kb, from);
        }
        let mut finish_block = |kb: &mut KernelBuilder, block: Reg, from: Sums<'_>| {
            let place = (m0, block);
            match &mut finish {
                Finish::Each(epilogue) => finish_rows(kb, p, s, from, place, epilogue),
                Finish::Bytes(b) => code_rows(kb, p, s, from, place, b, (square, n0)),
            }
        };
        let pieces_end = kb.index(pieces);
        kb.for_(zero, pieces_end, 1, Unroll::No, |kb, piece| {
            let first_row = kb.mul(piece, blocks);
            kb.for_(b0, b1, 1, Unroll::No, |kb, block| {
                let (row, done) = (kb.add(first_row, block), kb.sub(block, b0));
                let at = kb.mul(done, len);
                ask_for_results(kb, p, s, (m0, n0), done);
                if let Some(table) = table {
                    let one = kb.index(1);
                    let next = kb.add(block, one);
                    ask_for_tables(kb, table, (next, height));
                }
                if at_once && p.short && s.pass() == VECTORS {
                    let acc = accumulators(kb, s, (0..VECTORS, None));
                    block_row(kb, p, s, panel, (row, 0), &acc);
                    finish_block(kb, block, Sums::Registers(&acc));
                    return;
                }
                for first in (0..VECTORS).step_by(s.pass().into()) {
                    add_block_row(kb, p, s, panel, (row, first), (sums, at, pieces > 1));
                }
                if at_once {
                    finish_block(kb, block, Sums::Memory(sums, at));
                }
            });
        });
        if pieces > 1 && (s.to.turned() || is_bytes) {
            kb.for_(b0, b1, 1, Unroll::No, |kb, block| {
                let done = kb.sub(block, b0);
                let at = kb.mul(done, len);
                finish_block(kb, block, Sums::Memory(sums, at));
            });
        }
        match &mut finish {
            _ if s.to.turned() => {}
            Finish::Bytes(b) => {
                let end = kb.dim(p.m);
                let left = kb.sub(end, m0);
                let strip = Strip { out: b.out, n: p.n, width: columns };
                strip.store(kb, (square, scratch), table, (m0, left), n0);
            }
            Finish::Each(epilogue) => turn_back(kb, p, s, sums, (m0, n0), epilogue),
        }
    });
}

/// Asks for a part of what a strip's results are stored in: the columns of a block row where they lie turned, else some rows of all columns.
fn ask_for_results(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, (m0, n0): (Reg, Reg), block: Reg) {
    let height = kb.index(s.block.columns.into());
    let part = kb.mul(block, height);
    if let Some((start, stride)) = p.turned_result(kb, s, m0) {
        let column = kb.add(n0, part);
        p.touched.ask(kb, (p.m, &stride), (column, s.block.columns), (start, s.rows()));
    } else {
        let row = kb.add(m0, part);
        p.touched.ask(kb, (p.m, &p.n.into()), (row, s.block.columns), (n0, s.strip()));
    }
}

/// Adds one block row to its sums, for [`Schedule::pass`] vectors of rows from `first_vector` on. They lie at `sums[at..]`, `[columns][rows]`; without
/// `begun` what lies there does not count.
fn add_block_row(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    panel: Buf,
    (row, first_vector): (Reg, u16),
    (sums, at, begun): (Buf, Reg, bool),
) {
    let vectors = first_vector..first_vector + s.pass();
    let places = places(kb, s, vectors.clone(), at);
    let acc = accumulators(kb, s, (vectors, begun.then_some((sums, places.as_slice()))));
    block_row(kb, p, s, panel, (row, first_vector), &acc);
    tile::store_at(kb, sums, &places, &acc);
}

/// Where the sums of some vectors of a block row lie, `[columns][rows]` from `at` on.
fn places(kb: &mut KernelBuilder, s: Schedule, vectors: Range<u16>, at: Reg) -> Vec<Reg> {
    let place = |column: i64, v: u16| column * s.rows() + i64::from(v * s.lanes);
    let places = (0..i64::from(s.block.columns)).flat_map(|column| vectors.clone().map(move |v| place(column, v)));
    places
        .map(|place| {
            let place = kb.index(place);
            kb.add(at, place)
        })
        .collect()
}

/// Accumulators of some vectors of a block row, by column and vector: zero, or what lies at these places.
fn accumulators(kb: &mut KernelBuilder, s: Schedule, (vectors, begun): (Range<u16>, Option<(Buf, &[Reg])>)) -> Vec<Var> {
    let nothing = kb.num(Ty::vector(s.sums(), s.lanes), 0.0);
    (0..usize::from(s.block.columns) * vectors.len())
        .map(|i| {
            let x = begun.map_or(nothing, |(sums, places)| kb.load(sums, places[i], s.lanes));
            kb.var(x)
        })
        .collect()
}

/// Adds one block row to accumulators, by column of the block and vector of rows.
fn block_row(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, (row, first_vector): (Reg, u16), acc: &[Var]) {
    let one = kb.index(1);
    let next = kb.add(row, one);
    let [first, end] = [row, next].map(|b| {
        let g = kb.load(p.starts, b, 1);
        kb.cast(DType::I64, g)
    });
    let nothing = kb.num(Ty::vector(s.sums(), s.lanes), 0.0);
    let chains: Vec<Vec<Var>> =
        (0..s.chains()).map(|i| if i == 0 { acc.to_vec() } else { acc.iter().map(|_| kb.var(nothing)).collect() }).collect();
    let turn = if chains.len() == 1 { 1 } else { TURN };
    let ahead = AHEAD_BYTES / (s.quad() * i64::from(s.block.columns) * s.values().size_bytes() as i64);
    let whole = tile::whole_turns(kb, (first, end), turn);
    kb.for_(first, whole, turn, Unroll::No, |kb, g| {
        let distance = kb.index(ahead);
        let later = kb.add(g, distance);
        let (blocks, size) = (kb.index(s.blocks()), kb.index(s.quad() * i64::from(s.block.columns)));
        let (later_member, later_value) = (kb.mul(later, blocks), kb.mul(later, size));
        kb.prefetch(p.offsets, later_member);
        kb.prefetch(p.values, later_value);
        for (i, chain) in (0..turn).zip(chains.iter().cycle()) {
            let i = kb.index(i);
            let g = kb.add(g, i);
            add_group(kb, p, s, panel, (g, first_vector), chain);
        }
    });
    if let [one, other] = chains.as_slice() {
        kb.for_(whole, end, 1, Unroll::No, |kb, g| add_group(kb, p, s, panel, (g, first_vector), one));
        for (a, b) in one.iter().zip(other) {
            let (x, y) = (kb.get(*a), kb.get(*b));
            let sum = kb.add(x, y);
            kb.set(*a, sum);
        }
    }
}

/// Adds one group of a block row to its sums.
fn add_group(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, (g, first_vector): (Reg, u16), acc: &[Var]) {
    let group = s.quad() as u16;
    let spread: Vec<u16> = (0..s.lanes * group).map(|i| i % group).collect();
    let (blocks, size) = (kb.index(s.blocks()), kb.index(s.quad() * i64::from(s.block.columns)));
    let (member, value) = (kb.mul(g, blocks), kb.mul(g, size));
    let kept: Vec<Reg> = (0..s.blocks())
        .map(|i| {
            let i = kb.index(i);
            let at = kb.add(member, i);
            let offset = kb.load(p.offsets, at, 1);
            kb.cast(DType::I64, offset)
        })
        .collect();
    let vectors = first_vector..first_vector + s.pass();
    // As many vectors as one load of each kept row gives.
    let mut x: Vec<Reg> = Vec::new();
    for v in vectors.step_by(kept.len()) {
        let v = kb.index(i64::from(v) * i64::from(s.lanes) * i64::from(s.block.rows));
        let rows: Vec<Reg> = kept
            .iter()
            .map(|row| {
                let at = kb.add(*row, v);
                kb.load(panel, at, s.lanes * group)
            })
            .collect();
        x.extend(match rows.as_slice() {
            [a, b, c, d] => interleave(kb, [*a, *b, *c, *d]),
            [a, b] => [false, true].map(|upper| unpack(kb, [*a, *b], 8, 1, upper)).to_vec(),
            one => one.to_vec(),
        });
    }
    for (r, acc) in acc.chunks(s.pass().into()).enumerate() {
        let r = kb.index(r as i64 * s.quad());
        let at = kb.add(value, r);
        let w = kb.load(p.values, at, group);
        let w = match s.group {
            Some(_) => kb.push(Inst::Shuffle(w, w, spread.clone())),
            None => kb.splat(s.lanes, w),
        };
        for (x, var) in x.iter().zip(acc) {
            let sum = kb.get(*var);
            let sum = match s.group {
                Some(group) => kb.target(group.dot(), &[sum, *x, w]),
                None => kb.fma(*x, w, sum),
            };
            kb.set(*var, sum);
        }
    }
}

/// How many of the `width` elements from `at` on exist where `left` do; `None` if all do for sure.
pub(super) fn clipped(kb: &mut KernelBuilder, m: &Dim, s: Schedule, left: Reg, (at, width): (Reg, i64)) -> Option<Reg> {
    (!m.modulo(&s.rows().into()).is(0)).then(|| {
        let rest = kb.sub(left, at);
        tile::active(kb, rest, width)
    })
}

/// Where the sums of a block row are.
#[derive(Clone, Copy)]
enum Sums<'a> {
    /// `[columns][rows]` from an element on.
    Memory(Buf, Reg),
    /// By column and vector.
    Registers(&'a [Var]),
}

impl Sums<'_> {
    /// The sums of the rows from `at` on, which is a vector's first one, in a column.
    fn vector(self, kb: &mut KernelBuilder, s: Schedule, column: i64, at: i64) -> Reg {
        match self {
            Sums::Memory(buf, start) => {
                let place = kb.index(column * s.rows() + at);
                let from = kb.add(start, place);
                kb.load(buf, from, s.lanes)
            }
            Sums::Registers(acc) => kb.get(acc[(column * i64::from(VECTORS) + at / i64::from(s.lanes)) as usize]),
        }
    }
}

/// Does something for the columns of a block row that exist, one after the other: their place in the block, and which ones they are.
fn each_column(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    block: Reg,
    body: &mut dyn FnMut(&mut KernelBuilder, i64, Reg),
) {
    let (height, columns) = (kb.index(s.block.columns.into()), kb.index(p.n));
    let first = kb.mul(block, height);
    for column in 0..i64::from(s.block.columns) {
        let c = kb.index(column);
        let n = kb.add(first, c);
        if p.n % i64::from(s.block.columns) == 0 {
            body(kb, column, n);
        } else {
            let live = kb.bin(BinOp::Lt, n, columns);
            kb.if_(live, |kb| body(kb, column, n), |_| {});
        }
    }
}

/// Hands the sums of a block row over as they are: vectors along the rows.
fn finish_rows(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    sums: Sums<'_>,
    (m0, block): (Reg, Reg),
    epilogue: &mut Epilogue<'_>,
) {
    let (rows, m_end, zero) = (kb.index(s.rows()), kb.dim(p.m), kb.index(0));
    let left = kb.sub(m_end, m0);
    each_column(kb, p, s, block, &mut |kb, column, n| {
        let mut one = |kb: &mut KernelBuilder, at: Reg, x: Reg| {
            let count = clipped(kb, p.m, s, left, (at, s.lanes.into()));
            let m = kb.add(m0, at);
            epilogue(kb, m, n, x, count);
        };
        match sums {
            Sums::Memory(buf, start) => {
                let column_len = kb.index(column * s.rows());
                let from = kb.add(start, column_len);
                kb.for_(zero, rows, s.lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, at| {
                    let from = kb.add(from, at);
                    let x = kb.load(buf, from, s.lanes);
                    one(kb, at, x);
                });
            }
            Sums::Registers(_) => {
                for at in (0..s.rows()).step_by(s.lanes.into()) {
                    let x = sums.vector(kb, s, column, at);
                    let at = kb.index(at);
                    one(kb, at, x);
                }
            }
        }
    });
}

/// Makes bytes of the sums of a block row: results where they lie turned, else a part of `square`, `[column][row]` of the strip from column `n0` on.
fn code_rows(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    sums: Sums<'_>,
    (m0, block): (Reg, Reg),
    b: &mut Bytes<'_>,
    (square, n0): (Buf, Reg),
) {
    let (zero, m_end, rows) = (kb.index(0), kb.dim(p.m), kb.index(s.rows()));
    let left = kb.sub(m_end, m0);
    let count = clipped(kb, p.m, s, left, (zero, s.rows()));
    let order = bytes::one_after_the_other(s.lanes);
    let turned = p.turned_result(kb, s, m0);
    each_column(kb, p, s, block, &mut |kb, column, n| {
        let x = [0, 1, 2, 3].map(|v| {
            let at = v * i64::from(s.lanes);
            let x = sums.vector(kb, s, column, at);
            let at = kb.index(at);
            let m = kb.add(m0, at);
            (b.real)(kb, m, n, x)
        });
        let y = b.coding.pack(kb, x);
        let y = kb.push(Inst::Shuffle(y, y, order.clone()));
        let Some((start, stride)) = &turned else {
            let c = kb.sub(n, n0);
            let at = kb.mul(c, rows);
            let y = kb.push(Inst::Bitcast(DType::U8, y));
            return kb.store(square, at, y);
        };
        let y = b.table.map_or(y, |table| bytes::look_up(kb, (table, n), y));
        let stride = kb.dim(stride);
        let at = kb.mul(n, stride);
        let at = kb.add(at, *start);
        kb.store_part(b.out, at, y, count);
    });
}
