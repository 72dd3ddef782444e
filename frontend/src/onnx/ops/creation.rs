//! Values that come from attributes, shapes or numbers.

use transc_ir::interp::Tensor;
use transc_ir::op;
use transc_ir::scalar::{BinOp, Body, Literal};
use transc_ir::tensor::ConstData;
use transc_ir::{DType, Dim, TensorType, Value};

use super::super::cx::{OpCx, elements};
use super::super::error::{Result, invalid, limit, unsupported};
use super::super::tensor;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Constant", 1..=LAST, constant),
    row("ConstantOfShape", 9..=LAST, constant_of_shape),
    row("EyeLike", 9..=LAST, eye_like),
    row("Range", 11..=LAST, range),
    row("Shape", 1..=LAST, shape),
    row("Size", 1..=LAST, size),
];

fn constant(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let name = cx.node.output.first().map_or("", String::as_str);
    let data = if let Some(t) = cx.tensor_attr("value") {
        cx.imp.read_tensor(t)?
    } else if let Some(t) = cx.attr("sparse_value").and_then(|a| a.sparse_tensor.as_ref()) {
        cx.imp.read_sparse(t)?
    } else if let Some(a) = cx.attr("value_float") {
        literals(DType::F32, None, &[Literal::f32(a.f())])?
    } else if let Some(a) = cx.attr("value_int") {
        literals(DType::I64, None, &[Literal::i64(a.i())])?
    } else if let Some(a) = cx.attr("value_floats") {
        let all: Vec<Literal> = a.floats.iter().map(|v| Literal::f32(*v)).collect();
        literals(DType::F32, Some(all.len()), &all)?
    } else if let Some(a) = cx.attr("value_ints") {
        let all: Vec<Literal> = a.ints.iter().map(|v| Literal::i64(*v)).collect();
        literals(DType::I64, Some(all.len()), &all)?
    } else if cx.attr("value_string").is_some() || cx.attr("value_strings").is_some() {
        return unsupported("holds text");
    } else {
        return invalid("has no value");
    };
    Ok(vec![cx.imp.constant(name, data)?])
}

fn literals(dtype: DType, n: Option<usize>, all: &[Literal]) -> Result<ConstData> {
    let bytes = all.iter().flat_map(|l| l.bits.to_le_bytes().into_iter().take(dtype.size_bytes())).collect();
    match ConstData::new(TensorType::new(dtype, n.map(Dim::from).into_iter().collect::<Vec<_>>()), bytes) {
        Some(d) => Ok(d),
        None => invalid("has a value that does not fit its type"),
    }
}

fn constant_of_shape(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let shape = cx.x(0)?;
    let dims = cx.extents(shape, "the shape")?;
    if dims.len() > cx.imp.options.limits.rank {
        return limit(format!("gives a tensor of {} axes, the limit is {}", dims.len(), cx.imp.options.limits.rank));
    }
    if let Some(d) = dims.iter().find(|d| d.as_const().is_some_and(|c| c < 0)) {
        return invalid(format!("the shape has the negative dimension {d}"));
    }
    let value = match cx.tensor_attr("value") {
        Some(t) => match elements(&Tensor::from_const(&cx.imp.read_tensor(t)?)).next() {
            Some(l) => l,
            None => return invalid("has an empty value"),
        },
        None => Literal::f32(0.0),
    };
    let v = cx.add(op::Map { body: Body::constant(value) }, &[])?;
    Ok(vec![cx.broadcast(v, &dims)?])
}

fn eye_like(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    let [rows, columns] = dims.as_slice() else { return invalid(format!("needs a matrix, got {}", cx.ty(x))) };
    let to = match cx.attr("dtype") {
        Some(a) => tensor::dtype(i32::try_from(a.i()).unwrap_or(0), "the attribute `dtype`")?,
        None => cx.dtype(x),
    };
    let k = cx.int("k", 0) as f64;
    let (i, j) = (cx.iota(rows, 0, 2)?, cx.iota(columns, 1, 2)?);
    let on = cx.map2(i, j, |b, d, i, j| {
        let k = b.num(d, k);
        let i = b.bin(BinOp::Add, i, k);
        b.bin(BinOp::Eq, i, j)
    })?;
    Ok(vec![cx.cast(to, on)?])
}

/// `start, start + delta, ..` below `limit`: `max(0, ceil((limit - start) / delta))` elements.
fn range(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let operands = [cx.x(0)?, cx.x(1)?, cx.x(2)?];
    let d = cx.dtype(operands[0]);
    let mut dims = Vec::new();
    for v in operands {
        dims.extend(cx.known_scalar(v)?);
    }
    if let [start, end, delta] = dims.as_slice()
        && let Some(step) = delta.as_const()
    {
        let span = if step > 0 { end - start } else { start - end };
        let n = match step.checked_abs() {
            None | Some(0) => return invalid("the step must not be 0"),
            Some(step) => span.ceil_div(&Dim::from(step)),
        };
        let (lo, hi) = n.bounds(&cx.imp.module.symbols);
        let n = if hi <= 0 {
            Dim::from(0)
        } else if lo >= 0 || cx.assume_not_negative(&n, "a range ends after its start") {
            n
        } else {
            n.max_with(&Dim::from(0))
        };
        let mut y = cx.iota(&n, 0, 1)?;
        if step != 1 {
            y = cx.bin_num(BinOp::Mul, y, step as f64)?;
        }
        if !start.is(0) {
            let s = cx.dim_value(DType::I64, start)?;
            y = cx.bin(BinOp::Add, y, s)?;
        }
        return Ok(vec![cx.cast(d, y)?]);
    }
    if let Some(y) = range_from_fraction(cx, operands)? {
        return Ok(vec![y]);
    }
    let mut numbers = Vec::new();
    for v in operands {
        numbers.extend(cx.reals(v, "the length of the range")?);
    }
    let [start, end, delta] = numbers.as_slice() else { return invalid("needs three numbers") };
    let n = ((end - start) / delta).ceil().max(0.0);
    if !(n.is_finite() && n <= cx.imp.options.limits.fold_elements as f64) {
        return limit(format!("a constant range of {n} elements would be computed"));
    }
    let (start, delta) = (*start, *delta);
    Ok(vec![cx.table(d, &[n as usize], (0..n as usize).map(|i| start + delta * i as f64))?])
}

/// Reals from a constant that is no whole number to a symbolic end, by whole steps.
fn range_from_fraction(cx: &mut OpCx<'_, '_>, [start, end, delta]: [Value; 3]) -> Result<Option<Value>> {
    let d = cx.dtype(start);
    let real = |cx: &mut OpCx<'_, '_>, v| -> Result<Option<f64>> {
        Ok(cx.try_constant(v)?.as_ref().and_then(|t| elements(t).next()).map(|l| l.to_f64()))
    };
    let (Some(end), Some(first), Some(step)) = (cx.known_scalar(end)?, real(cx, start)?, real(cx, delta)?) else {
        return Ok(None);
    };
    let whole = step.fract() == 0.0 && (1.0..1e9).contains(&step);
    if end.as_const().is_some() || !d.is_float() || !whole || first.is_nan() || first.abs() >= 1e9 {
        return Ok(None);
    }
    // As many as from the whole number below: the last one is less than the end in either case.
    let n = (&end - &Dim::from(first.floor() as i64)).ceil_div(&Dim::from(step as i64));
    if !cx.assume_not_negative(&n, "a range ends after its start") {
        return Ok(None);
    }
    let at = cx.iota(&n, 0, 1)?;
    let at = cx.cast(d, at)?;
    let at = if step == 1.0 { at } else { cx.bin_num(BinOp::Mul, at, step)? };
    Ok(Some(cx.bin_num(BinOp::Add, at, first)?))
}

fn shape(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let dims = cx.dims(x);
    let n = dims.len() as i64;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
    let (start, end) = (clamp(cx.int("start", 0)), clamp(cx.int("end", n)));
    let values = dims.get(start..end.max(start)).unwrap_or_default().to_vec();
    Ok(vec![cx.add(op::Dims { values }, &[])?])
}

fn size(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let n = cx.ty(x).count();
    let v = cx.add(op::Dims { values: vec![n] }, &[])?;
    Ok(vec![cx.reshape(v, Vec::new())?])
}
