//! `fuse`: groups nodes into regions, each of which becomes one kernel, so that no value is written to memory needlessly.
//!
//! # The contract of a region
//!
//! After this pass the entry function holds `fused` nodes only; [`check_region`] checks what follows.
//!
//! * *Pointwise* ops can be evaluated at one index of their result: `map`, `broadcast`, `reshape`, `transpose`, `slice`, `concat`,
//!   `pad`, `gather`, `gather_elements`, `gather_nd`, `iota`, `dims`, `constant`, `quantize`, `dequantize`. Every other op is an *anchor*
//!   and needs loops of its own. A region has at most one anchor.
//! * Parameters are values in memory: inputs of the model and results of other regions. Constants stand in the body. A value is a
//!   parameter once, however often it is read.
//! * A region has one result, except that of `top_k`, whose results are those of the op. A region of pointwise ops computes its
//!   result index by index.
//! * *Prologue*: what the operands of the anchor are computed from.
//!   - `contract`, `conv`, `attention`, `scatter_*` and `top_k`, the strict anchors, read each operand through views that are strided
//!     over a parameter or a constant, and conversions that lose nothing; `contract` and `attention` also through one last rounding of `f32` to `bf16`.
//!     `attention` finds stride 1 (or 0) along the last axis.
//!   - The other anchors read any pointwise expression. It is meant to be evaluated once per element, `window` apart.
//! * *Epilogue*: what stands between the anchor's value and the result: `map`s, each the only user of the one before, all of the dims
//!   of the value. None behind `scatter_*` and `top_k`. The other operands of these maps are read at the same index; behind a strict
//!   anchor they are strided over a parameter or a constant, else any pointwise expression.
//! * Views behind an anchor stand in the regions that read it.

mod build;
mod check;
mod class;
mod merge;
mod plan;

pub use check::check_region;

use transc_ir::Module;
use transc_ir::op::Op;
use transc_ir::tensor::rewrite::compact;

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// True for an op that needs loops of its own.
pub(crate) fn is_anchor(op: &Op) -> bool {
    class::role(op) != class::Role::Pointwise
}

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    module.main = compact(module.take_main());
    merge::run(module, cx)?;
    let plan = plan::Plan::of(&module.main, &module.symbols);
    sweep::typed(cx, build::regions(module, &plan))
}
