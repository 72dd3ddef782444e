//! `arg_reduce`: the position of an extreme element.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Index (`i64`) of the maximum or minimum along `axis`; the first of equals, or the last. NaN counts as the extreme.
    ArgReduce = "arg_reduce" {
        /// Maximum, else minimum.
        max: bool,
        /// The folded axis.
        axis: usize,
        /// Keep the folded axis with extent 1.
        keep: bool,
        /// The last of equal elements instead of the first.
        last: bool,
    }
}

impl OpSpec for ArgReduce {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        rules::axis(Self::MNEMONIC, self.axis, t.rank())?;
        Ok(vec![TensorType::new(DType::I64, rules::reduced_dims(&t.dims, &[self.axis], self.keep))])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
