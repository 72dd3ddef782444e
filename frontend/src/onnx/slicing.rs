//! Bounds of slices: negative and far-away indices, as NumPy and ONNX read them.

use transc_ir::Dim;

use super::cx::OpCx;
use super::error::{Result, invalid, too_symbolic};

/// First index and size of the slice `start..end` by `step` of an axis.
pub(super) fn range(cx: &mut OpCx<'_, '_>, extent: &Dim, start: &Dim, end: &Dim, step: i64) -> Result<(Dim, Dim)> {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let start = from_front(cx, extent, start)?;
    let end = from_front(cx, extent, end)?;
    if step > 0 {
        let start = upper(cx, &start, extent);
        let start = cx.max(&start, &zero);
        let end = upper(cx, &end, extent);
        let end = cx.max(&end, &zero);
        let span = not_negative(cx, &(&end - &start));
        Ok((start, span.ceil_div(&Dim::from(step))))
    } else if step < 0 {
        let last = extent - &one;
        let minus_one = Dim::from(-1);
        let start = upper(cx, &start, &last);
        let start = cx.max(&start, &minus_one);
        let end = upper(cx, &end, &last);
        let end = cx.max(&end, &minus_one);
        let span = not_negative(cx, &(&start - &end));
        let size = if step == i64::MIN { cx.min(&span, &one) } else { span.ceil_div(&Dim::from(-step)) };
        Ok((start, size))
    } else {
        invalid("the step of a slice must not be 0")
    }
}

/// An index with negative ones counted from the end; it may still lie outside. One that is negative only for large sizes, such as
/// `64 - length`, is taken not to be: a model that slices its tables so is refused when they are too short. One that may be 0, such as the padding that
/// is cut off at the end, is taken to be negative where it is so for the smallest sizes.
fn from_front(cx: &mut OpCx<'_, '_>, extent: &Dim, index: &Dim) -> Result<Dim> {
    let (lo, hi) = index.bounds(&cx.imp.module.symbols);
    let smallest = at_smallest(cx, index);
    if lo >= 0 {
        Ok(index.clone())
    } else if hi < 0 {
        Ok(extent + index)
    } else if smallest >= Some(0) && cx.assume_not_negative(index, "a slice starts and ends inside its axis") {
        Ok(index.clone())
    } else if hi == 0
        && smallest.is_some_and(|i| i < 0)
        && cx.assume_not_negative(&(&Dim::from(-1) - index), "a slice ends before the end of its axis")
    {
        Ok(extent + index)
    } else {
        too_symbolic(format!("slices at {index}, which may count from the front or from the end"))
    }
}

/// A dim where all symbols have their smallest values.
fn at_smallest(cx: &OpCx<'_, '_>, d: &Dim) -> Option<i64> {
    let symbols = &cx.imp.module.symbols;
    d.eval(&|s| symbols.get(s).map(|r| r.min)).ok()
}

/// `min(index, end)`. A symbolic index is taken to lie inside: exporters slice tables by the length in use, and a model whose table
/// is too short is refused when it runs. A constant index cuts what is longer.
fn upper(cx: &mut OpCx<'_, '_>, index: &Dim, end: &Dim) -> Dim {
    let room = end - index;
    let (lo, hi) = room.bounds(&cx.imp.module.symbols);
    if lo >= 0 {
        index.clone()
    } else if hi <= 0 {
        end.clone()
    } else if index.as_const().is_none() && cx.assume_not_negative(&room, "a slice ends inside its axis") {
        index.clone()
    } else {
        cx.min(index, end)
    }
}

/// `max(span, 0)`; a span that may be negative for some size is taken not to be.
fn not_negative(cx: &mut OpCx<'_, '_>, span: &Dim) -> Dim {
    let (lo, hi) = span.bounds(&cx.imp.module.symbols);
    if hi <= 0 {
        Dim::from(0)
    } else if lo >= 0 || cx.assume_not_negative(span, "a slice starts before its end") {
        span.clone()
    } else {
        span.max_with(&Dim::from(0))
    }
}
