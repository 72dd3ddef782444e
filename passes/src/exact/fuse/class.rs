//! What each op may be in a region.

use transc_ir::op::Op;
use transc_ir::tensor::{Func, Value};

/// The part that an op plays in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Can be evaluated at one index.
    Pointwise,
    /// Has loops of its own and reads its operands through strided views only.
    StrictAnchor,
    /// Has loops of its own and evaluates its operands element by element.
    OpenAnchor,
}

/// The part that an op plays.
pub fn role(op: &Op) -> Role {
    match op {
        Op::Constant(_)
        | Op::Dims(_)
        | Op::Iota(_)
        | Op::Map(_)
        | Op::Broadcast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Pad(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::GatherNd(_)
        | Op::Quantize(_)
        | Op::Dequantize(_) => Role::Pointwise,
        Op::Contract(_)
        | Op::Conv(_)
        | Op::Attention(_)
        | Op::IntAttention(_)
        | Op::ScatterElements(_)
        | Op::ScatterNd(_)
        | Op::TopK(_)
        | Op::TokenPlan(_)
        | Op::TokenApply(_) => Role::StrictAnchor,
        Op::Reduce(_)
        | Op::ArgReduce(_)
        | Op::Scan(_)
        | Op::Window(_)
        | Op::Softmax(_)
        | Op::LayerNorm(_)
        | Op::RmsNorm(_)
        | Op::Rope(_)
        | Op::TokenSize(_)
        | Op::TokenUnmerge(_)
        | Op::Fused(_) => Role::OpenAnchor,
    }
}

/// True if maps may follow the op in its region: it gives each element of its one result once.
pub fn has_epilogue(op: &Op) -> bool {
    role(op) != Role::Pointwise
        && !matches!(
            op,
            Op::ScatterElements(_) | Op::ScatterNd(_) | Op::TopK(_) | Op::TokenPlan(_) | Op::TokenApply(_) | Op::Fused(_)
        )
}

/// True for an op whose register tiles make an epilogue free: it gets maps that two anchors could have.
pub fn is_dense(op: &Op) -> bool {
    matches!(op, Op::Contract(_) | Op::Conv(_))
}

/// What an operand of a node is rounded from, where the node's kernel does that: products round `f32` to `bf16` as they read.
pub fn unrounded(f: &Func, op: &Op, v: Value) -> Value {
    if matches!(op, Op::Contract(_) | Op::Attention(_)) { f.unrounded(v) } else { v }
}
