//! `rms_norm`: divide the trailing axes by their root mean square.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Operands `x`, optionally `scale` (broadcasts to the normalised dims): `x / sqrt(mean(x^2) + epsilon) * scale` over axes
    /// `axis..` (Zhang and Sennrich 2019). Statistics are at least f32.
    RmsNorm = "rms_norm" {
        /// First normalised axis.
        axis: usize,
        /// Added to the mean square.
        epsilon: Real,
    }
}

impl OpSpec for RmsNorm {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=2)?;
        rules::norm_operands(Self::MNEMONIC, operands, self.axis)?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let inner: usize = t.dims[self.axis..].iter().product();
        let mut x = t.to_f64();
        let rank = t.dims.len() - self.axis;
        for row in x.chunks_exact_mut(inner.max(1)) {
            let square = row.iter().map(|v| v * v).sum::<f64>() / inner as f64;
            let inv = 1.0 / (square + self.epsilon.0).sqrt();
            let mut i = 0;
            for_each_index(&t.dims[self.axis..], |idx| {
                let parameter = |p: &Tensor| p.get_f64(flat(idx, &broadcast_strides(&p.dims, rank)));
                row[i] *= inv * operands.get(1).map_or(1.0, |p| parameter(p));
                i += 1;
                Ok(())
            })?;
        }
        Ok(vec![Tensor::from_f64(t.dtype, &t.dims, &x)?])
    }
}
