//! Matrix product `C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]` by blocks of threads.
//!
//! **Contract.** Operands are given as functions of their indices, so that any view, conversion or prologue is read as it is loaded; the dtype
//! of the sums is the caller's. The sum over `k` runs in ascending order in one accumulator per element, one rounding per multiply-add for
//! floats: error at most `k * eps * sum |a||b|`. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** A unit is one tile of `m x n` elements. The block loads `m x k` and `k x n` elements into shared memory, then each thread
//! adds to `per x per` accumulators (Volkov and Demmel 2008). Finished tiles go through shared memory, so that neighbouring threads store
//! neighbours and the epilogue's code stands once.

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::{guarded, multiply_add};
use crate::template::matmul::MatmulProblem;
use crate::template::tile;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Rows of a tile.
    pub m: i64,
    /// Columns of a tile.
    pub n: i64,
    /// Steps of `k` between two loads.
    pub k: i64,
    /// Rows and columns of one thread.
    pub per: i64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "matmul_m{}n{}k{}t{}", self.m, self.n, self.k, self.per)
    }
}

impl Schedule {
    /// The schedule for products of at most `rows` rows and `columns` columns.
    pub fn choose(rows: i64, columns: i64) -> Schedule {
        if rows.min(columns) <= 32 { Schedule { m: 32, n: 32, k: 16, per: 2 } } else { Schedule { m: 64, n: 64, k: 16, per: 4 } }
    }

    /// Threads of a block.
    pub fn threads(self) -> i64 {
        self.m / self.per * (self.n / self.per)
    }

    /// Number of blocks.
    pub fn extent(self, p: &MatmulProblem) -> Dim {
        let tiles = &p.m.ceil_div(&self.m.into()) * &p.n.ceil_div(&self.n.into());
        p.batch.iter().fold(tiles, |a, d| &a * d)
    }
}

/// An element of an operand: batch indices, then row and column.
pub type Element<'a, E> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg, Reg) -> Result<Reg, E> + 'a;
/// Consumes a finished element: batch indices, row, column, value.
pub type Epilogue<'a, E> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg, Reg, Reg) -> Result<(), E> + 'a;

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`].
///
/// # Errors
/// Those of the operands and the epilogue.
pub fn build<E>(
    kb: &mut KernelBuilder,
    p: &MatmulProblem,
    s: Schedule,
    acc: DType,
    (a, b): (&mut Element<'_, E>, &mut Element<'_, E>),
    epilogue: &mut Epilogue<'_, E>,
) -> Result<(), E> {
    kb.set_block(s.threads() as u32);
    let (left, right) = (kb.shared(acc, (s.m * s.k).into()), kb.shared(acc, (s.n * s.k).into()));
    let finished = kb.shared(acc, (s.m * s.n).into());
    let (unit, thread) = (kb.lo(), kb.thread());
    let (rest, column) = tile::div_rem(kb, unit, &p.n.ceil_div(&s.n.into()));
    let (flat_batch, row) = tile::div_rem(kb, rest, &p.m.ceil_div(&s.m.into()));
    let batch = tile::unflatten(kb, flat_batch, &p.batch);
    let (rows, columns, steps) = (kb.index(s.m), kb.index(s.n), kb.index(s.k));
    let (m0, n0) = (kb.mul(row, rows), kb.mul(column, columns));
    let (zero, m_end, n_end, k_end) = (kb.index(0), kb.dim(&p.m), kb.dim(&p.n), kb.dim(&p.k));

    let nothing = kb.num(Ty::scalar(acc), 0.0);
    let sums: Vec<_> = (0..s.per * s.per).map(|_| kb.var(nothing)).collect();
    let across = kb.index(s.n / s.per);
    let (ty, tx) = (kb.bin(BinOp::Div, thread, across), kb.bin(BinOp::Rem, thread, across));
    let per = kb.index(s.per);
    let first_row = kb.mul(ty, per);

    let mut out = Ok(());
    kb.for_(zero, k_end, s.k, Unroll::No, |kb, k0| {
        out = (|| {
            // `A` by rows, `B` by columns of the tile: neighbouring threads read neighbours of row-major operands.
            load(kb, s, (left, s.m, s.k), |kb, at, k| {
                let (m, k) = (kb.add(m0, at), kb.add(k0, k));
                let (x, y) = (kb.bin(BinOp::Lt, m, m_end), kb.bin(BinOp::Lt, k, k_end));
                let inside = kb.bin(BinOp::And, x, y);
                guarded(kb, acc, inside, |kb| a(kb, &batch, m, k))
            })?;
            load(kb, s, (right, s.n, 0), |kb, at, k| {
                let (n, k) = (kb.add(n0, at), kb.add(k0, k));
                let (x, y) = (kb.bin(BinOp::Lt, n, n_end), kb.bin(BinOp::Lt, k, k_end));
                let inside = kb.bin(BinOp::And, x, y);
                guarded(kb, acc, inside, |kb| b(kb, &batch, k, n))
            })
        })();
        kb.barrier();
        kb.for_(zero, steps, 1, Unroll::Full, |kb, k| {
            let (a_at, b_at) = (kb.mul(k, rows), kb.mul(k, columns));
            let (a_at, b_at) = (kb.add(a_at, first_row), kb.add(b_at, tx));
            let x: Vec<Reg> = (0..s.per)
                .map(|i| {
                    let i = kb.index(i);
                    let at = kb.add(a_at, i);
                    kb.load(left, at, 1)
                })
                .collect();
            for j in 0..s.per {
                let distance = kb.index(j * (s.n / s.per));
                let at = kb.add(b_at, distance);
                let y = kb.load(right, at, 1);
                for (i, x) in x.iter().enumerate() {
                    let var = sums[i * s.per as usize + j as usize];
                    let sum = kb.get(var);
                    let sum = multiply_add(kb, *x, y, sum);
                    kb.set(var, sum);
                }
            }
        });
        kb.barrier();
    });
    out?;

    for (i, var) in sums.iter().enumerate() {
        let (i, j) = (i as i64 / s.per, i as i64 % s.per);
        let (i, j) = (kb.index(i), kb.index(j * (s.n / s.per)));
        let at = kb.add(first_row, i);
        let at = kb.mul(at, columns);
        let at = kb.add(at, tx);
        let at = kb.add(at, j);
        let sum = kb.get(*var);
        kb.store(finished, at, sum);
    }
    kb.barrier();
    let (all, mut out) = (kb.index(s.m * s.n), Ok(()));
    kb.for_(thread, all, s.threads(), Unroll::No, |kb, at| {
        let (m, n) = (kb.bin(BinOp::Div, at, columns), kb.bin(BinOp::Rem, at, columns));
        let (m, n) = (kb.add(m0, m), kb.add(n0, n));
        let (x, y) = (kb.bin(BinOp::Lt, m, m_end), kb.bin(BinOp::Lt, n, n_end));
        let inside = kb.bin(BinOp::And, x, y);
        kb.if_(
            inside,
            |kb| {
                let sum = kb.load(finished, at, 1);
                out = epilogue(kb, &batch, m, n, sum);
            },
            |_| {},
        );
    });
    out
}

/// Fills a tile `[k][width]`; `fast` is the length of the axis along which neighbouring threads read: `k`, or the width if 0.
fn load<E>(
    kb: &mut KernelBuilder,
    s: Schedule,
    (buf, width, fast): (Buf, i64, i64),
    mut element: impl FnMut(&mut KernelBuilder, Reg, Reg) -> Result<Reg, E>,
) -> Result<(), E> {
    let (thread, all, wide) = (kb.thread(), kb.index(width * s.k), kb.index(width));
    let inner = kb.index(if fast == 0 { width } else { fast });
    let mut out = Ok(());
    kb.for_(thread, all, s.threads(), Unroll::Auto, |kb, flat| {
        let (slow, quick) = (kb.bin(BinOp::Div, flat, inner), kb.bin(BinOp::Rem, flat, inner));
        let (at, k) = if fast == 0 { (quick, slow) } else { (slow, quick) };
        out = element(kb, at, k).map(|x| {
            let to = kb.mul(k, wide);
            let to = kb.add(to, at);
            kb.store(buf, to, x);
        });
    });
    out
}
