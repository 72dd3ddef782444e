//! Reductions, arg-reductions, running sums, softmax.

use transc_ir::op::{self, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::Result;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("ReduceL1", 1..=LAST, |cx| reduce(cx, Kind::L1)),
    row("ReduceL2", 1..=LAST, |cx| reduce(cx, Kind::L2)),
    row("ReduceLogSum", 1..=LAST, |cx| reduce(cx, Kind::LogSum)),
    row("ReduceLogSumExp", 1..=LAST, |cx| reduce(cx, Kind::LogSumExp)),
    row("ReduceMax", 1..=LAST, |cx| reduce(cx, Kind::Plain(ReduceKind::Max))),
    row("ReduceMean", 1..=LAST, |cx| reduce(cx, Kind::Mean)),
    row("ReduceMin", 1..=LAST, |cx| reduce(cx, Kind::Plain(ReduceKind::Min))),
    row("ReduceProd", 1..=LAST, |cx| reduce(cx, Kind::Plain(ReduceKind::Prod))),
    row("ReduceSum", 1..=LAST, |cx| reduce(cx, Kind::Plain(ReduceKind::Sum))),
    row("ReduceSumSquare", 1..=LAST, |cx| reduce(cx, Kind::SumSquare)),
    row("ArgMax", 1..=LAST, |cx| arg_reduce(cx, true)),
    row("ArgMin", 1..=LAST, |cx| arg_reduce(cx, false)),
    row("CumSum", 11..=LAST, |cx| scan(cx, ReduceKind::Sum)),
    row("CumProd", 26..=LAST, |cx| scan(cx, ReduceKind::Prod)),
    row("Softmax", 1..=12, |cx| softmax_flat(cx, false)),
    row("Softmax", 13..=LAST, |cx| softmax(cx, false)),
    row("LogSoftmax", 1..=12, |cx| softmax_flat(cx, true)),
    row("LogSoftmax", 13..=LAST, |cx| softmax(cx, true)),
    row("Hardmax", 1..=12, hardmax_flat),
    row("Hardmax", 13..=LAST, hardmax),
    row("TopK", 1..=LAST, top_k),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain(ReduceKind),
    Mean,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

/// Axes are an attribute up to opset 17 (`ReduceSum`: 12) and an operand afterwards.
fn axes(cx: &mut OpCx<'_, '_>, x: Value) -> Result<Vec<usize>> {
    let operand_since = if cx.node.op_type() == "ReduceSum" { 13 } else { 18 };
    let rank = cx.rank(x);
    let given = if cx.opset < operand_since {
        cx.int_list("axes")
    } else {
        match cx.opt(1) {
            Some(a) => Some(cx.ints(a, "the list of axes")?),
            None => None,
        }
    };
    match given.filter(|a| !a.is_empty()) {
        Some(a) => cx.axes(&a, rank),
        None if cx.flag("noop_with_empty_axes") => Ok(Vec::new()),
        None => Ok((0..rank).collect()),
    }
}

fn reduce(cx: &mut OpCx<'_, '_>, kind: Kind) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axes = axes(cx, x)?;
    let keep = cx.int("keepdims", 1) != 0;
    let sum = |cx: &mut OpCx<'_, '_>, v| cx.reduce(ReduceKind::Sum, v, &axes, keep);
    let y = match kind {
        Kind::Plain(k) => cx.reduce(k, x, &axes, keep)?,
        Kind::Mean => cx.mean(x, &axes, keep)?,
        Kind::L1 => {
            let a = cx.un(UnOp::Abs, x)?;
            sum(cx, a)?
        }
        Kind::SumSquare => {
            let s = cx.bin(BinOp::Mul, x, x)?;
            sum(cx, s)?
        }
        Kind::L2 => {
            let s = cx.bin(BinOp::Mul, x, x)?;
            let s = sum(cx, s)?;
            in_reals(cx, s, UnOp::Sqrt)?
        }
        Kind::LogSum => {
            let s = sum(cx, x)?;
            in_reals(cx, s, UnOp::Log)?
        }
        Kind::LogSumExp => log_sum_exp(cx, x, &axes, keep)?,
    };
    Ok(vec![y])
}

/// A function of reals on a tensor that may hold integers; the result has the tensor's type.
fn in_reals(cx: &mut OpCx<'_, '_>, x: Value, o: UnOp) -> Result<Value> {
    let d = cx.dtype(x);
    let x = if d.is_float() { x } else { cx.cast(DType::F64, x)? };
    let y = cx.un(o, x)?;
    cx.cast(d, y)
}

/// `m + log(sum(e^(x - m)))` with `m` the maximum, or 0 where that is not finite.
fn log_sum_exp(cx: &mut OpCx<'_, '_>, x: Value, axes: &[usize], keep: bool) -> Result<Value> {
    let d = cx.dtype(x);
    let x = if d.is_float() { x } else { cx.cast(DType::F64, x)? };
    let m = cx.reduce(ReduceKind::Max, x, axes, true)?;
    let m = cx.map1(m, |b, d, m| {
        let (inf, zero) = (b.un(UnOp::IsInf, m), b.num(d, 0.0));
        b.select(inf, zero, m)
    })?;
    let shifted = cx.bin(BinOp::Sub, x, m)?;
    let e = cx.un(UnOp::Exp, shifted)?;
    let s = cx.reduce(ReduceKind::Sum, e, axes, true)?;
    let l = cx.un(UnOp::Log, s)?;
    let mut y = cx.bin(BinOp::Add, l, m)?;
    if !keep {
        let dims = cx.dims(y).into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect::<Vec<_>>();
        y = cx.reshape(y, dims)?;
    }
    cx.cast(d, y)
}

fn arg_reduce(cx: &mut OpCx<'_, '_>, max: bool) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    let (keep, last) = (cx.int("keepdims", 1) != 0, cx.flag("select_last_index"));
    Ok(vec![cx.add(op::ArgReduce { max, axis, keep, last }, &[x])?])
}

fn scan(cx: &mut OpCx<'_, '_>, kind: ReduceKind) -> Result<Vec<Value>> {
    let (x, axis) = (cx.x(0)?, cx.x(1)?);
    let axis = cx.int_value(axis, "the axis")?;
    let axis = cx.axis(axis, cx.rank(x))?;
    let (exclusive, reverse) = (cx.flag("exclusive"), cx.flag("reverse"));
    Ok(vec![cx.add(op::Scan { kind, axis, exclusive, reverse }, &[x])?])
}

fn softmax(cx: &mut OpCx<'_, '_>, log: bool) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    Ok(vec![cx.add(op::Softmax { axis, log }, &[x])?])
}

/// Before opset 13 the axes from `axis` on are one axis.
fn flat(cx: &mut OpCx<'_, '_>) -> Result<(Value, Vec<Dim>, usize)> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    let axis = cx.axis(cx.int("axis", 1), dims.len())?;
    let tail = dims[axis..].iter().product::<Dim>();
    let mut flat = dims[..axis].to_vec();
    flat.push(tail);
    let y = if axis + 1 == dims.len() { x } else { cx.reshape(x, flat)? };
    Ok((y, dims, axis))
}

fn softmax_flat(cx: &mut OpCx<'_, '_>, log: bool) -> Result<Vec<Value>> {
    let (x, dims, axis) = flat(cx)?;
    let y = cx.add(op::Softmax { axis, log }, &[x])?;
    Ok(vec![cx.reshape(y, dims)?])
}

fn hardmax_along(cx: &mut OpCx<'_, '_>, x: Value, axis: usize) -> Result<Value> {
    let n = cx.dims(x)[axis].clone();
    let at = cx.add(op::ArgReduce { max: true, axis, keep: true, last: false }, &[x])?;
    let index = cx.iota(&n, axis, cx.rank(x))?;
    let hit = cx.bin(BinOp::Eq, index, at)?;
    cx.cast(cx.dtype(x), hit)
}

fn hardmax(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    Ok(vec![hardmax_along(cx, x, axis)?])
}

fn hardmax_flat(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, dims, axis) = flat(cx)?;
    let y = hardmax_along(cx, x, axis)?;
    Ok(vec![cx.reshape(y, dims)?])
}

fn top_k(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", -1), cx.rank(x))?;
    let k = if cx.opset < 10 {
        Dim::from(cx.int("k", 0))
    } else {
        let k = cx.x(1)?;
        match cx.extents(k, "the number of elements")?.as_slice() {
            [k] => k.clone(),
            _ => return super::super::error::invalid("the number of elements must be one number"),
        }
    };
    cx.add_multi(op::TopK { k, axis, largest: cx.int("largest", 1) != 0 }, &[x])
}
