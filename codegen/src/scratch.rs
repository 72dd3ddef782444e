//! Where a kernel's scratch blocks lie.

use transc_ir::loops::{Kernel, LocalBuf, Space};
use transc_ir::types::Dim;

/// Byte offsets of the scratch blocks in the memory of their space, aligned.
pub(crate) fn local_offsets(k: &Kernel) -> Vec<Dim> {
    let mut ends = [Dim::from(0), Dim::from(0)];
    k.locals
        .iter()
        .map(|l| {
            let end = &mut ends[usize::from(l.space == Space::Shared)];
            let next = &*end + &padded(l);
            std::mem::replace(end, next)
        })
        .collect()
}

fn padded(l: &LocalBuf) -> Dim {
    let align = match l.space {
        Space::Thread => 64,
        Space::Shared => 16,
    };
    let bytes = &l.len * &Dim::from(l.dtype.size_bytes());
    &bytes.ceil_div(&align.into()) * &Dim::from(align)
}

/// Scratch memory of a kernel in one space in bytes.
pub(crate) fn scratch_len(k: &Kernel, space: Space) -> Dim {
    k.locals.iter().filter(|l| l.space == space).fold(Dim::from(0), |a, l| &a + &padded(l))
}
