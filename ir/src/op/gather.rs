//! `gather`: take slices by index along one axis.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, strides, wrap_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// `out[a.., i.., b..] = data[a.., indices[i..], b..]` with `indices` at position `axis` (ONNX `Gather`; embedding look-up for
    /// axis 0). Negative indices count from the end; an index outside is an error at run time.
    Gather = "gather" {
        /// The indexed axis of the first operand.
        axis: usize,
    }
}

impl OpSpec for Gather {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (data, idx) = (operands[0], operands[1]);
        rules::index_type(Self::MNEMONIC, idx)?;
        rules::axis(Self::MNEMONIC, self.axis, data.rank())?;
        let mut dims = data.dims[..self.axis].to_vec();
        dims.extend_from_slice(&idx.dims);
        dims.extend_from_slice(&data.dims[self.axis + 1..]);
        Ok(vec![TensorType::new(data.dtype, dims)])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (data, index, a) = (operands[0], operands[1], self.axis);
        let dims = [&data.dims[..a], &index.dims, &data.dims[a + 1..]].concat();
        let (s, si, n) = (strides(&data.dims), strides(&index.dims), index.dims.len());
        let out = data.pick(&dims, |idx| {
            let i = wrap_index(index.get_i64(flat(&idx[a..a + n], &si)), data.dims[a])?;
            Ok(flat(&idx[..a], &s[..a]) + i * s[a] + flat(&idx[a + n..], &s[a + 1..]))
        })?;
        Ok(vec![out])
    }
}
