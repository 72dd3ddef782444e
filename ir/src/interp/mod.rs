//! The reference interpreter of the tensor IR: the numeric ground truth.
//!
//! Floats accumulate in `f64`, integers exactly; every result is rounded once to its dtype. It settles disputes; it is not fast.

pub mod scalar;
mod symbolic;
mod tensor;

pub use symbolic::{SymTensor, sym_eval};
pub use tensor::{Tensor, broadcast_strides, flat, for_each_index, strides};

use std::collections::BTreeMap;

use crate::tensor::{ConstPool, Func, Module};
use crate::types::{Atom, Dim, DimError, Symbol, TensorType};

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// An op that has no reference evaluation for this type.
    #[error("`{0}` has no reference evaluation for these types")]
    Unsupported(&'static str),
    /// An index outside its tensor.
    #[error("index {index} is outside an axis of extent {extent}")]
    IndexOutOfRange {
        /// The index.
        index: i64,
        /// The extent of the axis.
        extent: usize,
    },
    /// An integer division by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// A dim with no value, or a negative one.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// A tensor too large for memory, or operands that do not fit the op.
    #[error("{0}")]
    Shape(String),
    /// An error inside a model.
    #[error("node `{node}`: {error}")]
    AtNode {
        /// The user's node.
        node: String,
        /// What happened there.
        error: Box<EvalError>,
    },
}

/// What an evaluation sees besides its operands.
pub struct EvalCx<'a> {
    /// The constants of the module.
    pub consts: &'a ConstPool,
    /// The values of the symbols.
    pub symbols: &'a dyn Fn(&Symbol) -> Option<i64>,
}

impl EvalCx<'_> {
    /// The value of a dim as an extent.
    ///
    /// # Errors
    /// If it has none, or it is negative.
    pub fn extent(&self, d: &Dim) -> Result<usize, EvalError> {
        let v = d.eval(self.symbols)?;
        usize::try_from(v).map_err(|_| EvalError::Shape(format!("dim {d} is {v}")))
    }

    /// The values of dims as extents.
    ///
    /// # Errors
    /// As [`EvalCx::extent`].
    pub fn extents(&self, dims: &[Dim]) -> Result<Vec<usize>, EvalError> {
        dims.iter().map(|d| self.extent(d)).collect()
    }
}

/// Position of an index that may count from the end.
///
/// # Errors
/// If it is outside.
pub fn wrap_index(index: i64, extent: usize) -> Result<usize, EvalError> {
    let n = extent as i64;
    let i = if index < 0 { index + n } else { index };
    usize::try_from(i).ok().filter(|i| *i < extent).ok_or(EvalError::IndexOutOfRange { index, extent })
}

/// Evaluates a module on inputs in the order of its parameters.
///
/// # Errors
/// Inputs that do not fit the parameters, or an error of a node.
pub fn eval_module(m: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let params: Vec<(&str, &TensorType)> = m.main.params().iter().map(|(n, v)| (n.as_str(), m.main.ty(*v))).collect();
    let symbols = bind(&params, inputs)?;
    let cx = EvalCx { consts: &m.consts, symbols: &|s| symbols.get(s).copied() };
    for (a, b, why) in &m.constraints {
        if a.eval(cx.symbols)? != b.eval(cx.symbols)? {
            return Err(EvalError::Shape(format!("{why}: {a} is not {b}")));
        }
    }
    eval_func(&m.main, &inputs.iter().collect::<Vec<_>>(), &cx)
}

/// Symbol values from the dims of inputs for named parameters.
///
/// # Errors
/// Inputs that do not fit the parameters.
pub fn bind(params: &[(&str, &TensorType)], inputs: &[Tensor]) -> Result<BTreeMap<Symbol, i64>, EvalError> {
    if params.len() != inputs.len() {
        return Err(EvalError::Shape(format!("the model has {} inputs, got {}", params.len(), inputs.len())));
    }
    let mut known: BTreeMap<Symbol, i64> = BTreeMap::new();
    loop {
        let before = known.len();
        for ((_, ty), t) in params.iter().zip(inputs) {
            for (d, n) in ty.dims.iter().zip(&t.dims) {
                let mut unknown = Vec::new();
                d.symbols(&mut unknown);
                unknown.retain(|s| !known.contains_key(s));
                let [s] = unknown.as_slice() else { continue };
                // Affine in the one unknown: slope from two points.
                let at = |x: i64| d.eval(&|q| if q == s { Some(x) } else { known.get(q).copied() });
                let (zero, one) = (at(0)?, at(1)?);
                let is_affine = d.terms().iter().all(|(m, _)| m.iter().all(|a| matches!(a, Atom::Sym(_))));
                let slope = one - zero;
                if is_affine && slope != 0 && (*n as i64 - zero) % slope == 0 {
                    known.insert(s.clone(), (*n as i64 - zero) / slope);
                }
            }
        }
        if known.len() == before {
            break;
        }
    }
    for ((name, ty), t) in params.iter().zip(inputs) {
        let dims: Result<Vec<i64>, _> = ty.dims.iter().map(|d| d.eval(&|s| known.get(s).copied())).collect();
        if ty.dtype != t.dtype || dims? != t.dims.iter().map(|d| *d as i64).collect::<Vec<_>>() {
            return Err(EvalError::Shape(format!("input `{name}` expects {ty}, got {}", t.ty())));
        }
    }
    Ok(known)
}

/// Evaluates a function; values that are not needed any more are freed.
///
/// # Errors
/// The first error of a node.
pub fn eval_func(f: &Func, inputs: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
    let mut uses = f.use_counts();
    let mut values: Vec<Option<Tensor>> = vec![None; f.value_count()];
    for ((_, v), t) in f.params().iter().zip(inputs) {
        values[v.index()] = Some((*t).clone());
    }
    for (_, n) in f.nodes() {
        let operands: Vec<&Tensor> = n.operands.iter().filter_map(|v| values[v.index()].as_ref()).collect();
        let results = n.op.eval(&operands, cx).map_err(|e| match e {
            EvalError::AtNode { .. } => e,
            e => EvalError::AtNode { node: format!("{} ({})", n.loc.path(), n.op.mnemonic()), error: Box::new(e) },
        })?;
        for v in &n.operands {
            uses[v.index()] -= 1;
            if uses[v.index()] == 0 {
                values[v.index()] = None;
            }
        }
        for (v, t) in n.results.iter().zip(results) {
            values[v.index()] = Some(t);
        }
    }
    f.results()
        .iter()
        .map(|(_, v)| values[v.index()].clone().ok_or_else(|| EvalError::Shape("a result has no value".into())))
        .collect()
}
