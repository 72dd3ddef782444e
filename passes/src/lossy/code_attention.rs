//! `code-attention`: attention multiplies 8-bit codes, where asked for.
//!
//! `decode(encode(x))` stands at queries, keys and values, in ranges that were observed, and at the weights of the softmax, relative to the largest of
//! their row (Jacob et al. 2018, section 2.3, with a scale for each row); the op that they make together is written at once. The pass comes when
//! attention has been found.

use transc_ir::op::{Attention, Code, IntAttention, Op, Real, TypeError};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, Func, NodeId};
use transc_ir::types::DType;
use transc_ir::{Module, Value};

use super::LedgerEntry;
use super::weights::{Codes, MAX_BYTE, Observed, Range, WeightError, WeightSpec, unsigned};
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// The attentions of a function that can take codes, each with its queries, keys and values, in order; none where it is not asked for.
pub fn attentions(f: &Func, spec: &WeightSpec) -> Vec<(NodeId, [Value; 3])> {
    if !matches!(spec.codes, Some(Codes::Static { attention: true, .. })) {
        return Vec::new();
    }
    let fits = |(id, n): (NodeId, &transc_ir::tensor::Node)| match (&n.op, n.operands.as_slice()) {
        (Op::Attention(a), &[q, k, v, ..]) if a.softcap.0 == 0.0 && f.ty(q).dtype == DType::F32 => Some((id, [q, k, v])),
        _ => None,
    };
    f.nodes().filter_map(fits).collect()
}

/// The ranges of queries, keys and values of each attention, given these in order.
pub fn attention_ranges(spec: &WeightSpec, seen: &[Observed<'_>]) -> Vec<[Range; 3]> {
    let Some(Codes::Static { observer, .. }) = spec.codes else { return Vec::new() };
    seen.chunks_exact(3).map(|x| [0, 1, 2].map(|i| observer.range(x[i].values))).collect()
}

/// Runs the pass.
///
/// # Errors
/// Attention without observed ranges, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let spec = cx.weights.clone();
    let mut sites = sites(module, &spec)?.into_iter().enumerate().peekable();
    // Of all that is measured, attention comes last.
    let before = spec.errors.len().saturating_sub(sites.len());
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, id, node, operands| {
        let (Some((i, (_, ranges))), Op::Attention(a)) = (sites.next_if(|(_, s)| s.0 == id), &node.op) else { return Ok(None) };
        let error = spec.errors.get(before + i).map_or_else(String::new, |(_, e)| format!(", error of the layer {e:.2e}"));
        if spec.keep.contains(&(before + i)) {
            cx.remark(&node.loc, format!("stays in f32{error}"));
            return Ok(None);
        }
        let y = coded(b, a, operands, ranges)?;
        cx.fired("int8");
        let [q, k, v] = ranges;
        let parameters = format!("attention, queries {q}, keys {k}, values {v}{error}");
        cx.ledger.push(LedgerEntry { site: node.loc.path().into(), codec: "int8", parameters });
        Ok(Some(vec![y]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// Puts the form on codes of each attention beside it, as [`super::weights::probe`] does with layers.
///
/// # Errors
/// As the pass.
pub fn probe_attention(module: &mut Module, spec: &WeightSpec) -> Result<Vec<String>, PassError> {
    let sites = sites(module, spec)?;
    let names = sites.iter().map(|s| module.main.node(s.0).loc.path().to_string()).collect();
    let mut next = sites.into_iter().enumerate().peekable();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, id, node, operands| {
        let (Some((i, (_, ranges))), Op::Attention(a)) = (next.next_if(|(_, s)| s.0 == id), &node.op) else { return Ok(None) };
        let exact = b.add(a.clone(), operands)?;
        let lossy = coded(b, a, operands, ranges)?;
        b.func.add_result(&format!("exact attention {i}"), exact);
        b.func.add_result(&format!("lossy attention {i}"), lossy);
        Ok(Some(vec![exact]))
    });
    module.main = rewritten.map_err(|source| PassError::Type { pass: "code-attention", source })?;
    Ok(names)
}

/// Each attention with its ranges.
fn sites(module: &Module, spec: &WeightSpec) -> Result<Vec<(NodeId, [Range; 3])>, WeightError> {
    let sites = attentions(&module.main, spec);
    if sites.len() != spec.attention.len() {
        return Err(WeightError::NoCalibration("a static range"));
    }
    Ok(sites.into_iter().map(|s| s.0).zip(spec.attention.iter().copied()).collect())
}

/// The attention on codes in these ranges.
fn coded(b: &mut Builder<'_>, a: &Attention, operands: &[Value], ranges: [Range; 3]) -> Result<Value, TypeError> {
    let codes = ranges.map(|r| r.code(MAX_BYTE));
    let mut operands = operands.to_vec();
    for (x, range) in operands.iter_mut().zip(ranges) {
        *x = unsigned(b, *x, range)?.0;
    }
    let [(q, _), (k, _), (v, _)] = codes;
    let op = IntAttention {
        zeros: codes.map(|(_, zero)| zero as i64).to_vec(),
        unit: Real(f64::from(q * k)),
        logits: None,
        scale: Real(f64::from(a.scale.0 as f32)),
        causal: a.causal.clone(),
        clear: a.clear,
        weights: Code { to: DType::U8, scale: Real(f64::from(MAX_BYTE.recip())), zero: 0 },
        relative: true,
    };
    let y = b.add(op, &operands)?;
    let v = b.scalar(Literal::f32(v))?;
    b.bin(BinOp::Mul, y, v)
}
