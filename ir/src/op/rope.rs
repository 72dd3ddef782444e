//! `rope`: rotary position embedding.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

tensor_op! {
    /// Operands `x[.., D]` and `cos`, `sin` that broadcast to `x.dims[..-1] + [R/2]`. Rotates the first `R = rotary` features of the
    /// last axis in pairs (Su et al. 2021): pair `i` is `(i, i + R/2)`, or `(2i, 2i + 1)` if interleaved; the other features pass.
    /// `(a, b) -> (a cos - b sin, a sin + b cos)`.
    Rope = "rope" {
        /// Number of rotated features, even.
        rotary: usize,
        /// Pairs of neighbours instead of halves.
        interleaved: bool,
    }
}

impl OpSpec for Rope {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 3..=3)?;
        let x = operands[0];
        rules::float(Self::MNEMONIC, x)?;
        let Some(d) = x.dims.last().and_then(Dim::as_usize).filter(|d| *d >= self.rotary && self.rotary % 2 == 0) else {
            return Err(TypeError::dims(Self::MNEMONIC, format!("cannot rotate {} features of {x}", self.rotary)));
        };
        let _ = d;
        let mut half = x.dims.clone();
        if let Some(last) = half.last_mut() {
            *last = Dim::from(self.rotary / 2);
        }
        for t in &operands[1..] {
            if t.dtype != x.dtype || broadcast_dims(&t.dims, &half).as_ref() != Some(&half) {
                return Err(TypeError::broadcast(Self::MNEMONIC, x, t));
            }
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
