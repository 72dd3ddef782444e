//! Loading shared objects through the system's loader.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::Path;

use super::elf;
use crate::abi::{ABI_VERSION, DESCRIPTOR_MAGIC, DESCRIPTOR_SYMBOL, KernelFn, ModelDescriptor};
use crate::{Error, mem};

/// A loaded library with a model descriptor. The code stays valid as long as this lives.
pub(super) struct Library {
    handle: libloading::Library,
    /// Keeps the number of the descriptor taken: the loader recognises libraries by their path, so two images must not share one.
    _image: Option<File>,
}

impl Library {
    /// Loads a file.
    pub(super) fn open(path: &Path, file: &File) -> Result<Self, Error> {
        let io = |e: std::io::Error| Error::Io { path: path.display().to_string(), message: e.to_string() };
        elf::check(&mem::map_file(file).map_err(io)?)?;
        // A path without a slash would be searched for in the system's folders.
        let full = path.canonicalize().map_err(io)?;
        // SAFETY: loading runs the library's initialisers. It is a compiled model, which has none of its own; whoever opens a library that
        // only pretends to be one trusts it.
        let handle = unsafe { libloading::Library::new(full) }.map_err(|e| Error::Loader(e.to_string()))?;
        Ok(Self { handle, _image: None })
    }

    /// Loads the kernels section of a `.tsc`.
    pub(super) fn from_image(image: &[u8]) -> Result<Self, Error> {
        elf::check(image)?;
        let io = |e: std::io::Error| Error::Io { path: "memory for the kernels".into(), message: e.to_string() };
        // SAFETY: a plain system call with a constant name.
        let fd = unsafe { libc::memfd_create(c"transc".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io(std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(image).map_err(io)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the image was written by the compiler, as its checksum and descriptor name say; such images have no initialisers.
        let handle = unsafe { libloading::Library::new(path) }.map_err(|e| Error::Loader(e.to_string()))?;
        Ok(Self { handle, _image: Some(file) })
    }

    /// The descriptor, checked with [`check`].
    pub(super) fn descriptor(&self) -> Result<&ModelDescriptor, Error> {
        // SAFETY: only the address of the symbol is used.
        let symbol = unsafe { self.handle.get::<*const ModelDescriptor>(DESCRIPTOR_SYMBOL.as_bytes()) };
        let symbol = symbol.map_err(|_| Error::NotArtefact(format!("the library does not export `{DESCRIPTOR_SYMBOL}`")))?;
        // SAFETY: the symbol's value is the address of the descriptor, which is constant data of the library and lives as long as `self`.
        let descriptor = unsafe { symbol.into_raw().into_raw().cast::<ModelDescriptor>().as_ref() };
        let descriptor = descriptor.ok_or_else(|| Error::NotArtefact(format!("`{DESCRIPTOR_SYMBOL}` has no address")))?;
        check(descriptor)?;
        Ok(descriptor)
    }
}

/// Checks magic, version and the presence of the tables.
pub(super) fn check(d: &ModelDescriptor) -> Result<(), Error> {
    if d.magic != DESCRIPTOR_MAGIC {
        return Err(Error::NotArtefact("its descriptor is not that of a model".into()));
    }
    if d.abi_version != ABI_VERSION {
        return Err(Error::Version { what: "interface", found: d.abi_version, ours: ABI_VERSION });
    }
    let absent = d.kernels.is_null() && d.n_kernels != 0
        || d.plan.is_null() && d.plan_len != 0
        || d.weights.is_null() && d.weights_len != 0;
    if absent { Err(Error::Damaged("its descriptor lacks a table".into())) } else { Ok(()) }
}

/// The kernels of a descriptor that [`check`] accepts.
pub(super) fn kernels(d: &ModelDescriptor) -> Vec<KernelFn> {
    if d.n_kernels == 0 {
        return Vec::new();
    }
    // SAFETY: the descriptor states the length of its own table.
    unsafe { std::slice::from_raw_parts(d.kernels, d.n_kernels as usize) }.to_vec()
}

/// The encoded plan of a descriptor that [`check`] accepts; `None` if it has none.
pub(super) fn plan(d: &ModelDescriptor) -> Option<&[u8]> {
    if d.plan.is_null() {
        return None;
    }
    // SAFETY: the descriptor states pointer and length of its own constant data.
    Some(unsafe { std::slice::from_raw_parts(d.plan, d.plan_len as usize) })
}
