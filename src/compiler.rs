//! Compiling in process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transc_codegen::mlir::TensorMlir;
use transc_codegen::{Backend, EmitOptions, Program, Target};
use transc_ir::Module;
use transc_passes::{Int8, MergeSpec, PassCx, PassError, Range, WeightError, WeightSpec};
use transc_runtime::abi::LedgerEntry;
use transc_runtime::{Session, SessionOptions, Tensor};

use crate::Error;

/// Compiles modules; a plain bundle of options.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The most demanding first; never empty.
    targets: Vec<Target>,
    backend: Backend,
    opt_level: u8,
    threads: usize,
    merge: Option<MergeSpec>,
    weights: WeightSpec,
    calibration: Arc<Vec<(String, Tensor)>>,
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
            weights: WeightSpec::default(),
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

    /// Compresses weights, which changes results; see `docs/sparsity-and-quantisation.md`. Ranges for static codes are observed on the inputs
    /// of [`Compiler::calibration`].
    #[must_use]
    pub fn weights(mut self, spec: WeightSpec) -> Self {
        self.weights = spec;
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
        cx.merge.clone_from(&self.merge);
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
        Ok(transc_codegen::lower::lower(&self.optimise(module, &mut PassCx::default())?, &self.targets[0])?)
    }

    fn optimise(&self, module: &Module, cx: &mut PassCx) -> Result<Module, Error> {
        let mut optimised = module.clone();
        cx.merge.clone_from(&self.merge);
        cx.weights = WeightSpec { ranges: self.observe(module)?, ..self.weights.clone() };
        transc_passes::optimise(&mut optimised, cx)?;
        Ok(optimised)
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
        let optimised = self.optimise(module, cx)?;
        lap("optimise");
        on_phase("lower");
        let mut programs: Vec<(Program, Target)> = Vec::new();
        for target in self.targets.iter().map(|t| self.backend.target(t)) {
            if programs.iter().all(|(_, known)| *known != target) {
                programs.push((transc_codegen::lower::lower(&optimised, &target)?, target));
            }
        }
        lap("lower");
        on_phase("codegen");
        let options = EmitOptions { backend: self.backend, opt_level: self.opt_level, threads: self.threads };
        let mut code = transc_codegen::compile_all(&programs, &options)?;
        lap("codegen");
        code.set_fact("coverage", transc_passes::coverage_text(&transc_passes::coverage(module, &cx.fused)));
        let (program, target) = programs.swap_remove(0);
        let tuned: Vec<String> = target.tuning().choices().map(|(p, s)| format!("{p}: {s}")).collect();
        if !tuned.is_empty() {
            code.set_fact("tuning", tuned.join(", "));
        }
        let mut compiled = Compiled { module: optimised, program, code, phases };
        if !cx.ledger.is_empty() {
            on_phase("calibrate");
            let error = self.error(module, &compiled)?;
            let entry = |l: &transc_passes::LedgerEntry| LedgerEntry {
                site: l.site.clone(),
                codec: l.codec.into(),
                parameters: l.parameters.clone(),
                error,
            };
            compiled.code.set_ledger(cx.ledger.iter().map(entry).collect());
        }
        Ok(compiled)
    }

    fn is_device(&self) -> bool {
        self.targets[0].is_device()
    }

    /// This compiler without lossy steps, for a machine that is here.
    fn exact(&self) -> Self {
        let targets = if self.is_device() { vec![Target::host()] } else { self.targets.clone() };
        Self { targets, merge: None, weights: WeightSpec::default(), calibration: Arc::default(), ..self.clone() }
    }

    /// The ranges of the activations of all layers on the calibration inputs, where static codes need them.
    fn observe(&self, module: &Module) -> Result<Vec<Range>, Error> {
        let Some(Int8::Static(observer)) = self.weights.int8 else { return Ok(Vec::new()) };
        if self.calibration.is_empty() {
            return Err(PassError::from(WeightError::NoCalibration).into());
        }
        // The layers as the pass that codes them will find them.
        let mut watched = module.clone();
        let before: Vec<&str> = transc_passes::pipeline::until("compress-weights");
        transc_passes::run(&mut watched, &before[..before.len() - 1], &mut PassCx::default())?;
        let sites = transc_passes::sites(&watched.main);
        let outputs = watched.main.results().len();
        for (i, s) in sites.iter().enumerate() {
            watched.main.add_result(&format!("activation {i}"), s.activation);
        }
        let inputs: Vec<_> = self.calibration.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        let seen = self.exact().compile(&watched)?.session(self.threads)?.run(&inputs)?;
        let range = |(_, t): &(String, Tensor)| observer.range(t.as_slice::<f32>().unwrap_or(&[]));
        Ok(seen[outputs..].iter().map(range).collect())
    }

    /// How far the outputs are from those of the model without lossy steps: the relative error in the mean square, over all float outputs.
    fn error(&self, module: &Module, lossy: &Compiled) -> Result<Option<f64>, Error> {
        if self.calibration.is_empty() {
            return Ok(None);
        }
        let exact = self.exact().compile(module)?;
        // What a device will run is measured here, as the compiler needs none.
        let here = if self.is_device() { Some(self.exact().compile(&lossy.module)?) } else { None };
        let lossy = here.as_ref().unwrap_or(lossy);
        let inputs: Vec<_> = self.calibration.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        let (want, got) = (exact.session(self.threads)?.run(&inputs)?, lossy.session(self.threads)?.run(&inputs)?);
        let (mut square, mut difference) = (0.0, 0.0);
        for ((_, w), (_, g)) in want.iter().zip(&got) {
            let (Ok(w), Ok(g)) = (w.as_slice::<f32>(), g.as_slice::<f32>()) else { continue };
            square += w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            difference += w.iter().zip(g).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        }
        Ok((square > 0.0).then(|| (difference / square).sqrt()))
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
