//! Convolutions.

use transc_ir::op;
use transc_ir::scalar::BinOp;
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, too_symbolic, unsupported};
use super::spatial::Spatial;
use super::{LAST, OpRow, activation, contrib, quant, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Conv", 1..=LAST, conv),
    row("ConvInteger", 10..=LAST, conv_integer),
    row("ConvTranspose", 1..=LAST, conv_transpose),
    row("QLinearConv", 10..=LAST, q_linear_conv),
    contrib("FusedConv", fused_conv),
    contrib("NhwcConv", channels_last),
    contrib("QLinearConv", q_linear_conv),
];

/// `x` by `w` without a bias.
fn convolve(cx: &mut OpCx<'_, '_>, x: Value, w: Value) -> Result<Value> {
    let (dx, dw) = (cx.dims(x), cx.dims(w));
    if dx.len() < 3 || dw.len() != dx.len() {
        return invalid(format!("needs a batch of images and filters with as many axes, got {} and {}", cx.ty(x), cx.ty(w)));
    }
    let Some(kernel) = dw[2..].iter().map(Dim::as_const).collect::<Option<Vec<_>>>() else {
        return too_symbolic("has a kernel of symbolic extent");
    };
    if cx.int_list("kernel_shape").is_some_and(|k| k != kernel) {
        return invalid(format!("says that its kernel is {:?}, but the filters are {}", cx.int_list("kernel_shape"), cx.ty(w)));
    }
    let s = Spatial::read(cx, &dx[2..], kernel)?;
    let groups = usize::try_from(cx.int("group", 1)).unwrap_or(0);
    cx.equal(&dx[1], &(&dw[1] * &Dim::from(groups)))?;
    let y = cx.add(op::Conv { strides: s.strides, dilations: s.dilations, lo: s.lo, hi: s.hi, groups }, &[x, w])?;
    cx.assume_not_empty(y, 2);
    Ok(y)
}

fn add_bias(cx: &mut OpCx<'_, '_>, y: Value, bias: Option<Value>) -> Result<Value> {
    let Some(bias) = bias else { return Ok(y) };
    let bias = cx.per_channel(bias, cx.rank(y))?;
    cx.bin(BinOp::Add, y, bias)
}

fn conv(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    let y = convolve(cx, x, w)?;
    Ok(vec![add_bias(cx, y, cx.opt(2))?])
}

/// Channels are the last axis of images and of filters.
fn channels_last(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    let rank = cx.rank(x);
    if rank < 3 || cx.rank(w) != rank {
        return invalid(format!("needs a batch of images and filters with as many axes, got {} and {}", cx.ty(x), cx.ty(w)));
    }
    let (x, w) = (cx.move_axis(x, rank - 1, 1)?, cx.move_axis(w, rank - 1, 1)?);
    let y = convolve(cx, x, w)?;
    let y = add_bias(cx, y, cx.opt(2))?;
    Ok(vec![cx.move_axis(y, 1, rank - 1)?])
}

/// A convolution, an optional sum, an activation.
fn fused_conv(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut y = conv(cx)?[0];
    if let Some(z) = cx.opt(3) {
        y = cx.bin(BinOp::Add, y, z)?;
    }
    let name = cx.text("activation", "")?;
    let given = cx.attr("activation_params").map(|a| a.floats.clone()).unwrap_or_default();
    Ok(vec![activation::by_name(cx, &name, &given, y)?])
}

/// Integers minus their zero point as `i32`; one zero point, or one per filter.
fn centred(cx: &mut OpCx<'_, '_>, x: Value, zero: Option<Value>) -> Result<Value> {
    let rank = cx.rank(x);
    let wide = cx.cast(DType::I32, x)?;
    let Some(zero) = zero else { return Ok(wide) };
    let zero = cx.cast(DType::I32, zero)?;
    let dims = cx.dims(zero);
    let zero = match dims.as_slice() {
        [n] if !n.is(1) => {
            let mut shape = vec![Dim::from(1); rank];
            shape[0] = n.clone();
            cx.reshape(zero, shape)?
        }
        _ => cx.reshape(zero, Vec::new())?,
    };
    cx.bin(BinOp::Sub, wide, zero)
}

fn conv_integer(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    let (x, w) = (centred(cx, x, cx.opt(2))?, centred(cx, w, cx.opt(3))?);
    Ok(vec![convolve(cx, x, w)?])
}

fn q_linear_conv(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    if cx.flag("channels_last") {
        return unsupported("has its channels last");
    }
    let (x, x_scale, x_zero) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let (w, w_scale, w_zero) = (cx.x(3)?, cx.x(4)?, cx.x(5)?);
    let (y_scale, y_zero) = (cx.x(6)?, cx.x(7)?);
    let (x, w) = (centred(cx, x, Some(x_zero))?, centred(cx, w, Some(w_zero))?);
    let sum = convolve(cx, x, w)?;
    let sum = add_bias(cx, sum, cx.opt(8))?;
    let rank = cx.rank(sum);
    let real = cx.cast(cx.dtype(y_scale), sum)?;
    let x_scale = cx.reshape(x_scale, Vec::new())?;
    let scale = cx.bin(BinOp::Mul, x_scale, w_scale)?;
    let scale = match cx.dims(scale).as_slice() {
        [n] if !n.is(1) => cx.per_channel(scale, rank)?,
        _ => cx.reshape(scale, Vec::new())?,
    };
    let real = cx.bin(BinOp::Mul, real, scale)?;
    let y_scale = cx.reshape(y_scale, Vec::new())?;
    let y_zero = cx.reshape(y_zero, Vec::new())?;
    Ok(vec![quant::quantize_to(cx, real, y_scale, Some(y_zero))?])
}

/// A convolution of the operand with `stride - 1` zeros between its elements by the mirrored filters (Dumoulin and Visin 2016, chapter 4).
fn conv_transpose(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    let (dx, dw) = (cx.dims(x), cx.dims(w));
    if dx.len() < 3 || dw.len() != dx.len() {
        return invalid(format!("needs a batch of images and filters with as many axes, got {} and {}", cx.ty(x), cx.ty(w)));
    }
    cx.equal(&dx[1], &dw[0])?;
    let n = dx.len() - 2;
    let Some(kernel) = dw[2..].iter().map(Dim::as_const).collect::<Option<Vec<_>>>() else {
        return too_symbolic("has a kernel of symbolic extent");
    };
    let strides = cx.int_list_of("strides", n, 1)?;
    let dilations = cx.int_list_of("dilations", n, 1)?;
    let extra = cx.int_list_of("output_padding", n, 0)?;
    let pads = cx.int_list_of("pads", 2 * n, 0)?;
    if strides.iter().chain(&dilations).any(|v| *v <= 0) || extra.iter().any(|v| *v < 0) {
        return invalid("needs positive strides and dilations, and no negative padding of the output");
    }
    let (mut begin, mut end) = (pads[..n].to_vec(), pads[n..].to_vec());
    let auto = cx.text("auto_pad", "NOTSET")?;
    let shape = cx.int_list("output_shape").filter(|s| !s.is_empty());
    for i in 0..n {
        let reach = dilations[i] * (kernel[i] - 1) + 1;
        let Some(total) = (match (&shape, auto.as_str(), dx[2 + i].as_const()) {
            (None, "NOTSET" | "" | "VALID", _) => Some(None),
            (None, _, _) => Some(Some(reach - strides[i] + extra[i])),
            (Some(s), _, Some(d)) => {
                s.get(s.len().saturating_sub(n) + i).map(|want| Some(strides[i] * (d - 1) + extra[i] + reach - want))
            }
            (Some(_), _, None) => return too_symbolic("asks for an output shape of an axis of symbolic extent"),
        }) else {
            return invalid("has an output shape with too few extents");
        };
        match total {
            None if auto == "VALID" => (begin[i], end[i]) = (0, 0),
            None => {}
            Some(t) if auto == "SAME_LOWER" => (begin[i], end[i]) = (t - t / 2, t / 2),
            Some(t) => (begin[i], end[i]) = (t / 2, t - t / 2),
        }
    }
    let groups = cx.int("group", 1);
    let g = Dim::from(groups);
    let (Some(per_in), true) = (dw[0].exact_div(&g), groups > 0) else {
        return invalid(format!("has {groups} groups for the filters {}", cx.ty(w)));
    };
    let plain = groups == 1 && begin.iter().chain(&end).chain(&extra).all(|p| *p == 0);
    if plain && strides == kernel && dilations.iter().all(|d| *d == 1) {
        let y = tiles(cx, x, w)?;
        return Ok(vec![add_bias(cx, y, cx.opt(2))?]);
    }
    // Filters `[C, M/g, k..]` become `[M, C/g, k..]`, mirrored.
    let mut split = vec![g.clone(), per_in.clone(), dw[1].clone()];
    split.extend_from_slice(&dw[2..]);
    let mut perm: Vec<usize> = (0..n + 3).collect();
    perm.swap(1, 2);
    let f = cx.reshape(w, split)?;
    let f = cx.transpose(f, &perm)?;
    let mut joined = vec![&g * &dw[1], per_in];
    joined.extend_from_slice(&dw[2..]);
    let mut f = cx.reshape(f, joined)?;
    let mut y = x;
    let (mut lo, mut hi) = (Vec::new(), Vec::new());
    for i in 0..n {
        f = cx.reversed(f, 2 + i)?;
        y = spread(cx, y, 2 + i, strides[i])?;
        let reach = dilations[i] * (kernel[i] - 1);
        lo.push(reach - begin[i]);
        hi.push(reach - end[i] + extra[i]);
    }
    // Padding beyond the reach of the filter crops instead.
    for i in 0..n {
        let (front, back) = ((-lo[i]).max(0), (-hi[i]).max(0));
        if front + back > 0 {
            let size = &cx.dims(y)[2 + i] - &Dim::from(front + back);
            y = cx.slice(y, 2 + i, &Dim::from(front), &size, 1)?;
        }
        (lo[i], hi[i]) = (lo[i].max(0), hi[i].max(0));
    }
    let conv = op::Conv { strides: vec![1; n], dilations, lo, hi, groups: usize::try_from(groups).unwrap_or(0) };
    let y = cx.add(conv, &[y, f])?;
    cx.assume_not_empty(y, 2);
    Ok(vec![add_bias(cx, y, cx.opt(2))?])
}

/// A transposed convolution whose results lie side by side: a product, each row of which is a tile of the image.
fn tiles(cx: &mut OpCx<'_, '_>, x: Value, w: Value) -> Result<Value> {
    let (dx, dw) = (cx.dims(x), cx.dims(w));
    let n = dx.len() - 2;
    let perm: Vec<usize> = std::iter::once(0).chain(2..n + 2).chain([1]).collect();
    let rows = cx.transpose(x, &perm)?;
    let columns = cx.reshape(w, vec![dw[0].clone(), dw[1..].iter().product()])?;
    let y = cx.add(op::Contract::linear(n + 2, cx.ty(x).dtype), &[rows, columns])?;
    // [N, o.., M * i..] -> [N, M, o, i, ..]
    let split = dx[..1].iter().chain(&dx[2..]).chain(&dw[1..]).cloned().collect::<Vec<Dim>>();
    let y = cx.reshape(y, split)?;
    let perm: Vec<usize> = [0, n + 1].into_iter().chain((0..n).flat_map(|a| [1 + a, n + 2 + a])).collect();
    let y = cx.transpose(y, &perm)?;
    let whole = (0..n).map(|a| &dx[2 + a] * &dw[2 + a]);
    let dims: Vec<Dim> = [dx[0].clone(), dw[1].clone()].into_iter().chain(whole).collect();
    cx.reshape(y, dims)
}

/// Puts `step - 1` zeros between the elements of an axis.
fn spread(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, step: i64) -> Result<Value> {
    if step == 1 {
        return Ok(x);
    }
    let dims = cx.dims(x);
    let rank = dims.len();
    let mut apart = dims.clone();
    apart.insert(axis + 1, Dim::from(1));
    let y = cx.reshape(x, apart)?;
    let (lo, mut hi) = (vec![Dim::from(0); rank + 1], vec![Dim::from(0); rank + 1]);
    hi[axis + 1] = Dim::from(step - 1);
    let y = cx.pad(y, &lo, &hi, 0.0)?;
    let mut joined = dims.clone();
    joined[axis] = &dims[axis] * &Dim::from(step);
    let y = cx.reshape(y, joined.clone())?;
    cx.slice(y, axis, &Dim::from(0), &(&joined[axis] - &Dim::from(step - 1)), 1)
}
