//! Pooling.

use transc_ir::op::{self, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, too_symbolic, unsupported};
use super::spatial::Spatial;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("AveragePool", 7..=LAST, |cx| {
        let x = cx.x(0)?;
        Ok(vec![average(cx, x)?])
    }),
    row("GlobalAveragePool", 1..=LAST, |cx| {
        let (x, axes) = spatial_axes(cx)?;
        Ok(vec![cx.mean(x, &axes, true)?])
    }),
    row("GlobalLpPool", 2..=LAST, global_lp_pool),
    row("GlobalMaxPool", 1..=LAST, |cx| {
        let (x, axes) = spatial_axes(cx)?;
        Ok(vec![cx.reduce(ReduceKind::Max, x, &axes, true)?])
    }),
    row("LpPool", 2..=LAST, lp_pool),
    row("MaxPool", 1..=LAST, max_pool),
];

fn spatial_axes(cx: &OpCx<'_, '_>) -> Result<(Value, Vec<usize>)> {
    let x = cx.x(0)?;
    let rank = cx.rank(x);
    if rank < 3 { invalid(format!("needs a batch of images, got {}", cx.ty(x))) } else { Ok((x, (2..rank).collect())) }
}

/// Reads the windows. The second list is what rounding up adds to the padding after: it is covered by windows, but not counted.
fn windows(cx: &OpCx<'_, '_>, x: Value) -> Result<(Spatial, Vec<i64>)> {
    let dims = cx.dims(x);
    if dims.len() < 3 {
        return invalid(format!("needs a batch of images, got {}", cx.ty(x)));
    }
    let s = Spatial::read(cx, &dims[2..], cx.int_list("kernel_shape").unwrap_or_default())?;
    let mut rest = vec![0; s.kernel.len()];
    let auto = cx.text("auto_pad", "NOTSET")?;
    if cx.flag("ceil_mode") && matches!(auto.as_str(), "NOTSET" | "") {
        for (i, rest) in rest.iter_mut().enumerate() {
            if s.strides[i] == 1 {
                continue;
            }
            let Some(d) = dims[2 + i].as_const() else {
                // No window starts in the padding after, and one that is cut short is filled up; what no window reaches does not matter.
                if s.hi[i] + s.strides[i] <= s.reach(i) {
                    *rest = s.strides[i] - 1;
                    continue;
                }
                return too_symbolic("rounds up the extent of a pool, whose windows lie apart, over an axis of symbolic extent");
            };
            let span = d + s.lo[i] + s.hi[i] - s.reach(i);
            let mut out = (span + s.strides[i] - 1).div_euclid(s.strides[i]) + 1;
            // A window that starts in the padding after is left out.
            if (out - 1) * s.strides[i] >= d + s.lo[i] {
                out -= 1;
            }
            *rest = ((out - 1) * s.strides[i] - span).max(0);
        }
    }
    Ok((s, rest))
}

fn fold(cx: &mut OpCx<'_, '_>, kind: ReduceKind, x: Value, s: &Spatial, rest: &[i64]) -> Result<Value> {
    let hi = s.hi.iter().zip(rest).map(|(h, r)| h + r).collect();
    let (kernel, strides, dilations, lo) = (s.kernel.clone(), s.strides.clone(), s.dilations.clone(), s.lo.clone());
    let y = cx.add(op::Window { kind, kernel, strides, dilations, lo, hi }, &[x])?;
    cx.assume_not_empty(y, 2);
    Ok(y)
}

fn max_pool(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    if cx.wants(1) {
        return unsupported("gives the indices of the maxima");
    }
    let x = cx.x(0)?;
    let (s, rest) = windows(cx, x)?;
    Ok(vec![fold(cx, ReduceKind::Max, x, &s, &rest)?])
}

/// The mean over windows.
pub(super) fn average(cx: &mut OpCx<'_, '_>, x: Value) -> Result<Value> {
    let (s, rest) = windows(cx, x)?;
    let sum = fold(cx, ReduceKind::Sum, x, &s, &rest)?;
    let n = s.kernel.len();
    let whole = rest.iter().all(|r| *r == 0);
    let padded = s.lo.iter().chain(&s.hi).any(|p| *p != 0);
    let include = cx.flag("count_include_pad");
    if whole && (include || !padded) {
        let count: i64 = s.kernel.iter().product();
        return cx.bin_num(BinOp::Div, sum, count as f64);
    }
    // How many elements each window counts, by the same windows over ones.
    let mut dims = cx.dims(x);
    dims[..2].fill(Dim::from(1));
    let mut bare = Spatial { kernel: s.kernel, strides: s.strides, dilations: s.dilations, lo: s.lo, hi: s.hi };
    if include {
        for i in 0..n {
            dims[2 + i] = &dims[2 + i] + &Dim::from(bare.lo[i] + bare.hi[i]);
        }
        (bare.lo, bare.hi) = (vec![0; n], vec![0; n]);
    }
    let ones = cx.full(cx.dtype(x), 1.0, &dims)?;
    let count = fold(cx, ReduceKind::Sum, ones, &bare, &rest)?;
    cx.bin(BinOp::Div, sum, count)
}

/// `(sum |x|^p)^(1/p)` by a fold.
fn lp(
    cx: &mut OpCx<'_, '_>,
    x: Value,
    p: f64,
    sum: impl FnOnce(&mut OpCx<'_, '_>, Value) -> Result<Value>,
) -> Result<Vec<Value>> {
    let a = cx.un(UnOp::Abs, x)?;
    let a = if p == 1.0 { a } else { cx.bin_num(BinOp::Pow, a, p)? };
    let s = sum(cx, a)?;
    Ok(vec![if p == 1.0 { s } else { cx.bin_num(BinOp::Pow, s, 1.0 / p)? }])
}

fn lp_pool(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let p = cx.int("p", 2) as f64;
    let (s, rest) = windows(cx, x)?;
    lp(cx, x, p, |cx, a| fold(cx, ReduceKind::Sum, a, &s, &rest))
}

fn global_lp_pool(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, axes) = spatial_axes(cx)?;
    let p = cx.int("p", 2) as f64;
    lp(cx, x, p, |cx, a| cx.reduce(ReduceKind::Sum, a, &axes, true))
}
