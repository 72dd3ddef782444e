//! Values that are views of one buffer: offset and strides.

use transc_ir::Value;
use transc_ir::op::Op;
use transc_ir::tensor::strided::{Blocks, Strided as View};
use transc_ir::types::Dim;

use super::region::Region;

/// A strided view: element `idx` is element `offset + sum of idx[i]*strides[i]` of `base`, but for an axis that lies in blocks.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    /// A parameter or constant of the region.
    pub(crate) base: Value,
    /// Offset in elements.
    pub(crate) offset: Dim,
    /// Distance along each axis in elements.
    pub(crate) strides: Vec<Dim>,
    /// The axis that lies in blocks, if one does.
    pub(crate) blocks: Option<Blocks>,
}

impl Strided {
    fn new(base: Value, view: View) -> Self {
        Self { base, offset: view.offset, strides: view.axes.into_iter().map(|a| a.stride).collect(), blocks: view.blocks }
    }

    /// True if neighbours along an axis, those of a block at least, lie beside each other.
    pub(crate) fn beside(&self, axis: usize) -> bool {
        match self.blocks {
            Some(b) => b.axis == axis,
            None => self.strides.get(axis).is_some_and(|s| s.is(1)),
        }
    }
}

/// All of a parameter, a constant or a result.
pub(crate) fn whole(r: &Region, v: Value) -> Strided {
    Strided::new(v, r.view(v))
}

/// Follows views down to a buffer; `None` where the index is not affine.
pub(crate) fn strided(r: &Region, v: Value) -> Option<Strided> {
    in_blocks(r, v).filter(|s| s.blocks.is_none())
}

/// The same where an axis may lie in blocks.
pub(crate) fn in_blocks(r: &Region, v: Value) -> Option<Strided> {
    let (base, view) = view(r, v)?;
    Some(Strided::new(base, view))
}

fn view(r: &Region, v: Value) -> Option<(Value, View)> {
    match r.body.def_node(v) {
        Some(node) if !matches!(node.op, Op::Constant(_)) => {
            let (base, inner) = view(r, *node.operands.first()?)?;
            Some((base, inner.apply(&node.op)?))
        }
        _ => Some((v, r.view(v))),
    }
}
