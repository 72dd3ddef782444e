//! `round-early`: a value of which only its rounding to `bf16` is read is rounded where it is made. It is stored in half the bytes then, and rounded once.

use transc_ir::Module;
use transc_ir::op::Op;
use transc_ir::tensor::Func;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::types::DType;

use super::sweep;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let f = module.take_main();
    let rounded = rounded(&f);
    let rewritten = rewrite(f, &mut module.consts, |b, _, node, operands| {
        let narrow = operands.first().copied().filter(|x| b.ty(*x).dtype == DType::Bf16);
        // What rounded a value that is rounded by now.
        if node.op.casts_to(DType::Bf16)
            && let Some(x) = narrow
        {
            return Ok(Some(vec![x]));
        }
        if !rounded[node.results[0].index()] || is_view(&node.op) {
            return Ok(None);
        }
        cx.fired("round-early");
        if node.op.casts_to(DType::F32)
            && let Some(x) = narrow
        {
            return Ok(Some(vec![x]));
        }
        let y = b.add(node.op.clone(), operands)?;
        Ok(Some(vec![b.cast(DType::Bf16, y)?]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// By value: true for an `f32` of which all that is read, through views, is its rounding to `bf16`.
fn rounded(f: &Func) -> Vec<bool> {
    let uses = Uses::of(f);
    let mut rounded = vec![false; f.value_count()];
    for (_, node) in f.nodes().rev() {
        let [v] = node.results[..] else { continue };
        let reads = uses.nodes(v);
        rounded[v.index()] = f.ty(v).dtype == DType::F32
            && !uses.is_result(v)
            && !reads.is_empty()
            && !matches!(node.op, Op::Constant(_))
            && reads
                .iter()
                .map(|u| f.node(*u))
                .all(|u| u.op.casts_to(DType::Bf16) || is_view(&u.op) && rounded[u.results[0].index()]);
    }
    rounded
}

fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Broadcast(_))
}
