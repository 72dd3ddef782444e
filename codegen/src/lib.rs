//! From tensor IR to code: schedules, kernel templates, lowering to loops, and the LLVM back end.
//!
//! Lowering lives here and not among the passes, because it needs templates, and templates know the target; the passes do not.
#![deny(clippy::print_stdout, reason = "stdout carries results only")]

#[cfg(feature = "llvm-out")]
mod compiled;
mod error;
#[cfg(feature = "llvm-out")]
mod link;
#[cfg(feature = "llvm-out")]
mod llvm;
pub mod lower;
pub mod math;
#[cfg(feature = "llvm-out")]
mod plan;
mod program;
#[cfg(feature = "llvm-out")]
mod scratch;
pub mod simulate;
mod sparse;
mod target;
pub mod template;

#[cfg(feature = "llvm-out")]
pub use compiled::{Compiled, EmitOptions, compile};
pub use error::CodegenError;
#[cfg(feature = "llvm-out")]
pub use llvm::version as llvm_version;
pub use program::{Arg, Launch, LayerChoice, Matrix, PackedConst, Packing, Program};
pub use sparse::{Sparse, SparsePart};
pub use target::Target;
