//! Safetensors files, single or sharded, with their headers checked before use.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use transc_ir::diag::Fault;
use transc_ir::tensor::ConstData;
use transc_ir::types::{DType, Dim, TensorType};

use super::{Result, problem};

/// In the dims that a weight should have: any extent.
pub(crate) const ANY: usize = usize::MAX;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where a tensor lies.
struct Entry {
    dtype: Dtype,
    dims: Vec<usize>,
    file: Arc<Vec<u8>>,
    start: usize,
    len: usize,
}

/// The weights of a folder by name.
pub(crate) struct Weights {
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Opens the files of a folder.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut weights = Self { entries: BTreeMap::new() };
        if dir.join(SINGLE).exists() {
            weights.add_file(dir, SINGLE)?;
        } else if dir.join(INDEX).exists() {
            for shard in shards(dir)? {
                weights.add_file(dir, &shard)?;
            }
        } else {
            let message = format!("holds neither `{SINGLE}` nor `{INDEX}`");
            return Err(problem(
                "T0402",
                Fault::Environment,
                &dir.display().to_string(),
                message,
                "only safetensors weights are read",
            ));
        }
        Ok(weights)
    }

    fn add_file(&mut self, dir: &Path, name: &str) -> Result<()> {
        let path = dir.join(name);
        let read = |e: std::io::Error| problem("T0402", Fault::Environment, name, format!("cannot be read: {e}"), "");
        let meta = std::fs::metadata(&path).map_err(|e| {
            if name == SINGLE {
                read(e)
            } else {
                problem("T0406", Fault::Invalid, INDEX, format!("names `{name}`, which is missing"), "")
            }
        })?;
        if !meta.is_file() {
            return Err(problem("T0406", Fault::Invalid, name, "is not a regular file", ""));
        }
        let bytes = Arc::new(std::fs::read(&path).map_err(read)?);
        let invalid = |e: safetensors::SafeTensorError| {
            problem("T0406", Fault::Invalid, name, format!("is not a valid safetensors file: {e}"), "")
        };
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(invalid)?;
        let parsed = SafeTensors::deserialize(&bytes).map_err(invalid)?;
        // The data follow the header and the eight bytes of its length.
        let data_start = 8 + header_len;
        let infos: BTreeMap<_, _> = header.tensors().into_iter().collect();
        for (tensor, view) in parsed.iter() {
            let Some(info) = infos.get(tensor) else { continue };
            let (start, end) = info.data_offsets;
            let entry = Entry {
                dtype: view.dtype(),
                dims: view.shape().to_vec(),
                file: Arc::clone(&bytes),
                start: data_start + start,
                len: end - start,
            };
            if self.entries.insert(tensor.to_string(), entry).is_some() {
                return Err(problem("T0406", Fault::Invalid, name, format!("tensor `{tensor}` is in more than one shard"), ""));
            }
        }
        Ok(())
    }

    /// True if there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor as `f32` of the expected dims.
    pub(crate) fn get(&self, name: &str, want: &[usize]) -> Result<ConstData> {
        let entry = self.entries.get(name).ok_or_else(|| {
            problem(
                "T0407",
                Fault::Invalid,
                SINGLE,
                format!("tensor `{name}` is missing"),
                "the config describes a model with this weight; where the file has no head, `architectures` should name the bare model",
            )
        })?;
        let fits = entry.dims.len() == want.len() && entry.dims.iter().zip(want).all(|(d, w)| *w == ANY || d == w);
        if !fits {
            let want: Vec<String> = want.iter().map(|w| if *w == ANY { "any".into() } else { w.to_string() }).collect();
            let message = format!("tensor `{name}` has shape {:?}, the config asks for [{}]", entry.dims, want.join(", "));
            return Err(problem("T0407", Fault::Invalid, SINGLE, message, ""));
        }
        let ty = TensorType::new(DType::F32, entry.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>());
        let bytes = &entry.file[entry.start..entry.start + entry.len];
        let data = match entry.dtype {
            Dtype::F32 => {
                ConstData::mapped(ty, Arc::clone(&entry.file) as Arc<dyn AsRef<[u8]> + Send + Sync>, entry.start, entry.len)
            }
            Dtype::F16 => ConstData::new(ty, widen(bytes, |b| half::f16::from_bits(b).to_f32())),
            Dtype::BF16 => ConstData::new(ty, widen(bytes, |b| half::bf16::from_bits(b).to_f32())),
            other => {
                let message = format!("tensor `{name}` is of type {other:?}");
                return Err(problem("T0401", Fault::Unsupported, SINGLE, message, "weights of F32, F16 and BF16 are read"));
            }
        };
        data.ok_or_else(|| problem("T0406", Fault::Invalid, SINGLE, format!("tensor `{name}` has the wrong number of bytes"), ""))
    }

    /// Tensors of the same dims as one, joined along axis 0 or 1.
    pub(crate) fn joined(&self, names: &[String], dims: [usize; 2], axis: usize) -> Result<ConstData> {
        let parts = names.iter().map(|n| self.get(n, &dims)).collect::<Result<Vec<_>>>()?;
        // Runs of bytes that stay together.
        let (runs, len) = if axis == 0 { (1, dims[0] * dims[1] * 4) } else { (dims[0], dims[1] * 4) };
        let mut bytes = Vec::with_capacity(parts.iter().map(|p| p.bytes().len()).sum());
        for run in 0..runs {
            parts.iter().for_each(|p| bytes.extend_from_slice(&p.bytes()[run * len..(run + 1) * len]));
        }
        let mut all = dims;
        all[axis] *= parts.len();
        let ty = TensorType::new(DType::F32, all.map(Dim::from).to_vec());
        ConstData::new(ty, bytes)
            .ok_or_else(|| problem("T0406", Fault::Invalid, SINGLE, "has experts that do not fit each other", ""))
    }
}

fn widen(bytes: &[u8], f: impl Fn(u16) -> f32) -> Vec<u8> {
    bytes.chunks_exact(2).flat_map(|b| f(u16::from_le_bytes([b[0], b[1]])).to_le_bytes()).collect()
}

/// The files that the index names, each once; only plain names inside the folder.
fn shards(dir: &Path) -> Result<Vec<String>> {
    let invalid = |what: String| problem("T0406", Fault::Invalid, INDEX, what, "");
    let text = std::fs::read_to_string(dir.join(INDEX)).map_err(|e| invalid(format!("cannot be read: {e}")))?;
    let json: Json = serde_json::from_str(&text).map_err(|e| invalid(format!("is not valid JSON: {e}")))?;
    let map = json.get("weight_map").and_then(Json::as_object).ok_or_else(|| invalid("has no `weight_map`".into()))?;
    let mut names: Vec<String> = Vec::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| invalid("has a `weight_map` entry that is not a file name".into()))?;
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(invalid(format!("names `{file}`, which is not a file of this folder")));
        }
        if !names.iter().any(|n| n == file) {
            names.push(file.to_string());
        }
    }
    names.sort();
    Ok(names)
}
