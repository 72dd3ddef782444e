//! `iota`: the index along an axis.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, for_each_index};
use crate::tensor::ConstPool;
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// `i64[dims]` whose element at `[.., i, ..]` (position `axis`) is `i`.
    Iota = "iota" {
        /// Dims of the result.
        dims: Vec<Dim>,
        /// The axis that counts.
        axis: usize,
    }
}

impl OpSpec for Iota {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 0..=0)?;
        rules::axis(Self::MNEMONIC, self.axis, self.dims.len())?;
        Ok(vec![TensorType::new(DType::I64, self.dims.clone())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = operands;
        let dims = cx.extents(&self.dims)?;
        let mut values = Vec::new();
        for_each_index(&dims, |idx| {
            values.push(idx[self.axis] as i64);
            Ok(())
        })?;
        Ok(vec![Tensor::from_i64(&dims, &values)])
    }
}
