//! Compiling in process.

use std::path::Path;
use std::time::{Duration, Instant};

use transc_codegen::{EmitOptions, Program, Target};
use transc_ir::Module;
use transc_passes::PassCx;
use transc_runtime::{Session, SessionOptions};

use crate::Error;

/// Compiles modules; a plain bundle of options.
#[derive(Clone, Debug)]
pub struct Compiler {
    target: Target,
    opt_level: u8,
    threads: usize,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    /// For this machine, full optimisation, one compiler thread per core.
    pub fn new() -> Self {
        Self { target: Target::host(), opt_level: 3, threads: 0 }
    }

    /// Sets the target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Sets the effort of the back end's optimiser, 0 to 3.
    #[must_use]
    pub fn opt_level(mut self, level: u8) -> Self {
        self.opt_level = level;
        self
    }

    /// Sets the number of compiler threads; 0 means one per core.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Compiles a module to machine code in memory.
    ///
    /// # Errors
    /// An op that has no lowering, a limit, or a bug in transc.
    pub fn compile(&self, module: &Module) -> Result<Compiled, Error> {
        self.compile_with(module, &mut PassCx::default(), &mut |_| {})
    }

    /// As [`Compiler::compile`], with a pass context that collects remarks, and a call at the start of each phase.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile_with(&self, module: &Module, cx: &mut PassCx, on_phase: &mut dyn FnMut(&str)) -> Result<Compiled, Error> {
        let mut phases = Vec::new();
        let mut clock = Instant::now();
        let mut lap = |name: &'static str| {
            phases.push((name, clock.elapsed()));
            clock = Instant::now();
        };
        on_phase("optimise");
        let mut optimised = module.clone();
        transc_passes::optimise(&mut optimised, cx)?;
        lap("optimise");
        on_phase("lower");
        let program = transc_codegen::lower::lower(&optimised, &self.target)?;
        lap("lower");
        on_phase("codegen");
        let options = EmitOptions { opt_level: self.opt_level, threads: self.threads };
        let code = transc_codegen::compile(&program, &self.target, &options)?;
        lap("codegen");
        Ok(Compiled { module: optimised, program, code, phases })
    }
}

/// A compiled model: run it here with [`Compiled::session`], or write it.
pub struct Compiled {
    /// The tensor IR after all passes.
    pub module: Module,
    /// The kernels and launches.
    pub program: Program,
    /// Names and durations of the compiler's phases.
    pub phases: Vec<(&'static str, Duration)>,
    code: transc_codegen::Compiled,
}

impl Compiled {
    /// The generated code.
    pub fn code(&self) -> &transc_codegen::Compiled {
        &self.code
    }

    /// A session in this process; `threads = 0` means one per core.
    ///
    /// # Errors
    /// If the code cannot be loaded, or this machine lacks an instruction set that it needs.
    pub fn session(&self, threads: usize) -> Result<Session, Error> {
        let model = self.code.jit()?;
        Ok(Session::new(model, SessionOptions { threads, ..SessionOptions::default() })?)
    }

    /// Writes a shared library with kernels, weights and runtime, and its C header beside it. Atomic.
    ///
    /// # Errors
    /// If there is no linker, or the file cannot be written.
    pub fn write_so(&self, path: &Path) -> Result<(), Error> {
        Ok(self.code.write_so(path)?)
    }

    /// Writes an artefact for [`transc_runtime::Model::open`]. Atomic.
    ///
    /// # Errors
    /// If there is no linker, or the file cannot be written.
    pub fn write_tsc(&self, path: &Path) -> Result<(), Error> {
        Ok(self.code.write_tsc(path)?)
    }
}
