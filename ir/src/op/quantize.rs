//! `quantize`: scale, round and saturate to 8- or 16-bit integers.

use super::{OpSpec, TypeError, rules};
use crate::interp::scalar::bin;
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Body, Literal, Ref, UnOp};
use crate::tensor::ConstPool;
use crate::tensor::{Builder, Value};
use crate::types::{DType, TensorType};

tensor_op! {
    /// Operands float `x`, `scale`, optionally integer `zero_point` of dtype `to`; both broadcast to `x` (the importer shapes per-axis
    /// and blocked parameters so). `saturate(round_half_even(x / scale) + zero_point)`.
    Quantize = "quantize" {
        /// Element type of the result.
        to: DType,
    }
}

impl OpSpec for Quantize {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=3)?;
        let x = operands[0];
        rules::float(Self::MNEMONIC, x)?;
        if !matches!(self.to, DType::I8 | DType::U8 | DType::I16 | DType::U16) {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot give {}", self.to)));
        }
        rules::quant_params(Self::MNEMONIC, x, operands[1], operands.get(2).copied(), self.to)?;
        Ok(vec![x.with_dtype(self.to)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let params: Vec<_> = operands[1..].iter().map(|p| (*p, broadcast_strides(&p.dims, t.dims.len()))).collect();
        let mut out = Tensor::zeros(self.to, &t.dims)?;
        let mut i = 0;
        for_each_index(&t.dims, |idx| {
            let scale = Literal::from_f64(t.dtype, params[0].0.get_f64(flat(idx, &params[0].1)));
            let q = bin(BinOp::Div, t.get(i), scale)?.to_f64().round_ties_even();
            let zero = params.get(1).map_or(0.0, |(p, s)| p.get_f64(flat(idx, s)));
            // NaN has no integer; like a saturating cast it gives 0.
            out.set(i, Literal::from_f64(self.to, q + zero));
            i += 1;
            Ok(())
        })?;
        Ok(vec![out])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        let (float, scale_dtype) = (b.ty(x[0]).dtype, b.ty(x[1]).dtype);
        let mut f = Body::builder(x.len() as u32);
        let scale = if scale_dtype == float { f.arg(1) } else { f.cast(float, Ref::Arg(1)) };
        let q = f.bin(BinOp::Div, Ref::Arg(0), scale);
        // Narrow floats cannot hold every 16-bit code.
        let q = if float == DType::F32 { q } else { f.cast(DType::F32, q) };
        let mut q = f.un(UnOp::Round, q);
        if x.len() > 2 {
            let zero = f.cast(DType::F32, Ref::Arg(2));
            q = f.bin(BinOp::Add, q, zero);
        }
        let q = f.cast(self.to, q);
        Some(b.add_multi(super::Map { body: f.finish(q) }, x))
    }
}
