//! Which views of a row-major tensor are still strided: element `i` at `offset + sum(stride[a] * i[a])`.

use transc_ir::Dim;
use transc_ir::op::Op;

/// An axis of a view: extent and distance between neighbours in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Extent.
    pub extent: Dim,
    /// Distance; 0 where the axis is broadcast.
    pub stride: Dim,
}

/// A strided view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    /// The axes, outermost first.
    pub axes: Vec<Axis>,
    /// Position of the first element.
    pub offset: Dim,
}

impl Strided {
    /// The whole of a row-major tensor.
    pub fn contiguous(dims: &[Dim]) -> Self {
        Self { axes: row_major(dims, Dim::from(1)), offset: 0.into() }
    }

    /// The view behind a view op; `None` for another op, or where the result is not strided any more.
    pub fn apply(&self, op: &Op) -> Option<Self> {
        match op {
            Op::Transpose(t) => Some(Self {
                axes: t.perm.iter().map(|p| self.axes.get(*p).cloned()).collect::<Option<_>>()?,
                offset: self.offset.clone(),
            }),
            Op::Broadcast(b) => Some(self.broadcast(&b.dims)),
            Op::Slice(s) => {
                let mut out = self.clone();
                for (a, axis) in out.axes.iter_mut().enumerate() {
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
        Self { axes: axes.collect(), offset: self.offset.clone() }
    }

    /// Splits and merges axes. Old and new axes fall into the smallest groups of equal products; a group of one old axis splits
    /// freely, several old axes merge only where each is contiguous with the next.
    pub fn reshape(&self, dims: &[Dim]) -> Option<Self> {
        if dims.iter().any(|d| d.is(0)) {
            return Some(Self::contiguous(dims));
        }
        let old: Vec<&Axis> = self.axes.iter().filter(|a| !a.extent.is(1)).collect();
        let (mut axes, mut i, mut j) = (Vec::with_capacity(dims.len()), 0, 0);
        while j < dims.len() {
            if dims[j].is(1) {
                axes.push(Axis { extent: dims[j].clone(), stride: 0.into() });
                j += 1;
                continue;
            }
            let (first_old, first_new) = (i, j);
            let (mut before, mut after) = (old.get(i)?.extent.clone(), dims[j].clone());
            (i, j) = (i + 1, j + 1);
            while before != after {
                let more_new = before.exact_div(&after).is_some();
                let more_old = !more_new && after.exact_div(&before).is_some();
                if !more_old {
                    after = &after * dims.get(j)?;
                    j += 1;
                }
                if !more_new {
                    before = &before * &old.get(i)?.extent;
                    i += 1;
                }
            }
            let group = &old[first_old..i];
            let mergeable = group.windows(2).all(|w| w[0].stride == &w[1].stride * &w[1].extent);
            if !mergeable {
                return None;
            }
            axes.extend(row_major(&dims[first_new..j], group.last()?.stride.clone()));
        }
        (i == old.len()).then(|| Self { axes, offset: self.offset.clone() })
    }
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
    use transc_ir::op::{Reshape, Transpose};

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
    fn a_regrouping_of_contiguous_axes_is_strided() {
        let x = Strided::contiguous(&dims(&[4, 6, 5]));
        let y = x.apply(&Reshape { dims: dims(&[6, 4, 1, 5]) }.into()).expect("regroups");
        assert_eq!(strides(&y), ["20", "5", "0", "1"]);
        let t = x.apply(&Transpose { perm: vec![1, 0, 2] }.into()).expect("permutes");
        assert_eq!(t.apply(&Reshape { dims: dims(&[4, 6, 5]) }.into()), None);
    }
}
