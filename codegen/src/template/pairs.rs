//! Pairs of `bf16` along `k`, as `vdpbf16ps` takes them: a register tile, and panels `[ceil(k/2)][width][2]`.
//!
//! One accumulator per element takes the pairs in ascending order, the odd element of a pair first, one rounding to nearest even per element.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, TargetInst, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::Asking;
use super::tile::{self, Source, TileShape};
use super::transpose::transpose;

/// Elements along `k` that lie together.
pub const GROUP: i64 = 2;
/// Elements along `k` per turn of the inner loop.
pub const STEP: i64 = 8;

/// Adds the steps `from..to`, whole pairs, to the accumulators of a tile: rows of `a` from these offsets on, times a panel.
pub fn add_steps(
    kb: &mut KernelBuilder,
    shape: TileShape,
    (a, rows): (Buf, &[Reg]),
    (b, column, ahead): (Buf, Reg, Option<Asking>),
    (from, to): (Reg, Reg),
    acc: &[Var],
) {
    // One pair in every 32-bit lane.
    let spread: Vec<u16> = (0..shape.lanes * GROUP as u16).map(|i| i % GROUP as u16).collect();
    let step = |kb: &mut KernelBuilder, k: Reg| {
        let width = kb.index(shape.width());
        let at = kb.mul(k, width);
        let at = kb.add(column, at);
        let columns: Vec<Reg> = shape
            .columns()
            .map(|v| {
                let v = kb.index(v * GROUP);
                let at = kb.add(at, v);
                kb.load(b, at, shape.lanes * GROUP as u16)
            })
            .collect();
        for (row, acc) in rows.iter().zip(acc.chunks(shape.vectors.into())) {
            let at = kb.add(*row, k);
            let x = kb.load(a, at, GROUP as u16);
            let x = kb.push(Inst::Shuffle(x, x, spread.clone()));
            for (w, var) in columns.iter().zip(acc) {
                let sum = kb.get(*var);
                let sum = kb.target(TargetInst::VDpBf16Ps, &[sum, x, *w]);
                kb.set(*var, sum);
            }
        }
    };
    let whole = tile::whole_turns(kb, (from, to), STEP);
    kb.for_(from, whole, STEP, Unroll::No, |kb, k| {
        if let Some(ahead) = ahead {
            ahead.turn(kb);
        }
        for at in (0..STEP).step_by(GROUP as usize) {
            let at = kb.index(at);
            let k = kb.add(k, at);
            step(kb, k);
        }
    });
    kb.for_(whole, to, GROUP, Unroll::No, |kb, k| step(kb, k));
}

/// Copies columns `n0..` of a `[k, n]` matrix of floats to `dst[at..]` as one panel, rounded to `bf16`; an odd last row is followed by zeros. What
/// columns beyond the last one hold is not said.
pub fn pack_panel(
    kb: &mut KernelBuilder,
    shape: TileShape,
    (k, n): (&Dim, &Dim),
    src: &Source<'_>,
    n0: Reg,
    (dst, at): (Buf, Reg),
) {
    let p = Panel { shape, k, n, src, n0, dst, at };
    if src.n_stride.is(1) {
        p.pack_rows(kb);
    } else if src.k_stride.is(1) {
        p.pack_columns(kb);
    } else {
        p.pack_elements(kb);
    }
}

struct Panel<'a> {
    shape: TileShape,
    k: &'a Dim,
    n: &'a Dim,
    src: &'a Source<'a>,
    n0: Reg,
    dst: Buf,
    at: Reg,
}

impl Panel<'_> {
    /// Where the pair of rows from `k` on starts.
    fn row(&self, kb: &mut KernelBuilder, k: Reg) -> Reg {
        let width = kb.index(self.shape.width());
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

    /// Neighbours along `n` lie together: two rows at a time, taken in turn.
    fn pack_rows(&self, kb: &mut KernelBuilder) {
        let (lanes, buf) = (self.shape.lanes, self.src.buf);
        let (zero, one, end, n_end) = (kb.index(0), kb.index(1), kb.dim(self.k), kb.dim(self.n));
        let left = kb.sub(n_end, self.n0);
        let counts = tile::column_counts(kb, self.shape, self.n, left);
        let even = tile::whole_turns(kb, (zero, end), GROUP);
        let pair = |kb: &mut KernelBuilder, k: Reg, whole: bool| {
            let to = self.row(kb, k);
            for (v, count) in self.shape.columns().zip(&counts) {
                let row = |kb: &mut KernelBuilder, k: Reg| {
                    let ks = kb.dim(self.src.k_stride);
                    let (row, v) = (kb.mul(k, ks), kb.index(v));
                    let column = kb.add(self.n0, v);
                    let at = kb.add(self.src.base, row);
                    let at = kb.add(at, column);
                    let x = match count {
                        Some(c) => kb.load_count(buf, at, lanes, *c),
                        None => kb.load(buf, at, lanes),
                    };
                    kb.cast(DType::Bf16, x)
                };
                let first = row(kb, k);
                let second = if whole {
                    let k = kb.add(k, one);
                    row(kb, k)
                } else {
                    kb.num(Ty::vector(DType::Bf16, lanes), 0.0)
                };
                let both = kb.push(Inst::Shuffle(first, second, (0..lanes).flat_map(|i| [i, lanes + i]).collect()));
                let place = kb.index(v * GROUP);
                let to = kb.add(to, place);
                kb.store(self.dst, to, both);
            }
        };
        kb.for_(zero, even, GROUP, Unroll::No, |kb, k| pair(kb, k, true));
        if !self.k.modulo(&GROUP.into()).is(0) {
            kb.for_(even, end, GROUP, Unroll::No, |kb, k| pair(kb, k, false));
        }
    }

    /// Neighbours along `k` lie together: squares of pairs turn in registers.
    fn pack_columns(&self, kb: &mut KernelBuilder) {
        let (lanes, buf) = (self.shape.lanes, self.src.buf);
        let block = i64::from(lanes) * GROUP;
        let (zero, width, end) = (kb.index(0), kb.index(self.shape.width()), kb.dim(self.k));
        let whole = tile::whole_turns(kb, (zero, end), block);
        // The pairs of the square that exist.
        let square = |kb: &mut KernelBuilder, j: Reg, k: Reg, left: Option<Reg>, pairs: i64| {
            let columns: Vec<Reg> = (0..i64::from(lanes))
                .map(|i| {
                    let i = kb.index(i);
                    let j = kb.add(j, i);
                    let from = self.source(kb, k, j);
                    let x = match left {
                        Some(c) => kb.load_count(buf, from, 2 * lanes, c),
                        None => kb.load(buf, from, 2 * lanes),
                    };
                    kb.cast(DType::Bf16, x)
                })
                .collect();
            let to = self.row(kb, k);
            let column = kb.index(GROUP);
            let column = kb.mul(j, column);
            let to = kb.add(to, column);
            for (i, x) in (0..pairs).zip(transpose(kb, &columns, GROUP as u16)) {
                let row = kb.index(i * GROUP * self.shape.width());
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
                    square(kb, j, whole, Some(left), (rest + 1) / GROUP);
                }
                None => self.elements(kb, (j, lanes.into()), whole),
            }
        });
    }

    fn pack_elements(&self, kb: &mut KernelBuilder) {
        let zero = kb.index(0);
        self.elements(kb, (zero, self.shape.width()), zero);
    }

    /// Columns `j..j+n` from row `first`, which is even, on, element by element.
    fn elements(&self, kb: &mut KernelBuilder, (j, n): (Reg, i64), first: Reg) {
        let (two, end, count) = (kb.index(GROUP), kb.dim(self.k), kb.index(n));
        let j_end = kb.add(j, count);
        let padded = kb.dim(&(&self.k.ceil_div(&GROUP.into()) * &Dim::from(GROUP)));
        kb.for_(j, j_end, 1, Unroll::No, |kb, j| {
            let place = |kb: &mut KernelBuilder, k: Reg| {
                let odd = kb.bin(BinOp::Rem, k, two);
                let even = kb.sub(k, odd);
                let row = self.row(kb, even);
                let column = kb.mul(j, two);
                let at = kb.add(row, column);
                kb.add(at, odd)
            };
            kb.for_(first, end, 1, Unroll::No, |kb, k| {
                let from = self.source(kb, k, j);
                let x = kb.load(self.src.buf, from, 1);
                let x = kb.cast(DType::Bf16, x);
                let to = place(kb, k);
                kb.store(self.dst, to, x);
            });
            let nothing = kb.num(Ty::scalar(DType::Bf16), 0.0);
            kb.for_(end, padded, 1, Unroll::No, |kb, k| {
                let to = place(kb, k);
                kb.store(self.dst, to, nothing);
            });
        });
    }
}
