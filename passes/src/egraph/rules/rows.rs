//! Dead rows: a box of a result needs only a box of the operands, so that boxes move toward the inputs. If only the class token of
//! the last hidden state is read, the last block computes the queries and the feed-forward layers of one row.

use egg::Id;
use transc_ir::op::{
    Attention, Concat, Contract, Gather, IntAttention, LayerNorm, Op, Reduce, Reshape, RmsNorm, Slice, Softmax, Transpose,
};
use transc_ir::types::Dim;

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[
    Rule {
        name: "rows-of-gather",
        class: Class::Exact,
        bound: 0.0,
        why: "the slice at a constant index is a box",
        at: &["gather"],
        apply: rows_of_gather,
    },
    Rule {
        name: "rows-of-map",
        class: Class::Exact,
        bound: 0.0,
        why: "an element of a map depends on the elements at its own index, a rotated row on the rows at its own",
        at: &["slice"],
        apply: rows_of_map,
    },
    Rule {
        name: "rows-of-view",
        class: Class::Exact,
        bound: 0.0,
        why: "a box of a view is a view of a box where the view leaves the boxed axes whole",
        at: &["slice"],
        apply: rows_of_view,
    },
    Rule {
        name: "rows-of-contract",
        class: Class::Exact,
        bound: 0.0,
        why: "a row of a product depends on the row of one operand, in the same order of sums",
        at: &["slice"],
        apply: rows_of_contract,
    },
    Rule {
        name: "rows-of-norm",
        class: Class::Exact,
        bound: 0.0,
        why: "rows are normalised and folded apart",
        at: &["slice"],
        apply: rows_of_norm,
    },
    Rule {
        name: "rows-of-attention",
        class: Class::Exact,
        bound: 0.0,
        why: "each query is answered by itself",
        at: &["slice"],
        apply: rows_of_attention,
    },
];

/// The slice and what it takes a box of, whose provenance the new terms get.
fn boxed<'s>(g: &mut Graph<'_>, site: &Site<'s>) -> Result<(&'s Slice, Id), Miss> {
    let Op::Slice(s) = site.op else { return Err(Miss::Other) };
    g.place_like(site.args[0]);
    Ok((s, site.args[0]))
}

/// The box along one axis of a slice.
#[derive(Clone)]
struct Span {
    start: Dim,
    size: Dim,
    step: i64,
}

impl Span {
    fn of(s: &Slice, axis: usize) -> Self {
        Self { start: s.starts[axis].clone(), size: s.sizes[axis].clone(), step: s.steps[axis] }
    }

    fn is_whole(&self, dim: &Dim) -> bool {
        self.start.is(0) && self.step == 1 && self.size == *dim
    }
}

/// The box of `x` with one span per axis; `None` keeps an axis whole.
fn take(g: &mut Graph<'_>, x: Id, spans: &[Option<Span>]) -> Option<Id> {
    let dims = g.dims(x).to_vec();
    let spans: Vec<Span> = spans
        .iter()
        .zip(&dims)
        .map(|(s, d)| s.clone().unwrap_or_else(|| Span { start: 0.into(), size: d.clone(), step: 1 }))
        .collect();
    if spans.iter().zip(&dims).all(|(s, d)| s.is_whole(d)) {
        return Some(x);
    }
    let boxed = Slice {
        starts: spans.iter().map(|s| s.start.clone()).collect(),
        sizes: spans.iter().map(|s| s.size.clone()).collect(),
        steps: spans.iter().map(|s| s.step).collect(),
    };
    g.add_at(x, boxed, &[x])
}

/// The axes that a slice does not leave whole.
fn spans(s: &Slice, dims: &[Dim]) -> Vec<Option<Span>> {
    dims.iter().enumerate().map(|(a, d)| Some(Span::of(s, a)).filter(|x| !x.is_whole(d))).collect()
}

fn rows_of_gather(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (Op::Gather(Gather { axis }), [data, index]) = (site.op, site.args) else { return Err(Miss::Other) };
    let index_dims = g.dims(*index).to_vec();
    if index_dims.iter().any(|d| !d.is(1)) {
        return Err(Miss::Other);
    }
    let at = g.integer(*index).or_other()?;
    let extent = g.dims(*data)[*axis].clone();
    let start = if at < 0 { &extent + &Dim::from(at) } else { Dim::from(at) };
    // An index outside is an error when the model runs, which a box would hide.
    let (lowest, _) = (&extent - &(&start + &Dim::from(1))).bounds(g.ranges);
    if lowest < 0 || start.bounds(g.ranges).0 < 0 {
        return Err(Miss::Near(format!("index {at} may lie outside of {extent} elements")));
    }
    let mut spans = vec![None; g.dims(*data).len()];
    spans[*axis] = Some(Span { start, size: 1.into(), step: 1 });
    let row = take(g, *data, &spans).or_other()?;
    let mut dims = g.dims(*data).to_vec();
    dims.splice(*axis..=*axis, index_dims);
    g.reshape(row, dims).or_other()
}

fn rows_of_map(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (s, x) = boxed(g, site)?;
    let spans = spans(s, g.dims(x));
    let (op, args): (Op, Vec<Id>) = g
        .first(x, |(op, args)| {
            let apart = match op {
                Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) => !args.is_empty(),
                // Features of a row meet, rows do not.
                Op::Rope(_) => spans.last().is_some_and(Option::is_none),
                _ => false,
            };
            apart.then(|| (op.clone(), args.to_vec()))
        })
        .or_other()?;
    let rank = spans.len();
    let mut inner = Vec::with_capacity(args.len());
    for a in args {
        let dims = g.dims(a).to_vec();
        let lead = rank - dims.len();
        let own: Vec<Option<Span>> = dims.iter().enumerate().map(|(i, d)| spans[lead + i].clone().filter(|_| !d.is(1))).collect();
        inner.push(take(g, a, &own).or_other()?);
    }
    let y = g.add(op, &inner).or_other()?;
    same_type(g, y, site)
}

/// The result, if its type is the site's: a map over boxes of extent 1 may have lost an axis that only a broadcast operand had.
fn same_type(g: &Graph<'_>, y: Id, site: &Site<'_>) -> Outcome {
    if g.ty(y) == g.ty(site.id) { Ok(y) } else { Err(Miss::Other) }
}

fn rows_of_view(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (s, x) = boxed(g, site)?;
    let dims = g.dims(x).to_vec();
    let (op, args): (Op, Vec<Id>) = g
        .first(x, |(op, args)| {
            matches!(op, Op::Transpose(_) | Op::Reshape(_) | Op::Slice(_) | Op::Concat(_)).then(|| (op.clone(), args.to_vec()))
        })
        .or_other()?;
    let spans = spans(s, &dims);
    match &op {
        Op::Transpose(t) => {
            let mut inner = vec![None; spans.len()];
            t.perm.iter().zip(&spans).for_each(|(p, s)| inner[*p] = s.clone());
            let y = take(g, args[0], &inner).or_other()?;
            g.add(Transpose { perm: t.perm.clone() }, &[y]).or_other()
        }
        Op::Reshape(_) => {
            let from = g.dims(args[0]).to_vec();
            let inner = through_reshape(&spans, &dims, &from).or_other()?;
            let y = take(g, args[0], &inner).or_other()?;
            g.add(Reshape { dims: s.sizes.clone() }, &[y]).or_other()
        }
        Op::Slice(first) => {
            let starts = first.starts.iter().zip(&s.starts).zip(&first.steps).map(|((a, b), step)| a + &(b * &Dim::from(*step)));
            let steps = first.steps.iter().zip(&s.steps).map(|(a, b)| a.checked_mul(*b)).collect::<Option<_>>().or_other()?;
            g.add(Slice { starts: starts.collect(), sizes: s.sizes.clone(), steps }, &[args[0]]).or_other()
        }
        Op::Concat(Concat { axis }) => {
            let span = spans[*axis].clone().or_other()?;
            let (start, size) = (span.start.as_const().or_other()?, span.size.as_const().or_other()?);
            let (mut at, mut found) = (0, None);
            for a in &args {
                let extent = g.dims(*a)[*axis].as_const().or_other()?;
                if span.step == 1 && at <= start && start + size <= at + extent {
                    found = Some((*a, start - at));
                    break;
                }
                at += extent;
            }
            let (part, offset) = found.or_other()?;
            let mut inner = spans.clone();
            inner[*axis] = Some(Span { start: offset.into(), ..span });
            take(g, part, &inner).or_other()
        }
        _ => Err(Miss::Other),
    }
}

/// The spans before a reshape: every boxed axis must be one of the axes of the operand.
fn through_reshape(spans: &[Option<Span>], to: &[Dim], from: &[Dim]) -> Option<Vec<Option<Span>>> {
    let before = |dims: &[Dim], axis: usize| dims[..axis].iter().product::<Dim>();
    let mut inner = vec![None; from.len()];
    for (axis, span) in spans.iter().enumerate() {
        let Some(span) = span else { continue };
        let lead = before(to, axis);
        let at = (0..from.len()).find(|a| from[*a] == to[axis] && before(from, *a) == lead)?;
        inner[at] = Some(span.clone());
    }
    Some(inner)
}

fn rows_of_contract(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (s, x) = boxed(g, site)?;
    let (c, args): (Contract, Vec<Id>) = g
        .first(x, |(op, args)| match op {
            Op::Contract(c) => Some((c.clone(), args.to_vec())),
            _ => None,
        })
        .or_other()?;
    let spans = spans(s, g.dims(x));
    let of = |labels: &[u8]| -> Vec<Option<Span>> {
        labels.iter().map(|l| c.out.iter().position(|m| m == l).and_then(|i| spans[i].clone())).collect()
    };
    let (l, r) = (of(&c.lhs), of(&c.rhs));
    let lhs = take(g, args[0], &l).or_other()?;
    let rhs = take(g, args[1], &r).or_other()?;
    g.add(c, &[lhs, rhs]).or_other()
}

fn rows_of_norm(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (s, x) = boxed(g, site)?;
    let dims = g.dims(x).to_vec();
    let spans = spans(s, &dims);
    let (op, args): (Op, Vec<Id>) = g
        .first(x, |(op, args)| {
            let apart = match op {
                Op::LayerNorm(LayerNorm { axis, .. }) | Op::RmsNorm(RmsNorm { axis, .. }) => {
                    spans[*axis..].iter().all(Option::is_none)
                }
                Op::Softmax(Softmax { axis, .. }) => spans[*axis].is_none(),
                Op::Reduce(r) => !r.keep || r.axes.iter().all(|a| spans[*a].is_none()),
                _ => false,
            };
            apart.then(|| (op.clone(), args.to_vec()))
        })
        .or_other()?;
    let inner: Vec<Option<Span>> = match &op {
        Op::Reduce(Reduce { axes, keep: false, .. }) => {
            let mut kept = spans.into_iter();
            (0..g.dims(args[0]).len()).map(|a| if axes.contains(&a) { None } else { kept.next().flatten() }).collect()
        }
        _ => spans,
    };
    let y = take(g, args[0], &inner).or_other()?;
    let operands: Vec<Id> = std::iter::once(y).chain(args[1..].iter().copied()).collect();
    g.add(op, &operands).or_other()
}

fn rows_of_attention(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let (s, x) = boxed(g, site)?;
    let (mut op, args): (Op, Vec<Id>) = g
        .first(x, |(op, args)| matches!(op, Op::Attention(_) | Op::IntAttention(_)).then(|| (op.clone(), args.to_vec())))
        .or_other()?;
    let spans = spans(s, g.dims(x));
    if spans[0].is_some() || spans[1].is_some() || spans[2].as_ref().is_some_and(|q| q.step != 1) {
        return Err(Miss::Other);
    }
    let queries = spans[2].clone();
    let q = take(g, args[0], &[None, None, queries.clone(), None]).or_other()?;
    let v = take(g, args[2], &[None, None, None, spans[3].clone()]).or_other()?;
    let mut operands = vec![q, args[1], v];
    if let Some(mask) = args.get(3) {
        let dims = g.dims(*mask).to_vec();
        let mut own = vec![None; dims.len()];
        if let Some(i) = dims.len().checked_sub(2).filter(|i| !dims[*i].is(1)) {
            own[i] = queries.clone();
        }
        operands.push(take(g, *mask, &own).or_other()?);
    }
    let start = queries.map_or(Dim::from(0), |s| s.start);
    if let Op::Attention(Attention { causal, .. }) | Op::IntAttention(IntAttention { causal, .. }) = &mut op {
        *causal = causal.take().map(|c| &c + &start);
    }
    g.add(op, &operands).or_other()
}
