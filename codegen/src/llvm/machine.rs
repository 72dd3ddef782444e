//! From LLVM IR text to optimised code.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine, TargetTriple};
use transc_ir::loops::Kernel;

use super::emit;
use crate::{CodegenError, Target};

/// A form of generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// ELF object.
    Object,
    /// Assembly text.
    Assembly,
    /// Optimised LLVM IR text.
    Ir,
}

const HOST_TRIPLE: &str = "x86_64-unknown-linux-gnu";
const DEVICE_TRIPLE: &str = "nvptx64-nvidia-cuda";

fn machine(target: &Target, level: u8) -> Result<TargetMachine, String> {
    let triple = if target.is_device() {
        LlvmTarget::initialize_nvptx(&InitializationConfig::default());
        TargetTriple::create(DEVICE_TRIPLE)
    } else {
        LlvmTarget::initialize_x86(&InitializationConfig::default());
        TargetTriple::create(HOST_TRIPLE)
    };
    let llvm = LlvmTarget::from_triple(&triple).map_err(|e| e.to_string())?;
    let effort = if level == 0 { OptimizationLevel::Less } else { OptimizationLevel::Aggressive };
    llvm.create_target_machine(&triple, target.processor(), &target.llvm_features(), effort, RelocMode::PIC, CodeModel::Small)
        .ok_or_else(|| format!("LLVM has no machine for {}", target.name()))
}

/// Makes the module of a kernel in a context, not optimised yet.
pub(crate) type Source = for<'c> fn(&'c Context, &Kernel, &Target) -> Result<Module<'c>, String>;

/// The module of a kernel, straight from the loop IR.
pub(crate) fn module<'c>(context: &'c Context, kernel: &Kernel, target: &Target) -> Result<Module<'c>, String> {
    let text = emit::kernel(kernel, target);
    // LLVM reads a buffer that ends in a zero byte.
    let buffer = MemoryBuffer::create_from_memory_range_copy(format!("{text}\0").as_bytes(), "kernel");
    context.create_module_from_ir(buffer).map_err(|e| format!("{e}\n{text}"))
}

/// Compiles one kernel, in an LLVM context of its own, so that kernels can be compiled side by side.
pub(crate) fn compile_kernel(
    source: Source,
    kernel: &Kernel,
    target: &Target,
    level: u8,
    form: Form,
) -> Result<Vec<u8>, CodegenError> {
    let error = |message: String| CodegenError::Backend { kernel: kernel.name.clone(), message };
    let context = Context::create();
    let module = source(&context, kernel, target).map_err(error)?;
    module.set_name(&kernel.name);
    module.set_source_file_name(&kernel.name);
    let machine = machine(target, level).map_err(error)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(!target.is_device());
    options.set_loop_slp_vectorization(!target.is_device());
    let pipeline = format!("default<O{}>", level.max(1));
    module.run_passes(&pipeline, &machine, options).map_err(|e| error(e.to_string()))?;
    let bytes =
        |kind| machine.write_to_memory_buffer(&module, kind).map(|b| b.as_slice().to_vec()).map_err(|e| error(e.to_string()));
    match form {
        Form::Object => bytes(FileType::Object),
        Form::Assembly => bytes(FileType::Assembly),
        Form::Ir => Ok(module.print_to_string().to_string().into_bytes()),
    }
}
