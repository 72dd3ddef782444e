//! `broadcast`: stretch axes of extent 1, add leading axes.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat};
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

tensor_op! {
    /// NumPy's `broadcast_to`: the operand's dims, right-aligned, must be 1 or equal to `dims`.
    Broadcast = "broadcast" {
        /// Dims of the result.
        dims: Vec<Dim>,
    }
}

impl OpSpec for Broadcast {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let to = TensorType::new(operands[0].dtype, self.dims.clone());
        if broadcast_dims(&operands[0].dims, &self.dims).as_ref() != Some(&self.dims) {
            return Err(TypeError::broadcast(Self::MNEMONIC, operands[0], to));
        }
        Ok(vec![to])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let dims = cx.extents(&self.dims)?;
        let s = broadcast_strides(&operands[0].dims, dims.len());
        Ok(vec![operands[0].pick(&dims, |idx| Ok(flat(idx, &s)))?])
    }
}
