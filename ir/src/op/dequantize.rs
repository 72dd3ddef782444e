//! `dequantize`: integers back to reals.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, for_each_index, broadcast_strides, flat};
use crate::interp::scalar::{bin};
use crate::scalar::{BinOp, Literal};
use crate::tensor::ConstPool;
use crate::types::TensorType;

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
}
