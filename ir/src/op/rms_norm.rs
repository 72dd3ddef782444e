//! `rms_norm`: divide the trailing axes by their root mean square.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
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
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
