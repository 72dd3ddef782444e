//! `scatter_nd`: write slices by index tuples.

use super::scatter_elements::ScatterKind;
use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides, wrap_index};
use crate::tensor::ConstPool;
use crate::types::TensorType;

tensor_op! {
    /// Operands `data`, `indices`, `updates` (ONNX `ScatterND`): the last axis of `indices` (constant extent `k`) indexes the first
    /// `k` axes of `data`; `updates` has dims `indices.dims[..-1] + data.dims[k..]`.
    ScatterNd = "scatter_nd" {
        /// How elements combine.
        kind: ScatterKind,
    }
}

impl OpSpec for ScatterNd {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 3..=3)?;
        let (data, idx, upd) = (operands[0], operands[1], operands[2]);
        rules::index_type(Self::MNEMONIC, idx)?;
        let bad = || TypeError::dims(Self::MNEMONIC, format!("cannot scatter {upd} by {idx} into {data}"));
        let (last, lead) = idx.dims.split_last().ok_or_else(bad)?;
        let k = last.as_usize().filter(|k| *k <= data.rank()).ok_or_else(bad)?;
        let want: Vec<_> = lead.iter().chain(&data.dims[k..]).cloned().collect();
        if upd.dims != want || upd.dtype != data.dtype {
            return Err(bad());
        }
        Ok(vec![data.clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (index, updates) = (operands[1], operands[2]);
        let mut out = operands[0].clone();
        let lead = index.dims.len() - 1;
        let k = index.dims[lead];
        let (s, si, su) = (strides(&out.dims), strides(&index.dims), strides(&updates.dims));
        for_each_index(&updates.dims, |idx| {
            let mut at = flat(&idx[lead..], &s[k..]);
            for (j, (stride, extent)) in s.iter().zip(&out.dims).take(k).enumerate() {
                at += wrap_index(index.get_i64(flat(&idx[..lead], &si) + j), *extent)? * stride;
            }
            self.kind.apply(&mut out, at, updates.get(flat(idx, &su)))
        })?;
        Ok(vec![out])
    }
}
