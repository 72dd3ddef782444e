//! The loop IR: one kernel is a structured program over scalars and short vectors.
//!
//! Target-neutral: loops, mutable registers, loads and stores with a count of active lanes for tails, and a small set of target
//! instructions whose meaning is stated here. A [`Kernel`] does the units `lo..hi` of its parallel `extent`; units are independent,
//! so any partition gives the same bits.

mod build;
mod inst;
mod kernel;
mod print;

pub use build::KernelBuilder;
pub use inst::{Inst, ReduceOp, TargetInst, Ty};
pub use kernel::{Access, Block, Buf, BufParam, Kernel, LocalBuf, Reg, Status, Stmt, Unroll, Var};
