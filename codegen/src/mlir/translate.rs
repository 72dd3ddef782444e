//! The one step for which no safe interface exists: from MLIR's LLVM dialect into a context of LLVM.

use inkwell::context::Context as LlvmContext;
use inkwell::module::Module as LlvmModule;
use melior::ir::Module;
use mlir_sys::mlirTranslateModuleToLLVMIR;

/// The LLVM module of an MLIR module in the LLVM dialect; `None` if it holds anything else.
pub(super) fn module<'c>(llvm: &'c LlvmContext, mlir: &Module<'_>) -> Option<LlvmModule<'c>> {
    // SAFETY: the operation is alive while `mlir` is borrowed and is only read. The context is alive for 'c; both bindings declare LLVM's
    // opaque types anew, and both are linked to one LLVM, so the pointers mean the same.
    let raw = unsafe { mlirTranslateModuleToLLVMIR(mlir.as_operation().to_raw(), llvm.raw().cast()) };
    if raw.is_null() {
        return None;
    }
    // SAFETY: a non-null result is a new module in `llvm`, owned by nobody else; the wrapper disposes of it and cannot outlive 'c.
    Some(unsafe { LlvmModule::new(raw.cast()) })
}
