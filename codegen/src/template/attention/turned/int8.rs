//! Attention of 8-bit codes that lie turned.
//!
//! **Contract.** As [`super::super::int8`], without causality: sums of integers are exact, what lies between them is rounded as `f32`. The sum of a row runs
//! over the keys in ascending order, four sums side by side.
//!
//! **Schedule.** A unit is [`QUERIES`] queries of one head. The keys of a head are turned once, `[key][features]`, since an instruction multiplies
//! groups of features; values are copied. Queries, and the codes of the weights, are interleaved by groups of features and of keys as they become the
//! columns of panels. A panel computes its logits for all keys, since a weight is coded only when the sum of its row is known, or its largest weight.

use std::fmt;

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::super::bytes;
use super::super::super::coded_product::{Product, Side};
use super::super::super::groups::{Group, in_turn};
use super::super::super::tile::{self, Source, TileShape};
use super::super::int8::{Problem, coded_weight, logit_of, relative_code, weight_coding};
use super::super::{Operand, Step, Unit, each_step, inverse, larger, shift};
use super::{Added, Epilogue, Masking, QUERIES, Queries, fold};
use crate::math::softmax_exp;

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Tile of both products.
    pub tile: TileShape,
    /// What the products multiply.
    pub group: Group,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = if self.group == Group::Words { "w" } else { "" };
        write!(f, "attention_int8{words}_m{}n{}t", self.tile.rows, self.tile.width())
    }
}

impl Schedule {
    /// The schedule for a machine with vectors of `lanes` 32-bit numbers, with an instruction for sums of products of bytes or not.
    pub fn choose(lanes: u16, byte_dot: bool) -> Schedule {
        Schedule {
            tile: super::tile(lanes, if lanes == 16 { 8 } else { 4 }),
            group: if byte_dot { Group::Bytes } else { Group::Words },
        }
    }
}

/// What a kernel is built from.
struct Parts<'a, 'm, 'f> {
    p: &'a Problem<'a>,
    s: Schedule,
    /// Keys by queries: sums, then logits and weights as bits, `[Sk][width]`.
    logits: Product,
    /// Features of values by queries, `[E][width]`.
    values: Product,
    /// Memory for a square of bytes that turns.
    square: Buf,
    mask: Option<Added<'m, 'f>>,
}

/// Builds the kernel's body. Its extent must be [`super::AttentionProblem::extent`] for units of [`QUERIES`].
pub fn build(
    kb: &mut KernelBuilder,
    p: &Problem<'_>,
    s: Schedule,
    [q, k, v]: [&Operand; 3],
    mask: Option<Masking<'_, '_>>,
    epilogue: &mut Epilogue<'_>,
) {
    let sizes = &p.sizes;
    let side = |dtype: DType, zero: i64, left: bool| Side { dtype, zero, group: s.group, left };
    let [queries, keys, values] = [0, 1, 2].map(|i| side(p.dtypes[i], p.op.zeros[i], i > 0));
    let weights = side(p.op.weights.to, p.op.weights.zero, false);
    let (width, bytes) = (Dim::from(s.tile.width()), 4 * i64::from(s.tile.lanes));
    let mask = mask.map(|mask| Added::new(kb, s.tile, &sizes.sk, mask));
    let whole_keys = &sizes.sk.ceil_div(&bytes.into()) * &bytes.into();
    let mut a = Parts {
        p,
        s,
        logits: Product::new(kb, [keys, queries], s.tile, [&sizes.d, &width], (&whole_keys, &width)),
        values: Product::new(kb, [values, weights], s.tile, [&sizes.sk, &width], (&sizes.e, &width)),
        square: kb.local(DType::U8, Dim::from(bytes * bytes)),
        mask,
    };
    each_step(kb, (sizes, QUERIES), [k, v], &mut |kb, step| match step {
        Step::Pack([key, value]) => {
            a.take_keys(kb, (k, key));
            a.take_values(kb, (v, value));
        }
        Step::Compute(unit) => a.unit(kb, q, &unit, epilogue),
    });
}

impl Parts<'_, '_, '_> {
    /// Bytes of a vector.
    fn side(&self) -> i64 {
        4 * i64::from(self.s.tile.lanes)
    }

    /// Turns the keys of a head, `[key][features]`, with zeros behind the features.
    fn take_keys(&self, kb: &mut KernelBuilder, (from, base): (&Operand, Reg)) {
        let (product, p, side) = (&self.logits, &self.p.sizes, self.side());
        let (zero, one, features, keys) = (kb.index(0), kb.index(1), kb.dim(&p.d), kb.dim(&p.sk));
        let (stride, len, last) = (kb.dim(&from.strides[3]), kb.dim(&product.row_len), kb.sub(features, one));
        let dtype = kb.buf_dtype(from.buf);
        kb.for_(zero, keys, side, Unroll::No, |kb, key| {
            let first = from.row(kb, key);
            let left = kb.sub(keys, key);
            let count = (!p.sk.modulo(&side.into()).is(0)).then(|| tile::active(kb, left, side));
            kb.for_(zero, len, side, Unroll::No, |kb, j| {
                let rest = kb.sub(features, j);
                let exist = (!p.d.modulo(&side.into()).is(0)).then(|| tile::active(kb, rest, side));
                let mut load = |kb: &mut KernelBuilder, r: Reg| {
                    // Beyond the last feature, that one again.
                    let feature = kb.add(j, r);
                    let feature = kb.bin(BinOp::Min, feature, last);
                    let row = kb.mul(feature, stride);
                    let at = kb.add(base, row);
                    let at = kb.add(at, first);
                    kb.load_part(from.buf, at, side as u16, count)
                };
                bytes::turn(kb, self.s.tile.lanes, (self.square, side), &bytes::in_order, &mut load, &mut |kb, c, x| {
                    let x = kb.push(Inst::Bitcast(dtype, x));
                    let x = product.left.encode(kb, x);
                    let x = match exist {
                        Some(count) => {
                            let none = kb.num(kb.ty(x), 0.0);
                            tile::keep_lanes(kb, x, count, none)
                        }
                        None => x,
                    };
                    let row = kb.add(key, c);
                    let row = kb.mul(row, len);
                    let at = kb.add(row, j);
                    // Rows are whole vectors as the product takes them, which may be shorter.
                    for first in (0..side).step_by(product.vector() as usize) {
                        let picks = (first..first + product.vector()).map(|i| i as u16).collect();
                        let part = kb.push(Inst::Shuffle(x, x, picks));
                        let first = kb.index(first);
                        let (inside, at) = (kb.add(j, first), kb.add(at, first));
                        let exists = kb.bin(BinOp::Lt, inside, len);
                        kb.if_(exists, |kb| kb.store(product.rows, at, part), |_| {});
                    }
                });
            });
        });
        kb.for_(zero, keys, 1, Unroll::No, |kb, key| product.start_row(kb, key));
    }

    /// Copies the values of a head, with zeros behind the keys.
    fn take_values(&self, kb: &mut KernelBuilder, (from, base): (&Operand, Reg)) {
        let (product, p) = (&self.values, &self.p.sizes);
        let vector = product.vector();
        let (zero, features, keys) = (kb.index(0), kb.dim(&p.e), kb.dim(&p.sk));
        let (stride, len) = (kb.dim(&from.strides[3]), kb.dim(&product.row_len));
        kb.for_(zero, features, 1, Unroll::No, |kb, j| {
            let (row, out) = (kb.mul(j, stride), kb.mul(j, len));
            let row = kb.add(base, row);
            kb.for_(zero, len, vector, Unroll::No, |kb, key| {
                let left = kb.sub(keys, key);
                let count = (!p.sk.modulo(&vector.into()).is(0)).then(|| tile::active(kb, left, vector));
                let place = from.row(kb, key);
                let at = kb.add(row, place);
                let x = kb.load_part(from.buf, at, vector as u16, count);
                let mut x = product.left.encode(kb, x);
                if let Some(count) = count {
                    let none = kb.num(kb.ty(x), 0.0);
                    x = tile::keep_lanes(kb, x, count, none);
                }
                let to = kb.add(out, key);
                kb.store(product.rows, to, x);
            });
            product.start_row(kb, j);
        });
    }

    fn unit(&mut self, kb: &mut KernelBuilder, q: &Operand, u: &Unit, epilogue: &mut Epilogue<'_>) {
        let (sizes, shape) = (&self.p.sizes, self.s.tile);
        let (zero, width, keys) = (kb.index(0), kb.index(shape.width()), kb.dim(&sizes.sk));
        let panels = tile::ceil_div(kb, u.rows, shape.width());
        let one = Dim::from(1);
        kb.for_(zero, panels, 1, Unroll::No, |kb, panel| {
            let query = kb.mul(panel, width);
            let first = kb.add(u.row, query);
            // The queries of a panel are neighbours.
            let place = q.at(kb, &[u.b, u.h, first, zero]);
            let base = kb.sub(place, first);
            let queries = Source { buf: q.buf, base, k_stride: &q.strides[3], n_stride: &one };
            // One panel at a time, in the place of the first.
            self.logits.pack_panel(kb, (&queries, &sizes.sq), first, (zero, zero));
            self.logits.multiply(kb, keys, (zero, zero), (width, zero));
            let columns = Queries::new(kb, (sizes, shape), u, query);
            if let Some(mask) = &mut self.mask {
                mask.take(kb, (sizes, shape), &columns, (zero, keys));
            }
            let factors = self.weights(kb, &columns);
            self.values.start_columns(kb, zero, zero);
            let features = kb.dim(&sizes.e);
            self.values.multiply(kb, features, (zero, zero), (width, zero));
            self.results(kb, &columns, &factors, epilogue);
        });
    }

    /// What stands in place of a sum.
    fn bits(&self, kb: &mut KernelBuilder, at: Reg) -> Reg {
        let bits = kb.load(self.logits.sums, at, self.s.tile.lanes);
        kb.push(Inst::Bitcast(DType::F32, bits))
    }

    /// Turns the sums of the logits into codes of weights, and gives what those of each query, or its results, are multiplied by.
    fn weights(&mut self, kb: &mut KernelBuilder, q: &Queries<'_>) -> Vec<Reg> {
        let (op, shape) = (self.p.op, self.s.tile);
        let (zero, keys, width) = (kb.index(0), kb.dim(&self.p.sizes.sk), kb.index(shape.width()));
        let each = |kb: &mut KernelBuilder, body: &mut dyn FnMut(&mut KernelBuilder, (Reg, usize), Reg)| {
            kb.for_(zero, keys, 1, Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, key| {
                let row = kb.mul(key, width);
                tile::row_places(kb, shape, row).into_iter().enumerate().for_each(|(v, at)| body(kb, (key, v), at));
            });
        };
        let (sums, mut mask) = (self.logits.sums, self.mask.as_mut());
        each(kb, &mut |kb, (key, v), at| {
            let sum = kb.load(sums, at, shape.lanes);
            let mut x = logit_of(kb, op, sum);
            if let Some(mask) = &mut mask {
                let y = mask.vector(kb, shape, q, (zero, key), v);
                x = kb.add(x, y);
            }
            let bits = kb.push(Inst::Bitcast(DType::I32, x));
            kb.store(sums, at, bits);
        });
        let tops = fold(kb, shape, (zero, keys, f64::NEG_INFINITY), &mut |kb, _, at| self.bits(kb, at), &larger);
        let shifts: Vec<Reg> = tops.iter().map(|top| shift(kb, *top)).collect();
        each(kb, &mut |kb, (_, v), at| {
            let x = self.bits(kb, at);
            let x = kb.sub(x, shifts[v]);
            let x = softmax_exp(kb, x);
            let bits = kb.push(Inst::Bitcast(DType::I32, x));
            kb.store(sums, at, bits);
        });
        // Of the weights, or of their codes.
        let mut weight = |kb: &mut KernelBuilder, _: (Reg, usize), at: Reg| {
            let x = self.bits(kb, at);
            if op.relative { relative_code(kb, op, x) } else { x }
        };
        let totals = fold(kb, shape, (zero, keys, 0.0), &mut weight, &|kb, a, b| kb.add(a, b));
        let factors: Vec<Reg> = tops
            .into_iter()
            .zip(totals)
            .map(|(top, mut total)| {
                if !op.relative {
                    let scale = kb.num(kb.ty(total), op.weights.scale.0);
                    total = kb.mul(total, scale);
                }
                inverse(kb, op.clear, top, total)
            })
            .collect();
        self.code_weights(kb, &factors);
        factors
    }

    /// Interleaves the codes of the weights by groups of keys, with zeros behind them.
    fn code_weights(&self, kb: &mut KernelBuilder, factors: &[Reg]) {
        let (product, shape) = (&self.values, self.s.tile);
        let len = self.s.group.size();
        let (zero, keys, width) = (kb.index(0), kb.dim(&self.p.sizes.sk), kb.index(shape.width()));
        let coding = weight_coding(self.p.op);
        let real = |kb: &mut KernelBuilder, v: usize, key: Reg| {
            let row = kb.mul(key, width);
            let column = kb.index(v as i64 * i64::from(shape.lanes));
            let at = kb.add(row, column);
            let x = self.bits(kb, at);
            coded_weight(kb, self.p.op, x, factors[v])
        };
        let code = |kb: &mut KernelBuilder, v: usize, key: Reg| {
            let x = real(kb, v, key);
            let x = coding.one(kb, x);
            product.right.encode(kb, x)
        };
        // Of four keys whose codes are bytes.
        let pack = |kb: &mut KernelBuilder, v: usize, key: Reg| {
            let x = [0, 1, 2, 3].map(|i| {
                let i = kb.index(i);
                let key = kb.add(key, i);
                real(kb, v, key)
            });
            let x = coding.pack(kb, x);
            let x = kb.push(Inst::Shuffle(x, x, bytes::in_turn(shape.lanes)));
            product.right.encode(kb, x)
        };
        let group = |kb: &mut KernelBuilder, key: Reg, broken: bool| {
            let row = kb.mul(key, width);
            for v in 0..usize::from(shape.vectors) {
                let place = kb.index(v as i64 * i64::from(shape.lanes) * len);
                let to = kb.add(row, place);
                if !broken && self.s.group == Group::Bytes {
                    let codes = pack(kb, v, key);
                    kb.store(product.panels, to, codes);
                    continue;
                }
                let codes: Vec<Reg> = (0..len)
                    .map(|i| {
                        let i = kb.index(i);
                        let key = kb.add(key, i);
                        if !broken {
                            return code(kb, v, key);
                        }
                        let none = kb.num(Ty::vector(kb.buf_dtype(product.panels), shape.lanes), 0.0);
                        let (x, exists) = (kb.var(none), kb.bin(BinOp::Lt, key, keys));
                        kb.if_(
                            exists,
                            |kb| {
                                let y = code(kb, v, key);
                                kb.set(x, y);
                            },
                            |_| {},
                        );
                        kb.get(x)
                    })
                    .collect();
                let codes = in_turn(kb, codes);
                kb.store(product.panels, to, codes);
            }
        };
        let whole = tile::whole_turns(kb, (zero, keys), len);
        kb.for_(zero, whole, len, Unroll::No, |kb, key| group(kb, key, false));
        if !self.p.sizes.sk.modulo(&len.into()).is(0) {
            kb.for_(whole, keys, len, Unroll::No, |kb, key| group(kb, key, true));
        }
    }

    fn results(&self, kb: &mut KernelBuilder, q: &Queries<'_>, factors: &[Reg], epilogue: &mut Epilogue<'_>) {
        let (sizes, shape) = (&self.p.sizes, self.s.tile);
        let (zero, features, width) = (kb.index(0), kb.dim(&sizes.e), kb.index(shape.width()));
        let tokens: Vec<Reg> = (0..shape.vectors.into()).map(|v| q.token(kb, shape, v)).collect();
        kb.for_(zero, features, 1, Unroll::Interleave(tile::SIDE_BY_SIDE), |kb, j| {
            let row = kb.mul(j, width);
            for (v, at) in tile::row_places(kb, shape, row).into_iter().enumerate() {
                let mut x = kb.load(self.values.sums, at, shape.lanes);
                if self.p.op.relative {
                    x = kb.cast(DType::F32, x);
                    x = kb.mul(x, factors[v]);
                }
                epilogue(kb, &[q.u.b, q.u.h, j], tokens[v], x, q.counts[v]);
            }
        });
    }
}
