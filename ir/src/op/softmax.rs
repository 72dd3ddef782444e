//! `softmax` and its logarithm along one axis.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// `exp(x - max) / sum(exp(x - max))` along `axis`, or its logarithm `x - max - log(sum(exp(x - max)))`. A row of `-inf` gives NaN.
    Softmax = "softmax" {
        /// The normalised axis.
        axis: usize,
        /// Give the logarithm.
        log: bool,
    }
}

impl OpSpec for Softmax {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        rules::axis(Self::MNEMONIC, self.axis, operands[0].rank())?;
        rules::float(Self::MNEMONIC, operands[0])?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
