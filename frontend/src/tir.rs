//! The text form of the tensor IR as a model file.

use std::path::Path;

use transc_ir::tensor::rewrite::substitute_dims;
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{Dim, Module, text};

use crate::error::quote;
use crate::options::DimOption;
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
    for (name, option) in &options.dims {
        let symbol = Symbol::new(name);
        let Some(range) = m.symbols.get_mut(&symbol) else {
            return Err(Problem::invalid("T0116", format!("the model has no symbolic dim {}", quote(name))));
        };
        match option {
            DimOption::Fixed(v) if *v >= 0 => substitute_dims(&mut m, &|s| (*s == symbol).then(|| Dim::from(*v))),
            DimOption::Range(min, max) if 0 <= *min && min <= max => *range = SymbolRange { min: *min, max: *max },
            _ => return Err(Problem::invalid("T0116", format!("the dim {} has an empty or negative range", quote(name)))),
        }
    }
    Ok(m)
}
