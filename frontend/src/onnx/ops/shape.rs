//! Operators that move elements without computing: reshapes, slices, joins, padding.

use transc_ir::op::{self, PadMode};
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{OpError, Result, invalid, limit, too_symbolic};
use super::super::slicing;
use super::super::unify::mentions;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("CenterCropPad", 18..=LAST, center_crop_pad),
    row("Concat", 4..=LAST, concat),
    row("DepthToSpace", 1..=LAST, depth_to_space),
    row("Expand", 8..=LAST, expand),
    row("Flatten", 1..=LAST, flatten),
    row("Pad", 2..=LAST, pad),
    row("Reshape", 5..=LAST, reshape),
    row("Slice", 1..=LAST, slice),
    row("SpaceToDepth", 1..=LAST, space_to_depth),
    row("Split", 2..=LAST, split),
    row("Squeeze", 1..=LAST, squeeze),
    row("Tile", 6..=LAST, tile),
    row("Transpose", 1..=LAST, transpose),
    row("Trilu", 14..=LAST, trilu),
    row("Unsqueeze", 1..=LAST, unsqueeze),
];

/// A list that is an attribute before version `since` and operand `i` from then on.
fn list(cx: &mut OpCx<'_, '_>, name: &str, i: usize, since: i64) -> Result<Option<Vec<i64>>> {
    if cx.opset < since {
        return Ok(cx.int_list(name));
    }
    match cx.opt(i) {
        Some(v) => cx.ints(v, &format!("the list of {name}")).map(Some),
        None => Ok(None),
    }
}

fn check_rank(cx: &OpCx<'_, '_>, rank: usize) -> Result<()> {
    let max = cx.imp.options.limits.rank;
    if rank > max { limit(format!("gives a tensor of {rank} axes, the limit is {max}")) } else { Ok(()) }
}

fn reshape(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, shape) = (cx.x(0)?, cx.x(1)?);
    let shape_type = cx.ty(shape);
    if let [n] = shape_type.dims.as_slice()
        && let Some(n) = n.as_usize()
    {
        check_rank(cx, n)?;
    }
    let shape = cx.extents(shape, "the shape")?;
    let from = cx.dims(x);
    let keep_zero = cx.flag("allowzero");
    let mut free = None;
    let mut dims = Vec::with_capacity(shape.len());
    for (i, d) in shape.iter().enumerate() {
        dims.push(match d.as_const() {
            Some(0) if !keep_zero => match from.get(i) {
                Some(d) => d.clone(),
                None => return invalid(format!("the shape copies axis {i} of a tensor of {} axes", from.len())),
            },
            Some(-1) if free.replace(i).is_some() => return invalid("the shape has more than one -1; at most one is allowed"),
            Some(-1) => Dim::from(1),
            Some(n) if n < 0 => return invalid(format!("the shape has the negative dimension {n}")),
            _ => d.clone(),
        });
    }
    let count = |dims: &[Dim]| dims.iter().product::<Dim>();
    if let Some(i) = free {
        dims[i] = quotient(cx, &from, (&dims, i), &count(&from), &count(&dims))?;
    }
    if count(&from) != count(&dims) {
        if count(&from).as_const().is_none() || count(&dims).as_const().is_none() {
            cx.equal_counts(&from, &dims)?;
        }
        return Err(cx.mismatch(x, &dims));
    }
    Ok(vec![cx.reshape(x, dims)?])
}

/// The extent that -1, in place `free`, stands for: the element count by the product of the others.
fn quotient(cx: &mut OpCx<'_, '_>, from: &[Dim], (others, free): (&[Dim], usize), count: &Dim, known: &Dim) -> Result<Dim> {
    if let Some(q) = count.exact_div(known) {
        return Ok(q);
    }
    if known.is(0) {
        return invalid("the shape has -1 beside a dimension of 0, which leaves it undefined");
    }
    // Divide axis by axis: `floordiv` of a product hides factors that cancel.
    let mut top = from.to_vec();
    let mut bottom = Vec::new();
    for d in others {
        match top.iter().position(|t| t == d) {
            Some(i) => {
                top.remove(i);
            }
            None => bottom.push(d.clone()),
        }
    }
    let product = |v: &[Dim]| v.iter().product::<Dim>();
    let (top, bottom) = (product(&top), product(&bottom));
    if let Some(q) = top.exact_div(&bottom) {
        return Ok(q);
    }
    // A batch or length that comes from another input: the one at the same end of the operand, which is checked when the model runs.
    for (i, d) in others.iter().enumerate().filter(|(_, d)| d.as_symbol().is_some() && !from.contains(d)) {
        let place = if i < free { Some(i) } else { (from.len() + i).checked_sub(others.len()) };
        if let Some(same) = place.and_then(|p| from.get(p)).filter(|s| s.as_symbol().is_some()) {
            cx.equal(same, d)?;
        }
    }
    // An extent in chunks that is asked for as a whole.
    for (d, symbol) in others.iter().filter(|d| !from.contains(d)).filter_map(|d| Some((d, d.as_symbol()?))) {
        if let Some(same) = from.iter().find(|s| mentions(s, symbol)) {
            cx.equal(same, d)?;
        }
    }
    cx.divisible(&top, &bottom)
}

fn flatten(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    let axis = cx.int("axis", 1);
    let axis = if axis == dims.len() as i64 { dims.len() } else { cx.axis(axis, dims.len())? };
    let count = |dims: &[Dim]| dims.iter().product::<Dim>();
    Ok(vec![cx.reshape(x, vec![count(&dims[..axis]), count(&dims[axis..])])?])
}

fn squeeze(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    let axes = match list(cx, "axes", 1, 13)? {
        Some(a) => cx.axes(&a, dims.len())?,
        None => (0..dims.len()).filter(|i| dims[*i].is(1)).collect(),
    };
    for a in &axes {
        cx.equal(&dims[*a], &Dim::from(1))?;
        if !dims[*a].is(1) {
            return invalid(format!("removes axis {a} of {}, which does not have extent 1", cx.ty(x)));
        }
    }
    let kept: Vec<Dim> = dims.into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect();
    Ok(vec![cx.reshape(x, kept)?])
}

fn unsqueeze(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let Some(axes) = list(cx, "axes", 1, 13)? else { return invalid("the list of axes is missing") };
    let rank = cx.rank(x) + axes.len();
    check_rank(cx, rank)?;
    let axes = cx.axes(&axes, rank)?;
    let mut dims = cx.dims(x);
    for a in axes {
        dims.insert(a, Dim::from(1));
    }
    Ok(vec![cx.reshape(x, dims)?])
}

fn transpose(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let rank = cx.rank(x);
    let perm: Vec<usize> = match cx.int_list("perm").filter(|p| !p.is_empty()) {
        Some(p) => p.iter().map(|a| cx.axis(*a, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    Ok(vec![cx.transpose(x, &perm)?])
}

fn concat(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let parts = cx.all()?;
    let axis = cx.axis(cx.int("axis", 1), cx.rank(parts[0]))?;
    Ok(vec![cx.concat(&parts, axis)?])
}

fn split(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    let extent = cx.dims(x)[axis].clone();
    let n = cx.node.output.len();
    let given = if cx.opset < 13 {
        cx.int_list("split").map(|v| v.into_iter().map(Dim::from).collect::<Vec<_>>())
    } else {
        match cx.opt(1) {
            Some(v) => Some(cx.extents(v, "the list of parts")?),
            None => None,
        }
    };
    let sizes = match given {
        Some(s) if s.len() != n => return invalid(format!("gives {n} results, but {} parts", s.len())),
        Some(s) => s,
        None => {
            let parts = cx.int("num_outputs", n as i64);
            if parts <= 0 || parts as usize != n {
                return invalid(format!("gives {n} results, but {parts} parts; the number of parts must be positive"));
            }
            let (n, last) = (Dim::from(n), Dim::from(n - 1));
            let size = extent.ceil_div(&n);
            let rest = &extent - &(&size * &last);
            (0..parts).map(|i| if i + 1 == parts { rest.clone() } else { size.clone() }).collect()
        }
    };
    parts(cx, x, axis, &sizes)
}

/// Parts of `x` that stand one behind the other along an axis and fill it.
pub(super) fn parts(cx: &mut OpCx<'_, '_>, x: Value, axis: usize, sizes: &[Dim]) -> Result<Vec<Value>> {
    let extent = cx.dims(x)[axis].clone();
    if sizes.iter().any(|s| s.as_const().is_some_and(|c| c < 0)) {
        return invalid("has a part of negative size");
    }
    let total = sizes.iter().fold(Dim::from(0), |n, d| &n + d);
    cx.equal(&total, &extent)?;
    if total != extent {
        return invalid(format!("has parts that add up to {total}, the axis has {extent}"));
    }
    let mut start = Dim::from(0);
    let mut out = Vec::new();
    for s in sizes {
        out.push(cx.slice(x, axis, &start, s, 1)?);
        start = &start + s;
    }
    Ok(out)
}

fn slice(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut x = cx.x(0)?;
    let rank = cx.rank(x);
    let from_ints = |v: Vec<i64>| v.into_iter().map(Dim::from).collect::<Vec<_>>();
    let (starts, ends, axes, steps) = if cx.opset < 10 {
        let starts = from_ints(cx.int_list("starts").unwrap_or_default());
        (starts, from_ints(cx.int_list("ends").unwrap_or_default()), cx.int_list("axes"), None)
    } else {
        let (starts, ends) = (cx.x(1)?, cx.x(2)?);
        let (starts, ends) = (cx.extents(starts, "the start of the slice")?, cx.extents(ends, "the end of the slice")?);
        let axes = match cx.opt(3) {
            Some(v) => Some(cx.ints(v, "the list of axes")?),
            None => None,
        };
        let steps = match cx.opt(4) {
            Some(v) => Some(cx.ints(v, "the steps of the slice")?),
            None => None,
        };
        (starts, ends, axes, steps)
    };
    let n = starts.len();
    let axes = axes.unwrap_or_else(|| (0..n as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; n]);
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return invalid("needs as many starts as ends, axes and steps");
    }
    let axes = axes.iter().map(|a| cx.axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    for (i, a) in axes.iter().enumerate() {
        if axes[..i].contains(a) {
            return invalid(format!("slices axis {a} twice"));
        }
    }
    for i in 0..n {
        let extent = cx.dims(x)[axes[i]].clone();
        let (start, size) = slicing::range(cx, &extent, &starts[i], &ends[i], steps[i])?;
        x = cx.slice(x, axes[i], &start, &size, steps[i])?;
    }
    Ok(vec![x])
}

fn pad(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let rank = cx.rank(x);
    let (pads, axes, value) = if cx.opset < 11 {
        let pads = cx.int_list("pads").unwrap_or_default().into_iter().map(Dim::from).collect();
        let value = cx.real("value", 0.0);
        (pads, None, cx.num(cx.dtype(x), value)?)
    } else {
        let pads = cx.x(1)?;
        let pads = cx.extents(pads, "the amount of padding")?;
        let axes = match cx.opt(3) {
            Some(a) => Some(cx.ints(a, "the list of axes")?),
            None => None,
        };
        let value = match cx.opt(2) {
            Some(v) => cx.reshape(v, Vec::new())?,
            None => cx.num(cx.dtype(x), 0.0)?,
        };
        (pads, axes, value)
    };
    let axes = match axes {
        Some(a) => a.iter().map(|a| cx.axis(*a, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return invalid(format!("needs {} amounts of padding, has {}", 2 * axes.len(), pads.len()));
    }
    let zero = Dim::from(0);
    let (mut lo, mut hi) = (vec![zero.clone(); rank], vec![zero.clone(); rank]);
    for (i, a) in axes.iter().enumerate() {
        (lo[*a], hi[*a]) = (pads[i].clone(), pads[axes.len() + i].clone());
    }
    let mode = match cx.text("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return invalid(format!("has the unknown mode `{other}`")),
    };
    let mut x = x;
    for a in 0..rank {
        // A negative amount crops.
        let crop = |d: &Dim| d.as_const().filter(|c| *c < 0).map_or(0, |c| -c);
        let (front, back) = (crop(&lo[a]), crop(&hi[a]));
        if front + back > 0 {
            let size = &cx.dims(x)[a] - &Dim::from(front + back);
            if size.as_const().is_some_and(|s| s < 0) {
                return invalid(format!("crops more of axis {a} than there is"));
            }
            x = cx.slice(x, a, &Dim::from(front), &size, 1)?;
            if front > 0 {
                lo[a] = zero.clone();
            }
            if back > 0 {
                hi[a] = zero.clone();
            }
        }
    }
    for d in lo.iter().chain(&hi) {
        if d.as_const().is_none() && !cx.assume_not_negative(d, "padding is not negative") {
            return too_symbolic(format!("pads by {d}, which may be negative"));
        }
    }
    if lo.iter().chain(&hi).all(|d| d.is(0)) {
        return Ok(vec![x]);
    }
    let operands = if mode == PadMode::Constant { vec![x, value] } else { vec![x] };
    Ok(vec![cx.add(op::Pad { lo, hi, mode }, &operands)?])
}

fn expand(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, shape) = (cx.x(0)?, cx.x(1)?);
    let shape = cx.extents(shape, "the shape")?;
    check_rank(cx, shape.len())?;
    let from = cx.dims(x);
    let rank = from.len().max(shape.len());
    let mut dims = Vec::with_capacity(rank);
    for back in (1..=rank).rev() {
        let at = |d: &[Dim]| d.len().checked_sub(back).map_or(Dim::from(1), |i| d[i].clone());
        let (a, b) = (at(&from), at(&shape));
        if !a.is(1) && !b.is(1) {
            cx.equal(&a, &b)?;
        }
        dims.push(if a.is(1) { b } else { a });
    }
    if dims.iter().any(|d| d.as_const().is_some_and(|c| c < 0)) {
        return invalid("the shape has a negative dimension");
    }
    Ok(vec![cx.broadcast(x, &dims)?])
}

/// Repeats by broadcasting a new axis in front of each repeated one.
fn tile(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, repeats) = (cx.x(0)?, cx.x(1)?);
    let repeats = cx.extents(repeats, "the number of repetitions")?;
    let dims = cx.dims(x);
    if repeats.len() != dims.len() {
        return invalid(format!("needs {} numbers of repetitions, has {}", dims.len(), repeats.len()));
    }
    let (mut single, mut wide, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for (d, r) in dims.iter().zip(&repeats) {
        if r.as_const().is_some_and(|c| c < 0) {
            return invalid("has a negative number of repetitions");
        }
        if d.is(1) {
            single.push(d.clone());
            wide.push(r.clone());
        } else if !r.is(1) {
            single.extend([Dim::from(1), d.clone()]);
            wide.extend([r.clone(), d.clone()]);
        } else {
            single.push(d.clone());
            wide.push(d.clone());
        }
        out.push(d * r);
    }
    let y = cx.reshape(x, single)?;
    let y = cx.broadcast(y, &wide)?;
    Ok(vec![cx.reshape(y, out)?])
}

fn trilu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let k = match cx.opt(1) {
        Some(k) => match cx.extents(k, "the diagonal")?.as_slice() {
            [k] => k.clone(),
            _ => return invalid("the diagonal must be one number"),
        },
        None => Dim::from(0),
    };
    let dims = cx.dims(x);
    let [.., rows, columns] = dims.as_slice() else { return invalid(format!("needs a matrix, got {}", cx.ty(x))) };
    let (row, column) = (cx.iota(rows, 0, 2)?, cx.iota(columns, 1, 2)?);
    let upper = cx.int("upper", 1) != 0;
    let keep = cx.map2(row, column, |b, _, row, column| {
        let k = b.push(transc_ir::scalar::Inst::Dim(k));
        let edge = b.bin(transc_ir::scalar::BinOp::Add, row, k);
        b.bin(if upper { transc_ir::scalar::BinOp::Ge } else { transc_ir::scalar::BinOp::Le }, column, edge)
    })?;
    let zero = cx.num(cx.dtype(x), 0.0)?;
    Ok(vec![cx.select(keep, x, zero)?])
}

fn block(cx: &mut OpCx<'_, '_>, x: Value) -> Result<(Vec<Dim>, Dim)> {
    let b = cx.int("blocksize", 0);
    if b <= 0 || cx.rank(x) != 4 {
        return invalid(format!("needs a positive block size and a tensor of four axes, got {b} and {}", cx.ty(x)));
    }
    Ok((cx.dims(x), Dim::from(b)))
}

fn exact(cx: &mut OpCx<'_, '_>, d: &Dim, by: &Dim) -> Result<Dim> {
    if d.as_const().is_none() && d.exact_div(by).is_none() {
        cx.multiple(d, by)?;
    }
    match d.exact_div(by) {
        Some(q) => Ok(q),
        None if d.as_const().is_some() => invalid(format!("{d} is not a multiple of {by}")),
        None => too_symbolic(format!("needs {d} to be a multiple of {by}, which does not follow from the model's inputs")),
    }
}

fn depth_to_space(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let (d, b) = block(cx, x)?;
    let c = exact(cx, &d[1], &(&b * &b))?;
    let (split, perm) = match cx.text("mode", "DCR")?.as_str() {
        "DCR" => ([d[0].clone(), b.clone(), b.clone(), c.clone(), d[2].clone(), d[3].clone()], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([d[0].clone(), c.clone(), b.clone(), b.clone(), d[2].clone(), d[3].clone()], [0, 1, 4, 2, 5, 3]),
        other => return invalid(format!("has the unknown mode `{other}`")),
    };
    let y = cx.reshape(x, split)?;
    let y = cx.transpose(y, &perm)?;
    Ok(vec![cx.reshape(y, vec![d[0].clone(), c, &d[2] * &b, &d[3] * &b])?])
}

fn space_to_depth(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let (d, b) = block(cx, x)?;
    let (h, w) = (exact(cx, &d[2], &b)?, exact(cx, &d[3], &b)?);
    let y = cx.reshape(x, vec![d[0].clone(), d[1].clone(), h.clone(), b.clone(), w.clone(), b.clone()])?;
    let y = cx.transpose(y, &[0, 3, 5, 1, 2, 4])?;
    Ok(vec![cx.reshape(y, vec![d[0].clone(), &(&d[1] * &b) * &b, h, w])?])
}

fn center_crop_pad(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (mut x, shape) = (cx.x(0)?, cx.x(1)?);
    let shape = cx.ints(shape, "the shape")?;
    let rank = cx.rank(x);
    let axes = cx.int_list("axes").unwrap_or_else(|| (0..rank as i64).collect());
    let axes = axes.iter().map(|a| cx.axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    if shape.len() != axes.len() {
        return invalid("needs one extent per axis");
    }
    for (a, want) in axes.into_iter().zip(shape) {
        let Some(have) = cx.dims(x)[a].as_const() else {
            return too_symbolic("crops or pads an axis of symbolic extent");
        };
        if want < 0 {
            return invalid("the shape has a negative dimension");
        }
        if have >= want {
            x = cx.slice(x, a, &Dim::from((have - want) / 2), &Dim::from(want), 1)?;
        } else {
            let (mut lo, mut hi) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
            lo[a] = Dim::from((want - have) / 2);
            hi[a] = Dim::from(want - have - (want - have) / 2);
            x = cx.pad(x, &lo, &hi, 0.0)?;
        }
    }
    Ok(vec![x])
}

impl OpCx<'_, '_> {
    /// The error for dims whose element count is not that of `x`.
    fn mismatch(&self, x: Value, dims: &[Dim]) -> OpError {
        let to = transc_ir::TensorType::new(self.dtype(x), dims);
        let from = self.ty(x);
        transc_ir::op::TypeError::dims(
            "Reshape",
            format!("cannot turn {from} ({} elements) into {to} ({} elements)", from.count(), to.count()),
        )
        .into()
    }

    /// The quotient of two dims that the model promises to divide evenly.
    ///
    /// # Errors
    /// Constants that do not divide; a quotient that cannot be written.
    fn divisible(&mut self, top: &Dim, bottom: &Dim) -> Result<Dim> {
        if top.as_const().is_some() && bottom.as_const().is_some() {
            return invalid(format!("{top} elements do not divide by {bottom}"));
        }
        self.multiple(top, bottom)?;
        too_symbolic(format!("needs {top} to be a multiple of {bottom}, which does not follow from the model's inputs"))
    }
}
