//! Which indices of its operands an op reads, given those of its result that somebody reads.

use transc_ir::op::{Contract, Op, Slice};
use transc_ir::tensor::{Func, Node, NodeId};
use transc_ir::types::Dim;

use super::narrow::Changes;

/// The indices that are kept along an axis, ascending; `None` for all.
pub(super) type Keep = Option<Vec<usize>>;

/// What an op reads and gives.
pub(super) struct Reads {
    /// By operand and axis.
    pub(super) operands: Vec<Vec<Keep>>,
    /// By axis of the result: what it has when it reads this. At least what was asked for.
    pub(super) given: Vec<Keep>,
}

/// What a node reads for the wanted indices of its result.
pub(super) fn reads(f: &Func, id: NodeId, node: &Node, wanted: &[Keep], changes: &Changes) -> Reads {
    let ranks = node.operands.iter().map(|v| f.ty(*v).rank());
    let mut r = Reads { operands: ranks.map(|n| vec![None; n]).collect(), given: vec![None; wanted.len()] };
    let ([_], true) = (node.results.as_slice(), wanted.len() == node.results.first().map_or(0, |v| f.ty(*v).rank())) else {
        return r;
    };
    let at = Place { f, node, wanted };
    match &node.op {
        Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::Broadcast(_) => at.aligned(&mut r, |_| true),
        Op::Rope(_) => at.aligned(&mut r, |axis| axis + 1 < wanted.len()),
        Op::Softmax(s) => at.aligned(&mut r, |axis| axis != s.axis),
        Op::LayerNorm(n) => at.norm(&mut r, n.axis, changes.inside(id)),
        Op::RmsNorm(n) => at.norm(&mut r, n.axis, changes.inside(id)),
        Op::Contract(c) => at.contract(&mut r, c, id, changes),
        Op::Transpose(t) => {
            for (to, from) in t.perm.iter().enumerate() {
                r.operands[0][*from].clone_from(&wanted[to]);
            }
            r.given = wanted.to_vec();
        }
        Op::Reduce(o) => {
            let kept = (0..r.operands[0].len()).filter(|a| !o.axes.contains(a));
            for (i, a) in kept.enumerate() {
                r.operands[0][a].clone_from(&wanted[if o.keep { a } else { i }]);
            }
            if let Some((axis, keep)) = changes.inside(id) {
                r.operands[0][axis].clone_from(keep);
            }
            r.given = wanted.to_vec();
        }
        Op::Gather(g) => {
            let (data, index) = (r.operands[0].len(), r.operands[1].len());
            for a in (0..data).filter(|a| *a != g.axis) {
                r.operands[0][a].clone_from(&wanted[if a < g.axis { a } else { a + index - 1 }]);
            }
            r.operands[1].clone_from_slice(&wanted[g.axis..g.axis + index]);
            r.given = wanted.to_vec();
        }
        Op::Slice(s) => at.slice(&mut r, s),
        Op::Concat(c) => at.concat(&mut r, c.axis),
        Op::Reshape(_) => at.reshape(&mut r),
        Op::Attention(_) => at.attention(&mut r),
        _ => {}
    }
    r
}

struct Place<'a> {
    f: &'a Func,
    node: &'a Node,
    wanted: &'a [Keep],
}

impl<'a> Place<'a> {
    fn dims(&self, operand: usize) -> &'a [Dim] {
        &self.f.ty(self.node.operands[operand]).dims
    }

    fn out(&self) -> &'a [Dim] {
        &self.f.ty(self.node.results[0]).dims
    }

    /// Operands whose axes are those of the result from the right, or are stretched to them.
    fn aligned(&self, r: &mut Reads, free: impl Fn(usize) -> bool) {
        r.given = self.wanted.iter().enumerate().map(|(a, k)| k.clone().filter(|_| free(a))).collect();
        for (i, keeps) in r.operands.iter_mut().enumerate() {
            self.align(self.dims(i), &r.given, keeps);
        }
    }

    fn align(&self, dims: &[Dim], given: &[Keep], keeps: &mut [Keep]) {
        let skip = given.len() - dims.len();
        for (a, keep) in keeps.iter_mut().enumerate() {
            if dims[a] == self.out()[a + skip] {
                keep.clone_from(&given[a + skip]);
            }
        }
    }

    /// `inside`: the normalised axis, and what is left of it.
    fn norm(&self, r: &mut Reads, first: usize, inside: Option<(usize, &Keep)>) {
        self.aligned(r, |axis| axis < first);
        if let Some((axis, keep)) = inside {
            r.given[axis].clone_from(keep);
            for (i, keeps) in r.operands.iter_mut().enumerate() {
                self.align(self.dims(i), &r.given, keeps);
            }
        }
    }

    fn contract(&self, r: &mut Reads, c: &Contract, id: NodeId, changes: &Changes) {
        for (labels, keeps) in [&c.lhs, &c.rhs].into_iter().zip(&mut r.operands) {
            for (l, keep) in labels.iter().zip(keeps) {
                if let Some(at) = c.out.iter().position(|o| o == l) {
                    keep.clone_from(&self.wanted[at]);
                }
            }
        }
        if let Some(cut) = changes.cuts.get(&id) {
            for (axis, keeps) in cut.axes.into_iter().zip(&mut r.operands) {
                keeps[axis] = Some(cut.keep.clone()).filter(|k| k.len() < cut.inputs);
            }
        }
        r.given = self.wanted.to_vec();
    }

    fn slice(&self, r: &mut Reads, s: &Slice) {
        for (a, keep) in self.wanted.iter().enumerate() {
            if let (Some(keep), Some(start), Ok(step)) = (keep, s.starts[a].as_usize(), usize::try_from(s.steps[a])) {
                r.operands[0][a] = Some(keep.iter().map(|k| start + k * step).collect());
                r.given[a] = Some(keep.clone());
            }
        }
    }

    fn concat(&self, r: &mut Reads, axis: usize) {
        r.given = self.wanted.to_vec();
        let sizes: Option<Vec<usize>> = (0..r.operands.len()).map(|i| self.dims(i)[axis].as_usize()).collect();
        if sizes.is_none() {
            r.given[axis] = None;
        }
        let mut start = 0;
        for (i, keeps) in r.operands.iter_mut().enumerate() {
            keeps.clone_from_slice(&r.given);
            if let (Some(all), Some(sizes)) = (&r.given[axis], &sizes) {
                let own = all.iter().filter(|k| (start..start + sizes[i]).contains(k)).map(|k| k - start).collect::<Vec<_>>();
                keeps[axis] = (own.len() < sizes[i]).then_some(own);
                start += sizes[i];
            }
        }
    }

    fn attention(&self, r: &mut Reads) {
        let (heads, groups) = (self.out()[1].as_usize(), self.dims(1)[1].as_usize());
        // A head of keys goes with all heads of queries that read it, or not at all.
        let shared = heads.zip(groups).map(|(h, g)| h / g.max(1)).unwrap_or(1).max(1);
        let key_heads = self.wanted[1].as_ref().and_then(|k| {
            let whole = k.len().is_multiple_of(shared)
                && k.chunks(shared).all(|c| c[0] % shared == 0 && c[shared - 1] == c[0] + shared - 1);
            (heads.is_some() && whole).then(|| k.iter().step_by(shared).map(|h| h / shared).collect::<Vec<_>>())
        });
        let query_heads = self.wanted[1].clone().filter(|_| key_heads.is_some());
        r.given[1].clone_from(&query_heads);
        r.given[3].clone_from(&self.wanted[3]);
        r.operands[0][1].clone_from(&query_heads);
        r.operands[1][1].clone_from(&key_heads);
        r.operands[2][1] = key_heads;
        r.operands[2][3].clone_from(&self.wanted[3]);
        if let Some(mask) = r.operands.get_mut(3) {
            // Aligned from the right to `[B, H, Sq, Sk]`.
            let n = mask.len();
            if n >= 3 && self.dims(3)[n - 3] == self.out()[1] {
                mask[n - 3] = query_heads;
            }
        }
    }

    /// Axes that merge or split keep apart what lies in a box.
    fn reshape(&self, r: &mut Reads) {
        let (from, to) = (self.dims(0), self.out());
        for g in groups(from, to) {
            let sizes = |dims: &[Dim]| dims.iter().map(Dim::as_usize).collect::<Option<Vec<_>>>();
            let wanted = &self.wanted[g.to.clone()];
            if wanted.iter().all(Option::is_none) {
                continue;
            }
            match (g.from.len(), g.to.len(), sizes(&to[g.to.clone()]), sizes(&from[g.from.clone()])) {
                (1, 1, ..) => {
                    r.operands[0][g.from.start].clone_from(&wanted[0]);
                    r.given[g.to.start].clone_from(&wanted[0]);
                }
                (1, _, Some(to), _) => {
                    r.operands[0][g.from.start] = Some(whole_box(wanted, &to));
                    r.given[g.to].clone_from_slice(wanted);
                }
                (_, 1, _, Some(from)) => {
                    let keep = wanted[0].as_deref().unwrap_or(&[]);
                    let sides = sides(keep, &from);
                    if whole_box(&sides, &from) == keep {
                        r.operands[0][g.from].clone_from_slice(&sides);
                        r.given[g.to.start] = Some(keep.to_vec());
                    }
                }
                _ => {}
            }
        }
    }
}

/// Axes of a tensor that together are axes of its reshaped form.
pub(super) struct Group {
    pub(super) from: std::ops::Range<usize>,
    pub(super) to: std::ops::Range<usize>,
}

/// The axis that an axis of a reshaped tensor was before, if it was one.
pub(super) fn axis_before(f: &Func, n: &Node, axis: usize) -> Option<usize> {
    single(f, n).find(|(_, to)| *to == axis).map(|(from, _)| from)
}

/// The axis that an axis is after a reshape, if it is one.
pub(super) fn axis_after(f: &Func, n: &Node, axis: usize) -> Option<usize> {
    single(f, n).find(|(from, _)| *from == axis).map(|(_, to)| to)
}

/// Axes that a reshape neither splits nor merges, before and after.
fn single(f: &Func, n: &Node) -> impl Iterator<Item = (usize, usize)> {
    let all = groups(&f.ty(n.operands[0]).dims, &f.ty(n.results[0]).dims);
    all.into_iter().filter(|g| g.from.len() == 1 && g.to.len() == 1).map(|g| (g.from.start, g.to.start))
}

/// The smallest groups, in order; what cannot be matched is one group.
pub(super) fn groups(from: &[Dim], to: &[Dim]) -> Vec<Group> {
    let (mut all, mut i, mut j) = (Vec::new(), 0, 0);
    while i < from.len() || j < to.len() {
        let (start_i, start_j) = (i, j);
        let (mut a, mut b) = (Dim::from(1), Dim::from(1));
        // Axes of one element stand alone on their side.
        loop {
            if i < from.len() && (i == start_i || larger(&b, &a)) {
                a = &a * &from[i];
                i += 1;
            } else if j < to.len() && (j == start_j || larger(&a, &b)) {
                b = &b * &to[j];
                j += 1;
            } else if a != b && (i < from.len() || j < to.len()) {
                (i, j) = (from.len(), to.len());
                break;
            }
            if a == b || i == from.len() && j == to.len() {
                break;
            }
        }
        all.push(Group { from: start_i..i, to: start_j..j });
    }
    all
}

/// True if one dim has a factor that the other lacks.
fn larger(a: &Dim, b: &Dim) -> bool {
    a != b && a.exact_div(b).is_some()
}

/// The indices of all elements of a box.
fn whole_box(sides: &[Keep], dims: &[usize]) -> Vec<usize> {
    let mut all = vec![0];
    for (side, n) in sides.iter().zip(dims) {
        let side: Vec<usize> = side.clone().unwrap_or_else(|| (0..*n).collect());
        all = all.iter().flat_map(|i| side.iter().map(move |k| i * n + k)).collect();
    }
    all
}

/// The sides of the smallest box around elements.
fn sides(elements: &[usize], dims: &[usize]) -> Vec<Keep> {
    let mut stride = 1;
    let mut all: Vec<Keep> = Vec::new();
    for n in dims.iter().rev() {
        let mut side: Vec<usize> = elements.iter().map(|e| e / stride % n).collect();
        side.sort_unstable();
        side.dedup();
        all.push((side.len() < *n).then_some(side));
        stride *= n;
    }
    all.reverse();
    all
}
