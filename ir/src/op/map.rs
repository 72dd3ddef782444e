//! `map`: one scalar body at every element.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::scalar::eval_body;
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::Body;
use crate::tensor::ConstPool;
use crate::types::{DType, TensorType};

tensor_op! {
    /// Applies a scalar body at every element of its operands, with NumPy broadcasting. As many operands as the body has
    /// arguments; none gives a scalar.
    Map = "map" {
        /// The computation of one element.
        body: Body,
    }
}

impl OpSpec for Map {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let n = self.body.n_args as usize;
        rules::arity(Self::MNEMONIC, operands, n..=n)?;
        let types: Vec<DType> = operands.iter().map(|t| t.dtype).collect();
        let dtype = self.body.result_type(&types).map_err(|e| TypeError::dtype(Self::MNEMONIC, e))?;
        let mut dims = Vec::new();
        for (i, t) in operands.iter().enumerate() {
            dims = broadcast_dims(&dims, &t.dims).ok_or_else(|| {
                let before = TensorType::new(operands[i.saturating_sub(1)].dtype, dims.clone());
                TypeError::broadcast(Self::MNEMONIC, before, t)
            })?;
        }
        Ok(vec![TensorType::new(dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let types: Vec<DType> = operands.iter().map(|t| t.dtype).collect();
        let dtype = self.body.result_type(&types).map_err(|e| EvalError::Shape(e.to_string()))?;
        let mut dims: Vec<usize> = Vec::new();
        for t in operands {
            let rank = dims.len().max(t.dims.len());
            let at = |d: &[usize], i: usize| (i + d.len()).checked_sub(rank).map_or(1, |j| d[j]);
            let merged = (0..rank).map(|i| if at(&dims, i) == 1 { at(&t.dims, i) } else { at(&dims, i) }).collect::<Vec<_>>();
            if (0..rank).any(|i| at(&t.dims, i) != 1 && at(&t.dims, i) != merged[i]) {
                return Err(EvalError::Shape(format!("{dims:?} and {:?} do not broadcast", t.dims)));
            }
            dims = merged;
        }
        let strides: Vec<Vec<usize>> = operands.iter().map(|t| broadcast_strides(&t.dims, dims.len())).collect();
        let mut out = Tensor::zeros(dtype, &dims)?;
        let (mut args, mut slots, mut to) = (Vec::with_capacity(operands.len()), Vec::new(), 0);
        for_each_index(&dims, |idx| {
            args.clear();
            args.extend(operands.iter().zip(&strides).map(|(t, s)| t.get(flat(idx, s))));
            out.set(to, eval_body(&self.body, &args, cx, &mut slots)?);
            to += 1;
            Ok(())
        })?;
        Ok(vec![out])
    }
}
