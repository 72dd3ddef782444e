//! Options of the import.

use transc_ir::Module;
use transc_ir::interp::Tensor;
use transc_ir::tensor::rewrite::substitute_dims;
use transc_ir::types::{Dim, Symbol, SymbolRange};

use crate::Problem;
use crate::error::quote;

/// What the user says about a symbolic dim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DimOption {
    /// The dim is this constant.
    Fixed(i64),
    /// The dim lies in this range, both ends included.
    Range(i64, i64),
}

/// What an input is fixed to.
#[derive(Clone, Debug)]
pub enum Fixed {
    /// This tensor.
    Tensor(Tensor),
    /// These numbers in its type and dims: one for each element, or one for all.
    Numbers(Vec<f64>),
}

/// Bounds of the work that a file may cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Nodes after functions are inlined and loops unrolled.
    pub nodes: usize,
    /// Depth of graphs inside nodes, and of calls of local functions.
    pub depth: usize,
    /// Axes of a tensor.
    pub rank: usize,
    /// Elements of a constant computed during the import.
    pub fold_elements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 1 << 40, nodes: 1 << 20, depth: 64, rank: 16, fold_elements: 1 << 24 }
    }
}

/// How a model is read.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Symbolic dims by name: a constant or a range.
    pub dims: Vec<(String, DimOption)>,
    /// Inputs of ONNX files that become constants of the model, by name.
    pub fixed_inputs: Vec<(String, Fixed)>,
    /// Bounds of the work.
    pub limits: Limits,
}

impl ImportOptions {
    /// Fixes dims of a module that is no ONNX file, or narrows their ranges.
    ///
    /// # Errors
    /// A name that is no symbolic dim of the module, an empty range, or fixed inputs.
    pub(crate) fn apply_dims(&self, m: &mut Module) -> Result<(), Problem> {
        if let Some((name, _)) = self.fixed_inputs.first() {
            return Err(Problem::invalid(
                "T0116",
                format!("the input {} cannot be fixed: only those of ONNX files can", quote(name)),
            ));
        }
        for (name, option) in &self.dims {
            let symbol = Symbol::new(name);
            let Some(range) = m.symbols.get_mut(&symbol) else {
                return Err(Problem::invalid("T0116", format!("the model has no symbolic dim {}", quote(name))));
            };
            match option {
                DimOption::Fixed(v) if *v >= 0 => substitute_dims(m, &|s| (*s == symbol).then(|| Dim::from(*v))),
                DimOption::Range(min, max) if 0 <= *min && min <= max => *range = SymbolRange { min: *min, max: *max },
                _ => return Err(Problem::invalid("T0116", format!("the dim {} has an empty or negative range", quote(name)))),
            }
        }
        Ok(())
    }
}
