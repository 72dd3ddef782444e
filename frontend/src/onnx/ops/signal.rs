//! Fourier transforms and windows.

use std::f64::consts::PI;

use transc_ir::op::Contract;
use transc_ir::scalar::{BinOp, BodyBuilder, Inst, Ref, UnOp};
use transc_ir::{DType, Dim, Value};

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
    length: Dim,
    /// Frequencies that are given.
    out: Dim,
    inverse: bool,
    /// One-sided: the operand (inverse) or the result (forward) holds half of the spectrum.
    onesided: bool,
}

impl Plan {
    /// A transform of `length` elements, of which there is at least one.
    fn new(cx: &mut OpCx<'_, '_>, length: Dim, inverse: bool, onesided: bool) -> Result<Self> {
        if !cx.assume_not_negative(&(&length - &Dim::from(1)), "a transform has an element") {
            return invalid(format!("transforms {length} elements"));
        }
        let out = if onesided && !inverse { half(&length) } else { length.clone() };
        Ok(Self { length, out, inverse, onesided })
    }

    /// The matrices of cosines and sines from `n` elements to the frequencies.
    fn matrices(&self, cx: &mut OpCx<'_, '_>, d: DType, n: &Dim) -> Result<[Value; 2]> {
        let (Some(length), Some(n), Some(m)) = (self.length.as_usize(), n.as_usize(), self.out.as_usize()) else {
            let (k, j) = (cx.iota(n, 0, 2)?, cx.iota(&self.out, 1, 2)?);
            let mut at_run_time = |f| cx.map2(k, j, |b, _, k, j| self.element(b, d, f, k, j));
            return Ok([at_run_time(UnOp::Cos)?, at_run_time(UnOp::Sin)?]);
        };
        if length.saturating_mul(length) > cx.imp.options.limits.fold_elements {
            return limit(format!("a transform of length {length} would be a matrix above the folding limit"));
        }
        let step = 2.0 * PI / length as f64 * self.sign();
        let factor = |k: usize| {
            let scale = if self.inverse { 1.0 / length as f64 } else { 1.0 };
            let twice = self.inverse && self.onesided && k != 0 && 2 * k != length;
            if twice { 2.0 * scale } else { scale }
        };
        let angle = |k: usize, j: usize| step * ((k * j) % length) as f64;
        let all = || (0..n).flat_map(|k| (0..m).map(move |j| (k, j)));
        let cos = cx.table(d, &[n, m], all().map(|(k, j)| factor(k) * angle(k, j).cos()))?;
        let sin = cx.table(d, &[n, m], all().map(|(k, j)| factor(k) * angle(k, j).sin()))?;
        Ok([cos, sin])
    }

    fn sign(&self) -> f64 {
        if self.inverse { 1.0 } else { -1.0 }
    }

    /// An element of a matrix of cosines or sines, where the length is known only at run time.
    fn element(&self, b: &mut BodyBuilder, d: DType, f: UnOp, k: Ref, j: Ref) -> Ref {
        let length = b.push(Inst::Dim(self.length.clone()));
        let product = b.bin(BinOp::Mul, k, j);
        let part = b.bin(BinOp::Mod, product, length);
        let (part, whole) = (b.cast(DType::F32, part), b.cast(DType::F32, length));
        let (turn, circle) = (b.bin(BinOp::Div, part, whole), b.num(DType::F32, 2.0 * PI * self.sign()));
        let angle = b.bin(BinOp::Mul, turn, circle);
        let mut v = b.un(f, angle);
        if self.inverse {
            v = b.bin(BinOp::Div, v, whole);
        }
        // The half that is left out mirrors the other one.
        if self.inverse && self.onesided {
            let (zero, twice) = (b.num(DType::I64, 0.0), b.bin(BinOp::Add, k, k));
            let (inner, paired) = (b.bin(BinOp::Ne, k, zero), b.bin(BinOp::Ne, twice, length));
            let mirrored = b.bin(BinOp::And, inner, paired);
            let doubled = b.bin(BinOp::Add, v, v);
            v = b.select(mirrored, doubled, v);
        }
        if d == DType::F32 { v } else { b.cast(d, v) }
    }
}

/// Frequencies of half a spectrum.
fn half(length: &Dim) -> Dim {
    &length.floor_div(&Dim::from(2)) + &Dim::from(1)
}

/// An axis cut to an extent, or padded with zeros.
fn fitted(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, extent: &Dim) -> Result<Value> {
    let missing = extent - &cx.dims(x)[axis];
    match missing.bounds(&cx.imp.module.symbols) {
        (_, hi) if hi <= 0 => cx.slice(x, axis, &Dim::from(0), extent, 1),
        (lo, _) if lo >= 0 => {
            let (lo, mut hi) = (vec![Dim::from(0); cx.rank(x)], vec![Dim::from(0); cx.rank(x)]);
            hi[axis] = missing;
            cx.pad(x, &lo, &hi, 0.0)
        }
        _ => too_symbolic(format!("transforms {extent} elements of an axis of {}", cx.dims(x)[axis])),
    }
}

/// The transform of `x`, whose last axis holds the real or the real and imaginary part, along one axis, as products with the
/// matrices of cosines and sines.
fn transform(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, p: &Plan) -> Result<Value> {
    let rank = cx.rank(x);
    let used = if p.inverse && p.onesided { half(&p.length) } else { p.length.clone() };
    let x = fitted(cx, x, axis, &used)?;
    let d = cx.dtype(x);
    let complex = match cx.dims(x)[rank - 1].as_const() {
        Some(1) => false,
        Some(2) => true,
        _ => return invalid(format!("needs real or complex numbers on the last axis, got {}", cx.ty(x))),
    };
    let [cos, sin] = p.matrices(cx, d, &used)?;
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
    let extent = cx.dims(x)[axis].clone();
    let length = match cx.opt(1) {
        Some(l) => extent_value(cx, l, "the length of the transform")?,
        None if inverse && onesided => &(&extent - &Dim::from(1)) * &Dim::from(2),
        None => extent,
    };
    let plan = Plan::new(cx, length, inverse, onesided)?;
    Ok(vec![transform(cx, x, axis, &plan)?])
}

/// One extent that is known now.
fn extent_value(cx: &mut OpCx<'_, '_>, v: Value, what: &str) -> Result<Dim> {
    match cx.extents(v, what)?.as_slice() {
        [d] => Ok(d.clone()),
        other => invalid(format!("{what} must be one number, got {}", other.len())),
    }
}

/// Frames of the signal, times a window, transformed.
fn stft(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, step) = (cx.x(0)?, cx.x(1)?);
    let step = cx.int_value(step, "the step between frames")?;
    let dims = cx.dims(x);
    if !(2..=3).contains(&dims.len()) {
        return unsupported(format!("transforms the signal {}", cx.ty(x)));
    }
    let length = match (cx.opt(3), cx.opt(2)) {
        (Some(l), _) => extent_value(cx, l, "the length of a frame")?,
        (None, Some(w)) => cx.ty(w).count(),
        (None, None) => return invalid("has neither a window nor a length of its frames"),
    };
    let spare = &dims[1] - &length;
    if step <= 0 || !cx.assume_not_negative(&spare, "a frame fits the signal") {
        return invalid(format!("has frames of {length} by {step} of a signal of {}", dims[1]));
    }
    let frames = &spare.floor_div(&Dim::from(step)) + &Dim::from(1);
    let start = cx.iota(&frames, 0, 2)?;
    let start = cx.bin_num(BinOp::Mul, start, step as f64)?;
    let inside = cx.iota(&length, 1, 2)?;
    let index = cx.bin(BinOp::Add, start, inside)?;
    let x = if dims.len() == 2 { cx.reshape(x, vec![dims[0].clone(), dims[1].clone(), Dim::from(1)])? } else { x };
    let mut y = cx.gather(x, index, 1)?;
    if let Some(w) = cx.opt(2) {
        let w = cx.cast(cx.dtype(y), w)?;
        let w = cx.reshape(w, vec![length.clone(), Dim::from(1)])?;
        y = cx.bin(BinOp::Mul, y, w)?;
    }
    let plan = Plan::new(cx, length, false, cx.int("onesided", 1) != 0)?;
    Ok(vec![transform(cx, y, 2, &plan)?])
}
