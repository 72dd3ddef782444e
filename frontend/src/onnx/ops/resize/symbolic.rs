//! Resampling along an axis whose extents are symbolic: the places and weights are computed from the extents when the model runs.

use transc_ir::scalar::{BinOp, Body, BodyBuilder, Inst, Ref, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::super::cx::OpCx;
use super::super::super::error::{Result, invalid, too_symbolic, unsupported};
use super::{Mode, Sampling};

/// Largest denominator of a scale that is taken as a fraction.
const MAX_DENOMINATOR: i64 = 64;

/// How one axis is sampled; the scale is a fraction.
pub(super) struct Span {
    n: Dim,
    out: Dim,
    top: Dim,
    bottom: Dim,
}

impl Span {
    /// The result has a size of its own.
    pub(super) fn sized(n: &Dim, out: &Dim) -> Span {
        Span { n: n.clone(), out: out.clone(), top: out.clone(), bottom: n.clone() }
    }

    /// A scale that is a fraction of small numbers.
    pub(super) fn scaled(n: &Dim, scale: f64) -> Result<Span> {
        let bottom = (1..=MAX_DENOMINATOR).find(|q| (scale * *q as f64).fract() == 0.0 && scale * (*q as f64) < 1e6);
        let Some(q) = bottom else { return too_symbolic(format!("resamples an axis of symbolic extent {n} by {scale}")) };
        let (top, bottom) = (Dim::from((scale * q as f64) as i64), Dim::from(q));
        let out = (n * &top).floor_div(&bottom);
        Ok(Span { n: n.clone(), out, top, bottom })
    }

    /// True if the size of the result is the scale times the extent without rounding.
    fn even(&self) -> bool {
        self.bottom.is(1) || self.top == self.out
    }
}

fn dim(b: &mut BodyBuilder, d: &Dim) -> Ref {
    b.push(Inst::Dim(d.clone()))
}

fn real(b: &mut BodyBuilder, d: &Dim) -> Ref {
    let v = dim(b, d);
    b.cast(DType::F32, v)
}

/// The place that an element shows: `(x + before) * bottom / top + after`.
fn affine(b: &mut BodyBuilder, x: Ref, before: f64, ratio: [&Dim; 2], after: f64) -> Ref {
    let (top, bottom) = (real(b, ratio[0]), real(b, ratio[1]));
    let (before, after) = (b.num(DType::F32, before), b.num(DType::F32, after));
    let y = b.bin(BinOp::Add, x, before);
    let y = b.bin(BinOp::Mul, y, bottom);
    let y = b.bin(BinOp::Div, y, top);
    b.bin(BinOp::Add, y, after)
}

/// The places in the operand as `f32`, shaped along the axis.
fn places(cx: &mut OpCx<'_, '_>, at: Value, p: &Span, s: &Sampling) -> Result<Value> {
    let coordinates = s.coordinates.as_str();
    if matches!(coordinates, "half_pixel_symmetric" | "align_corners") && !p.even() {
        return too_symbolic("rounds the size of a symbolic extent");
    }
    let one = Dim::from(1);
    let (last_in, last_out) = (&p.n - &one, (&p.out - &one).max_with(&one));
    let scale = [&p.top, &p.bottom];
    let (before, ratio, after) = match coordinates {
        "half_pixel" | "half_pixel_symmetric" | "pytorch_half_pixel" => (0.5, scale, -0.5),
        "align_corners" => (0.0, [&last_out, &last_in], 0.0),
        "asymmetric" => (0.0, scale, 0.0),
        "tf_half_pixel_for_nn" => (0.5, scale, 0.0),
        "tf_crop_and_resize" => return too_symbolic("crops an axis of symbolic extent"),
        other => return invalid(format!("has the unknown coordinates `{other}`")),
    };
    cx.map1(at, |b, _, i| {
        let x = b.cast(DType::F32, i);
        let y = affine(b, x, before, ratio, after);
        if coordinates != "pytorch_half_pixel" {
            return y;
        }
        // A single element shows the first.
        let (out, one, zero) = (real(b, &p.out), b.num(DType::F32, 1.0), b.num(DType::F32, 0.0));
        let several = b.bin(BinOp::Gt, out, one);
        b.select(several, y, zero)
    })
}

/// The place `at`, an `f32` or an `i64`, as an index inside the axis, one after the other.
fn index(cx: &mut OpCx<'_, '_>, at: Value, p: &Span, f: impl FnOnce(&mut BodyBuilder, Ref) -> Ref) -> Result<Value> {
    let last = &p.n - &Dim::from(1);
    let index = cx.map1(at, |b, _, x| {
        let i = f(b, x);
        let i = b.cast(DType::I64, i);
        let (first, last) = (b.num(DType::I64, 0.0), dim(b, &last));
        let i = b.bin(BinOp::Min, i, last);
        b.bin(BinOp::Max, i, first)
    })?;
    cx.reshape(index, vec![p.out.clone()])
}

fn nearest(cx: &mut OpCx<'_, '_>, at: Value, p: &Span, s: &Sampling) -> Result<Value> {
    // In whole numbers, where the place may be one exactly.
    if s.coordinates == "asymmetric" && s.nearest == "floor" {
        return index(cx, at, p, |b, i| {
            let (top, bottom) = (dim(b, &p.top), dim(b, &p.bottom));
            let n = b.bin(BinOp::Mul, i, bottom);
            b.bin(BinOp::Div, n, top)
        });
    }
    let places = places(cx, at, p, s)?;
    let (shift, round) = match s.nearest.as_str() {
        "round_prefer_floor" => (-0.5, UnOp::Ceil),
        "round_prefer_ceil" => (0.5, UnOp::Floor),
        "floor" => (0.0, UnOp::Floor),
        "ceil" => (0.0, UnOp::Ceil),
        other => return invalid(format!("has the unknown rounding `{other}`")),
    };
    index(cx, places, p, |b, x| {
        let shift = b.num(DType::F32, shift);
        let x = b.bin(BinOp::Add, x, shift);
        b.un(round, x)
    })
}

/// Weight of the element `k` after the one below the place, for the share `t` between the two.
fn weight(b: &mut BodyBuilder, s: &Sampling, t: Ref, k: i64) -> Ref {
    let d = DType::F32;
    let k = b.num(d, k as f64);
    let away = b.bin(BinOp::Sub, t, k);
    let away = b.un(UnOp::Abs, away);
    let (one, two) = (b.num(d, 1.0), b.num(d, 2.0));
    if s.mode == Mode::Linear {
        return b.bin(BinOp::Sub, one, away);
    }
    // Keys 1981, by Horner's rule on either side of 1.
    let a = s.cubic_a;
    let mut polynomial = |coefficients: [f64; 4]| {
        let mut y = b.num(d, coefficients[0]);
        for c in &coefficients[1..] {
            let c = b.num(d, *c);
            y = b.bin(BinOp::Mul, y, away);
            y = b.bin(BinOp::Add, y, c);
        }
        y
    };
    let near = polynomial([a + 2.0, -(a + 3.0), 0.0, 1.0]);
    let far = polynomial([a, -5.0 * a, 8.0 * a, -4.0 * a]);
    let (inside, reached, zero) = (b.bin(BinOp::Le, away, one), b.bin(BinOp::Lt, away, two), b.num(d, 0.0));
    let far = b.select(reached, far, zero);
    b.select(inside, near, far)
}

/// The operand sampled along one axis.
pub(super) fn along(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, p: &Span, s: &Sampling) -> Result<Value> {
    if s.antialias || s.exclude_outside && s.mode == Mode::Cubic {
        return unsupported(format!("filters, or leaves elements out, along an axis of symbolic extent {}", p.n));
    }
    if !cx.assume_not_negative(&(&p.n - &Dim::from(1)), "a resampled axis is not empty") {
        return invalid("resamples an empty axis");
    }
    let rank = cx.rank(x);
    let at = cx.iota(&p.out, axis, rank)?;
    if s.mode == Mode::Nearest {
        let index = nearest(cx, at, p, s)?;
        return cx.gather(x, index, axis);
    }
    let places = places(cx, at, p, s)?;
    let d = cx.dtype(x);
    let work = if d.is_float() { d } else { DType::F32 };
    let x = cx.cast(work, x)?;
    let steps: &[i64] = if s.mode == Mode::Linear { &[0, 1] } else { &[-1, 0, 1, 2] };
    // The operands: the elements around the place, then the place.
    let mut b = Body::builder(steps.len() as u32 + 1);
    let place = Ref::Arg(steps.len() as u32);
    let below = b.un(UnOp::Floor, place);
    let share = b.bin(BinOp::Sub, place, below);
    let (mut operands, mut sum) = (Vec::new(), None);
    for (i, k) in (0..).zip(steps) {
        let index = index(cx, places, p, |b, x| {
            let (x, k) = (b.un(UnOp::Floor, x), b.num(DType::F32, *k as f64));
            b.bin(BinOp::Add, x, k)
        })?;
        operands.push(cx.gather(x, index, axis)?);
        let w = weight(&mut b, s, share, *k);
        let x = b.cast(DType::F32, Ref::Arg(i));
        let y = b.bin(BinOp::Mul, w, x);
        sum = Some(sum.map_or(y, |sum| b.bin(BinOp::Add, sum, y)));
    }
    operands.push(places);
    let Some(sum) = sum else { return invalid("has no weights") };
    let sum = b.cast(work, sum);
    let y = cx.map(b.finish(sum), &operands)?;
    cx.cast(d, y)
}
