//! `scatter_elements`: write one element per index.

use super::{OpSpec, TypeError, rules};
use crate::interp::scalar::bin;
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides, wrap_index};
use crate::scalar::{BinOp, Literal, named_enum};
use crate::tensor::ConstPool;
use crate::types::TensorType;

named_enum! {
    /// How a scattered element meets the one that is there. Updates apply in row-major order of the updates.
    ScatterKind {
        /// Replace.
        Set = "set",
        /// Sum.
        Add = "add",
        /// Product.
        Mul = "mul",
        /// Minimum.
        Min = "min",
        /// Maximum.
        Max = "max",
    }
}

impl ScatterKind {
    /// Combines `v` into element `at`.
    pub(super) fn apply(self, out: &mut Tensor, at: usize, v: Literal) -> Result<(), EvalError> {
        let old = out.get(at);
        let new = match self {
            ScatterKind::Set => v,
            ScatterKind::Add => bin(BinOp::Add, old, v)?,
            ScatterKind::Mul => bin(BinOp::Mul, old, v)?,
            ScatterKind::Min => bin(BinOp::Min, old, v)?,
            ScatterKind::Max => bin(BinOp::Max, old, v)?,
        };
        out.set(at, new);
        Ok(())
    }
}

tensor_op! {
    /// Operands `data`, `indices`, `updates`: a copy of `data` with `out[.., indices[.., i, ..], ..] (kind)= updates[.., i, ..]` at
    /// position `axis` (ONNX `ScatterElements`).
    ScatterElements = "scatter_elements" {
        /// The indexed axis.
        axis: usize,
        /// How elements combine.
        kind: ScatterKind,
    }
}

impl OpSpec for ScatterElements {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 3..=3)?;
        let (data, idx, upd) = (operands[0], operands[1], operands[2]);
        rules::index_type(Self::MNEMONIC, idx)?;
        rules::axis(Self::MNEMONIC, self.axis, data.rank())?;
        if idx.rank() != data.rank() || idx.dims != upd.dims || upd.dtype != data.dtype {
            return Err(TypeError::dims(Self::MNEMONIC, format!("cannot scatter {upd} by {idx} into {data}")));
        }
        Ok(vec![data.clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (index, updates) = (operands[1], operands[2]);
        let mut out = operands[0].clone();
        let (s, si) = (strides(&out.dims), strides(&index.dims));
        for_each_index(&index.dims, |idx| {
            let i = wrap_index(index.get_i64(flat(idx, &si)), out.dims[self.axis])?;
            let at = flat(idx, &s) - idx[self.axis] * s[self.axis] + i * s[self.axis];
            self.kind.apply(&mut out, at, updates.get(flat(idx, &si)))
        })?;
        Ok(vec![out])
    }
}
