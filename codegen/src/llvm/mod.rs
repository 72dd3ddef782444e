//! The LLVM back end: kernels to LLVM IR, objects, assembly, and code in this process.

mod emit;
mod jit;
mod machine;
mod ops;

pub(crate) use jit::model;
pub(crate) use machine::{Form, compile_kernel};

/// Version of LLVM.
pub fn version() -> String {
    let (major, minor, patch) = inkwell::support::get_llvm_version();
    format!("{major}.{minor}.{patch}")
}
