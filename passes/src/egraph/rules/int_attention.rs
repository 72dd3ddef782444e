//! Attention of quantised models, whose products have codes on both sides.

use egg::Id;
use transc_ir::op::{Code, Contract, IntAttention, Map, Op, Real};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref};
use transc_ir::types::DType;

use super::attention::{Four, Weights, logits, mask, near, queries_and_keys, weights};
use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::{Atom, number, read};
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

/// An operand of a product as codes.
#[derive(Clone, Copy)]
struct Coded {
    codes: Id,
    /// `None` where the product is one of integers: its result is scaled instead.
    scale: Option<Real>,
    zero: i64,
}

/// The product with keys.
struct Product {
    id: Id,
    /// What becomes of it before anything else.
    code: Option<Code>,
    /// The scale of a product of integers.
    scale: Option<f64>,
}

fn int_attention(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let Op::Contract(c) = site.op else { return Err(Miss::Other) };
    let (w, code, weight) = coded_weights(g, c, site.args).or_other()?;
    let real = match g.ty(site.id).dtype {
        DType::F32 => true,
        DType::I32 => false,
        _ => return Err(Miss::Other),
    };
    let e = w.feature()?;
    let is_product = |g: &Graph<'_>, l: Id| product(g, l).is_some();
    let mut l = logits(g, w.logits, &is_product)?;
    if l.softcap != 0.0 || l.temperature.is_some() {
        return near("logits of codes have neither a cap nor factors of their own");
    }
    let keys = product(g, l.product).or_other()?;
    l.product = keys.id;
    let (q, k) = queries_and_keys(g, &l, w.labels.len())?;
    let v = w.arranged_values(g, e)?;
    let mut operands = Vec::with_capacity(3);
    for (x, what) in [(q, "queries"), (k, "keys"), (v, "values")] {
        operands.push(decoded(g, x, MAX_VIEWS).or_near(|| format!("the {what} are not bytes with one scale"))?);
    }
    let scales = [0, 1, 2].map(|i| operands[i].scale.map(|s| s.0 as f32));
    let unit = match (keys.scale, scales) {
        (Some(unit), [None, None, _]) => unit as f32,
        (None, [Some(q), Some(k), _]) => q * k,
        _ => return near("the product with keys has integers on one side only"),
    };
    if [weight.scale.is_some(), scales[2].is_some()] != [real, real] {
        return near("the product with values has integers on one side only");
    }
    let [q, k, v] = [0, 1, 2].map(|i| operands[i].codes);
    let four = Four::new(g, &w, [q, k, v])?;
    let (mask, causal) = mask(g, &l, w.labels.len(), &four.logits)?;
    let op = IntAttention {
        zeros: operands.iter().map(|o| o.zero).collect(),
        unit: Real(f64::from(unit)),
        logits: keys.code,
        scale: Real(f64::from(l.scale as f32)),
        causal,
        clear: w.clear,
        weights: code.clone(),
        relative: false,
    };
    let sums = four.add(g, op, mask)?;
    let y = match scales[2] {
        None => sums,
        Some(scale) => {
            let mut b = Body::builder(1);
            let real = b.cast(DType::F32, Ref::Arg(0));
            let factor = b.push(Inst::Const(Literal::f32(code.scale.0 as f32 * scale)));
            let real = b.bin(BinOp::Mul, real, factor);
            g.add(Map { body: b.finish(real) }, &[sums]).or_other()?
        }
    };
    w.result(g, y, e)
}

/// A product whose weights are the codes of a softmax, with these, and as what the product takes them.
fn coded_weights(g: &Graph<'_>, c: &Contract, args: &[Id]) -> Option<(Weights, Code, Coded)> {
    (0..2).find_map(|i| {
        let taken = decoded_here(g, args[i])?;
        let (softmax, code) = coded_by(g, taken.codes)?;
        let same = code.zero == taken.zero && taken.scale.is_none_or(|s| s == code.scale);
        let mut args = args.to_vec();
        args[i] = softmax;
        weights(g, c, &args).filter(|_| same).map(|w| (w, code, taken))
    })
}

/// The product that a class is, of reals or of integers, or is decoded from the codes of.
fn product(g: &Graph<'_>, id: Id) -> Option<Product> {
    if let Some(found) = uncoded_product(g, id) {
        return Some(found);
    }
    let taken = decoded_here(g, id)?;
    let (x, code) = coded_by(g, taken.codes)?;
    let same = (Some(code.scale), code.zero) == (taken.scale, taken.zero);
    uncoded_product(g, x).filter(|_| same).map(|p| Product { code: Some(code), ..p })
}

fn uncoded_product(g: &Graph<'_>, id: Id) -> Option<Product> {
    let of = |id: Id, dtype: DType| g.ty(id).dtype == dtype && g.ops(id).any(|(op, _)| matches!(op, Op::Contract(_)));
    if of(id, DType::F32) {
        return Some(Product { id, code: None, scale: None });
    }
    let p = read(g, id, &[]);
    let (m, scale) = p.as_term()?;
    let [(Atom::Leaf(real), 1)] = m.iter().map(|(a, n)| (a.clone(), *n)).collect::<Vec<_>>()[..] else { return None };
    let sums = g.first(real, |(op, args)| (op.casts_to(DType::F32) && of(args[0], DType::I32)).then_some(args[0]))?;
    Some(Product { id: sums, code: None, scale: Some(scale) })
}

/// What a class of bytes is the codes of.
fn coded_by(g: &Graph<'_>, codes: Id) -> Option<(Id, Code)> {
    g.first(codes, |(op, args)| match op {
        Op::Quantize(_) => params(g, args).map(|(scale, zero)| (args[0], Code { to: g.ty(codes).dtype, scale, zero })),
        _ => None,
    })
}

/// The bytes that a class is decoded from, through views.
fn decoded(g: &mut Graph<'_>, x: Id, views: usize) -> Option<Coded> {
    if let Some(found) = decoded_here(g, x) {
        return Some(found);
    }
    let seen: Vec<(Op, Id)> = g
        .ops(x)
        .filter(|(op, _)| matches!(op, Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast(_)))
        .map(|(op, args)| (op.clone(), args[0]))
        .collect();
    seen.into_iter().filter(|_| views > 0).find_map(|(op, inner)| {
        let inner = decoded(g, inner, views - 1)?;
        let codes = match op {
            Op::Transpose(t) => g.transpose(inner.codes, &t.perm),
            Op::Reshape(r) => g.reshape(inner.codes, r.dims),
            Op::Broadcast(b) => g.broadcast(inner.codes, b.dims),
            _ => None,
        };
        Some(Coded { codes: codes?, ..inner })
    })
}

fn decoded_here(g: &Graph<'_>, id: Id) -> Option<Coded> {
    let bytes = |id: Id| matches!(g.ty(id).dtype, DType::U8 | DType::I8);
    if bytes(id) {
        return Some(Coded { codes: id, scale: None, zero: 0 });
    }
    g.first(id, |(op, args)| match op {
        Op::Dequantize(_) if bytes(args[0]) => {
            params(g, args).map(|(scale, zero)| Coded { codes: args[0], scale: Some(scale), zero })
        }
        Op::Map(m) => {
            centred(g, m, args).filter(|(codes, _)| bytes(*codes)).map(|(codes, zero)| Coded { codes, scale: None, zero })
        }
        _ => None,
    })
}

/// What a map takes a number from, in 32-bit integers: how importers subtract a zero point.
fn centred(g: &Graph<'_>, m: &Map, args: &[Id]) -> Option<(Id, i64)> {
    let Ref::Inst(last) = m.body.result else { return None };
    let Inst::Bin(BinOp::Sub, x, zero) = m.body.insts[last as usize] else { return None };
    let zero = match zero {
        Ref::Arg(a) => g.integer(args[a as usize])?,
        Ref::Inst(i) => match &m.body.insts[i as usize] {
            Inst::Const(l) => l.to_i64(),
            _ => return None,
        },
    };
    let codes = match x {
        Ref::Arg(a) => g.first(args[a as usize], |(op, args)| op.casts_to(DType::I32).then(|| args[0]))?,
        Ref::Inst(i) => match m.body.insts[i as usize] {
            Inst::Cast(DType::I32, Ref::Arg(a)) => args[a as usize],
            _ => return None,
        },
    };
    Some((codes, zero))
}

/// Scale and zero point, if both are numbers.
fn params(g: &Graph<'_>, args: &[Id]) -> Option<(Real, i64)> {
    let zero = match args.get(2) {
        None => 0,
        Some(z) => g.integer(*z)?,
    };
    Some((Real(number(g, args[1])?), zero))
}
