//! `concat`: join tensors along an axis.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Joins one or more tensors of one dtype whose dims agree except at `axis`.
    Concat = "concat" {
        /// The axis that grows.
        axis: usize,
    }
}

impl OpSpec for Concat {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=usize::MAX)?;
        let mut out = operands[0].clone();
        rules::axis(Self::MNEMONIC, self.axis, out.rank())?;
        for t in &operands[1..] {
            let same = t.dtype == out.dtype
                && t.rank() == out.rank()
                && (0..t.rank()).all(|i| i == self.axis || t.dims[i] == out.dims[i]);
            if !same {
                return Err(TypeError::dims(Self::MNEMONIC, format!("cannot join {out} and {t} along axis {}", self.axis)));
            }
            out.dims[self.axis] = &out.dims[self.axis] + &t.dims[self.axis];
        }
        Ok(vec![out])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let mut dims = operands[0].dims.clone();
        dims[self.axis] = operands.iter().map(|t| t.dims[self.axis]).sum();
        let mut out = Tensor::zeros(operands[0].dtype, &dims)?;
        let size = out.dtype.size_bytes();
        let outer: usize = dims[..self.axis].iter().product();
        let mut to = 0;
        for o in 0..outer {
            for t in operands {
                let len = t.dims[self.axis..].iter().product::<usize>() * size;
                out.data[to..to + len].copy_from_slice(&t.data[o * len..(o + 1) * len]);
                to += len;
            }
        }
        Ok(vec![out])
    }
}
