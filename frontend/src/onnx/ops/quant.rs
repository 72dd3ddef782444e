//! Quantisation.

use transc_ir::op::{self, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::{OpCx, elements};
use super::super::error::{Result, invalid, unsupported};
use super::super::tensor;
use super::{LAST, OpRow, contrib, row};

pub(super) static ROWS: &[OpRow] = &[
    row("DequantizeLinear", 10..=LAST, dequantize),
    row("DynamicQuantizeLinear", 11..=LAST, dynamic_quantize),
    row("QuantizeLinear", 10..=LAST, quantize),
    contrib("DequantizeLinear", dequantize),
    contrib("QuantizeLinear", quantize),
];

/// Checks a scale that is known now.
pub(super) fn check_scale(cx: &mut OpCx<'_, '_>, scale: Value) -> Result<()> {
    check_elements(cx, scale, |s| s.is_finite() && s > 0.0, "a scale must be finite and positive")
}

/// Checks the scales of blocks of a weight, which quantisers give the sign of the largest element.
pub(super) fn check_block_scale(cx: &mut OpCx<'_, '_>, scale: Value) -> Result<()> {
    check_elements(cx, scale, f64::is_finite, "a scale must be finite")
}

fn check_elements(cx: &mut OpCx<'_, '_>, scale: Value, fits: fn(f64) -> bool, what: &str) -> Result<()> {
    if let Some(t) = cx.try_constant(scale)?
        && let Some(bad) = elements(&t).map(|l| l.to_f64()).find(|s| !fits(*s))
    {
        return invalid(format!("has the scale {bad}; {what}"));
    }
    Ok(())
}

/// Shapes a scale or zero point so that it broadcasts to `x`: one number, one per index of an axis, or one per block of an axis.
pub(super) fn parameter(cx: &mut OpCx<'_, '_>, x: Value, p: Value) -> Result<Value> {
    let (dims, given) = (cx.dims(x), cx.dims(p));
    let block = cx.int("block_size", 0);
    if given.is_empty() || given.len() == 1 && given[0].is(1) && block == 0 {
        return cx.reshape(p, Vec::new());
    }
    let axis = cx.axis(cx.int("axis", 1), dims.len())?;
    if block == 0 {
        if given.len() != 1 {
            return invalid(format!("has parameters {} without a block size", cx.ty(p)));
        }
        cx.equal(&given[0], &dims[axis])?;
        if given[0] != dims[axis] {
            return invalid(format!("has {} parameters for an axis of {}", given[0], dims[axis]));
        }
        let mut shape = vec![Dim::from(1); dims.len()];
        shape[axis] = given[0].clone();
        return cx.reshape(p, shape);
    }
    blockwise(cx, x, p, axis, block)
}

/// One parameter per block along an axis, repeated over the elements.
pub(super) fn blockwise(cx: &mut OpCx<'_, '_>, x: Value, p: Value, axis: usize, block: i64) -> Result<Value> {
    let (dims, given) = (cx.dims(x), cx.dims(p));
    let b = Dim::from(block);
    if block <= 0 || given.len() != dims.len() || dims[axis].ceil_div(&b) != given[axis] {
        return invalid(format!("has parameters {} for {} in blocks of {block} along axis {axis}", cx.ty(p), cx.ty(x)));
    }
    let mut apart = given.clone();
    apart.insert(axis + 1, Dim::from(1));
    let mut wide = given.clone();
    wide.insert(axis + 1, b.clone());
    let mut joined = given;
    joined[axis] = &joined[axis] * &b;
    let p = cx.reshape(p, apart)?;
    let p = cx.broadcast(p, &wide)?;
    let p = cx.reshape(p, joined)?;
    cx.slice(p, axis, &Dim::from(0), &dims[axis], 1)
}

/// `saturate(round(x / scale) + zero)` in the type of `zero`, or `u8`.
pub(super) fn quantize_to(cx: &mut OpCx<'_, '_>, x: Value, scale: Value, zero: Option<Value>) -> Result<Value> {
    let to = zero.map_or(DType::U8, |z| cx.dtype(z));
    let scale = cx.cast(cx.dtype(x), scale)?;
    let operands: Vec<Value> = [x, scale].into_iter().chain(zero).collect();
    cx.add(op::Quantize { to }, &operands)
}

/// `(code - zero) * scale`.
pub(super) fn decoded(cx: &mut OpCx<'_, '_>, codes: Value, scale: Value, zero: Option<Value>) -> Result<Value> {
    let operands: Vec<Value> = [codes, scale].into_iter().chain(zero).collect();
    cx.add(op::Dequantize {}, &operands)
}

fn quantize(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, scale) = (cx.x(0)?, cx.x(1)?);
    check_scale(cx, scale)?;
    let x = if cx.dtype(x).is_float() { x } else { cx.cast(cx.dtype(scale), x)? };
    let zero = match (cx.opt(2), cx.int("output_dtype", 0)) {
        (Some(z), _) => Some(z),
        (None, 0) => None,
        (None, n) => {
            let to = tensor::dtype(i32::try_from(n).unwrap_or(0), "the attribute `output_dtype`")?;
            Some(cx.num(to, 0.0)?)
        }
    };
    if zero.is_some_and(|z| !matches!(cx.dtype(z), DType::I8 | DType::U8 | DType::I16 | DType::U16)) {
        return unsupported("quantises to a type other than the 8- and 16-bit integers");
    }
    let zero = zero.map(|z| parameter(cx, x, z)).transpose()?;
    let scale = parameter(cx, x, scale)?;
    Ok(vec![quantize_to(cx, x, scale, zero)?])
}

fn dequantize(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, scale) = (cx.x(0)?, cx.x(1)?);
    check_scale(cx, scale)?;
    let shaped = parameter(cx, x, scale)?;
    let zero = cx.opt(2).map(|z| parameter(cx, x, z)).transpose()?;
    let y = decoded(cx, x, shaped, zero)?;
    match cx.int("output_dtype", 0) {
        0 => Ok(vec![y]),
        n => {
            let to = tensor::dtype(i32::try_from(n).unwrap_or(0), "the attribute `output_dtype`")?;
            Ok(vec![cx.cast(to, y)?])
        }
    }
}

/// Unsigned 8-bit quantisation with the range of the tensor itself, widened to hold 0.
fn dynamic_quantize(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    Ok(dynamic(cx, x)?.to_vec())
}

/// Codes, scale and zero point of [`dynamic_quantize`].
pub(super) fn dynamic(cx: &mut OpCx<'_, '_>, x: Value) -> Result<[Value; 3]> {
    let axes: Vec<usize> = (0..cx.rank(x)).collect();
    let (lo, hi) = (cx.reduce(ReduceKind::Min, x, &axes, false)?, cx.reduce(ReduceKind::Max, x, &axes, false)?);
    let (lo, hi) = (cx.bin_num(BinOp::Min, lo, 0.0)?, cx.bin_num(BinOp::Max, hi, 0.0)?);
    let scale = cx.map2(hi, lo, |b, d, hi, lo| {
        let (span, steps, zero, one) = (b.bin(BinOp::Sub, hi, lo), b.num(d, 255.0), b.num(d, 0.0), b.num(d, 1.0));
        let s = b.bin(BinOp::Div, span, steps);
        // A tensor of zeros: any scale will do.
        let empty = b.bin(BinOp::Eq, s, zero);
        b.select(empty, one, s)
    })?;
    let zero = cx.map2(lo, scale, |b, d, lo, s| {
        let (min, max) = (b.num(d, 0.0), b.num(d, 255.0));
        let n = b.un(UnOp::Neg, lo);
        let q = b.bin(BinOp::Div, n, s);
        let q = b.bin(BinOp::Max, q, min);
        let q = b.bin(BinOp::Min, q, max);
        let q = b.un(UnOp::Round, q);
        b.cast(DType::U8, q)
    })?;
    let y = quantize_to(cx, x, scale, Some(zero))?;
    Ok([y, scale, zero])
}
