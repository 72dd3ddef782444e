//! `move-views`: a reshape or transposition moves from before a map to behind it, so that the map can join the kernel that
//! computes its operand, and views meet and cancel.

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::op::{Map, Op, Reshape, Transpose, TypeError};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, Func};
use transc_ir::types::Dim;

use super::sweep;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    // Only the first round may put a view before another operand. In the later ones views vanish or move down, which comes to an end.
    let mut more = round(module, cx, true)?;
    while more {
        more = round(module, cx, false)?;
    }
    Ok(())
}

/// Moves each view past one map, if `insert` also where another operand then needs a view; true if any moved.
fn round(module: &mut Module, cx: &mut PassCx, insert: bool) -> Result<bool, PassError> {
    let f = module.take_main();
    let movable = movable(&f);
    let mut any = false;
    let rewritten = rewrite(f, &mut module.consts, |b, _, node, operands| {
        let Op::Map(m) = &node.op else { return Ok(None) };
        for (i, old) in node.operands.iter().enumerate() {
            if !movable[old.index()] {
                continue;
            }
            if let Some(v) = sink(b, m, operands, i, insert)? {
                cx.fired("sink-view");
                any = true;
                return Ok(Some(vec![v]));
            }
        }
        Ok(None)
    });
    module.main = compact(sweep::typed(cx, rewritten)?);
    Ok(any)
}

/// By value: true for a view that can move: a transposition only if this leaves no copy of it behind, a reshape also if all its users are maps, which
/// then join the computation of its operand together.
fn movable(f: &Func) -> Vec<bool> {
    let uses = Uses::of(f);
    let all_maps = |v: Value| !uses.is_result(v) && uses.nodes(v).iter().all(|u| matches!(f.node(*u).op, Op::Map(_)));
    let mut movable = vec![false; f.value_count()];
    for (_, n) in f.nodes() {
        let v = n.results[0];
        movable[v.index()] = match &n.op {
            Op::Transpose(_) => uses.single(v).is_some(),
            Op::Reshape(_) => uses.single(v).is_some() || all_maps(v),
            _ => false,
        };
    }
    movable
}

/// The map of what operand `view` shows, seen through that view; `None` if another operand stands in the way.
fn sink(b: &mut Builder<'_>, m: &Map, operands: &[Value], view: usize, insert: bool) -> Result<Option<Value>, TypeError> {
    let v = operands[view];
    // The operand was rewritten too and may be something else by now.
    let Some((op, x)) = b.func.def_node(v).and_then(|n| Some((n.op.clone(), *n.operands.first()?))) else { return Ok(None) };
    let (from, to) = (b.ty(x).dims.clone(), b.ty(v).dims.clone());
    let mut inner = Vec::with_capacity(operands.len());
    for (i, o) in operands.iter().enumerate() {
        let dims = b.ty(*o).dims.clone();
        let new = match &op {
            _ if i == view => Some(x),
            _ if dims.is_empty() => Some(*o),
            Op::Reshape(_) => through_reshape(b, *o, (&dims, &from, &to), insert)?,
            Op::Transpose(t) => through_transpose(b, *o, &dims, &t.perm)?,
            _ => None,
        };
        let Some(new) = new else { return Ok(None) };
        inner.push(new);
    }
    let y = b.add(m.clone(), &inner)?;
    b.add(op, &[y]).map(Some)
}

/// Operand `o` of a map as it stands before the reshape of `from` to `to`.
fn through_reshape(
    b: &mut Builder<'_>,
    o: Value,
    (dims, from, to): (&[Dim], &[Dim], &[Dim]),
    insert: bool,
) -> Result<Option<Value>, TypeError> {
    if dims == to {
        let same = b.func.def_node(o).filter(|n| matches!(n.op, Op::Reshape(_))).map(|n| n.operands[0]);
        if let Some(x) = same.filter(|x| b.ty(*x).dims == from) {
            return Ok(Some(x));
        }
        if !insert {
            return Ok(None);
        }
        return b.add(Reshape { dims: from.to_vec() }, &[o]).map(Some);
    }
    // An operand that varies along trailing axes only, which the reshape leaves as they are.
    let units = dims.iter().take_while(|d| d.is(1)).count();
    let tail = &dims[units..];
    if !from.ends_with(tail) || !to.ends_with(tail) || dims.len() > to.len() {
        return Ok(None);
    }
    b.reshape(o, tail.to_vec()).map(Some)
}

/// Operand `o` of a map as it stands before a transposition.
fn through_transpose(b: &mut Builder<'_>, o: Value, dims: &[Dim], perm: &[usize]) -> Result<Option<Value>, TypeError> {
    if dims.len() <= perm.len() && dims.iter().all(|d| d.is(1)) {
        return b.reshape(o, Vec::<Dim>::new()).map(Some);
    }
    let same = match b.func.def_node(o) {
        Some(n) => match &n.op {
            Op::Transpose(Transpose { perm: p }) if p == perm => n.operands.first().copied(),
            _ => None,
        },
        None => None,
    };
    Ok(same)
}
