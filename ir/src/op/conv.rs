//! `conv`: grouped, strided, dilated convolution (cross-correlation).

use super::{OpSpec, TypeError, rules, window_extent};
use crate::interp::{EvalCx, EvalError, Tensor};
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
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
