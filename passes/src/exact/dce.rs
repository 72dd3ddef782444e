//! `dce`: removes nodes and constants that no output depends on.

use std::collections::BTreeMap;
use std::sync::Arc;

use transc_ir::Module;
use transc_ir::op::{Constant, Op};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{ConstId, ConstPool};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let before = module.main.node_count();
    module.main = compact(module.take_main());
    for _ in module.main.node_count()..before {
        cx.fired("dead-node");
    }
    let old = Arc::clone(&module.consts);
    let mut pool = ConstPool::default();
    let mut ids: BTreeMap<ConstId, ConstId> = BTreeMap::new();
    for (_, node) in module.main.nodes() {
        if let Op::Constant(c) = &node.op
            && let Some(data) = old.get(c.id)
        {
            ids.entry(c.id).or_insert_with(|| pool.add(old.name(c.id), data.clone()));
        }
    }
    if pool.len() == old.len() {
        return Ok(());
    }
    for _ in pool.len()..old.len() {
        cx.fired("dead-constant");
    }
    module.consts = Arc::new(pool);
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, _| match &node.op {
        Op::Constant(c) => Ok(Some(vec![b.add(Constant { id: ids[&c.id] }, &[])?])),
        _ => Ok(None),
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}
