//! Indices of elements: a register plus a constant step per vector lane.

use transc_ir::loops::{KernelBuilder, Reg};
use transc_ir::scalar::BinOp;
use transc_ir::tensor::strided::groups;
use transc_ir::types::Dim;

/// The index of lane `l` along one axis: `reg + l * step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    /// Index of lane 0.
    pub(crate) reg: Reg,
    /// Distance between lanes.
    pub(crate) step: i64,
    /// True if lane 0 is at a multiple of the vector width.
    pub(crate) aligned: bool,
}

impl Index {
    /// Neighbours from a multiple of the vector width on.
    pub(crate) fn vector(reg: Reg) -> Self {
        Self { reg, step: 1, aligned: true }
    }

    /// The same index for all lanes.
    pub(crate) fn scalar(reg: Reg) -> Self {
        Self { reg, step: 0, aligned: false }
    }
}

/// Maps an index of a reshaped tensor back to one of its source; `None` if a lane's index is not affine in the lane.
pub(crate) fn through_reshape(kb: &mut KernelBuilder, from: &[Dim], to: &[Dim], idx: &[Index], lanes: u16) -> Option<Vec<Index>> {
    let mut out = vec![Index::scalar(kb.index(0)); from.len()];
    // Axes of extent 1 carry no index.
    for (sources, targets) in groups(from, to)? {
        let flat = merge(kb, to, idx, &targets, lanes)?;
        split(kb, from, &sources, flat, lanes, &mut out)?;
    }
    Some(out)
}

/// The flat index of a group of axes.
fn merge(kb: &mut KernelBuilder, dims: &[Dim], idx: &[Index], axes: &[usize], lanes: u16) -> Option<Index> {
    let mut flat = idx[axes[0]];
    for j in &axes[1..] {
        let extent = kb.dim(&dims[*j]);
        let scaled = kb.mul(flat.reg, extent);
        // A lane step on an outer axis needs a constant inner extent.
        let step = if flat.step == 0 { 0 } else { flat.step.checked_mul(dims[*j].as_const()?)? };
        let whole = dims[*j].as_const().is_some_and(|n| n % i64::from(lanes) == 0);
        flat = Index { reg: kb.add(scaled, idx[*j].reg), step: step + idx[*j].step, aligned: idx[*j].aligned && whole };
    }
    Some(flat)
}

/// Splits a flat index along a group of axes.
fn split(kb: &mut KernelBuilder, dims: &[Dim], axes: &[usize], flat: Index, lanes: u16, out: &mut [Index]) -> Option<()> {
    let mut rest = flat;
    for i in axes[1..].iter().rev() {
        let extent = kb.dim(&dims[*i]);
        let whole = dims[*i].as_const().is_some_and(|d| d % i64::from(lanes) == 0);
        if rest.step != 0 && !(rest.step == 1 && rest.aligned && whole) {
            return None;
        }
        out[*i] = Index { reg: kb.bin(BinOp::Rem, rest.reg, extent), ..rest };
        rest = Index::scalar(kb.bin(BinOp::Div, rest.reg, extent));
    }
    out[axes[0]] = rest;
    Some(())
}
