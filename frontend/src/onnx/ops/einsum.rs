//! Einstein summation.

use transc_ir::op::{Contract, ReduceKind};
use transc_ir::scalar::BinOp;
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[row("Einsum", 12..=LAST, einsum)];

/// An axis label: the code of a letter, or 128 and up for the axes of an ellipsis, counted from its end.
type Label = u8;

/// A tensor with a label per axis.
#[derive(Clone)]
struct Term {
    value: Value,
    labels: Vec<Label>,
}

fn parse(text: &str, rank: Option<usize>) -> Option<Vec<Label>> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let letters = text.replace("...", "");
    if !letters.chars().all(|c| c.is_ascii_alphabetic()) || text.matches("...").count() > 1 {
        return None;
    }
    let fixed = letters.len();
    let mut out = Vec::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            let n = rank?.checked_sub(fixed)?;
            out.extend((0..u8::try_from(n).ok().filter(|n| *n < 64)?).rev().map(|i| 128 + i));
            rest = after;
        } else {
            out.push(c as u8);
            rest = &rest[1..];
        }
    }
    (rank.is_none_or(|r| r == out.len())).then_some(out)
}

fn einsum(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let operands = cx.all()?;
    let equation = cx.text("equation", "")?;
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (equation.as_str(), None),
    };
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != operands.len() {
        return invalid(format!("has {} terms for {} operands", parts.len(), operands.len()));
    }
    let mut terms = Vec::new();
    for (text, v) in parts.iter().zip(&operands) {
        let Some(labels) = parse(text, Some(cx.rank(*v))) else {
            return invalid(format!("the term `{text}` does not fit {}", cx.ty(*v)));
        };
        terms.push(Term { value: *v, labels });
    }
    let ellipsis = terms.iter().flat_map(|t| &t.labels).filter(|l| **l >= 128).max().map_or(0, |l| l - 127);
    let out = match right {
        Some(text) => {
            let n =
                text.chars().filter(|c| c.is_ascii_alphabetic()).count() + if text.contains("...") { ellipsis.into() } else { 0 };
            parse(text, Some(n))
        }
        None => {
            // Without a result: the ellipsis, then every letter that stands once, in order of the alphabet.
            let mut once: Vec<Label> = terms.iter().flat_map(|t| t.labels.iter().copied()).filter(|l| *l < 128).collect();
            once.sort_unstable();
            let single = once.iter().copied().filter(|l| once.iter().filter(|m| *m == l).count() == 1).collect::<Vec<_>>();
            Some((0..ellipsis).rev().map(|i| 128 + i).chain(single).collect())
        }
    };
    let Some(out) =
        out.filter(|o| o.iter().enumerate().all(|(i, l)| !o[..i].contains(l) && terms.iter().any(|t| t.labels.contains(l))))
    else {
        return invalid(format!("the equation `{equation}` has a result that does not follow from its terms"));
    };
    for t in &mut terms {
        *t = diagonal(cx, t.clone())?;
    }
    squeeze(cx, &mut terms)?;
    let mut rest = terms.into_iter();
    let Some(mut acc) = rest.next() else { return invalid("has no operands") };
    let mut rest: Vec<Term> = rest.collect();
    rest.reverse();
    while let Some(next) = rest.pop() {
        let needed = |l: &Label| out.contains(l) || rest.iter().any(|t| t.labels.contains(l));
        let lone =
            |a: &Term, b: &Term| a.labels.iter().copied().filter(|l| !needed(l) && !b.labels.contains(l)).collect::<Vec<_>>();
        let (drop_a, drop_b) = (lone(&acc, &next), lone(&next, &acc));
        let (a, b) = (sum_out(cx, acc, &drop_a)?, sum_out(cx, next, &drop_b)?);
        acc = contract(cx, a, b, needed)?;
    }
    let dropped: Vec<Label> = acc.labels.iter().copied().filter(|l| !out.contains(l)).collect();
    let acc = sum_out(cx, acc, &dropped)?;
    let perm: Vec<usize> = out.iter().filter_map(|l| acc.labels.iter().position(|m| m == l)).collect();
    Ok(vec![cx.transpose(acc.value, &perm)?])
}

/// Replaces repeated labels inside one term by its diagonal.
fn diagonal(cx: &mut OpCx<'_, '_>, mut t: Term) -> Result<Term> {
    while let Some((i, j)) = (0..t.labels.len()).find_map(|j| Some((t.labels[..j].iter().position(|l| *l == t.labels[j])?, j))) {
        let (dims, rank) = (cx.dims(t.value), t.labels.len());
        cx.equal(&dims[i], &dims[j])?;
        let (a, b) = (cx.iota(&dims[i], i, rank)?, cx.iota(&dims[j], j, rank)?);
        let on = cx.bin(BinOp::Eq, a, b)?;
        let zero = cx.num(cx.dtype(t.value), 0.0)?;
        let kept = cx.select(on, t.value, zero)?;
        t.value = cx.reduce(ReduceKind::Sum, kept, &[j], false)?;
        t.labels.remove(j);
    }
    Ok(t)
}

/// An axis of extent 1 broadcasts against a longer one with its label: it is left out. Equal labels get equal extents.
fn squeeze(cx: &mut OpCx<'_, '_>, terms: &mut [Term]) -> Result<()> {
    let mut wide: Vec<(Label, Dim)> = Vec::new();
    for t in terms.iter() {
        for (l, d) in t.labels.iter().zip(cx.dims(t.value)) {
            match wide.iter_mut().find(|w| w.0 == *l) {
                None => wide.push((*l, d)),
                Some(w) if w.1.is(1) => w.1 = d,
                Some(w) if d.is(1) => debug_assert!(!w.1.is(1)),
                Some(w) => {
                    let before = w.1.clone();
                    cx.equal(&before, &d)?;
                    if before != d {
                        return invalid(format!("needs axes of extents {before} and {d} to be equal"));
                    }
                }
            }
        }
    }
    for t in terms {
        let dims = cx.dims(t.value);
        let keep: Vec<usize> =
            (0..dims.len()).filter(|i| !dims[*i].is(1) || wide.iter().any(|w| w.0 == t.labels[*i] && w.1.is(1))).collect();
        if keep.len() < dims.len() {
            t.value = cx.reshape(t.value, keep.iter().map(|i| dims[*i].clone()).collect::<Vec<_>>())?;
            t.labels = keep.iter().map(|i| t.labels[*i]).collect();
        }
    }
    Ok(())
}

fn sum_out(cx: &mut OpCx<'_, '_>, mut t: Term, drop: &[Label]) -> Result<Term> {
    let axes: Vec<usize> = (0..t.labels.len()).filter(|i| drop.contains(&t.labels[*i])).collect();
    t.value = cx.reduce(ReduceKind::Sum, t.value, &axes, false)?;
    t.labels.retain(|l| !drop.contains(l));
    Ok(t)
}

fn contract(cx: &mut OpCx<'_, '_>, a: Term, b: Term, needed: impl Fn(&Label) -> bool) -> Result<Term> {
    // Shared batch axes first, then those of the first and of the second term: the order of a matrix product.
    let in_both = |l: &&Label| a.labels.contains(l) && b.labels.contains(l);
    let mut out: Vec<Label> = a.labels.iter().filter(in_both).filter(|l| needed(l)).copied().collect();
    out.extend(a.labels.iter().filter(|l| !in_both(l)));
    out.extend(b.labels.iter().filter(|l| !in_both(l)));
    let mut names: Vec<Label> = Vec::new();
    for l in a.labels.iter().chain(&b.labels) {
        if !names.contains(l) {
            names.push(*l);
        }
    }
    let number =
        |labels: &[Label]| labels.iter().filter_map(|l| names.iter().position(|n| n == l).map(|i| i as u8)).collect::<Vec<u8>>();
    let o = Contract { lhs: number(&a.labels), rhs: number(&b.labels), out: number(&out), out_dtype: cx.dtype(a.value) };
    let value = cx.add(o, &[a.value, b.value])?;
    Ok(Term { value, labels: out })
}
