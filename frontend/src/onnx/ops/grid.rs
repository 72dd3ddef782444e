//! Sampling at computed places: `GridSample`, `AffineGrid`, `Col2Im`.

use transc_ir::op::{self, Contract, ScatterKind};
use transc_ir::scalar::{BinOp, BodyBuilder, Inst, Ref, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, limit, unsupported};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] =
    &[row("AffineGrid", 20..=LAST, affine_grid), row("Col2Im", 18..=LAST, col2im), row("GridSample", 16..=LAST, grid_sample)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// One sampled neighbour along one axis: its index and its weight, both `[N, Q]`.
#[derive(Clone, Copy)]
struct Tap {
    index: Value,
    weight: Option<Value>,
}

/// `x` as a scalar of a body.
fn dim(b: &mut BodyBuilder, d: DType, n: &Dim) -> Ref {
    let n = b.push(Inst::Dim(n.clone()));
    b.cast(d, n)
}

/// A coordinate mirrored at both ends of `[-edge, n - 1 + edge]` as often as needed.
fn reflect(b: &mut BodyBuilder, d: DType, x: Ref, n: &Dim, edge: f64) -> Ref {
    let (lo, n) = (b.num(d, -edge), dim(b, d, n));
    let (one, twice) = (b.num(d, 1.0), b.num(d, 2.0 * edge));
    let span = b.bin(BinOp::Sub, n, one);
    let span = b.bin(BinOp::Add, span, twice);
    let period = b.bin(BinOp::Add, span, span);
    let t = b.bin(BinOp::Sub, x, lo);
    let t = b.bin(BinOp::Mod, t, period);
    let back = b.bin(BinOp::Sub, period, t);
    let t = b.bin(BinOp::Min, t, back);
    b.bin(BinOp::Add, t, lo)
}

fn clamp(b: &mut BodyBuilder, d: DType, x: Ref, n: &Dim) -> Ref {
    let (zero, one, n) = (b.num(d, 0.0), b.num(d, 1.0), dim(b, d, n));
    let last = b.bin(BinOp::Sub, n, one);
    let x = b.bin(BinOp::Max, x, zero);
    b.bin(BinOp::Min, x, last)
}

/// Keys 1981 with a = -0.75, the weight of the neighbour at signed distance `t`.
fn cubic(b: &mut BodyBuilder, d: DType, t: Ref) -> Ref {
    const A: f64 = -0.75;
    let t = b.un(UnOp::Abs, t);
    let poly = |b: &mut BodyBuilder, c: [f64; 4]| {
        let mut acc = b.num(d, c[0]);
        for k in &c[1..] {
            let k = b.num(d, *k);
            acc = b.bin(BinOp::Mul, acc, t);
            acc = b.bin(BinOp::Add, acc, k);
        }
        acc
    };
    let near = poly(b, [A + 2.0, -(A + 3.0), 0.0, 1.0]);
    let far = poly(b, [A, -5.0 * A, 8.0 * A, -4.0 * A]);
    let one = b.num(d, 1.0);
    let inside = b.bin(BinOp::Le, t, one);
    b.select(inside, near, far)
}

struct Sampling {
    mode: Mode,
    padding: Padding,
    /// Distance from the outermost pixel centres to the edges of the image.
    edge: f64,
}

/// The neighbours that are sampled along an axis of extent `n` at coordinates in `-1..1`.
fn taps(cx: &mut OpCx<'_, '_>, coordinate: Value, n: &Dim, s: &Sampling) -> Result<Vec<Tap>> {
    let x = cx.map1(coordinate, |b, d, x| {
        let (one, half, n) = (b.num(d, 1.0), b.num(d, 0.5), dim(b, d, n));
        let x = b.bin(BinOp::Add, x, one);
        if s.edge == 0.0 {
            let last = b.bin(BinOp::Sub, n, one);
            let x = b.bin(BinOp::Mul, x, last);
            b.bin(BinOp::Mul, x, half)
        } else {
            let x = b.bin(BinOp::Mul, x, n);
            let x = b.bin(BinOp::Sub, x, one);
            b.bin(BinOp::Mul, x, half)
        }
    })?;
    let x = if s.mode == Mode::Nearest { cx.un(UnOp::Round, x)? } else { x };
    let x = match s.padding {
        Padding::Zeros => x,
        Padding::Border => cx.map1(x, |b, d, x| clamp(b, d, x, n))?,
        Padding::Reflection => cx.map1(x, |b, d, x| reflect(b, d, x, n, s.edge))?,
    };
    let offsets = match s.mode {
        Mode::Nearest => 0..=0,
        Mode::Linear => 0..=1,
        Mode::Cubic => -1..=2,
    };
    let mut out = Vec::new();
    for o in offsets {
        let at = cx.map1(x, |b, d, x| {
            let (base, o) = (b.un(UnOp::Floor, x), b.num(d, f64::from(o)));
            b.bin(BinOp::Add, base, o)
        })?;
        let mut weight = match s.mode {
            Mode::Nearest => None,
            Mode::Linear => Some(cx.map2(x, at, |b, d, x, at| {
                let (t, one) = (b.bin(BinOp::Sub, x, at), b.num(d, 1.0));
                let t = b.un(UnOp::Abs, t);
                b.bin(BinOp::Sub, one, t)
            })?),
            Mode::Cubic => Some(cx.map2(x, at, |b, d, x, at| {
                let t = b.bin(BinOp::Sub, x, at);
                cubic(b, d, t)
            })?),
        };
        if s.padding == Padding::Zeros {
            let inside = cx.map1(at, |b, d, at| {
                let c = clamp(b, d, at, n);
                let same = b.bin(BinOp::Eq, c, at);
                b.cast(d, same)
            })?;
            weight = Some(match weight {
                Some(w) => cx.bin(BinOp::Mul, w, inside)?,
                None => inside,
            });
        }
        let index = cx.map1(at, |b, d, at| {
            let at = if s.padding == Padding::Reflection { reflect(b, d, at, n, s.edge) } else { at };
            let at = clamp(b, d, at, n);
            b.cast(DType::I64, at)
        })?;
        out.push(Tap { index, weight });
    }
    Ok(out)
}

/// `X[N, C, D..]` at the places `grid[N, Q.., k]`: coordinates in `-1..1`, the last axis of the image first.
fn grid_sample(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, grid) = (cx.x(0)?, cx.x(1)?);
    let (dx, dg) = (cx.dims(x), cx.dims(grid));
    let k = dx.len().saturating_sub(2);
    if k == 0 || dg.len() != dx.len() || !dg[k + 1].is(k as i64) {
        return invalid(format!("cannot sample {} at {}", cx.ty(x), cx.ty(grid)));
    }
    cx.equal(&dx[0], &dg[0])?;
    let mode = match cx.text("mode", "linear")?.as_str() {
        "linear" | "bilinear" => Mode::Linear,
        "nearest" => Mode::Nearest,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return invalid(format!("has the unknown mode `{other}`")),
    };
    if mode == Mode::Cubic && k > 2 {
        return unsupported("samples volumes by cubic interpolation");
    }
    let padding = match cx.text("padding_mode", "zeros")?.as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return invalid(format!("has the unknown padding `{other}`")),
    };
    let s = Sampling { mode, padding, edge: if cx.flag("align_corners") { 0.0 } else { 0.5 } };
    let count = |d: &[Dim]| d.iter().product::<Dim>();
    let (points, pixels) = (count(&dg[1..=k]), count(&dx[2..]));
    let flat = cx.reshape(grid, vec![dg[0].clone(), points.clone(), dg[k + 1].clone()])?;
    let flat = cx.cast(cx.dtype(x), flat)?;
    // The pixels of an image, each with its channels.
    let image = cx.reshape(x, vec![dx[0].clone(), dx[1].clone(), pixels])?;
    let image = cx.transpose(image, &[0, 2, 1])?;
    // All combinations of neighbours along the axes, as one index into the pixels.
    let mut all: Vec<Tap> = Vec::new();
    for axis in 0..k {
        let c = cx.slice(flat, 2, &Dim::from(k - 1 - axis), &Dim::from(1), 1)?;
        let c = cx.reshape(c, vec![dg[0].clone(), points.clone()])?;
        let next = taps(cx, c, &dx[2 + axis], &s)?;
        if axis == 0 {
            all = next;
            continue;
        }
        let mut joined = Vec::new();
        for a in &all {
            for b in &next {
                let index = cx.map2(a.index, b.index, |f, _, i, j| {
                    let n = f.push(Inst::Dim(dx[2 + axis].clone()));
                    let row = f.bin(BinOp::Mul, i, n);
                    f.bin(BinOp::Add, row, j)
                })?;
                let weight = match (a.weight, b.weight) {
                    (Some(v), Some(w)) => Some(cx.bin(BinOp::Mul, v, w)?),
                    (v, w) => v.or(w),
                };
                joined.push(Tap { index, weight });
            }
        }
        all = joined;
    }
    let mut sum: Option<Value> = None;
    for t in all {
        let index = cx.reshape(t.index, vec![dg[0].clone(), points.clone(), Dim::from(1)])?;
        let mut v = cx.add(op::GatherNd { batch_dims: 1 }, &[image, index])?;
        if let Some(w) = t.weight {
            let w = cx.reshape(w, vec![dg[0].clone(), points.clone(), Dim::from(1)])?;
            v = cx.bin(BinOp::Mul, v, w)?;
        }
        sum = Some(match sum {
            Some(s) => cx.bin(BinOp::Add, s, v)?,
            None => v,
        });
    }
    let Some(y) = sum else { return invalid("samples nothing") };
    let y = cx.transpose(y, &[0, 2, 1])?;
    let mut dims = vec![dx[0].clone(), dx[1].clone()];
    dims.extend_from_slice(&dg[1..=k]);
    Ok(vec![cx.reshape(y, dims)?])
}

/// The coordinates of an image's pixels under an affine map `theta[N, k, k + 1]`.
fn affine_grid(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (theta, size) = (cx.x(0)?, cx.x(1)?);
    let size = cx.ints(size, "the size")?;
    let k = size.len().saturating_sub(2);
    let dims = cx.dims(theta);
    if !(2..=3).contains(&k) || dims.len() != 3 || !dims[1].is(k as i64) || !dims[2].is(k as i64 + 1) {
        return invalid(format!("cannot make a grid of size {size:?} by {}", cx.ty(theta)));
    }
    let spatial = &size[2..];
    let total = spatial
        .iter()
        .try_fold(1i64, |n, d| n.checked_mul(*d))
        .filter(|n| (0..=cx.imp.options.limits.fold_elements as i64).contains(n));
    let Some(total) = total else { return limit(format!("makes a grid of size {size:?}")) };
    let corners = cx.flag("align_corners");
    let at = |i: i64, n: i64| {
        if corners {
            if n > 1 { -1.0 + 2.0 * i as f64 / (n - 1) as f64 } else { 0.0 }
        } else {
            (2 * i + 1) as f64 / n as f64 - 1.0
        }
    };
    let mut table = Vec::new();
    for p in 0..total {
        let mut rest = p;
        // The last axis is the first coordinate, which is also the fastest.
        for n in spatial.iter().rev() {
            table.push(at(rest % n, *n));
            rest /= n;
        }
        table.push(1.0);
    }
    let d = cx.dtype(theta);
    let base = cx.table(d, &[total as usize, k + 1], table)?;
    let y = cx.add(Contract { lhs: vec![0, 1, 2], rhs: vec![3, 2], out: vec![0, 3, 1], out_dtype: d }, &[theta, base])?;
    let mut shape = vec![dims[0].clone()];
    shape.extend(spatial.iter().map(|n| Dim::from(*n)));
    shape.push(Dim::from(k));
    Ok(vec![cx.reshape(y, shape)?])
}

/// Adds the columns of blocks back at their places in an image.
fn col2im(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, image, block) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let (image, block) = (cx.ints(image, "the shape of the image")?, cx.ints(block, "the shape of a block")?);
    let k = image.len();
    if k == 0 || block.len() != k || cx.rank(x) != 3 || image.iter().chain(&block).any(|v| *v <= 0) {
        return invalid(format!("cannot join {} to an image of {image:?} from blocks of {block:?}", cx.ty(x)));
    }
    let (strides, dilations) = (cx.int_list_of("strides", k, 1)?, cx.int_list_of("dilations", k, 1)?);
    let pads = cx.int_list_of("pads", 2 * k, 0)?;
    if strides.iter().chain(&dilations).any(|v| *v <= 0) || pads.iter().any(|p| *p < 0) {
        return invalid("needs positive strides and dilations, and no negative padding");
    }
    let padded: Vec<i64> = (0..k).map(|i| image[i] + pads[i] + pads[k + i]).collect();
    let places: Vec<i64> = (0..k).map(|i| (padded[i] - dilations[i] * (block[i] - 1) - 1).div_euclid(strides[i]) + 1).collect();
    let count = |v: &[i64]| v.iter().try_fold(1i64, |n, d| n.checked_mul(*d));
    let max = cx.imp.options.limits.fold_elements as i64;
    let (Some(cells), Some(positions), Some(size)) = (count(&block), count(&places), count(&padded)) else {
        return limit("has too many elements");
    };
    if places.iter().any(|p| *p <= 0) || cells.saturating_mul(positions) > max || size > max {
        return limit(format!("joins {cells} x {positions} elements to an image of {size}"));
    }
    let mut index = Vec::new();
    for c in 0..cells {
        for p in 0..positions {
            let (mut c, mut p, mut at, mut step) = (c, p, 0, 1);
            for i in (0..k).rev() {
                at += step * (p % places[i] * strides[i] + c % block[i] * dilations[i]);
                (c, p, step) = (c / block[i], p / places[i], step * padded[i]);
            }
            index.push(at);
        }
    }
    let dims = cx.dims(x);
    let Some(channels) = dims[1].exact_div(&Dim::from(cells)) else {
        return invalid(format!("{} does not hold blocks of {cells} elements", cx.ty(x)));
    };
    cx.equal(&dims[2], &Dim::from(positions))?;
    let columns = vec![dims[0].clone(), channels.clone(), Dim::from(cells * positions)];
    let updates = cx.reshape(x, columns.clone())?;
    let index = cx.int_table(&[index.len()], index)?;
    let index = cx.broadcast(index, &columns)?;
    let empty = cx.full(cx.dtype(x), 0.0, &[dims[0].clone(), channels.clone(), Dim::from(size)])?;
    let y = cx.add(op::ScatterElements { axis: 2, kind: ScatterKind::Add }, &[empty, index, updates])?;
    let mut shape = vec![dims[0].clone(), channels];
    shape.extend(padded.iter().map(|n| Dim::from(*n)));
    let mut y = cx.reshape(y, shape)?;
    for i in 0..k {
        y = cx.slice(y, 2 + i, &Dim::from(pads[i]), &Dim::from(image[i]), 1)?;
    }
    Ok(vec![y])
}
