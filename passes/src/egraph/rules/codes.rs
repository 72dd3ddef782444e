//! Codes: bytes that stand for reals, and what is decoded from them.

use egg::Id;
use transc_ir::op::{Code, Map, Op, Real};
use transc_ir::scalar::{BinOp, Inst, Ref};
use transc_ir::types::DType;

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::number;
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[Rule {
    name: "recode",
    class: Class::Exact,
    bound: 0.0,
    why: "a code times a scale and divided by it is off by less than a half, and rounds to the code",
    at: &["quantize"],
    apply: recode,
}];

/// Scales whose products with codes neither overflow nor lose digits as denormals.
const SCALES: std::ops::RangeInclusive<f64> = 1e-30..=1e30;

/// Views between a value and its codes.
const MAX_VIEWS: usize = 4;

/// A value as the codes that it is decoded from.
#[derive(Clone, Copy)]
pub(super) struct Coded {
    pub(super) codes: Id,
    /// `None` where it is an integer: what follows scales the result.
    pub(super) scale: Option<Real>,
    pub(super) zero: i64,
}

fn recode(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    let Op::Quantize(q) = site.op else { return Err(Miss::Other) };
    let x = site.args[0];
    let (scale, zero) = params(g, site.args).or_other()?;
    if g.ty(x).dtype != DType::F32 || !SCALES.contains(&scale.0) {
        return Err(Miss::Other);
    }
    let from = decoded(g, x).or_other()?;
    let same = from.scale == Some(scale) && from.zero == zero && g.ty(from.codes).dtype == q.to;
    if same { Ok(from.codes) } else { Err(Miss::Other) }
}

/// What a class of bytes is the codes of.
pub(super) fn coded_by(g: &Graph<'_>, codes: Id) -> Option<(Id, Code)> {
    g.first(codes, |(op, args)| match op {
        Op::Quantize(_) => params(g, args).map(|(scale, zero)| (args[0], Code { to: g.ty(codes).dtype, scale, zero })),
        _ => None,
    })
}

/// The bytes that a class is decoded from, through views.
pub(super) fn decoded(g: &mut Graph<'_>, x: Id) -> Option<Coded> {
    behind_views(g, x, MAX_VIEWS)
}

fn behind_views(g: &mut Graph<'_>, x: Id, views: usize) -> Option<Coded> {
    if let Some(found) = decoded_here(g, x) {
        return Some(found);
    }
    let seen: Vec<(Op, Id)> = g
        .ops(x)
        .filter(|(op, _)| matches!(op, Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast(_)))
        .map(|(op, args)| (op.clone(), args[0]))
        .collect();
    seen.into_iter().filter(|_| views > 0).find_map(|(op, inner)| {
        let inner = behind_views(g, inner, views - 1)?;
        let codes = match op {
            Op::Transpose(t) => g.transpose(inner.codes, &t.perm),
            Op::Reshape(r) => g.reshape(inner.codes, r.dims),
            Op::Broadcast(b) => g.broadcast(inner.codes, b.dims),
            _ => None,
        };
        Some(Coded { codes: codes?, ..inner })
    })
}

pub(super) fn decoded_here(g: &Graph<'_>, id: Id) -> Option<Coded> {
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
