//! `dequantize`: integers back to reals.

use super::{OpSpec, TypeError, rules};
use crate::interp::scalar::bin;
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Literal};
use crate::scalar::{Body, Ref};
use crate::tensor::ConstPool;
use crate::tensor::{Builder, Value};
use crate::types::{DType, TensorType};

tensor_op! {
    /// Operands integer `x`, float `scale`, optionally `zero_point` of x's dtype; both broadcast to `x`. `(x - zero_point) * scale` in
    /// the dtype of `scale`.
    Dequantize = "dequantize" {}
}

impl OpSpec for Dequantize {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=3)?;
        let x = operands[0];
        if !x.dtype.is_int() {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("needs integers, got {x}")));
        }
        rules::quant_params(Self::MNEMONIC, x, operands[1], operands.get(2).copied(), x.dtype)?;
        Ok(vec![x.with_dtype(operands[1].dtype)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let (scale, ss) = (operands[1], broadcast_strides(&operands[1].dims, t.dims.len()));
        let zero = operands.get(2).map(|z| (*z, broadcast_strides(&z.dims, t.dims.len())));
        let mut out = Tensor::zeros(scale.dtype, &t.dims)?;
        let mut i = 0;
        for_each_index(&t.dims, |idx| {
            let z = zero.as_ref().map_or(0, |(z, s)| z.get_i64(flat(idx, s)));
            let x = Literal::from_i64(scale.dtype, t.get_i64(i) - z);
            out.set(i, bin(BinOp::Mul, x, scale.get(flat(idx, &ss)))?);
            i += 1;
            Ok(())
        })?;
        Ok(vec![out])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        let float = b.ty(x[1]).dtype;
        let mut f = Body::builder(x.len() as u32);
        // Differences of short codes fit 32 bits.
        let wide = if b.ty(x[0]).dtype.size_bytes() < 4 { DType::I32 } else { DType::I64 };
        let mut v = f.cast(wide, Ref::Arg(0));
        if x.len() > 2 {
            let zero = f.cast(wide, Ref::Arg(2));
            v = f.bin(BinOp::Sub, v, zero);
        }
        let v = f.cast(float, v);
        let v = f.bin(BinOp::Mul, v, Ref::Arg(1));
        Some(b.add_multi(super::Map { body: f.finish(v) }, x))
    }
}
