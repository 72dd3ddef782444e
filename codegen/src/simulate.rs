//! Runs a program in the loop-IR interpreter: host code and device code alike, on any machine, with every access watched.

use transc_ir::interp::{self, EvalError, Tensor};
use transc_ir::loops::interp::{Buffer, LoopError, launch};
use transc_ir::types::{Dim, TensorType};

use crate::program::{Arg, Program};

/// Why a simulation has no result.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// Inputs that do not fit the program.
    #[error(transparent)]
    Inputs(#[from] EvalError),
    /// What a kernel does wrong.
    #[error("{kernel}, for node `{node}`: {error}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// The user's node.
        node: String,
        /// What happened.
        error: LoopError,
    },
    /// An output that no kernel filled.
    #[error("byte {byte} of output `{output}` is never written")]
    Unwritten {
        /// The output.
        output: String,
        /// Its first such byte.
        byte: usize,
    },
}

impl SimulateError {
    /// True if inputs are to blame, not the kernels.
    pub fn is_fault_of_data(&self) -> bool {
        matches!(self, Self::Inputs(_) | Self::Launch { error: LoopError::Stopped(_), .. })
    }
}

/// Runs all launches on inputs in the program's order.
///
/// # Errors
/// Inputs that do not fit, or the first thing that a kernel does wrong.
pub fn run(p: &Program, inputs: &[Tensor]) -> Result<Vec<Tensor>, SimulateError> {
    let params: Vec<(&str, &TensorType)> = p.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let symbols = interp::bind(&params, inputs)?;
    let env =
        |s: &transc_ir::Symbol| symbols.get(s).copied().or_else(|| p.symbols.get(s).filter(|r| r.min == r.max).map(|r| r.min));
    for (a, b, why) in &p.constraints {
        let (a, b) = (a.eval(&env).map_err(EvalError::from)?, b.eval(&env).map_err(EvalError::from)?);
        if a != b {
            return Err(EvalError::Shape(format!("{why}: {a} is not {b}")).into());
        }
    }
    let extents = |dims: &[Dim]| {
        let one = |d: &Dim| usize::try_from(d.eval(&env)?).map_err(|_| EvalError::Shape(format!("dim {d} is negative")));
        dims.iter().map(one).collect::<Result<Vec<usize>, EvalError>>()
    };
    let bytes = |t: &TensorType| Ok::<usize, EvalError>(Tensor::zeros(t.dtype, &extents(&t.dims)?)?.data.len());
    let mut memory: Vec<Buffer> = inputs.iter().map(|t| Buffer::new(t.data.clone())).collect();
    for t in p.outputs.iter().map(|(_, t)| t).chain(&p.temps) {
        memory.push(Buffer::undefined(bytes(t)?));
    }
    for c in &p.consts {
        let mut packed = vec![0; c.len_bytes()];
        c.write(&mut packed);
        memory.push(Buffer::new(packed));
    }
    let outputs = p.inputs.len();
    let temps = outputs + p.outputs.len();
    let consts = temps + p.temps.len();
    let values: Vec<i64> = p.symbols.keys().map(|s| env(s).unwrap_or(0)).collect();
    for l in &p.launches {
        let place = |a: &Arg| match *a {
            Arg::Input(i) => i,
            Arg::Output(i) => outputs + i,
            Arg::Temp(i) => temps + i,
            Arg::Const(i) => consts + i,
        };
        let args: Vec<usize> = l.args.iter().map(place).collect();
        let k = &p.kernels[l.kernel];
        launch(k, &values, &mut memory, &args).map_err(|error| {
            let node = l.loc.path().to_string();
            SimulateError::Launch { kernel: k.name.clone(), node, error }
        })?;
    }
    let out = p.outputs.iter().zip(&memory[outputs..]).map(|((name, t), b)| match b.first_undefined() {
        Some(byte) => Err(SimulateError::Unwritten { output: name.clone(), byte }),
        None => Ok(Tensor { dtype: t.dtype, dims: extents(&t.dims)?, data: b.data.clone() }),
    });
    out.collect()
}
