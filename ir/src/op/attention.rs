//! `attention`: scaled dot-product attention with grouped heads, masks, causality and soft-capping.

use super::{OpSpec, Real, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Body, Literal, Ref, UnOp};
use crate::tensor::ConstPool;
use crate::tensor::{Builder, Value};
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// Operands `q[B, H, Sq, D]`, `k[B, G, Sk, D]`, `v[B, G, Sk, E]`, optionally `mask` that broadcasts to `[B, H, Sq, Sk]`
    /// (a float, of the operands' type or `f32`, is added to the logits; `bool` keeps where true). Head `h` reads key head `h / (H/G)`. Result `[B, H, Sq, E]`:
    ///
    /// `softmax(cap(scale * q k^T) + mask) v`, with `cap(x) = softcap * tanh(x / softcap)` if `softcap` is not 0, and, if `causal` is
    /// given, only keys `j <= i + causal` visible to query `i`. A row that sees no key gives NaN, as the softmax of a row of `-inf`
    /// does, or zeros with `clear`.
    Attention = "attention" {
        /// Factor of the logits.
        scale: Real,
        /// Offset of the causal diagonal: `Sk - Sq` aligns the last query with the last key.
        causal: Option<Dim>,
        /// Soft cap of the logits; 0 for none.
        softcap: Real,
        /// A row that sees no key gives zeros.
        clear: bool,
    }
}

impl OpSpec for Attention {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let q = operands.first().map_or(DType::F32, |t| t.dtype);
        let dims = infer_dims(Self::MNEMONIC, operands, q)?;
        rules::float(Self::MNEMONIC, operands[0])?;
        if operands[1..3].iter().any(|t| t.dtype != q) {
            return Err(do_not_fit(Self::MNEMONIC, operands));
        }
        Ok(vec![TensorType::new(q, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (q, k, v) = (operands[0], operands[1], operands[2]);
        let [b, h, sq, d] = [q.dims[0], q.dims[1], q.dims[2], q.dims[3]];
        let [g, sk, e] = [k.dims[1], k.dims[2], v.dims[3]];
        let (x, y, z) = (q.to_f64(), k.to_f64(), v.to_f64());
        let mut out = vec![0.0; b * h * sq * e];
        let rows = Rows { dims: [b, h, sq, sk], mask: operands.get(3).copied(), causal: self.causal.as_ref(), clear: self.clear };
        let key_head = |hi: usize| hi / (h / g.max(1)).max(1);
        let logit = |[bi, hi, i, j]: [usize; 4]| {
            let (row, key) = (((bi * h + hi) * sq + i) * d, ((bi * g + key_head(hi)) * sk + j) * d);
            let s: f64 = (0..d).map(|c| x[row + c] * y[key + c]).sum::<f64>() * self.scale.0;
            if self.softcap.0 == 0.0 { s } else { self.softcap.0 * (s / self.softcap.0).tanh() }
        };
        rows.eval(cx, &logit, &mut |[bi, hi, i], weights| {
            let to = ((bi * h + hi) * sq + i) * e;
            for (j, weight) in weights.iter().enumerate().filter(|w| *w.1 != 0.0) {
                for c in 0..e {
                    out[to + c] += weight * z[((bi * g + key_head(hi)) * sk + j) * e + c];
                }
            }
        })?;
        Ok(vec![Tensor::from_f64(q.dtype, &[b, h, sq, e], &out)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x).map(|v| vec![v]))
    }
}

impl Attention {
    /// Two contractions around a softmax.
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let dtype = b.ty(x[0]).dtype;
        let (k, v) = (for_heads_of(b, x[0], x[1])?, for_heads_of(b, x[0], x[2])?);
        let logits = b.add(with_keys(dtype), &[x[0], k])?;
        let mut f = Body::builder(1);
        let scale = f.num(dtype, self.scale.0);
        let mut s = f.bin(BinOp::Mul, Ref::Arg(0), scale);
        if self.softcap.0 != 0.0 {
            let cap = f.num(dtype, self.softcap.0);
            let t = f.bin(BinOp::Div, s, cap);
            let t = f.un(UnOp::Tanh, t);
            s = f.bin(BinOp::Mul, t, cap);
        }
        let logits = b.add(super::Map { body: f.finish(s) }, &[logits])?;
        let weights = weigh(b, logits, x.get(3).copied(), self.causal.as_ref(), self.clear)?;
        b.add(with_values(dtype), &[weights, v])
    }
}

/// The dims of the result of an attention, whose operands' types but for those of queries, keys and values are checked. A mask may have the given type.
pub(super) fn infer_dims(op: &'static str, operands: &[&TensorType], mask: DType) -> Result<Vec<Dim>, TypeError> {
    rules::arity(op, operands, 3..=4)?;
    let (q, k, v) = (operands[0], operands[1], operands[2]);
    let ranks_fit = [q, k, v].iter().all(|t| t.rank() == 4);
    let heads_fit = || q.dims[1] == k.dims[1] || q.dims[1].modulo(&k.dims[1]).is(0);
    if !ranks_fit || k.dims[..3] != v.dims[..3] || q.dims[0] != k.dims[0] || q.dims[3] != k.dims[3] || !heads_fit() {
        return Err(do_not_fit(op, operands));
    }
    let logits = vec![q.dims[0].clone(), q.dims[1].clone(), q.dims[2].clone(), k.dims[2].clone()];
    if let Some(m) = operands.get(3)
        && (![DType::Bool, DType::F32, mask].contains(&m.dtype) || broadcast_dims(&m.dims, &logits).as_ref() != Some(&logits))
    {
        return Err(TypeError::broadcast(op, TensorType::new(mask, logits), m));
    }
    let mut dims = q.dims.clone();
    dims[3] = v.dims[3].clone();
    Ok(dims)
}

/// That queries, keys and values do not fit.
pub(super) fn do_not_fit(op: &'static str, operands: &[&TensorType]) -> TypeError {
    let [q, k, v] = [0, 1, 2].map(|i| operands[i]);
    TypeError::dims(op, format!("has operands that do not fit: q {q}, k {k}, v {v}"))
}

/// The rows of an attention.
pub(super) struct Rows<'a> {
    /// `[B, H, Sq, Sk]`.
    pub(super) dims: [usize; 4],
    pub(super) mask: Option<&'a Tensor>,
    pub(super) causal: Option<&'a Dim>,
    pub(super) clear: bool,
}

impl Rows<'_> {
    /// Gives the softmax of each row of logits, after mask and causality, to `take`; none for a row that is cleared.
    pub(super) fn eval(
        &self,
        cx: &EvalCx<'_>,
        logit: &dyn Fn([usize; 4]) -> f64,
        take: &mut dyn FnMut([usize; 3], &[f64]),
    ) -> Result<(), EvalError> {
        let [b, h, sq, sk] = self.dims;
        let causal = self.causal.map(|c| c.eval(cx.symbols)).transpose()?;
        let mask = self.mask.map(|m| (m, broadcast_strides(&m.dims, 4)));
        for_each_index(&[b, h, sq], |idx| {
            let [bi, hi, i] = [idx[0], idx[1], idx[2]];
            let mut logits = vec![f64::NEG_INFINITY; sk];
            for (j, l) in logits.iter_mut().enumerate() {
                let mut s = logit([bi, hi, i, j]);
                let mut visible = causal.is_none_or(|c| j as i64 <= i as i64 + c);
                if let Some((m, st)) = &mask {
                    let at = flat(&[bi, hi, i, j], st);
                    if m.dtype == DType::Bool {
                        visible &= m.get(at).bits != 0;
                    } else {
                        s += m.get_f64(at);
                    }
                }
                if visible {
                    *l = s;
                }
            }
            let max = logits.iter().fold(f64::NEG_INFINITY, |m, l| if m.is_nan() || l.is_nan() { f64::NAN } else { m.max(*l) });
            if max == f64::NEG_INFINITY && self.clear {
                return Ok(());
            }
            let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
            let weights: Vec<f64> = logits.iter().map(|l| (l - max).exp() / sum).collect();
            take([bi, hi, i], &weights);
            Ok(())
        })
    }
}

/// Keys or values, once for each head of the queries.
pub(super) fn for_heads_of(b: &mut Builder<'_>, q: Value, x: Value) -> Result<Value, TypeError> {
    let (heads, d) = (b.ty(q).dims[1].clone(), b.ty(x).dims.clone());
    if d[1] == heads {
        return Ok(x);
    }
    let times = heads.floor_div(&d[1]);
    let x = b.reshape(x, vec![d[0].clone(), d[1].clone(), 1.into(), d[2].clone(), d[3].clone()])?;
    let x = b.broadcast(x, vec![d[0].clone(), d[1].clone(), times, d[2].clone(), d[3].clone()])?;
    b.reshape(x, vec![d[0].clone(), heads, d[2].clone(), d[3].clone()])
}

/// The product of queries and keys.
pub(super) fn with_keys(out_dtype: DType) -> super::Contract {
    super::Contract { lhs: vec![0, 1, 2, 4], rhs: vec![0, 1, 3, 4], out: vec![0, 1, 2, 3], out_dtype }
}

/// The product of weights and values.
pub(super) fn with_values(out_dtype: DType) -> super::Contract {
    super::Contract { lhs: vec![0, 1, 2, 3], rhs: vec![0, 1, 3, 4], out: vec![0, 1, 2, 4], out_dtype }
}

/// The softmax of logits `[B, H, Sq, Sk]` after mask and causality.
pub(super) fn weigh(
    b: &mut Builder<'_>,
    mut logits: Value,
    mask: Option<Value>,
    causal: Option<&Dim>,
    clear: bool,
) -> Result<Value, TypeError> {
    let dtype = b.ty(logits).dtype;
    let hide = |b: &mut Builder<'_>, keep: Value, logits: Value| {
        let off = b.scalar(Literal::from_f64(dtype, f64::NEG_INFINITY))?;
        b.select(keep, logits, off)
    };
    if let Some(m) = mask {
        logits = if b.ty(m).dtype == DType::Bool {
            hide(b, m, logits)?
        } else {
            let m = b.cast(dtype, m)?;
            b.bin(BinOp::Add, logits, m)?
        };
    }
    if let Some(offset) = causal {
        let (sq, sk) = (b.ty(logits).dims[2].clone(), b.ty(logits).dims[3].clone());
        let i = b.add(super::Iota { dims: vec![sq, 1.into()], axis: 0 }, &[])?;
        let j = b.add(super::Iota { dims: vec![sk], axis: 0 }, &[])?;
        let mut f = Body::builder(2);
        let offset = f.push(crate::scalar::Inst::Dim(offset.clone()));
        let last = f.bin(BinOp::Add, Ref::Arg(0), offset);
        let keep = f.bin(BinOp::Le, Ref::Arg(1), last);
        let keep = b.add(super::Map { body: f.finish(keep) }, &[i, j])?;
        logits = hide(b, keep, logits)?;
    }
    let softmax = super::Softmax { axis: 3, log: false };
    if clear {
        let max = b.add(super::Reduce { kind: super::ReduceKind::Max, axes: vec![3], keep: true }, &[logits])?;
        let low = b.scalar(Literal::from_f64(dtype, f64::NEG_INFINITY))?;
        let hidden = b.bin(BinOp::Eq, max, low)?;
        let zero = b.scalar(Literal::from_f64(dtype, 0.0))?;
        let safe = b.select(hidden, zero, logits)?;
        let weights = b.add(softmax, &[safe])?;
        b.select(hidden, zero, weights)
    } else {
        b.add(softmax, &[logits])
    }
}
