//! What the rewriting passes share.

use transc_ir::TensorType;
use transc_ir::op::TypeError;

use crate::context::PassCx;
use crate::error::PassError;

/// A type error of a rewrite is a bug of the running pass.
pub fn typed<T>(cx: &PassCx, r: Result<T, TypeError>) -> Result<T, PassError> {
    r.map_err(|source| PassError::Type { pass: cx.current.pass, source })
}

/// Size of a type without symbolic dims, in bytes.
pub fn static_bytes(t: &TensorType) -> Option<usize> {
    t.static_dims()?.iter().try_fold(t.dtype.size_bytes(), |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}
