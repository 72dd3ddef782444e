//! `top_k`: the largest or smallest elements in order.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// The `k` largest (or smallest) elements along `axis`, sorted, and their indices (`i64`). Equal elements keep the order of
    /// their indices; NaN counts as the largest. With `k` the extent of the axis this is a stable sort.
    TopK = "top_k" {
        /// How many; at most the extent of the axis.
        k: Dim,
        /// The axis.
        axis: usize,
        /// Largest first, else smallest first.
        largest: bool,
    }
}

impl OpSpec for TopK {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        rules::axis(Self::MNEMONIC, self.axis, t.rank())?;
        if let (Some(k), Some(n)) = (self.k.as_const(), t.dims[self.axis].as_const())
            && !(0..=n).contains(&k)
        {
            return Err(TypeError::dims(Self::MNEMONIC, format!("takes {k} of {n} elements")));
        }
        let mut dims = t.dims.clone();
        dims[self.axis] = self.k.clone();
        Ok(vec![TensorType::new(t.dtype, dims.clone()), TensorType::new(DType::I64, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
