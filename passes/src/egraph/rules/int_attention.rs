//! Attention of quantised models, whose products have codes on both sides.

use egg::Id;
use transc_ir::op::{Code, Contract, IntAttention, Map, Op, Real};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref};
use transc_ir::types::DType;

use super::attention::{Four, Weights, logits, mask, near, queries_and_keys, weights};
use super::codes::{Coded, coded_by, decoded, decoded_here};
use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::{Atom, read};
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
        operands.push(decoded(g, x).or_near(|| format!("the {what} are not bytes with one scale"))?);
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
