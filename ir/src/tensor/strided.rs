//! Which views of a tensor are still strided: element `i` at `offset + sum(stride[a] * i[a])`, but for an axis that lies in blocks.

use crate::op::Op;
use crate::types::Dim;

/// An axis of a view: extent and distance between neighbours in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Extent.
    pub extent: Dim,
    /// Distance; 0 where the axis is broadcast.
    pub stride: Dim,
}

/// An axis that lies in blocks, whose elements are neighbours in memory: element `i` is at `stride * (i - i mod len) + i mod len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The axis. Its extent is a multiple of the length.
    pub axis: usize,
    /// Elements of a block, a power of two.
    pub len: i64,
}

/// A strided view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    /// The axes, outermost first.
    pub axes: Vec<Axis>,
    /// Position of the first element.
    pub offset: Dim,
    /// The axis that lies in blocks, if one does.
    pub blocks: Option<Blocks>,
}

impl Strided {
    /// The whole of a row-major tensor.
    pub fn contiguous(dims: &[Dim]) -> Self {
        Self { axes: row_major(dims, Dim::from(1)), offset: 0.into(), blocks: None }
    }

    /// The view behind a view op; `None` for another op, or where the result is not strided any more.
    pub fn apply(&self, op: &Op) -> Option<Self> {
        match op {
            Op::Transpose(t) => Some(Self {
                axes: t.perm.iter().map(|p| self.axes.get(*p).cloned()).collect::<Option<_>>()?,
                offset: self.offset.clone(),
                blocks: self.blocks_at(|axis| t.perm.iter().position(|p| *p == axis))?,
            }),
            Op::Broadcast(b) => Some(self.broadcast(&b.dims)),
            Op::Slice(s) => {
                let mut out = self.clone();
                for (a, axis) in out.axes.iter_mut().enumerate() {
                    let in_blocks = self.blocks.is_some_and(|b| b.axis == a);
                    if in_blocks && !(s.starts[a].is(0) && s.steps[a] == 1 && s.sizes[a] == axis.extent) {
                        return None;
                    }
                    out.offset = &out.offset + &(&s.starts[a] * &axis.stride);
                    axis.stride = &axis.stride * &Dim::from(s.steps[a]);
                    axis.extent = s.sizes[a].clone();
                }
                Some(out)
            }
            Op::Reshape(r) => self.reshape(&r.dims),
            _ => None,
        }
    }

    /// The view behind a broadcast to `dims`.
    pub fn broadcast(&self, dims: &[Dim]) -> Self {
        let lead = dims.len().saturating_sub(self.axes.len());
        let axes = dims.iter().enumerate().map(|(i, d)| {
            let from = i.checked_sub(lead).map(|j| &self.axes[j]).filter(|a| a.extent == *d);
            let stride = from.map_or_else(|| 0.into(), |a| a.stride.clone());
            Axis { extent: d.clone(), stride }
        });
        let blocks = self.blocks.map(|b| Blocks { axis: b.axis + lead, ..b });
        Self { axes: axes.collect(), offset: self.offset.clone(), blocks }
    }

    /// The blocks of a view whose axes are others: `to` gives the new one. `None` if the axis that lies in blocks is none of them.
    fn blocks_at(&self, to: impl FnOnce(usize) -> Option<usize>) -> Option<Option<Blocks>> {
        let Some(b) = self.blocks else { return Some(None) };
        to(b.axis).map(|axis| Some(Blocks { axis, ..b }))
    }

    /// Splits and merges axes: in each of their [`groups`] one old axis splits freely, several merge only where each is contiguous with the next. An axis
    /// that lies in blocks is the last of its group before and behind, and still whole blocks long.
    pub fn reshape(&self, dims: &[Dim]) -> Option<Self> {
        if dims.iter().any(|d| d.is(0)) {
            return Some(Self::contiguous(dims));
        }
        let from: Vec<Dim> = self.axes.iter().map(|a| a.extent.clone()).collect();
        let mut axes: Vec<Axis> = dims.iter().map(|d| Axis { extent: d.clone(), stride: 0.into() }).collect();
        let groups = groups(&from, dims)?;
        let whole = |axis: &usize| self.blocks.is_some_and(|b| dims[*axis].modulo(&b.len.into()).is(0));
        let blocks = self.blocks_at(|axis| {
            let (_, new) = groups.iter().find(|(old, _)| old.last() == Some(&axis))?;
            new.last().copied().filter(whole)
        })?;
        for (old, new) in groups {
            let old: Vec<Axis> = old.into_iter().map(|i| self.axes[i].clone()).collect();
            let mut stride = merged(&old)?;
            for j in new.into_iter().rev() {
                let next = &stride * &dims[j];
                axes[j].stride = std::mem::replace(&mut stride, next);
            }
        }
        Some(Self { axes, offset: self.offset.clone(), blocks })
    }
}

/// The distance between neighbours of axes taken as one, if each is contiguous with the next.
pub fn merged(axes: &[Axis]) -> Option<Dim> {
    let contiguous = axes.windows(2).all(|w| w[0].stride == &w[1].stride * &w[1].extent);
    axes.last().filter(|_| contiguous).map(|a| a.stride.clone())
}

/// The axes before and behind a reshape, in the smallest groups of equal extents; axes of extent 1 are in none, and of a tensor
/// without elements others may be in none too. `None` if there are no such groups.
pub fn groups(from: &[Dim], to: &[Dim]) -> Option<Vec<(Vec<usize>, Vec<usize>)>> {
    let long = |dims: &[Dim]| (0..dims.len()).filter(|i| !dims[*i].is(1)).collect::<Vec<usize>>();
    let (sources, targets) = (long(from), long(to));
    let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
    while i < sources.len() && j < targets.len() {
        let (first_source, first_target) = (i, j);
        let (mut before, mut after) = (from[sources[i]].clone(), to[targets[j]].clone());
        (i, j) = (i + 1, j + 1);
        while before != after {
            let source_is_short = after.exact_div(&before).is_some();
            if i < sources.len() && (source_is_short || j == targets.len()) {
                before = &before * &from[sources[i]];
                i += 1;
            } else {
                after = &after * &to[*targets.get(j)?];
                j += 1;
            }
        }
        out.push((sources[first_source..i].to_vec(), targets[first_target..j].to_vec()));
    }
    Some(out)
}

/// Axes of row-major dims whose last axis has a given stride.
fn row_major(dims: &[Dim], last: Dim) -> Vec<Axis> {
    let mut stride = last;
    let mut axes: Vec<Axis> = dims
        .iter()
        .rev()
        .map(|d| {
            let axis = Axis { extent: d.clone(), stride: stride.clone() };
            stride = &stride * d;
            axis
        })
        .collect();
    axes.reverse();
    axes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Reshape, Transpose};

    fn dims(d: &[i64]) -> Vec<Dim> {
        d.iter().map(|d| Dim::from(*d)).collect()
    }

    fn strides(s: &Strided) -> Vec<String> {
        s.axes.iter().map(|a| a.stride.to_string()).collect()
    }

    #[test]
    fn heads_split_and_do_not_merge_back_after_a_transposition() {
        let (b, s) = (Dim::sym("B"), Dim::sym("S"));
        let x = Strided::contiguous(&[b.clone(), s.clone(), 768.into()]);
        let heads = x.apply(&Reshape { dims: vec![b.clone(), s.clone(), 12.into(), 64.into()] }.into()).expect("splits");
        let q = heads.apply(&Transpose { perm: vec![0, 2, 1, 3] }.into()).expect("permutes");
        assert_eq!(strides(&q), ["768*S", "64", "768", "1"]);
        assert_eq!(q.apply(&Reshape { dims: vec![b.clone(), 12.into(), &s * &64.into()] }.into()), None);
        let back = q.apply(&Transpose { perm: vec![0, 2, 1, 3] }.into()).expect("permutes");
        let merged = back.apply(&Reshape { dims: vec![&b * &s, 768.into()] }.into()).expect("merges");
        assert_eq!(strides(&merged), ["768", "1"]);
    }

    #[test]
    fn blocks_stay_whole() {
        // `[2, 128, 96]` as `[2, 128 / 64, 96, 64]`.
        let axes = [(2, 128 * 96), (128, 96), (96, 64)].map(|(n, stride)| Axis { extent: n.into(), stride: stride.into() });
        let x = Strided { axes: axes.into(), offset: 0.into(), blocks: Some(Blocks { axis: 1, len: 64 }) };
        let heads = x.reshape(&dims(&[2, 128, 4, 24])).expect("splits");
        let heads = heads.apply(&Transpose { perm: vec![0, 2, 1, 3] }.into()).expect("permutes");
        assert_eq!(
            (strides(&heads), heads.blocks),
            (vec!["12288".into(), "1536".into(), "96".into(), "64".into()], Some(Blocks { axis: 2, len: 64 }))
        );
        let rows = x.reshape(&dims(&[256, 96])).expect("merges");
        assert_eq!((strides(&rows), rows.blocks), (vec!["96".into(), "64".into()], Some(Blocks { axis: 0, len: 64 })));
        assert_eq!(x.reshape(&dims(&[4, 64, 96])).and_then(|y| y.blocks), Some(Blocks { axis: 1, len: 64 }));
        assert_eq!(x.reshape(&dims(&[8, 32, 96])), None);
        assert_eq!(x.reshape(&dims(&[2, 128 * 96])), None);
    }

    #[test]
    fn groups_are_the_smallest() {
        let (b, s) = (Dim::sym("B"), Dim::sym("S"));
        let from = [b.clone(), s.clone(), 1.into(), 12.into(), 64.into()];
        let to = [&b * &s, 768.into(), 1.into()];
        assert_eq!(groups(&from, &to), Some(vec![(vec![0, 1], vec![0]), (vec![3, 4], vec![1])]));
        assert_eq!(groups(&dims(&[4, 6, 5]), &dims(&[6, 4, 5])), Some(vec![(vec![0, 1], vec![0, 1]), (vec![2], vec![2])]));
        assert_eq!(groups(&[b, 2.into()], &[s, 2.into()]), None);
    }

    #[test]
    fn a_regrouping_of_contiguous_axes_is_strided() {
        let x = Strided::contiguous(&dims(&[4, 6, 5]));
        let y = x.apply(&Reshape { dims: dims(&[6, 4, 1, 5]) }.into()).expect("regroups");
        assert_eq!(strides(&y), ["20", "5", "0", "1"]);
        let t = x.apply(&Transpose { perm: vec![1, 0, 2] }.into()).expect("permutes");
        assert_eq!(t.apply(&Reshape { dims: dims(&[4, 6, 5]) }.into()), None);
    }
}
