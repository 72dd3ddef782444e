//! The interpreter of the loop IR: runs a kernel over buffers with the stated meaning of every instruction.
//!
//! It is the judge of kernels on a machine that cannot run them. Besides values it watches what hardware does not: accesses outside a buffer,
//! reads of memory that nothing wrote, two threads or units that touch one element without a barrier between them (one of them writing), and
//! barriers that not all threads of a block reach.
//!
//! The threads of a block advance together, statement by statement; those that are not in a branch or have left a loop are masked off. Since
//! every conflict between two barriers is reported whatever the order, this order stands for all.

mod machine;
mod memory;
mod ops;

use std::fmt;

pub use memory::Buffer;

use super::kernel::{Buf, Kernel, Status};
use crate::types::DimError;

/// Where in a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The unit, or the first of a call's share.
    pub unit: u32,
    /// The thread of the block.
    pub thread: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} thread {}", self.unit, self.thread)
    }
}

/// Why a launch has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoopError {
    /// The kernel does not verify.
    #[error("the kernel is malformed: {}", .0.join("; "))]
    Malformed(Vec<String>),
    /// Buffers or symbols that do not fit the kernel.
    #[error("{0}")]
    Arguments(String),
    /// An access outside its buffer.
    #[error("{buf}[{index}] is outside its {len} elements ({at})")]
    OutOfBounds {
        /// The buffer.
        buf: Buf,
        /// The first element of the access that is outside.
        index: i64,
        /// Elements of the buffer.
        len: usize,
        /// Who.
        at: Place,
    },
    /// A read of what nothing wrote.
    #[error("{buf}[{index}] is read before it is written ({at})")]
    Undefined {
        /// The buffer.
        buf: Buf,
        /// The element.
        index: usize,
        /// Who.
        at: Place,
    },
    /// Two accesses of one element with no order between them.
    #[error("{buf}[{index}] is touched by {first} and by {second}, one of which writes")]
    Race {
        /// The buffer.
        buf: Buf,
        /// The element.
        index: usize,
        /// The first.
        first: Place,
        /// The second.
        second: Place,
    },
    /// A barrier that some threads do not reach.
    #[error("{arrived} of {threads} threads of unit {unit} reach a barrier")]
    DivergentBarrier {
        /// The unit.
        unit: u32,
        /// Threads that do.
        arrived: usize,
        /// Threads of the block.
        threads: usize,
    },
    /// A division whose divisor nothing guards.
    #[error("integer division by zero ({0})")]
    DivisionByZero(Place),
    /// A size that has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// The kernel itself refused its data.
    #[error("the kernel stopped: {0:?}")]
    Stopped(Status),
}

/// Runs all units of a kernel. `args[i]` is the place in `memory` of the kernel's parameter `i`.
///
/// # Errors
/// A kernel or buffers that do not fit, or what the kernel does wrong.
pub fn launch(k: &Kernel, syms: &[i64], memory: &mut [Buffer], args: &[usize]) -> Result<(), LoopError> {
    super::verify(k).map_err(LoopError::Malformed)?;
    machine::Machine::new(k, syms, memory, args)?.run()
}
