//! Running device code: the memory of one session on a CUDA device, and the loop over a plan's launches.

mod driver;

use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::abi::{Arg, KernelStatus};
use crate::bind::Binding;
use crate::load::Model;
use crate::session::Span;
use crate::tensor::TensorView;
use driver::{Context, Memory, Program};

/// Compute capability of a CUDA device, major and minor.
///
/// # Errors
/// No driver, or no such device.
pub fn capability(ordinal: u32) -> Result<(i32, i32), Error> {
    Context::open(ordinal)?.capability()
}

/// Everything that a session has on its device. Memory grows to the largest binding seen.
pub(crate) struct Engine {
    context: Arc<Context>,
    program: Program,
    weights: Memory,
    arena: Memory,
    scratch: Memory,
    /// One word per launch: 0, or why a kernel stopped.
    status: Memory,
    inputs: Vec<Memory>,
    outputs: Vec<Memory>,
}

impl Engine {
    /// Loads a model onto a device.
    pub(crate) fn new(model: &Model, ordinal: u32) -> Result<Self, Error> {
        let (Some(code), Some(ptx)) = (&model.plan().device, model.ptx()) else {
            return Err(Error::WrongDevice("the model holds code for the host, not for a device".into()));
        };
        let context = Context::open(ordinal)?;
        check_arch(&code.arch, context.capability()?)?;
        let program = Program::load(&context, ptx, &model.plan().kernels)?;
        let empty = || Memory::new(&context, 0);
        let (arena, scratch) = (empty()?, empty()?);
        let mut weights = Memory::new(&context, model.weights().bytes().len())?;
        weights.upload(model.weights().bytes())?;
        let status = Memory::new(&context, model.plan().launches.len() * 4)?;
        Ok(Self { program, weights, arena, scratch, status, inputs: Vec::new(), outputs: Vec::new(), context })
    }

    /// Runs all launches; the contract is the host workspace's.
    pub(crate) fn run<'a>(
        &mut self,
        model: &Model,
        binding: &Binding,
        inputs: impl Iterator<Item = TensorView<'a>>,
        outputs: impl Iterator<Item = &'a mut [u8]>,
        mut times: Option<&mut Vec<Span>>,
    ) -> Result<(), Error> {
        let plan = model.plan();
        reserve(&self.context, &mut self.arena, binding.arena_bytes)?;
        reserve(&self.context, &mut self.scratch, binding.device_scratch_bytes)?;
        for (buffers, sizes) in [(&mut self.inputs, &binding.input_bytes), (&mut self.outputs, &binding.output_bytes)] {
            for (i, bytes) in sizes.iter().enumerate() {
                if buffers.len() == i {
                    buffers.push(Memory::new(&self.context, 0)?);
                }
                reserve(&self.context, &mut buffers[i], *bytes)?;
            }
        }
        let mut given = 0;
        for ((view, want), buffer) in inputs.zip(&binding.input_bytes).zip(&mut self.inputs) {
            if view.bytes().len() != *want {
                return Err(Error::BadTensor(format!("an input has {} bytes, not {want}", view.bytes().len())));
            }
            buffer.upload(view.bytes())?;
            given += 1;
        }
        if given != binding.input_bytes.len() {
            return Err(Error::BadTensor("the number of inputs is not the model's".into()));
        }
        self.status.clear()?;
        let begin = Instant::now();
        for (i, (launch, bound)) in plan.launches.iter().zip(&binding.launches).enumerate() {
            let grid = u32::try_from(bound.extent).ok().filter(|g| i32::try_from(*g).is_ok());
            let grid = grid.ok_or_else(|| Error::Device(format!("node `{}` needs more blocks than a grid has", launch.node)))?;
            if grid > 0 {
                let mut params: Vec<u64> = launch
                    .args
                    .iter()
                    .map(|a| match *a {
                        Arg::Input(i) => self.inputs[i as usize].address(),
                        Arg::Output(i) => self.outputs[i as usize].address(),
                        Arg::Temp(i) => self.arena.address() + binding.offsets[i as usize] as u64,
                        Arg::Const(i) => self.weights.address() + plan.consts[i as usize].offset,
                    })
                    .collect();
                params.extend([self.scratch.address(), self.status.address() + 4 * i as u64]);
                params.extend(binding.symbols.iter().map(|s| *s as u64));
                self.program.allow_shared(launch.kernel as usize, bound.shared_bytes)?;
                let start = times.is_some().then(Instant::now);
                // SAFETY: who made the model vouches that its kernels keep their contract for its plan (`Model::from_device`). All buffers have
                // the sizes of this binding and live until the downloads below have waited for the launches; the next run waits likewise.
                unsafe { self.program.launch(launch.kernel as usize, grid, launch.block, bound.shared_bytes, &mut params) }?;
                if let (Some(times), Some(start)) = (times.as_deref_mut(), start) {
                    self.context.wait()?;
                    times.push(Span::ended(begin, start));
                }
            } else if let Some(times) = times.as_deref_mut() {
                times.push(Span::ended(begin, Instant::now()));
            }
        }
        let mut status = vec![0; plan.launches.len() * 4];
        self.status.download(&mut status)?;
        for (launch, word) in plan.launches.iter().zip(status.chunks_exact(4)) {
            let status = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if status != 0 {
                return Err(Error::Kernel { node: launch.node.clone(), what: KernelStatus::text(status) });
            }
        }
        let mut taken = 0;
        for ((out, want), buffer) in outputs.zip(&binding.output_bytes).zip(&self.outputs) {
            if out.len() != *want {
                return Err(Error::BadTensor(format!("an output buffer has {} bytes, not {want}", out.len())));
            }
            buffer.download(out)?;
            taken += 1;
        }
        if taken != binding.output_bytes.len() {
            return Err(Error::BadTensor("the number of outputs is not the model's".into()));
        }
        Ok(())
    }
}

/// The old memory goes first: the two need not fit together.
fn reserve(context: &Arc<Context>, memory: &mut Memory, len: usize) -> Result<(), Error> {
    if memory.len() < len {
        *memory = Memory::new(context, 0)?;
        *memory = Memory::new(context, len)?;
    }
    Ok(())
}

/// PTX runs on its architecture and later ones; with the suffix `a`, on exactly its own.
fn check_arch(arch: &str, (major, minor): (i32, i32)) -> Result<(), Error> {
    let number = arch.trim_start_matches("sm_");
    let (digits, exact) = number.strip_suffix('a').map_or((number, false), |d| (d, true));
    let needs: i32 = digits.parse().map_err(|_| Error::BadPlan(format!("`{arch}` is no device architecture")))?;
    let has = major * 10 + minor;
    let fits = if exact { has == needs } else { has >= needs };
    if fits { Ok(()) } else { Err(Error::WrongDevice(format!("the model is compiled for {arch}, the device is sm_{has}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_architecture_and_later_ones() {
        for (arch, has, fits) in [
            ("sm_80", (8, 0), true),
            ("sm_80", (9, 0), true),
            ("sm_80", (7, 5), false),
            ("sm_90a", (9, 0), true),
            ("sm_90a", (10, 0), false),
            ("sm_90a", (8, 9), false),
        ] {
            assert_eq!(check_arch(arch, has).is_ok(), fits, "{arch} on {has:?}");
        }
        assert!(matches!(check_arch("gfx90", (9, 0)), Err(Error::BadPlan(_))));
    }

    #[test]
    fn no_driver_and_no_such_device_are_errors() {
        // Where there are devices, there are not so many.
        let e = capability(u32::MAX).expect_err("no such device");
        assert_eq!((e.code(), e.fault()), ("R0150", crate::Fault::Environment));
    }
}
