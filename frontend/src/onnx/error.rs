//! Why the import of one node fails.

use transc_ir::diag::Fault;
use transc_ir::op::TypeError;

use crate::Problem;

/// Why the import of one node fails; the importer adds the node.
#[derive(Debug)]
pub(super) enum OpError {
    /// Types that do not fit.
    Type(TypeError),
    /// Anything else, ready to report.
    Other(Box<Problem>),
    /// A symbolic dim was replaced: the node has to be built again.
    Retry,
}

pub(super) type Result<T> = std::result::Result<T, OpError>;

impl From<TypeError> for OpError {
    fn from(e: TypeError) -> Self {
        OpError::Type(e)
    }
}

impl From<Problem> for OpError {
    fn from(p: Problem) -> Self {
        OpError::Other(Box::new(p))
    }
}

/// A form of the operator that has no counterpart here.
pub(super) fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(Problem::new("T0302", Fault::Unsupported, message).into())
}

/// A form of the operator that has a counterpart only where symbolic dims are numbers, or of a narrower range.
pub(super) fn too_symbolic<T>(message: impl Into<String>) -> Result<T> {
    let problem = Problem::new("T0302", Fault::Unsupported, message);
    Err(problem.help("give the symbolic dims numbers or narrower ranges: `--dim NAME=N` or `--dim NAME=LO..HI`").into())
}

/// A value that must be known when the model is compiled, but depends on the inputs' contents.
pub(super) fn data_dependent<T>(what: &str) -> Result<T> {
    Err(Problem::new(
        "T0304",
        Fault::Unsupported,
        format!("{what} depends on the contents of an input, so shapes are not known before the model runs"),
    )
    .help("make it a constant of the model, or fix the input: `--set NAME=VALUE`")
    .into())
}

/// A node that breaks the rules of its operator.
pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(Problem::invalid("T0303", message).into())
}

/// A limit of the import.
pub(super) fn limit<T>(message: impl Into<String>) -> Result<T> {
    Err(Problem::limit("T0305", message).into())
}
