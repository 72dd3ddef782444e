//! Sessions: a model with threads and memory, ready to run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::abi::{Arg, KernelStatus, Plan, Symbol, TensorSpec};
use crate::bind::{self, Binding};
use crate::exec::{Job, Pool};
use crate::load::Model;
use crate::mem::AlignedBytes;
use crate::tensor::{Tensor, TensorView};
use crate::Error;

/// Launches estimated below this run on the calling thread: waking the others costs about as much.
const PARALLEL_NS: i64 = 10_000;

/// How many sets of dims a session remembers.
const MAX_BINDINGS: usize = 16;

/// Options of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Number of threads; 0 means one per core.
    pub threads: usize,
}

/// A model ready to run. `Send + Sync`; calls from several threads take turns.
pub struct Session {
    model: Arc<Model>,
    threads: usize,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    arena: AlignedBytes,
    bindings: BTreeMap<Vec<i64>, Arc<Binding>>,
    pointers: Vec<*mut u8>,
}

// SAFETY: `pointers` is refilled by each run under the lock and not read otherwise.
unsafe impl Send for State {}

/// An output buffer of the caller.
pub struct OutputSlot<'a> {
    /// Extents that the caller expects.
    pub shape: &'a [usize],
    /// The bytes to fill.
    pub data: &'a mut [u8],
}

impl Session {
    /// A session with its own threads.
    ///
    /// # Errors
    /// If threads or memory are not to be had.
    pub fn new(model: Model, options: SessionOptions) -> Result<Self, Error> {
        Self::shared(Arc::new(model), options)
    }

    /// A session of a model that others use too.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn shared(model: Arc<Model>, options: SessionOptions) -> Result<Self, Error> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { cores() } else { options.threads };
        let state = State { pool: Pool::new(threads)?, arena: AlignedBytes::zeroed(0)?, bindings: BTreeMap::new(), pointers: Vec::new() };
        Ok(Self { model, threads, state: Mutex::new(state) })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.model.plan()
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

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of the arena for symbol values.
    ///
    /// # Errors
    /// Values outside their ranges.
    pub fn plan_bytes(&self, symbols: &[i64]) -> Result<usize, Error> {
        Ok(bind::bind(self.plan(), symbols.to_vec())?.arena_bytes)
    }

    /// The extents of the outputs for inputs of these shapes.
    ///
    /// # Errors
    /// Inputs that do not fit the model.
    pub fn output_shapes(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Vec<usize>>, Error> {
        let ordered = bind::order_inputs(self.plan(), inputs)?;
        let symbols = bind::solve(self.plan(), &ordered)?;
        Ok(bind::bind(self.plan(), symbols)?.output_dims)
    }

    /// Runs the model and allocates its outputs, in the plan's order.
    ///
    /// # Errors
    /// Inputs that do not fit the model, or data that a kernel refuses.
    pub fn run(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<(String, Tensor)>, Error> {
        self.run_timed(inputs, None)
    }

    /// As [`Session::run`], and the nanoseconds of each launch with the user's node.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile_run(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<(String, u64)>, Error> {
        let mut times = Vec::new();
        self.run_timed(inputs, Some(&mut times))?;
        Ok(self.plan().launches.iter().map(|l| l.node.clone()).zip(times).collect())
    }

    fn run_timed(&self, inputs: &[(&str, TensorView<'_>)], times: Option<&mut Vec<u64>>) -> Result<Vec<(String, Tensor)>, Error> {
        let ordered = bind::order_inputs(self.plan(), inputs)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let binding = self.binding(&mut state, &ordered)?;
        let mut outputs = Vec::with_capacity(self.outputs().len());
        for (spec, dims) in self.outputs().iter().zip(&binding.output_dims) {
            outputs.push((spec.name.clone(), Tensor::zeros(spec.dtype, dims)?));
        }
        let mut slots: Vec<&mut [u8]> = outputs.iter_mut().map(|(_, t)| t.bytes_mut()).collect();
        self.execute(&mut state, &binding, &ordered, &mut slots, times)?;
        Ok(outputs)
    }

    /// Runs the model into buffers of the caller, in the plan's order; allocates nothing once a size has been seen.
    ///
    /// # Errors
    /// As [`Session::run`]; also output buffers of the wrong shape or length.
    pub fn run_into(&self, inputs: &[(&str, TensorView<'_>)], outputs: &mut [OutputSlot<'_>]) -> Result<(), Error> {
        let ordered = bind::order_inputs(self.plan(), inputs)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let binding = self.binding(&mut state, &ordered)?;
        if outputs.len() != self.outputs().len() {
            return Err(Error::BadTensor(format!("the model has {} outputs, got buffers for {}", self.outputs().len(), outputs.len())));
        }
        for ((spec, dims), slot) in self.outputs().iter().zip(&binding.output_dims).zip(outputs.iter()) {
            let want: usize = dims.iter().product::<usize>() * spec.dtype.size_bytes();
            if slot.shape != dims.as_slice() || slot.data.len() != want {
                let message = format!("output `{}` has shape {dims:?} ({want} bytes), got a buffer of {:?}", spec.name, slot.shape);
                return Err(Error::BadTensor(message));
            }
        }
        let mut slots: Vec<&mut [u8]> = outputs.iter_mut().map(|s| &mut *s.data).collect();
        self.execute(&mut state, &binding, &ordered, &mut slots, None)
    }

    fn binding(&self, state: &mut State, inputs: &[TensorView<'_>]) -> Result<Arc<Binding>, Error> {
        let symbols = bind::solve(self.plan(), inputs)?;
        if let Some(b) = state.bindings.get(&symbols) {
            return Ok(Arc::clone(b));
        }
        let binding = Arc::new(bind::bind(self.plan(), symbols.clone())?);
        if state.bindings.len() >= MAX_BINDINGS {
            state.bindings.clear();
        }
        state.bindings.insert(symbols, Arc::clone(&binding));
        Ok(binding)
    }

    fn execute(
        &self,
        state: &mut State,
        binding: &Binding,
        inputs: &[TensorView<'_>],
        outputs: &mut [&mut [u8]],
        mut times: Option<&mut Vec<u64>>,
    ) -> Result<(), Error> {
        if state.arena.len() < binding.arena_bytes {
            state.arena = AlignedBytes::zeroed(binding.arena_bytes)?;
        }
        state.pool.reserve_scratch(binding.scratch_bytes)?;
        // Kernels want aligned inputs; a caller's misaligned buffer is copied.
        let mut copies = Vec::new();
        let mut input_ptrs = Vec::with_capacity(inputs.len());
        for v in inputs {
            let ptr = v.bytes().as_ptr();
            if (ptr as usize).is_multiple_of(v.dtype().size_bytes()) {
                input_ptrs.push(ptr.cast_mut());
            } else {
                let copy = Tensor::from_bytes(v.dtype(), v.shape(), v.bytes())?;
                input_ptrs.push(copy.bytes().as_ptr().cast_mut());
                copies.push(copy);
            }
        }
        let plan = self.plan();
        for (launch, bound) in plan.launches.iter().zip(&binding.launches) {
            state.pointers.clear();
            for a in &launch.args {
                state.pointers.push(match *a {
                    Arg::Input(i) => input_ptrs[i as usize],
                    Arg::Output(i) => outputs[i as usize].as_mut_ptr(),
                    // An offset inside the arena, which is large enough for the binding.
                    Arg::Temp(i) => state.arena.as_ptr().wrapping_add(binding.offsets[i as usize]),
                    Arg::Const(i) => self.model.weights()[plan.consts[i as usize].offset as usize..].as_ptr().cast_mut(),
                });
            }
            let job = Job {
                kernel: self.model.kernels()[launch.kernel as usize],
                bufs: state.pointers.as_ptr(),
                syms: binding.symbols.as_ptr(),
                extent: bound.extent,
            };
            let start = times.is_some().then(Instant::now);
            // SAFETY: the plan was validated at load, so every pointer is that of its buffer, sized for this binding; kernels stay inside the
            // buffers that the plan gives them (the compiler's contract), constants are only read, and everything outlives the call.
            let status = unsafe { state.pool.run(job, bound.cost_ns >= PARALLEL_NS) };
            if let (Some(t), Some(start)) = (times.as_deref_mut(), start) {
                t.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            if status != 0 {
                let what = match status {
                    s if s == KernelStatus::IndexOutOfRange as i32 => "an index is out of range",
                    s if s == KernelStatus::DivisionByZero as i32 => "an integer is divided by zero",
                    _ => "the kernel stopped",
                };
                return Err(Error::Kernel { node: launch.node.clone(), what });
            }
        }
        Ok(())
    }
}
