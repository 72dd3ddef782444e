//! The memory and threads of one session, and the loop over a plan's launches.

use std::time::{Duration, Instant};

use super::pool::{Job, Pool};
use crate::Error;
use crate::abi::{Arg, KernelStatus};
use crate::bind::Binding;
use crate::load::Model;
use crate::mem::AlignedBytes;
use crate::session::Span;
use crate::tensor::TensorView;

/// Everything that a run writes besides outputs. Grows to the largest binding seen; a run at a size seen before allocates nothing.
pub(crate) struct Workspace {
    pool: Pool,
    arena: AlignedBytes,
    /// Copies of misaligned inputs.
    aligned: Vec<AlignedBytes>,
    // Pointers of the current run, kept for their capacity only.
    inputs: Vec<*const u8>,
    outputs: Vec<*mut u8>,
    args: Vec<*mut u8>,
}

// SAFETY: the pointers are refilled by each run and not used after it; everything else may move between threads.
unsafe impl Send for Workspace {}

impl Workspace {
    /// A workspace with `threads` threads, the caller's included.
    pub(crate) fn new(threads: usize, spin: Duration) -> Result<Self, Error> {
        let arena = AlignedBytes::zeroed(0)?;
        Ok(Self {
            pool: Pool::new(threads, spin)?,
            arena,
            aligned: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            args: Vec::new(),
        })
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs all launches. `binding` must come from the model's plan; inputs and outputs are in the plan's order. With `times`, appends
    /// when each launch ran.
    pub(crate) fn run<'a>(
        &mut self,
        model: &Model,
        binding: &Binding,
        inputs: impl Iterator<Item = TensorView<'a>>,
        outputs: impl Iterator<Item = &'a mut [u8]>,
        mut times: Option<&mut Vec<Span>>,
    ) -> Result<(), Error> {
        self.prepare(binding)?;
        self.set_inputs(binding, inputs)?;
        self.outputs.clear();
        for (buffer, want) in outputs.zip(&binding.output_bytes) {
            if buffer.len() != *want {
                return Err(Error::BadTensor(format!("an output buffer has {} bytes, not {want}", buffer.len())));
            }
            self.outputs.push(buffer.as_mut_ptr());
        }
        if self.inputs.len() != binding.input_bytes.len() || self.outputs.len() != binding.output_bytes.len() {
            return Err(Error::BadTensor("the number of inputs or outputs is not the model's".into()));
        }
        let plan = model.plan();
        let begin = Instant::now();
        for (launch, bound) in plan.launches.iter().zip(&binding.launches) {
            self.args.clear();
            for arg in &launch.args {
                self.args.push(match *arg {
                    Arg::Input(i) => self.inputs[i as usize].cast_mut(),
                    Arg::Output(i) => self.outputs[i as usize],
                    Arg::Temp(i) => self.arena.as_ptr().wrapping_add(binding.offsets[i as usize]),
                    Arg::Const(i) => model.constant(plan.consts[i as usize]).as_ptr().cast_mut(),
                });
            }
            let job = Job {
                kernel: model.kernels()[launch.kernel as usize],
                bufs: self.args.as_ptr(),
                syms: binding.symbols.as_ptr(),
                extent: bound.extent,
                cost_ns: bound.cost_ns,
            };
            let start = times.is_some().then(Instant::now);
            // SAFETY: who made the model vouches that its kernels keep their contract for its plan (`Model::from_parts`). The plan was
            // validated then; inputs and outputs have the sizes of this binding, as checked above; arena and scratch memory are as large as
            // it needs; kernels only read inputs and constants. All of it is borrowed until this returns.
            let status = unsafe { self.pool.run(job) };
            if let (Some(times), Some(start)) = (times.as_deref_mut(), start) {
                times.push(Span::ended(begin, start));
            }
            if status != 0 {
                return Err(Error::Kernel { node: launch.node.clone(), what: KernelStatus::text(status) });
            }
        }
        Ok(())
    }

    fn prepare(&mut self, binding: &Binding) -> Result<(), Error> {
        if self.arena.len() < binding.arena_bytes {
            // The old one goes first: the two need not fit together.
            self.arena = AlignedBytes::zeroed(0)?;
            self.arena = AlignedBytes::zeroed(binding.arena_bytes)?;
        }
        self.pool.reserve_scratch(binding.scratch_bytes)
    }

    fn set_inputs<'a>(&mut self, binding: &Binding, inputs: impl Iterator<Item = TensorView<'a>>) -> Result<(), Error> {
        self.inputs.clear();
        let mut copies = 0;
        for (view, want) in inputs.zip(&binding.input_bytes) {
            let bytes = view.bytes();
            if bytes.len() != *want {
                return Err(Error::BadTensor(format!("an input has {} bytes, not {want}", bytes.len())));
            }
            if bytes.as_ptr().addr().is_multiple_of(view.dtype().size_bytes()) {
                self.inputs.push(bytes.as_ptr());
                continue;
            }
            if self.aligned.get(copies).is_none_or(|b| b.len() < bytes.len()) {
                self.aligned.truncate(copies);
                self.aligned.push(AlignedBytes::zeroed(bytes.len())?);
            }
            self.aligned[copies].as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
            self.inputs.push(self.aligned[copies].as_ptr());
            copies += 1;
        }
        Ok(())
    }
}
