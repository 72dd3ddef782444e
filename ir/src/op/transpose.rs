//! `transpose`: permute axes.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, strides};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    Transpose = "transpose" {
        /// A permutation of the axes.
        perm: Vec<usize>,
    }
}

impl OpSpec for Transpose {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        let mut seen = vec![false; t.rank()];
        for p in &self.perm {
            if *p >= t.rank() || std::mem::replace(&mut seen[*p], true) {
                return Err(TypeError::axis(Self::MNEMONIC, p, t.rank()));
            }
        }
        if self.perm.len() != t.rank() {
            return Err(TypeError::rank(Self::MNEMONIC, format!("permutes {} axes of {t}", self.perm.len())));
        }
        Ok(vec![TensorType::new(t.dtype, self.perm.iter().map(|p| t.dims[*p].clone()).collect::<Vec<_>>())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let s = strides(&operands[0].dims);
        let dims: Vec<usize> = self.perm.iter().map(|p| operands[0].dims[*p]).collect();
        Ok(vec![operands[0].pick(&dims, |idx| Ok(self.perm.iter().zip(idx).map(|(p, i)| i * s[*p]).sum()))?])
    }
}
