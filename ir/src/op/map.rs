//! `map`: one scalar body at every element.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::scalar::Body;
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Applies a scalar body at every element of its operands, with NumPy broadcasting. As many operands as the body has
    /// arguments; none gives a scalar.
    Map = "map" {
        /// The computation of one element.
        body: Body,
    }
}

impl OpSpec for Map {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let n = self.body.n_args as usize;
        rules::arity(Self::MNEMONIC, operands, n..=n)?;
        let types: Vec<DType> = operands.iter().map(|t| t.dtype).collect();
        let dtype = self.body.result_type(&types).map_err(|e| TypeError::dtype(Self::MNEMONIC, e))?;
        let mut dims = Vec::new();
        for (i, t) in operands.iter().enumerate() {
            dims = broadcast_dims(&dims, &t.dims).ok_or_else(|| {
                let before = TensorType::new(operands[i.saturating_sub(1)].dtype, dims.clone());
                TypeError::broadcast(Self::MNEMONIC, before, t)
            })?;
        }
        Ok(vec![TensorType::new(dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
