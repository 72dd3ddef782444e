//! Compiled programs: code in memory, and its ways out. Nothing here depends on which backend made the code.

use std::path::Path;

use transc_runtime::abi::{LedgerEntry, Plan};
use transc_runtime::artefact::{Section, write, write_atomic};
use transc_runtime::mem::AlignedBytes;
use transc_runtime::{Model, Weights};

use crate::backend::{Backend, Code, Job, Text};
use crate::program::Program;
use crate::{CodegenError, Target, link, plan};

/// Options of code generation.
#[derive(Clone, Copy, Debug)]
pub struct EmitOptions {
    /// Who makes the code.
    pub backend: Backend,
    /// Effort of the optimiser, 0 to 3.
    pub opt_level: u8,
    /// Compiler threads; 0 means one per core.
    pub threads: usize,
}

impl Default for EmitOptions {
    fn default() -> Self {
        Self { backend: Backend::default(), opt_level: 3, threads: 0 }
    }
}

/// A program with the code of its kernels.
pub struct Compiled {
    program: Program,
    target: Target,
    options: EmitOptions,
    plan: Plan,
    code: Box<dyn Code>,
}

/// Compiles the kernels of a program side by side.
///
/// # Errors
/// A kernel that the backend refuses, or a backend that this build leaves out.
pub fn compile(program: &Program, target: &Target, options: &EmitOptions) -> Result<Compiled, CodegenError> {
    if target.is_device() && options.backend != Backend::Llvm {
        return Err(CodegenError::NotOffered { backend: options.backend.name(), what: "code for devices" });
    }
    let program = program.expanded()?;
    let code = options.backend.compile(&Job { program: &program, target, options })?;
    let plan = plan::plan(&program, target, options.backend);
    Ok(Compiled { program, target: target.clone(), options: *options, plan, code })
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

    /// Adds a fact for people, which travels with the code.
    pub fn set_fact(&mut self, name: &str, value: String) {
        self.plan.facts.insert(name.into(), value);
    }

    /// Who made the code.
    pub fn backend(&self) -> Backend {
        self.options.backend
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
    /// If the code cannot be loaded, or this processor lacks a feature.
    pub fn jit(&self) -> Result<Model, CodegenError> {
        self.code.load(self.plan.clone(), Weights::owned(self.weights()?))
    }

    /// Writes the shared library with everything in it, and its C header beside it.
    ///
    /// # Errors
    /// No linker, or a file that cannot be written.
    pub fn write_so(&self, path: &Path) -> Result<(), CodegenError> {
        let weights = self.weights()?;
        let parts = link::Parts {
            objects: &self.code.objects()?,
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
        let kernels = if self.target.is_device() {
            self.text(Text::Ptx)?.into_bytes()
        } else {
            let parts = link::Parts { objects: &self.code.objects()?, names: &self.names(), plan: None, weights: &[] };
            link::shared_object(&parts)?
        };
        let (plan, weights) = (self.plan.encode()?, self.weights()?);
        let sections = [(Section::Plan, plan.as_slice()), (Section::Kernels, &kernels), (Section::Weights, weights.as_slice())];
        Ok(write_atomic(path, |f| write(f, &sections))?)
    }

    /// One object file with all kernels.
    ///
    /// # Errors
    /// No linker.
    pub fn object(&self) -> Result<Vec<u8>, CodegenError> {
        link::relocatable(&self.code.objects()?)
    }

    /// A text of all kernels.
    ///
    /// # Errors
    /// A form that the backend does not offer; else as [`compile`].
    pub fn text(&self, form: Text) -> Result<String, CodegenError> {
        self.code.text(&Job { program: &self.program, target: &self.target, options: &self.options }, form)
    }
}
