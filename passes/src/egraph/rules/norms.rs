//! Norms and softmax spelled out.

use egg::Id;
use transc_ir::op::{LayerNorm, Op, Real, ReduceKind, RmsNorm, Softmax, broadcast_dims};
use transc_ir::scalar::UnOp;

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::{Atom, Poly, inside, near, read, write};
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[
    Rule {
        name: "layer-norm",
        class: Class::Reassoc,
        bound: 1e-4,
        why: "(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias is its definition (Ba et al. 2016)",
        at: &["map"],
        apply: layer_norm,
    },
    Rule {
        name: "rms-norm",
        class: Class::Reassoc,
        bound: 1e-4,
        why: "x / sqrt(mean(x^2) + epsilon) * scale is its definition (Zhang and Sennrich 2019)",
        at: &["map"],
        apply: rms_norm,
    },
    Rule {
        name: "softmax",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "exp(x - m) / sum(exp(x - m)) does not depend on m",
        at: &["map"],
        apply: softmax,
    },
    Rule {
        name: "log-softmax",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "x - m - log(sum(exp(x - m))) does not depend on m",
        at: &["map"],
        apply: log_softmax,
    },
];

/// What a fold along kept axes folds: kind, operand and axes.
pub(super) fn fold(g: &Graph<'_>, id: Id) -> Option<(ReduceKind, Id, Vec<usize>)> {
    g.first(id, |(op, args)| match op {
        Op::Reduce(r) if r.keep => Some((r.kind, args[0], r.axes.clone())),
        // Folded axes dropped and put back.
        Op::Reshape(to) => g.first(args[0], |(op, args)| match op {
            Op::Reduce(r) => {
                let mut dims = g.dims(args[0]).to_vec();
                r.axes.iter().for_each(|a| dims[*a] = 1.into());
                (dims == to.dims).then(|| (r.kind, args[0], r.axes.clone()))
            }
            _ => None,
        }),
        _ => None,
    })
}

/// `1 / sqrt(mean of something + epsilon)` as a factor of a term.
struct Root {
    atom: Atom,
    /// The summed class and the one that holds the sum.
    squares: Id,
    axes: Vec<usize>,
    /// One over the number of elements.
    share: f64,
    epsilon: f64,
    /// The sum whose mean's square is taken off.
    mean: Option<Id>,
}

/// The factor of that form in a polynomial.
fn root(g: &Graph<'_>, p: &Poly) -> Option<Root> {
    p.terms().flat_map(|(m, _)| m).filter(|(_, power)| **power == -1).find_map(|(atom, _)| {
        let Atom::Un(UnOp::Sqrt, inner) = atom else { return None };
        let (mut sum, mut epsilon, mut mean) = (None, 0.0, None);
        for (m, c) in inner.terms() {
            match m.iter().next() {
                None => epsilon = c,
                Some((Atom::Leaf(id), 1)) if m.len() == 1 && sum.is_none() => sum = Some((*id, c)),
                Some((Atom::Leaf(id), 2)) if m.len() == 1 && mean.is_none() => mean = Some((*id, c)),
                Some(_) => return None,
            }
        }
        let (id, share) = sum?;
        let (kind, squares, axes) = fold(g, id)?;
        let dims = g.dims(squares);
        let trailing = axes.iter().copied().eq(dims.len() - axes.len()..dims.len());
        // E x^2 - (E x)^2.
        if mean.is_some_and(|(_, c)| !near(-c, share * share)) {
            return None;
        }
        let count = axes.iter().try_fold(1.0, |n, a| Some(n * dims[*a].as_const()? as f64))?;
        (kind == ReduceKind::Sum && trailing && near(share * count, 1.0) && epsilon >= 0.0).then(|| Root {
            atom: atom.clone(),
            squares,
            axes,
            share,
            epsilon,
            mean: mean.map(|m| m.0),
        })
    })
}

/// The parts of `p = normalised * scale + bias` where every term of `normalised` has the root.
struct Parts {
    scale: Poly,
    bias: Poly,
}

/// Splits `p` if it is `core / root * scale + bias`, `x` being an atom of `core` with coefficient 1.
fn parts(p: &Poly, x: Id, core: &Poly, root: &Atom) -> Option<Parts> {
    let (normalised, bias) = p.split(|m| m.get(root) == Some(&-1));
    let over = normalised.without(root, -1)?;
    let (of_x, _) = over.split(|m| m.get(&Atom::Leaf(x)) == Some(&1));
    let scale = of_x.without(&Atom::Leaf(x), 1)?;
    let leaves = core.leaves();
    let clean = |q: &Poly| q.leaves().is_disjoint(&leaves) && !q.terms().any(|(m, _)| m.contains_key(root));
    (!scale.is_zero() && clean(&scale) && core.by(&scale)?.close(&over)).then_some(Parts { scale, bias })
}

/// Scale and bias as operands of a norm over the trailing `dims`.
fn operands(g: &mut Graph<'_>, x: Id, parts: &Parts, axis: usize) -> Option<Vec<Id>> {
    let dtype = g.ty(x).dtype;
    let dims = g.dims(x)[axis..].to_vec();
    let fits = |g: &mut Graph<'_>, p: &Poly| {
        let id = write(g, p, dtype)?;
        // Axes in front of the normalised ones say nothing.
        let own = g.dims(id).to_vec();
        let lead = own.len().saturating_sub(dims.len());
        let id = if own[..lead].iter().all(|d| d.is(1)) { g.reshape(id, &own[lead..])? } else { id };
        (broadcast_dims(g.dims(id), &dims).as_ref() == Some(&dims)).then_some(id)
    };
    let mut out = vec![x];
    if parts.scale.as_number() != Some(1.0) || !parts.bias.is_zero() {
        out.push(fits(g, &parts.scale)?);
    }
    if !parts.bias.is_zero() {
        out.push(fits(g, &parts.bias)?);
    }
    Some(out)
}

/// True if the sum of a class is taken.
fn summed(g: &Graph<'_>, x: Id) -> bool {
    let sums = |(op, args): (&Op, &[Id])| matches!(op, Op::Reduce(r) if r.kind == ReduceKind::Sum) && g.find(args[0]) == x;
    g.users(x).into_iter().any(|u| g.ops(u).any(sums))
}

/// The classes below a site that it may normalise.
fn candidates(g: &Graph<'_>, site: &Site<'_>, fits: impl Fn(Id) -> bool) -> Vec<Id> {
    inside(g, site.id).into_iter().skip(1).filter(|x| g.ty(*x) == g.ty(site.id) && fits(*x)).collect()
}

fn layer_norm(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    for x in candidates(g, site, |x| summed(g, x)) {
        let p = read(g, site.id, &[x]);
        let Some(r) = root(g, &p) else { continue };
        let square = read(g, r.squares, &[x]);
        let mean = r.mean.map_or_else(|| square.leaves(), |m| [m].into()).into_iter().find(|id| {
            *id != x && fold(g, *id).is_some_and(|(kind, y, axes)| kind == ReduceKind::Sum && g.find(y) == x && axes == r.axes)
        });
        let Some(mean) = mean else { continue };
        let core = Poly::leaf(x).minus(&Poly::leaf(mean).times(r.share));
        let squared = if r.mean.is_some() { Poly::leaf(x) } else { core.clone() };
        if !squared.by(&squared).is_some_and(|c| c.close(&square)) {
            continue;
        }
        let Some(found) = parts(&p, x, &core, &r.atom) else { continue };
        let axis = r.axes[0];
        let Some(args) = operands(g, x, &found, axis) else { continue };
        return g.add(LayerNorm { axis, epsilon: Real(r.epsilon) }, &args).or_other();
    }
    Err(Miss::Other)
}

fn rms_norm(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    for x in candidates(g, site, |x| g.users(x).into_iter().any(|u| summed(g, u))) {
        let p = read(g, site.id, &[x]);
        let Some(r) = root(g, &p) else { continue };
        let core = Poly::leaf(x);
        if r.mean.is_some() || core.by(&core) != Some(read(g, r.squares, &[x])) {
            continue;
        }
        let Some(found) = parts(&p, x, &core, &r.atom).filter(|f| f.bias.is_zero()) else { continue };
        let axis = r.axes[0];
        let Some(args) = operands(g, x, &found, axis) else { continue };
        return g.add(RmsNorm { axis, epsilon: Real(r.epsilon) }, &args).or_other();
    }
    Err(Miss::Other)
}

fn softmax(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let whole = read(g, site.id, &[]);
    let (term, _) = whole.as_term().or_other()?;
    let sums: Vec<(Id, Id, usize)> = term
        .iter()
        .filter_map(|(atom, power)| match atom {
            Atom::Leaf(id) if *power == -1 => match fold(g, *id)? {
                (ReduceKind::Sum, e, axes) if axes.len() == 1 => Some((*id, e, axes[0])),
                _ => None,
            },
            _ => None,
        })
        .collect();
    let [(sum, e, axis)] = sums.as_slice() else { return Err(Miss::Other) };
    let expected = Poly::leaf(*sum).inverse().and_then(|i| i.by(&Poly::leaf(g.find(*e)))).or_other()?;
    if read(g, site.id, &[*e]) != expected {
        return Err(Miss::Other);
    }
    let x = exponent(g, *e, *axis, site.id).or_other()?;
    g.add(Softmax { axis: *axis, log: false }, &[x]).or_other()
}

/// `x` if a class is `exp(x)` or `exp(x - max(x))` along an axis, of the type of another class.
fn exponent(g: &Graph<'_>, e: Id, axis: usize, like: Id) -> Option<Id> {
    inside(g, e).into_iter().find(|x| {
        let p = read(g, e, &[*x]);
        let Some(Atom::Un(UnOp::Exp, inner)) = p.as_atom() else { return false };
        let (of_x, shift) = inner.split(|m| m.contains_key(&Atom::Leaf(*x)));
        of_x == Poly::leaf(*x) && (shift.is_zero() || highest(g, &shift.times(-1.0), *x, axis)) && g.ty(*x) == g.ty(like)
    })
}

/// True for the largest element of `x` along an axis.
fn highest(g: &Graph<'_>, p: &Poly, x: Id, axis: usize) -> bool {
    let max = p.as_leaf().and_then(|m| fold(g, m));
    max.is_some_and(|(kind, y, axes)| kind == ReduceKind::Max && g.find(y) == x && axes == [axis])
}

fn log_softmax(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    for x in candidates(g, site, |_| true) {
        let (of_x, rest) = read(g, site.id, &[x]).split(|m| m.contains_key(&Atom::Leaf(x)));
        let logs = rest.terms().flat_map(|(m, _)| m.keys());
        let sum = logs.filter_map(|a| if let Atom::Un(UnOp::Log, s) = a { s.as_leaf() } else { None }).next();
        let Some((sum, (ReduceKind::Sum, e, axes))) = sum.and_then(|s| Some((s, fold(g, s)?))) else { continue };
        let [axis] = axes[..] else { continue };
        if of_x != Poly::leaf(x) || exponent(g, e, axis, site.id) != Some(x) {
            continue;
        }
        // The shift is that of the exponent.
        let shift = rest.plus(&Poly::un(UnOp::Log, Poly::leaf(sum)));
        let inner = read(g, e, &[x]);
        if inner.as_atom() == Some(&Atom::Un(UnOp::Exp, Poly::leaf(x).plus(&shift))) {
            return g.add(Softmax { axis, log: true }, &[x]).or_other();
        }
    }
    Err(Miss::Other)
}
