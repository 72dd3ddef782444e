//! Values that are views of one buffer: offset and strides.

use transc_ir::Value;
use transc_ir::op::Op;
use transc_ir::tensor::strided::Strided as View;
use transc_ir::types::Dim;

use super::layout;
use super::region::Region;

/// A strided view: element `idx` is element `offset + sum of idx[i]*strides[i]` of `base`.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    /// A parameter or constant of the region.
    pub(crate) base: Value,
    /// Offset in elements.
    pub(crate) offset: Dim,
    /// Distance along each axis in elements.
    pub(crate) strides: Vec<Dim>,
}

/// All of a parameter, a constant or a result.
pub(crate) fn whole(r: &Region, v: Value) -> Strided {
    Strided { base: v, offset: 0.into(), strides: r.strides(v) }
}

/// Follows views down to a buffer; `None` where the index is not affine.
pub(crate) fn strided(r: &Region, v: Value) -> Option<Strided> {
    let (base, view) = view(r, v)?;
    Some(Strided { base, offset: view.offset, strides: view.axes.into_iter().map(|a| a.stride).collect() })
}

fn view(r: &Region, v: Value) -> Option<(Value, View)> {
    match r.body.def_node(v) {
        Some(node) if !matches!(node.op, Op::Constant(_)) => {
            let (base, inner) = view(r, *node.operands.first()?)?;
            Some((base, inner.apply(&node.op)?))
        }
        _ => Some((v, layout::whole(&r.ty(v).dims, r.order(v)))),
    }
}
