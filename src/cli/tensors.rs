//! Tensors from and to files, and their comparison.

use std::path::Path;

use transc::ir::diag::Fault;
use transc::ir::interp::Tensor as Plain;
use transc::ir::types::DType;
use transc::runtime::{self, Tensor};
use transc_frontend::{FrontendError, npy, npz};

use super::Failure;
use super::args::Tolerance;

/// Reads `file.npz` (all its arrays) and `name=@file.npy` options.
pub fn read_inputs(options: &[String]) -> Result<Vec<(String, Plain)>, Failure> {
    let mut all = Vec::new();
    for option in options {
        if let Some((name, file)) = option.split_once("=@") {
            all.push((name.to_string(), npy_file(name, Path::new(file))?));
        } else {
            let file = option.strip_prefix('@').unwrap_or(option);
            all.extend(read_npz(Path::new(file))?);
        }
    }
    Ok(all)
}

/// All arrays of a file.
pub fn read_npz(file: &Path) -> Result<Vec<(String, Plain)>, Failure> {
    npz::read_file(file, &npz::NpzLimits::default()).map_err(|p| FrontendError::one(file, p).into())
}

fn npy_file(name: &str, file: &Path) -> Result<Plain, Failure> {
    let bytes = std::fs::read(file)
        .map_err(|e| Failure::one("T0904", Fault::Environment, format!("{} cannot be read: {e}", file.display()), ""))?;
    npy::read(name, &bytes).map_err(|p| FrontendError::one(file, p).into())
}

/// Those arrays that are inputs of a model.
pub fn known_inputs(all: &[(String, Plain)], module: &transc::ir::Module) -> Result<Vec<(String, Tensor)>, Failure> {
    named(all, module.main.params().iter().map(|(n, _)| n.as_str()).collect())
}

/// Those arrays that are inputs of a session; a file may hold more.
pub fn session_inputs(all: &[(String, Plain)], session: &transc::Session) -> Result<Vec<(String, Tensor)>, Failure> {
    named(all, session.inputs().iter().map(|s| s.name.as_str()).collect())
}

fn named(all: &[(String, Plain)], known: Vec<&str>) -> Result<Vec<(String, Tensor)>, Failure> {
    all.iter().filter(|(n, _)| known.contains(&n.as_str())).map(|(n, t)| Ok((n.clone(), to_runtime(t)?))).collect()
}

/// The runtime's form of a tensor.
pub fn to_runtime(t: &Plain) -> Result<Tensor, Failure> {
    let dtype = runtime::DType::from_number(t.dtype.onnx_number())
        .ok_or_else(|| Failure::one("T0901", Fault::Unsupported, format!("arrays of {} cannot be inputs", t.dtype), ""))?;
    Tensor::from_bytes(dtype, &t.dims, &t.data).map_err(|e| transc::Error::from(e).into())
}

/// The interpreter's form of a tensor.
pub fn to_plain(t: &Tensor) -> Result<Plain, Failure> {
    let dtype = DType::from_onnx(t.dtype().number())
        .ok_or_else(|| Failure::one("T0901", Fault::Bug, "an output has an unknown element type", ""))?;
    Ok(Plain { dtype, dims: t.shape().to_vec(), data: t.bytes().to_vec() })
}

/// How far an output is from what was expected.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Name of the output.
    pub name: String,
    /// Why the two cannot be compared element by element, if so.
    pub mismatch: Option<String>,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest difference relative to the expected magnitude.
    pub max_rel: f64,
    /// Where the largest absolute difference is.
    pub at: Vec<usize>,
    /// Number of elements outside the tolerance.
    pub outside: usize,
}

impl Difference {
    /// True if every element is within the tolerance.
    pub fn ok(&self) -> bool {
        self.mismatch.is_none() && self.outside == 0
    }
}

/// Compares two tensors: floats within the tolerance (equal infinities and NaN agree), everything else exactly.
pub fn difference(name: &str, got: &Plain, want: &Plain, tolerance: Tolerance) -> Difference {
    let mut d = Difference { name: name.into(), mismatch: None, max_abs: 0.0, max_rel: 0.0, at: Vec::new(), outside: 0 };
    if got.dtype != want.dtype || got.dims != want.dims {
        d.mismatch = Some(format!("expected {}, got {}", want.ty(), got.ty()));
        return d;
    }
    let mut worst = None;
    for i in 0..want.count() {
        let (g, w) = (got.get_f64(i), want.get_f64(i));
        let exact = !want.dtype.is_float();
        let same = if exact { got.get(i) == want.get(i) } else { g == w || g.is_nan() && w.is_nan() };
        if same {
            continue;
        }
        let abs = (g - w).abs();
        if exact || !abs.is_finite() || abs > tolerance.atol + tolerance.rtol * w.abs() {
            d.outside += 1;
        }
        let abs = if abs.is_nan() { f64::INFINITY } else { abs };
        if worst.is_none() || abs > d.max_abs {
            worst = Some(i);
            d.max_abs = abs;
        }
        d.max_rel = d.max_rel.max(abs / w.abs().max(f64::MIN_POSITIVE));
    }
    if let Some(i) = worst {
        d.at = unflatten(i, &want.dims);
    }
    d
}

fn unflatten(mut flat: usize, dims: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = dims
        .iter()
        .rev()
        .map(|d| {
            let i = flat % d;
            flat /= d;
            i
        })
        .collect();
    index.reverse();
    index
}
