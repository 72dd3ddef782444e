//! `token_plan`: which tokens are to become one.

use super::{Iota, OpSpec, TypeError, rules, tome};
use crate::interp::{EvalCx, EvalError, Tensor};
use crate::scalar::named_enum;
use crate::tensor::{Builder, ConstPool, Value};
use crate::types::{DType, Dim, TensorType};

named_enum! {
    /// How a plan is found. Each planner has a file of its own with its reference and its decomposition.
    Planner {
        /// Bipartite soft matching of similar tokens (Bolya et al. 2023).
        Tome = "tome",
    }
}

tensor_op! {
    /// Operands `metric[B, N, D]` and `size[B, N]`: features by which tokens are compared, and how many tokens of the model each one
    /// stands for. The result is the plan `i64[B, N]`: for every token the index of its group, one of `N - remove`; every group has a member.
    /// The first `protect` tokens (class, distillation, registers) are alone in the groups of their own index. With `remove = 0` each token is
    /// a group, in order.
    ///
    /// A plan is data; `token_apply`, `token_size` and `token_unmerge` read it. Ties are broken by the lowest index, and NaN is the least
    /// similar, so that a plan depends on its operands only. It jumps where two similarities cross: a reordered sum upstream may change it.
    TokenPlan = "token_plan" {
        /// How the plan is found.
        planner: Planner,
        /// Number of tokens that vanish.
        remove: usize,
        /// Number of leading tokens that stay as they are.
        protect: usize,
    }
}

impl TokenPlan {
    /// Most tokens that a planner removes at once from `tokens` of which `protect` stay: one half of the others.
    pub fn limit(tokens: usize, protect: usize) -> usize {
        tokens.saturating_sub(protect) / 2
    }
}

impl OpSpec for TokenPlan {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (metric, size) = (operands[0], operands[1]);
        rules::float(Self::MNEMONIC, metric)?;
        if metric.rank() != 3 || size.dtype != DType::F32 || size.dims != metric.dims[..2] {
            return Err(TypeError::dims(
                Self::MNEMONIC,
                format!("needs features [B,N,D] and sizes f32[B,N], got {metric} and {size}"),
            ));
        }
        let limit = metric.dims[1].as_usize().map(|n| Self::limit(n, self.protect));
        if limit.is_none_or(|l| l < self.remove) {
            let what = format!("cannot remove {} of the tokens of {metric}, {} of them protected", self.remove, self.protect);
            return Err(TypeError::dims(Self::MNEMONIC, what));
        }
        Ok(vec![TensorType::new(DType::I64, size.dims.clone())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let metric = operands[0];
        let [b, n, d] = [metric.dims[0], metric.dims[1], metric.dims[2]];
        let x = metric.to_f64();
        let mut plan = Vec::with_capacity(b * n);
        for i in 0..b {
            let rows: Vec<&[f64]> = (0..n).map(|j| &x[(i * n + j) * d..][..d]).collect();
            plan.extend(match self.planner {
                _ if self.remove == 0 => (0..n as i64).collect(),
                Planner::Tome => tome::plan(&rows, self.remove, self.protect),
            });
        }
        Ok(vec![Tensor::from_i64(&[b, n], &plan)])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        let plan = match self.planner {
            _ if self.remove == 0 => b.add(Iota { dims: b.ty(x[1]).dims.clone(), axis: 1 }, &[]),
            Planner::Tome => tome::decompose(b, x[0], self.remove, self.protect),
        };
        Some(plan.map(|v| vec![v]))
    }
}

/// Checks a plan against the tensor whose tokens it groups.
pub(super) fn check_plan(op: &str, plan: &TensorType, batch: &Dim) -> Result<(), TypeError> {
    if plan.dtype != DType::I64 || plan.rank() != 2 || plan.dims[0] != *batch {
        return Err(TypeError::dims(op, format!("needs a plan i64[{batch},N], got {plan}")));
    }
    Ok(())
}
