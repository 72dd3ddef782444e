//! Multiply-accumulates of a function.

use super::Func;
use crate::op::Op;
use crate::types::Dim;

/// Multiply-accumulates of one evaluation, symbolic: those of contractions, convolutions and attentions, nested functions included.
pub fn macs_of(f: &Func) -> Dim {
    let mut sum = Dim::from(0);
    for (_, n) in f.nodes() {
        let dims = |i: usize| &f.ty(n.operands[i]).dims;
        let each = |k: Dim| &k * &f.ty(n.results[0]).count();
        let own = match &n.op {
            Op::Contract(c) => {
                let contracted = c.lhs.iter().enumerate().filter(|(_, l)| !c.out.contains(l));
                each(contracted.map(|(i, _)| &dims(0)[i]).product())
            }
            Op::Conv(_) => each(dims(1)[1..].iter().product()),
            Op::Attention(_) | Op::IntAttention(_) => {
                let logits = &(&(&dims(0)[0] * &dims(0)[1]) * &dims(0)[2]) * &dims(1)[2];
                &logits * &(&dims(0)[3] + &dims(2)[3])
            }
            Op::Fused(inner) => macs_of(&inner.body),
            _ => continue,
        };
        sum = &sum + &own;
    }
    sum
}
