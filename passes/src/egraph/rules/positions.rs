//! Positions: rotations of pairs of features spelled out.

use egg::Id;
use transc_ir::interp::Tensor;
use transc_ir::op::{Broadcast, Concat, Map, Op, Reshape, Rope, Slice, Transpose};
use transc_ir::types::Dim;

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::{Atom, Poly, inside, read, write};
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[
    Rule {
        name: "rope-of-halves",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "x cos + (-x2, x1) sin rotates each pair (x1, x2) where both halves of the tables are equal (Su et al. 2021)",
        at: &["map"],
        apply: rope_of_halves,
    },
    Rule {
        name: "rope-of-pairs",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "(a cos - b sin, a sin + b cos) joined as a and b were parted is the rotation of the pairs (Su et al. 2021)",
        at: &["concat", "reshape"],
        apply: rope_of_pairs,
    },
    Rule {
        name: "rope-of-part",
        class: Class::Exact,
        bound: 0.0,
        why: "the features behind the rotated ones pass",
        at: &["concat"],
        apply: rope_of_part,
    },
];

/// How deep tables are read.
const MAX_DEPTH: u32 = 8;

/// One of the two parts of `x` along its last axis.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    of: Id,
    second: bool,
    interleaved: bool,
}

/// The last extent if it is a number.
fn width(g: &Graph<'_>, x: Id) -> Option<i64> {
    g.dims(x).last()?.as_const()
}

/// A slice of the last axis alone: start, size, step.
fn last_axis(g: &Graph<'_>, s: &Slice, x: Id) -> Option<(i64, i64, i64)> {
    let dims = g.dims(x);
    let last = dims.len().checked_sub(1)?;
    let whole = |a: usize| s.starts[a].is(0) && s.steps[a] == 1 && s.sizes[a] == dims[a];
    (0..last).all(whole).then_some(())?;
    Some((s.starts[last].as_const()?, s.sizes[last].as_const()?, s.steps[last]))
}

/// The parts that a class is, of different classes perhaps.
fn parts(g: &Graph<'_>, id: Id) -> Vec<Part> {
    let sliced = |(op, args): (&Op, &[Id])| match op {
        Op::Slice(s) => Some((last_axis(g, s, args[0])?, g.find(args[0]))),
        _ => None,
    };
    let direct = g.ops(id).filter_map(sliced).filter_map(|((start, size, step), of)| {
        let d = width(g, of)?;
        let part = |second, interleaved| Some(Part { of, second, interleaved });
        match (start, step) {
            _ if size * 2 != d => None,
            (0 | 1, 2) => part(start == 1, true),
            (0, 1) => part(false, false),
            (s, 1) if s == size => part(true, false),
            _ => None,
        }
    });
    // A column of the pairs.
    let columns = g.ops(id).filter(|(op, _)| matches!(op, Op::Reshape(_))).flat_map(|(_, args)| {
        let whole = g.dims(id);
        g.ops(args[0]).filter_map(sliced).filter_map(move |((start, size, step), pairs)| {
            let d = g.dims(pairs);
            let column = size == 1 && step == 1 && d.last()?.is(2) && d[..d.len() - 1] == *whole;
            let of =
                g.first(pairs, |(op, args)| matches!(op, Op::Reshape(_)).then(|| g.find(args[0])).filter(|x| joined(g, *x, d)))?;
            column.then_some(Part { of, second: start == 1, interleaved: true })
        })
    });
    direct.chain(columns).collect()
}

/// True if `x` has the last two of these axes as one.
fn joined(g: &Graph<'_>, x: Id, d: &[Dim]) -> bool {
    let (own, n) = (g.dims(x), d.len() - 2);
    own.len() == n + 1 && own[..n] == d[..n] && own[n] == &d[n] * &d[n + 1]
}

/// The factor of a class in a polynomial that is linear in it.
fn factor(p: &Poly, x: Id) -> Poly {
    p.split(|m| m.contains_key(&Atom::Leaf(x))).0.without(&Atom::Leaf(x), 1).unwrap_or_default()
}

/// The rotation with these tables, if they fit.
fn rotate(g: &mut Graph<'_>, x: Id, interleaved: bool, cos: Id, sin: Id) -> Outcome {
    let rotary = width(g, x).and_then(|d| usize::try_from(d).ok()).or_other()?;
    g.add(Rope { rotary, interleaved }, &[x, cos, sin]).or_near(|| format!("tables {} do not fit {}", g.ty(cos), g.ty(x)))
}

fn rope_of_halves(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let below = inside(g, site.id);
    for r in &below[1..] {
        let r = *r;
        let Some((x, interleaved)) = turned(g, r, &below).filter(|t| g.ty(t.0) == g.ty(site.id)) else { continue };
        let p = read(g, site.id, &[x, r]);
        let (cos, sin) = (factor(&p, x), factor(&p, r));
        let whole = cos.by(&Poly::leaf(x)).zip(sin.by(&Poly::leaf(r))).map(|(a, b)| a.plus(&b));
        let free = |q: &Poly| !q.is_zero() && q.leaves().is_disjoint(&[x, r].into());
        if whole != Some(p) || !free(&cos) || !free(&sin) {
            continue;
        }
        let dtype = g.ty(x).dtype;
        let (cos, sin) = (write(g, &cos, dtype).or_other()?, write(g, &sin, dtype).or_other()?);
        let d = width(g, x).or_other()?;
        let why = || "the tables of a rotation differ between the elements of a pair".to_string();
        let cos = half(g, cos, d, interleaved, MAX_DEPTH).or_near(why)?;
        let sin = half(g, sin, d, interleaved, MAX_DEPTH).or_near(why)?;
        return rotate(g, x, interleaved, cos, sin);
    }
    Err(Miss::Other)
}

/// `x` if the class is `x` with each pair `(a, b)` as `(-b, a)`. Slices that have composed with one that `x` itself is do not name `x`,
/// which is then one of `others`.
fn turned(g: &Graph<'_>, id: Id, others: &[Id]) -> Option<(Id, bool)> {
    let (a, b, interleaved) = join(g, id)?;
    let negated: Vec<Id> = inside(g, a).into_iter().filter(|x| read(g, a, &[*x]) == Poly::leaf(*x).times(-1.0)).collect();
    let seconds = negated.iter().flat_map(|x| parts(g, *x)).filter(|p| p.second && p.interleaved == interleaved);
    let named = seconds.map(|p| (p.of, Part { second: false, ..p })).find(|(_, first)| parts(g, b).contains(first));
    if let Some((x, _)) = named {
        return Some((x, interleaved));
    }
    let (first, seconds) = (boxed(g, b)?, negated.iter().filter_map(|x| boxed(g, *x)).collect::<Vec<_>>());
    let whole = others.iter().filter_map(|x| Some((*x, boxed(g, *x)?))).find(|(_, x)| {
        let start = |at: i64| Span { start: x.start + at, size: x.size / 2, ..x.clone() };
        x.size % 2 == 0 && x.step == 1 && !interleaved && first == start(0) && seconds.contains(&start(x.size / 2))
    });
    whole.map(|(x, _)| (x, false))
}

/// A box of the last axis of a class, transposed with the last axis in place.
#[derive(Clone, PartialEq, Eq)]
struct Span {
    of: Id,
    perm: Vec<usize>,
    start: i64,
    size: i64,
    step: i64,
}

impl Span {
    /// All of a class.
    fn whole(g: &Graph<'_>, x: Id) -> Option<Self> {
        Some(Self { of: x, perm: (0..g.dims(x).len()).collect(), start: 0, size: width(g, x)?, step: 1 })
    }

    /// The box that this one and another one make up, this holding the first elements of the pairs.
    fn paired(&self, o: &Span, interleaved: bool) -> Option<Self> {
        let (step, behind) = if interleaved { (2, 1) } else { (1, self.size) };
        let second = Span { start: self.start + behind, ..self.clone() };
        (self.step == step && *o == second).then(|| Span { size: 2 * self.size, step: 1, ..self.clone() })
    }

    fn add(&self, g: &mut Graph<'_>) -> Option<Id> {
        let mut sizes = g.dims(self.of).to_vec();
        let (mut starts, mut steps) = (vec![Dim::from(0); sizes.len()], vec![1; sizes.len()]);
        if width(g, self.of)? == self.size {
            return g.transpose(self.of, &self.perm);
        }
        (*sizes.last_mut()?, *starts.last_mut()?, *steps.last_mut()?) = (self.size.into(), self.start.into(), self.step);
        let x = g.add(Slice { starts, sizes, steps }, &[self.of])?;
        g.transpose(x, &self.perm)
    }
}

/// The class as such a box.
fn boxed(g: &Graph<'_>, id: Id) -> Option<Span> {
    let sliced = |x: Id| {
        g.first(x, |(op, args)| match op {
            Op::Slice(s) => last_axis(g, s, args[0]).map(|b| (g.find(args[0]), b)),
            _ => None,
        })
    };
    let turned = g.first(id, |(op, args)| match op {
        Op::Transpose(t) if t.perm.last().is_some_and(|p| p + 1 == t.perm.len()) => Some((args[0], t.perm.clone())),
        _ => None,
    });
    let (inner, perm) = turned.unwrap_or((id, (0..g.dims(id).len()).collect()));
    sliced(inner).map(|(of, (start, size, step))| Span { of, perm, start, size, step })
}

/// The two classes that a class joins along its last axis, one behind the other or element by element.
fn join(g: &Graph<'_>, id: Id) -> Option<(Id, Id, bool)> {
    let behind = |x: Id| {
        g.first(x, |(op, args)| match (op, args) {
            (Op::Concat(c), [a, b]) if c.axis + 1 == g.dims(x).len() && g.ty(*a) == g.ty(*b) => Some((g.find(*a), g.find(*b))),
            _ => None,
        })
    };
    let between = g.first(id, |(op, args)| {
        let pairs =
            matches!(op, Op::Reshape(_)).then(|| args[0]).filter(|p| g.dims(*p).len() > 1 && joined(g, id, g.dims(*p)))?;
        let (a, b) = behind(pairs)?;
        let column = |x: Id| {
            let d = g.dims(x);
            g.first(x, |(op, args)| {
                (matches!(op, Op::Reshape(_)) && *g.dims(args[0]) == d[..d.len() - 1]).then(|| g.find(args[0]))
            })
        };
        g.dims(a).last()?.is(1).then_some(())?;
        Some((column(a)?, column(b)?, true))
    });
    between.or_else(|| behind(id).map(|(a, b)| (a, b, false)))
}

fn rope_of_pairs(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (first, second, interleaved) = join(g, site.id).or_other()?;
    for (a, b, x) in pairs(g, first, interleaved) {
        let (p, q) = (read(g, first, &[a, b]), read(g, second, &[a, b]));
        let (cos, sin) = (factor(&p, a), factor(&q, a));
        let (of_a, of_b) = (Poly::leaf(a), Poly::leaf(b));
        let sum = |p: &Poly, q: &Poly| Some(p.by(&of_a)?.plus(&q.by(&of_b)?));
        let free = |q: &Poly| !q.is_zero() && q.leaves().is_disjoint(&[a, b].into());
        if sum(&cos, &sin.times(-1.0)) != Some(p) || sum(&sin, &cos) != Some(q) || !free(&cos) || !free(&sin) {
            continue;
        }
        let x = x.add(g).filter(|x| g.ty(*x) == g.ty(site.id)).or_other()?;
        let dtype = g.ty(x).dtype;
        let (cos, sin) = (write(g, &cos, dtype).or_other()?, write(g, &sin, dtype).or_other()?);
        return rotate(g, x, interleaved, cos, sin);
    }
    Err(Miss::Other)
}

/// The classes in a sum that hold the first and the second element of pairs, with what holds both.
fn pairs(g: &Graph<'_>, sum: Id, interleaved: bool) -> Vec<(Id, Id, Span)> {
    let below = inside(g, sum);
    let parts: Vec<Vec<Part>> = below.iter().map(|x| parts(g, *x)).collect();
    let boxes: Vec<Option<Span>> = below.iter().map(|x| boxed(g, *x)).collect();
    let whole = |i: usize, j: usize| {
        let named = parts[i]
            .iter()
            .find(|p| !p.second && p.interleaved == interleaved && parts[j].contains(&Part { second: true, ..**p }));
        named.and_then(|p| Span::whole(g, p.of)).or_else(|| boxes[i].as_ref()?.paired(boxes[j].as_ref()?, interleaved))
    };
    let all = (0..below.len()).flat_map(|i| (0..below.len()).map(move |j| (i, j)));
    all.filter_map(|(i, j)| Some((below[i], below[j], whole(i, j)?))).collect()
}

fn rope_of_part(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (Op::Concat(c), [turned, rest]) = (site.op, site.args) else { return Err(Miss::Other) };
    let rope = |(op, args): (&Op, &[Id])| match op {
        Op::Rope(r) => Some((r.clone(), args.to_vec())),
        _ => None,
    };
    let (rope, operands) = g.first(*turned, rope).or_other()?;
    let (first, rest) = (boxed(g, operands[0]).or_other()?, boxed(g, *rest).or_other()?);
    let behind = Span { start: first.start + first.size, size: rest.size, ..first.clone() };
    if c.axis + 1 != g.dims(site.id).len() || first.step != 1 || rest != behind {
        return Err(Miss::Other);
    }
    let x = Span { size: first.size + rest.size, ..first }.add(g).or_other()?;
    g.add(rope, &[x, operands[1], operands[2]]).or_other()
}

/// One table entry per pair, if both elements of each have the same: the class along its last axis of extent `d` by halves.
fn half(g: &mut Graph<'_>, id: Id, d: i64, interleaved: bool, depth: u32) -> Option<Id> {
    let depth = depth.checked_sub(1)?;
    if width(g, id) != Some(d) {
        // One for all pairs.
        return g.dims(id).last().is_none_or(|last| last.is(1)).then_some(id);
    }
    if let Some((a, b, between)) = join(g, id)
        && a == b
        && between == interleaved
    {
        return Some(a);
    }
    let mut dims = g.dims(id).to_vec();
    *dims.last_mut()? = (d / 2).into();
    let ops: Vec<(Op, Vec<Id>)> = g.ops(id).map(|(op, args)| (op.clone(), args.to_vec())).collect();
    ops.into_iter().find_map(|(op, args)| {
        let inner = |g: &mut Graph<'_>| half(g, args[0], d, interleaved, depth);
        match op {
            Op::Map(m) if !args.is_empty() => {
                let args = args.iter().map(|a| half(g, *a, d, interleaved, depth)).collect::<Option<Vec<_>>>()?;
                g.add(Map { body: m.body }, &args)
            }
            Op::Reshape(_) if width(g, args[0]) == Some(d) => {
                let x = inner(g)?;
                g.add(Reshape { dims: dims.clone() }, &[x])
            }
            Op::Broadcast(_) => {
                let x = inner(g)?;
                g.add(Broadcast { dims: dims.clone() }, &[x])
            }
            Op::Transpose(t) if t.perm.last().is_some_and(|p| p + 1 == t.perm.len()) => {
                let x = inner(g)?;
                g.add(Transpose { perm: t.perm }, &[x])
            }
            Op::Slice(mut s) if s.sizes.last().is_some_and(|n| n.is(d)) => {
                let x = inner(g)?;
                *s.sizes.last_mut()? = (d / 2).into();
                g.add(s, &[x])
            }
            Op::Concat(Concat { axis }) if axis + 1 < dims.len() => {
                let args = args.iter().map(|a| half(g, *a, d, interleaved, depth)).collect::<Option<Vec<_>>>()?;
                g.add(Concat { axis }, &args)
            }
            Op::Constant(c) => {
                let t = Tensor::from_const(g.consts().get(c.id)?);
                let (d, h) = (d as usize, d as usize / 2);
                let other = |i: usize| if interleaved { i ^ 1 } else { i / d * d + (i % d + h) % d };
                (0..t.count()).all(|i| t.get(i) == t.get(other(i))).then_some(())?;
                let mut steps = vec![1; dims.len()];
                *steps.last_mut()? = if interleaved { 2 } else { 1 };
                g.add(Slice { starts: vec![0.into(); dims.len()], sizes: dims.clone(), steps }, &[id])
            }
            _ => None,
        }
    })
}
