//! Product of an activation by a constant weight with many zeros, `C[m, n] = sum over k of A[m, k] * W[k, n]`: bytes (exact in `i32`) or `f32`.
//!
//! **Contract.** The weight is stored by blocks of `height` neighbouring columns of `W` by one row ([`crate::sparse::Sparse`]); blocks of zeros
//! are not there. Each sum runs over the kept rows in ascending order, in one accumulator; with blocks of one column a second one takes every other row
//! of a piece, since four sums alone wait for each other. A zero weight does not spread a NaN or an infinity of
//! the activation. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** As Shen et al. 2023 ("An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs"): the
//! activation is turned so that the rows of `A` are neighbours, four vectors of rows are one tile, and a block of weights is broadcast
//! against them. For bytes, `quad` = 4 kept rows of the weight are interleaved by unpacking within 128-bit lanes; the rows of `A` stand in
//! the panel in the order that makes the interleaved vectors come out sorted. Without an instruction for sums of products of bytes, both
//! operands have 16 bits, and kept rows go by twos. With 16 registers a block row takes two passes over half of a tile each. A panel is turned once for all units of it that
//! one thread computes, and lives in the second-level cache; a strip of columns goes over it piece by piece. The sums of a strip wait in memory and turn
//! back together.

use std::fmt;

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, TargetInst, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::matmul_int8::{Epilogue, RowOffset};
use super::tile::{self, TileShape};
use super::transpose::{interleave, transpose, unpack};

/// Vectors of rows per tile, and of columns per strip: a strip's rows fill whole cache lines, even those of bytes.
const VECTORS: u16 = 4;
/// Bytes of a piece of a panel.
const PIECE_BYTES: i64 = 48 * 1024;
/// Bytes of the weight's values by which it is asked for before it is read.
const AHEAD_BYTES: i64 = 1024;
/// Bytes of a column's table.
const TABLE: i64 = 256;
/// Bytes of a cache line.
const LINE: i64 = 64;
/// Rows of the weight per turn where there is more than one chain.
const TURN: i64 = 4;

/// How a product is computed; `Display` is part of the kernel's symbol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule {
    /// 32-bit numbers per vector.
    pub lanes: u16,
    /// Columns of a block of the weight.
    pub height: u16,
    /// Bytes instead of floats.
    pub int8: bool,
    /// Bytes multiplied in 16 bits.
    pub words: bool,
    /// The activation is `[k, m]`: it has not to be turned.
    pub turned_in: bool,
    /// The result is `[n, m]`: the sums have not to be turned back.
    pub turned_out: bool,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = ["f32", "int8", "int8w"][usize::from(self.int8) + usize::from(self.words)];
        let turned = match (self.turned_in, self.turned_out) {
            (false, false) => "",
            (true, false) => "ti",
            (false, true) => "to",
            (true, true) => "t",
        };
        write!(f, "spmm{}x1_{dtype}_m{}n{}{turned}", self.height, self.rows(), self.lanes)
    }
}

impl Schedule {
    /// The schedule for blocks of `height` columns on a machine with vectors of `lanes` 32-bit numbers, with an instruction for sums of products of
    /// bytes or not. Nothing is turned yet.
    pub fn choose(lanes: u16, byte_dot: bool, height: u16, int8: bool) -> Schedule {
        Schedule { lanes, height, int8, words: int8 && !byte_dot, turned_in: false, turned_out: false }
    }

    /// Rows of `A` in a tile.
    pub fn rows(self) -> i64 {
        i64::from(self.lanes * VECTORS)
    }

    /// Rows of the weight that one group holds.
    pub fn quad(self) -> i64 {
        match (self.int8, self.words) {
            (false, _) => 1,
            (true, false) => 4,
            (true, true) => 2,
        }
    }

    /// Vectors of rows whose sums are taken at once.
    fn pass(self) -> u16 {
        if self.lanes == 16 || self.height == 1 || self.int8 && !self.words { VECTORS } else { VECTORS / 2 }
    }

    /// Columns of a strip.
    fn strip(self) -> i64 {
        self.rows()
    }

    /// Rows of the weight that are worked off at once: those of the panel stay in the first-level cache for all columns of a strip.
    pub fn piece(self) -> i64 {
        let bytes = if self.int8 { i64::MAX } else { PIECE_BYTES };
        bytes / self.rows() / self.dtype().size_bytes() as i64
    }

    /// Accumulators of an element.
    fn chains(self) -> usize {
        if self.height == 1 { 2 } else { 1 }
    }

    /// Number of independent units for `m` rows and `n` columns: a tile of rows by a strip of columns.
    pub fn extent(self, m: &Dim, n: &Dim) -> Dim {
        &m.ceil_div(&self.rows().into()) * &n.ceil_div(&self.strip().into())
    }

    /// Element type of the panel.
    fn dtype(self) -> DType {
        match (self.int8, self.words) {
            (false, _) => DType::F32,
            (true, false) => DType::U8,
            (true, true) => DType::I16,
        }
    }

    /// Element type of the weight's blocks.
    pub fn values(self) -> DType {
        if self.int8 && !self.words { DType::I8 } else { self.dtype() }
    }

    fn sums(self) -> DType {
        if self.int8 { DType::I32 } else { DType::F32 }
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
    /// First group of each block row, and the end.
    pub starts: Buf,
    /// Row of the weight times the rows of a tile, for each member of each group.
    pub offsets: Buf,
    /// `[groups][height][quad]` of type [`Schedule::values`].
    pub values: Buf,
}

/// What happens to the sums.
pub enum Finish<'a> {
    /// All is up to the caller. Vectors run along the columns, or with [`Schedule::turned_out`] along the rows.
    Each(&'a mut Epilogue<'a>),
    /// They become bytes that depend on the column alone, which are stored here.
    Bytes(Bytes<'a>),
}

/// A result of bytes, `[m, n]`, or with [`Schedule::turned_out`] `[n, m]`. For vectors of 16 lanes and dot products of bytes.
pub struct Bytes<'a> {
    /// Gives the bytes for row, column, and sums of rows from there on.
    pub encode: &'a mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg) -> Reg,
    /// `u8[n, 256]`: what becomes of each of them.
    pub table: Option<Buf>,
    /// The result.
    pub out: Buf,
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`]. `row` gives the offset of a row of `A`, or with
/// [`Schedule::turned_in`] that of row `k` of the activation.
pub fn build(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, row: &mut RowOffset<'_>, mut finish: Finish<'_>) {
    let (rows, height, columns) = (s.rows(), i64::from(s.height), s.strip());
    let panel = kb.local(s.dtype(), Dim::from((p.k + rows - 1) / rows * rows * rows));
    let scratch = kb.local(DType::U8, Dim::from(if s.int8 { rows * rows } else { 0 }));
    let sums = kb.local(s.sums(), Dim::from(columns * rows));
    let (bytes, table) = match &finish {
        Finish::Bytes(b) => (Some(kb.local(kb.buf_dtype(b.out), Dim::from(columns * rows))), b.table),
        Finish::Each(_) => (None, None),
    };
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
                if s.turned_in {
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
        let at_once = pieces == 1 && (s.turned_out || bytes.is_some());
        if pieces > 1 {
            clear(kb, zero);
        } else if p.n % columns != 0 && !at_once {
            // What turns with the last columns.
            let done = kb.sub(b1, b0);
            let from = kb.mul(done, len);
            clear(kb, from);
        }
        let mut finish_block = |kb: &mut KernelBuilder, block: Reg, at: Reg| {
            let place = (m0, block);
            match &mut finish {
                Finish::Each(epilogue) => finish_rows(kb, p, s, (sums, at), place, epilogue),
                Finish::Bytes(b) => finish_rows(kb, p, s, (sums, at), place, &mut |kb, m, n, x, _| {
                    let y = (b.encode)(kb, m, n, x);
                    let (r, c) = (kb.sub(m, m0), kb.sub(n, n0));
                    let at = kb.mul(c, tile_rows);
                    let at = kb.add(at, r);
                    if let Some(bytes) = bytes {
                        kb.store(bytes, at, y);
                    }
                }),
            }
        };
        let pieces_end = kb.index(pieces);
        kb.for_(zero, pieces_end, 1, Unroll::No, |kb, piece| {
            let first_row = kb.mul(piece, blocks);
            kb.for_(b0, b1, 1, Unroll::No, |kb, block| {
                let (row, done) = (kb.add(first_row, block), kb.sub(block, b0));
                let at = kb.mul(done, len);
                if let Some(table) = table {
                    ask_for_tables(kb, table, (block, height));
                }
                for first in (0..VECTORS).step_by(s.pass().into()) {
                    add_block_row(kb, p, s, panel, (row, first), (sums, at, pieces > 1));
                }
                if at_once {
                    finish_block(kb, block, at);
                }
            });
        });
        if pieces > 1 && (s.turned_out || bytes.is_some()) {
            kb.for_(b0, b1, 1, Unroll::No, |kb, block| {
                let done = kb.sub(block, b0);
                let at = kb.mul(done, len);
                finish_block(kb, block, at);
            });
        }
        match (&mut finish, bytes) {
            (Finish::Bytes(b), Some(from)) => store_bytes(kb, p, s, b, ((from, scratch), m0, n0)),
            (Finish::Each(epilogue), _) if !s.turned_out => turn_back(kb, p, s, sums, (m0, n0), epilogue),
            _ => {}
        }
    });
}

/// Stores the bytes of a strip, `[column][row]`, where they belong, after a look at their tables.
fn store_bytes(
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
fn ask_for_tables(kb: &mut KernelBuilder, table: Buf, (block, height): (Reg, i64)) {
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

/// Adds one block row to its sums, for [`Schedule::pass`] vectors of rows from `first_vector` on. They lie at `sums[at..]`, `[height][rows]`; without
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
    let places: Vec<Reg> = (0..i64::from(s.height))
        .flat_map(|column| vectors.clone().map(move |v| column * s.rows() + i64::from(v * s.lanes)))
        .map(|place| {
            let place = kb.index(place);
            kb.add(at, place)
        })
        .collect();
    let nothing = kb.num(Ty::vector(s.sums(), s.lanes), 0.0);
    let acc: Vec<Var> = places
        .iter()
        .map(|at| {
            let x = if begun { kb.load(sums, *at, s.lanes) } else { nothing };
            kb.var(x)
        })
        .collect();
    block_row(kb, p, s, panel, (row, first_vector), &acc);
    for (at, var) in places.iter().zip(&acc) {
        let x = kb.get(*var);
        kb.store(sums, *at, x);
    }
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
    let ahead = AHEAD_BYTES / (s.quad() * i64::from(s.height) * s.values().size_bytes() as i64);
    let whole = tile::whole_turns(kb, (first, end), turn);
    kb.for_(first, whole, turn, Unroll::No, |kb, g| {
        let distance = kb.index(ahead);
        let later = kb.add(g, distance);
        let (quad, size) = (kb.index(s.quad()), kb.index(s.quad() * i64::from(s.height)));
        let (later_member, later_value) = (kb.mul(later, quad), kb.mul(later, size));
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
    let dot = if s.words { TargetInst::VpDpWssd } else { TargetInst::VpDpBusd };
    let (quad, size) = (kb.index(s.quad()), kb.index(s.quad() * i64::from(s.height)));
    let (member, value) = (kb.mul(g, quad), kb.mul(g, size));
    let kept: Vec<Reg> = (0..s.quad())
        .map(|i| {
            let i = kb.index(i);
            let at = kb.add(member, i);
            let offset = kb.load(p.offsets, at, 1);
            kb.cast(DType::I64, offset)
        })
        .collect();
    // As many vectors as one load of each kept row gives.
    let mut x: Vec<Reg> = Vec::new();
    for v in (first_vector..first_vector + s.pass()).step_by(group.into()) {
        let v = kb.index(i64::from(v) * i64::from(s.lanes));
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
        let w = if s.int8 {
            let w = kb.load(p.values, at, group);
            kb.push(Inst::Shuffle(w, w, spread.clone()))
        } else {
            let w = kb.load(p.values, at, 1);
            kb.splat(s.lanes, w)
        };
        for (x, var) in x.iter().zip(acc) {
            let sum = kb.get(*var);
            let sum = if s.int8 { kb.target(dot, &[sum, *x, w]) } else { kb.fma(*x, w, sum) };
            kb.set(*var, sum);
        }
    }
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
fn copy_panel(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, panel: Buf, m0: Reg, row: &mut RowOffset<'_>) {
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

/// How many of the `width` elements from `at` on exist where `left` do; `None` if all do for sure.
fn clipped(kb: &mut KernelBuilder, m: &Dim, s: Schedule, left: Reg, (at, width): (Reg, i64)) -> Option<Reg> {
    (!m.modulo(&s.rows().into()).is(0)).then(|| {
        let rest = kb.sub(left, at);
        tile::active(kb, rest, width)
    })
}

/// Hands the sums of a block row over as they are: vectors along the rows.
fn finish_rows(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    (sums, start): (Buf, Reg),
    (m0, block): (Reg, Reg),
    epilogue: &mut Epilogue<'_>,
) {
    let (rows, height, columns, m_end) = (kb.index(s.rows()), kb.index(s.height.into()), kb.index(p.n), kb.dim(p.m));
    let (zero, first, left) = (kb.index(0), kb.mul(block, height), kb.sub(m_end, m0));
    for r in 0..i64::from(s.height) {
        let r = kb.index(r);
        let (n, column_len) = (kb.add(first, r), kb.mul(r, rows));
        let from = kb.add(start, column_len);
        let mut column = |kb: &mut KernelBuilder| {
            kb.for_(zero, rows, s.lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, at| {
                let count = clipped(kb, p.m, s, left, (at, s.lanes.into()));
                let (m, from) = (kb.add(m0, at), kb.add(from, at));
                let x = kb.load(sums, from, s.lanes);
                epilogue(kb, m, n, x, count);
            });
        };
        if p.n % i64::from(s.height) == 0 {
            column(kb);
        } else {
            let live = kb.bin(BinOp::Lt, n, columns);
            kb.if_(live, column, |_| {});
        }
    }
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
fn turn_panel(
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
fn turn_back(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, sums: Buf, (m0, n0): (Reg, Reg), epilogue: &mut Epilogue<'_>) {
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
