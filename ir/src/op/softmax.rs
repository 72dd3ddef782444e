//! `softmax` and its logarithm along one axis.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::scalar::{BinOp, Body, Ref, UnOp};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::TensorType;

tensor_op! {
    /// `exp(x - max) / sum(exp(x - max))` along `axis`, or its logarithm `x - max - log(sum(exp(x - max)))`. A row of `-inf` gives NaN.
    Softmax = "softmax" {
        /// The normalised axis.
        axis: usize,
        /// Give the logarithm.
        log: bool,
    }
}

impl OpSpec for Softmax {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=1)?;
        rules::axis(Self::MNEMONIC, self.axis, operands[0].rank())?;
        rules::float(Self::MNEMONIC, operands[0])?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let (s, n, mut x) = (strides(&t.dims), t.dims[self.axis], t.to_f64());
        let mut outer = t.dims.clone();
        outer[self.axis] = outer[self.axis].min(1);
        for_each_index(&outer, |idx| {
            let base = flat(idx, &s);
            let at = |i: usize| base + i * s[self.axis];
            let max = (0..n).fold(f64::NEG_INFINITY, |m, i| if x[at(i)].is_nan() { f64::NAN } else { m.max(x[at(i)]) });
            let sum: f64 = (0..n).map(|i| (x[at(i)] - max).exp()).sum();
            for i in 0..n {
                let d = x[at(i)] - max;
                x[at(i)] = if self.log { d - sum.ln() } else { d.exp() / sum };
            }
            Ok(())
        })?;
        Ok(vec![Tensor::from_f64(t.dtype, &t.dims, &x)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x[0]).map(|v| vec![v]))
    }
}

impl Softmax {
    /// Two reductions; narrow floats compute in f32 and round once.
    fn expand(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, TypeError> {
        let dtype = b.ty(x).dtype;
        let x = b.cast(rules::wide(dtype), x)?;
        let fold = |kind| super::Reduce { kind, axes: vec![self.axis], keep: true };
        let max = b.add(fold(super::ReduceKind::Max), &[x])?;
        let shifted = b.bin(BinOp::Sub, x, max)?;
        let exp = b.un(UnOp::Exp, shifted)?;
        let sum = b.add(fold(super::ReduceKind::Sum), &[exp])?;
        let mut f = Body::builder(2);
        let y = if self.log {
            let log = f.un(UnOp::Log, Ref::Arg(1));
            f.bin(BinOp::Sub, Ref::Arg(0), log)
        } else {
            f.bin(BinOp::Div, Ref::Arg(0), Ref::Arg(1))
        };
        let y = b.add(super::Map { body: f.finish(y) }, &[if self.log { shifted } else { exp }, sum])?;
        b.cast(dtype, y)
    }
}
