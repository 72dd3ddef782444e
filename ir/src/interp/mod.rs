//! The reference interpreter: the numeric ground truth of both IRs.

mod tensor;

pub use tensor::Tensor;

use crate::tensor::ConstPool;
use crate::types::{DimError, Symbol};

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
}

/// What an evaluation sees besides its operands.
pub struct EvalCx<'a> {
    /// The constants of the module.
    pub consts: &'a ConstPool,
    /// The values of the symbols.
    pub symbols: &'a dyn Fn(&Symbol) -> Option<i64>,
}
