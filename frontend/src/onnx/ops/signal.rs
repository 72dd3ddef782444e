//! Fourier transforms and windows.

use std::f64::consts::PI;

use transc_ir::op::Contract;
use transc_ir::scalar::BinOp;
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, limit, too_symbolic, unsupported};
use super::super::tensor;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("BlackmanWindow", 17..=LAST, |cx| window(cx, [0.42, 0.5, 0.08])),
    row("DFT", 17..=LAST, dft),
    row("HammingWindow", 17..=LAST, |cx| window(cx, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
    row("HannWindow", 17..=LAST, |cx| window(cx, [0.5, 0.5, 0.0])),
    row("STFT", 17..=LAST, stft),
];

/// `a0 - a1 cos(2 pi i / n) + a2 cos(4 pi i / n)`.
fn window(cx: &mut OpCx<'_, '_>, a: [f64; 3]) -> Result<Vec<Value>> {
    let size = cx.x(0)?;
    let size = cx.int_value(size, "the size of the window")?;
    let to = tensor::dtype(i32::try_from(cx.int("output_datatype", 1)).unwrap_or(0), "the attribute `output_datatype`")?;
    let max = cx.imp.options.limits.fold_elements;
    let Some(size) = usize::try_from(size).ok().filter(|s| *s <= max) else {
        return limit(format!("a window of {size} elements would be computed; the folding limit is {max} elements"));
    };
    let n = if cx.int("periodic", 1) != 0 { size } else { size.saturating_sub(1).max(1) } as f64;
    let value = |i: usize| a[0] - a[1] * (2.0 * PI * i as f64 / n).cos() + a[2] * (4.0 * PI * i as f64 / n).cos();
    Ok(vec![cx.table(to, &[size], (0..size).map(value))?])
}

/// What one transform is.
struct Plan {
    /// Elements that are transformed.
    length: i64,
    /// Frequencies that are given.
    out: i64,
    inverse: bool,
    /// One-sided: the operand (inverse) or the result (forward) holds half of the spectrum.
    onesided: bool,
}

/// The transform of `x`, whose last axis holds the real or the real and imaginary part, along one axis, as products with the
/// matrices of cosines and sines.
fn transform(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, p: &Plan) -> Result<Value> {
    let rank = cx.rank(x);
    let Some(have) = cx.dims(x)[axis].as_const() else { return too_symbolic("transforms an axis of symbolic extent") };
    if p.length <= 0 || p.length.saturating_mul(p.length) > cx.imp.options.limits.fold_elements as i64 {
        return limit(format!("a transform of length {} would be a matrix above the folding limit", p.length));
    }
    let used = if p.inverse && p.onesided { p.length / 2 + 1 } else { p.length };
    let x = if have > used {
        cx.slice(x, axis, &Dim::from(0), &Dim::from(used), 1)?
    } else {
        let (lo, mut hi) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
        hi[axis] = Dim::from(used - have);
        cx.pad(x, &lo, &hi, 0.0)?
    };
    let d = cx.dtype(x);
    let complex = match cx.dims(x)[rank - 1].as_const() {
        Some(1) => false,
        Some(2) => true,
        _ => return invalid(format!("needs real or complex numbers on the last axis, got {}", cx.ty(x))),
    };
    let (n, m) = (used as usize, p.out as usize);
    let step = 2.0 * PI / p.length as f64 * if p.inverse { 1.0 } else { -1.0 };
    let factor = |k: usize| {
        let scale = if p.inverse { 1.0 / p.length as f64 } else { 1.0 };
        // The half that is left out mirrors the other one.
        let twice = p.inverse && p.onesided && k != 0 && 2 * k != p.length as usize;
        if twice { 2.0 * scale } else { scale }
    };
    let angle = |k: usize, j: usize| step * ((k as i64 * j as i64) % p.length) as f64;
    let all = || (0..n).flat_map(|k| (0..m).map(move |j| (k, j)));
    let cos = cx.table(d, &[n, m], all().map(|(k, j)| factor(k) * angle(k, j).cos()))?;
    let sin = cx.table(d, &[n, m], all().map(|(k, j)| factor(k) * angle(k, j).sin()))?;
    let part = |cx: &mut OpCx<'_, '_>, which: i64, table: Value| -> Result<Value> {
        let v = cx.slice(x, rank - 1, &Dim::from(which), &Dim::from(1), 1)?;
        let lhs: Vec<u8> = (0..rank as u8).collect();
        let mut out = lhs.clone();
        out[axis] = rank as u8;
        cx.add(Contract { lhs, rhs: vec![axis as u8, rank as u8], out, out_dtype: d }, &[v, table])
    };
    let (mut re, mut im) = (part(cx, 0, cos)?, part(cx, 0, sin)?);
    if complex {
        let (ic, is) = (part(cx, 1, cos)?, part(cx, 1, sin)?);
        (re, im) = (cx.bin(BinOp::Sub, re, is)?, cx.bin(BinOp::Add, im, ic)?);
    }
    // The inverse of half a spectrum is real.
    if p.inverse && p.onesided { Ok(re) } else { cx.concat(&[re, im], rank - 1) }
}

fn dft(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let rank = cx.rank(x);
    let axis = if cx.opset < 20 {
        cx.int("axis", 1)
    } else {
        match cx.opt(2) {
            Some(a) => cx.int_value(a, "the axis")?,
            None => -2,
        }
    };
    let axis = cx.axis(axis, rank)?;
    if axis + 1 == rank {
        return invalid("cannot transform the axis of real and imaginary parts");
    }
    let (inverse, onesided) = (cx.flag("inverse"), cx.flag("onesided"));
    let length = match cx.opt(1) {
        Some(l) => cx.int_value(l, "the length of the transform")?,
        None => match cx.dims(x)[axis].as_const() {
            Some(n) if inverse && onesided => 2 * (n - 1),
            Some(n) => n,
            None => return too_symbolic("transforms an axis of symbolic extent"),
        },
    };
    let out = if onesided && !inverse { length / 2 + 1 } else { length };
    Ok(vec![transform(cx, x, axis, &Plan { length, out, inverse, onesided })?])
}

/// Frames of the signal, times a window, transformed.
fn stft(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, step) = (cx.x(0)?, cx.x(1)?);
    let step = cx.int_value(step, "the step between frames")?;
    let dims = cx.dims(x);
    let (Some(n), true) = (dims.get(1).and_then(Dim::as_const), (2..=3).contains(&dims.len())) else {
        return unsupported(format!("transforms the signal {}", cx.ty(x)));
    };
    let length = match (cx.opt(3), cx.opt(2)) {
        (Some(l), _) => cx.int_value(l, "the length of a frame")?,
        (None, Some(w)) => cx.ty(w).count().as_const().unwrap_or(0),
        (None, None) => return invalid("has neither a window nor a length of its frames"),
    };
    if step <= 0 || length <= 0 || length > n {
        return invalid(format!("has frames of {length} by {step} of a signal of {n}"));
    }
    let frames = (n - length) / step + 1;
    if frames.saturating_mul(length) > cx.imp.options.limits.fold_elements as i64 {
        return limit("has more elements in its frames than the folding limit");
    }
    let index = (0..frames).flat_map(|f| (0..length).map(move |i| f * step + i));
    let index = cx.int_table(&[frames as usize, length as usize], index)?;
    let x = if dims.len() == 2 { cx.reshape(x, vec![dims[0].clone(), dims[1].clone(), Dim::from(1)])? } else { x };
    let mut y = cx.gather(x, index, 1)?;
    if let Some(w) = cx.opt(2) {
        let w = cx.cast(cx.dtype(y), w)?;
        let w = cx.reshape(w, vec![Dim::from(length), Dim::from(1)])?;
        y = cx.bin(BinOp::Mul, y, w)?;
    }
    let onesided = cx.int("onesided", 1) != 0;
    let out = if onesided { length / 2 + 1 } else { length };
    Ok(vec![transform(cx, y, 2, &Plan { length, out, inverse: false, onesided })?])
}
