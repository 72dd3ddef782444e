//! `cse`: nodes that compute the same become one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use smallvec::SmallVec;
use transc_ir::op::{Constant, Op};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{ConstData, ConstId, ConstPool, Node, NodeId};
use transc_ir::{Module, TensorType};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass. Constants are equal if type and content are; other nodes, if op and operands are.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let mut contents = Contents::default();
    // By hash of op and operands.
    let mut seen: HashMap<u64, SmallVec<[NodeId; 1]>> = HashMap::new();
    let hasher = RandomState::new();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let mut op = node.op.clone();
        if let Op::Constant(c) = &op
            && let Some(data) = b.consts.get(c.id)
        {
            let id = contents.first_equal(c.id, data, b.consts);
            op = Constant { id }.into();
        }
        let alike = seen.entry(hasher.hash_one((&op, operands))).or_default();
        let equal = |n: &Node| n.op == op && *n.operands == *operands;
        if let Some(first) = alike.iter().map(|id| b.func.node(*id)).find(|n| equal(n)) {
            cx.fired(if matches!(op, Op::Constant(_)) { "equal-constant" } else { "equal-node" });
            return Ok(Some(first.results.to_vec()));
        }
        alike.push(NodeId(b.func.node_count() as u32));
        if op == node.op { Ok(None) } else { b.add_multi(op, operands).map(Some) }
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// Length of the ends that tell most constants apart without reading all of them.
const END_BYTES: usize = 256;

/// The constants seen so far, by type and the bytes at both ends.
#[derive(Default)]
struct Contents(HashMap<(TensorType, Vec<u8>), Vec<ConstId>>);

impl Contents {
    /// The first constant seen that is equal to this one.
    fn first_equal(&mut self, id: ConstId, data: &ConstData, pool: &ConstPool) -> ConstId {
        let bytes = data.bytes();
        let n = bytes.len().min(END_BYTES);
        let ends = [&bytes[..n], &bytes[bytes.len() - n..]].concat();
        let alike = self.0.entry((data.ty().clone(), ends)).or_default();
        if let Some(first) = alike.iter().find(|c| **c == id || pool.get(**c) == Some(data)) {
            return *first;
        }
        alike.push(id);
        id
    }
}
