//! `layer_norm`: normalise the trailing axes to mean 0 and variance 1.

use super::{OpSpec, Real, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Body, Ref, UnOp};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::TensorType;

tensor_op! {
    /// Operands `x`, optionally `scale`, optionally `bias` (both broadcast to the normalised dims):
    /// `(x - mean) / sqrt(var + epsilon) * scale + bias` with mean and biased variance over axes `axis..` (Ba et al. 2016).
    /// Statistics are at least f32.
    LayerNorm = "layer_norm" {
        /// First normalised axis.
        axis: usize,
        /// Added to the variance.
        epsilon: Real,
    }
}

impl OpSpec for LayerNorm {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 1..=3)?;
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
            let mean = row.iter().sum::<f64>() / inner as f64;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / inner as f64;
            let inv = 1.0 / (var + self.epsilon.0).sqrt();
            let mut i = 0;
            for_each_index(&t.dims[self.axis..], |idx| {
                let parameter = |p: &Tensor| p.get_f64(flat(idx, &broadcast_strides(&p.dims, rank)));
                let scale = operands.get(1).map_or(1.0, |p| parameter(p));
                let bias = operands.get(2).map_or(0.0, |p| parameter(p));
                row[i] = (row[i] - mean) * inv * scale + bias;
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

impl LayerNorm {
    /// Two passes: the mean, then the mean square of what is centred around it.
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let (dtype, dims) = (b.ty(x[0]).dtype, b.ty(x[0]).dims.clone());
        let wide = rules::wide(dtype);
        let mut operands = x.iter().map(|v| b.cast(wide, *v)).collect::<Result<Vec<_>, _>>()?;
        let sum = super::Reduce { kind: super::ReduceKind::Sum, axes: (self.axis..dims.len()).collect(), keep: true };
        let total = b.add(sum.clone(), &[operands[0]])?;
        let mut f = Body::builder(2);
        let n = rules::count_from(&mut f, &dims, self.axis, wide);
        let mean = f.bin(BinOp::Div, Ref::Arg(1), n);
        let centred = f.bin(BinOp::Sub, Ref::Arg(0), mean);
        operands[0] = b.add(super::Map { body: f.finish(centred) }, &[operands[0], total])?;
        let squares = b.bin(BinOp::Mul, operands[0], operands[0])?;
        let squares = b.add(sum, &[squares])?;
        operands.insert(1, squares);
        let mut f = Body::builder(operands.len() as u32);
        let n = rules::count_from(&mut f, &dims, self.axis, wide);
        let variance = f.bin(BinOp::Div, Ref::Arg(1), n);
        let epsilon = f.num(wide, self.epsilon.0);
        let variance = f.bin(BinOp::Add, variance, epsilon);
        let deviation = f.un(UnOp::Sqrt, variance);
        let mut y = f.bin(BinOp::Div, Ref::Arg(0), deviation);
        if operands.len() > 2 {
            y = f.bin(BinOp::Mul, y, Ref::Arg(2));
        }
        if operands.len() > 3 {
            y = f.bin(BinOp::Add, y, Ref::Arg(3));
        }
        let y = b.add(super::Map { body: f.finish(y) }, &operands)?;
        b.cast(dtype, y)
    }
}
