//! `int_attention`: attention whose operands and weights are 8-bit codes, with sums in 32-bit integers.

use super::attention::{Rows, do_not_fit, for_heads_of, infer_dims, weigh, with_keys, with_values};
use super::{Attr, OpSpec, Quantize, Real, Reduce, ReduceKind, TypeError};
use crate::interp::scalar::bin;
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::scalar::{BinOp, Body, Literal, Ref};
use crate::tensor::ConstPool;
use crate::tensor::{Builder, Value};
use crate::text::{Cursor, ParseError};
use crate::types::{DType, Dim, TensorType};

/// How reals become codes: `saturate(round_half_even(x / scale) + zero)`, all in `f32`. Printed as `u8(scale, zero)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code {
    /// Element type of the codes: `u8` or `i8`.
    pub to: DType,
    /// Distance of neighbouring codes; an `f32`.
    pub scale: Real,
    /// The code of 0.
    pub zero: i64,
}

impl Attr for Code {
    fn print(&self, out: &mut String) {
        self.to.print(out);
        out.push('(');
        self.scale.print(out);
        out.push_str(", ");
        self.zero.print(out);
        out.push(')');
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        let to = DType::parse(p)?;
        p.expect("(")?;
        let scale = Real::parse(p)?;
        p.expect(",")?;
        let zero = i64::parse(p)?;
        p.expect(")")?;
        Ok(Self { to, scale, zero })
    }
}

impl Code {
    fn is_valid(&self) -> bool {
        is_byte(self.to) && self.scale.0 > 0.0 && self.scale.0.is_finite() && in_range(self.to, self.zero)
    }

    /// The code of a real, and what it stands for.
    fn round(&self, x: f32) -> Result<(i64, f32), EvalError> {
        let f32 = Literal::f32;
        let scale = f32(self.scale.0 as f32);
        let q = bin(BinOp::Div, f32(x), scale)?.to_f64().round_ties_even();
        let code = Literal::from_f64(self.to, q + self.zero as f64).to_i64();
        Ok((code, bin(BinOp::Mul, f32((code - self.zero) as f32), scale)?.to_f64() as f32))
    }
}

fn is_byte(d: DType) -> bool {
    matches!(d, DType::U8 | DType::I8)
}

fn in_range(d: DType, zero: i64) -> bool {
    if d == DType::U8 { u8::try_from(zero).is_ok() } else { i8::try_from(zero).is_ok() }
}

tensor_op! {
    /// Operands of codes `q[B, H, Sq, D]`, `k[B, G, Sk, D]`, `v[B, G, Sk, E]`, each `u8` or `i8`, optionally `mask` as that of `attention`, of any type of
    /// floats. With `x' = x - zero` for each operand and `w' = w - weights.zero`, the result `i32[B, H, Sq, E]` is `w' v'`, where the weights `w` are the
    /// codes of `softmax(scale * l + mask)` and `l` is `unit * q' k'^T`, rounded to the codes of the logits where these have any. Sums are exact and wrap
    /// as 32-bit integers; all else is `f32`.
    ///
    /// It is how static quantisation treats both products of an attention (Jacob et al. 2018, section 2.3). A row that sees no key has weights of NaN, whose
    /// code is 0, or weights of zero with `clear`.
    ///
    /// With `relative` the weights of a row are coded relative to the largest one, so that rows of many equal weights keep them, and the zero point is 0. The
    /// result is then `f32`: `w' v'` by the sum of the row's `w'`; of a row that sees no key NaN, or zeros with `clear`.
    IntAttention = "int_attention" {
        /// Zero points of queries, keys and values.
        zeros: Vec<i64>,
        /// What 1 in the sums of queries and keys stands for: the product of their scales, an `f32`.
        unit: Real,
        /// Codes of the sums of queries and keys; `none` leaves them as they are.
        logits: Option<Code>,
        /// Factor of the logits, an `f32`.
        scale: Real,
        /// Offset of the causal diagonal, as for `attention`.
        causal: Option<Dim>,
        /// A row that sees no key has weights of zero.
        clear: bool,
        /// Codes of the weights.
        weights: Code,
        /// The codes stand for weights by the largest of their row.
        relative: bool,
    }
}

impl OpSpec for IntAttention {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let mask = operands.get(3).map(|m| m.dtype).filter(|d| d.is_float());
        let dims = infer_dims(Self::MNEMONIC, operands, mask.unwrap_or(DType::F32))?;
        let fits = |(t, zero): (&&TensorType, &i64)| is_byte(t.dtype) && in_range(t.dtype, *zero);
        if self.zeros.len() != 3 || !operands.iter().zip(&self.zeros).all(fits) {
            return Err(do_not_fit(Self::MNEMONIC, operands));
        }
        if !self.weights.is_valid() || !self.logits.as_ref().is_none_or(Code::is_valid) {
            return Err(TypeError::dims(Self::MNEMONIC, "has codes without a positive scale or with a zero point out of range"));
        }
        if self.relative && self.weights.zero != 0 {
            return Err(TypeError::dims(Self::MNEMONIC, "has relative weights with a zero point"));
        }
        Ok(vec![TensorType::new(if self.relative { DType::F32 } else { DType::I32 }, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (q, k, v) = (operands[0], operands[1], operands[2]);
        let [b, h, sq, d] = [q.dims[0], q.dims[1], q.dims[2], q.dims[3]];
        let [g, sk, e] = [k.dims[1], k.dims[2], v.dims[3]];
        let [x, y, z] = [0, 1, 2].map(|i| {
            let t = operands[i];
            (0..t.count()).map(|at| t.get_i64(at) - self.zeros[i]).collect::<Vec<_>>()
        });
        let key_head = |hi: usize| hi / (h / g.max(1)).max(1);
        let (unit, scale) = (self.unit.0 as f32, self.scale.0 as f32);
        let logit = |[bi, hi, i, j]: [usize; 4]| {
            let (row, key) = (((bi * h + hi) * sq + i) * d, ((bi * g + key_head(hi)) * sk + j) * d);
            let sum: i64 = (0..d).map(|c| x[row + c] * y[key + c]).sum();
            let real = sum as i32 as f32 * unit;
            let real = self.logits.as_ref().map_or(real, |code| code.round(real).map_or(f32::NAN, |r| r.1));
            f64::from(real * scale)
        };
        let rows = Rows { dims: [b, h, sq, sk], mask: operands.get(3).copied(), causal: self.causal.as_ref(), clear: self.clear };
        // The weights of rows that are cleared are codes of zero, too.
        let mut sums = vec![0i64; b * h * sq * e];
        // Of the codes of each row.
        let mut totals = vec![0i64; b * h * sq];
        rows.eval(cx, &logit, &mut |[bi, hi, i], weights| {
            let row = (bi * h + hi) * sq + i;
            let largest = if self.relative { weights.iter().copied().fold(0.0, f64::max) } else { 1.0 };
            for (j, weight) in weights.iter().enumerate() {
                let code = self.weights.round((*weight / largest) as f32).map_or(0, |w| w.0) - self.weights.zero;
                totals[row] += code;
                for c in 0..e {
                    sums[row * e + c] += code * z[((bi * g + key_head(hi)) * sk + j) * e + c];
                }
            }
        })?;
        let mut out = Tensor::zeros(if self.relative { DType::F32 } else { DType::I32 }, &[b, h, sq, e])?;
        for (i, s) in sums.into_iter().enumerate() {
            let value = match totals[i / e] {
                _ if !self.relative => Literal::from_i64(DType::I32, i64::from(s as i32)),
                0 if self.clear => Literal::f32(0.0),
                total => Literal::f32((f64::from(s as i32) / total as f64) as f32),
            };
            out.set(i, value);
        }
        Ok(vec![out])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x).map(|v| vec![v]))
    }
}

impl IntAttention {
    /// Two contractions of integers around a softmax.
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let [q, k, v] = [0, 1, 2].map(|i| centred(b, x[i], self.zeros[i]));
        let (q, k, v) = (q?, k?, v?);
        let (k, v) = (for_heads_of(b, q, k)?, for_heads_of(b, q, v)?);
        let sums = b.add(with_keys(DType::I32), &[q, k])?;
        let real = b.cast(DType::F32, sums)?;
        let mut logits = times(b, real, self.unit.0)?;
        if let Some(code) = &self.logits {
            let codes = coded(b, logits, code)?;
            let codes = centred(b, codes, code.zero)?;
            let real = b.cast(DType::F32, codes)?;
            logits = times(b, real, code.scale.0)?;
        }
        let logits = times(b, logits, self.scale.0)?;
        let mut weights = weigh(b, logits, x.get(3).copied(), self.causal.as_ref(), self.clear)?;
        let over_keys = |kind| Reduce { kind, axes: vec![3], keep: true };
        if self.relative {
            let largest = b.add(over_keys(ReduceKind::Max), &[weights])?;
            weights = b.bin(BinOp::Div, weights, largest)?;
        }
        let codes = coded(b, weights, &self.weights)?;
        let weights = centred(b, codes, self.weights.zero)?;
        let sums = b.add(with_values(DType::I32), &[weights, v])?;
        if !self.relative {
            return Ok(sums);
        }
        let total = b.add(over_keys(ReduceKind::Sum), &[weights])?;
        let [sums, total] = [b.cast(DType::F32, sums)?, b.cast(DType::F32, total)?];
        let mut f = Body::builder(2);
        let quotient = f.bin(BinOp::Div, Ref::Arg(0), Ref::Arg(1));
        let zero = f.num(DType::F32, 0.0);
        let hidden = f.bin(BinOp::Eq, Ref::Arg(1), zero);
        let y = if self.clear { f.select(hidden, zero, quotient) } else { quotient };
        b.add(super::Map { body: f.finish(y) }, &[sums, total])
    }
}

/// `x - zero` in 32-bit integers.
fn centred(b: &mut Builder<'_>, x: Value, zero: i64) -> Result<Value, TypeError> {
    let mut f = Body::builder(1);
    let wide = f.cast(DType::I32, Ref::Arg(0));
    let zero = f.push(crate::scalar::Inst::Const(Literal::from_i64(DType::I32, zero)));
    let y = f.bin(BinOp::Sub, wide, zero);
    b.add(super::Map { body: f.finish(y) }, &[x])
}

fn times(b: &mut Builder<'_>, x: Value, factor: f64) -> Result<Value, TypeError> {
    let factor = b.scalar(Literal::from_f64(DType::F32, factor))?;
    b.bin(BinOp::Mul, x, factor)
}

/// The codes of reals.
fn coded(b: &mut Builder<'_>, x: Value, code: &Code) -> Result<Value, TypeError> {
    let scale = b.scalar(Literal::from_f64(DType::F32, code.scale.0))?;
    let zero = b.scalar(Literal::from_i64(code.to, code.zero))?;
    let quantised = Quantize { to: code.to }.decompose(b, &[x, scale, zero]);
    let codes = quantised.unwrap_or_else(|| Ok(Vec::new()))?;
    codes.first().copied().ok_or_else(|| TypeError::dims(IntAttention::MNEMONIC, "has codes that cannot be taken apart"))
}
