//! Activation functions by their names in transformers.

use transc_ir::scalar::{BinOp, BodyBuilder, Ref, UnOp};
use transc_ir::types::DType;

/// What a function does to an element.
pub(crate) type Activation = fn(&mut BodyBuilder, Ref) -> Ref;

/// The functions; names that differ in how they are computed there, not in what, stand together.
const ACTIVATIONS: &[(&[&str], Activation)] = &[
    (&["gelu", "gelu_python"], |f, x| {
        let t = scaled(f, x, std::f64::consts::FRAC_1_SQRT_2);
        let t = f.un(UnOp::Erf, t);
        half_gate(f, x, t)
    }),
    (&["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"], gelu_tanh),
    (&["gelu_10"], |f, x| {
        let t = scaled(f, x, std::f64::consts::FRAC_1_SQRT_2);
        let t = f.un(UnOp::Erf, t);
        let y = half_gate(f, x, t);
        between(f, y, -10.0, 10.0)
    }),
    (&["hardswish"], |f, x| {
        let three = num(f, 3.0);
        let t = f.bin(BinOp::Add, x, three);
        let t = between(f, t, 0.0, 6.0);
        let t = scaled(f, t, 1.0 / 6.0);
        f.bin(BinOp::Mul, x, t)
    }),
    (&["laplace"], |f, x| {
        // Rounded as published.
        let mean = num(f, 707_107e-6);
        let t = f.bin(BinOp::Sub, x, mean);
        let t = scaled(f, t, 1.0 / (0.282_095 * std::f64::consts::SQRT_2));
        let (t, one) = (f.un(UnOp::Erf, t), num(f, 1.0));
        let t = f.bin(BinOp::Add, t, one);
        scaled(f, t, 0.5)
    }),
    (&["leaky_relu"], |f, x| {
        let small = scaled(f, x, 0.01);
        f.bin(BinOp::Max, x, small)
    }),
    (&["linear"], |_, x| x),
    (&["mish"], |f, x| {
        // softplus(x) = max(x, 0) + log(1 + e^-|x|)
        let (zero, size) = (num(f, 0.0), f.un(UnOp::Abs, x));
        let (top, minus) = (f.bin(BinOp::Max, x, zero), f.un(UnOp::Neg, size));
        let rest = f.un(UnOp::Exp, minus);
        let rest = f.un(UnOp::Log1p, rest);
        let t = f.bin(BinOp::Add, top, rest);
        let t = f.un(UnOp::Tanh, t);
        f.bin(BinOp::Mul, x, t)
    }),
    (&["quick_gelu"], |f, x| {
        let t = scaled(f, x, 1.702);
        let t = f.un(UnOp::Sigmoid, t);
        f.bin(BinOp::Mul, x, t)
    }),
    (&["relu"], relu),
    (&["relu2"], |f, x| {
        let y = relu(f, x);
        f.bin(BinOp::Mul, y, y)
    }),
    (&["relu6"], |f, x| between(f, x, 0.0, 6.0)),
    (&["sigmoid"], |f, x| f.un(UnOp::Sigmoid, x)),
    (&["silu", "swish"], |f, x| {
        let t = f.un(UnOp::Sigmoid, x);
        f.bin(BinOp::Mul, x, t)
    }),
    (&["tanh"], tanh),
];

/// The function of a name.
pub(crate) fn find(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(names, _)| names.contains(&name)).map(|(_, f)| *f)
}

/// All names.
pub(crate) fn names() -> String {
    ACTIVATIONS.iter().flat_map(|(names, _)| *names).copied().collect::<Vec<_>>().join(", ")
}

/// The tanh approximation of gelu (Hendrycks and Gimpel 2016).
fn gelu_tanh(f: &mut BodyBuilder, x: Ref) -> Ref {
    let cube = f.bin(BinOp::Mul, x, x);
    let cube = f.bin(BinOp::Mul, cube, x);
    let t = scaled(f, cube, 0.044715);
    let t = f.bin(BinOp::Add, x, t);
    let t = scaled(f, t, (2.0 / std::f64::consts::PI).sqrt());
    let t = f.un(UnOp::Tanh, t);
    half_gate(f, x, t)
}

pub(crate) fn relu(f: &mut BodyBuilder, x: Ref) -> Ref {
    let zero = num(f, 0.0);
    f.bin(BinOp::Max, x, zero)
}

pub(crate) fn tanh(f: &mut BodyBuilder, x: Ref) -> Ref {
    f.un(UnOp::Tanh, x)
}

fn num(f: &mut BodyBuilder, v: f64) -> Ref {
    f.num(DType::F32, v)
}

fn scaled(f: &mut BodyBuilder, x: Ref, factor: f64) -> Ref {
    let factor = num(f, factor);
    f.bin(BinOp::Mul, x, factor)
}

fn between(f: &mut BodyBuilder, x: Ref, lo: f64, hi: f64) -> Ref {
    let (lo, hi) = (num(f, lo), num(f, hi));
    let x = f.bin(BinOp::Max, x, lo);
    f.bin(BinOp::Min, x, hi)
}

/// `x/2 (1 + t)`.
fn half_gate(f: &mut BodyBuilder, x: Ref, t: Ref) -> Ref {
    let one = num(f, 1.0);
    let t = f.bin(BinOp::Add, t, one);
    let h = scaled(f, x, 0.5);
    f.bin(BinOp::Mul, h, t)
}
