//! transc: a compiler for transformer models.
//!
//! A model file becomes native code: in process, as a shared library with a C header, or as an artefact file.
//!
//! ```no_run
//! use transc::{Compiler, Tensor};
//!
//! # fn main() -> Result<(), transc::Error> {
//! let model = transc::load("model.onnx")?;
//! let session = Compiler::new().compile(&model)?.session(2)?;
//! let x = Tensor::from_slice(&[1, 3], &[1.0f32, 2.0, 3.0])?;
//! let outputs = session.run(&[("x", x.view())])?;
//! println!("{:?}", outputs[0].1.as_slice::<f32>()?);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Session`] is `Send + Sync`: share it between threads, each call to `run` is independent. Same artefact and same input give the
//! same bits, for any number of threads.

pub use transc_codegen::simulate::run as simulate;
pub use transc_codegen::{Backend, Target};
pub use transc_frontend::{DimOption, Fixed, ImportOptions};
pub use transc_ir as ir;
pub use transc_passes as passes;
pub use transc_runtime as runtime;
pub use transc_runtime::{Model, Session, SessionOptions, Tensor, TensorView};

mod calibrate;
mod compiler;
mod error;
mod tiered;

pub use calibrate::relative_error;
pub use compiler::{Compiled, Compiler};
pub use error::Error;
pub use tiered::Tiered;

use std::path::Path;

/// Reads a model: an `.onnx` file, a Hugging Face folder, or a `.tir` text.
///
/// # Errors
/// Everything that is wrong with the model or not supported, at once.
pub fn load(path: impl AsRef<Path>) -> Result<ir::Module, Error> {
    load_with(path, &ImportOptions::default())
}

/// As [`load`], with options.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: impl AsRef<Path>, options: &ImportOptions) -> Result<ir::Module, Error> {
    Ok(transc_frontend::load(path.as_ref(), options)?)
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
