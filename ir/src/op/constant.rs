//! `constant`: a weight or literal of the module.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::{ConstId, ConstPool};
use crate::types::TensorType;

tensor_op! {
    /// A constant of the module's pool. No operands; the result has the constant's type.
    Constant = "constant" {
        /// Which constant.
        id: ConstId,
    }
}

impl OpSpec for Constant {
    fn infer(&self, operands: &[&TensorType], consts: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 0..=0)?;
        let data = consts
            .get(self.id)
            .ok_or_else(|| TypeError::dims(Self::MNEMONIC, format!("names {}, which does not exist", self.id)))?;
        Ok(vec![data.ty().clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = operands;
        let data = cx.consts.get(self.id).ok_or(EvalError::Unsupported(Self::MNEMONIC))?;
        Ok(vec![Tensor::from_const(data)])
    }
}
