//! `reshape`: the same elements in row-major order under other dims.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

tensor_op! {
    /// The operand's elements in row-major order under `dims`; the element counts must be equal as expressions.
    Reshape = "reshape" {
        /// Dims of the result.
        dims: Vec<Dim>,
    }
}

impl OpSpec for Reshape {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let to = TensorType::new(operands[0].dtype, self.dims.clone());
        if operands[0].count() != to.count() {
            return Err(TypeError::dims(
                Self::MNEMONIC,
                format!("cannot turn {} ({} elements) into {to} ({} elements)", operands[0], operands[0].count(), to.count()),
            ));
        }
        Ok(vec![to])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let dims = cx.extents(&self.dims)?;
        if dims.iter().product::<usize>() != operands[0].count() {
            return Err(EvalError::Shape(format!("{:?} cannot become {dims:?}", operands[0].dims)));
        }
        Ok(vec![Tensor { dims, ..operands[0].clone() }])
    }
}
