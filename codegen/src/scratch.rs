//! Where a kernel's scratch blocks lie.

use transc_ir::loops::Kernel;
use transc_ir::types::{DType, Dim};

/// Byte offsets of the scratch blocks, each at a multiple of 64.
pub(crate) fn local_offsets(k: &Kernel) -> Vec<Dim> {
    let mut at = Dim::from(0);
    k.locals
        .iter()
        .map(|l| {
            let here = at.clone();
            at = &at + &padded(&l.len, l.dtype);
            here
        })
        .collect()
}

fn padded(len: &Dim, d: DType) -> Dim {
    let bytes = len * &Dim::from(d.size_bytes());
    &bytes.ceil_div(&64.into()) * &Dim::from(64)
}

/// Scratch memory of a kernel in bytes.
pub(crate) fn scratch_len(k: &Kernel) -> Dim {
    k.locals.iter().fold(Dim::from(0), |a, l| &a + &padded(&l.len, l.dtype))
}
