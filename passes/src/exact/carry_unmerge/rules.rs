//! The rules: what an un-merge moves behind, and what takes it away.

use transc_ir::Value;
use transc_ir::op::{
    Attention, Broadcast, Contract, Map, Op, Reduce, ReduceKind, Reshape, Slice, Softmax, TokenSize, TokenUnmerge,
};
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};
use transc_ir::tensor::Func;
use transc_ir::types::{DType, Dim};

use super::Sweep;
use crate::miss::{Miss, OrMiss};

type Outcome = Result<Value, Miss>;

/// A rule: the value that equals a node, if it fires.
type Rule = fn(&mut Sweep<'_, '_>, &Op, &[Value]) -> Outcome;

/// All rules, in the order in which they are tried.
pub const ALL: &[(&str, Rule)] = &[
    ("unmerge-behind-map", map),
    ("unmerge-behind-contract", contract),
    ("unmerge-behind-norm", norm),
    ("unmerge-behind-view", view),
    ("unmerge-behind-attention", attention),
    ("unmerge-behind-weighted-sum", weighted_sum),
    ("unmerge-before-rows", rows),
    ("unmerge-before-fold", fold),
    ("unmerge-of-unmerge", compose),
];

/// `token_unmerge(y, plan)` along an axis.
#[derive(Clone, Copy)]
struct Unmerged {
    /// The groups.
    y: Value,
    /// The plan.
    plan: Value,
    /// The axis of the batch.
    batch: usize,
    /// The axis of the tokens.
    axis: usize,
}

/// The op and the operands that a value comes from.
fn node(f: &Func, v: Value) -> Option<(&Op, &[Value])> {
    f.def_node(v).map(|n| (&n.op, n.operands.as_slice()))
}

/// The value as un-merged along an axis that `wanted` accepts, other axes staying un-merged inside.
fn unmerged(t: &mut Sweep<'_, '_>, v: Value, wanted: impl Fn(usize) -> bool) -> Option<Unmerged> {
    let (Op::TokenUnmerge(u), [y, plan]) = node(t.func(), v)? else { return None };
    let outer = Unmerged { y: *y, plan: *plan, batch: u.batch, axis: u.axis };
    if wanted(outer.axis) {
        return Some(outer);
    }
    let inner = unmerged(t, outer.y, wanted).filter(|u| u.axis != outer.axis)?;
    let y = t.add(TokenUnmerge { batch: outer.batch, axis: outer.axis }.into(), &[inner.y, outer.plan])?;
    Some(Unmerged { y, ..inner })
}

fn unmerge(t: &mut Sweep<'_, '_>, y: Value, plan: Value, (batch, axis): (usize, usize)) -> Outcome {
    t.add(TokenUnmerge { batch, axis }.into(), &[y, plan]).or_other()
}

/// Number of groups.
fn groups(t: &Sweep<'_, '_>, u: &Unmerged) -> Dim {
    t.ty(u.y).dims[u.axis].clone()
}

fn at_axis(axis: usize) -> impl Fn(usize) -> bool {
    move |a| a == axis
}

/// A map whose operands are un-merged alike, or do not vary along the tokens.
fn map(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Map(_) = op else { return Err(Miss::Other) };
    let rank = args.iter().map(|a| t.ty(*a).rank()).max().unwrap_or(0);
    let whole: Vec<Value> = args.iter().copied().filter(|a| t.ty(*a).rank() == rank).collect();
    let mut near = None;
    for axis in 0..rank {
        let Some(first) = whole.iter().find_map(|a| unmerged(t, *a, at_axis(axis))) else { continue };
        let mut inner = Vec::with_capacity(args.len());
        for a in args {
            let dims = t.ty(*a).dims.clone();
            let own = (axis + dims.len()).checked_sub(rank);
            if own.is_none_or(|i| dims[i].is(1)) {
                inner.push(*a);
            } else if let Some(u) = unmerged(t, *a, at_axis(axis)).filter(|_| dims.len() == rank)
                && t.same(u.plan, first.plan)
                && u.batch == first.batch
            {
                inner.push(u.y);
            } else {
                near = Some("an operand differs from token to token and was not merged".into());
                break;
            }
        }
        if inner.len() == args.len() {
            let y = t.add(op.clone(), &inner).or_other()?;
            return unmerge(t, y, first.plan, (first.batch, axis));
        }
    }
    Err(near.map_or(Miss::Other, Miss::Near))
}

/// A contraction in which the tokens are a free axis.
fn contract(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Contract(c) = op else { return Err(Miss::Other) };
    for (side, labels, other) in [(0, &c.lhs, &c.rhs), (1, &c.rhs, &c.lhs)] {
        let free = |axis: usize| c.out.contains(&labels[axis]) && !other.contains(&labels[axis]);
        let Some(u) = unmerged(t, args[side], free) else { continue };
        let at = |axis: usize| c.out.iter().position(|l| *l == labels[axis]);
        let axes = (at(u.batch).or_other()?, at(u.axis).or_other()?);
        let mut inner = [args[0], args[1]];
        inner[side] = u.y;
        let y = t.add(op.clone(), &inner).or_other()?;
        return unmerge(t, y, u.plan, axes);
    }
    Err(Miss::Other)
}

/// A normalisation of each token by itself.
fn norm(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let (from, to) = match op {
        Op::Softmax(s) => (s.axis, s.axis + 1),
        Op::LayerNorm(n) => (n.axis, usize::MAX),
        Op::RmsNorm(n) => (n.axis, usize::MAX),
        _ => return Err(Miss::Other),
    };
    let u = unmerged(t, args[0], |a| !(from..to).contains(&a)).filter(|u| !(from..to).contains(&u.batch)).or_other()?;
    let inner: Vec<Value> = std::iter::once(u.y).chain(args[1..].iter().copied()).collect();
    let y = t.add(op.clone(), &inner).or_other()?;
    unmerge(t, y, u.plan, (u.batch, u.axis))
}

/// A view that leaves the axis of the tokens whole.
fn view(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Some(x) = args.first().copied() else { return Err(Miss::Other) };
    let u = match op {
        Op::Slice(_) => {
            let dims = t.ty(x).dims.clone();
            unmerged(t, x, |a| is_whole(op, &dims, a)).or_other()?
        }
        _ => unmerged(t, x, |_| true).or_other()?,
    };
    let (dims, m) = (t.ty(x).dims.clone(), groups(t, &u));
    let (op, axes): (Op, (usize, usize)) = match op {
        Op::Transpose(p) => {
            let at = |axis: usize| p.perm.iter().position(|a| *a == axis);
            (op.clone(), (at(u.batch).or_other()?, at(u.axis).or_other()?))
        }
        Op::Reshape(r) => {
            let before = |d: &[Dim], axis: usize| d[..axis].iter().product::<Dim>();
            let same = |axis: usize| {
                let lead = before(&dims, axis);
                (0..r.dims.len()).find(|a| r.dims[*a] == dims[axis] && before(&r.dims, *a) == lead)
            };
            let axes = same(u.batch).zip(same(u.axis)).filter(|(b, a)| b != a);
            let axes = axes.or_near(|| "a reshape joins or splits the axis of the tokens or of the batch".into())?;
            let mut to = r.dims.clone();
            to[axes.1] = m;
            (Reshape { dims: to }.into(), axes)
        }
        Op::Broadcast(b) if b.dims.len() == dims.len() && b.dims[u.axis] == dims[u.axis] && b.dims[u.batch] == dims[u.batch] => {
            let mut to = b.dims.clone();
            to[u.axis] = m;
            (Broadcast { dims: to }.into(), (u.batch, u.axis))
        }
        Op::Slice(s) if is_whole(op, &dims, u.batch) => {
            let mut s = s.clone();
            s.sizes[u.axis] = m;
            (s.into(), (u.batch, u.axis))
        }
        _ => return Err(Miss::Other),
    };
    let y = t.add(op, &[u.y]).or_other()?;
    unmerge(t, y, u.plan, axes)
}

fn is_whole(op: &Op, dims: &[Dim], axis: usize) -> bool {
    matches!(op, Op::Slice(s) if s.starts[axis].is(0) && s.steps[axis] == 1 && s.sizes[axis] == dims[axis])
}

/// How many leading tokens are alone in the groups of their own index.
fn protected(t: &Sweep<'_, '_>, plan: Value) -> usize {
    match node(t.func(), plan) {
        Some((Op::TokenPlan(p), _)) => p.protect,
        _ => 0,
    }
}

/// Rows of protected tokens, or all rows behind some of these.
fn rows(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Slice(s) = op else { return Err(Miss::Other) };
    let dims = t.ty(args[0]).dims.clone();
    let u = unmerged(t, args[0], |a| !is_whole(op, &dims, a)).or_other()?;
    let (Some(start), Some(size), 1) = (s.starts[u.axis].as_usize(), s.sizes[u.axis].as_usize(), s.steps[u.axis]) else {
        return Err(Miss::Near("the rows that are read are not neighbours at constant positions".into()));
    };
    let alone = protected(t, u.plan);
    if start + size <= alone {
        return t.add(op.clone(), &[u.y]).or_other();
    }
    let to_end = dims[u.axis].is((start + size) as i64);
    if !to_end || start > alone || !is_whole(op, &dims, u.batch) {
        return Err(Miss::Near(format!("tokens {start} to {} are read by their position", start + size - 1)));
    }
    let mut inner = s.clone();
    inner.sizes[u.axis] = &groups(t, &u) - &Dim::from(start);
    let y = t.add(inner.into(), &[u.y]).or_other()?;
    let plan_dims = t.ty(u.plan).dims.clone();
    let rest = Slice { starts: vec![0.into(), start.into()], sizes: vec![plan_dims[0].clone(), size.into()], steps: vec![1, 1] };
    let rest = t.add(rest.into(), &[u.plan]).or_other()?;
    let mut f = Body::builder(1);
    let first = f.lit(Literal::i64(start as i64));
    let group = f.bin(BinOp::Sub, f.arg(0), first);
    let plan = t.add(Map { body: f.finish(group) }.into(), &[rest]).or_other()?;
    unmerge(t, y, plan, (u.batch, u.axis))
}

/// Sizes of the groups where each token counts as `weight`, or once.
fn sizes(t: &mut Sweep<'_, '_>, u: &Unmerged, weight: Option<Value>) -> Outcome {
    let weight = match weight {
        Some(w) => w,
        None => ones(t, t.ty(u.plan).dims.clone()).or_other()?,
    };
    let tokens = groups(t, u);
    t.add(TokenSize { tokens }.into(), &[u.plan, weight]).or_other()
}

/// A tensor of ones.
pub fn ones(t: &mut Sweep<'_, '_>, dims: Vec<Dim>) -> Option<Value> {
    let one = t.add(Map { body: Body::constant(Literal::f32(1.0)) }.into(), &[])?;
    t.add(Broadcast { dims }.into(), &[one])
}

/// `[1, .., B, .., N, ..]` of `[B, N]`.
fn spread(t: &mut Sweep<'_, '_>, v: Value, rank: usize, (batch, axis): (usize, usize)) -> Option<Value> {
    let mut dims = vec![Dim::from(1); rank];
    dims[batch].clone_from(&t.ty(v).dims[0]);
    dims[axis].clone_from(&t.ty(v).dims[1]);
    if batch < axis { t.add(Reshape { dims }.into(), &[v]) } else { None }
}

/// `v[B, N]` of what [`spread`] made of it.
fn spread_of(f: &Func, v: Value, axis: usize) -> Option<Value> {
    let (Op::Reshape(_), [x]) = node(f, v)? else { return None };
    let (dims, inner) = (&f.ty(v).dims, &f.ty(*x).dims);
    let fits = inner.len() == 2 && dims.get(axis) == inner.get(1) && dims[..axis].contains(&inner[0]);
    let others = || dims.iter().enumerate().filter(|(i, d)| *i != axis && !d.is(1)).count();
    (fits && others() == usize::from(!inner[0].is(1))).then_some(*x)
}

/// The logarithm of sizes, to be added to the logits of keys.
fn key_bias(t: &mut Sweep<'_, '_>, size: Value, rank: usize, axes: (usize, usize), dtype: DType) -> Option<Value> {
    let log = t.add(Map { body: log_as(dtype) }.into(), &[size])?;
    spread(t, log, rank, axes)
}

fn log_as(dtype: DType) -> Body {
    let mut f = Body::builder(1);
    let log = f.un(UnOp::Log, f.arg(0));
    let log = if dtype == DType::F32 { log } else { f.cast(dtype, log) };
    f.finish(log)
}

/// The sizes of which a value is the [`key_bias`].
pub fn sizes_of_bias(f: &Func, bias: Value, axis: usize) -> Option<Value> {
    let (Op::Map(m), [x]) = node(f, spread_of(f, bias, axis)?)? else { return None };
    (f.ty(*x).dtype == DType::F32 && m.body == log_as(f.ty(bias).dtype)).then_some(*x)
}

/// Attention on un-merged queries, or on un-merged keys and values: equal keys add up, which is their number as a factor of the exponential.
fn attention(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Attention(a) = op else { return Err(Miss::Other) };
    let positional = || Miss::Near("attention is causal, or its mask differs from token to token".to_string());
    if let Some(q) = unmerged(t, args[0], at_axis(2)).filter(|u| u.batch == 0) {
        if a.causal.is_some() || args.get(3).is_some_and(|m| t.ty(*m).dims.iter().rev().nth(1).is_some_and(|d| !d.is(1))) {
            return Err(positional());
        }
        let inner: Vec<Value> = std::iter::once(q.y).chain(args[1..].iter().copied()).collect();
        let y = t.add(op.clone(), &inner).or_other()?;
        return unmerge(t, y, q.plan, (0, 2));
    }
    let k = unmerged(t, args[1], at_axis(2)).or_other()?;
    let v = unmerged(t, args[2], at_axis(2)).or_other()?;
    if !t.same(k.plan, v.plan) || (k.batch, v.batch) != (0, 0) {
        return Err(Miss::Other);
    }
    let weight = match args.get(3) {
        Some(m) => Some(sizes_of_bias(t.func(), *m, 3).ok_or_else(positional)?),
        None => None,
    };
    if a.causal.is_some() {
        return Err(positional());
    }
    let size = sizes(t, &k, weight)?;
    let bias = key_bias(t, size, 4, (0, 3), t.ty(args[0]).dtype).or_other()?;
    t.add(Attention::clone(a).into(), &[args[0], k.y, v.y, bias]).or_other()
}

/// The same in two contractions around a softmax.
fn weighted_sum(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Contract(c) = op else { return Err(Miss::Other) };
    let (Op::Softmax(softmax @ Softmax { axis, log: false }), [logits]) = node(t.func(), args[0]).or_other()? else {
        return Err(Miss::Other);
    };
    let (softmax, axis, logits) = (softmax.clone(), *axis, *logits);
    let value_axis = c.rhs.iter().position(|l| *l == c.lhs[axis]).filter(|_| !c.out.contains(&c.lhs[axis])).or_other()?;
    let v = unmerged(t, args[1], at_axis(value_axis)).or_other()?;
    let (l, weight) = weighted(t, logits, BinOp::Add, axis, |f, b| sizes_of_bias(f, b, axis)).or_other()?;
    if !t.same(l.plan, v.plan) || c.lhs[l.batch] != c.rhs[v.batch] {
        return Err(Miss::Other);
    }
    let size = sizes(t, &l, weight)?;
    let ty = t.ty(l.y).clone();
    let bias = key_bias(t, size, ty.rank(), (l.batch, axis), ty.dtype).or_other()?;
    let biased = t.add(Map { body: Body::bin(BinOp::Add) }.into(), &[l.y, bias]).or_other()?;
    let p = t.add(softmax.into(), &[biased]).or_other()?;
    t.add(Contract::clone(c).into(), &[p, v.y]).or_other()
}

/// Un-merged tokens, alone or under `kind` with weights of the tokens.
fn weighted(
    t: &mut Sweep<'_, '_>,
    v: Value,
    kind: BinOp,
    axis: usize,
    weight: impl Fn(&Func, Value) -> Option<Value>,
) -> Option<(Unmerged, Option<Value>)> {
    if let Some(u) = unmerged(t, v, at_axis(axis)) {
        return Some((u, None));
    }
    let sides = match node(t.func(), v)? {
        (Op::Map(m), [a, b]) if m.body == Body::bin(kind) => [(*a, *b), (*b, *a)],
        _ => return None,
    };
    for (x, w) in sides {
        if let Some(w) = weight(t.func(), w)
            && let Some(u) = unmerged(t, x, at_axis(axis))
        {
            return Some((u, Some(w)));
        }
    }
    None
}

/// A fold of each token by itself, or over the tokens: equal elements add up, and do not change an extreme.
fn fold(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::Reduce(r) = op else { return Err(Miss::Other) };
    if let Some(u) = unmerged(t, args[0], |a| !r.axes.contains(&a)) {
        if r.axes.contains(&u.batch) {
            return Err(Miss::Other);
        }
        let y = t.add(op.clone(), &[u.y]).or_other()?;
        let left = |axis: usize| if r.keep { axis } else { axis - r.axes.iter().filter(|a| **a < axis).count() };
        return unmerge(t, y, u.plan, (left(u.batch), left(u.axis)));
    }
    let rank = t.ty(args[0]).rank();
    for axis in r.axes.iter().copied() {
        let Some((u, weight)) = weighted(t, args[0], BinOp::Mul, axis, |f, w| spread_of(f, w, axis)) else { continue };
        match r.kind {
            ReduceKind::Max | ReduceKind::Min if weight.is_none() => return t.add(op.clone(), &[u.y]).or_other(),
            ReduceKind::Sum if t.ty(u.y).dtype == DType::F32 && u.batch < axis => {
                let size = sizes(t, &u, weight)?;
                let size = spread(t, size, rank, (u.batch, axis)).or_other()?;
                let y = t.add(Map { body: Body::bin(BinOp::Mul) }.into(), &[u.y, size]).or_other()?;
                return t.add(Reduce::clone(r).into(), &[y]).or_other();
            }
            _ => return Err(Miss::Near("tokens are folded in a way that counts equal ones".into())),
        }
    }
    Err(Miss::Other)
}

/// Two plans, one after the other, are one plan.
fn compose(t: &mut Sweep<'_, '_>, op: &Op, args: &[Value]) -> Outcome {
    let Op::TokenUnmerge(u) = op else { return Err(Miss::Other) };
    let (y, inner) = match node(t.func(), args[0]) {
        Some((Op::TokenUnmerge(i), [y, plan])) if (i.batch, i.axis) == (u.batch, u.axis) => (*y, *plan),
        _ => return Err(Miss::Other),
    };
    let plan = t.add(TokenUnmerge { batch: 0, axis: 1 }.into(), &[inner, args[1]]).or_other()?;
    unmerge(t, y, plan, (u.batch, u.axis))
}
