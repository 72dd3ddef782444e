//! `reduce`: fold axes with an associative operation.

use super::{OpSpec, TypeError, rules};
use crate::interp::scalar::{bin, cast, fold_op, identity};
use crate::interp::{EvalCx, EvalError, Tensor, for_each_index, strides};
use crate::scalar::named_enum;
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

named_enum! {
    /// The folding operation. Over no elements: 0, 1, the lowest, the highest value of the dtype.
    ReduceKind {
        /// Sum; ints wrap.
        Sum = "sum",
        /// Product; ints wrap.
        Prod = "prod",
        /// Maximum; NaN wins. On `bool`: any.
        Max = "max",
        /// Minimum; NaN wins. On `bool`: all.
        Min = "min",
    }
}

tensor_op! {
    /// Folds `axes` (sorted, distinct). Floats accumulate in at least f32; the result has the operand's dtype.
    Reduce = "reduce" {
        /// The folding operation.
        kind: ReduceKind,
        /// The folded axes, ascending.
        axes: Vec<usize>,
        /// Keep folded axes with extent 1.
        keep: bool,
    }
}

impl OpSpec for Reduce {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        let t = operands[0];
        if t.dtype == DType::Bool && matches!(self.kind, ReduceKind::Sum | ReduceKind::Prod) {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot take the {} of {t}", self.kind.name())));
        }
        for (i, a) in self.axes.iter().enumerate() {
            if *a >= t.rank() || i > 0 && self.axes[i - 1] >= *a {
                return Err(TypeError::axis(Self::MNEMONIC, a, t.rank()));
            }
        }
        Ok(vec![TensorType::new(t.dtype, rules::reduced_dims(&t.dims, &self.axes, self.keep))])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let kept: Vec<usize> = (0..t.dims.len()).filter(|a| !self.axes.contains(a)).collect();
        let kept_dims: Vec<usize> = kept.iter().map(|a| t.dims[*a]).collect();
        let so = strides(&kept_dims);
        let count = kept_dims.iter().product();
        // Floats fold in f64, everything else in its own dtype.
        let wide = if t.dtype.is_float() { DType::F64 } else { t.dtype };
        let mut acc = vec![identity(self.kind, wide); count];
        let (op, mut from) = (fold_op(self.kind), 0);
        for_each_index(&t.dims, |idx| {
            let to: usize = kept.iter().zip(&so).map(|(a, s)| idx[*a] * s).sum();
            acc[to] = bin(op, acc[to], cast(wide, t.get(from)))?;
            from += 1;
            Ok(())
        })?;
        let dims: Vec<usize> = (0..t.dims.len())
            .filter_map(|a| if !self.axes.contains(&a) { Some(t.dims[a]) } else { self.keep.then_some(1) })
            .collect();
        let mut out = Tensor::zeros(t.dtype, &dims)?;
        for (i, v) in acc.into_iter().enumerate() {
            out.set(i, cast(t.dtype, v));
        }
        Ok(vec![out])
    }
}
