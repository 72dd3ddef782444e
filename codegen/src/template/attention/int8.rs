//! Attention of 8-bit codes: both products in 32-bit integers, logits and softmax in `f32`; no matrix of logits in memory.
//!
//! **Contract.** As `ir`'s `int_attention` op states it. The operands are strided codes. Sums of integers are exact, and none depends on the partition;
//! what lies between them is rounded as `f32`, the softmax with one division per row.
//!
//! **Schedule.** A unit is [`ROWS`] query rows of one head. Keys and values of a key head are packed once per call into panels of groups
//! ([`super::super::groups`]). A unit computes its logits for all keys, since a weight is coded only when the sum of its row is known, or its largest
//! weight; then row by row the codes of the weights, then their product with the values.

use std::fmt;

use transc_ir::loops::{Buf, Inst, KernelBuilder, ReduceOp, Reg, Ty, Unroll};
use transc_ir::op::{Code, IntAttention};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::{DType, Dim};

use super::super::bytes::{self, Coding};
use super::super::coded_product::{Product, Side};
use super::super::groups::Group;
use super::super::tile::{self, Source, TileShape};
use super::{
    AttentionProblem, Epilogue, Mask, Operand, ROWS, Step, Unit, each_step, inverse, larger, largest_lane, masked, seen_keys,
    shift, visible_keys,
};
use crate::math::softmax_exp;

/// How an attention of codes is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of the logits.
    pub logits: TileShape,
    /// Tile of the weighted sum.
    pub values: TileShape,
    /// What the products multiply.
    pub group: Group,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = if self.group == Group::Words { "w" } else { "" };
        write!(f, "attention_int8{words}_m{}k{}n{}", self.logits.rows, self.logits.width(), self.values.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` 32-bit numbers, with an instruction for sums of products of bytes or not.
    pub fn choose(lanes: u16, byte_dot: bool, p: &AttentionProblem) -> Schedule {
        // Two vectors per row: few columns are lost at the end of the keys.
        let logits = TileShape { lanes, rows: if lanes == 16 { 8 } else { 4 }, vectors: 2 };
        let space = if lanes == 16 { TileShape::space(lanes) } else { vec![logits] };
        Schedule { logits, values: TileShape::fastest(&space, &p.e), group: if byte_dot { Group::Bytes } else { Group::Words } }
    }
}

/// What is computed.
pub struct Problem<'a> {
    /// The sizes, with the factor of the logits.
    pub sizes: AttentionProblem,
    /// The codes.
    pub op: &'a IntAttention,
    /// Element types of queries, keys and values.
    pub dtypes: [DType; 3],
}

/// Builds the kernel's body. The kernel's extent must be [`AttentionProblem::extent`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    [q, k, v]: [&Operand; 3],
    mask: Option<&mut Mask<'_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let sizes = &p.sizes;
    let side = |dtype: DType, zero: i64, left: bool| Side { dtype, zero, group: s.group, left };
    let [queries, keys, values] = [0, 1, 2].map(|i| side(p.dtypes[i], p.op.zeros[i], i == 0));
    let weights = side(p.op.weights.to, p.op.weights.zero, true);
    let keys_len = &sizes.sk.ceil_div(&s.logits.width().into()) * &s.logits.width().into();
    let lanes = i64::from(s.logits.lanes);
    let states = (ROWS + lanes - 1) / lanes * lanes;
    let mut a = Parts {
        p,
        s,
        logits: Product::new(kb, [queries, keys], s.logits, [&sizes.d, &sizes.sk], (&ROWS.into(), &keys_len)),
        values: Product::new(kb, [weights, values], s.values, [&sizes.sk, &sizes.e], (&ROWS.into(), &s.values.width().into())),
        tops: kb.local(DType::F32, states.into()),
        factors: kb.local(DType::F32, states.into()),
        keys_len,
        mask,
    };
    each_step(kb, (sizes, ROWS), [k, v], &mut |kb, step| match step {
        Step::Pack([key, value]) => {
            a.logits.pack(kb, &Source { buf: k.buf, base: key, k_stride: &k.strides[3], n_stride: &k.strides[2] });
            a.values.pack(kb, &Source { buf: v.buf, base: value, k_stride: &v.strides[2], n_stride: &v.strides[3] });
        }
        Step::Compute(unit) => a.unit(kb, q, &unit, epilogue),
    });
}

/// Joins two vectors.
type Join<'a> = dyn Fn(&mut KernelBuilder, Reg, Reg) -> Reg + 'a;
/// Folds the lanes of a vector.
type Fold<'a> = dyn Fn(&mut KernelBuilder, Reg) -> Reg + 'a;

/// What a kernel is built from.
struct Parts<'a, 'm, 'f> {
    p: &'a Problem<'a>,
    s: Schedule,
    logits: Product,
    values: Product,
    /// Largest logit of each row.
    tops: Buf,
    /// What is taken from the logits of each row, then what its weights are multiplied by, or its results.
    factors: Buf,
    /// Keys in whole panels.
    keys_len: Dim,
    mask: Option<&'m mut Mask<'f>>,
}

impl Parts<'_, '_, '_> {
    fn unit(&mut self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, epilogue: &mut Epilogue<'_>) {
        let (sizes, zero) = (&self.p.sizes, kb.index(0));
        self.take_queries(kb, q, u);
        self.each_vector(kb, &|kb, j| {
            let lowest = kb.num(Ty::vector(DType::F32, self.s.logits.lanes), f64::NEG_INFINITY);
            kb.store(self.tops, j, lowest);
        });
        let end = seen_keys(kb, sizes, u);
        let (depth, stride) = (kb.dim(&self.logits.depth()), kb.dim(&self.keys_len));
        kb.for_(zero, end, self.s.logits.width(), Unroll::No, |kb, n0| {
            let column = kb.mul(n0, depth);
            self.logits.multiply(kb, u.rows, (n0, column), (stride, n0));
        });
        let panels = tile::ceil_div(kb, end, self.s.logits.width());
        let width = kb.index(self.s.logits.width());
        let seen = kb.mul(panels, width);
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            self.real_logits(kb, u, r, seen);
        });
        self.weights(kb, u.rows);
        let panels = sizes.e.ceil_div(&self.s.values.width().into());
        let stride = kb.index(self.s.values.width());
        let depth = self.values.depth();
        tile::each_panel(kb, &panels, self.s.values, &depth, &mut |kb, n0, column| {
            self.values.multiply(kb, u.rows, (n0, column), (stride, zero));
            tile::hand_on(kb, self.s.values, self.values.sums, (zero, u.rows), (n0, &sizes.e), &mut |kb, r, n, x, count| {
                let i = kb.add(u.row, r);
                let mut x = x;
                if self.p.op.relative {
                    let factor = kb.load(self.factors, r, 1);
                    let factor = kb.splat(kb.ty(x).lanes, factor);
                    x = kb.cast(DType::F32, x);
                    x = kb.mul(x, factor);
                }
                epilogue(kb, &[u.b, u.h, i], n, x, count);
            });
        });
    }

    /// Copies the rows, with zeros behind them.
    fn take_queries(&self, kb: &mut KernelBuilder, q: &Operand, u: &Unit) {
        let (product, vector) = (&self.logits, self.logits.vector());
        let (zero, features, len) = (kb.index(0), kb.dim(&product.k), kb.dim(&product.row_len));
        kb.for_(zero, u.rows, 1, Unroll::No, |kb, r| {
            let i = kb.add(u.row, r);
            let (from, to) = (q.at(kb, &[u.b, u.h, i, zero]), kb.mul(r, len));
            if q.strides[3].is(1) {
                let whole = tile::whole_turns(kb, (zero, features), vector);
                kb.for_(zero, whole, vector, Unroll::No, |kb, j| {
                    let (from, to) = (kb.add(from, j), kb.add(to, j));
                    let x = kb.load(q.buf, from, vector as u16);
                    let x = product.left.encode(kb, x);
                    kb.store(product.rows, to, x);
                });
                kb.for_(whole, len, vector, Unroll::No, |kb, j| {
                    let (from, to, left) = (kb.add(from, j), kb.add(to, j), kb.sub(features, j));
                    let x = kb.load_count(q.buf, from, vector as u16, left);
                    let x = product.left.encode(kb, x);
                    let none = kb.num(kb.ty(x), 0.0);
                    let x = tile::keep_lanes(kb, x, left, none);
                    kb.store(product.rows, to, x);
                });
            } else {
                let stride = kb.dim(&q.strides[3]);
                kb.for_(zero, features, 1, Unroll::No, |kb, j| {
                    let step = kb.mul(j, stride);
                    let (from, to) = (kb.add(from, step), kb.add(to, j));
                    let x = kb.load(q.buf, from, 1);
                    let x = product.left.encode(kb, x);
                    kb.store(product.rows, to, x);
                });
                let none = kb.num(Ty::scalar(kb.buf_dtype(product.rows)), 0.0);
                kb.for_(features, len, 1, Unroll::No, |kb, j| {
                    let to = kb.add(to, j);
                    kb.store(product.rows, to, none);
                });
            }
            product.start_row(kb, r);
        });
    }

    /// Writes the logits of a row in place of the sums, which end at key `seen`, after mask and causality. All others, hidden or beyond the end,
    /// are `-inf`.
    fn real_logits(&mut self, kb: &mut KernelBuilder, u: &Unit, r: Reg, seen: Reg) {
        let (op, lanes, sums) = (self.p.op, self.s.logits.lanes, self.logits.sums);
        let (zero, padded) = (kb.index(0), kb.dim(&self.keys_len));
        let base = kb.mul(r, padded);
        let i = kb.add(u.row, r);
        // Keys below this bound are visible.
        let bound = visible_keys(kb, &self.p.sizes, i);
        let bound = kb.bin(BinOp::Max, bound, zero);
        let whole = tile::whole_turns(kb, (zero, bound), lanes.into());
        let ty = Ty::vector(DType::F32, lanes);
        let mut some = |kb: &mut KernelBuilder, j: Reg, ragged: bool| {
            let at = kb.add(base, j);
            let sum = kb.load(sums, at, lanes);
            let x = logit_of(kb, op, sum);
            let visible = ragged.then(|| kb.sub(bound, j));
            let x = masked(kb, &self.p.sizes, self.mask.as_deref_mut(), (&[u.b, u.h, i], j), x, visible);
            let bits = kb.push(Inst::Bitcast(DType::I32, x));
            kb.store(sums, at, bits);
        };
        kb.for_(zero, whole, lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| some(kb, j, false));
        kb.for_(whole, seen, lanes.into(), Unroll::No, |kb, j| some(kb, j, true));
        if self.p.sizes.causal.is_some() {
            let lowest = kb.num(ty, f64::NEG_INFINITY);
            let lowest = kb.push(Inst::Bitcast(DType::I32, lowest));
            kb.for_(seen, padded, lanes.into(), Unroll::No, |kb, j| {
                let at = kb.add(base, j);
                kb.store(sums, at, lowest);
            });
        }
    }

    /// Some of what [`Parts::real_logits`] wrote.
    fn logit(&self, kb: &mut KernelBuilder, at: Reg) -> Reg {
        let bits = kb.load(self.logits.sums, at, self.s.logits.lanes);
        kb.push(Inst::Bitcast(DType::F32, bits))
    }

    /// Calls `body` with the places of the vectors of what each row has one of.
    fn each_vector(&self, kb: &mut KernelBuilder, body: &dyn Fn(&mut KernelBuilder, Reg)) {
        let (zero, end) = (kb.index(0), kb.index(ROWS));
        kb.for_(zero, end, self.s.logits.lanes.into(), Unroll::No, |kb, j| body(kb, j));
    }

    /// Folds what stands in place of the sums of each row, first vector by vector, then the lanes of one.
    fn fold_rows(&self, kb: &mut KernelBuilder, rows: Reg, start: f64, to: Buf, (join, lanes_of): (&Join<'_>, &Fold<'_>)) {
        let lanes = self.s.logits.lanes;
        let (zero, padded) = (kb.index(0), kb.dim(&self.keys_len));
        kb.for_(zero, rows, 1, Unroll::No, |kb, r| {
            let (base, start) = (kb.mul(r, padded), kb.num(Ty::vector(DType::F32, lanes), start));
            let sum = kb.var(start);
            kb.for_(zero, padded, lanes.into(), Unroll::Auto, |kb, j| {
                let (at, old) = (kb.add(base, j), kb.get(sum));
                let x = self.logit(kb, at);
                let new = join(kb, x, old);
                kb.set(sum, new);
            });
            let sum = kb.get(sum);
            let sum = lanes_of(kb, sum);
            kb.store(to, r, sum);
        });
    }

    /// Turns logits into codes of weights, with zeros behind them. One step after the other for all rows: what a row waits for is hidden by the others.
    fn weights(&self, kb: &mut KernelBuilder, rows: Reg) {
        let (op, lanes) = (self.p.op, self.s.logits.lanes);
        let ty = Ty::vector(DType::F32, lanes);
        let (zero, padded) = (kb.index(0), kb.dim(&self.keys_len));
        self.fold_rows(kb, rows, f64::NEG_INFINITY, self.tops, (&larger, &largest_lane));
        self.each_vector(kb, &|kb, j| {
            let top = kb.load(self.tops, j, lanes);
            let shift = shift(kb, top);
            kb.store(self.factors, j, shift);
        });
        kb.for_(zero, rows, 1, Unroll::No, |kb, r| {
            let base = kb.mul(r, padded);
            let shift = kb.load(self.factors, r, 1);
            let shift = kb.splat(lanes, shift);
            kb.for_(zero, padded, lanes.into(), Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| {
                let at = kb.add(base, j);
                let x = self.logit(kb, at);
                let x = kb.sub(x, shift);
                let x = softmax_exp(kb, x);
                let bits = kb.push(Inst::Bitcast(DType::I32, x));
                kb.store(self.logits.sums, at, bits);
            });
        });
        // Of the weights, or of their codes.
        let add = |kb: &mut KernelBuilder, x: Reg, sum: Reg| {
            let x = if op.relative { relative_code(kb, op, x) } else { x };
            kb.add(x, sum)
        };
        self.fold_rows(kb, rows, 0.0, self.factors, (&add, &|kb, x| kb.reduce(ReduceOp::Add, x)));
        self.each_vector(kb, &|kb, j| {
            let (top, mut total) = (kb.load(self.tops, j, lanes), kb.load(self.factors, j, lanes));
            if !op.relative {
                let scale = kb.num(ty, op.weights.scale.0);
                total = kb.mul(total, scale);
            }
            let inverse = inverse(kb, op.clear, top, total);
            kb.store(self.factors, j, inverse);
        });
        kb.for_(zero, rows, 1, Unroll::No, |kb, r| self.codes(kb, r));
        // Apart, since sums of bytes read vectors that were stored in pieces.
        kb.for_(zero, rows, 1, Unroll::No, |kb, r| self.values.start_row(kb, r));
    }

    /// The codes of the weights of a row.
    fn codes(&self, kb: &mut KernelBuilder, r: Reg) {
        let (product, lanes) = (&self.values, self.s.logits.lanes);
        let (zero, keys, padded) = (kb.index(0), kb.dim(&self.p.sizes.sk), kb.dim(&self.keys_len));
        let len = kb.dim(&product.row_len);
        let (from, to) = (kb.mul(r, padded), kb.mul(r, len));
        let inverse = kb.load(self.factors, r, 1);
        let inverse = kb.splat(lanes, inverse);
        let coding = weight_coding(self.p.op);
        let real = |kb: &mut KernelBuilder, j: Reg| {
            let from = kb.add(from, j);
            let x = self.logit(kb, from);
            coded_weight(kb, self.p.op, x, inverse)
        };
        // Four vectors are one of bytes.
        let four = i64::from(4 * lanes);
        let whole = tile::whole_turns(kb, (zero, keys), four);
        let order = bytes::one_after_the_other(lanes);
        kb.for_(zero, whole, four, Unroll::No, |kb, j| {
            let x = [0, 1, 2, 3].map(|v| {
                let v = kb.index(v * i64::from(lanes));
                let j = kb.add(j, v);
                real(kb, j)
            });
            let x = coding.pack(kb, x);
            let x = kb.push(Inst::Shuffle(x, x, order.clone()));
            let (x, at) = (product.left.encode(kb, x), kb.add(to, j));
            kb.store(product.rows, at, x);
        });
        let step = kb.index(lanes.into());
        let end = tile::ceil_div(kb, keys, lanes.into());
        let end = kb.mul(end, step);
        kb.for_(whole, end, lanes.into(), Unroll::No, |kb, j| {
            let (x, left, at) = (real(kb, j), kb.sub(keys, j), kb.add(to, j));
            let x = coding.one(kb, x);
            let x = product.left.encode(kb, x);
            let none = kb.num(kb.ty(x), 0.0);
            let x = tile::keep_lanes(kb, x, left, none);
            kb.store(product.rows, at, x);
        });
        let none = kb.num(Ty::vector(kb.buf_dtype(product.rows), lanes), 0.0);
        kb.for_(end, len, lanes.into(), Unroll::No, |kb, j| {
            let at = kb.add(to, j);
            kb.store(product.rows, at, none);
        });
    }
}

/// The logit that a sum stands for, before mask and causality.
pub(super) fn logit_of(kb: &mut KernelBuilder, op: &IntAttention, sum: Reg) -> Reg {
    // A power of two commutes with the rounding of the codes' scale.
    let power_of_two = op.scale.0.abs().log2().fract() == 0.0;
    let factors = match &op.logits {
        None => vec![op.scale.0],
        Some(code) if power_of_two => vec![f64::from(code.scale.0 as f32 * op.scale.0 as f32)],
        Some(code) => vec![code.scale.0, op.scale.0],
    };
    let x = kb.cast(DType::F32, sum);
    let unit = kb.num(kb.ty(x), op.unit.0);
    let mut x = kb.mul(x, unit);
    if let Some(code) = &op.logits {
        x = code_of(kb, x, code);
    }
    for factor in factors.iter().filter(|f| **f != 1.0) {
        let factor = kb.num(kb.ty(x), *factor);
        x = kb.mul(x, factor);
    }
    x
}

/// The code of a weight by the largest of its row, before it is cast.
pub(super) fn relative_code(kb: &mut KernelBuilder, op: &IntAttention, x: Reg) -> Reg {
    let steps = kb.num(kb.ty(x), 1.0 / op.weights.scale.0);
    let x = kb.mul(x, steps);
    kb.un(UnOp::Round, x)
}

/// What is coded of a weight, given what those of its row are multiplied by; [`weight_coding`] makes a code of it.
pub(super) fn coded_weight(kb: &mut KernelBuilder, op: &IntAttention, x: Reg, inverse: Reg) -> Reg {
    if op.relative { relative_code(kb, op, x) } else { kb.mul(x, inverse) }
}

/// How weights become codes.
pub(super) fn weight_coding(op: &IntAttention) -> Coding {
    Coding { zero: if op.relative { 0 } else { op.weights.zero }, to: op.weights.to }
}

/// The code of `x`, less its zero point, as `f32`.
fn code_of(kb: &mut KernelBuilder, x: Reg, code: &Code) -> Reg {
    let scale = kb.num(kb.ty(x), code.scale.0);
    let x = kb.bin(BinOp::Div, x, scale);
    let x = Coding { zero: code.zero, to: code.to }.one(kb, x);
    let x = kb.cast(DType::I32, x);
    let zero = kb.num(kb.ty(x), code.zero as f64);
    let x = kb.sub(x, zero);
    kb.cast(DType::F32, x)
}
