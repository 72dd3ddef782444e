//! `rms_norm`: divide the trailing axes by their root mean square.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Body, Ref, UnOp};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::TensorType;

tensor_op! {
    /// Operands `x`, optionally `scale` (broadcasts to the normalised dims): `x / sqrt(mean(x^2) + epsilon) * scale` over axes
    /// `axis..` (Zhang and Sennrich 2019). Statistics are at least f32.
    RmsNorm = "rms_norm" {
        /// First normalised axis.
        axis: usize,
        /// Added to the mean square.
        epsilon: Real,
    }
}

impl OpSpec for RmsNorm {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=2)?;
        rules::norm_operands(Self::MNEMONIC, operands, self.axis)?;
        Ok(vec![operands[0].clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let inner: usize = t.dims[self.axis..].iter().product();
        let mut x = t.to_f64();
        let rank = t.dims.len() - self.axis;
        for row in x.chunks_exact_mut(inner.max(1)) {
            let square = row.iter().map(|v| v * v).sum::<f64>() / inner as f64;
            let inv = 1.0 / (square + self.epsilon.0).sqrt();
            let mut i = 0;
            for_each_index(&t.dims[self.axis..], |idx| {
                let parameter = |p: &Tensor| p.get_f64(flat(idx, &broadcast_strides(&p.dims, rank)));
                row[i] *= inv * operands.get(1).map_or(1.0, |p| parameter(p));
                i += 1;
                Ok(())
            })?;
        }
        Ok(vec![Tensor::from_f64(t.dtype, &t.dims, &x)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x).map(|v| vec![v]))
    }
}

impl RmsNorm {
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let (dtype, dims) = (b.ty(x[0]).dtype, b.ty(x[0]).dims.clone());
        let wide = rules::wide(dtype);
        let mut operands = x.iter().map(|v| b.cast(wide, *v)).collect::<Result<Vec<_>, _>>()?;
        let squares = b.bin(BinOp::Mul, operands[0], operands[0])?;
        let axes = (self.axis..dims.len()).collect();
        let sum = b.add(super::Reduce { kind: super::ReduceKind::Sum, axes, keep: true }, &[squares])?;
        operands.insert(1, sum);
        let mut f = Body::builder(operands.len() as u32);
        let n = rules::count_from(&mut f, &dims, self.axis, wide);
        let mean = f.bin(BinOp::Div, Ref::Arg(1), n);
        let epsilon = f.num(wide, self.epsilon.0);
        let mean = f.bin(BinOp::Add, mean, epsilon);
        let root = f.un(UnOp::Sqrt, mean);
        let mut y = f.bin(BinOp::Div, Ref::Arg(0), root);
        if operands.len() > 2 {
            y = f.bin(BinOp::Mul, y, Ref::Arg(2));
        }
        let y = b.add(super::Map { body: f.finish(y) }, &operands)?;
        b.cast(dtype, y)
    }
}
