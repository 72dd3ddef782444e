//! The loop IR: one kernel is a structured program over scalars and short vectors.
//!
//! Target-neutral: loops, mutable registers, loads and stores with a count of active lanes for tails, matrix registers, and a small set of target
//! instructions whose meaning is stated here. A [`Kernel`] does the units `lo..hi` of its parallel `extent`; units are independent,
//! so any partition gives the same bits.
//!
//! A kernel with a `block` is code for a device: a unit is one block of threads that run the same code, share memory and meet at barriers.
//! [`verify`] checks a kernel's types and scopes; [`interp`] runs it.

mod build;
mod inst;
pub mod interp;
mod kernel;
mod print;
mod verify;

pub use build::KernelBuilder;
pub use inst::{Inst, MatrixDot, MatrixInst, Packs, ReduceOp, TargetInst, Ty};
pub use kernel::{Access, Block, Buf, BufParam, Kernel, LocalBuf, Matrix, Reg, Space, Status, Stmt, Unroll, Var};
pub use verify::verify;
