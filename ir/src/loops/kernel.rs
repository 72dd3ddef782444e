//! Kernels, blocks and statements.

use std::fmt;

use super::inst::{Inst, MatrixInst, Ty};
use crate::types::{DType, Dim, Symbol};

macro_rules! handle {
    ($(#[$m:meta])* $name:ident, $prefix:literal) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

handle!(
    /// An immutable register, assigned once.
    Reg,
    "r"
);
handle!(
    /// A mutable register: accumulators and running values. Backends keep it in a machine register.
    Var,
    "v"
);

handle!(
    /// A matrix register: a small matrix that products are summed in. There are [`Matrix::COUNT`].
    Matrix,
    "m"
);

impl Matrix {
    /// How many a kernel may use.
    pub const COUNT: u32 = 8;
}

/// Memory that a kernel may touch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Buf {
    /// A buffer parameter.
    Param(u32),
    /// A block of scratch memory; see [`Kernel::locals`].
    Local(u32),
}

/// How a kernel uses a buffer parameter. Buffers of one kernel never overlap unless both are `Read`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Only loads.
    Read,
    /// Only stores; every element of the kernel's share is stored.
    Write,
    /// Loads and stores.
    ReadWrite,
}

/// A buffer parameter: row-major elements, 64-byte aligned at its start.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BufParam {
    /// Name for people.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// How it is used.
    pub access: Access,
}

/// Whose a scratch block is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// Of one thread.
    Thread,
    /// Of all threads of a block. Between two barriers an element is either read only, or touched by one thread.
    Shared,
}

/// A block of scratch memory, contents undefined at the start of a call; that of a thread is 64-byte aligned, that of a block 16-byte.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LocalBuf {
    /// Whose it is.
    pub space: Space,
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub len: Dim,
}

/// What a kernel returns when it cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
pub enum Status {
    /// An index from data lies outside its tensor.
    IndexOutOfRange = 1,
    /// An integer division by zero.
    DivisionByZero = 2,
}

/// Whether a loop is unrolled by the backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unroll {
    /// As the backend likes.
    Auto,
    /// Never; saves compile time in cold loops.
    No,
    /// Never, and there are few turns: what lives across the loop is not worth less than what lives in it.
    Few,
    /// Fully; the trip count must be constant.
    Full,
    /// This many turns side by side, instruction by instruction: long chains of dependent instructions overlap. Turns must not depend on each
    /// other, through memory or otherwise.
    Interleave(u8),
}

/// Statements in order.
pub type Block = Vec<Stmt>;

/// A statement.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stmt {
    /// Defines a register.
    Let(Reg, Inst),
    /// Assigns a mutable register.
    Set(Var, Reg),
    /// Stores a scalar or vector at element `index`; with `count` only the first `count` lanes.
    Store {
        /// To where.
        buf: Buf,
        /// First element.
        index: Reg,
        /// The value.
        value: Reg,
        /// Active lanes.
        count: Option<Reg>,
    },
    /// `for iv in (lo..hi).step_by(step)`, `step > 0`; the registers of the body are local to one turn.
    For {
        /// The loop variable, `i64`.
        iv: Reg,
        /// First value.
        lo: Reg,
        /// End, excluded.
        hi: Reg,
        /// Step.
        step: i64,
        /// Unrolling.
        unroll: Unroll,
        /// The body.
        body: Block,
    },
    /// A branch on a scalar `bool`.
    If {
        /// The condition.
        cond: Reg,
        /// If true.
        then: Block,
        /// If false.
        els: Block,
    },
    /// Ends the kernel with a status.
    Fail(Status),
    /// Waits for all threads of the block, whose writes before it are seen after it. Every thread reaches the same barriers.
    Barrier,
    /// Host code only: an instruction on matrix registers.
    Matrix(MatrixInst),
    /// A hint that the cache line at an element will be read soon; no effect on values. The address may lie outside the buffer.
    Prefetch {
        /// Buffer.
        buf: Buf,
        /// Element.
        index: Reg,
    },
}

impl Stmt {
    /// The statement with what `f` makes of the blocks in it.
    #[must_use]
    pub fn map_blocks(self, mut f: impl FnMut(Block) -> Block) -> Stmt {
        match self {
            Stmt::For { iv, lo, hi, step, unroll, body } => Stmt::For { iv, lo, hi, step, unroll, body: f(body) },
            Stmt::If { cond, then, els } => Stmt::If { cond, then: f(then), els: f(els) },
            other => other,
        }
    }
}

/// One kernel: the code of a launch. Registers and mutable registers are numbered per kernel; `regs` and `vars` give their types.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    /// Symbol name, unique in its program; from the schedule's `Display`.
    pub name: String,
    /// Buffer parameters.
    pub bufs: Vec<BufParam>,
    /// Symbols whose values the kernel may read, in the order in which the runtime passes them.
    pub syms: Vec<Symbol>,
    /// Scratch blocks.
    pub locals: Vec<LocalBuf>,
    /// Number of independent units.
    pub extent: Dim,
    /// Threads that do one unit together, for a device that runs a grid of thread blocks: a unit is a block, [`Inst::Lo`] its number. None:
    /// a call is one thread of the host and does a share of the units.
    pub block: Option<u32>,
    /// Types of the registers.
    pub regs: Vec<Ty>,
    /// Types of the mutable registers.
    pub vars: Vec<Ty>,
    /// Number of matrix registers, contents undefined at the start of a call.
    pub matrices: u32,
    /// The code.
    pub body: Block,
}

impl Kernel {
    /// The type of a register.
    pub fn reg_ty(&self, r: Reg) -> Ty {
        self.regs[r.0 as usize]
    }

    /// The type of a mutable register.
    pub fn var_ty(&self, v: Var) -> Ty {
        self.vars[v.0 as usize]
    }

    /// The element type of a buffer.
    pub fn buf_dtype(&self, b: Buf) -> DType {
        match b {
            Buf::Param(i) => self.bufs[i as usize].dtype,
            Buf::Local(i) => self.locals[i as usize].dtype,
        }
    }
}
