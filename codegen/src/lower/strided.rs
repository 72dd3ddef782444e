//! Values that are views of one buffer: offset and strides.

use transc_ir::Value;
use transc_ir::op::Op;
use transc_ir::types::Dim;

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

/// Follows views down to a buffer; `None` where the index is not affine.
pub(crate) fn strided(r: &Region, v: Value) -> Option<Strided> {
    let dims = &r.ty(v).dims;
    let Some(node) = r.body.def_node(v) else { return Some(dense(v, dims)) };
    let inner = || strided(r, node.operands[0]);
    match &node.op {
        Op::Constant(_) => Some(dense(v, dims)),
        Op::Transpose(t) => {
            let s = inner()?;
            Some(Strided { strides: t.perm.iter().map(|p| s.strides[*p].clone()).collect(), ..s })
        }
        Op::Slice(sl) => {
            let s = inner()?;
            let offset = sl.starts.iter().zip(&s.strides).fold(s.offset.clone(), |a, (start, stride)| &a + &(start * stride));
            let strides = s.strides.iter().zip(&sl.steps).map(|(s, step)| s * &Dim::from(*step)).collect();
            Some(Strided { offset, strides, ..s })
        }
        Op::Broadcast(_) => {
            let s = inner()?;
            let from = &r.ty(node.operands[0]).dims;
            let skip = dims.len() - from.len();
            let stride = |i: usize| {
                if i < skip || from[i - skip].is(1) && !dims[i].is(1) { Dim::from(0) } else { s.strides[i - skip].clone() }
            };
            Some(Strided { strides: (0..dims.len()).map(stride).collect(), ..s })
        }
        Op::Reshape(_) => {
            let s = inner()?;
            let strides = reshape(&r.ty(node.operands[0]).dims, &s.strides, dims)?;
            Some(Strided { strides, ..s })
        }
        _ => None,
    }
}

fn dense(v: Value, dims: &[Dim]) -> Strided {
    let mut strides = vec![Dim::from(1); dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = &strides[i] * &dims[i];
    }
    Strided { base: v, offset: Dim::from(0), strides }
}

/// Strides after a reshape, if each group of axes with equal products lies evenly in memory.
fn reshape(from: &[Dim], strides: &[Dim], to: &[Dim]) -> Option<Vec<Dim>> {
    let mut out = vec![Dim::from(0); to.len()];
    let sources: Vec<usize> = (0..from.len()).filter(|i| !from[*i].is(1)).collect();
    let targets: Vec<usize> = (0..to.len()).filter(|j| !to[*j].is(1)).collect();
    let (mut i, mut j) = (0, 0);
    while i < sources.len() && j < targets.len() {
        let (mut a, mut b) = (from[sources[i]].clone(), to[targets[j]].clone());
        let (mut i1, mut j1) = (i + 1, j + 1);
        while a != b {
            let source_is_short = b.exact_div(&a).is_some();
            if i1 < sources.len() && (source_is_short || j1 == targets.len()) {
                a = &a * &from[sources[i1]];
                i1 += 1;
            } else if j1 < targets.len() {
                b = &b * &to[targets[j1]];
                j1 += 1;
            } else {
                return None;
            }
        }
        let group: Vec<(Dim, Dim)> = sources[i..i1].iter().map(|s| (from[*s].clone(), strides[*s].clone())).collect();
        let mut stride = merged(&group)?;
        for t in targets[j..j1].iter().rev() {
            out[*t] = stride.clone();
            stride = &stride * &to[*t];
        }
        (i, j) = (i1, j1);
    }
    Some(out)
}

/// The stride of the flat index of axes `(extent, stride)`, if they lie evenly: each stride is the next one's times its extent.
pub(crate) fn merged(axes: &[(Dim, Dim)]) -> Option<Dim> {
    let (_, last) = axes.last()?;
    let even = axes.windows(2).all(|w| w[0].1 == &w[1].1 * &w[1].0);
    even.then(|| last.clone())
}
