//! Groups of neighbours along `k` in one 32-bit lane, as the dot products of processors take them: a register tile, and panels
//! `[ceil(k/group)][width][group]`.
//!
//! One accumulator per element takes the groups in ascending order. Of a pair of `bf16` the odd element comes first, with one rounding to nearest even
//! per element; sums of integers are exact.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, TargetInst, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::Asking;
use super::tile::{self, Source, TileShape};
use super::transpose::transpose;

/// Groups per turn of the inner loop.
const TURN: i64 = 4;

/// What stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Two `bf16` by two `bf16`.
    Bf16,
    /// Two `i16` by two `i16`.
    Words,
    /// Four `u8` by four `i8`.
    Bytes,
}

impl Group {
    /// Elements of a group.
    pub const fn size(self) -> i64 {
        match self {
            Group::Bf16 | Group::Words => 2,
            Group::Bytes => 4,
        }
    }

    /// Elements along `k` per turn of the inner loop.
    pub const fn step(self) -> i64 {
        self.size() * TURN
    }

    /// Element types of rows and of panels.
    pub const fn dtypes(self) -> [DType; 2] {
        match self {
            Group::Bf16 => [DType::Bf16; 2],
            Group::Words => [DType::I16; 2],
            Group::Bytes => [DType::U8, DType::I8],
        }
    }

    /// The instruction that adds products of groups.
    pub const fn dot(self) -> TargetInst {
        match self {
            Group::Bf16 => TargetInst::VDpBf16Ps,
            Group::Words => TargetInst::VpDpWssd,
            Group::Bytes => TargetInst::VpDpBusd,
        }
    }

    /// Adds the steps `from..to`, whole groups, to the accumulators of a tile: rows of `a` from these offsets on, times a panel.
    pub fn add_steps(
        self,
        kb: &mut KernelBuilder,
        shape: TileShape,
        (a, rows): (Buf, &[Reg]),
        (b, column, ahead): (Buf, Reg, Option<Asking>),
        (from, to): (Reg, Reg),
        acc: &[Var],
    ) {
        let len = self.size();
        let step = |kb: &mut KernelBuilder, k: Reg| self.add_group(kb, shape, (a, rows), (b, column), (k, None), acc);
        let whole = tile::whole_turns(kb, (from, to), self.step());
        kb.for_(from, whole, self.step(), Unroll::No, |kb, k| {
            if let Some(ahead) = ahead {
                ahead.turn(kb);
            }
            for at in (0..self.step()).step_by(len as usize) {
                let at = kb.index(at);
                let k = kb.add(k, at);
                step(kb, k);
            }
        });
        kb.for_(whole, to, len, Unroll::No, |kb, k| step(kb, k));
    }

    /// Adds the group at step `k` to the accumulators of a tile; with a count, only so many elements of the rows are read, the others are zero.
    pub fn add_group(
        self,
        kb: &mut KernelBuilder,
        shape: TileShape,
        (a, rows): (Buf, &[Reg]),
        (b, column): (Buf, Reg),
        (k, count): (Reg, Option<Reg>),
        acc: &[Var],
    ) {
        let (len, lanes) = (self.size() as u16, shape.lanes * self.size() as u16);
        // One group in every 32-bit lane.
        let spread: Vec<u16> = (0..lanes).map(|i| i % len).collect();
        let width = kb.index(shape.width());
        let at = kb.mul(k, width);
        let at = kb.add(column, at);
        let columns: Vec<Reg> = shape
            .columns()
            .map(|v| {
                let v = kb.index(v * self.size());
                let at = kb.add(at, v);
                kb.load(b, at, lanes)
            })
            .collect();
        for (row, acc) in rows.iter().zip(acc.chunks(shape.vectors.into())) {
            let at = kb.add(*row, k);
            let x = kb.load_part(a, at, len, count);
            let x = kb.push(Inst::Shuffle(x, x, spread.clone()));
            for (w, var) in columns.iter().zip(acc) {
                let sum = kb.get(*var);
                let sum = kb.target(self.dot(), &[sum, x, *w]);
                kb.set(*var, sum);
            }
        }
    }
}

/// Floats as products of pairs take them, which count denormals as zero or not.
pub fn to_bf16(kb: &mut KernelBuilder, x: Reg) -> Reg {
    if kb.ty(x).dtype == DType::F32 { kb.target(TargetInst::VCvtNePs2Bf16, &[x]) } else { kb.cast(DType::Bf16, x) }
}

/// How a panel is made.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    /// Its width.
    pub shape: TileShape,
    /// What stands in a group.
    pub group: Group,
    /// Elements along `k` up to a multiple of which it is filled up with zeros.
    pub depth: i64,
    /// Turns elements of the matrix into those of the panel.
    pub encode: &'a dyn Fn(&mut KernelBuilder, Reg) -> Reg,
}

/// Copies columns `n0..` of a `[k, n]` matrix to `dst[at..]` as one panel. What
/// columns beyond the last one hold is not said.
pub fn pack_panel(
    kb: &mut KernelBuilder,
    form: Form<'_>,
    (k, n): (&Dim, &Dim),
    src: &Source<'_>,
    n0: Reg,
    (dst, at): (Buf, Reg),
) {
    let p = Panel { form, k, n, src, n0, dst, at };
    if src.n_stride.is(1) {
        p.pack_rows(kb);
    } else if src.k_stride.is(1) {
        p.pack_columns(kb);
    } else {
        p.pack_elements(kb);
    }
    if !k.modulo(&form.depth.into()).is(0) {
        p.fill(kb);
    }
}

struct Panel<'a> {
    form: Form<'a>,
    k: &'a Dim,
    n: &'a Dim,
    src: &'a Source<'a>,
    n0: Reg,
    dst: Buf,
    at: Reg,
}

impl Panel<'_> {
    /// Where the group of rows from `k` on starts.
    fn row(&self, kb: &mut KernelBuilder, k: Reg) -> Reg {
        let width = kb.index(self.form.shape.width());
        let row = kb.mul(k, width);
        kb.add(self.at, row)
    }

    /// Offset in the matrix; a column beyond the last is the last.
    fn source(&self, kb: &mut KernelBuilder, k: Reg, j: Reg) -> Reg {
        let (one, end) = (kb.index(1), kb.dim(self.n));
        let last = kb.sub(end, one);
        let n = kb.add(self.n0, j);
        let n = kb.bin(BinOp::Min, n, last);
        let (ks, ns) = (kb.dim(self.src.k_stride), kb.dim(self.src.n_stride));
        let (row, column) = (kb.mul(k, ks), kb.mul(n, ns));
        let at = kb.add(self.src.base, row);
        kb.add(at, column)
    }

    /// Neighbours along `n` lie together: the rows of a group at a time, taken in turn.
    fn pack_rows(&self, kb: &mut KernelBuilder) {
        let (shape, buf, len) = (self.form.shape, self.src.buf, self.form.group.size());
        let lanes = shape.lanes;
        let (zero, end, n_end) = (kb.index(0), kb.dim(self.k), kb.dim(self.n));
        let left = kb.sub(n_end, self.n0);
        let counts = tile::column_counts(kb, shape, self.n, left);
        let whole = tile::whole_turns(kb, (zero, end), len);
        let group = |kb: &mut KernelBuilder, k: Reg, broken: bool| {
            let to = self.row(kb, k);
            for (v, count) in shape.columns().zip(&counts) {
                let rows = (0..len)
                    .map(|i| {
                        let i = kb.index(i);
                        let k = kb.add(k, i);
                        let ks = kb.dim(self.src.k_stride);
                        let (row, v) = (kb.mul(k, ks), kb.index(v));
                        let column = kb.add(self.n0, v);
                        let at = kb.add(self.src.base, row);
                        let at = kb.add(at, column);
                        let read = |kb: &mut KernelBuilder| {
                            let x = kb.load_part(buf, at, lanes, *count);
                            (self.form.encode)(kb, x)
                        };
                        if !broken {
                            return read(kb);
                        }
                        let none = kb.num(Ty::vector(kb.buf_dtype(self.dst), lanes), 0.0);
                        let (row, exists) = (kb.var(none), kb.bin(BinOp::Lt, k, end));
                        kb.if_(
                            exists,
                            |kb| {
                                let x = read(kb);
                                kb.set(row, x);
                            },
                            |_| {},
                        );
                        kb.get(row)
                    })
                    .collect();
                let place = kb.index(v * len);
                let to = kb.add(to, place);
                let together = in_turn(kb, rows);
                kb.store(self.dst, to, together);
            }
        };
        kb.for_(zero, whole, len, Unroll::No, |kb, k| group(kb, k, false));
        if !self.k.modulo(&len.into()).is(0) {
            kb.for_(whole, end, len, Unroll::No, |kb, k| group(kb, k, true));
        }
    }

    /// Neighbours along `k` lie together: squares of groups turn in registers.
    fn pack_columns(&self, kb: &mut KernelBuilder) {
        let (shape, buf, len) = (self.form.shape, self.src.buf, self.form.group.size());
        let (lanes, block) = (shape.lanes, i64::from(shape.lanes) * len);
        let (zero, width, end) = (kb.index(0), kb.index(shape.width()), kb.dim(self.k));
        let whole = tile::whole_turns(kb, (zero, end), block);
        // The groups of the square that exist.
        let square = |kb: &mut KernelBuilder, j: Reg, k: Reg, left: Option<Reg>, groups: i64| {
            let columns: Vec<Reg> = (0..i64::from(lanes))
                .map(|i| {
                    let i = kb.index(i);
                    let j = kb.add(j, i);
                    let from = self.source(kb, k, j);
                    let Some(c) = left else {
                        let x = kb.load(buf, from, block as u16);
                        return (self.form.encode)(kb, x);
                    };
                    let x = kb.load_count(buf, from, block as u16, c);
                    let x = (self.form.encode)(kb, x);
                    let none = kb.num(kb.ty(x), 0.0);
                    tile::keep_lanes(kb, x, c, none)
                })
                .collect();
            let to = self.row(kb, k);
            let column = kb.index(len);
            let column = kb.mul(j, column);
            let to = kb.add(to, column);
            for (i, x) in (0..groups).zip(transpose(kb, &columns, len as u16)) {
                let row = kb.index(i * len * shape.width());
                let to = kb.add(to, row);
                kb.store(self.dst, to, x);
            }
        };
        kb.for_(zero, width, lanes.into(), Unroll::No, |kb, j| {
            kb.for_(zero, whole, block, Unroll::No, |kb, k| square(kb, j, k, None, lanes.into()));
            match self.k.as_const().map(|k| k % block) {
                Some(0) => {}
                Some(rest) => {
                    let left = kb.index(rest);
                    square(kb, j, whole, Some(left), (rest + len - 1) / len);
                }
                None => self.elements(kb, (j, lanes.into()), whole),
            }
        });
    }

    /// Groups of zeros behind the last one.
    fn fill(&self, kb: &mut KernelBuilder) {
        let (shape, len) = (self.form.shape, self.form.group.size());
        let up_to = |by: i64| &self.k.ceil_div(&by.into()) * &by.into();
        let (from, to) = (kb.dim(&up_to(len)), kb.dim(&up_to(self.form.depth)));
        let none = kb.num(Ty::vector(kb.buf_dtype(self.dst), shape.lanes * len as u16), 0.0);
        kb.for_(from, to, len, Unroll::No, |kb, k| {
            let row = self.row(kb, k);
            for v in shape.columns() {
                let v = kb.index(v * len);
                let at = kb.add(row, v);
                kb.store(self.dst, at, none);
            }
        });
    }

    fn pack_elements(&self, kb: &mut KernelBuilder) {
        let zero = kb.index(0);
        self.elements(kb, (zero, self.form.shape.width()), zero);
    }

    /// Columns `j..j+n` from row `first` on, where a group starts, element by element.
    fn elements(&self, kb: &mut KernelBuilder, (j, n): (Reg, i64), first: Reg) {
        let len = self.form.group.size();
        let (size, end, count) = (kb.index(len), kb.dim(self.k), kb.index(n));
        let j_end = kb.add(j, count);
        let padded = kb.dim(&(&self.k.ceil_div(&len.into()) * &Dim::from(len)));
        kb.for_(j, j_end, 1, Unroll::No, |kb, j| {
            let place = |kb: &mut KernelBuilder, k: Reg| {
                let inside = kb.bin(BinOp::Rem, k, size);
                let start = kb.sub(k, inside);
                let row = self.row(kb, start);
                let column = kb.mul(j, size);
                let at = kb.add(row, column);
                kb.add(at, inside)
            };
            kb.for_(first, end, 1, Unroll::No, |kb, k| {
                let from = self.source(kb, k, j);
                let x = kb.load(self.src.buf, from, 1);
                let x = (self.form.encode)(kb, x);
                let to = place(kb, k);
                kb.store(self.dst, to, x);
            });
            let nothing = kb.num(Ty::scalar(kb.buf_dtype(self.dst)), 0.0);
            kb.for_(end, padded, 1, Unroll::No, |kb, k| {
                let to = place(kb, k);
                kb.store(self.dst, to, nothing);
            });
        });
    }
}

/// The elements of two or four vectors in turn.
pub(super) fn in_turn(kb: &mut KernelBuilder, mut rows: Vec<Reg>) -> Reg {
    let mut size = 1;
    while rows.len() > 1 {
        let lanes = kb.ty(rows[0]).lanes;
        let picks: Vec<u16> = (0..lanes).step_by(size).flat_map(|i| [i, lanes + i]).flat_map(|i| i..i + size as u16).collect();
        rows = rows.chunks_exact(2).map(|r| kb.push(Inst::Shuffle(r[0], r[1], picks.clone()))).collect();
        size *= 2;
    }
    rows[0]
}
