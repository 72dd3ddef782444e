//! Compiled programs: code in memory, and its ways out.

use std::path::Path;

use rayon::prelude::*;
use transc_runtime::abi::{LedgerEntry, Plan};
use transc_runtime::artefact::{Section, write, write_atomic};
use transc_runtime::mem::AlignedBytes;
use transc_runtime::{Model, Weights};

use crate::llvm::{self, Form};
use crate::program::Program;
use crate::{CodegenError, Target, link, plan};

/// Options of code generation.
#[derive(Clone, Copy, Debug)]
pub struct EmitOptions {
    /// Effort of the optimiser, 0 to 3.
    pub opt_level: u8,
    /// Compiler threads; 0 means one per core.
    pub threads: usize,
}

impl Default for EmitOptions {
    fn default() -> Self {
        Self { opt_level: 3, threads: 0 }
    }
}

/// A program with the objects of its kernels.
pub struct Compiled {
    program: Program,
    target: Target,
    options: EmitOptions,
    plan: Plan,
    objects: Vec<Vec<u8>>,
}

/// Compiles the kernels of a program, side by side, one LLVM context each.
///
/// # Errors
/// A kernel that LLVM refuses.
pub fn compile(program: &Program, target: &Target, options: &EmitOptions) -> Result<Compiled, CodegenError> {
    let program = program.expanded();
    let objects = per_kernel(&program, target, options, Form::Object)?;
    let plan = plan::plan(&program, target);
    Ok(Compiled { program, target: target.clone(), options: *options, plan, objects })
}

fn per_kernel(p: &Program, target: &Target, options: &EmitOptions, form: Form) -> Result<Vec<Vec<u8>>, CodegenError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let pool = pool.map_err(|e| CodegenError::Backend { kernel: String::new(), message: e.to_string() })?;
    pool.install(|| p.kernels.par_iter().map(|k| llvm::compile_kernel(k, target, options.opt_level, form)).collect())
}

impl Compiled {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Replaces the ledger of lossy steps, which travels with the code.
    pub fn set_ledger(&mut self, ledger: Vec<LedgerEntry>) {
        self.plan.ledger = ledger;
    }

    fn names(&self) -> Vec<String> {
        self.program.kernels.iter().map(|k| k.name.clone()).collect()
    }

    fn weights(&self) -> Result<AlignedBytes, CodegenError> {
        let mut bytes = AlignedBytes::zeroed(plan::weights_len(&self.program))?;
        plan::write_weights(&self.program, bytes.as_mut_slice());
        Ok(bytes)
    }

    /// The model in this process.
    ///
    /// # Errors
    /// If LLVM cannot load the code, or this processor lacks a feature.
    pub fn jit(&self) -> Result<Model, CodegenError> {
        llvm::model(self.plan.clone(), &self.objects, &self.names(), Weights::owned(self.weights()?))
    }

    /// Writes the shared library with everything in it, and its C header beside it.
    ///
    /// # Errors
    /// No linker, or a file that cannot be written.
    pub fn write_so(&self, path: &Path) -> Result<(), CodegenError> {
        let weights = self.weights()?;
        let parts = link::Parts {
            objects: &self.objects,
            names: &self.names(),
            plan: Some(&self.plan.encode()?),
            weights: weights.as_slice(),
        };
        let library = link::shared_object(&parts)?;
        drop(weights);
        write_atomic(path, |f| std::io::Write::write_all(f, &library))?;
        let name = path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
        let header = transc_runtime::header::c_header(&self.plan, &name);
        Ok(write_atomic(&path.with_extension("h"), |f| std::io::Write::write_all(f, header.as_bytes()))?)
    }

    /// Writes the artefact.
    ///
    /// # Errors
    /// No linker, or a file that cannot be written.
    pub fn write_tsc(&self, path: &Path) -> Result<(), CodegenError> {
        let kernels =
            link::shared_object(&link::Parts { objects: &self.objects, names: &self.names(), plan: None, weights: &[] })?;
        let (plan, weights) = (self.plan.encode()?, self.weights()?);
        let sections = [(Section::Plan, plan.as_slice()), (Section::Kernels, &kernels), (Section::Weights, weights.as_slice())];
        Ok(write_atomic(path, |f| write(f, &sections))?)
    }

    /// One object file with all kernels.
    ///
    /// # Errors
    /// No linker.
    pub fn object(&self) -> Result<Vec<u8>, CodegenError> {
        link::relocatable(&self.objects)
    }

    fn text(&self, form: Form) -> Result<String, CodegenError> {
        let parts = per_kernel(&self.program, &self.target, &self.options, form)?;
        Ok(parts.iter().map(|b| String::from_utf8_lossy(b)).collect::<Vec<_>>().join("\n"))
    }

    /// The optimised LLVM IR of all kernels.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn llvm_ir(&self) -> Result<String, CodegenError> {
        self.text(Form::Ir)
    }

    /// The assembly of all kernels.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn asm(&self) -> Result<String, CodegenError> {
        self.text(Form::Assembly)
    }
}
