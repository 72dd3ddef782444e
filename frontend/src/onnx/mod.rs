//! ONNX models: decoding, checking, import.

mod check;
mod cx;
mod error;
mod facts;
mod fractions;
mod import;
mod inputs;
mod ops;
pub mod proto;
mod slicing;
mod sniff;
mod support;
mod tensor;
mod unify;
mod wire;

pub use support::{SupportReport, UnsupportedOp, support};

use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;
use transc_ir::Module;
use transc_ir::interp::Tensor;

use crate::weights::{self, ModelDir};
use crate::{FrontendError, ImportOptions, Limits, Problem};

/// The newest supported version of the default operator set.
pub const MAX_OPSET: i64 = 27;
/// The oldest supported version of the default operator set.
pub const MIN_OPSET: i64 = 7;

/// Reads an ONNX file; external data is looked for in its directory.
///
/// # Errors
/// All problems of the file.
pub fn load(path: &Path, options: &ImportOptions) -> Result<Module, FrontendError> {
    let model = read_model(path, options)?;
    let dir = ModelDir::new(path.parent().unwrap_or(Path::new(".")), options.limits.file_bytes);
    run(&model, Some(dir), options).map_err(|problems| FrontendError { file: path.display().to_string(), problems })
}

/// Decodes an ONNX file without importing it.
///
/// # Errors
/// A file that cannot be read or is not an ONNX model.
pub fn read_model(path: &Path, options: &ImportOptions) -> Result<proto::ModelProto, FrontendError> {
    let one = |p| FrontendError::one(path, p);
    decode(weights::read_file(path, options.limits.file_bytes).map_err(one)?).map_err(one)
}

/// Imports an ONNX model in memory. External data is looked for in `dir`; without one, it is an error.
///
/// # Errors
/// All problems of the model.
pub fn import_bytes(bytes: Vec<u8>, dir: Option<&Path>, options: &ImportOptions) -> Result<Module, FrontendError> {
    let fail = |problems| FrontendError { file: String::new(), problems };
    let model = decode(bytes).map_err(|p| fail(vec![p]))?;
    import_model(&model, dir, options)
}

/// Imports a decoded ONNX model.
///
/// # Errors
/// All problems of the model.
pub fn import_model(model: &proto::ModelProto, dir: Option<&Path>, options: &ImportOptions) -> Result<Module, FrontendError> {
    let dir = dir.map(|d| ModelDir::new(d, options.limits.file_bytes));
    run(model, dir, options).map_err(|problems| FrontendError { file: String::new(), problems })
}

fn run(model: &proto::ModelProto, dir: Option<ModelDir>, options: &ImportOptions) -> Result<Module, Vec<Problem>> {
    check::check(model, &options.limits)?;
    let module = import::import(model, dir, options).map_err(support::grouped)?;
    Ok(module)
}

/// Decodes a model file.
///
/// # Errors
/// Bytes that are not an ONNX model.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<proto::ModelProto, Problem> {
    sniff::check(&bytes)?;
    wire::check(&bytes)?;
    // Raw tensors stay slices of this one buffer.
    proto::ModelProto::decode(Bytes::from(bytes)).map_err(|e| Problem::invalid("T0103", format!("not a valid ONNX model: {e}")))
}

/// Reads a file that holds one ONNX tensor, as the ONNX test data does.
///
/// # Errors
/// Bytes that are not a tensor, or a tensor of an element type that is not supported.
pub fn tensor_from_pb(bytes: Vec<u8>) -> Result<Tensor, Problem> {
    wire::check_tensor(&bytes)?;
    let t = proto::TensorProto::decode(Bytes::from(bytes))
        .map_err(|e| Problem::invalid("T0103", format!("not a valid ONNX tensor: {e}")))?;
    let mut reader = tensor::TensorReader { dir: None, limits: Limits::default() };
    Ok(Tensor::from_const(&reader.read(&t)?))
}
