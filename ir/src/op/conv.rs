//! `conv`: grouped, strided, dilated convolution (cross-correlation).

use super::rules::extent_of;
use super::{OpSpec, TypeError, rules, window_extent};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

tensor_op! {
    /// Operands `x[N, C, spatial..]` and `w[M, C/groups, kernel..]` of one float dtype; result `[N, M, spatial'..]`, zero padding.
    /// A bias is a `map` behind it.
    Conv = "conv" {
        /// Step between windows.
        strides: Vec<i64>,
        /// Step inside a window.
        dilations: Vec<i64>,
        /// Padding before.
        lo: Vec<i64>,
        /// Padding after.
        hi: Vec<i64>,
        /// Number of groups.
        groups: usize,
    }
}

impl OpSpec for Conv {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (x, w) = (operands[0], operands[1]);
        let bad = |what: &str| TypeError::dims(Self::MNEMONIC, format!("{what}: {x} by {w} in {} groups", self.groups));
        let n = self.strides.len();
        if x.rank() != n + 2 || w.rank() != n + 2 || [&self.dilations, &self.lo, &self.hi].iter().any(|v| v.len() != n) {
            return Err(TypeError::rank(Self::MNEMONIC, format!("has {n} spatial axes for {x} and {w}")));
        }
        if x.dtype != w.dtype || x.dtype == crate::DType::Bool {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot convolve {x} with {w}")));
        }
        let g = Dim::from(self.groups);
        if self.groups == 0 || &w.dims[1] * &g != x.dims[1] || !w.dims[0].modulo(&g).is(0) {
            return Err(bad("has channels that do not fit"));
        }
        let mut dims = vec![x.dims[0].clone(), w.dims[0].clone()];
        for i in 0..n {
            let k = w.dims[2 + i].as_const().ok_or_else(|| bad("needs a constant kernel extent"))?;
            if self.strides[i] <= 0 || self.dilations[i] <= 0 || self.lo[i] < 0 || self.hi[i] < 0 {
                return Err(bad("needs positive steps and no negative padding"));
            }
            let d = window_extent(&x.dims[2 + i], self.lo[i], self.hi[i], k, self.strides[i], self.dilations[i]);
            if d.as_const().is_some_and(|d| d < 0) {
                return Err(bad("has a kernel larger than its padded input"));
            }
            dims.push(d);
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (x, w, n) = (operands[0], operands[1], self.strides.len());
        let mut dims = vec![x.dims[0], w.dims[0]];
        for i in 0..n {
            dims.push(extent_of(
                x.dims[2 + i],
                self.lo[i],
                self.hi[i],
                w.dims[2 + i] as i64,
                self.strides[i],
                self.dilations[i],
            )?);
        }
        let (sx, sw) = (strides(&x.dims), strides(&w.dims));
        let per_group = w.dims[0] / self.groups;
        let (fx, fw) = (x.to_f64(), w.to_f64());
        let mut values = Vec::new();
        for_each_index(&dims, |idx| {
            let group = idx[1] / per_group.max(1);
            let mut sum = 0.0;
            for_each_index(&w.dims[1..], |k| {
                let mut at = idx[0] * sx[0] + (group * w.dims[1] + k[0]) * sx[1];
                for i in 0..n {
                    let p = idx[2 + i] as i64 * self.strides[i] - self.lo[i] + k[1 + i] as i64 * self.dilations[i];
                    match usize::try_from(p) {
                        Ok(p) if p < x.dims[2 + i] => at += p * sx[2 + i],
                        _ => return Ok(()),
                    }
                }
                sum += fx[at] * fw[idx[1] * sw[0] + flat(k, &sw[1..])];
                Ok(())
            })?;
            values.push(sum);
            Ok(())
        })?;
        if !x.dtype.is_float() {
            // Sums of integer products below 2^53 are exact in f64; importers widen narrow types first.
            let mut out = Tensor::zeros(x.dtype, &dims)?;
            for (i, v) in values.into_iter().enumerate() {
                out.set(i, crate::scalar::Literal::from_i64(x.dtype, v as i64));
            }
            return Ok(vec![out]);
        }
        Ok(vec![Tensor::from_f64(x.dtype, &dims, &values)?])
    }
}
