//! Resampling: `Resize` and `Upsample`.
//!
//! Along an axis of known extent the result is a fixed linear map of the operand, so it is a product with a constant matrix, or a gather by a
//! constant index for nearest-neighbour sampling. Along a symbolic one the places are computed when the model runs ([`symbolic`]).

mod symbolic;

use transc_ir::op::Contract;
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, too_symbolic};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Resize", 10..=LAST, resize),
    row("Upsample", 7..=9, |cx| {
        let x = cx.x(0)?;
        let scales = match cx.attr("scales") {
            Some(a) => a.floats.iter().map(|s| f64::from(*s)).collect(),
            None => {
                let s = cx.x(1)?;
                cx.reals(s, "the scales")?
            }
        };
        old(cx, x, scales)
    }),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// How one axis is sampled.
struct Axis {
    n: i64,
    out: i64,
    scale: f64,
    /// Part of the axis that is shown, for `tf_crop_and_resize`.
    roi: (f64, f64),
}

/// How one axis is sampled: with numbers, or with dims.
enum Plan {
    Known(Axis),
    Symbolic(symbolic::Span),
}

/// The plan for a scale that is given.
fn scaled(n: &Dim, scale: f64) -> Result<Plan> {
    match n.as_const() {
        Some(n) => Ok(Plan::Known(Axis { n, out: (n as f64 * scale).floor() as i64, scale, roi: (0.0, 1.0) })),
        None => Ok(Plan::Symbolic(symbolic::Span::scaled(n, scale)?)),
    }
}

/// The attributes of the sampling.
struct Sampling {
    mode: Mode,
    coordinates: String,
    nearest: String,
    cubic_a: f64,
    exclude_outside: bool,
    antialias: bool,
}

/// Before opset 11: coordinates are divided by the scale and rounded down.
fn old(cx: &mut OpCx<'_, '_>, x: Value, scales: Vec<f64>) -> Result<Vec<Value>> {
    let s = Sampling {
        mode: mode(cx)?,
        coordinates: "asymmetric".into(),
        nearest: "floor".into(),
        cubic_a: -0.75,
        exclude_outside: false,
        antialias: false,
    };
    let dims = cx.dims(x);
    if scales.len() != dims.len() {
        return invalid(format!("has {} scales for {}", scales.len(), cx.ty(x)));
    }
    let mut y = x;
    for (i, scale) in scales.into_iter().enumerate() {
        if scale == 1.0 {
            continue;
        }
        y = match scaled(&dims[i], scale)? {
            Plan::Known(p) => along(cx, y, i, &p, &s)?,
            Plan::Symbolic(p) => symbolic::along(cx, y, i, &p, &s)?,
        };
    }
    Ok(vec![y])
}

fn fixed(d: &Dim) -> Result<i64> {
    match d.as_const() {
        Some(n) => Ok(n),
        None => too_symbolic(format!("resamples an axis of symbolic extent {d}")),
    }
}

fn mode(cx: &OpCx<'_, '_>) -> Result<Mode> {
    Ok(match cx.text("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic,
        other => return invalid(format!("has the unknown mode `{other}`")),
    })
}

fn resize(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    if cx.opset == 10 {
        let s = cx.x(1)?;
        let scales = cx.reals(s, "the scales")?;
        return old(cx, x, scales);
    }
    let s = Sampling {
        mode: mode(cx)?,
        coordinates: cx.text("coordinate_transformation_mode", "half_pixel")?,
        nearest: cx.text("nearest_mode", "round_prefer_floor")?,
        cubic_a: cx.real("cubic_coeff_a", -0.75),
        exclude_outside: cx.flag("exclude_outside"),
        antialias: cx.flag("antialias"),
    };
    let dims = cx.dims(x);
    let axes = match cx.int_list("axes") {
        Some(a) => a.iter().map(|a| cx.axis(*a, dims.len())).collect::<Result<Vec<_>>>()?,
        None => (0..dims.len()).collect(),
    };
    let given = |cx: &OpCx<'_, '_>, i: usize| cx.opt(i).filter(|v| cx.dims(*v) != [Dim::from(0)]);
    let crop = s.coordinates == "tf_crop_and_resize";
    let roi = match given(cx, 1).filter(|_| crop) {
        Some(r) => cx.reals(r, "the region")?,
        None => Vec::new(),
    };
    if crop && roi.len() != 2 * axes.len() {
        return invalid("needs a region with a start and an end per axis");
    }
    let plans: Vec<Option<Plan>> = match (given(cx, 2), given(cx, 3)) {
        (Some(scales), _) => {
            let scales = cx.reals(scales, "the scales")?;
            if scales.len() != axes.len() || scales.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
                return invalid(format!("has the scales {scales:?} for {} axes", axes.len()));
            }
            let mut plans = Vec::new();
            for (i, a) in axes.iter().enumerate() {
                plans.push(if scales[i] == 1.0 && !crop { None } else { Some(scaled(&dims[*a], scales[i])?) });
            }
            plans
        }
        (None, Some(sizes)) => by_sizes(cx, sizes, &dims, &axes)?,
        (None, None) => return invalid("has neither scales nor sizes"),
    };
    let mut y = x;
    let mut outside = Vec::new();
    for (i, plan) in plans.into_iter().enumerate() {
        let mut plan = match plan {
            Some(Plan::Known(p)) => p,
            Some(Plan::Symbolic(p)) => {
                y = symbolic::along(cx, y, axes[i], &p, &s)?;
                continue;
            }
            None => continue,
        };
        if crop {
            plan.roi = (roi[i], roi[axes.len() + i]);
            outside.push((axes[i], outside_of(&plan)));
        } else if plan.n == plan.out && plan.scale == 1.0 {
            continue;
        }
        y = along(cx, y, axes[i], &plan, &s)?;
    }
    let fill = cx.real("extrapolation_value", 0.0);
    for (axis, hidden) in outside {
        if hidden.iter().any(|h| *h) {
            let mut shape = vec![1; dims.len()];
            shape[axis] = hidden.len();
            let mask = cx.table(transc_ir::DType::Bool, &shape, hidden.into_iter().map(|h| f64::from(u8::from(h))))?;
            let fill = cx.num(cx.dtype(y), fill)?;
            y = cx.select(mask, fill, y)?;
        }
    }
    Ok(vec![y])
}

fn by_sizes(cx: &mut OpCx<'_, '_>, sizes: Value, dims: &[Dim], axes: &[usize]) -> Result<Vec<Option<Plan>>> {
    let sizes = cx.extents(sizes, "the sizes")?;
    if sizes.len() != axes.len() {
        return invalid(format!("has {} sizes for {} axes", sizes.len(), axes.len()));
    }
    let policy = cx.text("keep_aspect_ratio_policy", "stretch")?;
    let mut plans = Vec::new();
    for (a, size) in axes.iter().zip(&sizes) {
        plans.push(if dims[*a] == *size {
            None
        } else if let (Some(n), Some(out)) = (dims[*a].as_const(), size.as_const()) {
            if n <= 0 || out < 0 {
                return invalid(format!("resamples {n} elements to {out}"));
            }
            Some(Plan::Known(Axis { n, out, scale: out as f64 / n as f64, roi: (0.0, 1.0) }))
        } else {
            Some(Plan::Symbolic(symbolic::Span::sized(&dims[*a], size)))
        });
    }
    if policy == "stretch" {
        return Ok(plans);
    }
    let mut all = Vec::new();
    for (plan, a) in plans.into_iter().zip(axes) {
        all.push(match plan {
            Some(Plan::Known(p)) => p,
            Some(Plan::Symbolic(_)) => return too_symbolic("keeps the aspect ratio of symbolic extents"),
            None => {
                let n = fixed(&dims[*a])?;
                Axis { n, out: n, scale: 1.0, roi: (0.0, 1.0) }
            }
        });
    }
    let scales = all.iter().map(|p| p.scale);
    let scale = match policy.as_str() {
        "not_larger" => scales.fold(f64::INFINITY, f64::min),
        "not_smaller" => scales.fold(0.0, f64::max),
        other => return invalid(format!("has the unknown policy `{other}`")),
    };
    for p in &mut all {
        (p.scale, p.out) = (scale, (scale * p.n as f64 + 0.5).floor() as i64);
    }
    Ok(all.into_iter().map(|p| Some(Plan::Known(p))).collect())
}

/// The place in the operand that element `i` of the result shows.
fn source(p: &Axis, coordinates: &str, i: i64) -> Result<f64> {
    // Fractional where scales are given: the standard rounds the size of the result only.
    let (n, out, x) = (p.n as f64, p.scale * p.n as f64, i as f64);
    Ok(match coordinates {
        "half_pixel" => (x + 0.5) / p.scale - 0.5,
        "half_pixel_symmetric" => {
            // The sampled points are centred even if the size was rounded.
            let adjustment = p.out as f64 / out;
            n / 2.0 * (1.0 - adjustment) + (x + 0.5) / p.scale - 0.5
        }
        "pytorch_half_pixel" => {
            if p.out > 1 {
                (x + 0.5) / p.scale - 0.5
            } else {
                0.0
            }
        }
        "align_corners" => {
            if p.out > 1 {
                x * (n - 1.0) / (out - 1.0)
            } else {
                0.0
            }
        }
        "asymmetric" => x / p.scale,
        "tf_half_pixel_for_nn" => (x + 0.5) / p.scale,
        "tf_crop_and_resize" => crop_source(p, i),
        other => return invalid(format!("has the unknown coordinates `{other}`")),
    })
}

fn crop_source(p: &Axis, i: i64) -> f64 {
    let last = (p.n - 1) as f64;
    if p.out > 1 {
        p.roi.0 * last + i as f64 * (p.roi.1 - p.roi.0) * last / (p.scale * p.n as f64 - 1.0)
    } else {
        0.5 * (p.roi.0 + p.roi.1) * last
    }
}

fn outside_of(p: &Axis) -> Vec<bool> {
    (0..p.out).map(|i| crop_source(p, i)).map(|x| x < 0.0 || x > (p.n - 1) as f64).collect()
}

fn along(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, p: &Axis, s: &Sampling) -> Result<Value> {
    if p.n <= 0 || p.out < 0 || p.out.saturating_mul(p.n) > cx.imp.options.limits.fold_elements as i64 {
        return super::super::error::limit(format!("resamples {} elements to {}", p.n, p.out));
    }
    let points = (0..p.out).map(|i| source(p, &s.coordinates, i)).collect::<Result<Vec<_>>>()?;
    if s.mode == Mode::Nearest {
        let mut index = Vec::new();
        for x in points {
            let i = match s.nearest.as_str() {
                "round_prefer_floor" => (x - 0.5).ceil(),
                "round_prefer_ceil" => (x + 0.5).floor(),
                "floor" => x.floor(),
                "ceil" => x.ceil(),
                other => return invalid(format!("has the unknown rounding `{other}`")),
            };
            index.push((i as i64).clamp(0, p.n - 1));
        }
        let index = cx.int_table(&[index.len()], index)?;
        return cx.gather(x, index, axis);
    }
    let n = p.n as usize;
    let mut matrix = vec![0.0; n * points.len()];
    for (row, x) in points.into_iter().enumerate() {
        let (first, weights) = weights(x, p.scale, s);
        for (k, w) in weights.into_iter().enumerate() {
            let at = first + k as i64;
            if !s.exclude_outside || (0..p.n).contains(&at) {
                matrix[row * n + at.clamp(0, p.n - 1) as usize] += w;
            }
        }
        if s.exclude_outside {
            let sum: f64 = matrix[row * n..(row + 1) * n].iter().sum();
            matrix[row * n..(row + 1) * n].iter_mut().for_each(|w| *w /= sum);
        }
    }
    let d = cx.dtype(x);
    let work = if d.is_float() { d } else { transc_ir::DType::F32 };
    let m = cx.table(work, &[p.out as usize, n], matrix)?;
    let x = cx.cast(work, x)?;
    let rank = cx.rank(x) as u8;
    let lhs: Vec<u8> = (0..rank).collect();
    let mut out = lhs.clone();
    out[axis] = rank;
    let y = cx.add(Contract { lhs, rhs: vec![rank, axis as u8], out, out_dtype: work }, &[x, m])?;
    cx.cast(d, y)
}

/// The first sampled index and the weights of the following ones. With `antialias` the kernel widens where the result is smaller.
fn weights(x: f64, scale: f64, s: &Sampling) -> (i64, Vec<f64>) {
    let base = x.floor();
    let ratio = x - base;
    let squeeze = if s.antialias { scale.min(1.0) } else { 1.0 };
    let reach = if s.mode == Mode::Linear { 1.0 } else { 2.0 };
    let first = (-reach / squeeze).floor() as i64 + 1;
    let kernel = |t: f64| if s.mode == Mode::Linear { (1.0 - t.abs()).max(0.0) } else { cubic(t.abs(), s.cubic_a) };
    let mut w: Vec<f64> = (first..=1 - first).map(|i| kernel((i as f64 - ratio) * squeeze)).collect();
    if s.antialias {
        let sum: f64 = w.iter().sum();
        w.iter_mut().for_each(|v| *v /= sum);
    }
    (base as i64 + first, w)
}

/// Keys 1981, with parameter `a`.
fn cubic(t: f64, a: f64) -> f64 {
    if t <= 1.0 {
        ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a
    } else {
        0.0
    }
}
