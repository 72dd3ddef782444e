//! The text form of the tensor IR as a model file.

use std::path::Path;

use transc_ir::{Module, text};

use crate::{FrontendError, ImportOptions, Problem, weights};

/// Reads a `.tir` file, whose constants must be in the text.
///
/// # Errors
/// A file that cannot be read, text of another form, options for dims that it does not have.
pub(crate) fn load(path: &Path, options: &ImportOptions) -> Result<Module, FrontendError> {
    parse(path, options).map_err(|p| FrontendError::one(path, p))
}

fn parse(path: &Path, options: &ImportOptions) -> Result<Module, Problem> {
    let bytes = weights::read_file(path, options.limits.file_bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Problem::invalid("T0150", format!("not UTF-8 text: {e}")))?;
    let mut m = text::parse_module(text).map_err(|e| Problem::invalid("T0150", e.to_string()))?;
    options.apply_dims(&mut m)?;
    Ok(m)
}
