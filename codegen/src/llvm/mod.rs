//! The LLVM backend: kernels to LLVM IR, objects, assembly, PTX, and code in this process.

mod device;
mod emit;
mod host;
mod jit;
mod machine;
mod ops;
mod target_inst;

use std::borrow::Cow;

use transc_runtime::abi::Plan;
use transc_runtime::{Model, Weights};

use crate::CodegenError;
use crate::backend::{Backend, Code, Job, Text};
pub(crate) use machine::module;
use machine::{Form, Source, compile_kernel};

/// Version of LLVM.
pub(crate) fn version() -> String {
    let (major, minor, patch) = inkwell::support::get_llvm_version();
    format!("{major}.{minor}.{patch}")
}

/// One object per kernel.
struct Objects {
    backend: Backend,
    source: Source,
    names: Vec<String>,
    objects: Vec<Vec<u8>>,
}

/// Compiles the kernels, in one LLVM context each, from the modules that `source` makes.
pub(crate) fn compile(job: &Job<'_>, backend: Backend, source: Source) -> Result<Box<dyn Code>, CodegenError> {
    if job.target.is_device() {
        return Ok(Box::new(device::Ptx { parts: per_kernel(job, source, Form::Assembly)? }));
    }
    let objects = per_kernel(job, source, Form::Object)?;
    let names = job.program.kernels.iter().map(|k| k.name.clone()).collect();
    Ok(Box::new(Objects { backend, source, names, objects }))
}

fn per_kernel(job: &Job<'_>, source: Source, form: Form) -> Result<Vec<Vec<u8>>, CodegenError> {
    job.per_kernel(|k| compile_kernel(source, k, job.target, job.options.opt_level, form))
}

impl Code for Objects {
    fn objects(&self) -> Result<Cow<'_, [Vec<u8>]>, CodegenError> {
        Ok(Cow::Borrowed(&self.objects))
    }

    fn load(&self, plan: Plan, weights: Weights) -> Result<Model, CodegenError> {
        jit::model(plan, &self.objects, &self.names, weights)
    }

    fn text(&self, job: &Job<'_>, form: Text) -> Result<String, CodegenError> {
        let form = match form {
            Text::LlvmIr => Form::Ir,
            Text::Asm => Form::Assembly,
            Text::Ptx => return Err(CodegenError::NoForm { form: "PTX", target: job.target.name() }),
            Text::Clif => return Err(form.refused(self.backend)),
        };
        let parts = per_kernel(job, self.source, form)?;
        Ok(parts.iter().map(|b| String::from_utf8_lossy(b)).collect::<Vec<_>>().join("\n"))
    }
}
