//! `layer_norm`: normalise the trailing axes to mean 0 and variance 1.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
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
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
