//! Sequences of tensors whose length is known during the import: they leave no trace in the IR but their tensors.

use transc_ir::op;
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, limit, too_symbolic};
use super::control::stack;
use super::{LAST, OpRow, sequences, shape};

pub(super) static ROWS: &[OpRow] = &[
    sequences("ConcatFromSequence", 11..=LAST, concat),
    sequences("Identity", 1..=LAST, |cx| Ok(vec![cx.x(0)?])),
    sequences("SequenceAt", 11..=LAST, at),
    sequences("SequenceConstruct", 11..=LAST, |cx| {
        let tensors = cx.all()?;
        made(cx, tensors)
    }),
    sequences("SequenceEmpty", 11..=LAST, |cx| made(cx, Vec::new())),
    sequences("SequenceErase", 11..=LAST, erase),
    sequences("SequenceInsert", 11..=LAST, insert),
    sequences("SequenceLength", 11..=LAST, |cx| {
        let n = tensors(cx)?.len();
        Ok(vec![cx.int_table(&[], [n as i64])?])
    }),
    sequences("SplitToSequence", 11..=LAST, split),
];

/// The value that stands for a sequence.
fn made(cx: &mut OpCx<'_, '_>, tensors: Vec<Value>) -> Result<Vec<Value>> {
    if tensors.iter().any(|v| cx.imp.sequences.contains_key(v)) {
        return invalid("puts a sequence into a sequence");
    }
    let handle = cx.add(op::Iota { dims: vec![Dim::from(0)], axis: 0 }, &[])?;
    cx.imp.sequences.insert(handle, tensors);
    Ok(vec![handle])
}

/// The tensors of the sequence that is operand 0.
fn tensors(cx: &OpCx<'_, '_>) -> Result<Vec<Value>> {
    match cx.imp.sequences.get(&cx.x(0)?) {
        Some(tensors) => Ok(tensors.clone()),
        None => invalid("takes a sequence, but is given a tensor"),
    }
}

/// A place in a sequence of `n` tensors, at most `last`, which is also the default; negative ones count from the end.
fn place(cx: &mut OpCx<'_, '_>, operand: usize, n: usize, last: Option<usize>) -> Result<usize> {
    let Some(last) = last else { return invalid("has an empty sequence") };
    let Some(v) = cx.opt(operand) else { return Ok(last) };
    let given = cx.int_value(v, "the place in the sequence")?;
    match usize::try_from(if given < 0 { given.saturating_add(n as i64) } else { given }) {
        Ok(i) if i <= last => Ok(i),
        _ => invalid(format!("has place {given} of a sequence of {n}")),
    }
}

fn at(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let all = tensors(cx)?;
    let i = place(cx, 1, all.len(), all.len().checked_sub(1))?;
    Ok(vec![all[i]])
}

fn erase(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut all = tensors(cx)?;
    let i = place(cx, 1, all.len(), all.len().checked_sub(1))?;
    all.remove(i);
    made(cx, all)
}

fn insert(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut all = tensors(cx)?;
    let i = place(cx, 2, all.len(), Some(all.len()))?;
    all.insert(i, cx.x(1)?);
    made(cx, all)
}

fn concat(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let all = tensors(cx)?;
    let Some(first) = all.first() else { return invalid("joins an empty sequence") };
    let new = cx.flag("new_axis");
    let axis = cx.axis(cx.int("axis", 0), cx.rank(*first) + usize::from(new))?;
    Ok(vec![if new { stack(cx, &all, axis)? } else { cx.concat(&all, axis)? }])
}

/// Into parts of given sizes, of one size, or of one element each, which may lose the axis.
fn split(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let axis = cx.axis(cx.int("axis", 0), cx.rank(x))?;
    let extent = cx.dims(x)[axis].clone();
    let (sizes, keep) = match cx.opt(1) {
        Some(s) => match (cx.rank(s), cx.extents(s, "the size of the parts")?) {
            (0, size) => (equal_parts(cx, &extent, &size[0])?, true),
            (_, sizes) => (sizes, true),
        },
        None => (equal_parts(cx, &extent, &Dim::from(1))?, cx.int("keepdims", 1) != 0),
    };
    let mut parts = shape::parts(cx, x, axis, &sizes)?;
    if !keep {
        for p in &mut parts {
            let mut dims = cx.dims(*p);
            dims.remove(axis);
            *p = cx.reshape(*p, dims)?;
        }
    }
    made(cx, parts)
}

/// Parts of one size, of which the last one has what is left.
fn equal_parts(cx: &OpCx<'_, '_>, extent: &Dim, size: &Dim) -> Result<Vec<Dim>> {
    if size.as_const().is_some_and(|s| s <= 0) {
        return invalid(format!("has parts of {size} elements"));
    }
    let Some(n) = extent.ceil_div(size).as_usize() else {
        return too_symbolic(format!("splits an axis of {extent} into parts of {size}, whose number is not known"));
    };
    let max = cx.imp.options.limits.nodes;
    if n > max {
        return limit(format!("splits an axis into {n} parts, the limit is {max}"));
    }
    let mut sizes = vec![size.clone(); n];
    if let Some((last, others)) = sizes.split_last_mut() {
        *last = extent - &(size * &Dim::from(others.len()));
    }
    Ok(sizes)
}
