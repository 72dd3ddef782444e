//! Attention in `f32`: logits, softmax and the weighted sum of one head in one kernel; no matrix of logits in memory.
//!
//! **Contract.** `softmax(cap(scale * q k^T) + mask) v` per batch and head as `ir`'s `attention` op states it, grouped heads included. The
//! operands are strided; `v` is contiguous along its features. Key rows beyond the end and keys hidden by causality take no part; a row that
//! sees no key gives NaN, or zeros on request. The sum of a row runs in a fixed order that does not depend on the partition.
//!
//! **Schedule.** A unit is one head: its keys are packed once into panels `[D][width]`, then blocks of query rows go through
//! logits (register tile over `D`), softmax in scratch memory, and weighted sum (register tile over the keys). This is the single-pass
//! form of FlashAttention (Dao et al. 2022) for keys that fit the second-level cache.

use std::fmt;

use transc_ir::loops::{Buf, KernelBuilder, ReduceOp, Reg, Ty, Unroll};
use transc_ir::op::Attention;
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::{DType, Dim};

use super::tile::{self, Source, TileInput, TileShape};

/// The sizes of an attention.
#[derive(Clone, Debug)]
pub struct AttentionProblem {
    /// Batch.
    pub b: Dim,
    /// Query heads.
    pub h: Dim,
    /// Key heads; divides `h`.
    pub g: Dim,
    /// Queries.
    pub sq: Dim,
    /// Keys.
    pub sk: Dim,
    /// Features of queries and keys.
    pub d: Dim,
    /// Features of values.
    pub e: Dim,
    /// Factor of the logits.
    pub scale: f64,
    /// Soft cap, 0 for none.
    pub softcap: f64,
    /// Offset of the causal diagonal.
    pub causal: Option<Dim>,
    /// A row that sees no key gives zeros.
    pub clear: bool,
}

impl AttentionProblem {
    /// An attention on operands of these dims.
    pub fn new(a: &Attention, [q, k, v]: [&[Dim]; 3]) -> AttentionProblem {
        AttentionProblem {
            b: q[0].clone(),
            h: q[1].clone(),
            g: k[1].clone(),
            sq: q[2].clone(),
            sk: k[2].clone(),
            d: q[3].clone(),
            e: v[3].clone(),
            scale: a.scale.0,
            softcap: a.softcap.0,
            causal: a.causal.clone(),
            clear: a.clear,
        }
    }

    /// What the name of a kernel says beside its schedule: causal, with a mask, NaN for a row that sees no key.
    pub fn flags(&self, masked: bool) -> String {
        let flags = [(self.causal.is_some(), "c"), (masked, "m"), (!self.clear, "n")];
        flags.iter().filter(|f| f.0).map(|f| f.1).collect()
    }
}

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of the logits.
    pub logits: TileShape,
    /// Tile of the weighted sum.
    pub values: TileShape,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attention_f32_m{}k{}n{}", self.logits.rows, self.logits.width(), self.values.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` floats.
    pub fn choose(lanes: u16, p: &AttentionProblem) -> Schedule {
        let values = TileShape::choose(lanes, &p.e);
        let logits = TileShape::space(lanes).into_iter().find(|s| s.rows == values.rows).unwrap_or(values);
        Schedule { logits, values }
    }

    /// Number of independent units.
    pub fn extent(self, p: &AttentionProblem) -> Dim {
        &p.b * &p.h
    }
}

/// A strided operand `[batch, head, row, feature]`.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Where it lies.
    pub buf: Buf,
    /// Element offset of `[0, 0, 0, 0]`.
    pub offset: Dim,
    /// Distance along each axis, in elements.
    pub strides: [Dim; 4],
}

impl Operand {
    fn at(&self, kb: &mut KernelBuilder, index: &[Reg]) -> Reg {
        let mut sum = kb.dim(&self.offset);
        for (i, stride) in index.iter().zip(&self.strides) {
            let stride = kb.dim(stride);
            let step = kb.mul(*i, stride);
            sum = kb.add(sum, step);
        }
        sum
    }
}

/// Gives a vector of mask values to add, for `[batch, head, query]` and the first key; lanes beyond the count are not used.
pub type Mask<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, u16, Option<Reg>) -> Reg + 'a;
/// Consumes finished elements: `[batch, head, query]`, first feature, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, Reg, Option<Reg>) + 'a;

/// Builds the kernel's body. The kernel's extent must be [`Schedule::extent`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    s: Schedule,
    [q, k, v]: [&Operand; 3],
    mut mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let width = Dim::from(s.logits.width());
    let panels = p.sk.ceil_div(&width);
    let row_len = &panels * &width;
    let keys = kb.local(DType::F32, &row_len * &p.d);
    let weights = kb.local(DType::F32, &row_len * &Dim::from(i64::from(s.logits.rows)));
    let inverse = kb.local(DType::F32, i64::from(s.logits.rows).into());
    let group = p.h.floor_div(&p.g);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (b, h) = tile::div_rem(kb, unit, &p.h);
        let (g, _) = tile::div_rem(kb, h, &group);
        let (zero, panel_count, panel_width) = (kb.index(0), kb.dim(&panels), kb.dim(&width));
        let panel_len = kb.dim(&(&width * &p.d));
        let k_base = k.at(kb, &[b, g, zero, zero]);
        kb.for_(zero, panel_count, 1, Unroll::No, |kb, j| {
            let (n0, at) = (kb.mul(j, panel_width), kb.mul(j, panel_len));
            let src = Source { buf: k.buf, base: k_base, k_stride: &k.strides[3], n_stride: &k.strides[2] };
            tile::pack_panel(kb, s.logits, (&p.d, &p.sk), &src, n0, (keys, at));
        });
        let queries = kb.dim(&p.sq);
        tile::sweep_rows(kb, zero, queries, s.logits.rows, &mut |kb, row, rows| {
            let stride = kb.dim(&row_len);
            let q_rows: Vec<Reg> = (0..i64::from(rows))
                .map(|r| {
                    let r = kb.index(r);
                    let i = kb.add(row, r);
                    q.at(kb, &[b, h, i, zero])
                })
                .collect();
            let a_stride = kb.dim(&q.strides[3]);
            kb.for_(zero, panel_count, 1, Unroll::No, |kb, j| {
                let (n0, column) = (kb.mul(j, panel_width), kb.mul(j, panel_len));
                let counts = vec![None; s.logits.vectors.into()];
                let input = TileInput {
                    a: q.buf,
                    rows: &q_rows,
                    a_stride,
                    b: keys,
                    column,
                    b_stride: panel_width,
                    counts: &counts,
                    k: &p.d,
                    ahead: None,
                };
                let acc = tile::accumulate(kb, s.logits, &input);
                for (i, var) in acc.iter().enumerate() {
                    let (r, v) = (i / usize::from(s.logits.vectors), i % usize::from(s.logits.vectors));
                    let x = kb.get(*var);
                    let r = kb.index(r as i64);
                    let at = kb.mul(r, stride);
                    let column = kb.index(v as i64 * i64::from(s.logits.lanes));
                    let column = kb.add(n0, column);
                    let at = kb.add(at, column);
                    kb.store(weights, at, x);
                }
            });
            let n_rows = kb.index(rows.into());
            kb.for_(zero, n_rows, 1, Unroll::No, |kb, r| {
                let i = kb.add(row, r);
                let base = kb.mul(r, stride);
                softmax_row(kb, p, s.logits.lanes, (weights, base), &row_len, &[b, h, i], mask.as_deref_mut(), (inverse, r));
            });
            weighted_sum(kb, p, s.values, (weights, stride), v, &[b, h, g], (row, rows), inverse, epilogue);
        });
    });
}

/// Turns a row of logits into weights `e^(x - max)` in place and stores `1 / sum`: of a row that sees no key infinity, so that it
/// gives NaN, or 0 if it is to be cleared.
#[expect(clippy::too_many_arguments, reason = "the parts of one row")]
fn softmax_row(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    lanes: u16,
    (buf, base): (Buf, Reg),
    row_len: &Dim,
    index: &[Reg; 3],
    mut mask: Option<&mut Mask<'_>>,
    (inverse, slot): (Buf, Reg),
) {
    let ty = Ty::vector(DType::F32, lanes);
    let (zero, end, n) = (kb.index(0), kb.dim(row_len), kb.dim(&p.sk));
    let neg_inf = kb.num(ty, f64::NEG_INFINITY);
    let scale = kb.num(ty, p.scale);
    // Keys below this bound are visible.
    let bound = match &p.causal {
        Some(offset) => {
            let one_more = kb.dim(&(offset + &Dim::from(1)));
            let last = kb.add(index[2], one_more);
            kb.bin(BinOp::Min, last, n)
        }
        None => n,
    };
    let lane = kb.push(transc_ir::loops::Inst::Lanes(Ty::vector(DType::I64, lanes)));
    let bounds = kb.splat(lanes, bound);
    let width = kb.index(lanes.into());
    let ragged = p.causal.is_some() || !p.sk.modulo(&i64::from(lanes).into()).is(0);
    let max = kb.var(neg_inf);
    kb.for_(zero, end, lanes.into(), Unroll::No, |kb, j| {
        let at = kb.add(base, j);
        let x = kb.load(buf, at, lanes);
        let mut x = kb.mul(x, scale);
        if p.softcap != 0.0 {
            let (cap, inv) = (kb.num(ty, p.softcap), kb.num(ty, 1.0 / p.softcap));
            let y = kb.mul(x, inv);
            let y = kb.un(UnOp::Tanh, y);
            x = kb.mul(y, cap);
        }
        if let Some(mask) = mask.as_mut() {
            let left = kb.sub(n, j);
            let left = kb.bin(BinOp::Max, left, zero);
            let left = kb.bin(BinOp::Min, left, width);
            let count = (!p.sk.modulo(&i64::from(lanes).into()).is(0) || !row_len.modulo(&p.sk).is(0)).then_some(left);
            let m = mask(kb, index, j, lanes, count);
            x = kb.add(x, m);
        }
        if ragged || row_len != &p.sk {
            let first = kb.splat(lanes, j);
            let key = kb.add(first, lane);
            let visible = kb.bin(BinOp::Lt, key, bounds);
            x = kb.select(visible, x, neg_inf);
        }
        kb.store(buf, at, x);
        let m = kb.get(max);
        let m = kb.bin(BinOp::Max, m, x);
        kb.set(max, m);
    });
    let top = kb.get(max);
    let top = kb.reduce(ReduceOp::Max, top);
    let (lowest, none) = (kb.num(Ty::F32, f64::NEG_INFINITY), kb.num(Ty::F32, 0.0));
    let hidden = kb.bin(BinOp::Eq, top, lowest);
    let top = kb.select(hidden, none, top);
    let top = kb.splat(lanes, top);
    let nothing = kb.num(ty, 0.0);
    let sum = kb.var(nothing);
    kb.for_(zero, end, lanes.into(), Unroll::No, |kb, j| {
        let at = kb.add(base, j);
        let x = kb.load(buf, at, lanes);
        let x = kb.sub(x, top);
        let e = kb.un(UnOp::Exp, x);
        kb.store(buf, at, e);
        let s = kb.get(sum);
        let s = kb.add(s, e);
        kb.set(sum, s);
    });
    let total = kb.get(sum);
    let total = kb.reduce(ReduceOp::Add, total);
    let one = kb.num(Ty::F32, 1.0);
    let inv = kb.bin(BinOp::Div, one, total);
    let inv = if p.clear { kb.select(hidden, none, inv) } else { inv };
    kb.store(inverse, slot, inv);
}

/// `epilogue(inverse[r] * sum over keys of weights[r, key] * v[key, ..])` for a block of rows.
#[expect(clippy::too_many_arguments, reason = "the parts of one block")]
fn weighted_sum(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    shape: TileShape,
    (weights, stride): (Buf, Reg),
    v: &Operand,
    [b, h, g]: &[Reg; 3],
    (row, rows): (Reg, u16),
    inverse: Buf,
    epilogue: &mut Epilogue<'_>,
) {
    let (zero, one) = (kb.index(0), kb.index(1));
    let e_end = kb.dim(&p.e);
    let v_base = v.at(kb, &[*b, *g, zero, zero]);
    let b_stride = kb.dim(&v.strides[2]);
    let w_rows: Vec<Reg> = (0..i64::from(rows))
        .map(|r| {
            let r = kb.index(r);
            kb.mul(r, stride)
        })
        .collect();
    kb.for_(zero, e_end, shape.width(), Unroll::No, |kb, n0| {
        let left = kb.sub(e_end, n0);
        let counts = tile::column_counts(kb, shape, &p.e, left);
        let column = kb.add(v_base, n0);
        let input = TileInput {
            a: weights,
            rows: &w_rows,
            a_stride: one,
            b: v.buf,
            column,
            b_stride,
            counts: &counts,
            k: &p.sk,
            ahead: None,
        };
        let acc = tile::accumulate(kb, shape, &input);
        for (r, acc) in acc.chunks(usize::from(shape.vectors)).enumerate() {
            let r = kb.index(r as i64);
            let i = kb.add(row, r);
            let factor = kb.load(inverse, r, 1);
            let factor = kb.splat(shape.lanes, factor);
            for ((var, at), count) in acc.iter().zip(shape.columns()).zip(&counts) {
                let x = kb.get(*var);
                let x = kb.mul(x, factor);
                let at = kb.index(at);
                let n = kb.add(n0, at);
                epilogue(kb, &[*b, *h, i], n, x, *count);
            }
        }
    });
}
