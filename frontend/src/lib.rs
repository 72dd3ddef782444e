//! Reads models into the tensor IR: `.onnx` files, Hugging Face folders, the text form `.tir`, and the data files that stand beside models (`.npz`, ONNX tensor files).
//!
//! Everything that is read is untrusted: sizes are checked before memory is taken, names never leave the model's directory, and
//! nothing is executed. All problems of a file are reported at once; see [`FrontendError`].
#![deny(clippy::print_stdout, reason = "stdout carries results only")]
#![forbid(unsafe_code)]

mod activations;
mod hf;
pub mod masks;
pub mod npy;
pub mod npz;
pub mod onnx;
pub mod weights;

mod error;
mod options;
mod tir;

pub use error::{FrontendError, Problem};
pub use options::{DimOption, Fixed, ImportOptions, Limits};

use std::path::Path;

use transc_ir::Module;
use transc_ir::diag::Fault;

/// Reads a model by the kind of its path: an `.onnx` file, a Hugging Face folder, or the text form `.tir`.
///
/// # Errors
/// All problems of the model; see [`FrontendError`].
pub fn load(path: &Path, options: &ImportOptions) -> Result<Module, FrontendError> {
    if path.is_dir() {
        return hf::load(path, options);
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("onnx") => onnx::load(path, options),
        Some("tir") => tir::load(path, options),
        _ => Err(FrontendError::one(
            path,
            Problem::new("T0100", Fault::Unsupported, format!("cannot tell the kind of model of `{}`", path.display()))
                .help("give a .onnx or a .tir file, or a folder with config.json"),
        )),
    }
}
