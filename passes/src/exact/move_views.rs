//! `move-views`: a reshape or transposition moves from before a map to behind it, so that the map can join the kernel that
//! computes its operand, and views meet and cancel.

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::op::{Map, Op, Reshape, Transpose, TypeError};
use transc_ir::tensor::rewrite::rewrite;
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
    let f = module.main.clone();
    let uses = Uses::of(&f);
    let rewritten = rewrite(&f, &mut module.consts, |b, _, node, operands| {
        let Op::Map(m) = &node.op else { return Ok(None) };
        for (i, old) in node.operands.iter().enumerate() {
            if !reads_only_here(&f, &uses, *old) {
                continue;
            }
            if let Some(v) = sink(b, m, operands, i)? {
                cx.fired("sink-view");
                return Ok(Some(vec![v]));
            }
        }
        Ok(None)
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// True for a view with one user: moving it leaves no copy behind.
fn reads_only_here(f: &Func, uses: &Uses, v: Value) -> bool {
    uses.single(v).is_some() && f.def_node(v).is_some_and(|n| matches!(n.op, Op::Reshape(_) | Op::Transpose(_)))
}

/// The map of what operand `view` shows, seen through that view; `None` if another operand stands in the way.
fn sink(b: &mut Builder<'_>, m: &Map, operands: &[Value], view: usize) -> Result<Option<Value>, TypeError> {
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
            Op::Reshape(_) => through_reshape(b, *o, &dims, &from, &to)?,
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
fn through_reshape(b: &mut Builder<'_>, o: Value, dims: &[Dim], from: &[Dim], to: &[Dim]) -> Result<Option<Value>, TypeError> {
    if dims == to {
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
