//! The two intermediate representations of transc.
//!
//! * The **tensor IR** ([`tensor::Module`], [`op::Op`]): SSA over whole tensors with symbolic dims.
//! * The **loop IR** ([`loops::Kernel`]): structured loops over scalars and short vectors, target-neutral.
//!
//! This crate does no IO and has no unsafe code.
//!
//! # Semantics
//!
//! * A function is a list of nodes in evaluation order; operands precede users. Nodes are pure.
//! * Element-wise arithmetic on floats is IEEE-754 in the stated dtype, one rounding per scalar instruction;
//!   `f16` and `bf16` round after each instruction. Integers wrap. Integer division truncates toward zero; an integer
//!   division by zero and an index outside its tensor are errors, never undefined behaviour.
//! * Reductions and contractions accumulate in at least `f32` (the reference interpreter: `f64`; integers exactly).
//!   Compiled code may reassociate sums and contract multiply-add, nothing else; no value-changing fast-math flag is ever set.
//! * NaN propagates through `min`, `max` and max-reductions, as in ONNX Runtime and NumPy's `maximum`.
//! * Broadcasting is NumPy's, and only [`op::Map`] and [`op::Broadcast`] do it. Whether a dim is 1 is decided at compile
//!   time: a symbolic dim never broadcasts unless it is the constant 1.
//! * `Exact` rewrites keep every bit under the interpreter; `Reassoc` rewrites are equal over the reals.
#![deny(clippy::print_stdout, reason = "stdout carries results only")]
#![forbid(unsafe_code)]

pub mod diag;
pub mod interp;
pub mod loops;
pub mod op;
pub mod scalar;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use op::Op;
pub use tensor::{Builder, ConstId, Func, Loc, Module, Node, NodeId, Value};
pub use types::{DType, Dim, Symbol, TensorType};
