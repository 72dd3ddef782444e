//! Activation functions as bodies of one element.

use transc_ir::scalar::{BinOp, BodyBuilder, Ref, UnOp};
use transc_ir::{DType, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Celu", 12..=LAST, celu),
    row("Elu", 6..=LAST, elu),
    row("Gelu", 20..=LAST, gelu_row),
    row("HardSigmoid", 6..=LAST, hard_sigmoid_row),
    row("HardSwish", 14..=LAST, hard_swish),
    row("LeakyRelu", 6..=LAST, leaky_relu),
    row("Mish", 18..=LAST, mish),
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

/// `x if x >= 0 (or > 0) else other`.
fn positive_or(b: &mut BodyBuilder, d: DType, x: Ref, other: Ref) -> Ref {
    let zero = b.num(d, 0.0);
    let negative = b.bin(BinOp::Lt, x, zero);
    b.select(negative, other, x)
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
        "HardSwish" => cx.map1(x, |b, d, x| {
            let h = hard_sigmoid(b, d, x, 1.0 / 6.0, 0.5);
            b.bin(BinOp::Mul, x, h)
        }),
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

pub(super) fn leaky(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64) -> Ref {
    let a = b.num(d, alpha);
    let y = b.bin(BinOp::Mul, a, x);
    positive_or(b, d, x, y)
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

/// `max(x, 0) + log(1 + e^-|x|)`: the logarithm of `1 + e^x` with no overflow.
pub(super) fn softplus(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let zero = b.num(d, 0.0);
    let positive = b.bin(BinOp::Max, x, zero);
    let a = b.un(UnOp::Abs, x);
    let n = b.un(UnOp::Neg, a);
    let e = b.un(UnOp::Exp, n);
    let l = b.un(UnOp::Log1p, e);
    b.bin(BinOp::Add, positive, l)
}

fn softsign(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    map(cx, |b, d, x| {
        let (a, one) = (b.un(UnOp::Abs, x), b.num(d, 1.0));
        let n = b.bin(BinOp::Add, one, a);
        b.bin(BinOp::Div, x, n)
    })
}

fn mish(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    map(cx, |b, d, x| {
        let s = softplus(b, d, x);
        let t = b.un(UnOp::Tanh, s);
        b.bin(BinOp::Mul, x, t)
    })
}

/// `x * sigmoid(alpha * x)`.
pub(super) fn scaled_silu(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64) -> Ref {
    let scaled = if alpha == 1.0 {
        x
    } else {
        let a = b.num(d, alpha);
        b.bin(BinOp::Mul, a, x)
    };
    let s = b.un(UnOp::Sigmoid, scaled);
    b.bin(BinOp::Mul, x, s)
}

fn swish(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let alpha = cx.real("alpha", 1.0);
    map(cx, |b, d, x| scaled_silu(b, d, x, alpha))
}

/// `max(0, min(1, alpha * x + beta))`.
fn hard_sigmoid(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64, beta: f64) -> Ref {
    let (alpha, beta, zero, one) = (b.num(d, alpha), b.num(d, beta), b.num(d, 0.0), b.num(d, 1.0));
    let y = b.bin(BinOp::Mul, alpha, x);
    let y = b.bin(BinOp::Add, y, beta);
    let y = b.bin(BinOp::Min, y, one);
    b.bin(BinOp::Max, y, zero)
}

fn hard_sigmoid_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (alpha, beta) = (cx.real("alpha", 0.2), cx.real("beta", 0.5));
    map(cx, |b, d, x| hard_sigmoid(b, d, x, alpha, beta))
}

fn hard_swish(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    map(cx, |b, d, x| {
        let h = hard_sigmoid(b, d, x, 1.0 / 6.0, 0.5);
        b.bin(BinOp::Mul, x, h)
    })
}

/// `x/2 * (1 + erf(x / sqrt 2))` (Hendrycks and Gimpel 2016).
pub(super) fn gelu_erf(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let r = b.num(d, std::f64::consts::FRAC_1_SQRT_2);
    let s = b.bin(BinOp::Mul, x, r);
    let e = b.un(UnOp::Erf, s);
    half_one_plus(b, d, x, e)
}

/// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, the approximation of the same paper.
pub(super) fn gelu_tanh(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let (c, k) = (b.num(d, 0.044_715), b.num(d, (2.0 / std::f64::consts::PI).sqrt()));
    let x2 = b.bin(BinOp::Mul, x, x);
    let x3 = b.bin(BinOp::Mul, x2, x);
    let y = b.bin(BinOp::Mul, c, x3);
    let y = b.bin(BinOp::Add, x, y);
    let y = b.bin(BinOp::Mul, k, y);
    let t = b.un(UnOp::Tanh, y);
    half_one_plus(b, d, x, t)
}

fn half_one_plus(b: &mut BodyBuilder, d: DType, x: Ref, t: Ref) -> Ref {
    let (one, half) = (b.num(d, 1.0), b.num(d, 0.5));
    let y = b.bin(BinOp::Add, one, t);
    let y = b.bin(BinOp::Mul, x, y);
    b.bin(BinOp::Mul, half, y)
}

fn gelu_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    match cx.text("approximate", "none")?.as_str() {
        "none" => map(cx, gelu_erf),
        "tanh" => map(cx, gelu_tanh),
        other => invalid(format!("the approximation must be none or tanh, not `{other}`")),
    }
}
