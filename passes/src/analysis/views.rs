//! Views of constants.

use transc_ir::Value;
use transc_ir::op::{Op, TypeError};
use transc_ir::tensor::{Builder, ConstId};

/// The constant that a value is a view of.
pub fn base(b: &Builder<'_>, v: Value) -> Option<ConstId> {
    let node = b.func.def_node(v)?;
    match &node.op {
        Op::Constant(c) => Some(c.id),
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => base(b, node.operands[0]),
        _ => None,
    }
}

/// The view that `v` is, of another constant.
///
/// # Errors
/// If the constants differ in more than their element type.
pub fn of_another(b: &mut Builder<'_>, v: Value, id: ConstId) -> Result<Value, TypeError> {
    match b.func.def_node(v).map(|n| (n.op.clone(), n.operands.first().copied())) {
        Some((op, Some(x))) => {
            let x = of_another(b, x, id)?;
            b.add(op, &[x])
        }
        _ => b.constant_id(id),
    }
}
