//! Sessions: a model with threads and memory, ready to run.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::abi::{Plan, Symbol, TensorSpec};
use crate::bind::{self, Binding};
use crate::cuda;
use crate::exec::Workspace;
use crate::load::Model;
use crate::place;
use crate::tensor::{Tensor, TensorView, TensorViewMut, type_text};

/// How many sets of dims a session remembers.
const MAX_BINDINGS: usize = 8;

/// Options of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Number of threads, the caller's included; 0 means one per core.
    pub threads: usize,
    /// How long an idle thread watches for work before it sleeps. Waking it costs tens of microseconds; watching costs its core.
    pub spin: Duration,
    /// The number of the CUDA device to run on; none means the host. The model must be compiled for it.
    pub device: Option<u32>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { threads: 0, spin: Duration::from_micros(50), device: None }
    }
}

/// A model ready to run. `Send + Sync`, and a clone is another handle of the same session. Calls from several threads are correct; they take
/// turns, since each one uses all threads of the session.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    model: Arc<Model>,
    threads: usize,
    state: Mutex<State>,
}

/// Where the launches run.
enum Engine {
    Host(Box<Workspace>),
    Device(Box<cuda::Engine>),
}

impl Engine {
    fn run<'a>(
        &mut self,
        model: &Model,
        binding: &Binding,
        inputs: impl Iterator<Item = TensorView<'a>>,
        outputs: impl Iterator<Item = &'a mut [u8]>,
        times: Option<&mut Vec<Span>>,
    ) -> Result<(), Error> {
        match self {
            Engine::Host(w) => w.run(model, binding, inputs, outputs, times),
            Engine::Device(d) => d.run(model, binding, inputs, outputs, times),
        }
    }
}

struct State {
    engine: Engine,
    /// Extents of all inputs in the plan's order, and what follows from them; the latest last.
    bindings: Vec<(Vec<usize>, Arc<Binding>)>,
    // Of the current run, kept for their capacity only.
    order: Vec<usize>,
    key: Vec<usize>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("model", self.model()).field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// Sizes at given dims, see [`Session::bind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Extents of each input.
    pub inputs: Vec<Vec<usize>>,
    /// Extents of each output.
    pub outputs: Vec<Vec<usize>>,
    /// Memory for everything between inputs and outputs, in bytes.
    pub plan_bytes: usize,
    /// Scratch memory per thread, in bytes.
    pub scratch_bytes: usize,
    /// The buffers between launches.
    pub temps: Vec<TempSizes>,
    /// The launches, in order.
    pub launches: Vec<LaunchSizes>,
}

/// A buffer between launches, see [`Sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TempSizes {
    /// First byte in the memory between launches.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// First and last launch that touches it; none for one that no launch names.
    pub life: Option<(usize, usize)>,
}

/// Work of a launch, see [`Sizes`] and [`crate::abi::Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchSizes {
    /// Multiply-adds.
    pub macs: u64,
    /// Bytes of operands and results.
    pub bytes: u64,
}

/// When a launch ran, see [`Session::profile_run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Nanoseconds since the first launch began.
    pub start_ns: u64,
    /// How long it took.
    pub ns: u64,
}

impl Span {
    /// The span of what began at `start` and ends now.
    pub(crate) fn ended(begin: Instant, start: Instant) -> Self {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self { start_ns: ns(start.duration_since(begin)), ns: ns(start.elapsed()) }
    }
}

impl Sizes {
    /// The sizes of a plan at dims given by name; a dim with only one possible value may be left out.
    ///
    /// # Errors
    /// Unknown or missing names, values out of range, or dims that the model refuses.
    pub fn of(plan: &Plan, dims: &[(&str, i64)]) -> Result<Self, Error> {
        Ok(Self::new(plan, &bind::bind(plan, bind::symbols_by_name(plan, dims)?)?))
    }

    fn new(plan: &Plan, b: &Binding) -> Self {
        let temps = b.offsets.iter().zip(&b.temp_bytes).zip(place::lives(plan));
        Self {
            inputs: b.input_dims.clone(),
            outputs: b.output_dims.clone(),
            plan_bytes: b.arena_bytes,
            scratch_bytes: b.scratch_bytes,
            temps: temps.map(|((offset, len), life)| TempSizes { offset: *offset, len: *len, life }).collect(),
            launches: b.launches.iter().map(|l| LaunchSizes { macs: l.macs, bytes: l.bytes }).collect(),
        }
    }
}

impl Session {
    /// A session with its own threads, of a [`Model`] or of an `Arc<Model>` that others use too.
    ///
    /// # Errors
    /// If threads or memory are not to be had.
    pub fn new(model: impl Into<Arc<Model>>, options: SessionOptions) -> Result<Self, Error> {
        let model = model.into();
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let (engine, threads) = match options.device {
            Some(ordinal) => (Engine::Device(Box::new(cuda::Engine::new(&model, ordinal)?)), 1),
            None if model.ptx().is_some() => {
                return Err(Error::WrongDevice("the model is compiled for a device, not for the host".into()));
            }
            None => {
                let threads = if options.threads == 0 { cores() } else { options.threads };
                let workspace = Workspace::new(threads, options.spin)?;
                let threads = workspace.threads();
                (Engine::Host(Box::new(workspace)), threads)
            }
        };
        let state = State { engine, bindings: Vec::with_capacity(MAX_BINDINGS), order: Vec::new(), key: Vec::new() };
        Ok(Self { inner: Arc::new(Inner { model, threads, state: Mutex::new(state) }) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.inner.model
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.inner.model.plan()
    }

    /// The inputs.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.plan().inputs
    }

    /// The outputs.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.plan().outputs
    }

    /// The symbolic dims.
    pub fn symbols(&self) -> &[Symbol] {
        &self.plan().symbols
    }

    /// Number of threads, the caller's included; 1 on a device.
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// The sizes of everything at dims given by name; a dim with only one possible value may be left out.
    ///
    /// # Errors
    /// Unknown or missing names, values out of range, or dims that the model refuses.
    pub fn bind(&self, dims: &[(&str, i64)]) -> Result<Sizes, Error> {
        Sizes::of(self.plan(), dims)
    }

    /// The sizes of everything for inputs of these shapes.
    ///
    /// # Errors
    /// Inputs that do not fit the model.
    pub fn bind_inputs(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Sizes, Error> {
        let mut state = self.lock();
        Ok(Sizes::new(self.plan(), &*self.binding(&mut state, inputs)?))
    }

    /// Runs the model and allocates its outputs, which come in the plan's order.
    ///
    /// # Errors
    /// Inputs that do not fit the model, data that a kernel refuses, or memory that is not to be had.
    pub fn run(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<(String, Tensor)>, Error> {
        self.run_timed(inputs, None)
    }

    /// Runs the model and says when each launch of the plan ran, in order.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile_run(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Span>, Error> {
        let mut times = Vec::with_capacity(self.plan().launches.len());
        self.run_timed(inputs, Some(&mut times))?;
        Ok(times)
    }

    fn run_timed(
        &self,
        inputs: &[(&str, TensorView<'_>)],
        times: Option<&mut Vec<Span>>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let mut state = self.lock();
        let binding = self.binding(&mut state, inputs)?;
        let mut outputs = Vec::with_capacity(self.outputs().len());
        for (spec, dims) in self.outputs().iter().zip(&binding.output_dims) {
            outputs.push((spec.name.clone(), Tensor::zeros(spec.dtype, dims)?));
        }
        let State { engine, order, .. } = &mut *state;
        let ordered = order.iter().map(|i| inputs[*i].1);
        engine.run(&self.inner.model, &binding, ordered, outputs.iter_mut().map(|(_, t)| t.bytes_mut()), times)?;
        Ok(outputs)
    }

    /// Runs the model into buffers of the caller, in the plan's order. Allocates nothing once the same shapes have been seen.
    ///
    /// # Errors
    /// As [`Session::run`]; also buffers of another type or shape than the outputs.
    pub fn run_into(&self, inputs: &[(&str, TensorView<'_>)], outputs: &mut [TensorViewMut<'_>]) -> Result<(), Error> {
        let mut state = self.lock();
        let binding = self.binding(&mut state, inputs)?;
        if outputs.len() != self.outputs().len() {
            return Err(Error::BadTensor(format!(
                "the model has {} outputs, got buffers for {}",
                self.outputs().len(),
                outputs.len()
            )));
        }
        for ((spec, dims), buffer) in self.outputs().iter().zip(&binding.output_dims).zip(outputs.iter()) {
            if buffer.dtype() != spec.dtype || buffer.shape() != dims {
                let (expected, got) = (type_text(spec.dtype, dims), type_text(buffer.dtype(), buffer.shape()));
                return Err(Error::OutputBuffer { name: spec.name.clone(), expected, got });
            }
        }
        let State { engine, order, .. } = &mut *state;
        let ordered = order.iter().map(|i| inputs[*i].1);
        engine.run(&self.inner.model, &binding, ordered, outputs.iter_mut().map(TensorViewMut::bytes_mut), None)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every run refills what it uses, so a panic elsewhere in the process leaves nothing half done that matters.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The binding for inputs; leaves their order in `state`.
    fn binding(&self, state: &mut State, inputs: &[(&str, TensorView<'_>)]) -> Result<Arc<Binding>, Error> {
        let State { bindings, order, key, .. } = state;
        bind::order_inputs(self.plan(), inputs, order)?;
        bind::check_types(self.plan(), order.iter().map(|i| inputs[*i].1))?;
        key.clear();
        key.extend(order.iter().flat_map(|i| inputs[*i].1.shape()));
        let (key, binding) = match bindings.iter().position(|(k, _)| k == key) {
            Some(at) => bindings.remove(at),
            None => {
                let ordered: Vec<TensorView<'_>> = order.iter().map(|i| inputs[*i].1).collect();
                let symbols = bind::solve(self.plan(), &ordered)?;
                (key.clone(), Arc::new(bind::bind(self.plan(), symbols)?))
            }
        };
        if bindings.len() >= MAX_BINDINGS {
            bindings.remove(0);
        }
        bindings.push((key, Arc::clone(&binding)));
        Ok(binding)
    }
}
