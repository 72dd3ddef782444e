//! The packed weights of a model, wherever they lie.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::mem::AlignedBytes;

/// Read-only bytes and what keeps them in memory.
pub struct Weights {
    _owner: Arc<dyn Any + Send + Sync>,
    ptr: *const u8,
    len: usize,
}

// SAFETY: read-only memory kept alive by the owner, which itself may move between threads.
unsafe impl Send for Weights {}
// SAFETY: as above; nobody writes.
unsafe impl Sync for Weights {}

impl From<AlignedBytes> for Weights {
    fn from(bytes: AlignedBytes) -> Self {
        Self::owned(bytes)
    }
}

impl From<Arc<AlignedBytes>> for Weights {
    fn from(bytes: Arc<AlignedBytes>) -> Self {
        let (ptr, len) = (bytes.as_ptr().cast_const(), bytes.len());
        Self { _owner: bytes, ptr, len }
    }
}

impl Weights {
    /// Weights in owned memory.
    pub fn owned(bytes: AlignedBytes) -> Self {
        Self::from(Arc::new(bytes))
    }

    /// A range of a mapped file; `None` if it lies outside.
    pub(super) fn mapped(map: Arc<memmap2::Mmap>, range: Range<usize>) -> Option<Self> {
        let bytes = map.get(range)?;
        let (ptr, len) = (bytes.as_ptr(), bytes.len());
        Some(Self { _owner: map, ptr, len })
    }

    /// Constant data of a loaded library; `ptr` may be null if `len` is 0.
    ///
    /// # Safety
    /// The bytes must stay valid and unchanged as long as `owner` lives.
    pub(super) unsafe fn linked(owner: Arc<dyn Any + Send + Sync>, ptr: *const u8, len: usize) -> Self {
        Self { _owner: owner, ptr, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: every constructor gives `len` valid bytes that nobody writes as long as the owner lives.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}
