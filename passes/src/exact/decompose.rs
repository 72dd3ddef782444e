//! `decompose`: named ops for which the back end has no kernel become simpler ops.

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::op::Op;
use transc_ir::tensor::Builder;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::types::DType;

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass on the ops that [`PassCx::decompose`] names, and on those whose kernel takes `f32` only and that have another type.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        if !cx.decompose.contains(&node.op.mnemonic()) && !lacks_kernel(&node.op, b, operands) {
            return Ok(None);
        }
        match node.op.decompose(b, operands) {
            Some(results) => {
                cx.fired(node.op.mnemonic());
                results.map(Some)
            }
            None => {
                cx.remark(&node.loc, format!("`{}` has no decomposition for these types", node.op.mnemonic()));
                Ok(None)
            }
        }
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// True for a type that no kernel of the op takes.
fn lacks_kernel(op: &Op, b: &Builder<'_>, operands: &[Value]) -> bool {
    let floats = match op {
        Op::Attention(_) => 3,
        Op::TokenPlan(p) if p.remove == 0 => return true,
        Op::TokenPlan(_) | Op::TokenApply(_) => 1,
        _ => 0,
    };
    operands.iter().take(floats).any(|v| b.ty(*v).dtype != DType::F32)
}
