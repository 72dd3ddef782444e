//! Attention of one head in one kernel; no matrix of logits in memory. This file has what all forms of it share: sizes, operands, units, masks.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Unroll};
use transc_ir::op::{Attention, IntAttention};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::Dim;

use super::matmul::pieces;
use super::tile;

pub mod few;
pub mod floats;
pub mod int8;
pub mod merge;
pub mod turned;

/// Query rows of a unit, a multiple of the rows of every tile of vectors.
pub const ROWS: i64 = 24;

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
    pub fn new(a: &Attention, dims: [&[Dim]; 3]) -> AttentionProblem {
        let softcap = a.softcap.0;
        AttentionProblem { softcap, ..AttentionProblem::sized(dims, a.scale.0, a.causal.as_ref(), a.clear) }
    }

    /// An attention on codes of these dims.
    pub fn of_codes(a: &IntAttention, dims: [&[Dim]; 3]) -> AttentionProblem {
        AttentionProblem::sized(dims, a.scale.0, a.causal.as_ref(), a.clear)
    }

    fn sized([q, k, v]: [&[Dim]; 3], scale: f64, causal: Option<&Dim>, clear: bool) -> AttentionProblem {
        AttentionProblem {
            b: q[0].clone(),
            h: q[1].clone(),
            g: k[1].clone(),
            sq: q[2].clone(),
            sk: k[2].clone(),
            d: q[3].clone(),
            e: v[3].clone(),
            scale,
            softcap: 0.0,
            causal: causal.cloned(),
            clear,
        }
    }

    /// Number of independent units of a kernel, of so many query rows.
    pub fn extent(&self, rows: i64) -> Dim {
        &(&self.b * &self.h) * &self.sq.ceil_div(&rows.into())
    }

    /// What the name of a kernel says beside its schedule: causal, with a mask, NaN for a row that sees no key.
    pub fn flags(&self, masked: bool) -> String {
        let flags = [(self.causal.is_some(), "c"), (masked, "m"), (!self.clear, "n")];
        flags.iter().filter(|f| f.0).map(|f| f.1).collect()
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
    /// Rows of a block, if the rows lie in blocks; see [`tile::along`].
    pub block: Option<i64>,
}

impl Operand {
    fn at(&self, kb: &mut KernelBuilder, index: &[Reg; 4]) -> Reg {
        let mut sum = kb.dim(&self.offset);
        for (axis, (i, stride)) in index.iter().zip(&self.strides).enumerate() {
            let step = tile::along(kb, *i, stride, self.block.filter(|_| axis == 2));
            sum = kb.add(sum, step);
        }
        sum
    }

    /// How far a row is from the first one of its head.
    fn row(&self, kb: &mut KernelBuilder, row: Reg) -> Reg {
        tile::along(kb, row, &self.strides[2], self.block)
    }
}

/// Gives a vector of mask values to add, for `[batch, head, query]` and the first key; lanes beyond the count are not used.
pub type Mask<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, u16, Option<Reg>) -> Reg + 'a;
/// Consumes finished elements: `[batch, head, query]`, first feature, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, Reg, Option<Reg>) + 'a;

/// The rows of a unit.
struct Unit {
    b: Reg,
    h: Reg,
    /// First row.
    row: Reg,
    /// Number of rows.
    rows: Reg,
}

/// A step of a kernel.
enum Step {
    /// Packs keys and values of a head, given where those of its first row lie.
    Pack([Reg; 2]),
    /// Computes a unit of it.
    Compute(Unit),
}

/// Takes the steps of this call's share of units of so many rows, of keys and values `of`.
fn each_step(
    kb: &mut KernelBuilder,
    (p, rows): (&AttentionProblem, i64),
    of: [&Operand; 2],
    step: &mut dyn FnMut(&mut KernelBuilder, Step),
) {
    let group = p.h.floor_div(&p.g);
    let blocks = p.sq.ceil_div(&rows.into());
    let (lo, hi, len) = (kb.lo(), kb.hi(), kb.dim(&(&blocks * &group)));
    pieces(kb, (lo, hi), len, &mut |kb, key_head, (from, to)| {
        let (b, g) = tile::div_rem(kb, key_head, &p.g);
        let zero = kb.index(0);
        let base = of.map(|x| x.at(kb, &[b, g, zero, zero]));
        step(kb, Step::Pack(base));
        kb.for_(from, to, 1, Unroll::No, |kb, unit| {
            let (head, block) = tile::div_rem(kb, unit, &blocks);
            let (group, most, end) = (kb.dim(&group), kb.index(rows), kb.dim(&p.sq));
            let first = kb.mul(g, group);
            let (h, row) = (kb.add(first, head), kb.mul(block, most));
            let left = kb.sub(end, row);
            let rows = kb.bin(BinOp::Min, left, most);
            step(kb, Step::Compute(Unit { b, h, row, rows }));
        });
    });
}

/// The key beyond which no row of a unit sees one.
fn seen_keys(kb: &mut KernelBuilder, p: &AttentionProblem, u: &Unit) -> Reg {
    let (zero, keys) = (kb.index(0), kb.dim(&p.sk));
    let Some(offset) = &p.causal else { return keys };
    // Whole turns of the products.
    let (offset, unroll) = (kb.dim(&(offset + &Dim::from(tile::UNROLL - 1))), kb.index(tile::UNROLL));
    let last = kb.add(u.row, u.rows);
    let last = kb.add(last, offset);
    let last = kb.bin(BinOp::Max, last, zero);
    let turns = kb.bin(BinOp::Div, last, unroll);
    let last = kb.mul(turns, unroll);
    kb.bin(BinOp::Min, last, keys)
}

/// Query `i` sees the keys below this one, which may be negative.
fn visible_keys(kb: &mut KernelBuilder, p: &AttentionProblem, i: Reg) -> Reg {
    let keys = kb.dim(&p.sk);
    let Some(offset) = &p.causal else { return keys };
    let offset = kb.dim(&(offset + &Dim::from(1)));
    let last = kb.add(i, offset);
    kb.bin(BinOp::Min, last, keys)
}

/// Logits after the soft cap.
fn capped(kb: &mut KernelBuilder, p: &AttentionProblem, x: Reg) -> Reg {
    if p.softcap == 0.0 {
        return x;
    }
    let ty = kb.ty(x);
    let (cap, inv) = (kb.num(ty, p.softcap), kb.num(ty, 1.0 / p.softcap));
    let y = kb.mul(x, inv);
    let y = kb.un(UnOp::Tanh, y);
    kb.mul(y, cap)
}

/// Logits of `[batch, head, query]` from a key on, with their mask; all but the first `visible` ones, if that is given, are `-inf`.
fn masked(
    kb: &mut KernelBuilder,
    p: &AttentionProblem,
    mask: Option<&mut Mask<'_>>,
    (at, key): (&[Reg; 3], Reg),
    mut x: Reg,
    visible: Option<Reg>,
) -> Reg {
    let ty = kb.ty(x);
    if let Some(mask) = mask {
        let count = visible.map(|_| {
            let keys = kb.dim(&p.sk);
            let left = kb.sub(keys, key);
            tile::active(kb, left, ty.lanes.into())
        });
        let m = mask(kb, at, key, ty.lanes, count);
        x = kb.add(x, m);
    }
    match visible {
        Some(visible) => {
            let lowest = kb.num(ty, f64::NEG_INFINITY);
            tile::keep_lanes(kb, x, visible, lowest)
        }
        None => x,
    }
}

/// The larger one; of NaN and a number the number.
fn larger(kb: &mut KernelBuilder, a: Reg, b: Reg) -> Reg {
    let c = kb.bin(BinOp::Gt, a, b);
    kb.select(c, a, b)
}

/// The largest lane but for NaN, in half as many lanes at each step.
fn largest_lane(kb: &mut KernelBuilder, mut x: Reg) -> Reg {
    let lanes = kb.ty(x).lanes;
    let mut half = lanes / 2;
    while half > 0 {
        let upper = kb.push(Inst::Shuffle(x, x, (0..lanes).map(|i| (i + half) % lanes).collect()));
        x = larger(kb, x, upper);
        half /= 2;
    }
    kb.push(Inst::Extract(x, 0))
}

/// What is taken from logits before `e^x`: the largest of them, or zero if all are `-inf`.
fn shift(kb: &mut KernelBuilder, top: Reg) -> Reg {
    let (lowest, none) = (kb.num(kb.ty(top), f64::NEG_INFINITY), kb.num(kb.ty(top), 0.0));
    let hidden = kb.bin(BinOp::Eq, top, lowest);
    kb.select(hidden, none, top)
}

/// What weighted sums are multiplied by: one over the sum of the weights. It is infinite for a row that sees no key, whose sums are zero and so become NaN, unless
/// the row is to be cleared.
fn inverse(kb: &mut KernelBuilder, clear: bool, top: Reg, total: Reg) -> Reg {
    let one = kb.num(kb.ty(total), 1.0);
    let inverse = kb.bin(BinOp::Div, one, total);
    if !clear {
        return inverse;
    }
    let (lowest, none) = (kb.num(kb.ty(top), f64::NEG_INFINITY), kb.num(kb.ty(top), 0.0));
    let hidden = kb.bin(BinOp::Eq, top, lowest);
    kb.select(hidden, none, inverse)
}
