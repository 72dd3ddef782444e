//! `quantize`: scale, round and saturate to 8- or 16-bit integers.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Operands float `x`, `scale`, optionally integer `zero_point` of dtype `to`; both broadcast to `x` (the importer shapes per-axis
    /// and blocked parameters so). `saturate(round_half_even(x / scale) + zero_point)`.
    Quantize = "quantize" {
        /// Element type of the result.
        to: DType,
    }
}

impl OpSpec for Quantize {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=3)?;
        let x = operands[0];
        rules::float(Self::MNEMONIC, x)?;
        if !matches!(self.to, DType::I8 | DType::U8 | DType::I16 | DType::U16) {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot give {}", self.to)));
        }
        rules::quant_params(Self::MNEMONIC, x, operands[1], operands.get(2).copied(), self.to)?;
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
