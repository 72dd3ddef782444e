//! Diagnostics: what every phase reports, in one shape.

/// Whose fault an error is; the process exit code of the command line follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// Valid, but transc does not support it.
    Unsupported = 3,
    /// Invalid or refused input.
    Invalid = 4,
    /// A verification, comparison or accuracy budget failed.
    Verify = 5,
    /// A limit was reached.
    Limit = 6,
    /// A missing file, device or instruction set, a full disk.
    Environment = 7,
    /// A bug in transc.
    Bug = 70,
}

/// The user's node that a diagnostic is about.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// The file, as the user named it; empty when not known.
    pub file: String,
    /// Path of the node in the model.
    pub node: String,
    /// Operator and version, such as `Add, opset 17`; empty when not known.
    pub op: String,
}

/// One error, warning or remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, such as `T0212`.
    pub code: &'static str,
    /// Whose fault it is.
    pub fault: Fault,
    /// One sentence.
    pub message: String,
    /// Where.
    pub place: Option<Place>,
    /// What the user can do; may be empty.
    pub help: String,
}

/// An error type that can be shown to a user.
pub trait Diagnose: std::error::Error {
    /// The error as diagnostics, one per problem found in the phase.
    fn diagnostics(&self) -> Vec<Diagnostic>;
}
