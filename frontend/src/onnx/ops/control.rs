//! Control flow, decided or unrolled during the import.

use transc_ir::diag::Fault;
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{OpError, Result, data_dependent, invalid, limit, too_symbolic, unsupported};
use super::super::proto::GraphProto;
use super::{LAST, OpRow, row, sequences};
use crate::Problem;

pub(super) static ROWS: &[OpRow] =
    &[row("If", 1..=LAST, if_row), sequences("Loop", 11..=LAST, loop_row), row("Scan", 9..=LAST, scan_row)];

/// Most repetitions that are unrolled.
const MAX_UNROLL: i64 = 4096;

/// The message of a nested graph that failed; its own problems are reported where they are.
fn failed<T>() -> Result<T> {
    unsupported("has a nested graph that cannot be imported")
}

fn path(cx: &OpCx<'_, '_>, part: impl std::fmt::Display) -> String {
    format!("{}.{part}", cx.loc.path())
}

fn branch<'a>(cx: &mut OpCx<'_, 'a>, g: &'a GraphProto, name: &str) -> Result<Vec<Value>> {
    let at = path(cx, name);
    match cx.imp.subgraph(cx.scope, g, &[], &at)? {
        Some(v) => Ok(v),
        None => failed(),
    }
}

/// A known condition takes one branch. An unknown one computes both, which is the same since nodes have no effects.
fn if_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let condition = cx.x(0)?;
    let (then, other) = (cx.graph("then_branch")?, cx.graph("else_branch")?);
    let known = cx.known_scalar(condition)?.and_then(|d| d.as_const());
    match known {
        Some(0) => return branch(cx, other, "else"),
        Some(_) => return branch(cx, then, "then"),
        None => {}
    }
    let (a, b) = (branch(cx, then, "then")?, branch(cx, other, "else")?);
    if a.len() != b.len() {
        return invalid("has branches with different numbers of results");
    }
    let condition = cx.reshape(condition, Vec::new())?;
    let mut out = Vec::new();
    for (x, y) in a.into_iter().zip(b) {
        if [x, y].iter().any(|v| cx.imp.sequences.contains_key(v)) {
            return unsupported("chooses at run time between sequences");
        }
        if cx.dtype(x) != cx.dtype(y) || cx.rank(x) != cx.rank(y) {
            return different(cx, x, y);
        }
        let (dx, dy) = (cx.dims(x), cx.dims(y));
        for (p, q) in dx.iter().zip(&dy) {
            match cx.equal(p, q) {
                Err(OpError::Other(_)) => return different(cx, x, y),
                done => done?,
            }
        }
        if dx != dy {
            return different(cx, x, y);
        }
        out.push(cx.select(condition, x, y)?);
    }
    Ok(out)
}

/// Results of branches that are no one tensor.
fn different<T>(cx: &OpCx<'_, '_>, x: Value, y: Value) -> Result<T> {
    let message = format!("chooses at run time between {} and {}", cx.ty(x), cx.ty(y));
    Err(Problem::new("T0302", Fault::Unsupported, message).help("fix the input that decides: `--set NAME=VALUE`").into())
}

/// Unrolled: the number of repetitions must be known, and the condition must be known in each of them.
fn loop_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let body = cx.graph("body")?;
    let trips = match cx.opt(0) {
        Some(n) => cx.int_value(n, "the number of repetitions")?,
        None => i64::MAX,
    };
    let mut keep = match cx.opt(1) {
        Some(c) => cx.int_value(c, "the condition of the loop")? != 0,
        None => true,
    };
    let mut carried: Vec<Value> = (2..cx.operands.len()).map(|i| cx.x(i)).collect::<Result<_>>()?;
    if body.output.len() <= carried.len() {
        return invalid(format!("carries {} values, but its body gives {}", carried.len(), body.output.len()));
    }
    let mut rows: Vec<Vec<Value>> = vec![Vec::new(); body.output.len() - 1 - carried.len()];
    let mut i = 0;
    while keep && i < trips {
        if i >= MAX_UNROLL {
            return limit(format!("repeats its body more than {MAX_UNROLL} times, the limit of unrolling"));
        }
        let (index, condition) = (cx.num(DType::I64, i as f64)?, cx.num(DType::Bool, 1.0)?);
        let operands: Vec<Value> = [index, condition].into_iter().chain(carried.iter().copied()).collect();
        cx.imp.facts.propagate(&cx.imp.module);
        let at = path(cx, i);
        let Some(results) = cx.imp.subgraph(cx.scope, body, &operands, &at)? else { return failed() };
        match cx.known_scalar(results[0])?.and_then(|d| d.as_const()) {
            Some(c) => keep = c != 0,
            None => return data_dependent("the number of repetitions"),
        }
        let n = carried.len();
        carried = results[1..=n].to_vec();
        for (row, v) in rows.iter_mut().zip(&results[n + 1..]) {
            row.push(*v);
        }
        i += 1;
    }
    let mut out = carried;
    for r in rows {
        out.push(stack(cx, &r, 0)?);
    }
    Ok(out)
}

/// Joins values along a new axis.
pub(super) fn stack(cx: &mut OpCx<'_, '_>, parts: &[Value], axis: usize) -> Result<Value> {
    let mut wide = Vec::new();
    for p in parts {
        if cx.imp.sequences.contains_key(p) {
            return invalid("collects sequences");
        }
        let mut dims = cx.dims(*p);
        if axis > dims.len() {
            return invalid(format!("collects {} along axis {axis}", cx.ty(*p)));
        }
        dims.insert(axis, Dim::from(1));
        wide.push(cx.reshape(*p, dims)?);
    }
    if wide.is_empty() { unsupported("collects results of which there are none") } else { cx.concat(&wide, axis) }
}

/// Unrolled over the scanned axis, whose extent must be known.
fn scan_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let body = cx.graph("body")?;
    let all: Vec<Value> = cx.all()?;
    let scanned = usize::try_from(cx.int("num_scan_inputs", 0)).unwrap_or(0);
    if scanned == 0 || scanned > all.len() {
        return invalid(format!("scans {scanned} of {} operands", all.len()));
    }
    let states = all.len() - scanned;
    if body.output.len() < states {
        return invalid(format!("has {states} states, but its body gives {} results", body.output.len()));
    }
    let collected = body.output.len() - states;
    let list = |name: &str, n: usize| cx.int_list_of(name, n, 0);
    let (in_axes, in_back) = (list("scan_input_axes", scanned)?, list("scan_input_directions", scanned)?);
    let (out_axes, out_back) = (list("scan_output_axes", collected)?, list("scan_output_directions", collected)?);
    let mut state = all[..states].to_vec();
    let inputs = &all[states..];
    let axes = inputs.iter().zip(&in_axes).map(|(v, a)| cx.axis(*a, cx.rank(*v))).collect::<Result<Vec<_>>>()?;
    let Some(n) = cx.dims(inputs[0])[axes[0]].as_const() else {
        return too_symbolic("scans an axis of symbolic extent");
    };
    if n > MAX_UNROLL {
        return limit(format!("repeats its body {n} times, the limit of unrolling is {MAX_UNROLL}"));
    }
    let mut rows: Vec<Vec<Value>> = vec![Vec::new(); collected];
    for i in 0..n {
        let mut operands = state.clone();
        for ((v, axis), back) in inputs.iter().zip(&axes).zip(&in_back) {
            let at = if *back != 0 { n - 1 - i } else { i };
            let piece = cx.slice(*v, *axis, &Dim::from(at), &Dim::from(1), 1)?;
            let mut dims = cx.dims(piece);
            dims.remove(*axis);
            operands.push(cx.reshape(piece, dims)?);
        }
        cx.imp.facts.propagate(&cx.imp.module);
        let at = path(cx, i);
        let Some(results) = cx.imp.subgraph(cx.scope, body, &operands, &at)? else { return failed() };
        state = results[..states].to_vec();
        for (row, v) in rows.iter_mut().zip(&results[states..]) {
            row.push(*v);
        }
    }
    let mut out = state;
    for ((mut r, axis), back) in rows.into_iter().zip(out_axes).zip(out_back) {
        if back != 0 {
            r.reverse();
        }
        let rank = r.first().map_or(0, |v| cx.rank(*v)) + 1;
        let axis = cx.axis(axis, rank)?;
        out.push(stack(cx, &r, axis)?);
    }
    Ok(out)
}

impl OpCx<'_, '_> {
    /// A number that is known now as a dim, whatever its element type. `None` if it is not known.
    pub(in super::super) fn known_scalar(&mut self, v: Value) -> Result<Option<Dim>> {
        let known = self.imp.facts.symbolic(v);
        if let Some([one]) = known {
            return Ok(Some(one.clone()));
        }
        if self.dtype(v).is_float() {
            return Ok(None);
        }
        match self.try_constant(v)? {
            Some(t) if t.count() == 1 => Ok(Some(Dim::from(t.get_i64(0)))),
            _ => Ok(None),
        }
    }
}
