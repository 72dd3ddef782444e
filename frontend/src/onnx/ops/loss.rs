//! Cross-entropy of classes, which models that score their own input compute.

use transc_ir::op::{self, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("NegativeLogLikelihoodLoss", 12..=LAST, |cx| {
        let x = cx.x(0)?;
        Ok(vec![negative_log_likelihood(cx, x)?])
    }),
    row("SoftmaxCrossEntropyLoss", 12..=LAST, |cx| {
        let x = cx.x(0)?;
        if cx.rank(x) < 2 {
            return invalid(format!("needs scores per class, got {}", cx.ty(x)));
        }
        let log = cx.add(op::Softmax { axis: 1, log: true }, &[x])?;
        Ok(vec![negative_log_likelihood(cx, log)?, log])
    }),
];

/// `-w[t] * x[n, t, ..]` for targets `t` (operand 1) and class weights `w` (operand 2); targets of `ignore_index` weigh nothing.
fn negative_log_likelihood(cx: &mut OpCx<'_, '_>, x: Value) -> Result<Value> {
    let target = cx.x(1)?;
    if cx.rank(x) < 2 || cx.rank(target) + 1 != cx.rank(x) {
        return invalid(format!("needs scores per class and one class each, got {} and {}", cx.ty(x), cx.ty(target)));
    }
    let d = cx.dtype(x);
    let mut target = cx.cast(DType::I64, target)?;
    let mut weight = None;
    if let Some(ignored) = cx.attr("ignore_index").map(|a| a.i()) {
        let is = |cx: &mut OpCx<'_, '_>, t: Value, o: BinOp| {
            cx.map1(t, |b, d, t| {
                let i = b.lit(transc_ir::scalar::Literal::from_i64(d, ignored));
                b.bin(o, t, i)
            })
        };
        let counted = is(cx, target, BinOp::Ne)?;
        let zero = cx.num(DType::I64, 0.0)?;
        target = cx.select(counted, target, zero)?;
        weight = Some(cx.cast(d, counted)?);
    }
    if let Some(w) = cx.opt(2) {
        let w = cx.gather(w, target, 0)?;
        weight = Some(match weight {
            Some(counted) => cx.bin(BinOp::Mul, counted, w)?,
            None => w,
        });
    }
    let mut dims = cx.dims(target);
    let all = dims.clone();
    dims.insert(1, Dim::from(1));
    let index = cx.reshape(target, dims)?;
    let picked = cx.add(op::GatherElements { axis: 1 }, &[x, index])?;
    let picked = cx.reshape(picked, all.clone())?;
    let mut loss = cx.un(UnOp::Neg, picked)?;
    if let Some(w) = weight {
        loss = cx.bin(BinOp::Mul, loss, w)?;
    }
    let axes: Vec<usize> = (0..all.len()).collect();
    match (cx.text("reduction", "mean")?.as_str(), weight) {
        ("none", _) => Ok(loss),
        ("sum", _) => cx.reduce(ReduceKind::Sum, loss, &axes, false),
        ("mean", None) => cx.mean(loss, &axes, false),
        ("mean", Some(w)) => {
            let (sum, total) = (cx.reduce(ReduceKind::Sum, loss, &axes, false)?, cx.reduce(ReduceKind::Sum, w, &axes, false)?);
            cx.bin(BinOp::Div, sum, total)
        }
        (other, _) => invalid(format!("has the unknown reduction `{other}`")),
    }
}
