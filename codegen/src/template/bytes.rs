//! Results of bytes that a table per column maps to others, and squares of bytes whose rows and columns change places.
//!
//! A look-up in registers takes the table of one column, so what it maps stands along the rows: 64 codes of a column are one vector.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, TargetInst, Ty, Unroll};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::DType;

use super::ahead::LINE;
use super::tile;
use super::transpose::{interleave, transpose};

/// Bytes of a column's table.
const TABLE: i64 = 256;
/// 32-bit numbers of a vector that look-ups take.
const LANES: u16 = 16;
/// Rows and columns of a square of such vectors.
const SIDE: i64 = 4 * LANES as i64;
/// Fewest rows for which a square is turned; fewer are looked up one by one.
const MIN_ROWS: i64 = 16;

/// How numbers become bytes: `saturate(round(x) + zero)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    /// The zero point, a byte of that type.
    pub zero: i64,
    /// Type of the bytes.
    pub to: DType,
}

impl Coding {
    /// The bytes of one vector.
    pub fn one(self, kb: &mut KernelBuilder, x: Reg) -> Reg {
        let x = kb.un(UnOp::Round, x);
        let zero = kb.num(kb.ty(x), self.zero as f64);
        let x = kb.add(x, zero);
        kb.cast(self.to, x)
    }

    /// The bytes of four vectors of `f32`, of each 128 bits four of the first, four of the second, and so on: an instruction packs two vectors. NaN has the
    /// code 0.
    pub fn pack(self, kb: &mut KernelBuilder, x: [Reg; 4]) -> Reg {
        // Signed codes are those of unsigned ones whose first bit differs.
        let shift = if self.to == DType::I8 { 128 } else { 0 };
        let top = kb.num(kb.ty(x[0]), (255 - shift - self.zero) as f64);
        let whole = x.map(|x| {
            // NaN stays, and becomes the least integer, as what is too small does.
            let above = kb.bin(BinOp::Gt, x, top);
            let mut y = kb.select(above, top, x);
            if self.to == DType::I8 {
                let (number, none) = (kb.bin(BinOp::Eq, x, x), kb.num(kb.ty(x), -self.zero as f64));
                y = kb.select(number, y, none);
            }
            kb.target(TargetInst::VCvtPs2Dq, &[y])
        });
        let words = [[whole[0], whole[1]], [whole[2], whole[3]]].map(|two| {
            let words = kb.target(TargetInst::VPackSsDw, &two);
            let zero = kb.num(kb.ty(words), (self.zero + shift) as f64);
            kb.add(words, zero)
        });
        let bytes = kb.target(TargetInst::VPackUsWb, &words);
        if shift == 0 {
            return bytes;
        }
        let sign = kb.num(kb.ty(bytes), shift as f64);
        let bytes = kb.bin(BinOp::Xor, bytes, sign);
        kb.push(Inst::Bitcast(self.to, bytes))
    }
}

/// The order that makes of [`Coding::pack`]'s bytes those of one vector after the other.
pub fn one_after_the_other(lanes: u16) -> Vec<u16> {
    (0..4 * lanes).map(|i| i % lanes / 4 * 16 + i / lanes * 4 + i % 4).collect()
}

/// The order that makes of them the first of each vector, then the second of each, and so on.
pub fn in_turn(lanes: u16) -> Vec<u16> {
    (0..4 * lanes).map(|i| i / 16 * 16 + i % 4 * 4 + i % 16 / 4).collect()
}

/// Bytes of a strip of columns on their way to a result `[m, n]`.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    /// The result.
    pub(super) out: Buf,
    /// Its columns.
    pub(super) n: i64,
    /// Columns of the strip.
    pub(super) width: i64,
}

impl Strip {
    /// Stores a square of bytes `[column][row]` from column `n0` and row `m0` on, after a look at their tables; `left` rows exist.
    pub(super) fn store(
        &self,
        kb: &mut KernelBuilder,
        (from, scratch): (Buf, Buf),
        table: Option<Buf>,
        (m0, left): (Reg, Reg),
        n0: Reg,
    ) {
        let (columns, width, one) = (kb.index(self.n), kb.index(self.width), kb.index(1));
        let columns_left = kb.sub(columns, n0);
        let columns_left = kb.bin(BinOp::Min, columns_left, width);
        let last = kb.sub(columns_left, one);
        let side = kb.index(SIDE);
        let whole = self.n % self.width == 0;
        let mut load = |kb: &mut KernelBuilder, c: Reg| {
            // Columns beyond the end repeat the last one.
            let c = if whole { c } else { kb.bin(BinOp::Min, c, last) };
            let (at, n) = (kb.mul(c, side), kb.add(n0, c));
            let x = kb.load(from, at, SIDE as u16);
            table.map_or(x, |table| look_up(kb, (table, n), x))
        };
        turn(kb, LANES, (scratch, self.width), &in_order, &mut load, &mut |kb, r, x| {
            let exists = kb.bin(BinOp::Lt, r, left);
            kb.if_(
                exists,
                |kb| {
                    let m = kb.add(m0, r);
                    let at = kb.mul(m, columns);
                    let at = kb.add(at, n0);
                    let x = kb.push(Inst::Bitcast(kb.buf_dtype(self.out), x));
                    if whole && self.width == SIDE {
                        kb.store(self.out, at, x);
                    } else {
                        kb.store_count(self.out, at, x, columns_left);
                    }
                },
                |_| {},
            );
        });
    }
}

/// Bytes of a panel of a dense product by rows, that wait for their tables until a chunk of rows is complete.
pub struct Waiting {
    strip: Strip,
    /// `u8[n, 256]`: what becomes of each byte of a column.
    table: Buf,
    /// Rows of a chunk.
    chunk: i64,
    /// `[row][SIDE]` of the chunk.
    codes: Buf,
    /// A square `[column][row]`.
    square: Buf,
    scratch: Buf,
}

impl Waiting {
    /// For results `[m, n]` in `out`, of panels of `width` columns and chunks of `chunk` rows; `table` is `u8[n, 256]`.
    pub fn new(kb: &mut KernelBuilder, (table, out): (Buf, Buf), n: i64, (chunk, width): (i64, i64)) -> Self {
        let [codes, square, scratch] =
            [chunk.max(SIDE) * SIDE, SIDE * SIDE, SIDE * SIDE].map(|len| kb.local(DType::U8, len.into()));
        // What stands beside the panel and below the last row is turned too.
        let (zero, end, nothing) =
            (kb.index(0), kb.index(chunk.max(SIDE) * SIDE), kb.num(Ty::vector(DType::U8, SIDE as u16), 0.0));
        kb.for_(zero, end, SIDE, Unroll::No, |kb, at| kb.store(codes, at, nothing));
        Self { strip: Strip { out, n, width }, table, chunk, codes, square, scratch }
    }

    /// Asks for a part of the tables of the panel from column `n0` on, while rows `m..m + rows` of the chunk from `m0` on are computed.
    pub fn ask(&self, kb: &mut KernelBuilder, (m, rows): (Reg, u16), m0: Reg, n0: Reg) {
        let per_row = (self.strip.width * TABLE / LINE + self.chunk - 1) / self.chunk;
        let (size, step) = (kb.index(TABLE), kb.index(per_row * LINE));
        let (panel, done) = (kb.mul(n0, size), kb.sub(m, m0));
        let done = kb.mul(done, step);
        let from = kb.add(panel, done);
        for line in 0..per_row * i64::from(rows) {
            let line = kb.index(line * LINE);
            let at = kb.add(from, line);
            kb.prefetch(self.table, at);
        }
    }

    /// Takes the bytes of row `m` from column `n` on.
    pub fn put(&self, kb: &mut KernelBuilder, (m, n): (Reg, Reg), x: Reg) {
        let (chunk, width, side) = (kb.index(self.chunk), kb.index(self.strip.width), kb.index(SIDE));
        let (row, column) = (kb.bin(BinOp::Rem, m, chunk), kb.bin(BinOp::Rem, n, width));
        let at = kb.mul(row, side);
        let at = kb.add(at, column);
        let x = kb.push(Inst::Bitcast(DType::U8, x));
        kb.store(self.codes, at, x);
    }

    /// Looks up and stores the rows `m0..m1` of the panel from column `n0` on.
    pub fn store(&self, kb: &mut KernelBuilder, (m0, m1): (Reg, Reg), n0: Reg) {
        let side = kb.index(SIDE);
        let rows = kb.sub(m1, m0);
        // A last square that is not full is worth turning if it has some rows.
        let more = kb.index(SIDE - MIN_ROWS);
        let reach = kb.add(rows, more);
        let zero = kb.index(0);
        let end = tile::whole_turns(kb, (zero, reach), SIDE);
        kb.for_(zero, end, SIDE, Unroll::No, |kb, first| {
            let mut load = |kb: &mut KernelBuilder, r: Reg| {
                let r = kb.add(first, r);
                let at = kb.mul(r, side);
                kb.load(self.codes, at, SIDE as u16)
            };
            turn(kb, LANES, (self.scratch, SIDE), &in_order, &mut load, &mut |kb, c, x| {
                let at = kb.mul(c, side);
                kb.store(self.square, at, x);
            });
            let (m, left) = (kb.add(m0, first), kb.sub(rows, first));
            self.strip.store(kb, (self.square, self.scratch), Some(self.table), (m, left), n0);
        });
        let done = kb.bin(BinOp::Min, end, rows);
        self.one_by_one(kb, m0, (done, rows), n0);
    }

    fn one_by_one(&self, kb: &mut KernelBuilder, m0: Reg, (from, to): (Reg, Reg), n0: Reg) {
        let (zero, side, size) = (kb.index(0), kb.index(SIDE), kb.index(TABLE));
        let (columns, width) = (kb.index(self.strip.n), kb.index(self.strip.width));
        let left = kb.sub(columns, n0);
        let left = kb.bin(BinOp::Min, left, width);
        kb.for_(from, to, 1, Unroll::No, |kb, r| {
            let (m, row) = (kb.add(m0, r), kb.mul(r, side));
            let out = kb.mul(m, columns);
            let out = kb.add(out, n0);
            kb.for_(zero, left, 1, Unroll::Auto, |kb, c| {
                let (at, n) = (kb.add(row, c), kb.add(n0, c));
                let code = kb.load(self.codes, at, 1);
                let (code, place) = (kb.cast(DType::I64, code), kb.mul(n, size));
                let place = kb.add(place, code);
                let x = kb.load(self.table, place, 1);
                let x = kb.push(Inst::Bitcast(kb.buf_dtype(self.strip.out), x));
                let to = kb.add(out, c);
                kb.store(self.strip.out, to, x);
            });
        });
    }
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
pub(super) fn look_up(kb: &mut KernelBuilder, (table, n): (Buf, Reg), x: Reg) -> Reg {
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

/// Groups of four rows one after the other: the first row of group `j`.
pub(super) fn in_order(kb: &mut KernelBuilder, j: Reg) -> Reg {
    let four = kb.index(4);
    kb.mul(j, four)
}

/// Turns a square of bytes of `4 * lanes` rows. `first` says which four rows are group `j` of the columns that result; `load`
/// gives one of the first `rows` rows, `store` takes a column, in which the others hold anything. All columns are stored one after the other.
pub(super) fn turn(
    kb: &mut KernelBuilder,
    lanes: u16,
    (scratch, rows): (Buf, i64),
    first: &dyn Fn(&mut KernelBuilder, Reg) -> Reg,
    load: &mut dyn FnMut(&mut KernelBuilder, Reg) -> Reg,
    store: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg),
) {
    let lanes = i64::from(lanes);
    let side = 4 * lanes;
    let (zero, end, four, stride) = (kb.index(0), kb.index((rows + 3) / 4), kb.index(4), kb.index(side));
    let square_len = kb.index(lanes * side);
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
                let j = kb.index(j * side);
                let at = kb.add(from, j);
                kb.load(scratch, at, side as u16)
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
