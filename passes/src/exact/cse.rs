//! `cse`: nodes that compute the same become one.

use std::collections::HashMap;

use transc_ir::op::{Constant, Op};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{ConstId, Value};
use transc_ir::{DType, Module};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass. Constants are equal if type and content are; other nodes, if op and operands are.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let mut contents: HashMap<(DType, [u8; 32]), ConstId> = HashMap::new();
    let mut seen: HashMap<(Op, Vec<Value>), Vec<Value>> = HashMap::new();
    let rewritten = rewrite(&module.main.clone(), &mut module.consts, |b, _, node, operands| {
        let mut op = node.op.clone();
        if let Op::Constant(c) = &op
            && let Some(data) = b.consts.get(c.id)
        {
            let id = *contents.entry((data.ty().dtype, data.hash())).or_insert(c.id);
            op = Constant { id }.into();
        }
        let key = (op, operands.to_vec());
        if let Some(results) = seen.get(&key) {
            cx.fired(if matches!(key.0, Op::Constant(_)) { "equal-constant" } else { "equal-node" });
            return Ok(Some(results.clone()));
        }
        let results = b.add_multi(key.0.clone(), operands)?;
        seen.insert(key, results.clone());
        Ok(Some(results))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}
