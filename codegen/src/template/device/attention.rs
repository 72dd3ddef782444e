//! Attention by blocks of threads: tiles of queries against tiles of keys, with a running softmax; no matrix of logits in memory.
//!
//! **Contract.** As the host's template states it; operands are given as functions of their indices. The features of the values are a constant.
//!
//! **Schedule.** A unit is one head and `queries` rows. For each tile of `keys` keys: logits into shared memory, the rows' new maxima and sums,
//! then the weighted values are added to accumulators in registers after these were scaled to the new maximum (FlashAttention, Dao et al.
//! 2022, algorithm 1; Milakov and Gimelshein 2018).

use std::fmt;

use transc_ir::loops::{KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::{DType, Dim};

use super::{guarded, multiply_add};
use crate::template::attention::AttentionProblem;
use crate::template::tile;

/// Threads of a block.
const THREADS: i64 = 128;

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Queries of a unit.
    pub queries: i64,
    /// Keys of a tile.
    pub keys: i64,
    /// Features of the values.
    pub features: i64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attention_q{}k{}e{}", self.queries, self.keys, self.features)
    }
}

impl Schedule {
    /// The schedule; `None` if the features are no constant, or too many for a thread's registers.
    pub fn choose(p: &AttentionProblem) -> Option<Schedule> {
        let features = p.e.as_const().filter(|e| *e > 0 && *e <= 256)?;
        Some(Schedule { queries: 16, keys: if features > 64 { 16 } else { 32 }, features })
    }

    /// Number of blocks.
    pub fn extent(self, p: &AttentionProblem) -> Dim {
        &(&p.b * &p.h) * &p.sq.ceil_div(&self.queries.into())
    }

    /// Elements of shared memory.
    pub fn shared(self, p: &AttentionProblem) -> Dim {
        let (q, k) = (Dim::from(self.queries), Dim::from(self.keys));
        let fixed = self.features * (self.queries + self.keys) + self.queries * (self.keys + 3);
        &(&(&q + &k) * &p.d) + &Dim::from(fixed)
    }
}

/// An element of an operand `[batch, head, row, feature]`.
pub type Element<'a, E> = dyn FnMut(&mut KernelBuilder, [Reg; 4]) -> Result<Reg, E> + 'a;
/// Consumes a finished element.
pub type Epilogue<'a, E> = dyn FnMut(&mut KernelBuilder, [Reg; 4], Reg) -> Result<(), E> + 'a;

/// The operands; the mask is a number to add, `[batch, head, query, key]`.
pub struct Operands<'a, 'b, E> {
    /// Queries.
    pub q: &'a mut Element<'b, E>,
    /// Keys.
    pub k: &'a mut Element<'b, E>,
    /// Values.
    pub v: &'a mut Element<'b, E>,
    /// The mask.
    pub mask: Option<&'a mut Element<'b, E>>,
}

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`].
///
/// # Errors
/// Those of the operands and the epilogue.
pub fn build<E>(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    s: Schedule,
    acc: DType,
    x: &mut Operands<'_, '_, E>,
    epilogue: &mut Epilogue<'_, E>,
) -> Result<(), E> {
    kb.set_block(THREADS as u32);
    let ty = Ty::scalar(acc);
    let (nq, nk, ne) = (Dim::from(s.queries), Dim::from(s.keys), Dim::from(s.features));
    let (queries, keys, values) = (kb.shared(acc, &nq * &p.d), kb.shared(acc, &nk * &p.d), kb.shared(acc, &nk * &ne));
    let (weights, finished) = (kb.shared(acc, &nq * &nk), kb.shared(acc, &nq * &ne));
    let (top, total, scale) = (kb.shared(acc, nq.clone()), kb.shared(acc, nq.clone()), kb.shared(acc, nq.clone()));

    let (unit, thread) = (kb.lo(), kb.thread());
    let (rest, part) = tile::div_rem(kb, unit, &p.sq.ceil_div(&nq));
    let (b, h) = tile::div_rem(kb, rest, &p.h);
    let (g, _) = tile::div_rem(kb, h, &p.h.floor_div(&p.g));
    let rows = kb.index(s.queries);
    let first = kb.mul(part, rows);
    let (zero, q_end, k_end) = (kb.index(0), kb.dim(&p.sq), kb.dim(&p.sk));
    let (nothing, lowest) = (kb.num(ty, 0.0), kb.num(ty, f64::NEG_INFINITY));

    each(kb, &(&nq * &p.d), |kb, at| {
        let (i, d) = tile::div_rem(kb, at, &p.d);
        let i = kb.add(first, i);
        let inside = kb.bin(BinOp::Lt, i, q_end);
        let v = guarded(kb, acc, inside, |kb| (x.q)(kb, [b, h, i, d]))?;
        kb.store(queries, at, v);
        Ok(())
    })?;
    each(kb, &nq, |kb, i| {
        kb.store(top, i, lowest);
        kb.store(total, i, nothing);
        Ok(())
    })?;
    kb.barrier();
    let n_sums = (s.queries * s.features + THREADS - 1) / THREADS;
    let sums: Vec<_> = (0..n_sums).map(|_| kb.var(nothing)).collect();
    // Element `n` of this thread: its place in a tile, its row, its feature, and whether the tile has it.
    let place = |kb: &mut KernelBuilder, n: usize| {
        let step = kb.index(n as i64 * THREADS);
        let at = kb.add(thread, step);
        let (i, e) = tile::div_rem(kb, at, &ne);
        let end = kb.index(s.queries * s.features);
        (at, i, e, kb.bin(BinOp::Lt, at, end))
    };

    let mut out = Ok(());
    kb.for_(zero, k_end, s.keys, Unroll::No, |kb, j0| {
        out = (|| {
            each(kb, &(&nk * &p.d), |kb, at| {
                let (j, d) = tile::div_rem(kb, at, &p.d);
                let j = kb.add(j0, j);
                let inside = kb.bin(BinOp::Lt, j, k_end);
                let v = guarded(kb, acc, inside, |kb| (x.k)(kb, [b, g, j, d]))?;
                kb.store(keys, at, v);
                Ok(())
            })?;
            each(kb, &(&nk * &ne), |kb, at| {
                let (j, e) = tile::div_rem(kb, at, &ne);
                let j = kb.add(j0, j);
                let inside = kb.bin(BinOp::Lt, j, k_end);
                let v = guarded(kb, acc, inside, |kb| (x.v)(kb, [b, g, j, e]))?;
                kb.store(values, at, v);
                Ok(())
            })?;
            kb.barrier();
            each(kb, &(&nq * &nk), |kb, at| {
                let (row, column) = tile::div_rem(kb, at, &nk);
                let (i, j) = (kb.add(first, row), kb.add(j0, column));
                let mut end = k_end;
                if let Some(offset) = &p.causal {
                    let more = kb.dim(&(offset + &Dim::from(1)));
                    let bound = kb.add(i, more);
                    end = kb.bin(BinOp::Min, bound, k_end);
                }
                let (visible, real) = (kb.bin(BinOp::Lt, j, end), kb.bin(BinOp::Lt, i, q_end));
                let visible = kb.bin(BinOp::And, visible, real);
                let logit = kb.var(lowest);
                let mut out = Ok(());
                kb.if_(
                    visible,
                    |kb| {
                        let sum = kb.var(nothing);
                        let (d_end, zero) = (kb.dim(&p.d), kb.index(0));
                        let (q_at, k_at) = (kb.mul(row, d_end), kb.mul(column, d_end));
                        kb.for_(zero, d_end, 1, Unroll::Auto, |kb, d| {
                            let (q_at, k_at) = (kb.add(q_at, d), kb.add(k_at, d));
                            let (q, k, old) = (kb.load(queries, q_at, 1), kb.load(keys, k_at, 1), kb.get(sum));
                            let new = multiply_add(kb, q, k, old);
                            kb.set(sum, new);
                        });
                        let (l, factor) = (kb.get(sum), kb.num(ty, p.scale));
                        let mut l = kb.mul(l, factor);
                        if p.softcap != 0.0 {
                            let (cap, inverse) = (kb.num(ty, p.softcap), kb.num(ty, 1.0 / p.softcap));
                            let y = kb.mul(l, inverse);
                            let y = kb.un(UnOp::Tanh, y);
                            l = kb.mul(y, cap);
                        }
                        if let Some(mask) = x.mask.as_mut() {
                            out = mask(kb, [b, h, i, j]).map(|m| {
                                let m = kb.cast(acc, m);
                                l = kb.add(l, m);
                            });
                        }
                        kb.set(logit, l);
                    },
                    |_| {},
                );
                out?;
                let l = kb.get(logit);
                kb.store(weights, at, l);
                Ok(())
            })?;
            kb.barrier();
            each(kb, &nq, |kb, i| {
                let (width, zero) = (kb.index(s.keys), kb.index(0));
                let (start, before) = (kb.mul(i, width), kb.load(top, i, 1));
                let max = kb.var(before);
                kb.for_(zero, width, 1, Unroll::No, |kb, j| {
                    let at = kb.add(start, j);
                    let (l, old) = (kb.load(weights, at, 1), kb.get(max));
                    let new = kb.bin(BinOp::Max, old, l);
                    kb.set(max, new);
                });
                let after = kb.get(max);
                // A row that has seen no key keeps weights of zero.
                let hidden = kb.bin(BinOp::Eq, after, lowest);
                let base = kb.select(hidden, nothing, after);
                let shrink = kb.sub(before, base);
                let shrink = kb.un(UnOp::Exp, shrink);
                let old = kb.load(total, i, 1);
                let old = kb.mul(old, shrink);
                let sum = kb.var(old);
                kb.for_(zero, width, 1, Unroll::No, |kb, j| {
                    let at = kb.add(start, j);
                    let l = kb.load(weights, at, 1);
                    let l = kb.sub(l, base);
                    let w = kb.un(UnOp::Exp, l);
                    kb.store(weights, at, w);
                    let old = kb.get(sum);
                    let new = kb.add(old, w);
                    kb.set(sum, new);
                });
                let sum = kb.get(sum);
                kb.store(total, i, sum);
                kb.store(top, i, after);
                kb.store(scale, i, shrink);
                Ok(())
            })?;
            kb.barrier();
            for (n, var) in sums.iter().enumerate() {
                let (_, i, e, inside) = place(kb, n);
                kb.if_(
                    inside,
                    |kb| {
                        let (old, shrink) = (kb.get(*var), kb.load(scale, i, 1));
                        let old = kb.mul(old, shrink);
                        kb.set(*var, old);
                        let (width, zero, features) = (kb.index(s.keys), kb.index(0), kb.index(s.features));
                        let start = kb.mul(i, width);
                        kb.for_(zero, width, 1, Unroll::Auto, |kb, j| {
                            let (at, from) = (kb.add(start, j), kb.mul(j, features));
                            let from = kb.add(from, e);
                            let (w, v, old) = (kb.load(weights, at, 1), kb.load(values, from, 1), kb.get(*var));
                            let new = multiply_add(kb, w, v, old);
                            kb.set(*var, new);
                        });
                    },
                    |_| {},
                );
            }
            kb.barrier();
            Ok(())
        })();
    });
    out?;
    for (n, var) in sums.iter().enumerate() {
        let (at, i, _, inside) = place(kb, n);
        kb.if_(
            inside,
            |kb| {
                let (sum, weight) = (kb.get(*var), kb.load(total, i, 1));
                let mut y = kb.bin(BinOp::Div, sum, weight);
                if p.clear {
                    let none = kb.bin(BinOp::Eq, weight, nothing);
                    y = kb.select(none, nothing, y);
                }
                kb.store(finished, at, y);
            },
            |_| {},
        );
    }
    kb.barrier();
    each(kb, &(&nq * &ne), |kb, at| {
        let (i, e) = tile::div_rem(kb, at, &ne);
        let i = kb.add(first, i);
        let inside = kb.bin(BinOp::Lt, i, q_end);
        let mut out = Ok(());
        kb.if_(
            inside,
            |kb| {
                let y = kb.load(finished, at, 1);
                out = epilogue(kb, [b, h, i, e], y);
            },
            |_| {},
        );
        out
    })
}

/// All places of a tile, spread over the threads.
fn each<E>(kb: &mut KernelBuilder, n: &Dim, mut body: impl FnMut(&mut KernelBuilder, Reg) -> Result<(), E>) -> Result<(), E> {
    let (thread, end) = (kb.thread(), kb.dim(n));
    let mut out = Ok(());
    kb.for_(thread, end, THREADS, Unroll::No, |kb, at| out = body(kb, at));
    out
}
