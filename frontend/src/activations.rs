//! Activation functions of one element, as both importers write them.

use transc_ir::DType;
use transc_ir::scalar::{BinOp, BodyBuilder, Ref, UnOp};

/// `x if x >= 0 (or > 0) else other`.
pub(crate) fn positive_or(b: &mut BodyBuilder, d: DType, x: Ref, other: Ref) -> Ref {
    let zero = b.num(d, 0.0);
    let negative = b.bin(BinOp::Lt, x, zero);
    b.select(negative, other, x)
}

/// `x`, or `alpha * x` where that is negative.
pub(crate) fn leaky(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64) -> Ref {
    let a = b.num(d, alpha);
    let y = b.bin(BinOp::Mul, a, x);
    positive_or(b, d, x, y)
}

/// `max(x, 0) + log(1 + e^-|x|)`: the logarithm of `1 + e^x` with no overflow.
pub(crate) fn softplus(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let zero = b.num(d, 0.0);
    let positive = b.bin(BinOp::Max, x, zero);
    let a = b.un(UnOp::Abs, x);
    let n = b.un(UnOp::Neg, a);
    let e = b.un(UnOp::Exp, n);
    let l = b.un(UnOp::Log1p, e);
    b.bin(BinOp::Add, positive, l)
}

/// `x * tanh(softplus(x))` (Misra 2019).
pub(crate) fn mish(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let s = softplus(b, d, x);
    let t = b.un(UnOp::Tanh, s);
    b.bin(BinOp::Mul, x, t)
}

/// `x * sigmoid(alpha * x)`.
pub(crate) fn scaled_silu(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64) -> Ref {
    let scaled = if alpha == 1.0 {
        x
    } else {
        let a = b.num(d, alpha);
        b.bin(BinOp::Mul, a, x)
    };
    let s = b.un(UnOp::Sigmoid, scaled);
    b.bin(BinOp::Mul, x, s)
}

/// `max(0, min(1, alpha * x + beta))`.
pub(crate) fn hard_sigmoid(b: &mut BodyBuilder, d: DType, x: Ref, alpha: f64, beta: f64) -> Ref {
    let (alpha, beta, zero, one) = (b.num(d, alpha), b.num(d, beta), b.num(d, 0.0), b.num(d, 1.0));
    let y = b.bin(BinOp::Mul, alpha, x);
    let y = b.bin(BinOp::Add, y, beta);
    let y = b.bin(BinOp::Min, y, one);
    b.bin(BinOp::Max, y, zero)
}

/// `x * hard_sigmoid(x)` of slope 1/6 (Howard et al. 2019).
pub(crate) fn hard_swish(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let h = hard_sigmoid(b, d, x, 1.0 / 6.0, 0.5);
    b.bin(BinOp::Mul, x, h)
}

/// `x/2 * (1 + erf(x / sqrt 2))` (Hendrycks and Gimpel 2016).
pub(crate) fn gelu_erf(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
    let r = b.num(d, std::f64::consts::FRAC_1_SQRT_2);
    let s = b.bin(BinOp::Mul, x, r);
    let e = b.un(UnOp::Erf, s);
    half_one_plus(b, d, x, e)
}

/// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, the approximation of the same paper.
pub(crate) fn gelu_tanh(b: &mut BodyBuilder, d: DType, x: Ref) -> Ref {
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
