//! `dims`: the values of dims as a tensor.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// The values of dim expressions: `i64[n]`. A scalar is read by reshaping `i64[1]`.
    Dims = "dims" {
        /// The expressions.
        values: Vec<Dim>,
    }
}

impl OpSpec for Dims {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 0..=0)?;
        Ok(vec![TensorType::new(DType::I64, vec![Dim::from(self.values.len())])])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = operands;
        let values: Result<Vec<i64>, _> = self.values.iter().map(|d| d.eval(cx.symbols)).collect();
        let values = values?;
        Ok(vec![Tensor::from_i64(&[values.len()], &values)])
    }
}
