//! Programs: kernels, launches and buffers, before code.

use std::fmt;

use transc_ir::loops::Kernel;
use transc_ir::tensor::{ConstData, Loc};
use transc_ir::types::{DType, Dim, Ranges, TensorType};

use crate::codes::Codes;
use crate::panels::Panels;
use crate::sparse::{Block, Sparse};
use crate::{CodegenError, interleave, math};

/// A model lowered to loops.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name of the model.
    pub name: String,
    /// Symbolic dims; kernels read their values in this order.
    pub symbols: Ranges,
    /// Dims that must be equal when the model runs, with the reason.
    pub constraints: Vec<(Dim, Dim, String)>,
    /// Inputs.
    pub inputs: Vec<(String, TensorType)>,
    /// Outputs.
    pub outputs: Vec<(String, TensorType)>,
    /// Buffers between launches.
    pub temps: Vec<TensorType>,
    /// Constants as the kernels read them.
    pub consts: Vec<PackedConst>,
    /// Kernels, each once.
    pub kernels: Vec<Kernel>,
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// How the products by constant weights are computed, in order.
    pub layers: Vec<(Loc, LayerChoice)>,
}

/// The kernel of a product by a constant weight, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerChoice {
    /// Element type of the weight's numbers that are multiplied.
    pub dtype: DType,
    /// Bits in which an element of the weight is stored.
    pub bits: usize,
    /// Blocks of the sparse kernel; `None` for the dense one.
    pub sparse: Option<Block>,
    /// Multiply-adds of the kernel per row of the activation, and those of a dense one.
    pub macs: (usize, usize),
    /// Share of the weight's elements that are zero.
    pub zeros: f64,
    /// Estimated time of the best sparse kernel, relative to the dense one.
    pub sparse_cost: f64,
}

/// One call of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which kernel.
    pub kernel: usize,
    /// Its buffers.
    pub args: Vec<Arg>,
    /// Estimated nanoseconds on one thread.
    pub cost_ns: Dim,
    /// Arithmetic and memory traffic, for reports.
    pub work: Work,
    /// What can be tuned.
    pub tunable: Option<Tunable>,
    /// The user's node.
    pub loc: Loc,
}

/// A launch whose schedule can be chosen by measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// What tells it apart for that: launches with the same problem have the same schedule.
    pub problem: String,
    /// The schedule that it has, as tuning files name it.
    pub schedule: String,
}

/// See [`transc_runtime::abi::Work`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Multiply-adds.
    pub macs: Dim,
    /// Element type that is multiplied.
    pub dtype: DType,
    /// Bytes of operands and results.
    pub bytes: Dim,
}

/// A buffer of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arg {
    /// An input of the model.
    Input(usize),
    /// An output of the model.
    Output(usize),
    /// A buffer between launches.
    Temp(usize),
    /// A constant.
    Const(usize),
}

/// How a constant is laid out for its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// As in the model: row-major.
    Raw,
    /// Column panels of matrices.
    Panels(Panels),
    /// One of the arrays of a sparse matrix.
    Sparse(Sparse),
    /// One of the arrays of a matrix in few bits.
    Codes(Codes),
}

/// A matrix inside a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Rows.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Distance between rows, in elements.
    pub k_stride: usize,
    /// Distance between columns, in elements.
    pub n_stride: usize,
}

/// A constant and its layout.
#[derive(Clone, Debug)]
pub struct PackedConst {
    /// The constant.
    pub source: ConstData,
    /// The layout.
    pub packing: Packing,
}

impl PackedConst {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        let size = self.source.ty().dtype.size_bytes();
        match self.packing {
            Packing::Raw => self.source.bytes().len(),
            Packing::Panels(p) => p.len_bytes(size),
            Packing::Sparse(s) => s.len_bytes(),
            Packing::Codes(c) => c.len_bytes(),
        }
    }

    /// Fills `out`, which has [`PackedConst::len_bytes`] zero bytes.
    pub fn write(&self, out: &mut [u8]) {
        let (src, size) = (self.source.bytes(), self.source.ty().dtype.size_bytes());
        match self.packing {
            Packing::Raw => out.copy_from_slice(src),
            Packing::Panels(p) => p.write(src, size, out),
            Packing::Sparse(s) => s.write(src, out),
            Packing::Codes(c) => c.write(src, out),
        }
    }
}

impl Program {
    /// The program with the functions that backends do not have spelled out in arithmetic, and with turns of loops side by side where asked for.
    ///
    /// # Errors
    /// Device code with a function that is not known for its type.
    pub fn expanded(&self) -> Result<Program, CodegenError> {
        let mut p = self.clone();
        for k in &mut p.kernels {
            match k.block {
                None => {
                    math::expand(k);
                    interleave::interleave(k);
                }
                Some(_) => {
                    math::expand_all(k).map_err(|function| CodegenError::NoFunction { function, kernel: k.name.clone() })?
                }
            }
        }
        Ok(p)
    }
}

impl fmt::Display for Program {
    /// Launches, then the loop IR of the kernels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for l in &self.launches {
            let args: Vec<String> = l.args.iter().map(|a| format!("{a:?}").to_lowercase()).collect();
            writeln!(f, "launch {}({})  // {}", self.kernels[l.kernel].name, args.join(", "), l.loc.path())?;
        }
        for k in &self.kernels {
            write!(f, "\n{k}")?;
        }
        Ok(())
    }
}
