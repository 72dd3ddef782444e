//! `simplify-shapes`: views compose, trivial ones vanish, and shape arithmetic becomes constants and `dims`.

use std::collections::BTreeMap;

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::interp::{SymTensor, Tensor, sym_eval};
use transc_ir::op::{Broadcast, Dims, Map, Op, Reshape, Slice, Transpose, TypeError};
use transc_ir::scalar::{Body, Inst, Literal};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, Node};
use transc_ir::types::{DType, Dim, Ranges, TensorType};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Most elements of a value that becomes `dims`.
const MAX_DIMS: usize = 64;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let mut known: BTreeMap<Value, SymTensor> = BTreeMap::new();
    let f = module.take_main();
    let ranges = &module.symbols;
    let rewritten = rewrite(f, &mut module.consts, |b, _, node, operands| {
        if let Some(v) = trivial(b, &node.op, operands) {
            cx.fired("trivial-view");
            return Ok(Some(vec![v]));
        }
        if let Some((value, dtype)) = symbolic(b, node, operands, &known, ranges)
            && let Some(v) = spell_out(b, node, &value, dtype, cx)?
        {
            known.insert(v, value);
            return Ok(Some(vec![v]));
        }
        match composed(b, &node.op, operands) {
            Some((op, x)) => {
                cx.fired("compose-views");
                let v = match trivial(b, &op, &[x]) {
                    Some(v) => v,
                    None => b.add(op, &[x])?,
                };
                Ok(Some(vec![v]))
            }
            None => Ok(None),
        }
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The value of a node of shape arithmetic, and its type.
fn symbolic(
    b: &Builder<'_>,
    node: &Node,
    operands: &[Value],
    known: &BTreeMap<Value, SymTensor>,
    ranges: &Ranges,
) -> Option<(SymTensor, DType)> {
    let types: Vec<&TensorType> = operands.iter().map(|v| b.ty(*v)).collect();
    let results = node.op.infer(&types, b.consts).ok()?;
    let integer = results.len() == 1 && !results[0].dtype.is_float();
    if !integer || sweep::static_bytes(&results[0]).is_none() {
        return None;
    }
    let values: Vec<Option<SymTensor>> =
        operands.iter().map(|v| known.get(v).cloned().or_else(|| source(b, *v, ranges))).collect();
    let refs: Vec<Option<&SymTensor>> = values.iter().map(Option::as_ref).collect();
    let value = sym_eval(&node.op, &refs, &types, &results, b.consts, ranges)?.into_iter().next()?;
    Some((value, results[0].dtype))
}

/// The value of a node without operands.
fn source(b: &Builder<'_>, v: Value, ranges: &Ranges) -> Option<SymTensor> {
    let node = b.func.def_node(v).filter(|n| n.operands.is_empty())?;
    sym_eval(&node.op, &[], &[], std::slice::from_ref(b.ty(v)), b.consts, ranges)?.into_iter().next()
}

/// A node without operands that has a symbolic value; `None` if the node is one already, or the value is not of a form that has one.
fn spell_out(
    b: &mut Builder<'_>,
    node: &Node,
    value: &SymTensor,
    dtype: DType,
    cx: &mut PassCx,
) -> Result<Option<Value>, TypeError> {
    if node.operands.is_empty() {
        return Ok(None);
    }
    if let Some(numbers) = value.as_ints() {
        let Ok(mut t) = Tensor::zeros(dtype, &value.dims) else { return Ok(None) };
        numbers.iter().enumerate().for_each(|(i, n)| t.set(i, Literal::from_i64(dtype, *n)));
        let Some(data) = t.to_const() else { return Ok(None) };
        cx.fired("constant-shape");
        return b.constant(node.loc.path(), data).map(Some);
    }
    if dtype != DType::I64 || value.values.len() > MAX_DIMS {
        return Ok(None);
    }
    cx.fired("dims");
    if let ([], [d]) = (value.dims.as_slice(), value.values.as_slice()) {
        let mut body = Body::builder(0);
        let r = body.push(Inst::Dim(d.clone()));
        return b.add(Map { body: body.finish(r) }, &[]).map(Some);
    }
    let v = b.add(Dims { values: value.values.clone() }, &[])?;
    b.reshape(v, value.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>()).map(Some)
}

/// The operand, if a view shows the whole of it as it is.
fn trivial(b: &Builder<'_>, op: &Op, operands: &[Value]) -> Option<Value> {
    let x = *operands.first()?;
    let dims = &b.ty(x).dims;
    let same = match op {
        Op::Reshape(r) => r.dims == *dims,
        Op::Broadcast(r) => r.dims == *dims,
        Op::Transpose(t) => t.perm.iter().copied().eq(0..dims.len()),
        Op::Slice(s) => s.sizes == *dims && s.starts.iter().all(|d| d.is(0)) && s.steps.iter().all(|s| *s == 1),
        Op::Pad(p) => p.lo.iter().chain(&p.hi).all(|d| d.is(0)),
        Op::Concat(_) => operands.len() == 1,
        _ => false,
    };
    same.then_some(x)
}

/// One view in place of two, and what it is a view of.
fn composed(b: &Builder<'_>, op: &Op, operands: &[Value]) -> Option<(Op, Value)> {
    let [x] = operands else { return None };
    if let Op::Transpose(t) = op
        && let Some(reshape) = moves_units_only(&t.perm, &b.ty(*x).dims)
    {
        return Some((reshape.into(), *x));
    }
    let inner = b.func.def_node(*x)?;
    let y = *inner.operands.first()?;
    let op: Op = match (op, &inner.op) {
        (Op::Reshape(r), Op::Reshape(_)) => Reshape { dims: r.dims.clone() }.into(),
        (Op::Broadcast(r), Op::Broadcast(_)) => Broadcast { dims: r.dims.clone() }.into(),
        (Op::Transpose(t), Op::Transpose(first)) => Transpose { perm: t.perm.iter().map(|p| first.perm[*p]).collect() }.into(),
        (Op::Slice(s), Op::Slice(first)) => {
            let starts = first.starts.iter().zip(&s.starts).zip(&first.steps).map(|((a, b), step)| a + &(b * &Dim::from(*step)));
            let steps = first.steps.iter().zip(&s.steps).map(|(a, b)| a.checked_mul(*b)).collect::<Option<_>>()?;
            Slice { starts: starts.collect(), sizes: s.sizes.clone(), steps }.into()
        }
        _ => return None,
    };
    Some((op, y))
}

/// A transposition that leaves the order of all axes but those of extent 1 is a reshape.
fn moves_units_only(perm: &[usize], dims: &[Dim]) -> Option<Reshape> {
    let longer: Vec<usize> = perm.iter().copied().filter(|p| !dims[*p].is(1)).collect();
    longer.is_sorted().then(|| Reshape { dims: perm.iter().map(|p| dims[*p].clone()).collect() })
}
