//! The plan of a compiled model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ABI_VERSION, DType, Expr};
use crate::Error;

/// A symbolic dim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Name.
    pub name: String,
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub dims: Vec<Expr>,
}

/// A buffer between launches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Temp {
    /// Size.
    pub size_bytes: Expr,
}

/// A packed constant inside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstSpec {
    /// First byte, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arg {
    /// An input of the model.
    Input(u32),
    /// An output of the model.
    Output(u32),
    /// A buffer between launches.
    Temp(u32),
    /// A packed constant.
    Const(u32),
}

/// One call of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Position in the kernel table.
    pub kernel: u32,
    /// Arguments in the order of the kernel's parameters.
    pub args: Vec<Arg>,
    /// Number of independent units.
    pub extent: Expr,
    /// Estimated nanoseconds on one thread.
    pub cost_ns: Expr,
    /// Scratch memory per thread.
    pub scratch_bytes: Expr,
    /// The user's node.
    pub node: String,
}

/// Two expressions that must be equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Left side.
    pub lhs: Expr,
    /// Right side.
    pub rhs: Expr,
    /// The condition in words.
    pub message: String,
}

/// A lossy step that the model was compiled with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Where.
    pub site: String,
    /// Which codec.
    pub codec: String,
    /// Its parameters.
    pub parameters: String,
    /// Measured error on the calibration inputs.
    pub error: Option<f64>,
}

/// Everything that a session needs besides code and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`ABI_VERSION`] of the compiler.
    pub abi_version: u32,
    /// Name of the model.
    pub name: String,
    /// Version of the compiler.
    pub producer: String,
    /// Processor features that the code uses, as Rust names them.
    pub features: Vec<String>,
    /// Symbolic dims.
    pub symbols: Vec<Symbol>,
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
    /// Buffers between launches.
    pub temps: Vec<Temp>,
    /// Packed constants.
    pub consts: Vec<ConstSpec>,
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// Conditions on the dims.
    pub checks: Vec<Check>,
    /// Lossy steps.
    pub ledger: Vec<LedgerEntry>,
    /// Facts of the compilation for people.
    pub facts: BTreeMap<String, String>,
}

impl Plan {
    /// The bytes of the artefact's section.
    ///
    /// # Errors
    /// Never for a plan made by the compiler.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        postcard::to_allocvec(self).map_err(|e| Error::BadPlan(e.to_string()))
    }

    /// Reads [`Plan::encode`]'s bytes.
    ///
    /// # Errors
    /// Bytes that are not a plan of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (found, _) = postcard::take_from_bytes::<u32>(bytes).map_err(|e| Error::BadPlan(e.to_string()))?;
        if found != ABI_VERSION {
            return Err(Error::Version { found, ours: ABI_VERSION });
        }
        postcard::from_bytes(bytes).map_err(|e| Error::BadPlan(e.to_string()))
    }

    /// The name of a symbol.
    pub fn symbol_name(&self, i: u32) -> String {
        self.symbols.get(i as usize).map_or_else(String::new, |s| s.name.clone())
    }

    /// `f32[batch,seq]`.
    pub fn type_text(&self, spec: &TensorSpec) -> String {
        let dims: Vec<String> = spec.dims.iter().map(|e| e.display(&|i| self.symbol_name(i))).collect();
        format!("{}[{}]", spec.dtype.name(), dims.join(","))
    }

    /// Checks every index and range, so that running cannot leave a table.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self, n_kernels: usize, weights_len: usize) -> Result<(), Error> {
        let bad = |what: String| Err(Error::BadPlan(what));
        let n = self.symbols.len();
        let exprs = self.inputs.iter().chain(&self.outputs).flat_map(|t| &t.dims);
        let exprs = exprs.chain(self.temps.iter().map(|t| &t.size_bytes));
        let exprs = exprs.chain(self.launches.iter().flat_map(|l| [&l.extent, &l.cost_ns, &l.scratch_bytes]));
        let mut exprs = exprs.chain(self.checks.iter().flat_map(|c| [&c.lhs, &c.rhs]));
        if !exprs.all(|e| e.valid(n)) {
            return bad("an expression is too deep or names an unknown symbol".into());
        }
        for c in &self.consts {
            let end = c.offset.checked_add(c.len_bytes);
            if c.offset % 64 != 0 || end.is_none_or(|e| e > weights_len as u64) {
                return bad("a constant lies outside the weights".into());
            }
        }
        for l in &self.launches {
            let inside = |a: &Arg| match *a {
                Arg::Input(i) => (i as usize) < self.inputs.len(),
                Arg::Output(i) => (i as usize) < self.outputs.len(),
                Arg::Temp(i) => (i as usize) < self.temps.len(),
                Arg::Const(i) => (i as usize) < self.consts.len(),
            };
            if l.kernel as usize >= n_kernels || !l.args.iter().all(inside) {
                return bad(format!("the launch of `{}` names something that does not exist", l.node));
            }
        }
        Ok(())
    }
}
