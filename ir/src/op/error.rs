//! Type errors of ops.

/// An op does not take operands of these types. The message is for the author of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    /// Stable code, `T02xx`.
    pub code: &'static str,
    /// One sentence with the types in question.
    pub message: String,
}

impl TypeError {
    /// T0201: wrong number of operands.
    pub fn arity(op: &str, want: &str, got: usize) -> Self {
        Self { code: "T0201", message: format!("`{op}` takes {want} operands, got {got}") }
    }

    /// T0202: an element type that the op does not take.
    pub fn dtype(op: &str, what: impl std::fmt::Display) -> Self {
        Self { code: "T0202", message: format!("`{op}` {what}") }
    }

    /// T0203: an axis outside the rank, or given twice.
    pub fn axis(op: &str, axis: impl std::fmt::Display, rank: usize) -> Self {
        Self { code: "T0203", message: format!("`{op}` has axis {axis}, outside a tensor of rank {rank} or repeated") }
    }

    /// T0204: a rank that the op does not take.
    pub fn rank(op: &str, what: impl std::fmt::Display) -> Self {
        Self { code: "T0204", message: format!("`{op}` {what}") }
    }

    /// T0205: dims that do not fit each other.
    pub fn dims(op: &str, what: impl std::fmt::Display) -> Self {
        Self { code: "T0205", message: format!("`{op}` {what}") }
    }

    /// T0212: operands that do not broadcast.
    pub fn broadcast(op: &str, a: impl std::fmt::Display, b: impl std::fmt::Display) -> Self {
        Self { code: "T0212", message: format!("`{op}` cannot broadcast {a} with {b}") }
    }
}
