//! `fold-constants`: a node whose operands are known and small is evaluated by the reference interpreter.

use transc_ir::Module;
use transc_ir::interp::{EvalCx, Tensor};
use transc_ir::op::Op;
use transc_ir::scalar::Inst;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, Node};
use transc_ir::{TensorType, Value};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::fuse::is_anchor;

/// Largest operand and result, in bytes. Views of larger constants cost nothing, and what else is computed from them alone
/// becomes a constant in pass `fuse`.
const MAX_BYTES: usize = 64 << 10;
/// Largest operand of an op with loops of its own, in bytes.
const MAX_ANCHOR_BYTES: usize = 4 << 10;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let Some(values) = fold(b, node, operands) else { return Ok(None) };
        cx.fired(node.op.mnemonic());
        let name = node.loc.path().to_string();
        let results = values.iter().map(|t| match t.to_const() {
            Some(data) => b.constant(&name, data).map(Some),
            None => Ok(None),
        });
        // All results are constants or none is replaced.
        results.collect::<Result<Option<Vec<Value>>, _>>()
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The results of a node, if they depend on nothing and are small.
fn fold(b: &Builder<'_>, node: &Node, operands: &[Value]) -> Option<Vec<Tensor>> {
    // Literals stay: they stand inside bodies.
    let literal = matches!(&node.op, Op::Map(m) if m.body.n_args == 0);
    if literal || matches!(node.op, Op::Constant(_)) || !operands.iter().all(|v| is_known(b, *v)) {
        return None;
    }
    let limit = if is_anchor(&node.op) { MAX_ANCHOR_BYTES } else { MAX_BYTES };
    let types: Vec<&TensorType> = operands.iter().map(|v| b.ty(*v)).collect();
    let results = node.op.infer(&types, b.consts).ok()?;
    let small = |t: &TensorType, max: usize| sweep::static_bytes(t).is_some_and(|n| n <= max);
    if !types.iter().all(|t| small(t, limit)) || !results.iter().all(|t| small(t, MAX_BYTES)) {
        return None;
    }
    let cx = EvalCx { consts: b.consts, symbols: &|_| None };
    let inputs =
        operands.iter().map(|v| b.func.def_node(*v)?.op.eval(&[], &cx).ok()?.into_iter().next()).collect::<Option<Vec<_>>>()?;
    node.op.eval(&inputs.iter().collect::<Vec<_>>(), &cx).ok()
}

/// True if a value is a constant, a literal or dims; whether the dims are numbers shows when they are evaluated.
fn is_known(b: &Builder<'_>, v: Value) -> bool {
    b.func.def_node(v).is_some_and(|n| match &n.op {
        Op::Constant(_) | Op::Dims(_) => true,
        Op::Map(m) => m.body.n_args == 0 && !m.body.insts.iter().any(|i| matches!(i, Inst::Dim(_))),
        _ => false,
    })
}
