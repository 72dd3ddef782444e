//! Gathers and scatters.

use transc_ir::op::{self, ScatterKind};
use transc_ir::scalar::BinOp;
use transc_ir::{DType, Dim, Value};

use super::super::cx::{OpCx, elements};
use super::super::error::{Result, invalid, unsupported};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Compress", 9..=LAST, compress),
    row("Gather", 1..=LAST, gather),
    row("GatherElements", 11..=LAST, gather_elements),
    row("GatherND", 11..=LAST, gather_nd),
    row("NonZero", 9..=LAST, non_zero),
    row("OneHot", 9..=LAST, one_hot),
    row("ReverseSequence", 10..=LAST, reverse_sequence),
    row("Scatter", 9..=10, scatter_elements),
    row("ScatterElements", 11..=LAST, scatter_elements),
    row("ScatterND", 11..=LAST, scatter_nd),
    row("TensorScatter", 24..=LAST, tensor_scatter),
];

fn gather(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, index) = (cx.x(0)?, cx.x(1)?);
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    // One constant index is a slice, which views and fusion see through.
    if cx.rank(index) == 0
        && let Some(at) = cx.try_constant(index)?.as_ref().and_then(|t| elements(t).next()).map(|l| l.to_i64())
    {
        let extent = cx.dims(x)[axis].clone();
        let start = if at < 0 { &extent + &Dim::from(at) } else { Dim::from(at) };
        let symbols = &cx.imp.module.symbols;
        if start.bounds(symbols).0 >= 0 && (&extent - &start).bounds(symbols).0 >= 1 {
            let y = cx.slice(x, axis, &start, &Dim::from(1), 1)?;
            let mut dims = cx.dims(y);
            dims.remove(axis);
            return Ok(vec![cx.reshape(y, dims)?]);
        }
        if extent.as_const().is_some() {
            return invalid(format!("the index {at} is out of range for an axis of extent {extent}"));
        }
    }
    Ok(vec![cx.gather(x, index, axis)?])
}

fn gather_elements(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, index) = (cx.x(0)?, cx.x(1)?);
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    let index = cx.indices(index)?;
    Ok(vec![cx.add(op::GatherElements { axis }, &[x, index])?])
}

fn gather_nd(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, index) = (cx.x(0)?, cx.x(1)?);
    let batch = cx.int("batch_dims", 0);
    let batch_dims = match usize::try_from(batch) {
        Ok(b) if b < cx.rank(x).min(cx.rank(index)) => b,
        _ => return invalid(format!("has {batch} batch axes for {} and {}", cx.ty(x), cx.ty(index))),
    };
    for i in 0..batch_dims {
        let (a, b) = (cx.dims(x)[i].clone(), cx.dims(index)[i].clone());
        cx.equal(&a, &b)?;
    }
    let index = cx.indices(index)?;
    Ok(vec![cx.add(op::GatherNd { batch_dims }, &[x, index])?])
}

fn kind(cx: &OpCx<'_, '_>) -> Result<ScatterKind> {
    Ok(match cx.text("reduction", "none")?.as_str() {
        "none" => ScatterKind::Set,
        "add" => ScatterKind::Add,
        "mul" => ScatterKind::Mul,
        "min" => ScatterKind::Min,
        "max" => ScatterKind::Max,
        other => return invalid(format!("has the unknown reduction `{other}`")),
    })
}

fn scatter_elements(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, index, updates) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    let (a, b) = (cx.dims(index), cx.dims(updates));
    for (a, b) in a.iter().zip(&b) {
        cx.equal(a, b)?;
    }
    let (index, kind) = (cx.indices(index)?, kind(cx)?);
    Ok(vec![cx.add(op::ScatterElements { axis, kind }, &[x, index, updates])?])
}

fn scatter_nd(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, index, updates) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let (data, lead, given) = (cx.dims(x), cx.dims(index), cx.dims(updates));
    if let Some((k, lead)) = lead.split_last()
        && let Some(k) = k.as_usize().filter(|k| *k <= data.len())
    {
        let want: Vec<Dim> = lead.iter().chain(&data[k..]).cloned().collect();
        for (a, b) in want.iter().zip(&given) {
            cx.equal(a, b)?;
        }
    }
    let (index, kind) = (cx.indices(index)?, kind(cx)?);
    Ok(vec![cx.add(op::ScatterNd { kind }, &[x, index, updates])?])
}

/// `on` where the index of the new axis is the operand's element, else `off`; negative elements count from the end, others outside
/// give `off` everywhere.
fn one_hot(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (index, depth, values) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    // The standard allows a depth in any type of number.
    let depth = match cx.known_scalar(depth)? {
        Some(d) => d,
        None => match cx.reals(depth, "the depth")?.as_slice() {
            [d] => Dim::from(*d as i64),
            _ => return invalid("the depth must be one number"),
        },
    };
    let rank = cx.rank(index) + 1;
    let axis = cx.axis(cx.int("axis", -1), rank)?;
    let mut dims = cx.dims(index);
    dims.insert(axis, Dim::from(1));
    let index = cx.cast(DType::I64, index)?;
    let index = cx.reshape(index, dims)?;
    let index = cx.map1(index, |b, d, x| {
        let (zero, depth) = (b.num(d, 0.0), b.push(transc_ir::scalar::Inst::Dim(depth.clone())));
        let (negative, wrapped) = (b.bin(BinOp::Lt, x, zero), b.bin(BinOp::Add, x, depth));
        b.select(negative, wrapped, x)
    })?;
    let places = cx.iota(&depth, axis, rank)?;
    let hit = cx.bin(BinOp::Eq, index, places)?;
    if cx.dims(values) != [Dim::from(2)] {
        return invalid(format!("needs two values, got {}", cx.ty(values)));
    }
    let off = cx.slice(values, 0, &Dim::from(0), &Dim::from(1), 1)?;
    let on = cx.slice(values, 0, &Dim::from(1), &Dim::from(1), 1)?;
    let (off, on) = (cx.reshape(off, Vec::new())?, cx.reshape(on, Vec::new())?);
    Ok(vec![cx.select(hit, on, off)?])
}

/// Only of constants, and of tensors full of one number: how many elements are not zero decides the shape.
fn non_zero(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    if let Some(number) = cx.imp.facts.uniform(&cx.imp.module, x)
        && dims.iter().any(|d| d.as_const().is_none())
    {
        let rank = Dim::from(dims.len());
        if number.to_f64() == 0.0 {
            return Ok(vec![cx.full(DType::I64, 0.0, &[rank, Dim::from(0)])?]);
        }
        let count = cx.ty(x).count();
        let mut rows = Vec::new();
        for (axis, extent) in dims.iter().enumerate() {
            let places = cx.iota(extent, axis, dims.len())?;
            let places = cx.broadcast(places, &dims)?;
            rows.push(cx.reshape(places, vec![Dim::from(1), count.clone()])?);
        }
        return Ok(vec![cx.concat(&rows, 0)?]);
    }
    let t = cx.constant_of(x, "the number of elements that are not zero")?;
    let hits: Vec<usize> = elements(&t).enumerate().filter(|(_, l)| l.to_f64() != 0.0).map(|(i, _)| i).collect();
    let rank = t.dims.len();
    let mut rows = Vec::with_capacity(rank * hits.len());
    for axis in 0..rank {
        let inner: usize = t.dims[axis + 1..].iter().product();
        rows.extend(hits.iter().map(|h| (h / inner.max(1) % t.dims[axis].max(1)) as i64));
    }
    Ok(vec![cx.int_table(&[rank, hits.len()], rows)?])
}

fn compress(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (mut x, condition) = (cx.x(0)?, cx.x(1)?);
    let c = cx.constant_of(condition, "the number of elements that are kept")?;
    let kept: Vec<i64> = elements(&c).enumerate().filter(|(_, l)| l.to_i64() != 0).map(|(i, _)| i as i64).collect();
    let axis = match cx.attr("axis") {
        Some(a) => cx.axis(a.i(), cx.rank(x))?,
        None => {
            let n = cx.ty(x).count();
            x = cx.reshape(x, vec![n])?;
            0
        }
    };
    let index = cx.int_table(&[kept.len()], kept)?;
    Ok(vec![cx.gather(x, index, axis)?])
}

/// Element `i < length` of a sequence comes from `length - 1 - i`, the others stay.
fn reverse_sequence(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, lengths) = (cx.x(0)?, cx.x(1)?);
    let rank = cx.rank(x);
    let (batch, time) = (cx.axis(cx.int("batch_axis", 1), rank)?, cx.axis(cx.int("time_axis", 0), rank)?);
    let dims = cx.dims(x);
    let mut per_batch = vec![Dim::from(1); rank];
    per_batch[batch] = dims[batch].clone();
    let lengths = cx.cast(DType::I64, lengths)?;
    let lengths = cx.reshape(lengths, per_batch)?;
    let at = cx.iota(&dims[time], time, rank)?;
    let index = cx.map2(at, lengths, |b, d, i, n| {
        let one = b.num(d, 1.0);
        let last = b.bin(BinOp::Sub, n, one);
        let mirrored = b.bin(BinOp::Sub, last, i);
        let inside = b.bin(BinOp::Lt, i, n);
        b.select(inside, mirrored, i)
    })?;
    let index = cx.broadcast(index, &dims)?;
    Ok(vec![cx.add(op::GatherElements { axis: time }, &[x, index])?])
}

/// Writes `update` into a cache at positions `write_indices[b] + i` of an axis.
fn tensor_scatter(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (cache, update) = (cx.x(0)?, cx.x(1)?);
    let rank = cx.rank(cache);
    let axis = cx.axis(cx.int("axis", -2), rank)?;
    if axis == 0 {
        return invalid("cannot write along the batch axis");
    }
    let (full, part) = (cx.dims(cache), cx.dims(update));
    let circular = match cx.text("mode", "linear")?.as_str() {
        "linear" => false,
        "circular" => true,
        other => return unsupported(format!("has the unknown mode `{other}`")),
    };
    let mut at = cx.iota(&part[axis], axis, rank)?;
    if let Some(start) = cx.opt(2) {
        let mut dims = vec![Dim::from(1); rank];
        dims[0] = full[0].clone();
        let start = cx.cast(DType::I64, start)?;
        let start = cx.reshape(start, dims)?;
        at = cx.bin(BinOp::Add, at, start)?;
    }
    if circular {
        let n = cx.dim_value(DType::I64, &full[axis])?;
        at = cx.bin(BinOp::Mod, at, n)?;
    }
    let at = cx.broadcast(at, &part)?;
    Ok(vec![cx.add(op::ScatterElements { axis, kind: ScatterKind::Set }, &[cache, at, update])?])
}
