//! `gather_nd`: take slices by index tuples.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, strides, wrap_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// ONNX `GatherND`: the last axis of `indices` (constant extent `k`) holds tuples that index the `k` axes of `data` after the
    /// batch axes. Result: `indices.dims[..-1] + data.dims[batch_dims + k..]`.
    GatherNd = "gather_nd" {
        /// Leading axes that both operands share.
        batch_dims: usize,
    }
}

impl OpSpec for GatherNd {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (data, idx) = (operands[0], operands[1]);
        rules::index_type(Self::MNEMONIC, idx)?;
        let Some((last, lead)) = idx.dims.split_last() else {
            return Err(TypeError::rank(Self::MNEMONIC, "needs indices of rank 1 or more"));
        };
        let k = last
            .as_usize()
            .ok_or_else(|| TypeError::dims(Self::MNEMONIC, format!("needs a constant tuple length, got {idx}")))?;
        let b = self.batch_dims;
        if b > lead.len() || b + k > data.rank() || data.dims[..b] != lead[..b] {
            return Err(TypeError::dims(Self::MNEMONIC, format!("cannot index {data} by {idx} with {b} batch axes")));
        }
        let mut dims = lead.to_vec();
        dims.extend_from_slice(&data.dims[b + k..]);
        Ok(vec![TensorType::new(data.dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (data, index, b) = (operands[0], operands[1], self.batch_dims);
        let lead = index.dims.len() - 1;
        let k = index.dims[lead];
        let dims = [&index.dims[..lead], &data.dims[b + k..]].concat();
        let (s, si) = (strides(&data.dims), strides(&index.dims));
        let out = data.pick(&dims, |idx| {
            let mut at = flat(&idx[..b], &s[..b]) + flat(&idx[lead..], &s[b + k..]);
            for j in 0..k {
                at += wrap_index(index.get_i64(flat(&idx[..lead], &si) + j), data.dims[b + j])? * s[b + j];
            }
            Ok(at)
        })?;
        Ok(vec![out])
    }
}
