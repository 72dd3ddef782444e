//! Files of learnt masks: safetensors with a header of plain text.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use transc_ir::interp::Tensor;

use crate::{Problem, weights};

/// Largest file, in bytes: masks hold one number per unit.
const MAX_BYTES: u64 = 256 << 20;

/// The header's keys and the tensors of a file, in the order of their names.
///
/// # Errors
/// A file that cannot be read, is no safetensors file (T0406), or holds tensors of another type than `F32` (T0401).
pub fn read_file(path: &Path) -> Result<(BTreeMap<String, String>, Vec<(String, Tensor)>), Problem> {
    let bytes = weights::read_file(path, MAX_BYTES)?;
    let broken = |e: safetensors::SafeTensorError| Problem::invalid("T0406", format!("not a valid safetensors file: {e}"));
    let (_, head) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let header = head.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.iter() {
        if view.dtype() != Dtype::F32 {
            let message = format!("tensor `{name}` is of type {:?}", view.dtype());
            return Err(Problem::invalid("T0401", message).help("masks are F32"));
        }
        let values: Vec<f32> = view.data().chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect();
        tensors.insert(name.to_string(), Tensor::from_f32(view.shape(), &values));
    }
    Ok((header, tensors.into_iter().collect()))
}
