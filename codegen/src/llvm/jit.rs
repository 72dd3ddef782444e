//! Loading objects into this process with ORC's LLJIT. The only unsafe code of this crate.

use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::Arc;

use llvm_sys::core::{LLVMCreateMemoryBufferWithMemoryRangeCopy, LLVMDisposeMessage};
use llvm_sys::error::{LLVMErrorRef, LLVMGetErrorMessage};
use llvm_sys::orc2::lljit::{
    LLVMOrcCreateLLJIT, LLVMOrcDisposeLLJIT, LLVMOrcLLJITAddObjectFile, LLVMOrcLLJITGetGlobalPrefix, LLVMOrcLLJITGetMainJITDylib,
    LLVMOrcLLJITLookup, LLVMOrcLLJITRef,
};
use llvm_sys::orc2::{LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess, LLVMOrcJITDylibAddGenerator};
use transc_runtime::abi::{KernelFn, Plan};
use transc_runtime::{Model, Weights};

use crate::CodegenError;

/// Code in this process; freed when dropped.
struct Code {
    jit: LLVMOrcLLJITRef,
}

// SAFETY: LLJIT locks internally; after loading, this handle is only used to free the code, once.
unsafe impl Send for Code {}
// SAFETY: as above; shared references offer no operation.
unsafe impl Sync for Code {}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: `jit` was made by `LLVMOrcCreateLLJIT` and is disposed of once. Users of the kernels keep this value alive.
        let error = unsafe { LLVMOrcDisposeLLJIT(self.jit) };
        let _ = check(error);
    }
}

fn check(error: LLVMErrorRef) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is consumed by `LLVMGetErrorMessage`, whose message is a C string to be disposed of.
    unsafe {
        let message = LLVMGetErrorMessage(error);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        Err(text)
    }
}

/// A model whose kernels are the named symbols of objects.
pub(crate) fn model(plan: Plan, objects: &[Vec<u8>], names: &[String], weights: Weights) -> Result<Model, CodegenError> {
    let (code, kernels) = load(objects, names).map_err(|message| CodegenError::Backend { kernel: String::new(), message })?;
    // SAFETY: plan and kernels come from one program: the emitter keeps the contract for the plan's buffers. `code` keeps the kernels valid.
    Ok(unsafe { Model::from_parts(plan, kernels, weights, Arc::new(code)) }?)
}

/// A model whose kernels are a PTX program.
pub(crate) fn device_model(plan: Plan, ptx: String, weights: Weights) -> Result<Model, CodegenError> {
    // SAFETY: plan and kernels come from one program: the emitter keeps the contract for the plan's buffers.
    Ok(unsafe { Model::from_device(plan, ptx, weights) }?)
}

/// Loads objects and looks up a kernel by each name.
fn load(objects: &[Vec<u8>], names: &[String]) -> Result<(Code, Vec<KernelFn>), String> {
    inkwell::targets::Target::initialize_x86(&inkwell::targets::InitializationConfig::default());
    let mut jit = ptr::null_mut();
    // SAFETY: a null builder means the defaults; `jit` receives the result.
    check(unsafe { LLVMOrcCreateLLJIT(&raw mut jit, ptr::null_mut()) })?;
    let code = Code { jit };
    // SAFETY: the main library lives as long as the JIT.
    let library = unsafe { LLVMOrcLLJITGetMainJITDylib(jit) };
    let mut generator = ptr::null_mut();
    // SAFETY: no filter; `generator` receives the result, and the library takes it over.
    unsafe {
        let prefix = LLVMOrcLLJITGetGlobalPrefix(jit);
        check(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(&raw mut generator, prefix, None, ptr::null_mut()))?;
        LLVMOrcJITDylibAddGenerator(library, generator);
    }
    for object in objects {
        // SAFETY: the buffer is a copy of `object`, and the JIT takes it over.
        check(unsafe {
            let buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(object.as_ptr().cast(), object.len(), c"kernel".as_ptr());
            LLVMOrcLLJITAddObjectFile(jit, library, buffer)
        })?;
    }
    let mut kernels = Vec::with_capacity(names.len());
    for name in names {
        let symbol = CString::new(name.as_str()).map_err(|e| e.to_string())?;
        let mut address = 0;
        // SAFETY: `address` receives the result.
        check(unsafe { LLVMOrcLLJITLookup(jit, &raw mut address, symbol.as_ptr()) })?;
        // SAFETY: the symbol is a kernel that the emitter defined with exactly this signature.
        kernels.push(unsafe { std::mem::transmute::<usize, KernelFn>(address as usize) });
    }
    Ok((code, kernels))
}
