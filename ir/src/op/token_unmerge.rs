//! `token_unmerge`: every token gets the value of its group.

use super::token_plan::check_plan;
use super::{GatherNd, OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, strides, wrap_index};
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::TensorType;

tensor_op! {
    /// Operands `y` with the groups along `axis`, and `plan i64[B, N]`: where an index is `b` along `batch` and `j` along `axis`, the result
    /// is `y` with `plan[b, j]` in place of `j`. The right inverse of `token_apply`: applying a plan to what it un-merged gives `y` back.
    TokenUnmerge = "token_unmerge" {
        /// The axis of the batch.
        batch: usize,
        /// The axis of the tokens.
        axis: usize,
    }
}

impl OpSpec for TokenUnmerge {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (y, plan) = (operands[0], operands[1]);
        for axis in [self.batch, self.axis] {
            rules::axis(Self::MNEMONIC, axis, y.rank())?;
        }
        if self.axis == self.batch {
            return Err(TypeError::axis(Self::MNEMONIC, self.axis, y.rank()));
        }
        check_plan(Self::MNEMONIC, plan, &y.dims[self.batch])?;
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
            let g = wrap_index(plan.get_i64(idx[self.batch] * n + j), m)?;
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
        let others = (0..b.ty(x[0]).rank()).filter(|a| *a != self.batch && *a != self.axis);
        let perm: Vec<usize> = [self.batch, self.axis].into_iter().chain(others).collect();
        let y = b.transpose(x[0], &perm)?;
        let dims = b.ty(x[1]).dims.clone();
        let index = b.reshape(x[1], vec![dims[0].clone(), dims[1].clone(), 1.into()])?;
        let y = b.add(GatherNd { batch_dims: 1 }, &[y, index])?;
        let mut back = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(i, p)| back[*p] = i);
        b.transpose(y, &back)
    }
}
