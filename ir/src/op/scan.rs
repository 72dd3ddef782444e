//! `scan`: running sums along an axis.

use super::{OpSpec, TypeError, reduce::ReduceKind, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Running fold along `axis`: element `i` is the fold of elements `0..=i` (`0..i` if exclusive; from the end if reversed).
    Scan = "scan" {
        /// The folding operation.
        kind: ReduceKind,
        /// The axis.
        axis: usize,
        /// Leave the element itself out.
        exclusive: bool,
        /// From the last element to the first.
        reverse: bool,
    }
}

impl OpSpec for Scan {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        rules::axis(Self::MNEMONIC, self.axis, operands[0].rank())?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
