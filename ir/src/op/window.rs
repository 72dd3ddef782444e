//! `window`: fold a sliding window (pooling).

use super::rules::extent_of;
use super::{OpSpec, TypeError, reduce::ReduceKind, rules, window_extent};
use crate::interp::scalar::{bin, cast, fold_op, identity};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Folds a sliding window over the last `kernel.len()` axes. Padding takes no part (as if it held the identity of the fold).
    Window = "window" {
        /// The folding operation.
        kind: ReduceKind,
        /// Window extents.
        kernel: Vec<i64>,
        /// Step between windows.
        strides: Vec<i64>,
        /// Step inside a window.
        dilations: Vec<i64>,
        /// Padding before.
        lo: Vec<i64>,
        /// Padding after.
        hi: Vec<i64>,
    }
}

impl OpSpec for Window {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let (t, n) = (operands[0], self.kernel.len());
        if n == 0 || n > t.rank() || [&self.strides, &self.dilations, &self.lo, &self.hi].iter().any(|v| v.len() != n) {
            return Err(TypeError::rank(Self::MNEMONIC, format!("has {n} window axes for {t}")));
        }
        if self.kernel.iter().chain(&self.strides).chain(&self.dilations).any(|v| *v <= 0)
            || self.lo.iter().chain(&self.hi).any(|v| *v < 0)
        {
            return Err(TypeError::dims(Self::MNEMONIC, "needs positive extents and steps, and no negative padding"));
        }
        let mut dims = t.dims.clone();
        let lead = t.rank() - n;
        for i in 0..n {
            dims[lead + i] =
                window_extent(&dims[lead + i], self.lo[i], self.hi[i], self.kernel[i], self.strides[i], self.dilations[i]);
            if dims[lead + i].as_const().is_some_and(|d| d < 0) {
                return Err(TypeError::dims(Self::MNEMONIC, format!("has a window larger than axis {} of {t}", lead + i)));
            }
        }
        Ok(vec![TensorType::new(t.dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (t, n) = (operands[0], self.kernel.len());
        let lead = t.dims.len() - n;
        let s = strides(&t.dims);
        let mut dims = t.dims.clone();
        for i in 0..n {
            dims[lead + i] =
                extent_of(t.dims[lead + i], self.lo[i], self.hi[i], self.kernel[i], self.strides[i], self.dilations[i])?;
        }
        let wide = if t.dtype.is_float() { DType::F64 } else { t.dtype };
        let kernel: Vec<usize> = self.kernel.iter().map(|k| *k as usize).collect();
        let mut out = Tensor::zeros(t.dtype, &dims)?;
        let mut to = 0;
        for_each_index(&dims, |idx| {
            let mut acc = identity(self.kind, wide);
            for_each_index(&kernel, |k| {
                let mut at = flat(&idx[..lead], &s[..lead]);
                for i in 0..n {
                    let x = idx[lead + i] as i64 * self.strides[i] - self.lo[i] + k[i] as i64 * self.dilations[i];
                    match usize::try_from(x) {
                        Ok(x) if x < t.dims[lead + i] => at += x * s[lead + i],
                        _ => return Ok(()),
                    }
                }
                acc = bin(fold_op(self.kind), acc, cast(wide, t.get(at)))?;
                Ok(())
            })?;
            out.set(to, cast(t.dtype, acc));
            to += 1;
            Ok(())
        })?;
        Ok(vec![out])
    }
}
