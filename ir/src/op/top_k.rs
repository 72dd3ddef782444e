//! `top_k`: the largest or smallest elements in order.

use super::rules::compare;
use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::scalar::Literal;
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
        let t = operands[0];
        let (k, s) = (cx.extent(&self.k)?, strides(&t.dims));
        if k > t.dims[self.axis] {
            return Err(EvalError::Shape(format!("the first {k} of {} elements", t.dims[self.axis])));
        }
        let mut dims = t.dims.clone();
        dims[self.axis] = k;
        let so = strides(&dims);
        let (mut values, mut indices) = (Tensor::zeros(t.dtype, &dims)?, Tensor::zeros(DType::I64, &dims)?);
        let mut outer = dims.clone();
        outer[self.axis] = 1;
        if k == 0 {
            return Ok(vec![values, indices]);
        }
        for_each_index(&outer, |idx| {
            let (from, to) = (flat(idx, &s), flat(idx, &so));
            let mut order: Vec<usize> = (0..t.dims[self.axis]).collect();
            order.sort_by(|a, b| {
                let c = compare(t.get(from + a * s[self.axis]), t.get(from + b * s[self.axis]));
                if self.largest { c.reverse() } else { c }
            });
            for (i, j) in order.into_iter().take(k).enumerate() {
                values.set(to + i * so[self.axis], t.get(from + j * s[self.axis]));
                indices.set(to + i * so[self.axis], Literal::i64(j as i64));
            }
            Ok(())
        })?;
        Ok(vec![values, indices])
    }
}
