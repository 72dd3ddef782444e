//! Operators on codes that ONNX Runtime's quantiser writes (domain `com.microsoft`): each decodes its operands, computes on the reals that they
//! stand for, and encodes the result.

use transc_ir::Value;
use transc_ir::scalar::{BinOp, UnOp};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::{OpRow, contrib, linalg, pool, quant};
use crate::activations::leaky;

pub(super) static ROWS: &[OpRow] = &[
    contrib("QGemm", q_gemm),
    contrib("QLinearAdd", |cx| binary(cx, BinOp::Add)),
    contrib("QLinearAveragePool", |cx| {
        let x = decoded_channels_first(cx)?;
        let y = pool::average(cx, x)?;
        encoded(cx, y, 3)
    }),
    contrib("QLinearConcat", concat),
    contrib("QLinearGlobalAveragePool", |cx| {
        let x = decoded_channels_first(cx)?;
        let axes: Vec<usize> = (2..cx.rank(x)).collect();
        let y = cx.mean(x, &axes, true)?;
        encoded(cx, y, 3)
    }),
    contrib("QLinearLeakyRelu", |cx| {
        let (x, alpha) = (decoded(cx, 0)?, cx.real("alpha", 0.01));
        let y = cx.map1(x, |b, d, x| leaky(b, d, x, alpha))?;
        encoded(cx, y, 3)
    }),
    contrib("QLinearMul", |cx| binary(cx, BinOp::Mul)),
    contrib("QLinearReduceMean", |cx| {
        let x = decoded(cx, 0)?;
        let rank = cx.rank(x);
        let axes = cx.int_list("axes").unwrap_or_else(|| (0..rank as i64).collect());
        let axes = cx.axes(&axes, rank)?;
        let y = cx.mean(x, &axes, cx.int("keepdims", 1) != 0)?;
        encoded(cx, y, 3)
    }),
    contrib("QLinearSigmoid", |cx| {
        let x = decoded(cx, 0)?;
        let y = cx.un(UnOp::Sigmoid, x)?;
        encoded(cx, y, 3)
    }),
    contrib("QLinearSoftmax", softmax),
    contrib("QLinearWhere", |cx| {
        let (x, y) = (decoded(cx, 1)?, decoded(cx, 4)?);
        let condition = cx.x(0)?;
        let y = cx.select(condition, x, y)?;
        encoded(cx, y, 7)
    }),
];

/// The reals of operands `i` (codes), `i + 1` (scale) and `i + 2` (zero point).
fn decoded(cx: &mut OpCx<'_, '_>, i: usize) -> Result<Value> {
    let x = cx.x(i)?;
    let (scale, zero) = scale_and_zero(cx, i + 1)?;
    quant::decoded(cx, x, scale, zero)
}

/// Operands `i` (scale) and `i + 1` (zero point) as scalars.
fn scale_and_zero(cx: &mut OpCx<'_, '_>, i: usize) -> Result<(Value, Option<Value>)> {
    let scale = cx.x(i)?;
    quant::check_scale(cx, scale)?;
    let scale = cx.reshape(scale, Vec::new())?;
    let zero = cx.opt(i + 1).map(|z| cx.reshape(z, Vec::new())).transpose()?;
    Ok((scale, zero))
}

fn decoded_channels_first(cx: &mut OpCx<'_, '_>) -> Result<Value> {
    if cx.flag("channels_last") {
        return unsupported("has its channels last");
    }
    decoded(cx, 0)
}

/// The codes of `y` by operands `i` (scale) and `i + 1` (zero point).
fn encoded(cx: &mut OpCx<'_, '_>, y: Value, i: usize) -> Result<Vec<Value>> {
    let (scale, zero) = scale_and_zero(cx, i)?;
    Ok(vec![quant::quantize_to(cx, y, scale, zero)?])
}

/// Operands `a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero`.
fn binary(cx: &mut OpCx<'_, '_>, o: BinOp) -> Result<Vec<Value>> {
    let (a, b) = (decoded(cx, 0)?, decoded(cx, 3)?);
    let y = cx.bin(o, a, b)?;
    encoded(cx, y, 6)
}

/// Operands `y_scale, y_zero`, then `x, x_scale, x_zero` of each part.
fn concat(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    if cx.operands.len() < 5 || cx.operands.len() % 3 != 2 {
        return invalid(format!("has {} operands; needs a scale, a zero point, and three for each part", cx.operands.len()));
    }
    let parts = (2..cx.operands.len()).step_by(3).map(|i| decoded(cx, i)).collect::<Result<Vec<_>>>()?;
    let axis = cx.axis(cx.int("axis", 0), cx.rank(parts[0]))?;
    let y = cx.concat(&parts, axis)?;
    encoded(cx, y, 0)
}

fn softmax(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = decoded(cx, 0)?;
    let rank = cx.rank(x);
    let version = cx.int("opset", 13);
    let axis = cx.axis(cx.int("axis", if version < 13 { 1 } else { -1 }), rank)?;
    // Before opset 13 the softmax runs over all axes from the given one on.
    if version < 13 && axis + 1 != rank {
        return unsupported("runs over several axes at once");
    }
    let y = cx.softmax(x, axis)?;
    encoded(cx, y, 3)
}

/// Operands `a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero`; `c` counts in the scale of the product, and without `y_scale` the result
/// is real.
fn q_gemm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, b, a_scale, b_scale) = (cx.x(0)?, cx.x(3)?, cx.x(1)?, cx.x(4)?);
    if cx.rank(a) != 2 || cx.rank(b) != 2 {
        return invalid(format!("needs two matrices, got {} and {}", cx.ty(a), cx.ty(b)));
    }
    let a = if cx.flag("transA") { cx.transpose(a, &[1, 0])? } else { a };
    let b = if cx.flag("transB") { cx.transpose(b, &[1, 0])? } else { b };
    let mut y = linalg::scaled_product(cx, (a, a_scale, cx.opt(2)), (b, b_scale, cx.opt(5)), cx.opt(6))?;
    let alpha = cx.real("alpha", 1.0);
    if alpha != 1.0 {
        y = cx.bin_num(BinOp::Mul, y, alpha)?;
    }
    if cx.opt(7).is_some() { encoded(cx, y, 7) } else { Ok(vec![y]) }
}
