//! `slice`: a strided box.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, strides};
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

tensor_op! {
    /// Element `i` along each axis is element `start + i*step` of the operand; `step` may be negative, not 0. The author of the
    /// node guarantees that the box lies inside (the importer clamps as ONNX does); constant bounds are checked here.
    Slice = "slice" {
        /// First index per axis.
        starts: Vec<Dim>,
        /// Extent of the result per axis.
        sizes: Vec<Dim>,
        /// Step per axis.
        steps: Vec<i64>,
    }
}

impl OpSpec for Slice {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        if [self.starts.len(), self.sizes.len(), self.steps.len()].iter().any(|n| *n != t.rank()) {
            return Err(TypeError::rank(Self::MNEMONIC, format!("needs one start, size and step per axis of {t}")));
        }
        for (a, step) in self.steps.iter().enumerate() {
            if *step == 0 {
                return Err(TypeError::dims(Self::MNEMONIC, "has step 0"));
            }
            if let (Some(s), Some(n), Some(d)) = (self.starts[a].as_const(), self.sizes[a].as_const(), t.dims[a].as_const()) {
                let last = i128::from(s) + i128::from(n - 1) * i128::from(*step);
                if n < 0 || n > 0 && (s < 0 || s >= d || last < 0 || last >= i128::from(d)) {
                    return Err(TypeError::dims(
                        Self::MNEMONIC,
                        format!("takes {n} elements from {s} by {step} of axis {a} of {t}"),
                    ));
                }
            }
        }
        Ok(vec![TensorType::new(t.dtype, self.sizes.clone())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (dims, s) = (cx.extents(&self.sizes)?, strides(&operands[0].dims));
        let starts = self.starts.iter().map(|d| Ok(d.eval(cx.symbols)?)).collect::<Result<Vec<i64>, EvalError>>()?;
        let out = operands[0].pick(&dims, |idx| {
            let mut at = 0;
            for (a, i) in idx.iter().enumerate() {
                let (index, extent) = (starts[a] + *i as i64 * self.steps[a], operands[0].dims[a]);
                let inside = usize::try_from(index).ok().filter(|i| *i < extent);
                at += inside.ok_or(EvalError::IndexOutOfRange { index, extent })? * s[a];
            }
            Ok(at)
        })?;
        Ok(vec![out])
    }
}
