//! Activation functions.

use transc_ir::scalar::{BinOp, BodyBuilder, Ref, UnOp};
use transc_ir::{DType, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::{LAST, OpRow, row};
use crate::activations::{gelu_erf, gelu_tanh, hard_sigmoid, hard_swish, leaky, mish, positive_or, scaled_silu, softplus};

pub(super) static ROWS: &[OpRow] = &[
    row("Celu", 12..=LAST, celu),
    row("Elu", 6..=LAST, elu),
    row("Gelu", 20..=LAST, gelu_row),
    row("HardSigmoid", 6..=LAST, hard_sigmoid_row),
    row("HardSwish", 14..=LAST, |cx| map(cx, hard_swish)),
    row("LeakyRelu", 6..=LAST, leaky_relu),
    row("Mish", 18..=LAST, |cx| map(cx, mish)),
    row("Relu", 6..=LAST, relu),
    row("Selu", 6..=LAST, selu),
    row("Shrink", 9..=LAST, shrink),
    row("Softplus", 1..=LAST, |cx| map(cx, softplus)),
    row("Softsign", 1..=LAST, softsign),
    row("Swish", 24..=LAST, swish),
    row("ThresholdedRelu", 10..=LAST, thresholded_relu),
];

fn map(cx: &mut OpCx<'_, '_>, f: impl FnOnce(&mut BodyBuilder, DType, Ref) -> Ref) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    Ok(vec![cx.map1(x, f)?])
}

/// An activation that a fused operator names, with its parameters in the order in which ONNX lists them.
pub(super) fn by_name(cx: &mut OpCx<'_, '_>, name: &str, given: &[f32], x: Value) -> Result<Value> {
    let p = |i: usize, default: f64| given.get(i).map_or(default, |v| f64::from(*v));
    let clamp = |b: &mut BodyBuilder, d: DType, x: Ref, lo: f64, hi: f64| {
        let (lo, hi) = (b.num(d, lo), b.num(d, hi));
        let y = b.bin(BinOp::Max, x, lo);
        b.bin(BinOp::Min, y, hi)
    };
    match name {
        "" => Ok(x),
        "Relu" => cx.bin_num(BinOp::Max, x, 0.0),
        "Sigmoid" => cx.un(UnOp::Sigmoid, x),
        "Tanh" => cx.un(UnOp::Tanh, x),
        "LeakyRelu" => cx.map1(x, |b, d, x| leaky(b, d, x, p(0, 0.01))),
        "HardSigmoid" => cx.map1(x, |b, d, x| hard_sigmoid(b, d, x, p(0, 0.2), p(1, 0.5))),
        "HardSwish" => cx.map1(x, hard_swish),
        "Clip" => cx.map1(x, |b, d, x| clamp(b, d, x, p(0, f64::from(f32::MIN)), p(1, f64::from(f32::MAX)))),
        "Softplus" => cx.map1(x, softplus),
        "Gelu" => cx.map1(x, gelu_erf),
        other => unsupported(format!("ends in the activation `{other}`")),
    }
}

fn relu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    map(cx, |b, d, x| {
        let zero = b.num(d, 0.0);
        b.bin(BinOp::Max, x, zero)
    })
}

/// `e^x - 1`, as ONNX defines these activations.
fn exp_minus_one(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let e = b.un(UnOp::Exp, x);
    let one = b.num(d, 1.0);
    b.bin(BinOp::Sub, e, one)
}

fn elu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.0);
    map(cx, |b, d, x| {
        let e = exp_minus_one(b, d, x);
        let a = b.num(d, alpha);
        let y = b.bin(BinOp::Mul, a, e);
        positive_or(b, d, x, y)
    })
}

fn celu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.0);
    map(cx, |b, d, x| {
        let a = b.num(d, alpha);
        let q = b.bin(BinOp::Div, x, a);
        let e = exp_minus_one(b, d, q);
        let y = b.bin(BinOp::Mul, a, e);
        positive_or(b, d, x, y)
    })
}

/// Klambauer et al. 2017, with ONNX's default constants.
fn selu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.673_263_2);
    let gamma = cx.real("gamma", 1.050_701);
    map(cx, |b, d, x| {
        let e = b.un(UnOp::Exp, x);
        let a = b.num(d, alpha);
        let ae = b.bin(BinOp::Mul, a, e);
        let y = b.bin(BinOp::Sub, ae, a);
        let y = positive_or(b, d, x, y);
        let g = b.num(d, gamma);
        b.bin(BinOp::Mul, g, y)
    })
}

fn leaky_relu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 0.01);
    map(cx, |b, d, x| leaky(b, d, x, alpha))
}

fn thresholded_relu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.0);
    map(cx, |b, d, x| {
        let (a, zero) = (b.num(d, alpha), b.num(d, 0.0));
        let c = b.bin(BinOp::Gt, x, a);
        b.select(c, x, zero)
    })
}

fn shrink(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (bias, lambd) = (cx.real("bias", 0.0), cx.real("lambd", 0.5));
    map(cx, |b, d, x| {
        let (bias, lo, hi, zero) = (b.num(d, bias), b.num(d, -lambd), b.num(d, lambd), b.num(d, 0.0));
        let (below, above) = (b.bin(BinOp::Lt, x, lo), b.bin(BinOp::Gt, x, hi));
        let (up, down) = (b.bin(BinOp::Add, x, bias), b.bin(BinOp::Sub, x, bias));
        let y = b.select(above, down, zero);
        b.select(below, up, y)
    })
}

fn softsign(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    map(cx, |b, d, x| {
        let (a, one) = (b.un(UnOp::Abs, x), b.num(d, 1.0));
        let n = b.bin(BinOp::Add, one, a);
        b.bin(BinOp::Div, x, n)
    })
}

fn swish(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.0);
    map(cx, |b, d, x| scaled_silu(b, d, x, alpha))
}

fn hard_sigmoid_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (alpha, beta) = (cx.real("alpha", 0.2), cx.real("beta", 0.5));
    map(cx, |b, d, x| hard_sigmoid(b, d, x, alpha, beta))
}

fn gelu_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    match cx.text("approximate", "none")?.as_str() {
        "none" => map(cx, gelu_erf),
        "tanh" => map(cx, gelu_tanh),
        other => invalid(format!("the approximation must be none or tanh, not `{other}`")),
    }
}
