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

/// A program with the code of its kernels, for one target or for several.
pub struct Compiled {
    /// The most demanding target first.
    parts: Vec<Part>,
    options: EmitOptions,
    weights: plan::Block,
}

/// The code for one target.
struct Part {
    program: Program,
    target: Target,
    plan: Plan,
    code: Box<dyn Code>,
}

impl Part {
    fn names(&self) -> impl Iterator<Item = String> {
        self.program.kernels.iter().map(|k| k.name.clone())
    }
}

/// Compiles the kernels of a program side by side.
///
/// # Errors
/// A kernel that the backend refuses, or a backend that this build leaves out.
pub fn compile(program: &Program, target: &Target, options: &EmitOptions) -> Result<Compiled, CodegenError> {
    compile_all(&[(program.clone(), target.clone())], options)
}

/// As [`compile`] for one model lowered for several targets, in the order in which a loader tries them.
///
/// # Errors
/// As [`compile`]; also a device beside other targets.
pub fn compile_all(programs: &[(Program, Target)], options: &EmitOptions) -> Result<Compiled, CodegenError> {
    if programs.len() > 1 && programs.iter().any(|(_, t)| t.is_device()) {
        return Err(CodegenError::MixedTargets);
    }
    let mut all = Compiled { parts: Vec::new(), options: *options, weights: plan::Block::default() };
    for (program, target) in programs {
        if target.is_device() && options.backend != Backend::Llvm {
            return Err(CodegenError::NotOffered { backend: options.backend.name(), what: "code for devices" });
        }
        if program.kernels.iter().any(|k| k.matrices > 0) && !options.backend.target(target).has_matrices() {
            return Err(CodegenError::NotOffered { backend: options.backend.name(), what: "matrix registers for this target" });
        }
        let mut program = program.expanded()?;
        if programs.len() > 1 {
            // The kernels of all targets stand side by side in one library.
            let prefix = target.name().replace('-', "_");
            program.kernels.iter_mut().for_each(|k| k.name = format!("{prefix}_{}", k.name));
        }
        let code = options.backend.compile(&Job { program: &program, target, options })?;
        let mut plan = plan::plan(&program, target, options.backend, all.weights.add(&program));
        if programs.len() > 1 {
            let names: Vec<&str> = programs.iter().map(|(_, t)| t.name()).collect();
            plan.facts.insert("targets".into(), names.join(", "));
        }
        all.parts.push(Part { program, target: target.clone(), plan, code });
    }
    Ok(all)
}

impl Compiled {
    /// The plan, for the most demanding target.
    pub fn plan(&self) -> &Plan {
        &self.parts[0].plan
    }

    /// Replaces the ledger of lossy steps, which travels with the code.
    pub fn set_ledger(&mut self, ledger: Vec<LedgerEntry>) {
        self.parts.iter_mut().for_each(|p| p.plan.ledger.clone_from(&ledger));
    }

    /// Adds a fact for people, which travels with the code.
    pub fn set_fact(&mut self, name: &str, value: String) {
        self.parts.iter_mut().for_each(|p| _ = p.plan.facts.insert(name.into(), value.clone()));
    }

    /// Who made the code.
    pub fn backend(&self) -> Backend {
        self.options.backend
    }

    fn names(&self) -> Vec<String> {
        self.parts.iter().flat_map(Part::names).collect()
    }

    fn objects(&self) -> Result<Vec<Vec<u8>>, CodegenError> {
        let mut all = Vec::new();
        for p in &self.parts {
            all.extend(p.code.objects()?.into_owned());
        }
        Ok(all)
    }

    /// The plans, one after the other.
    fn plans(&self) -> Result<Vec<u8>, CodegenError> {
        let mut all = Vec::new();
        for p in &self.parts {
            all.extend(p.plan.encode()?);
        }
        Ok(all)
    }

    fn weights(&self) -> Result<AlignedBytes, CodegenError> {
        let mut bytes = AlignedBytes::zeroed(self.weights.len())?;
        self.weights.write(bytes.as_mut_slice());
        Ok(bytes)
    }

    /// The model in this process, for the first target that this processor fits.
    ///
    /// # Errors
    /// If the code cannot be loaded, or this processor lacks a feature of every target.
    pub fn jit(&self) -> Result<Model, CodegenError> {
        let fits = |p: &&Part| p.target.features().iter().all(|f| transc_runtime::has_feature(f));
        // The last one says what is missing.
        let part = self.parts.iter().find(fits).unwrap_or(&self.parts[self.parts.len() - 1]);
        part.code.load(part.plan.clone(), Weights::owned(self.weights()?))
    }

    /// Writes the shared library with everything in it, and its C header beside it.
    ///
    /// # Errors
    /// No linker, or a file that cannot be written.
    pub fn write_so(&self, path: &Path) -> Result<(), CodegenError> {
        let weights = self.weights()?;
        let parts = link::Parts {
            objects: &self.objects()?,
            names: &self.names(),
            plan: Some(&self.plans()?),
            weights: weights.as_slice(),
        };
        let library = link::shared_object(&parts)?;
        drop(weights);
        write_atomic(path, |f| std::io::Write::write_all(f, &library))?;
        let name = path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
        let header = transc_runtime::header::c_header(self.plan(), &name);
        Ok(write_atomic(&path.with_extension("h"), |f| std::io::Write::write_all(f, header.as_bytes()))?)
    }

    /// Writes the artefact.
    ///
    /// # Errors
    /// No linker, or a file that cannot be written.
    pub fn write_tsc(&self, path: &Path) -> Result<(), CodegenError> {
        let kernels = if self.parts[0].target.is_device() {
            self.text(Text::Ptx)?.into_bytes()
        } else {
            let parts = link::Parts { objects: &self.objects()?, names: &self.names(), plan: None, weights: &[] };
            link::shared_object(&parts)?
        };
        let (plan, weights) = (self.plans()?, self.weights()?);
        let sections = [(Section::Plan, plan.as_slice()), (Section::Kernels, &kernels), (Section::Weights, weights.as_slice())];
        Ok(write_atomic(path, |f| write(f, &sections))?)
    }

    /// One object file with all kernels.
    ///
    /// # Errors
    /// No linker.
    pub fn object(&self) -> Result<Vec<u8>, CodegenError> {
        link::relocatable(&self.objects()?)
    }

    /// A text of all kernels.
    ///
    /// # Errors
    /// A form that the backend does not offer; else as [`compile`].
    pub fn text(&self, form: Text) -> Result<String, CodegenError> {
        let text = |p: &Part| p.code.text(&Job { program: &p.program, target: &p.target, options: &self.options }, form);
        let texts: Result<Vec<String>, CodegenError> = self.parts.iter().map(text).collect();
        Ok(texts?.join("\n"))
    }
}
