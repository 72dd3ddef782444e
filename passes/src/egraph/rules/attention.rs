//! Attention spelled out: a product with keys, a softmax, a product with values.

use egg::Id;
use transc_ir::op::{Attention, Contract, Map, Op, Real, broadcast_dims};
use transc_ir::scalar::{BinOp, Body, Inst, Ref, UnOp};
use transc_ir::types::{DType, Dim};

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::index;
use crate::egraph::meaning::{Atom, Poly, number, read, write};
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[
    Rule {
        name: "attention",
        class: Class::Reassoc,
        bound: 1e-4,
        why: "softmax(cap(scale q k^T) + mask) v is its definition",
        at: &["contract"],
        apply: attention,
    },
    Rule {
        name: "batch-of-contract",
        class: Class::Exact,
        bound: 0.0,
        why: "batch axes of a product split and merge as those of its operands do",
        at: &["reshape"],
        apply: batch_of_contract,
    },
];

/// A fill at or below this one hides a key from every row that sees another.
const HIDDEN: f64 = -9000.0;

/// The labels of the softmax and of the product behind it.
pub(super) struct Weights {
    /// Class of the softmax's operand.
    pub(super) logits: Id,
    /// Rows of NaN are cleared.
    pub(super) clear: bool,
    /// Labels of the weights: batch axes, query, key.
    pub(super) labels: Vec<u8>,
    /// The values and their labels.
    values: Id,
    value_labels: Vec<u8>,
    /// Labels of the result.
    out: Vec<u8>,
}

impl Weights {
    fn batch(&self) -> &[u8] {
        &self.labels[..self.labels.len() - 2]
    }

    fn query(&self) -> u8 {
        self.labels[self.labels.len() - 2]
    }

    fn key(&self) -> u8 {
        self.labels[self.labels.len() - 1]
    }

    /// The feature axis of the values.
    pub(super) fn feature(&self) -> Result<u8, Miss> {
        let features: Vec<u8> = self.value_labels.iter().filter(|l| !self.labels.contains(l)).copied().collect();
        let [e] = features[..] else { return near("the values have more than one feature axis") };
        let (out, values) = (&self.out, &self.value_labels);
        if self.batch().iter().any(|l| !out.contains(l)) || !out.contains(&self.query()) || values.contains(&self.query()) {
            return near("weights and values do not share their batch axes");
        }
        Ok(e)
    }

    /// The values, batch axes first, then keys, then features.
    pub(super) fn arranged_values(&self, g: &mut Graph<'_>, e: u8) -> Result<Id, Miss> {
        let order: Vec<u8> = self.batch().iter().copied().chain([self.key(), e]).collect();
        arrange(g, self.values, &self.value_labels, &order).or_other()
    }

    /// What the product with values was, from the result of an attention with four axes.
    pub(super) fn result(&self, g: &mut Graph<'_>, y: Id, e: u8) -> Outcome {
        let lead = &g.dims(self.logits)[..self.labels.len() - 2];
        let dims: Vec<Dim> = lead.iter().chain(&g.dims(y)[2..]).cloned().collect();
        let y = g.reshape(y, dims).or_other()?;
        let order: Vec<u8> = self.batch().iter().copied().chain([self.query(), e]).collect();
        arrange(g, y, &order, &self.out).or_other()
    }
}

/// How the logits come from the product with keys.
pub(super) struct Logits {
    pub(super) product: Id,
    pub(super) scale: f64,
    /// A factor that is not a number.
    pub(super) temperature: Option<Poly>,
    pub(super) softcap: f64,
    /// Added to the logits.
    added: Poly,
    /// Conditions under which a key is visible, with the value of the hidden ones.
    kept: Vec<(Id, bool, f64)>,
}

pub(super) fn near<T>(why: impl Into<String>) -> Result<T, Miss> {
    Err(Miss::Near(why.into()))
}

fn attention(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let Op::Contract(c) = site.op else { return Err(Miss::Other) };
    let w = weights(g, c, site.args).or_other()?;
    if g.ty(site.id).dtype != DType::F32 {
        return near(format!("attention has a kernel for f32 only, this is {}", g.ty(site.id).dtype));
    }
    let rank = w.labels.len();
    let e = w.feature()?;
    let is_product = |g: &Graph<'_>, l: Id| g.ops(l).any(|(op, _)| matches!(op, Op::Contract(_)));
    let logits = logits(g, w.logits, &is_product)?;
    let (q, k) = queries_and_keys(g, &logits, rank)?;
    let v = w.arranged_values(g, e)?;
    let ((q, fq), (k, fk)) = (unscaled(g, q, 4), unscaled(g, k, 4));
    let scale = logits.scale * fq * fk;
    let q = match &logits.temperature {
        Some(t) => times(g, q, t)?,
        None => q,
    };
    let four = Four::new(g, &w, [q, k, v])?;
    let (mask, causal) = mask(g, &logits, rank, &four.logits)?;
    let op = Attention { scale: Real(scale), causal, softcap: Real(logits.softcap), clear: w.clear };
    let y = four.add(g, op, mask)?;
    w.result(g, y, e)
}

/// Queries, keys and values with four axes, keys and values before they were repeated.
pub(super) struct Four {
    operands: [Id; 3],
    /// Dims of the logits.
    pub(super) logits: Vec<Dim>,
}

impl Four {
    pub(super) fn new(g: &mut Graph<'_>, w: &Weights, [q, k, v]: [Id; 3]) -> Result<Four, Miss> {
        let mut logits: Vec<Dim> = g.dims(w.logits).to_vec();
        let rank = logits.len();
        let lead = logits[..rank - 2].to_vec();
        let shared = rank > 3 && [k, v].iter().all(|x| g.dims(*x)[rank - 3].is(1));
        let to_four = |g: &mut Graph<'_>, x: Id, shared: bool| {
            let x = spread(g, x, &lead, shared)?;
            let (own, tail) = g.dims(x).split_at(rank - 2);
            let dims = four(own).into_iter().chain(tail.iter().cloned()).collect::<Vec<_>>();
            g.reshape(x, dims)
        };
        let q = to_four(g, q, false).or_other()?;
        let (k, v) = (to_four(g, k, shared).or_other()?, to_four(g, v, shared).or_other()?);
        let (k, v) = ungrouped(g, k, v);
        logits.splice(..rank - 2, four(&lead));
        Ok(Four { operands: [q, k, v], logits })
    }

    /// An attention of these.
    pub(super) fn add(&self, g: &mut Graph<'_>, op: impl Into<Op>, mask: Option<Id>) -> Outcome {
        let operands: Vec<Id> = self.operands.into_iter().chain(mask).collect();
        g.add(op, &operands).or_near(|| {
            let [q, k, v] = self.operands.map(|x| g.ty(x));
            format!("q {q}, k {k} and v {v} do not fit")
        })
    }
}

/// A class with all batch axes; with `shared`, one head for all queries.
fn spread(g: &mut Graph<'_>, x: Id, lead: &[Dim], shared: bool) -> Option<Id> {
    let mut dims = lead.to_vec();
    if let Some(heads) = dims.last_mut().filter(|_| shared) {
        *heads = 1.into();
    }
    dims.extend_from_slice(&g.dims(x)[lead.len()..]);
    g.broadcast(x, dims)
}

/// Queries with a factor of their own each, or each head.
fn times(g: &mut Graph<'_>, q: Id, factor: &Poly) -> Result<Id, Miss> {
    if factor.leaves().iter().any(|l| g.dims(*l).last().is_some_and(|d| !d.is(1))) {
        return near("the product is scaled by something that differs from key to key");
    }
    let factor = write(g, factor, DType::F32).or_other()?;
    g.add(Map { body: Body::bin(BinOp::Mul) }, &[q, factor]).or_other()
}

/// The batch axes as two.
fn four(lead: &[Dim]) -> Vec<Dim> {
    match lead {
        [] => vec![1.into(), 1.into()],
        [b] => vec![b.clone(), 1.into()],
        [rest @ .., h] => vec![rest.iter().product(), h.clone()],
    }
}

/// Splits a product into softmax and values.
pub(super) fn weights(g: &Graph<'_>, c: &Contract, args: &[Id]) -> Option<Weights> {
    let sides = [(0, &c.lhs, &c.rhs), (1, &c.rhs, &c.lhs)];
    sides.into_iter().find_map(|(i, labels, others)| {
        let (logits, axis, clear) = softmax_of(g, args[i])?;
        let inner: Vec<u8> = labels.iter().filter(|l| !c.out.contains(l)).copied().collect();
        let fits = labels.len() >= 2 && axis + 1 == labels.len() && inner == [*labels.last()?];
        fits.then(|| Weights {
            logits,
            clear,
            labels: labels.clone(),
            values: args[1 - i],
            value_labels: others.clone(),
            out: c.out.clone(),
        })
    })
}

/// The operand and axis of the softmax that a class is, and whether rows that are NaN are cleared behind it.
fn softmax_of(g: &Graph<'_>, id: Id) -> Option<(Id, usize, bool)> {
    g.first(id, |(op, args)| match op {
        Op::Softmax(s) if !s.log => Some((args[0], s.axis, false)),
        Op::Map(m) => softmax_of(g, cleared(g, m, args)?).map(|(x, axis, _)| (x, axis, true)),
        _ => None,
    })
}

/// The operand of a map that is `if is_nan(x) { 0 } else { x }`.
fn cleared(g: &Graph<'_>, m: &Map, args: &[Id]) -> Option<Id> {
    let b = &m.body;
    let Ref::Inst(last) = b.result else { return None };
    let Inst::Select(c, zero, Ref::Arg(x)) = b.insts[last as usize] else { return None };
    let x = g.find(args[x as usize]);
    let is_zero = match zero {
        Ref::Inst(i) => matches!(&b.insts[i as usize], Inst::Const(l) if l.to_f64() == 0.0),
        Ref::Arg(a) => number(g, args[a as usize]) == Some(0.0),
    };
    let tests_x = match c {
        Ref::Inst(i) => matches!(b.insts[i as usize], Inst::Un(UnOp::IsNan, Ref::Arg(a)) if g.find(args[a as usize]) == x),
        Ref::Arg(a) => g.ops(args[a as usize]).any(|(op, inner)| {
            matches!(op, Op::Map(m) if m.body == Body::un(UnOp::IsNan)) && inner.iter().all(|i| g.find(*i) == x)
        }),
    };
    (is_zero && tests_x).then_some(x)
}

/// Reads the logits down to the product with keys.
pub(super) fn logits(g: &Graph<'_>, id: Id, is_product: &dyn Fn(&Graph<'_>, Id) -> bool) -> Result<Logits, Miss> {
    let mut p = read(g, id, &[]);
    let mut kept = Vec::new();
    while let Some(Atom::Choose(c, x, y)) = p.as_atom().cloned() {
        let hidden = |q: &Poly| q.as_number().filter(|v| *v <= HIDDEN);
        let (inner, keep, fill) = match (hidden(&x), hidden(&y)) {
            (None, Some(fill)) => (x, true, fill),
            (Some(fill), None) => (y, false, fill),
            _ => return near("the logits are chosen between two values of which neither hides a key"),
        };
        kept.push((c, keep, fill));
        p = inner;
    }
    let products: Vec<Id> = p.leaves().into_iter().filter(|l| g.dims(*l) == g.dims(id) && is_product(g, *l)).collect();
    let [product] = products[..] else {
        return near(format!("{} products stand below the softmax, attention has one", products.len()));
    };
    let leaf = Atom::Leaf(product);
    let (of, added) = p.split(|m| m.keys().any(|a| Poly::atom(a.clone()).leaves().contains(&product)));
    let linear = |p: &Poly| p.as_term().filter(|(m, _)| m.len() == 1 && m.get(&leaf) == Some(&1)).map(|(_, c)| c);
    let (scale, softcap, temperature) = match (linear(&of), of.as_term()) {
        (Some(scale), _) => (scale, 0.0, None),
        (None, Some((m, cap))) => match m.iter().next() {
            Some((Atom::Un(UnOp::Tanh, u), 1)) if m.len() == 1 && cap > 0.0 => match linear(u) {
                Some(s) => (s * cap, cap, None),
                None => return near("the soft cap is not of the scaled product alone"),
            },
            _ => match of.without(&leaf, 1) {
                Some(factor) if !factor.leaves().contains(&product) => (1.0, 0.0, Some(factor)),
                _ => return near("the logits are not linear in the product with keys"),
            },
        },
        _ => return near("the logits are not linear in the product with keys"),
    };
    Ok(Logits { product, scale, temperature, softcap, added, kept })
}

/// Queries and keys, batch axes first, then rows, then features.
pub(super) fn queries_and_keys(g: &mut Graph<'_>, l: &Logits, rank: usize) -> Result<(Id, Id), Miss> {
    let find = |(op, args): (&Op, &[Id])| match op {
        Op::Contract(c) => Some((c.clone(), args[0], args[1])),
        _ => None,
    };
    let (c, a, b) = g.first(l.product, find).or_other()?;
    let (query, key, batch) = (c.out[rank - 2], c.out[rank - 1], &c.out[..rank - 2]);
    let inner: Vec<u8> = c.lhs.iter().filter(|l| !c.out.contains(l)).copied().collect();
    let [d] = inner[..] else { return near("the product with keys sums over more than one axis") };
    let in_both = |l: &u8| c.lhs.contains(l) && c.rhs.contains(l);
    if in_both(&query) || in_both(&key) {
        return near("both operands of the product with keys have the query or the key axis");
    }
    let sides = if c.lhs.contains(&query) && c.rhs.contains(&key) {
        [(a, &c.lhs), (b, &c.rhs)]
    } else if c.rhs.contains(&query) && c.lhs.contains(&key) {
        [(b, &c.rhs), (a, &c.lhs)]
    } else {
        return near("one operand has both the query and the key axis");
    };
    let order = |row: u8| batch.iter().copied().chain([row, d]).collect::<Vec<u8>>();
    let q = arrange(g, sides[0].0, sides[0].1, &order(query)).or_other()?;
    let k = arrange(g, sides[1].0, sides[1].1, &order(key)).or_other()?;
    Ok((q, k))
}

/// A class with its axes in another order, those that it lacks with extent 1.
fn arrange(g: &mut Graph<'_>, x: Id, from: &[u8], to: &[u8]) -> Option<Id> {
    let perm: Vec<usize> = to.iter().filter_map(|l| from.iter().position(|m| m == l)).collect();
    if perm.len() != from.len() {
        return None;
    }
    let y = g.transpose(x, &perm)?;
    let mut own = g.dims(y).to_vec().into_iter();
    let dims: Vec<Dim> = to.iter().map(|l| if from.contains(l) { own.next() } else { Some(1.into()) }).collect::<Option<_>>()?;
    g.reshape(y, dims)
}

/// A class without a number that it is multiplied by, and that number. Looks below views, where the multiplication would need a
/// kernel of its own.
fn unscaled(g: &mut Graph<'_>, x: Id, depth: usize) -> (Id, f64) {
    let same = |g: &Graph<'_>, y: Id| g.ty(y) == g.ty(x);
    let scaled = g.first(x, |(op, args)| match op {
        Op::Map(_) => args.iter().find_map(|a| {
            let p = read(g, x, &[*a]);
            let (m, c) = p.as_term()?;
            let leaf = g.find(*a);
            (m.len() == 1 && m.get(&Atom::Leaf(leaf)) == Some(&1) && same(g, leaf)).then_some((leaf, c))
        }),
        _ => None,
    });
    if let Some((y, c)) = scaled.filter(|_| depth > 0) {
        let (y, rest) = unscaled(g, y, depth - 1);
        return (y, c * rest);
    }
    let view = g.first(x, |(op, args)| matches!(op, Op::Transpose(_) | Op::Reshape(_)).then(|| (op.clone(), args[0])));
    if let Some((op, inner)) = view.filter(|_| depth > 0) {
        let (y, c) = unscaled(g, inner, depth - 1);
        let view = match op {
            _ if c == 1.0 => None,
            Op::Transpose(t) => g.transpose(y, &t.perm),
            Op::Reshape(r) => g.reshape(y, r.dims),
            _ => None,
        };
        if let Some(view) = view {
            return (view, c);
        }
    }
    (x, 1.0)
}

/// Keys and values before each head was repeated for a group of queries.
fn ungrouped(g: &mut Graph<'_>, k: Id, v: Id) -> (Id, Id) {
    match (before_repeat(g, k), before_repeat(g, v)) {
        (Some(a), Some(b)) if g.dims(a)[1] == g.dims(b)[1] => (a, b),
        _ => (k, v),
    }
}

/// `x[b, h, s, d]` if the class is its reshaped broadcast to `[b, h, r, s, d]`.
fn before_repeat(g: &mut Graph<'_>, x: Id) -> Option<Id> {
    let to = g.dims(x).to_vec();
    let (one, dims) = g.first(x, |(op, args)| {
        matches!(op, Op::Reshape(_)).then_some(())?;
        g.first(args[0], |(op, inner)| match op {
            Op::Broadcast(b) if b.dims.len() == 5 => Some((inner[0], b.dims.clone())),
            _ => None,
        })
    })?;
    let [b, h, r, s, d] = &dims[..] else { return None };
    let from = g.dims(one).to_vec();
    let repeats = from.len() == 5 && from[2].is(1) && from[..2] == dims[..2] && from[3..] == dims[3..];
    let merged = [b.clone(), h * r, s.clone(), d.clone()] == to[..];
    (repeats && merged).then(|| g.reshape(one, vec![b.clone(), h.clone(), s.clone(), d.clone()])).flatten()
}

/// The mask operand and the causal offset.
pub(super) fn mask(g: &mut Graph<'_>, l: &Logits, rank: usize, dims: &[Dim]) -> Result<(Option<Id>, Option<Dim>), Miss> {
    let mut kept = l.kept.clone();
    let mut added = l.added.clone();
    // An additive mask that hides or leaves is a condition too.
    if kept.is_empty()
        && let Some(Atom::Choose(c, x, y)) = added.as_leaf().map(|m| read(g, m, &[])).as_ref().and_then(Poly::as_atom)
    {
        let keep = match (x.as_number(), y.as_number()) {
            (Some(0.0), Some(fill)) if fill <= HIDDEN => Some((*c, true, fill)),
            (Some(fill), Some(0.0)) if fill <= HIDDEN => Some((*c, false, fill)),
            _ => None,
        };
        if let Some(keep) = keep.filter(|k| index::causal(g, k.0, k.1).is_some()) {
            (kept, added) = (vec![keep], Poly::default());
        }
    }
    if let ([(c, keep, _)], true) = (&kept[..], added.is_zero())
        && let Some(offset) = index::causal(g, *c, *keep)
    {
        return Ok((None, Some(offset)));
    }
    let finite: Vec<f64> = kept.iter().map(|k| k.2).filter(|fill| fill.is_finite()).collect();
    if finite.windows(2).any(|w| w[0] != w[1]) {
        return near("hidden keys get different numbers, which count where a row sees no key");
    }
    let dtype = DType::F32;
    let mask = match (&kept[..], added.is_zero()) {
        ([], true) => return Ok((None, None)),
        ([], false) => write(g, &added, dtype).or_other()?,
        ([(c, keep, f64::NEG_INFINITY)], true) => {
            if *keep {
                *c
            } else {
                g.add(Map { body: Body::un(UnOp::Not) }, &[*c]).or_other()?
            }
        }
        _ => {
            // Finite fills count where a row sees no key at all: all its logits are the fill then, which the lowest number absorbs
            // them into.
            let whole = if added.is_zero() { None } else { Some(write(g, &added, dtype).or_other()?) };
            let args: Vec<Id> = kept.iter().map(|k| k.0).chain(whole).collect();
            let mut b = Body::builder(args.len() as u32);
            let mut value = if whole.is_some() { Ref::Arg(kept.len() as u32) } else { b.num(dtype, 0.0) };
            for (i, (_, keep, fill)) in kept.iter().enumerate().rev() {
                let fill = b.num(dtype, if fill.is_infinite() { *fill } else { f32::MIN.into() });
                let c = Ref::Arg(i as u32);
                value = if *keep { b.select(c, value, fill) } else { b.select(c, fill, value) };
            }
            g.add(Map { body: b.finish(value) }, &args).or_other()?
        }
    };
    let own = g.dims(mask).to_vec();
    let placed = match (rank, own.len()) {
        (_, n) if n <= 2 => Some(mask),
        (2, _) => None,
        (3, _) => g.reshape(mask, vec![own[0].clone(), 1.into(), own[1].clone(), own[2].clone()]),
        (_, 3) | (4, 4) => Some(mask),
        (_, n) if own[..n - 3].iter().all(|d| d.is(1)) => {
            g.reshape(mask, [Dim::from(1)].into_iter().chain(own[n - 3..].iter().cloned()).collect::<Vec<_>>())
        }
        _ => None,
    };
    let mask = placed.or_near(|| format!("the mask {} varies along merged batch axes", g.ty(mask)))?;
    if broadcast_dims(g.dims(mask), dims).as_deref() != Some(dims) {
        return near(format!("the mask {} does not broadcast to the logits", g.ty(mask)));
    }
    Ok((Some(mask), None))
}

fn batch_of_contract(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let Op::Reshape(to) = site.op else { return Err(Miss::Other) };
    let find = |(op, args): (&Op, &[Id])| match op {
        Op::Contract(c) => Some((c.clone(), args[0], args[1])),
        _ => None,
    };
    let (c, a, b) = g.first(site.args[0], find).or_other()?;
    let from = g.dims(site.args[0]).to_vec();
    let batch = c.out.iter().take_while(|l| c.lhs.contains(l) && c.rhs.contains(l)).count();
    let tail = from.len() - batch;
    // Only the batch axes may change, and they lead in both operands.
    let leads = c.lhs[..batch.min(c.lhs.len())] == c.out[..batch] && c.rhs[..batch.min(c.rhs.len())] == c.out[..batch];
    // Axes of extent 1 may lead where there are none, but no weight gets any.
    let weighs = g.known(a).constant || g.known(b).constant;
    if batch == 0 && weighs || !leads || to.dims.len() <= tail || to.dims[to.dims.len() - tail..] != from[batch..] {
        return Err(Miss::Other);
    }
    let lead = to.dims[..to.dims.len() - tail].to_vec();
    if lead.iter().product::<Dim>() != from[..batch].iter().product() || lead == from[..batch] {
        return Err(Miss::Other);
    }
    let new = lead.len() as u8;
    // Labels behind the batch axes keep their order and make room for the new ones.
    let shift = |labels: &[u8]| (0..new).chain(labels[batch..].iter().map(|l| l + new)).collect::<Vec<u8>>();
    let mut reshape = |x: Id| {
        let dims = lead.iter().chain(&g.dims(x)[batch..]).cloned().collect::<Vec<_>>();
        g.reshape(x, dims)
    };
    let (a, b) = (reshape(a).or_other()?, reshape(b).or_other()?);
    let op = Contract { lhs: shift(&c.lhs), rhs: shift(&c.rhs), out: shift(&c.out), out_dtype: c.out_dtype };
    g.add(op, &[a, b]).or_other()
}
