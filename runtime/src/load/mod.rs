//! Models: code, plan and weights from a file, or from the in-process compiler.

mod elf;
mod features;
mod library;
mod weights;

pub use features::has_feature;
pub use weights::Weights;

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use crate::abi::{ConstSpec, KernelFn, ModelDescriptor, Plan};
use crate::artefact::{self, Sections};
use crate::{Error, mem};
use library::Library;

/// How to open a model.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Whether the checksum of a `.tsc`'s weights is verified, which reads all of them. That of plan and kernels always is.
    pub verify_weights: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { verify_weights: true }
    }
}

/// A loaded model. Immutable; share it between sessions.
pub struct Model {
    plan: Plan,
    /// Host code; empty for a device.
    kernels: Vec<KernelFn>,
    /// Device code.
    ptx: Option<String>,
    weights: Weights,
    _code: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.plan.name).field("kernels", &self.kernels.len()).finish_non_exhaustive()
    }
}

impl Model {
    /// Opens a `.tsc` artefact or a compiled `.so`, by content.
    ///
    /// Opening a `.so` loads it into the process, so it must come from a source as trusted as any library. A file must be replaced by
    /// renaming, not rewritten, while it is open.
    ///
    /// # Errors
    /// A file that is not there, damaged, of another version, or for another processor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, OpenOptions::default())
    }

    /// As [`Model::open`], with options.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let io = |e: std::io::Error| Error::Io { path: path.display().to_string(), message: e.to_string() };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(Error::NotArtefact("it is not a regular file".into()));
        }
        let mut head = Vec::new();
        (&file).take(artefact::MAGIC.len() as u64).read_to_end(&mut head).map_err(io)?;
        if head == artefact::MAGIC {
            return Self::from_tsc(mem::map_file(&file).map_err(io)?, options);
        }
        if head.starts_with(&elf::MAGIC) {
            let library = Arc::new(Library::open(path, &file)?);
            // SAFETY: the descriptor belongs to the library, which lives as long as the `Arc`.
            return unsafe { Self::from_linked(library.descriptor()?, Arc::clone(&library) as Arc<dyn Any + Send + Sync>) };
        }
        Err(Error::NotArtefact(
            if head.is_empty() { "the file is empty" } else { "it is neither a .tsc file nor a shared library" }.into(),
        ))
    }

    /// A model from parts in memory. `code` keeps the kernels' code in memory.
    ///
    /// # Safety
    /// The kernels must be code for this machine that keeps the contract of [`KernelFn`] for the buffers and sizes of the plan, and must stay
    /// valid as long as `code` lives.
    ///
    /// # Errors
    /// A plan that contradicts itself or needs another processor.
    pub unsafe fn from_parts(
        plan: Plan,
        kernels: Vec<KernelFn>,
        weights: impl Into<Weights>,
        code: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, Error> {
        let weights = weights.into();
        plan.validate(kernels.len(), weights.bytes().len())?;
        features::require(&plan.features)?;
        if plan.device.is_some() {
            return Err(Error::BadPlan("it is for a device, the code for the host".into()));
        }
        if !weights.bytes().is_empty() && !weights.bytes().as_ptr().addr().is_multiple_of(mem::ALIGN) {
            return Err(Error::BadPlan(format!("the weights are not aligned to {} bytes", mem::ALIGN)));
        }
        Ok(Self { plan, kernels, ptx: None, weights, _code: code })
    }

    /// A model of device code.
    ///
    /// # Safety
    /// The entry points must be code that keeps the contract of [`crate::abi::DeviceCode`] for the buffers and sizes of the plan.
    ///
    /// # Errors
    /// A plan that contradicts itself.
    pub unsafe fn from_device(plan: Plan, ptx: String, weights: impl Into<Weights>) -> Result<Self, Error> {
        let (Some(_), weights) = (&plan.device, weights.into()) else {
            return Err(Error::BadPlan("it is for the host, the code for a device".into()));
        };
        plan.validate(plan.kernels.len(), weights.bytes().len())?;
        Ok(Self { plan, kernels: Vec::new(), ptx: Some(ptx), weights, _code: Arc::new(()) })
    }

    /// The model that is linked into this library.
    ///
    /// # Safety
    /// The descriptor must be that of a compiled model and live as long as the program.
    ///
    /// # Errors
    /// As [`Model::from_parts`].
    pub unsafe fn from_descriptor(d: &'static ModelDescriptor) -> Result<Self, Error> {
        library::check(d)?;
        // SAFETY: passed on; static data needs no owner.
        unsafe { Self::from_linked(d, Arc::new(())) }
    }

    /// # Safety
    /// The descriptor passed `library::check`, and its memory and code stay valid as long as `code` lives.
    unsafe fn from_linked(d: &ModelDescriptor, code: Arc<dyn Any + Send + Sync>) -> Result<Self, Error> {
        let plan = library::plan(d).ok_or_else(|| Error::NotArtefact("the library holds kernels but no model".into()))?;
        let (plan, kernels) = select(Plan::decode_all(plan)?, &library::kernels(d))?;
        let len = usize::try_from(d.weights_len).map_err(|_| Error::Damaged("its weights are too large".into()))?;
        // SAFETY: the descriptor states pointer and length of its own constant data, which lives as long as `code`.
        let weights = unsafe { Weights::linked(Arc::clone(&code), d.weights, len) };
        // SAFETY: the kernels of a compiled model keep the contract for its own plan.
        unsafe { Self::from_parts(plan, kernels, weights, code) }
    }

    fn from_tsc(map: memmap2::Mmap, options: OpenOptions) -> Result<Self, Error> {
        let sections = Sections::read(&map, options.verify_weights)?;
        let mut plans = Plan::decode_all(&map[sections.plan])?;
        // Before any of its code is in the process.
        fitting(&plans)?;
        let map = Arc::new(map);
        let weights = Weights::mapped(Arc::clone(&map), sections.weights);
        let weights = weights.ok_or_else(|| Error::Damaged("its weights are outside".into()))?;
        if plans[0].device.is_some() {
            let plan = plans.swap_remove(0);
            let ptx = std::str::from_utf8(&map[sections.kernels]).map_err(|_| Error::Damaged("its PTX is no text".into()))?;
            // SAFETY: plan and kernels were written together by the compiler, as the checksums of both say.
            return unsafe { Self::from_device(plan, ptx.to_string(), weights) };
        }
        let library = Arc::new(Library::from_image(&map[sections.kernels])?);
        let (plan, kernels) = select(plans, &library::kernels(library.descriptor()?))?;
        // SAFETY: plan and kernels were written together by the compiler, as the checksums of both say.
        unsafe { Self::from_parts(plan, kernels, weights, library) }
    }

    /// The plan; of several the one for this processor.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The packed weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The PTX of a model for a device.
    pub fn ptx(&self) -> Option<&str> {
        self.ptx.as_deref()
    }

    pub(crate) fn kernels(&self) -> &[KernelFn] {
        &self.kernels
    }

    /// The bytes of one of the plan's constants.
    pub(crate) fn constant(&self, c: ConstSpec) -> &[u8] {
        // The plan was validated against these weights.
        &self.weights.bytes()[c.offset as usize..][..c.len_bytes as usize]
    }
}

/// The first of the plans whose features this processor has.
fn fitting(plans: &[Plan]) -> Result<usize, Error> {
    let mut missing = Error::BadPlan("there is none".into());
    for (i, p) in plans.iter().enumerate() {
        match features::require(&p.features) {
            Ok(()) => return Ok(i),
            Err(e) => missing = e,
        }
    }
    Err(missing)
}

/// The plan for this processor, and its kernels from the table in which the kernels of all plans follow each other.
fn select(mut plans: Vec<Plan>, table: &[KernelFn]) -> Result<(Plan, Vec<KernelFn>), Error> {
    let which = fitting(&plans)?;
    let count = |plans: &[Plan]| plans.iter().map(|p| p.kernels.len()).sum::<usize>();
    let (first, all) = (count(&plans[..which]), count(&plans));
    if all != table.len() {
        return Err(Error::BadPlan(format!("it names {all} kernels, the code has {}", table.len())));
    }
    let plan = plans.swap_remove(which);
    let kernels = table[first..first + plan.kernels.len()].to_vec();
    Ok((plan, kernels))
}
