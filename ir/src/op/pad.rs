//! `pad`: grow a tensor at both ends of its axes.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::scalar::named_enum;
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

named_enum! {
    /// What stands in the padding.
    PadMode {
        /// The second operand, a scalar.
        Constant = "constant",
        /// The nearest element.
        Edge = "edge",
        /// Mirrored without repeating the edge.
        Reflect = "reflect",
        /// Periodic continuation.
        Wrap = "wrap",
    }
}

tensor_op! {
    /// Operands: a tensor, and for mode `constant` a scalar of its dtype. `lo` and `hi` are not negative (cropping is a slice).
    Pad = "pad" {
        /// Elements added before, per axis.
        lo: Vec<Dim>,
        /// Elements added after, per axis.
        hi: Vec<Dim>,
        /// What stands in the padding.
        mode: PadMode,
    }
}

impl OpSpec for Pad {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let n = if self.mode == PadMode::Constant { 2 } else { 1 };
        rules::arity(Self::MNEMONIC, operands, n..=n)?;
        let t = operands[0];
        if self.lo.len() != t.rank() || self.hi.len() != t.rank() {
            return Err(TypeError::rank(Self::MNEMONIC, format!("needs two amounts per axis of {t}")));
        }
        if let Some(v) = operands.get(1)
            && (v.rank() != 0 || v.dtype != t.dtype)
        {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("pads {t} with {v}, needs a scalar of its dtype")));
        }
        if self.lo.iter().chain(&self.hi).any(|d| d.as_const().is_some_and(|c| c < 0)) {
            return Err(TypeError::dims(Self::MNEMONIC, "has a negative amount"));
        }
        let dims = t.dims.iter().zip(self.lo.iter().zip(&self.hi)).map(|(d, (l, h))| &(d + l) + h);
        Ok(vec![TensorType::new(t.dtype, dims.collect::<Vec<_>>())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = (operands, cx);
        Err(EvalError::Unsupported(Self::MNEMONIC))
    }
}
