//! Attention of quantised models, whose products have codes on both sides.

use egg::Id;
use transc_ir::op::{Code, Contract, IntAttention, Map, Op, Real};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref};
use transc_ir::types::DType;

use super::attention::{Four, Weights, logits, mask, near, queries_and_keys, weights};
use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::number;
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[Rule {
    name: "int-attention",
    class: Class::Reassoc,
    bound: 1e-4,
    why: "products of decoded bytes are sums of integers, times both scales",
    at: &["contract"],
    apply: int_attention,
}];

/// Views between an operand of a product and its codes.
const MAX_VIEWS: usize = 4;

fn int_attention(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let Op::Contract(c) = site.op else { return Err(Miss::Other) };
    let (w, code) = coded_weights(g, c, site.args).or_other()?;
    if g.ty(site.id).dtype != DType::F32 {
        return Err(Miss::Other);
    }
    let e = w.feature()?;
    let is_product = |g: &Graph<'_>, l: Id| product(g, l).is_some();
    let mut l = logits(g, w.logits, &is_product)?;
    if l.softcap != 0.0 || l.temperature.is_some() {
        return near("logits of codes have neither a cap nor factors of their own");
    }
    let (at, logits) = product(g, l.product).or_other()?;
    l.product = at;
    let (q, k) = queries_and_keys(g, &l, w.labels.len())?;
    let v = w.arranged_values(g, e)?;
    let mut operands = Vec::with_capacity(3);
    for (x, what) in [(q, "queries"), (k, "keys"), (v, "values")] {
        operands.push(decoded(g, x, MAX_VIEWS).or_near(|| format!("the {what} are not bytes with one scale"))?);
    }
    let [q, k, v] = [0, 1, 2].map(|i| operands[i].0);
    let four = Four::new(g, &w, [q, k, v])?;
    let (mask, causal) = mask(g, &l, w.labels.len(), &four.logits)?;
    let scale = |i: usize| operands[i].1.0 as f32;
    let op = IntAttention {
        zeros: operands.iter().map(|o| o.2).collect(),
        unit: Real(f64::from(scale(0) * scale(1))),
        logits,
        scale: Real(f64::from(l.scale as f32)),
        causal,
        clear: w.clear,
        weights: code.clone(),
    };
    let codes: Vec<Id> = four.operands.into_iter().chain(mask).collect();
    let sums = g.add(op, &codes).or_near(|| {
        let [q, k, v] = [0, 1, 2].map(|i| g.ty(codes[i]));
        format!("q {q}, k {k} and v {v} do not fit")
    })?;
    let mut b = Body::builder(1);
    let real = b.cast(DType::F32, Ref::Arg(0));
    let factor = b.push(Inst::Const(Literal::f32(code.scale.0 as f32 * scale(2))));
    let real = b.bin(BinOp::Mul, real, factor);
    let y = g.add(Map { body: b.finish(real) }, &[sums]).or_other()?;
    w.result(g, y, e)
}

/// A product whose weights are decoded from the codes of a softmax.
fn coded_weights(g: &Graph<'_>, c: &Contract, args: &[Id]) -> Option<(Weights, Code)> {
    (0..2).find_map(|i| {
        let (softmax, code) = recoded(g, args[i])?;
        let mut args = args.to_vec();
        args[i] = softmax;
        weights(g, c, &args).map(|w| (w, code))
    })
}

/// The product that a class is, or is decoded from the codes of.
fn product(g: &Graph<'_>, id: Id) -> Option<(Id, Option<Code>)> {
    let is_product = |id: Id| g.ops(id).any(|(op, _)| matches!(op, Op::Contract(_)));
    if is_product(id) {
        return Some((id, None));
    }
    recoded(g, id).filter(|(x, _)| is_product(*x)).map(|(x, code)| (x, Some(code)))
}

/// What a class is after it became bytes and was decoded again.
fn recoded(g: &Graph<'_>, id: Id) -> Option<(Id, Code)> {
    let (codes, scale, zero) = decoded_here(g, id)?;
    let (x, coded_by) = g.first(codes, |(op, args)| match op {
        Op::Quantize(_) => Some((args[0], params(g, args)?)),
        _ => None,
    })?;
    (coded_by == (scale, zero)).then(|| (x, Code { to: g.ty(codes).dtype, scale, zero }))
}

/// The bytes that a class is decoded from, through views, with scale and zero point.
fn decoded(g: &mut Graph<'_>, x: Id, views: usize) -> Option<(Id, Real, i64)> {
    if let Some(found) = decoded_here(g, x) {
        return Some(found);
    }
    let seen: Vec<(Op, Id)> = g
        .ops(x)
        .filter(|(op, _)| matches!(op, Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast(_)))
        .map(|(op, args)| (op.clone(), args[0]))
        .collect();
    seen.into_iter().filter(|_| views > 0).find_map(|(op, inner)| {
        let (codes, scale, zero) = decoded(g, inner, views - 1)?;
        let codes = match op {
            Op::Transpose(t) => g.transpose(codes, &t.perm),
            Op::Reshape(r) => g.reshape(codes, r.dims),
            Op::Broadcast(b) => g.broadcast(codes, b.dims),
            _ => None,
        };
        Some((codes?, scale, zero))
    })
}

fn decoded_here(g: &Graph<'_>, id: Id) -> Option<(Id, Real, i64)> {
    g.first(id, |(op, args)| {
        let bytes = matches!(op, Op::Dequantize(_)) && matches!(g.ty(args[0]).dtype, DType::U8 | DType::I8);
        bytes.then(|| params(g, args)).flatten().map(|(scale, zero)| (args[0], scale, zero))
    })
}

/// Scale and zero point, if both are numbers.
fn params(g: &Graph<'_>, args: &[Id]) -> Option<(Real, i64)> {
    let zero = match args.get(2) {
        None => 0,
        Some(z) => g.integer(*z)?,
    };
    Some((Real(number(g, args[1])?), zero))
}
