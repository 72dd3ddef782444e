//! The contract between generated code and the runtime, shared with the compiler's back end.

mod expr;
mod plan;

pub use expr::Expr;
pub use plan::{Arg, Check, ConstSpec, DeviceCode, Launch, LedgerEntry, Plan, Symbol, Temp, TensorSpec, Work};

use serde::{Deserialize, Serialize};

/// Version of everything in this module; artefacts of another version are refused.
pub const ABI_VERSION: u32 = 3;

/// Identifies a [`ModelDescriptor`].
pub const DESCRIPTOR_MAGIC: u64 = u64::from_le_bytes(*b"transc\0D");

/// The name under which a compiled library exports its descriptor.
pub const DESCRIPTOR_SYMBOL: &str = "transc_model_descriptor";

/// A kernel does the units `lo..hi` of a launch. Units are independent: several threads call with disjoint ranges, in any order.
///
/// `bufs`: one pointer per argument. Temporaries and constants are 64-byte aligned, inputs and outputs aligned to their element size; only
/// outputs and temporaries may be written. `syms`: the values of the plan's symbols. `scratch`: the calling thread's block of at least the
/// launch's `scratch_bytes`, 64-byte aligned, with unspecified content. Returns 0, or a [`KernelStatus`] and stops at the first unit that fails.
pub type KernelFn = unsafe extern "C" fn(bufs: *const *mut u8, syms: *const i64, scratch: *mut u8, lo: i64, hi: i64) -> i32;

/// Why a kernel stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum KernelStatus {
    /// An index from data lies outside its tensor.
    IndexOutOfRange = 1,
    /// An integer division by zero.
    DivisionByZero = 2,
}

impl KernelStatus {
    /// What the number of a kernel means, in words.
    pub(crate) fn text(status: i32) -> &'static str {
        match status {
            s if s == Self::IndexOutOfRange as i32 => "an index from the data is out of range",
            s if s == Self::DivisionByZero as i32 => "an integer is divided by zero",
            _ => "the kernel stopped with an unknown status",
        }
    }
}

/// What a compiled library exports. Plan and weights are null in the kernels section of a `.tsc`.
#[repr(C)]
pub struct ModelDescriptor {
    /// [`DESCRIPTOR_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] of the compiler.
    pub abi_version: u32,
    /// Number of kernels.
    pub n_kernels: u32,
    /// The kernels.
    pub kernels: *const KernelFn,
    /// The encoded plan.
    pub plan: *const u8,
    /// Its length in bytes.
    pub plan_len: u64,
    /// The weights, 64-byte aligned.
    pub weights: *const u8,
    /// Their length in bytes.
    pub weights_len: u64,
}

// SAFETY: the descriptor and what it points to are constant data of a loaded library, only ever read.
unsafe impl Sync for ModelDescriptor {}

/// An element type, with the numbers of ONNX. Elements are little endian; `bool` is one byte, anything but 0 is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
#[repr(i32)]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    Bf16 = 16,
}

impl DType {
    /// All types with their names.
    pub const ALL: [(DType, &'static str); 13] = [
        (DType::F32, "f32"),
        (DType::U8, "u8"),
        (DType::I8, "i8"),
        (DType::U16, "u16"),
        (DType::I16, "i16"),
        (DType::I32, "i32"),
        (DType::I64, "i64"),
        (DType::Bool, "bool"),
        (DType::F16, "f16"),
        (DType::F64, "f64"),
        (DType::U32, "u32"),
        (DType::U64, "u64"),
        (DType::Bf16, "bf16"),
    ];

    /// Size of an element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::U8 | DType::I8 | DType::Bool => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::I64 | DType::F64 | DType::U64 => 8,
        }
    }

    /// ONNX's number.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The type with ONNX's number.
    pub fn from_number(n: i32) -> Option<Self> {
        Self::ALL.iter().map(|(d, _)| *d).find(|d| d.number() == n)
    }

    /// The name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(d, _)| *d == self).map_or("", |(_, n)| n)
    }
}
