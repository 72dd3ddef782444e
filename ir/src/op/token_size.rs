//! `token_size`: how many tokens each group stands for.

use super::token_plan::check_plan;
use super::{Broadcast, Iota, OpSpec, Reduce, ReduceKind, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, wrap_index};
use crate::scalar::{BinOp, Literal};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// Operands `plan i64[B, N]` and `size f32[B, N]`: the sums of the sizes of each group, `f32[B, M]`. Counts are exact in `f32`.
    TokenSize = "token_size" {
        /// Number of groups `M`.
        tokens: Dim,
    }
}

impl OpSpec for TokenSize {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (plan, size) = (operands[0], operands[1]);
        if size.rank() != 2 || size.dtype != DType::F32 || plan.dims != size.dims {
            return Err(TypeError::dims(Self::MNEMONIC, format!("needs a plan and sizes f32[B,N], got {plan} and {size}")));
        }
        check_plan(Self::MNEMONIC, plan, &size.dims[0])?;
        Ok(vec![TensorType::new(DType::F32, vec![size.dims[0].clone(), self.tokens.clone()])])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (plan, size) = (operands[0], operands[1]);
        let [b, n] = [plan.dims[0], plan.dims[1]];
        let m = cx.extent(&self.tokens)?;
        let mut out = vec![0.0; b * m];
        for i in 0..b * n {
            out[i / n * m + wrap_index(plan.get_i64(i), m)?] += size.get_f64(i);
        }
        Ok(vec![Tensor::from_f64(DType::F32, &[b, m], &out)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        let sum = Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: false };
        Some(one_hot(b, x[0], x[1], &self.tokens).and_then(|s| b.add(sum, &[s])).map(|v| vec![v]))
    }
}

/// `[B, M, N]`: the size of token `j` where it is in group `g`, else 0.
pub(super) fn one_hot(b: &mut Builder<'_>, plan: Value, size: Value, tokens: &Dim) -> Result<Value, TypeError> {
    let [batch, n] = [b.ty(plan).dims[0].clone(), b.ty(plan).dims[1].clone()];
    let row = vec![batch.clone(), 1.into(), n.clone()];
    let (plan, size) = (b.reshape(plan, row.clone())?, b.reshape(size, row)?);
    let group = b.add(Iota { dims: vec![tokens.clone(), 1.into()], axis: 0 }, &[])?;
    let member = b.bin(BinOp::Eq, plan, group)?;
    let size = b.add(Broadcast { dims: vec![batch, tokens.clone(), n] }, &[size])?;
    let none = b.scalar(Literal::f32(0.0))?;
    b.select(member, size, none)
}
