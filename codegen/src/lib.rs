//! From tensor IR to code: schedules, kernel templates, lowering to loops, and the backends.
//!
//! Lowering lives here and not among the passes, because it needs templates, and templates know the target; the passes do not.
#![deny(clippy::print_stdout, reason = "stdout carries results only")]

mod backend;
#[cfg(feature = "clif-out")]
mod clif;
mod codes;
mod compiled;
mod error;
mod interleave;
mod link;
#[cfg(feature = "llvm-out")]
mod llvm;
pub mod lower;
pub mod math;
pub mod mlir;
mod panels;
mod plan;
pub mod probe;
mod program;
mod scratch;
pub mod simulate;
mod sparse;
mod target;
pub mod template;
pub mod tuning;

pub use backend::{Backend, Text};
pub use codes::{Codes, CodesPart};
pub use compiled::{Compiled, EmitOptions, compile, compile_all};
pub use error::CodegenError;
pub use panels::Panels;
pub use program::{Arg, Launch, LayerChoice, Matrix, PackedConst, Packing, Program, Tunable, Work};
pub use sparse::{Block, Sparse, SparsePart};
pub use target::Target;
pub use tuning::Tuning;
