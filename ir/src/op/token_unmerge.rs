//! `token_unmerge`: every token gets the value of its group.

use super::token_plan::check_plan;
use super::{GatherNd, OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, strides, wrap_index};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::TensorType;

tensor_op! {
    /// Operands `y` of `[B, .., M, ..]` with the groups along `axis`, and `plan i64[B, N]`: `out[b, .., j, ..] = y[b, .., plan[b, j], ..]`. The
    /// left inverse of `token_apply`: applying a plan to what it un-merged gives `y` back.
    TokenUnmerge = "token_unmerge" {
        /// The axis of the tokens, not the first.
        axis: usize,
    }
}

impl OpSpec for TokenUnmerge {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (y, plan) = (operands[0], operands[1]);
        if self.axis == 0 || self.axis >= y.rank() {
            return Err(TypeError::axis(Self::MNEMONIC, self.axis, y.rank()));
        }
        check_plan(Self::MNEMONIC, plan, &y.dims[0])?;
        let mut out = y.clone();
        out.dims[self.axis] = plan.dims[1].clone();
        Ok(vec![out])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (y, plan) = (operands[0], operands[1]);
        let (s, n, m) = (strides(&y.dims), plan.dims[1], y.dims[self.axis]);
        let mut dims = y.dims.clone();
        dims[self.axis] = n;
        let out = y.pick(&dims, |idx| {
            let j = idx[self.axis];
            let g = wrap_index(plan.get_i64(idx[0] * n + j), m)?;
            Ok(flat(idx, &s) - j * s[self.axis] + g * s[self.axis])
        })?;
        Ok(vec![out])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.expand(b, x).map(|v| vec![v]))
    }
}

impl TokenUnmerge {
    /// A gather along the second axis, between transpositions.
    fn expand(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let mut perm: Vec<usize> = (0..b.ty(x[0]).rank()).collect();
        perm.swap(1, self.axis);
        let y = b.transpose(x[0], &perm)?;
        let dims = b.ty(x[1]).dims.clone();
        let index = b.reshape(x[1], vec![dims[0].clone(), dims[1].clone(), 1.into()])?;
        let y = b.add(GatherNd { batch_dims: 1 }, &[y, index])?;
        b.transpose(y, &perm)
    }
}
