//! `scan`: running sums along an axis.

use super::{OpSpec, TypeError, reduce::ReduceKind, rules};
use crate::interp::scalar::{bin, cast, fold_op, identity};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Running fold along `axis`: element `i` is the fold of elements `0..=i` (`0..i` if exclusive; from the end if reversed).
    Scan = "scan" {
        /// The folding operation.
        kind: ReduceKind,
        /// The axis.
        axis: usize,
        /// Leave the element itself out.
        exclusive: bool,
        /// From the last element to the first.
        reverse: bool,
    }
}

impl OpSpec for Scan {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        rules::axis(Self::MNEMONIC, self.axis, operands[0].rank())?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let (s, n) = (strides(&t.dims), t.dims[self.axis]);
        let mut outer = t.dims.clone();
        outer[self.axis] = 1;
        let wide = if t.dtype.is_float() { DType::F64 } else { t.dtype };
        let mut out = Tensor::zeros(t.dtype, &t.dims)?;
        if n == 0 {
            return Ok(vec![out]);
        }
        for_each_index(&outer, |idx| {
            let base = flat(idx, &s);
            let mut acc = identity(self.kind, wide);
            for i in 0..n {
                let at = base + s[self.axis] * if self.reverse { n - 1 - i } else { i };
                let next = bin(fold_op(self.kind), acc, cast(wide, t.get(at)))?;
                out.set(at, cast(t.dtype, if self.exclusive { acc } else { next }));
                acc = next;
            }
            Ok(())
        })?;
        Ok(vec![out])
    }
}
