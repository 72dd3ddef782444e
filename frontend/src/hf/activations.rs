//! Activation functions by their names in transformers.

use transc_ir::scalar::{BinOp, BodyBuilder, Ref, UnOp};
use transc_ir::types::DType;

use crate::activations::{gelu_erf, gelu_tanh, hard_swish, leaky, mish, scaled_silu};

/// What a function does to an element.
pub(crate) type Activation = fn(&mut BodyBuilder, Ref) -> Ref;

/// The functions; names that differ in how they are computed there, not in what, stand together.
const ACTIVATIONS: &[(&[&str], Activation)] = &[
    (&["gelu", "gelu_python"], gelu),
    (&["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"], |f, x| gelu_tanh(f, DType::F32, x)),
    (&["gelu_10"], |f, x| {
        let y = gelu(f, x);
        between(f, y, -10.0, 10.0)
    }),
    (&["hardswish"], |f, x| hard_swish(f, DType::F32, x)),
    (&["laplace"], |f, x| {
        // Rounded as published.
        let mean = num(f, 707_107e-6);
        let t = f.bin(BinOp::Sub, x, mean);
        let t = scaled(f, t, 1.0 / (0.282_095 * std::f64::consts::SQRT_2));
        let (t, one) = (f.un(UnOp::Erf, t), num(f, 1.0));
        let t = f.bin(BinOp::Add, t, one);
        scaled(f, t, 0.5)
    }),
    (&["leaky_relu"], |f, x| leaky(f, DType::F32, x, 0.01)),
    (&["linear"], |_, x| x),
    (&["mish"], |f, x| mish(f, DType::F32, x)),
    (&["quick_gelu"], |f, x| scaled_silu(f, DType::F32, x, 1.702)),
    (&["relu"], relu),
    (&["relu2"], |f, x| {
        let y = relu(f, x);
        f.bin(BinOp::Mul, y, y)
    }),
    (&["relu6"], |f, x| between(f, x, 0.0, 6.0)),
    (&["sigmoid"], |f, x| f.un(UnOp::Sigmoid, x)),
    (&["silu", "swish"], silu),
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

pub(crate) fn gelu(f: &mut BodyBuilder, x: Ref) -> Ref {
    gelu_erf(f, DType::F32, x)
}

pub(crate) fn relu(f: &mut BodyBuilder, x: Ref) -> Ref {
    let zero = num(f, 0.0);
    f.bin(BinOp::Max, x, zero)
}

pub(crate) fn silu(f: &mut BodyBuilder, x: Ref) -> Ref {
    scaled_silu(f, DType::F32, x, 1.0)
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
