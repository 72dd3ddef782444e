//! Compiling in process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transc_codegen::mlir::TensorMlir;
use transc_codegen::{Backend, EmitOptions, Program, Target};
use transc_ir::Module;
use transc_passes::{CutSpec, MergeSpec, PassCx, PassError, Precision, WeightSpec};
use transc_runtime::abi::LedgerEntry;
use transc_runtime::{Session, SessionOptions, Tensor};

use crate::Error;
use crate::calibrate::Outputs;

/// Compiles modules; a plain bundle of options.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The most demanding first; never empty.
    targets: Vec<Target>,
    backend: Backend,
    opt_level: u8,
    pub(crate) threads: usize,
    merge: Option<MergeSpec>,
    pub(crate) cuts: CutSpec,
    pub(crate) weights: WeightSpec,
    precision: Precision,
    pub(crate) budget: Option<f64>,
    pub(crate) calibration: Arc<Vec<(String, Tensor)>>,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    /// For this machine, the best code that this build can make, full optimisation, one compiler thread per core.
    pub fn new() -> Self {
        Self {
            targets: vec![Target::host()],
            backend: Backend::default(),
            opt_level: 3,
            threads: 0,
            merge: None,
            cuts: CutSpec::default(),
            weights: WeightSpec::default(),
            precision: Precision::Model,
            budget: None,
            calibration: Arc::default(),
        }
    }

    /// Sets the target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.targets = vec![target];
        self
    }

    /// Sets several targets, in the order in which a loader tries them ([`Target::list`]): the artefact holds code for each. An empty list
    /// changes nothing.
    #[must_use]
    pub fn targets(mut self, targets: Vec<Target>) -> Self {
        if !targets.is_empty() {
            self.targets = targets;
        }
        self
    }

    /// Sets who makes the code.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    pub(crate) fn chosen_backend(&self) -> Backend {
        self.backend
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

    /// Merges similar tokens of vision transformers, which changes results; see `docs/token-merging.md`.
    #[must_use]
    pub fn merge(mut self, spec: MergeSpec) -> Self {
        self.merge = Some(spec);
        self
    }

    /// Cuts units from layers, which changes results; see `docs/sparsity-and-quantisation.md`. What counts least is found on the inputs of
    /// [`Compiler::calibration`], or without these by the weights alone.
    #[must_use]
    pub fn cuts(mut self, spec: CutSpec) -> Self {
        self.cuts = spec;
        self
    }

    /// Compresses weights, which changes results; see `docs/sparsity-and-quantisation.md`. What must be observed for it, is on the inputs of
    /// [`Compiler::calibration`].
    #[must_use]
    pub fn weights(mut self, spec: WeightSpec) -> Self {
        self.weights = spec;
        self
    }

    /// Sets the element type that products by constant weights are computed in, which changes results if it is not that of the model; see
    /// `docs/bf16.md`.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Bounds the relative error of the outputs on the inputs of [`Compiler::calibration`]: the layers with the largest errors stay as they are until
    /// it is met.
    #[must_use]
    pub fn budget(mut self, error: f64) -> Self {
        self.budget = Some(error);
        self
    }

    /// Sets inputs on which the error of lossy steps is measured, for the ledger.
    #[must_use]
    pub fn calibration(mut self, inputs: Vec<(String, Tensor)>) -> Self {
        self.calibration = Arc::new(inputs);
        self
    }

    /// Compiles a module to machine code in memory.
    ///
    /// # Errors
    /// An op that has no lowering, a limit, or a bug in transc.
    pub fn compile(&self, module: &Module) -> Result<Compiled, Error> {
        self.compile_with(module, &mut PassCx::default(), &mut |_| {})
    }

    /// The model in MLIR, after the passes that stay on tensors.
    ///
    /// # Errors
    /// Every part of the model that has no form in MLIR, or a bug in transc.
    pub fn to_mlir(&self, module: &Module, cx: &mut PassCx) -> Result<TensorMlir, Error> {
        let mut optimised = module.clone();
        self.ask(module, cx)?;
        cx.weights = self.measured(module, &cx.cuts)?;
        let passes = transc_passes::pipeline::default();
        let on_tensors: Vec<_> = passes.into_iter().take_while(|p| *p != "fuse").collect();
        transc_passes::run(&mut optimised, &on_tensors, cx)?;
        Ok(transc_codegen::mlir::tensors(&optimised)?)
    }

    /// The kernels and launches of a module, without code.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn lower(&self, module: &Module) -> Result<Program, Error> {
        let mut cx = PassCx::default();
        self.ask(module, &mut cx)?;
        let weights = self.measured(module, &cx.cuts)?;
        Ok(transc_codegen::lower::lower(&self.optimise(module, weights, &mut cx)?, &self.targets[0])?)
    }

    /// Tells the passes what is asked for, but for the compression of weights.
    fn ask(&self, module: &Module, cx: &mut PassCx) -> Result<(), Error> {
        cx.merge.clone_from(&self.merge);
        cx.cuts = self.observed_cuts(module)?;
        cx.precision = self.precision;
        if self.targets.iter().any(Target::is_device) {
            cx.decompose.push("int_attention");
        }
        Ok(())
    }

    fn optimise(&self, module: &Module, weights: WeightSpec, cx: &mut PassCx) -> Result<Module, Error> {
        let mut optimised = module.clone();
        cx.weights = weights;
        transc_passes::optimise(&mut optimised, cx)?;
        Ok(optimised)
    }

    /// As [`Compiler::compile`], with a pass context that collects remarks, and a call at the start of each phase.
    ///
    /// # Errors
    /// As [`Compiler::compile`]; also a budget that cannot be met.
    pub fn compile_with(&self, module: &Module, cx: &mut PassCx, on_phase: &mut dyn FnMut(&str)) -> Result<Compiled, Error> {
        self.precision.beside(&self.weights).map_err(PassError::from)?;
        if !(self.weights.is_empty() && self.cuts.is_empty() || self.calibration.is_empty()) {
            on_phase("observe");
        }
        self.ask(module, cx)?;
        let weights = self.measured(module, &cx.cuts)?;
        match self.budget {
            Some(budget) => self.within(budget, module, weights, cx, on_phase),
            None => self.build(module, weights, &mut None, cx, on_phase),
        }
    }

    /// Compiles with what is known of each layer, and of the outputs on the calibration inputs without lossy steps.
    pub(crate) fn build(
        &self,
        module: &Module,
        weights: WeightSpec,
        exact: &mut Option<Outputs>,
        cx: &mut PassCx,
        on_phase: &mut dyn FnMut(&str),
    ) -> Result<Compiled, Error> {
        let mut phases = Vec::new();
        let mut clock = Instant::now();
        let mut lap = |name: &'static str| {
            phases.push((name, clock.elapsed()));
            clock = Instant::now();
        };
        on_phase("optimise");
        let optimised = self.optimise(module, weights, cx)?;
        lap("optimise");
        on_phase("lower");
        let (mut programs, mut code) = self.generate(&optimised, &mut || {
            lap("lower");
            on_phase("codegen");
        })?;
        lap("codegen");
        code.set_fact("coverage", transc_passes::coverage_text(&transc_passes::coverage(module, &cx.fused)));
        let (program, target) = programs.swap_remove(0);
        let tuned: Vec<String> = target.tuning().choices().map(|(p, s)| format!("{p}: {s}")).collect();
        if !tuned.is_empty() {
            code.set_fact("tuning", tuned.join(", "));
        }
        let mut compiled = Compiled { module: optimised, program, code, phases, error: None };
        if !cx.ledger.is_empty() {
            on_phase("calibrate");
            compiled.error = self.error(module, &compiled, exact)?;
            let entry = |l: &transc_passes::LedgerEntry| LedgerEntry {
                site: l.site.clone(),
                codec: l.codec.into(),
                parameters: l.parameters.clone(),
                error: compiled.error,
            };
            let ledger = cx.ledger.iter().map(entry).collect();
            compiled.code.set_ledger(ledger);
        }
        Ok(compiled)
    }

    /// The programs for all targets of a module after all passes, and their code. Calls `lowered` between the two.
    pub(crate) fn generate(
        &self,
        optimised: &Module,
        lowered: &mut dyn FnMut(),
    ) -> Result<(Vec<(Program, Target)>, transc_codegen::Compiled), Error> {
        let mut programs: Vec<(Program, Target)> = Vec::new();
        for target in self.targets.iter().map(|t| self.backend.target(t)) {
            if programs.iter().all(|(_, known)| *known != target) {
                programs.push((transc_codegen::lower::lower(optimised, &target)?, target));
            }
        }
        lowered();
        let options = EmitOptions { backend: self.backend, opt_level: self.opt_level, threads: self.threads };
        let code = transc_codegen::compile_all(&programs, &options)?;
        Ok((programs, code))
    }

    pub(crate) fn is_device(&self) -> bool {
        self.targets[0].is_device()
    }

    /// This compiler without lossy steps.
    #[must_use]
    pub fn without_lossy_steps(self) -> Self {
        let Self { targets, backend, opt_level, threads, .. } = self;
        Self { targets, backend, opt_level, threads, ..Self::new() }
    }

    /// The same for a machine that is here.
    pub(crate) fn exact(&self) -> Self {
        let targets = if self.is_device() { vec![Target::host()] } else { self.targets.clone() };
        Self { targets, ..self.clone() }.without_lossy_steps()
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
    /// How far lossy steps move the outputs on the calibration inputs: relative, in the mean square. `None` without either.
    pub error: Option<f64>,
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
        self.session_with(SessionOptions { threads, ..SessionOptions::default() })
    }

    /// A session in this process; on a device, if the options name one and the target is its.
    ///
    /// # Errors
    /// As [`Compiled::session`]; also a device that is not there or needs other code.
    pub fn session_with(&self, options: SessionOptions) -> Result<Session, Error> {
        Ok(Session::new(self.code.jit()?, options)?)
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
