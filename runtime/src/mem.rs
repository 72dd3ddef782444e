//! Aligned memory and mapped files.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::ptr::NonNull;

use crate::Error;

/// Alignment of everything that kernels touch, in bytes.
pub const ALIGN: usize = 64;

/// A zeroed block of bytes at a multiple of [`ALIGN`].
pub struct AlignedBytes {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is owned, like a `Vec<u8>`.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// A block of `len` zero bytes.
    ///
    /// # Errors
    /// If the memory is not to be had.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        if len == 0 {
            // Never dereferenced, but aligned.
            return Ok(Self { ptr: NonNull::<Line>::dangling().cast(), len });
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| Error::Memory(len))?;
        // SAFETY: the layout has a size greater than zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Ok(Self { ptr: NonNull::new(ptr).ok_or(Error::Memory(len))?, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes, or `len` is 0.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len > 0
            && let Ok(layout) = Layout::from_size_align(self.len, ALIGN)
        {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

#[repr(align(64))]
struct Line;

/// Maps a file read-only.
///
/// # Errors
/// If the system refuses.
pub fn map_file(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the mapping is private and read-only. Artefacts are replaced by renaming, never rewritten in place, so the bytes do not
    // change under the mapping unless another program breaks that rule on purpose.
    unsafe { memmap2::Mmap::map(file) }
}
