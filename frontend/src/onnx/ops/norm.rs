//! Normalisations.

use transc_ir::op::{self, Real, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::{LAST, OpRow, contrib, row};
use crate::activations::scaled_silu;

pub(super) static ROWS: &[OpRow] = &[
    row("BatchNormalization", 7..=LAST, batch_norm),
    row("GroupNormalization", 18..=LAST, group_norm),
    row("InstanceNormalization", 6..=LAST, instance_norm),
    row("LRN", 1..=LAST, local_response),
    row("LayerNormalization", 1..=LAST, layer_norm_row),
    row("LpNormalization", 1..=LAST, lp_norm),
    row("MeanVarianceNormalization", 9..=LAST, mean_variance),
    row("RMSNormalization", 23..=LAST, rms_norm_row),
    row("SimplifiedLayerNormalization", 1..=LAST, rms_norm_row),
    contrib("GroupNorm", |cx| fused_group_norm(cx, false)),
    contrib("LayerNormalization", layer_norm_row),
    contrib("SimplifiedLayerNormalization", rms_norm_row),
    contrib("SkipGroupNorm", |cx| fused_group_norm(cx, true)),
    contrib("SkipLayerNormalization", |cx| skip_norm(cx, false)),
    contrib("SkipSimplifiedLayerNormalization", |cx| skip_norm(cx, true)),
];

/// True if a parameter of a norm fits the normalised axes, so that it can be an operand of the named op.
fn fits(cx: &OpCx<'_, '_>, p: Value, normalised: &[Dim]) -> bool {
    op::broadcast_dims(&cx.dims(p), normalised).as_deref() == Some(normalised)
}

/// Normalises the axes from `axis` on, then scales and shifts.
pub(super) fn layer_norm(
    cx: &mut OpCx<'_, '_>,
    x: Value,
    scale: Option<Value>,
    bias: Option<Value>,
    axis: usize,
    epsilon: f64,
) -> Result<Value> {
    let o = op::LayerNorm { axis, epsilon: Real(epsilon) };
    let (x, scale, bias) = aligned(cx, x, scale, bias, axis)?;
    let normalised = cx.dims(x)[axis..].to_vec();
    if let Some(s) = scale
        && fits(cx, s, &normalised)
        && bias.is_none_or(|b| fits(cx, b, &normalised))
    {
        let operands: Vec<Value> = [x, s].into_iter().chain(bias).collect();
        return cx.add(o, &operands);
    }
    let y = cx.add(o, &[x])?;
    scale_shift(cx, y, scale, bias)
}

fn rms_norm(cx: &mut OpCx<'_, '_>, x: Value, scale: Option<Value>, axis: usize, epsilon: f64) -> Result<Value> {
    let o = op::RmsNorm { axis, epsilon: Real(epsilon) };
    let (x, scale, _) = aligned(cx, x, scale, None, axis)?;
    let normalised = cx.dims(x)[axis..].to_vec();
    if let Some(s) = scale
        && fits(cx, s, &normalised)
    {
        return cx.add(o, &[x, s]);
    }
    let y = cx.add(o, &[x])?;
    scale_shift(cx, y, scale, None)
}

/// Parameters in the type of `x`, their extents made equal to those of the normalised axes.
fn aligned(
    cx: &mut OpCx<'_, '_>,
    x: Value,
    scale: Option<Value>,
    bias: Option<Value>,
    axis: usize,
) -> Result<(Value, Option<Value>, Option<Value>)> {
    if axis > cx.rank(x) || cx.rank(x) == 0 {
        return invalid(format!("cannot normalise {}", cx.ty(x)));
    }
    let d = cx.dtype(x);
    let mut typed = |p: Option<Value>| -> Result<Option<Value>> {
        let Some(p) = p else { return Ok(None) };
        cx.broadcastable(&[x, p])?;
        cx.cast(d, p).map(Some)
    };
    let scale = typed(scale)?;
    let bias = typed(bias)?;
    Ok((x, scale, bias))
}

fn scale_shift(cx: &mut OpCx<'_, '_>, mut y: Value, scale: Option<Value>, bias: Option<Value>) -> Result<Value> {
    if let Some(s) = scale {
        y = cx.bin(BinOp::Mul, y, s)?;
    }
    if let Some(b) = bias {
        y = cx.bin(BinOp::Add, y, b)?;
    }
    Ok(y)
}

/// Mean and reciprocal standard deviation over the axes from `axis` on.
fn statistics(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, epsilon: f64) -> Result<[Value; 2]> {
    let axes: Vec<usize> = (axis..cx.rank(x)).collect();
    let x = if cx.dtype(x) == DType::F64 { x } else { cx.cast(DType::F32, x)? };
    let mean = cx.mean(x, &axes, true)?;
    let centred = cx.bin(BinOp::Sub, x, mean)?;
    let square = cx.bin(BinOp::Mul, centred, centred)?;
    let variance = cx.mean(square, &axes, true)?;
    let inverse = cx.map1(variance, |b, d, v| {
        let e = b.num(d, epsilon);
        let v = b.bin(BinOp::Add, v, e);
        let v = b.un(UnOp::Sqrt, v);
        b.un(UnOp::Recip, v)
    })?;
    Ok([mean, inverse])
}

fn layer_norm_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    let epsilon = cx.real("epsilon", 1e-5);
    let mut out = vec![layer_norm(cx, x, cx.opt(1), cx.opt(2), axis, epsilon)?];
    if cx.wants(1) || cx.wants(2) {
        out.extend(statistics(cx, x, axis, epsilon)?);
    }
    Ok(out)
}

fn rms_norm_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    if cx.wants(1) {
        return unsupported("gives the inverse root mean square");
    }
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    Ok(vec![rms_norm(cx, x, cx.opt(1), axis, cx.real("epsilon", 1e-5))?])
}

/// `norm(x + skip + bias)`; the sum is the fourth result.
fn skip_norm(cx: &mut OpCx<'_, '_>, rms: bool) -> Result<Vec<Value>> {
    if cx.wants(1) || cx.wants(2) {
        return unsupported("gives the statistics of the norm");
    }
    let (x, skip, gamma) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let mut sum = cx.bin(BinOp::Add, x, skip)?;
    if let Some(bias) = cx.opt(if rms { 3 } else { 4 }) {
        sum = cx.bin(BinOp::Add, sum, bias)?;
    }
    let axis = cx.axis(-1, cx.rank(sum))?;
    let epsilon = cx.real("epsilon", 1e-12);
    let y = if rms {
        rms_norm(cx, sum, Some(gamma), axis, epsilon)?
    } else {
        layer_norm(cx, sum, Some(gamma), cx.opt(3), axis, epsilon)?
    };
    Ok(vec![y, y, y, sum])
}

/// With stored statistics: `x * f + (bias - mean * f)` with `f = scale / sqrt(variance + epsilon)`.
fn batch_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    if cx.flag("training_mode") || (1..5).any(|i| cx.wants(i)) {
        return unsupported("updates its statistics, which is training");
    }
    let (x, scale, bias, mean, variance) = (cx.x(0)?, cx.x(1)?, cx.x(2)?, cx.x(3)?, cx.x(4)?);
    let epsilon = cx.real("epsilon", 1e-5);
    let deviation = cx.map1(variance, |b, d, v| {
        let e = b.num(d, epsilon);
        let v = b.bin(BinOp::Add, v, e);
        b.un(UnOp::Sqrt, v)
    })?;
    let (d, rank) = (cx.dtype(x), cx.rank(x));
    let [mean, deviation] = [cx.cast(cx.dtype(scale), mean)?, cx.cast(cx.dtype(scale), deviation)?];
    let factor = cx.bin(BinOp::Div, scale, deviation)?;
    let shift = cx.bin(BinOp::Mul, mean, factor)?;
    let shift = cx.bin(BinOp::Sub, bias, shift)?;
    let (factor, shift) = (cx.cast(d, factor)?, cx.cast(d, shift)?);
    let (factor, shift) = if rank < 2 { (factor, shift) } else { (cx.per_channel(factor, rank)?, cx.per_channel(shift, rank)?) };
    Ok(vec![scale_shift(cx, x, Some(factor), Some(shift))?])
}

fn instance_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, scale, bias) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let rank = cx.rank(x);
    if rank < 3 {
        return invalid(format!("needs a batch of images, got {}", cx.ty(x)));
    }
    let y = cx.add(op::LayerNorm { axis: 2, epsilon: Real(cx.real("epsilon", 1e-5)) }, &[x])?;
    let (scale, bias) = (cx.per_channel(scale, rank)?, cx.per_channel(bias, rank)?);
    Ok(vec![scale_shift(cx, y, Some(scale), Some(bias))?])
}

/// Normalises groups of channels: `[N, G, C / G, ..]` from `[N, C, ..]`.
fn in_groups(cx: &mut OpCx<'_, '_>, x: Value, groups: i64) -> Result<Value> {
    let dims = cx.dims(x);
    let g = Dim::from(groups);
    let per_group = if groups > 0 && dims.len() >= 2 { dims[1].exact_div(&g) } else { None };
    let Some(per_group) = per_group else {
        return invalid(format!("has {groups} groups for {}", cx.ty(x)));
    };
    let mut split = vec![dims[0].clone(), g, per_group];
    split.extend_from_slice(&dims[2..]);
    let y = cx.reshape(x, split)?;
    cx.add(op::LayerNorm { axis: 2, epsilon: Real(cx.real("epsilon", 1e-5)) }, &[y])
}

/// Scale and bias are per group before opset 21, per channel from then on.
fn group_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, scale, bias) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let dims = cx.dims(x);
    let y = in_groups(cx, x, cx.int("num_groups", 0))?;
    if cx.opset >= 21 {
        let y = cx.reshape(y, dims)?;
        return Ok(vec![by_channel(cx, y, scale, bias)?]);
    }
    let y = by_channel(cx, y, scale, bias)?;
    Ok(vec![cx.reshape(y, dims)?])
}

/// Scales and shifts along axis 1.
fn by_channel(cx: &mut OpCx<'_, '_>, y: Value, scale: Value, bias: Value) -> Result<Value> {
    let (d, rank) = (cx.dtype(y), cx.rank(y));
    let (scale, bias) = (cx.cast(d, scale)?, cx.cast(d, bias)?);
    let (scale, bias) = (cx.per_channel(scale, rank)?, cx.per_channel(bias, rank)?);
    scale_shift(cx, y, Some(scale), Some(bias))
}

/// The norm of images, or of their sum with another operand (4th) and a bias (5th), as the optimiser writes it for diffusion models; the sum is the
/// second result.
fn fused_group_norm(cx: &mut OpCx<'_, '_>, skip: bool) -> Result<Vec<Value>> {
    let (mut sum, scale, shift) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let rank = cx.rank(sum);
    if rank < 3 {
        return invalid(format!("needs a batch of images, got {}", cx.ty(sum)));
    }
    let channels = if cx.int("channels_last", 1) != 0 { rank - 1 } else { 1 };
    for i in 3..if skip { 5 } else { 3 } {
        let Some(mut v) = cx.opt(i) else { continue };
        // One number for each channel, or for each channel of each image.
        let dims = cx.dims(v);
        if let [.., c] = dims.as_slice()
            && dims.len() <= 2
        {
            let mut wide = vec![Dim::from(1); rank];
            wide[channels] = c.clone();
            wide[0] = if dims.len() == 2 { dims[0].clone() } else { Dim::from(1) };
            v = cx.reshape(v, wide)?;
        }
        sum = cx.bin(BinOp::Add, sum, v)?;
    }
    let x = cx.move_axis(sum, channels, 1)?;
    let dims = cx.dims(x);
    let y = in_groups(cx, x, cx.int("groups", 0))?;
    let y = cx.reshape(y, dims)?;
    let mut y = by_channel(cx, y, scale, shift)?;
    if cx.flag("activation") {
        y = cx.map1(y, |b, d, x| scaled_silu(b, d, x, 1.0))?;
    }
    Ok(vec![cx.move_axis(y, 1, channels)?, sum])
}

/// `x / (bias + alpha / size * sum(x^2))^beta` over `size` neighbouring channels.
fn local_response(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let (rank, size) = (cx.rank(x), cx.int("size", 0));
    if rank < 2 || size <= 0 {
        return invalid(format!("has the size {size} for {}", cx.ty(x)));
    }
    let (alpha, beta, bias) = (cx.real("alpha", 1e-4), cx.real("beta", 0.75), cx.real("bias", 1.0));
    let square = cx.bin(BinOp::Mul, x, x)?;
    let last = cx.move_axis(square, 1, rank - 1)?;
    let window = op::Window {
        kind: ReduceKind::Sum,
        kernel: vec![size],
        strides: vec![1],
        dilations: vec![1],
        lo: vec![(size - 1) / 2],
        hi: vec![size / 2],
    };
    let sum = cx.add(window, &[last])?;
    let sum = cx.move_axis(sum, rank - 1, 1)?;
    let y = cx.map2(x, sum, |b, d, x, s| {
        let (a, k, e) = (b.num(d, alpha / size as f64), b.num(d, bias), b.num(d, beta));
        let s = b.bin(BinOp::Mul, a, s);
        let s = b.bin(BinOp::Add, k, s);
        let s = b.bin(BinOp::Pow, s, e);
        b.bin(BinOp::Div, x, s)
    })?;
    Ok(vec![y])
}

/// A vector of zeros stays as it is.
fn lp_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    let norm = match cx.int("p", 2) {
        1 => {
            let a = cx.un(UnOp::Abs, x)?;
            cx.reduce(ReduceKind::Sum, a, &[axis], true)?
        }
        2 => {
            let s = cx.bin(BinOp::Mul, x, x)?;
            let s = cx.reduce(ReduceKind::Sum, s, &[axis], true)?;
            cx.un(UnOp::Sqrt, s)?
        }
        p => return invalid(format!("has the order {p}, must be 1 or 2")),
    };
    let y = cx.map2(x, norm, |b, d, x, n| {
        let (zero, q) = (b.num(d, 0.0), b.bin(BinOp::Div, x, n));
        let empty = b.bin(BinOp::Eq, n, zero);
        b.select(empty, zero, q)
    })?;
    Ok(vec![y])
}

/// `(x - mean) / (sqrt(mean(x^2) - mean^2) + 1e-9)`.
fn mean_variance(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axes = cx.int_list("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = cx.axes(&axes, cx.rank(x))?;
    let mean = cx.mean(x, &axes, true)?;
    let square = cx.bin(BinOp::Mul, x, x)?;
    let square = cx.mean(square, &axes, true)?;
    let deviation = cx.map2(square, mean, |b, d, s, m| {
        let (m2, e) = (b.bin(BinOp::Mul, m, m), b.num(d, 1e-9));
        let v = b.bin(BinOp::Sub, s, m2);
        let r = b.un(UnOp::Sqrt, v);
        b.bin(BinOp::Add, r, e)
    })?;
    let centred = cx.bin(BinOp::Sub, x, mean)?;
    Ok(vec![cx.bin(BinOp::Div, centred, deviation)?])
}
