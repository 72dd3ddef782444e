//! `arg_reduce`: the position of an extreme element.

use super::rules::compare;
use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Index (`i64`) of the maximum or minimum along `axis`; the first of equals, or the last. NaN counts as the extreme.
    ArgReduce = "arg_reduce" {
        /// Maximum, else minimum.
        max: bool,
        /// The folded axis.
        axis: usize,
        /// Keep the folded axis with extent 1.
        keep: bool,
        /// The last of equal elements instead of the first.
        last: bool,
    }
}

impl OpSpec for ArgReduce {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        rules::axis(Self::MNEMONIC, self.axis, t.rank())?;
        Ok(vec![TensorType::new(DType::I64, rules::reduced_dims(&t.dims, &[self.axis], self.keep))])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let s = strides(&t.dims);
        let mut outer = t.dims.clone();
        outer[self.axis] = 1;
        if t.dims[self.axis] == 0 {
            return Err(EvalError::Shape("the extreme of no elements".into()));
        }
        let mut values = Vec::new();
        for_each_index(&outer, |idx| {
            let base = flat(idx, &s);
            let mut best = 0;
            for i in 1..t.dims[self.axis] {
                let (x, y) = (t.get(base + i * s[self.axis]), t.get(base + best * s[self.axis]));
                let order = compare(x, y);
                let order = if self.max { order } else { order.reverse() };
                // NaN is the extreme in both directions.
                let order = match (x.to_f64().is_nan(), y.to_f64().is_nan()) {
                    (true, false) => std::cmp::Ordering::Greater,
                    (false, true) => std::cmp::Ordering::Less,
                    _ => order,
                };
                if order.is_gt() || self.last && order.is_eq() {
                    best = i;
                }
            }
            values.push(best as i64);
            Ok(())
        })?;
        if !self.keep {
            outer.remove(self.axis);
        }
        Ok(vec![Tensor::from_i64(&outer, &values)])
    }
}
