//! `gather_elements`: one index per element of the result.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, strides, wrap_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// `out[.., i, ..] = data[.., indices[.., i, ..], ..]` at position `axis` (ONNX `GatherElements`). Negative indices count from
    /// the end; an index outside is an error at run time.
    GatherElements = "gather_elements" {
        /// The indexed axis.
        axis: usize,
    }
}

impl OpSpec for GatherElements {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (data, idx) = (operands[0], operands[1]);
        rules::index_type(Self::MNEMONIC, idx)?;
        rules::axis(Self::MNEMONIC, self.axis, data.rank())?;
        if idx.rank() != data.rank() {
            return Err(TypeError::rank(Self::MNEMONIC, format!("needs data and indices of one rank, got {data} and {idx}")));
        }
        Ok(vec![TensorType::new(data.dtype, idx.dims.clone())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (data, index) = (operands[0], operands[1]);
        let (s, si) = (strides(&data.dims), strides(&index.dims));
        let out = data.pick(&index.dims, |idx| {
            let i = wrap_index(index.get_i64(flat(idx, &si)), data.dims[self.axis])?;
            Ok(flat(idx, &s) - idx[self.axis] * s[self.axis] + i * s[self.axis])
        })?;
        Ok(vec![out])
    }
}
