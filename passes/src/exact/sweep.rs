//! What the rewriting passes share.

use transc_ir::op::TypeError;

use crate::context::PassCx;
use crate::error::PassError;

/// A type error of a rewrite is a bug of the running pass.
pub fn typed<T>(cx: &PassCx, r: Result<T, TypeError>) -> Result<T, PassError> {
    r.map_err(|source| PassError::Type { pass: cx.current.pass, source })
}
