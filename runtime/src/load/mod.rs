//! Models: code, plan and weights from a file, or from the in-process compiler.

use std::any::Any;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::Path;
use std::sync::Arc;

use libloading::Library;

use crate::abi::{ABI_VERSION, DESCRIPTOR_MAGIC, DESCRIPTOR_SYMBOL, KernelFn, ModelDescriptor, Plan};
use crate::artefact::{self, Section};
use crate::mem;
use crate::Error;

/// The packed weights and what keeps them in memory.
pub struct Weights {
    owner: Arc<dyn Any + Send + Sync>,
    ptr: *const u8,
    len: usize,
}

// SAFETY: read-only memory kept alive by `owner`.
unsafe impl Send for Weights {}
// SAFETY: as above.
unsafe impl Sync for Weights {}

impl Weights {
    /// Weights in owned memory.
    pub fn owned(bytes: mem::AlignedBytes) -> Self {
        let (ptr, len) = (bytes.as_ptr().cast_const(), bytes.len());
        Self { owner: Arc::new(bytes), ptr, len }
    }

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `ptr` is valid for `len` bytes as long as `owner` lives, and nobody writes them.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// A loaded model. Immutable; share it between sessions.
pub struct Model {
    plan: Plan,
    kernels: Vec<KernelFn>,
    weights: Weights,
    _code: Arc<dyn Any + Send + Sync>,
}

impl Model {
    /// Opens a `.tsc` artefact or a compiled `.so`, by content.
    ///
    /// # Errors
    /// A file that is not there, damaged, of another version, or for another processor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |e: std::io::Error| Error::Io { path: path.display().to_string(), message: e.to_string() };
        let mut file = File::open(path).map_err(io)?;
        let mut head = [0u8; 8];
        let n = file.read(&mut head).map_err(io)?;
        if n >= 4 && head[..4] == *b"\x7fELF" {
            // A path without a slash would be searched for in the system's folders.
            let full = path.canonicalize().map_err(io)?;
            // SAFETY: loading runs the library's initialisers; a compiled model has none, and opening a library means to trust it.
            let library = unsafe { Library::new(&full) }.map_err(|e| Error::BadArtefact(e.to_string()))?;
            return Self::from_library(library);
        }
        if n == 0 {
            return Err(Error::BadArtefact("the file is empty".into()));
        }
        if head != artefact::MAGIC {
            return Err(Error::BadArtefact("it is neither a .tsc file nor a shared library".into()));
        }
        Self::from_tsc(mem::map_file(&file).map_err(io)?)
    }

    /// A model from parts in memory.
    ///
    /// # Safety
    /// The kernels must be code for this machine that keeps the contract of [`KernelFn`] for the plan's buffers, and must stay valid as long
    /// as `code` lives.
    ///
    /// # Errors
    /// A plan that contradicts itself or needs another processor.
    pub unsafe fn from_parts(plan: Plan, kernels: Vec<KernelFn>, weights: Weights, code: Arc<dyn Any + Send + Sync>) -> Result<Self, Error> {
        plan.validate(kernels.len(), weights.len)?;
        if let Some(missing) = plan.features.iter().find(|f| !has_feature(f)) {
            return Err(Error::MissingFeature(missing.clone()));
        }
        Ok(Self { plan, kernels, weights, _code: code })
    }

    /// The model that is linked into this library.
    ///
    /// # Safety
    /// The descriptor must be that of a compiled model and live as long as the program.
    ///
    /// # Errors
    /// As [`Model::from_parts`].
    pub unsafe fn from_descriptor(d: &'static ModelDescriptor) -> Result<Self, Error> {
        // SAFETY: passed on.
        unsafe { Self::from_linked(d, Arc::new(())) }
    }

    /// # Safety
    /// The descriptor's memory must stay valid as long as `code` lives.
    unsafe fn from_linked(d: &ModelDescriptor, code: Arc<dyn Any + Send + Sync>) -> Result<Self, Error> {
        check(d)?;
        if d.plan.is_null() {
            return Err(Error::BadArtefact("the library holds kernels but no model".into()));
        }
        // SAFETY: the descriptor states pointer and length of its own constant data.
        let plan = unsafe { std::slice::from_raw_parts(d.plan, d.plan_len as usize) };
        let plan = Plan::decode(plan)?;
        let weights = Weights { owner: Arc::clone(&code), ptr: d.weights, len: if d.weights.is_null() { 0 } else { d.weights_len as usize } };
        // SAFETY: the kernels of a compiled model keep the contract for its own plan.
        unsafe { Self::from_parts(plan, kernels(d), weights, code) }
    }

    fn from_library(library: Library) -> Result<Self, Error> {
        let library = Arc::new(library);
        let d = descriptor(&library)?;
        // SAFETY: the library stays loaded as long as the `Arc` lives.
        unsafe { Self::from_linked(&*d, library) }
    }

    fn from_tsc(map: memmap2::Mmap) -> Result<Self, Error> {
        let map = Arc::new(map);
        let sections = artefact::read(&map)?;
        let section = |kind: Section| {
            let hit = sections.iter().find(|(k, _, _)| *k == kind);
            hit.map(|(_, at, len)| &map[*at..at + len]).ok_or_else(|| Error::BadArtefact("a section is missing".into()))
        };
        let plan = Plan::decode(section(Section::Plan)?)?;
        // Before the code is even loaded.
        if let Some(missing) = plan.features.iter().find(|f| !has_feature(f)) {
            return Err(Error::MissingFeature(missing.clone()));
        }
        let library = Arc::new(load_image(section(Section::Kernels)?)?);
        let d = descriptor(&library)?;
        // SAFETY: the descriptor lives in the loaded library.
        let d = unsafe { &*d };
        check(d)?;
        let bytes = section(Section::Weights)?;
        let weights = Weights { ptr: bytes.as_ptr(), len: bytes.len(), owner: Arc::clone(&map) as Arc<dyn Any + Send + Sync> };
        // SAFETY: plan and kernels were written together; the checksums of both are right.
        unsafe { Self::from_parts(plan, kernels(d), weights, library) }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn kernels(&self) -> &[KernelFn] {
        &self.kernels
    }

    pub(crate) fn weights(&self) -> &[u8] {
        let _ = &self.weights.owner;
        self.weights.bytes()
    }
}

fn descriptor(library: &Library) -> Result<*const ModelDescriptor, Error> {
    // SAFETY: only the address of the symbol is used; `check` looks at the magic before anything else.
    let symbol = unsafe { library.get::<*const ModelDescriptor>(DESCRIPTOR_SYMBOL.as_bytes()) };
    let symbol = symbol.map_err(|_| Error::BadArtefact(format!("the library does not export `{DESCRIPTOR_SYMBOL}`")))?;
    // SAFETY: `get` gives the address of the symbol itself, which is the descriptor.
    Ok(unsafe { symbol.into_raw().into_raw() }.cast())
}

fn check(d: &ModelDescriptor) -> Result<(), Error> {
    if d.magic != DESCRIPTOR_MAGIC {
        return Err(Error::BadArtefact("its descriptor is not that of a model".into()));
    }
    if d.abi_version != ABI_VERSION {
        return Err(Error::Version { found: d.abi_version, ours: ABI_VERSION });
    }
    Ok(())
}

fn kernels(d: &ModelDescriptor) -> Vec<KernelFn> {
    if d.n_kernels == 0 {
        return Vec::new();
    }
    // SAFETY: the descriptor states the table's length.
    unsafe { std::slice::from_raw_parts(d.kernels, d.n_kernels as usize) }.to_vec()
}

/// Loads a shared object from memory.
fn load_image(bytes: &[u8]) -> Result<Library, Error> {
    let io = |message: String| Error::Io { path: "kernels".into(), message };
    // SAFETY: a plain system call with a constant name.
    let fd = unsafe { libc::memfd_create(c"transc".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io(std::io::Error::last_os_error().to_string()));
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes).map_err(|e| io(e.to_string()))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the image was written by the compiler and its checksum is right; it has no initialisers.
    unsafe { Library::new(path) }.map_err(|e| Error::BadArtefact(e.to_string()))
}

/// Whether this processor (and system) has a feature.
fn has_feature(name: &str) -> bool {
    macro_rules! table {
        ($($f:tt),*) => { match name { $($f => std::arch::is_x86_feature_detected!($f),)* _ => false } };
    }
    table!(
        "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt", "movbe", "f16c", "avx512f", "avx512bw", "avx512cd", "avx512dq",
        "avx512vl", "avx512vnni", "avx512bf16"
    )
}
