//! `token_apply`: the tokens of each group become one, their mean.

use super::token_plan::check_plan;
use super::token_size::one_hot;
use super::{Contract, OpSpec, Reduce, ReduceKind, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, wrap_index};
use crate::scalar::{BinOp, Body};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::{DType, Dim, TensorType};

/// Least size of a group: one whose tokens all have size 0 gives zeros.
pub(super) const LEAST_SIZE: f64 = 1e-30;

tensor_op! {
    /// Operands `x[B, N, C]`, `plan i64[B, N]`, `size f32[B, N]`: row `g` of the result `[B, M, C]` is the mean of the rows `j` with
    /// `plan[j] = g`, weighted by `size[j]` (Bolya et al. 2023, section 3). A token that is alone in its group keeps every bit.
    TokenApply = "token_apply" {
        /// Number of groups `M`.
        tokens: Dim,
    }
}

impl OpSpec for TokenApply {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 3..=3)?;
        let (x, plan, size) = (operands[0], operands[1], operands[2]);
        rules::float(Self::MNEMONIC, x)?;
        if x.rank() != 3 || size.dtype != DType::F32 || size.dims != x.dims[..2] || plan.dims != size.dims {
            return Err(TypeError::dims(
                Self::MNEMONIC,
                format!("needs x[B,N,C], a plan and sizes [B,N], got {x}, {plan} and {size}"),
            ));
        }
        check_plan(Self::MNEMONIC, plan, &x.dims[0])?;
        Ok(vec![TensorType::new(x.dtype, vec![x.dims[0].clone(), self.tokens.clone(), x.dims[2].clone()])])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (x, plan, size) = (operands[0], operands[1], operands[2]);
        let [b, n, c] = [x.dims[0], x.dims[1], x.dims[2]];
        let m = cx.extent(&self.tokens)?;
        let (value, weight) = (x.to_f64(), size.to_f64());
        let mut total = vec![0.0; b * m];
        // -0 is the neutral element of the sum: 0 would turn -0 into 0.
        let mut out = vec![-0.0; b * m * c];
        let group = |i: usize| wrap_index(plan.get_i64(i), m).map(|g| i / n * m + g);
        for (i, w) in weight.iter().enumerate() {
            total[group(i)?] += w;
        }
        for (i, w) in weight.iter().enumerate() {
            let g = group(i)?;
            let share = w / total[g].max(LEAST_SIZE);
            for (to, from) in out[g * c..][..c].iter_mut().zip(&value[i * c..][..c]) {
                *to += share * from;
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype, &[b, m, c], &out)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x).map(|v| vec![v]))
    }
}

impl TokenApply {
    /// A contraction with the matrix of shares.
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let dtype = b.ty(x[0]).dtype;
        let sizes = one_hot(b, x[1], x[2], &self.tokens)?;
        let total = b.add(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[sizes])?;
        let mut f = Body::builder(2);
        let least = f.num(DType::F32, LEAST_SIZE);
        let whole = f.bin(BinOp::Max, f.arg(1), least);
        let share = f.bin(BinOp::Div, f.arg(0), whole);
        let shares = b.add(super::Map { body: f.finish(share) }, &[sizes, total])?;
        let shares = b.cast(dtype, shares)?;
        b.add(Contract::matmul(1, dtype), &[shares, x[0]])
    }
}
