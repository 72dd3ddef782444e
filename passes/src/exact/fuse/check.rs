//! The contract of a region, checked.

use transc_ir::op::Op;
use transc_ir::tensor::strided::Strided;
use transc_ir::tensor::{Func, NodeId, Value};

use super::class::{Role, has_epilogue, role, unrounded};
use crate::analysis::cost;
use crate::analysis::uses::Uses;

/// Checks a region against the contract that pass `fuse` documents.
///
/// # Errors
/// What it breaks, as the end of a sentence that starts with the region.
pub fn check_region(body: &Func) -> Result<(), String> {
    let anchors: Vec<NodeId> = body.nodes().filter(|(_, n)| role(&n.op) != Role::Pointwise).map(|(id, _)| id).collect();
    if let Some((_, n)) = body.nodes().find(|(_, n)| matches!(n.op, Op::Fused(_))) {
        return Err(format!("holds another region (`{}`)", n.op.mnemonic()));
    }
    match anchors.as_slice() {
        [] => one_result(body),
        [anchor] => anchored(body, *anchor),
        _ => Err(format!("has {} anchors", anchors.len())),
    }
}

fn one_result(body: &Func) -> Result<(), String> {
    match body.results() {
        [(_, v)] if body.def_node(*v).is_some() => Ok(()),
        [_] => Err("gives a parameter back".into()),
        r => Err(format!("has {} results", r.len())),
    }
}

fn anchored(body: &Func, anchor: NodeId) -> Result<(), String> {
    let node = body.node(anchor);
    let strict = role(&node.op) == Role::StrictAnchor;
    for v in node.operands.iter().filter(|_| strict) {
        let v = unrounded(body, &node.op, *v);
        view(body, v).map_err(|e| format!("has an operand of `{}` that {e}", node.op.mnemonic()))?;
    }
    if !has_epilogue(&node.op) {
        let results: Vec<Value> = body.results().iter().map(|r| r.1).collect();
        return if results == *node.results { Ok(()) } else { Err(format!("does not end at its `{}`", node.op.mnemonic())) };
    }
    one_result(body)?;
    epilogue(body, anchor, strict)
}

/// Walks from the anchor to the result.
fn epilogue(body: &Func, anchor: NodeId, strict: bool) -> Result<(), String> {
    let uses = Uses::of(body);
    let mut value = body.node(anchor).results[0];
    while body.results()[0].1 != value {
        let next = uses.single(value).ok_or("uses a value of its epilogue twice")?;
        let node = body.node(next);
        if !matches!(node.op, Op::Map(_)) || body.ty(value).dims != body.ty(node.results[0]).dims {
            return Err(format!("has `{}` in its epilogue", node.op.mnemonic()));
        }
        for v in node.operands.iter().filter(|v| strict && **v != value) {
            view(body, *v).map_err(|e| format!("has an operand of its epilogue that {e}"))?;
        }
        value = node.results[0];
    }
    Ok(())
}

/// A value as a strided view of a parameter or constant.
fn view(body: &Func, v: Value) -> Result<Strided, &'static str> {
    let Some(node) = body.def_node(v) else { return Ok(Strided::contiguous(&body.ty(v).dims)) };
    match &node.op {
        Op::Constant(_) => Ok(Strided::contiguous(&body.ty(v).dims)),
        Op::Map(m) => {
            let x = node.operands.first().filter(|x| cost::lossless_cast(&m.body, body.ty(**x).dtype).is_some());
            view(body, *x.ok_or("is computed, not viewed")?)
        }
        op => {
            let x = node.operands.first().ok_or("is computed, not viewed")?;
            view(body, *x)?.apply(op).ok_or("is not strided")
        }
    }
}
