//! `layer_norm`: normalise the trailing axes to mean 0 and variance 1.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Operands `x`, optionally `scale`, optionally `bias` (both broadcast to the normalised dims):
    /// `(x - mean) / sqrt(var + epsilon) * scale + bias` with mean and biased variance over axes `axis..` (Ba et al. 2016).
    /// Statistics are at least f32.
    LayerNorm = "layer_norm" {
        /// First normalised axis.
        axis: usize,
        /// Added to the variance.
        epsilon: Real,
    }
}

impl OpSpec for LayerNorm {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=3)?;
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
            let mean = row.iter().sum::<f64>() / inner as f64;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / inner as f64;
            let inv = 1.0 / (var + self.epsilon.0).sqrt();
            let mut i = 0;
            for_each_index(&t.dims[self.axis..], |idx| {
                let parameter = |p: &Tensor| p.get_f64(flat(idx, &broadcast_strides(&p.dims, rank)));
                let scale = operands.get(1).map_or(1.0, |p| parameter(p));
                let bias = operands.get(2).map_or(0.0, |p| parameter(p));
                row[i] = (row[i] - mean) * inv * scale + bias;
                i += 1;
                Ok(())
            })?;
        }
        Ok(vec![Tensor::from_f64(t.dtype, &t.dims, &x)?])
    }
}
