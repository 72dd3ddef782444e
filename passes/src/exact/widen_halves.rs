//! `widen-halves`: products and convolutions of 16-bit floats are computed in `f32`, for which there are kernels, and rounded afterwards.
//!
//! Products of 16-bit floats are exact in `f32`, and the sums are taken in it or wider in either form. Constants are widened here; where a `bf16` weight
//! meets an activation, both stay, since there is a kernel that takes them as they are, and so do the operands of attention.

use std::collections::BTreeMap;

use transc_ir::interp::Tensor;
use transc_ir::op::{Op, TypeError};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, ConstId};
use transc_ir::types::DType;
use transc_ir::{Module, Value};

use super::sweep;
use crate::analysis::views;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let mut known = Known::default();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let half = |v: &Value| matches!(b.ty(*v).dtype, DType::F16 | DType::Bf16);
        if !matches!(node.op, Op::Contract(_) | Op::Conv(_)) || !operands.iter().take(2).all(half) {
            return Ok(None);
        }
        let (dtype, mut op) = (b.ty(operands[0]).dtype, node.op.clone());
        let mut stays = false;
        let mut result = dtype;
        if let Op::Contract(c) = &mut op {
            stays = dtype == DType::Bf16 && operands.iter().any(|v| views::base(b, *v).is_some());
            result = std::mem::replace(&mut c.out_dtype, DType::F32);
            if stays && result == DType::F32 {
                return Ok(None);
            }
        }
        cx.fired(node.op.mnemonic());
        let wide: Vec<Value> =
            if stays { operands.to_vec() } else { operands.iter().map(|v| known.wide(b, *v)).collect::<Result<_, _>>()? };
        let y = b.add(op, &wide)?;
        Ok(Some(vec![b.cast(result, y)?]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The constants that were widened already; equal casts become one behind this pass.
#[derive(Default)]
struct Known {
    constants: BTreeMap<ConstId, ConstId>,
}

impl Known {
    fn wide(&mut self, b: &mut Builder<'_>, v: Value) -> Result<Value, TypeError> {
        match views::base(b, v).and_then(|id| self.constant(b, id)) {
            Some(id) => views::of_another(b, v, id),
            None => b.cast(DType::F32, v),
        }
    }

    /// The constant in `f32`.
    fn constant(&mut self, b: &mut Builder<'_>, id: ConstId) -> Option<ConstId> {
        if let Some(wide) = self.constants.get(&id) {
            return Some(*wide);
        }
        let t = Tensor::from_const(b.consts.get(id)?);
        let values: Vec<f32> = t.to_f64().into_iter().map(|v| v as f32).collect();
        let (name, data) = (b.consts.name(id).to_string(), Tensor::from_f32(&t.dims, &values).to_const()?);
        let wide = std::sync::Arc::make_mut(b.consts).add(&name, data);
        self.constants.insert(id, wide);
        Some(wide)
    }
}
