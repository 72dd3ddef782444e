//! `fused`: a region that becomes one kernel.

use super::{OpSpec, Shared, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, eval_func};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Evaluates a nested function whose parameters are the operands and whose results are the results. The `fuse` pass makes these;
    /// each is compiled to one kernel launch.
    Fused = "fused" {
        /// The nested function.
        body: Shared,
    }
}

impl OpSpec for Fused {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let params = self.body.params();
        rules::arity(Self::MNEMONIC, operands, params.len()..=params.len())?;
        for ((name, v), t) in params.iter().zip(operands) {
            if self.body.ty(*v) != *t {
                return Err(TypeError::dims(
                    Self::MNEMONIC,
                    format!("parameter `{name}` is {}, the operand is {t}", self.body.ty(*v)),
                ));
            }
        }
        Ok(self.body.results().iter().map(|(_, v)| self.body.ty(*v).clone()).collect())
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        eval_func(&self.body, operands, cx)
    }
}
