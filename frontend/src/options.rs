//! Options of the import.

use transc_ir::interp::Tensor;

/// What the user says about a symbolic dim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DimOption {
    /// The dim is this constant.
    Fixed(i64),
    /// The dim lies in this range, both ends included.
    Range(i64, i64),
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
    /// Inputs that become constants of the model, by name.
    pub fixed_inputs: Vec<(String, Tensor)>,
    /// Bounds of the work.
    pub limits: Limits,
}
