//! Binding: symbols from input shapes, then sizes, buffer offsets and launch extents.

use std::collections::BTreeMap;

use crate::abi::{Arg, Expr, Plan, TensorSpec};
use crate::mem::ALIGN;
use crate::tensor::TensorView;
use crate::Error;

/// Everything about one set of dims: computed once, then cached.
pub(crate) struct Binding {
    pub(crate) symbols: Vec<i64>,
    pub(crate) output_dims: Vec<Vec<usize>>,
    /// Offset of each temporary in the arena.
    pub(crate) offsets: Vec<usize>,
    pub(crate) arena_bytes: usize,
    pub(crate) launches: Vec<BoundLaunch>,
    pub(crate) scratch_bytes: usize,
}

/// A launch with its numbers.
#[derive(Clone, Copy)]
pub(crate) struct BoundLaunch {
    pub(crate) extent: i64,
    pub(crate) cost_ns: i64,
}

/// The inputs in the plan's order.
pub(crate) fn order_inputs<'a>(plan: &Plan, given: &[(&str, TensorView<'a>)]) -> Result<Vec<TensorView<'a>>, Error> {
    let known = || plan.inputs.iter().map(|s| format!("`{}` {}", s.name, plan.type_text(s))).collect::<Vec<_>>().join(", ");
    if let Some((name, _)) = given.iter().find(|(n, _)| plan.inputs.iter().all(|s| s.name != *n)) {
        return Err(Error::UnknownInput { name: (*name).to_string(), known: known() });
    }
    plan.inputs
        .iter()
        .map(|s| {
            let mut hits = given.iter().filter(|(n, _)| *n == s.name);
            match (hits.next(), hits.next()) {
                (Some((_, v)), None) => Ok(*v),
                (None, _) => Err(Error::InputCount { name: s.name.clone(), what: "missing", known: known() }),
                (Some(_), Some(_)) => Err(Error::InputCount { name: s.name.clone(), what: "given twice", known: known() }),
            }
        })
        .collect()
}

/// Symbol values from input shapes.
pub(crate) fn solve(plan: &Plan, inputs: &[TensorView<'_>]) -> Result<Vec<i64>, Error> {
    for (s, v) in plan.inputs.iter().zip(inputs) {
        if s.dtype != v.dtype() || s.dims.len() != v.shape().len() {
            return Err(mismatch(plan, s, v));
        }
    }
    let mut known: BTreeMap<u32, (i64, usize)> = BTreeMap::new();
    // An expression of several symbols may wait for others, so sweep until nothing changes.
    loop {
        let before = known.len();
        for (i, (s, v)) in plan.inputs.iter().zip(inputs).enumerate() {
            for (e, d) in s.dims.iter().zip(v.shape()) {
                let got = i64::try_from(*d).map_err(|_| Error::Arithmetic)?;
                if let Expr::Sym(sym) = e
                    && let Some((first, at)) = known.get(sym).filter(|(first, _)| *first != got)
                {
                    let (a, b) = (plan.inputs[*at].name.clone(), s.name.clone());
                    return Err(Error::DimConflict { dim: plan.symbol_name(*sym), first: *first, a, second: got, b });
                }
                if let Some((sym, value)) = solve_one(e, got, &known) {
                    known.insert(sym, (value, i));
                }
            }
        }
        if known.len() == before {
            break;
        }
    }
    let symbols: Vec<i64> = (0..plan.symbols.len() as u32)
        .map(|i| match known.get(&i) {
            Some((v, _)) => Ok(*v),
            None if plan.symbols[i as usize].min == plan.symbols[i as usize].max => Ok(plan.symbols[i as usize].min),
            None => Err(Error::DimUnbound(plan.symbol_name(i))),
        })
        .collect::<Result<_, _>>()?;
    for (s, v) in plan.inputs.iter().zip(inputs) {
        for (e, d) in s.dims.iter().zip(v.shape()) {
            if e.eval(&symbols).ok() != i64::try_from(*d).ok() {
                return Err(mismatch(plan, s, v));
            }
        }
    }
    Ok(symbols)
}

/// The value of the one unknown symbol of an expression that is affine in it.
fn solve_one(e: &Expr, got: i64, known: &BTreeMap<u32, (i64, usize)>) -> Option<(u32, i64)> {
    let mut unknown = Vec::new();
    e.symbols(&mut |s| {
        if !known.contains_key(&s) && !unknown.contains(&s) {
            unknown.push(s);
        }
    });
    let [sym] = unknown.as_slice() else { return None };
    let at = |x: i64| e.try_eval(&|s| if s == *sym { Some(x) } else { known.get(&s).map(|(v, _)| *v) });
    let (zero, one, two) = (at(0)?, at(1)?, at(2)?);
    let slope = one.checked_sub(zero)?;
    if slope == 0 || two.checked_sub(one)? != slope {
        return None;
    }
    let rest = got.checked_sub(zero)?;
    (rest % slope == 0).then_some((*sym, rest / slope))
}

fn mismatch(plan: &Plan, s: &TensorSpec, v: &TensorView<'_>) -> Error {
    let dims: Vec<String> = v.shape().iter().map(usize::to_string).collect();
    let got = format!("{}[{}]", v.dtype().name(), dims.join(","));
    Error::InputType { name: s.name.clone(), expected: plan.type_text(s), got }
}

/// Evaluates the plan for symbol values.
pub(crate) fn bind(plan: &Plan, symbols: Vec<i64>) -> Result<Binding, Error> {
    for (s, v) in plan.symbols.iter().zip(&symbols) {
        if *v < s.min || *v > s.max {
            return Err(Error::DimRange { dim: s.name.clone(), value: *v, min: s.min, max: s.max });
        }
    }
    for c in &plan.checks {
        let (lhs, rhs) = (c.lhs.eval(&symbols)?, c.rhs.eval(&symbols)?);
        if lhs != rhs {
            return Err(Error::Check { message: c.message.clone(), lhs, rhs });
        }
    }
    let size = |e: &Expr| e.eval(&symbols).and_then(|v| usize::try_from(v).map_err(|_| Error::Arithmetic));
    let output_dims =
        plan.outputs.iter().map(|o| o.dims.iter().map(size).collect()).collect::<Result<Vec<Vec<usize>>, Error>>()?;
    let mut launches = Vec::with_capacity(plan.launches.len());
    let mut scratch_bytes = 0;
    for l in &plan.launches {
        launches.push(BoundLaunch { extent: l.extent.eval(&symbols)?, cost_ns: l.cost_ns.eval(&symbols).unwrap_or(i64::MAX) });
        scratch_bytes = scratch_bytes.max(size(&l.scratch_bytes)?);
    }
    let sizes = plan.temps.iter().map(|t| size(&t.size_bytes)).collect::<Result<Vec<_>, _>>()?;
    let (offsets, arena_bytes) = place(&sizes, &lifetimes(plan)).ok_or(Error::Arithmetic)?;
    Ok(Binding { symbols, output_dims, offsets, arena_bytes, launches, scratch_bytes })
}

/// First and last launch that touches each temporary.
fn lifetimes(plan: &Plan) -> Vec<Option<(usize, usize)>> {
    let mut all = vec![None; plan.temps.len()];
    for (i, l) in plan.launches.iter().enumerate() {
        for a in &l.args {
            if let Arg::Temp(t) = a {
                let life: &mut Option<(usize, usize)> = &mut all[*t as usize];
                *life = Some(life.map_or((i, i), |(first, _)| (first, i)));
            }
        }
    }
    all
}

/// Offsets such that buffers that live at the same time do not overlap: largest first, each at the lowest place that fits.
fn place(sizes: &[usize], lives: &[Option<(usize, usize)>]) -> Option<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let mut offsets = vec![0; sizes.len()];
    let mut placed: Vec<(usize, usize, usize)> = Vec::new();
    let mut total = 0;
    for i in order {
        let Some((first, last)) = lives[i] else { continue };
        let size = sizes[i].checked_next_multiple_of(ALIGN)?;
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, _, j)| lives[*j].is_some_and(|(f, l)| f <= last && first <= l))
            .map(|(start, end, _)| (*start, *end))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if at + size <= start {
                break;
            }
            at = at.max(end);
        }
        offsets[i] = at;
        let end = at.checked_add(size)?;
        placed.push((at, end, i));
        total = total.max(end);
    }
    Some((offsets, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_together_do_not_overlap() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..200 {
            let n = 1 + next(30) as usize;
            let sizes: Vec<usize> = (0..n).map(|_| next(500) as usize).collect();
            let lives: Vec<_> = (0..n)
                .map(|_| {
                    let first = next(40) as usize;
                    Some((first, first + next(10) as usize))
                })
                .collect();
            let (offsets, total) = place(&sizes, &lives).expect("small numbers");
            for i in 0..n {
                assert!(offsets[i] % ALIGN == 0 && offsets[i] + sizes[i] <= total);
                for j in 0..i {
                    let ((a, b), (c, d)) = (lives[i].expect("set"), lives[j].expect("set"));
                    let together = a <= d && c <= b;
                    let apart = offsets[i] + sizes[i] <= offsets[j] || offsets[j] + sizes[j] <= offsets[i];
                    assert!(!together || apart, "{i} and {j} overlap");
                }
            }
        }
    }
}
