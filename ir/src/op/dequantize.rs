//! `dequantize`: integers back to reals.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Operands integer `x`, float `scale`, optionally `zero_point` of x's dtype; both broadcast to `x`. `(x - zero_point) * scale` in
    /// the dtype of `scale`.
    Dequantize = "dequantize" {}
}

impl OpSpec for Dequantize {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=3)?;
        let x = operands[0];
        if !x.dtype.is_int() {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("needs integers, got {x}")));
        }
        rules::quant_params(Self::MNEMONIC, x, operands[1], operands.get(2).copied(), x.dtype)?;
        Ok(vec![x.with_dtype(operands[1].dtype)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
