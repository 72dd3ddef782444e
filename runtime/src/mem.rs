//! Aligned memory, mapped files, and views of bytes as elements.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::ptr::NonNull;

use crate::Error;
use crate::tensor::Element;

/// Alignment of everything that the runtime allocates for kernels, in bytes.
pub const ALIGN: usize = 64;

/// A zeroed block of bytes at a multiple of [`ALIGN`].
pub struct AlignedBytes {
    /// What the allocator gave; dangling if `len` is 0.
    base: NonNull<u8>,
    /// The aligned start inside the allocation.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is owned, like a `Vec<u8>`.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// A block of `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] if they are not to be had.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        if len == 0 {
            let empty = NonNull::<Line>::dangling().cast();
            return Ok(Self { base: empty, start: empty, len });
        }
        let layout = layout(len).ok_or(Error::Memory(len))?;
        // SAFETY: the layout has a size greater than zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Error::Memory(len))?;
        let skip = base.as_ptr().align_offset(ALIGN);
        // SAFETY: `skip < ALIGN`, and the allocation has `len + ALIGN` bytes.
        let start = unsafe { base.add(skip) };
        ask_for_huge_pages(start, len);
        Ok(Self { base, start, len })
    }

    /// A copy of bytes.
    ///
    /// # Errors
    /// As [`AlignedBytes::zeroed`].
    pub fn copied(bytes: &[u8]) -> Result<Self, Error> {
        let mut block = Self::zeroed(bytes.len())?;
        block.as_mut_slice().copy_from_slice(bytes);
        Ok(block)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes, or aligned and `len` is 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The first byte. Writing through it needs exclusive access to the block.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len > 0
            && let Some(layout) = layout(self.len)
        {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// Room to align by hand: for the allocator's own alignment it can take zero pages of the system, for a larger one it clears them.
fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len.checked_add(ALIGN)?, 1).ok()
}

#[repr(align(64))]
struct Line;

/// The bytes of elements.
pub(crate) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element` is sealed and implemented by primitive numbers only, which have no padding; `u8` has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Bytes as elements; `None` if they are misaligned or not a whole number of elements.
pub(crate) fn elements<T: Element>(bytes: &[u8]) -> Option<&[T]> {
    if !bytes.as_ptr().cast::<T>().is_aligned() || !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    // SAFETY: alignment and length were checked, and every bit pattern is a value of the primitive numbers that implement `Element`.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

/// Asks for huge pages before the block is first touched: weights and activations are read front to back, and small pages cost a walk of the page
/// tables every 4 KiB. The pages themselves come from the thread that touches them first.
fn ask_for_huge_pages(start: NonNull<u8>, len: usize) {
    const HUGE: usize = 2 << 20;
    let skip = start.as_ptr().align_offset(HUGE);
    let Some(inside) = len.checked_sub(skip).map(|n| n / HUGE * HUGE).filter(|n| *n > 0) else { return };
    // SAFETY: the range lies inside the block; the advice changes no content, and a refusal changes nothing.
    unsafe { libc::madvise(start.as_ptr().add(skip).cast(), inside, libc::MADV_HUGEPAGE) };
}

/// Maps a file read-only.
///
/// # Errors
/// If the system refuses.
pub fn map_file(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the mapping is private and read-only. Artefacts are replaced by renaming, never rewritten in place, so the bytes do not
    // change under the mapping unless another program breaks that rule on purpose.
    unsafe { memmap2::Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zero_and_sized() {
        for len in [0, 1, 63, 64, 65, 5000, 1 << 20] {
            let mut b = AlignedBytes::zeroed(len).expect("memory");
            assert!(b.as_ptr().addr().is_multiple_of(ALIGN) && b.len() == len);
            assert!(b.as_slice().iter().all(|x| *x == 0));
            b.as_mut_slice().fill(7);
        }
        assert!(matches!(AlignedBytes::zeroed(usize::MAX), Err(Error::Memory(_))));
        assert!(matches!(AlignedBytes::zeroed(isize::MAX as usize), Err(Error::Memory(_))));
    }

    #[test]
    fn views_of_elements_check_alignment_and_length() {
        let b = AlignedBytes::copied(bytes_of(&[1.5f32, -2.0])).expect("memory");
        assert_eq!(elements::<f32>(b.as_slice()), Some(&[1.5, -2.0][..]));
        assert_eq!(elements::<f32>(&b.as_slice()[1..5]), None);
        assert_eq!(elements::<f32>(&b.as_slice()[..3]), None);
    }
}
