//! The MLIR backend: a kernel goes through MLIR's own passes to the LLVM dialect, and from there into an LLVM module, which the LLVM
//! backend turns into code.

use std::cell::RefCell;
use std::rc::Rc;

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context as LlvmContext;
use inkwell::module::Module as LlvmModule;
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::ir::operation::OperationLike;
use melior::pass::PassManager;
use melior::utility::{parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes};
use transc_ir::loops::Kernel;

use super::{kernel, translate};
use crate::Target;

/// From loops on memrefs to the LLVM dialect. The order matters: what expands to `arith` comes first, functions last.
const PIPELINE: &str = "builtin.module(\
    arith-expand{include-bf16=true},\
    convert-scf-to-cf,\
    convert-math-to-llvm,\
    convert-math-to-libm,\
    convert-vector-to-llvm,\
    finalize-memref-to-llvm,\
    convert-arith-to-llvm,\
    convert-index-to-llvm,\
    convert-cf-to-llvm,\
    convert-func-to-llvm,\
    reconcile-unrealized-casts)";

/// Name of the function that computes; the one with the kernel's name calls it.
const INNER: &str = "body";

/// A fresh context without threads of its own: kernels are compiled side by side already.
fn context() -> Context {
    register_all_passes();
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    let context = Context::new_with_registry(&registry, false);
    register_all_llvm_translations(&context);
    context
}

/// Runs `f` with a place where MLIR's complaints end up; they are the error if it gives nothing.
fn complaining<T>(context: &Context, f: impl FnOnce() -> Option<T>) -> Result<T, String> {
    let said = Rc::new(RefCell::new(String::new()));
    let to = Rc::clone(&said);
    let handler = context.attach_diagnostic_handler(move |d| {
        let mut to = to.borrow_mut();
        if !to.is_empty() {
            to.push_str("; ");
        }
        to.push_str(&d.to_string());
        true
    });
    let result = f();
    context.detach_diagnostic_handler(handler);
    result.ok_or_else(|| said.take())
}

/// Checks a module with MLIR's verifier.
///
/// # Errors
/// What MLIR says against it.
pub(super) fn verify(code: &str) -> Result<(), String> {
    let context = context();
    complaining(&context, || Module::parse(&context, code).filter(|m| m.as_operation().verify()).map(|_| ()))
}

/// A kernel as an LLVM module, not optimised yet.
pub(crate) fn module<'c>(llvm: &'c LlvmContext, k: &Kernel, target: &Target) -> Result<LlvmModule<'c>, String> {
    let width = target.lanes() * 32;
    let vectors = format!("[\"prefer-vector-width\", \"{width}\"], [\"min-legal-vector-width\", \"{width}\"]");
    let inner = format!("attributes {{llvm.linkage = #llvm.linkage<internal>, passthrough = [\"nounwind\", {vectors}]}} ");
    let outer = format!("attributes {{passthrough = [\"nounwind\", {vectors}]}} ");
    let text = format!("module {{\n{}{}}}\n", kernel::kernel(k, INNER, &inner), kernel::entry(k, INNER, &outer));
    let context = context();
    let module = complaining(&context, || {
        let mut module = Module::parse(&context, &text)?;
        let manager = PassManager::new(&context);
        parse_pass_pipeline(manager.as_operation_pass_manager(), PIPELINE).ok()?;
        manager.run(&mut module).ok()?;
        translate::module(llvm, &module)
    });
    let module = module.map_err(|e| format!("{e}\n{text}"))?;
    // A memref arrives in five parts, of which the second is read; buffers of one kernel do not overlap.
    if let Some(f) = module.get_function(INNER) {
        let noalias = llvm.create_enum_attribute(Attribute::get_named_enum_kind_id("noalias"), 0);
        for i in 0..(k.bufs.len() + k.locals.len() + 1) as u32 {
            f.add_attribute(AttributeLoc::Param(5 * i + 1), noalias);
        }
    }
    Ok(module)
}
