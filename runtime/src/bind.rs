//! Binding: symbols from input shapes, then sizes, buffer offsets and launch extents.

use crate::Error;
use crate::abi::{Expr, Plan, TensorSpec};
use crate::place;
use crate::tensor::{TensorView, type_text};

/// Everything about one set of dims: computed once, then cached.
#[derive(Debug)]
pub(crate) struct Binding {
    /// Value of each symbol.
    pub(crate) symbols: Vec<i64>,
    /// Extents of each input and output.
    pub(crate) input_dims: Vec<Vec<usize>>,
    pub(crate) output_dims: Vec<Vec<usize>>,
    /// Size of each input and output.
    pub(crate) input_bytes: Vec<usize>,
    pub(crate) output_bytes: Vec<usize>,
    /// Offset and size of each temporary in the arena.
    pub(crate) offsets: Vec<usize>,
    pub(crate) temp_bytes: Vec<usize>,
    pub(crate) arena_bytes: usize,
    pub(crate) launches: Vec<BoundLaunch>,
    /// Scratch memory per thread, enough for every launch.
    pub(crate) scratch_bytes: usize,
    /// Scratch memory of all threads of a device, enough for every launch.
    pub(crate) device_scratch_bytes: usize,
}

/// A launch with its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundLaunch {
    /// Number of units, at least 0.
    pub(crate) extent: i64,
    /// Estimated time of all units on one thread.
    pub(crate) cost_ns: i64,
    /// Shared memory of a block of a device.
    pub(crate) shared_bytes: u32,
    /// See [`crate::abi::Work`].
    pub(crate) macs: u64,
    pub(crate) bytes: u64,
}

/// Finds each input of the plan among the given ones; `order` receives their positions.
pub(crate) fn order_inputs(plan: &Plan, given: &[(&str, TensorView<'_>)], order: &mut Vec<usize>) -> Result<(), Error> {
    let known = || {
        let all: Vec<String> = plan.inputs.iter().map(|s| format!("`{}` {}", s.name, plan.type_text(s))).collect();
        if all.is_empty() { "none".to_string() } else { all.join(", ") }
    };
    if let Some((name, _)) = given.iter().find(|(n, _)| plan.inputs.iter().all(|s| s.name != *n)) {
        return Err(Error::UnknownInput { name: (*name).to_string(), known: known() });
    }
    order.clear();
    for s in &plan.inputs {
        let mut hits = given.iter().enumerate().filter(|(_, (n, _))| *n == s.name);
        match (hits.next(), hits.next()) {
            (Some((i, _)), None) => order.push(i),
            (None, _) => return Err(Error::InputCount { name: s.name.clone(), what: "missing", known: known() }),
            (Some(_), Some(_)) => return Err(Error::InputCount { name: s.name.clone(), what: "given twice", known: known() }),
        }
    }
    Ok(())
}

/// Element type and rank of each input, which do not depend on the symbols.
pub(crate) fn check_types<'a>(plan: &Plan, inputs: impl Iterator<Item = TensorView<'a>>) -> Result<(), Error> {
    for (s, v) in plan.inputs.iter().zip(inputs) {
        if s.dtype != v.dtype() || s.dims.len() != v.shape().len() {
            return Err(mismatch(plan, s, &v));
        }
    }
    Ok(())
}

/// Symbol values from the shapes of inputs of the right types.
pub(crate) fn solve(plan: &Plan, inputs: &[TensorView<'_>]) -> Result<Vec<i64>, Error> {
    // Value of each symbol, and the input that gave it.
    let mut known: Vec<Option<(i64, usize)>> = vec![None; plan.symbols.len()];
    let dims = || {
        plan.inputs
            .iter()
            .zip(inputs)
            .enumerate()
            .flat_map(|(i, (s, v))| s.dims.iter().zip(v.shape()).map(move |(e, d)| (i, e, *d)))
    };
    // A dim of several symbols waits until others have solved all but one, so sweep until nothing changes.
    let mut progress = true;
    while std::mem::take(&mut progress) {
        for (i, e, d) in dims() {
            let value = |s: u32| known.get(s as usize).copied().flatten().map(|(v, _)| v);
            let Some(a) = e.affine(&value).filter(|a| a.scale != 0) else { continue };
            let rest = i64::try_from(d).ok().and_then(|d| d.checked_sub(a.rest));
            let solved = rest.filter(|r| r.checked_rem(a.scale) == Some(0)).and_then(|r| r.checked_div(a.scale));
            known[a.symbol as usize] = Some((solved.ok_or_else(|| mismatch(plan, &plan.inputs[i], &inputs[i]))?, i));
            progress = true;
        }
    }
    for (i, e, d) in dims() {
        let got = i64::try_from(d).map_err(|_| Error::Arithmetic)?;
        if let Expr::Sym(s) = e
            && let Some((first, at)) = known[*s as usize].filter(|(v, _)| *v != got)
        {
            let (a, b) = (plan.inputs[at].name.clone(), plan.inputs[i].name.clone());
            return Err(Error::DimConflict { dim: plan.symbol_name(*s), first, a, second: got, b });
        }
    }
    let fixed = |s: &crate::abi::Symbol| (s.min == s.max).then_some(s.min);
    let symbols: Vec<i64> = plan
        .symbols
        .iter()
        .zip(&known)
        .map(|(s, k)| k.map(|(v, _)| v).or_else(|| fixed(s)).ok_or_else(|| Error::DimUnbound(s.name.clone())))
        .collect::<Result<_, _>>()?;
    for (i, e, d) in dims() {
        if e.eval(&symbols).ok() != i64::try_from(d).ok() {
            return Err(mismatch(plan, &plan.inputs[i], &inputs[i]));
        }
    }
    Ok(symbols)
}

/// Symbol values from values by name; a dim with only one possible value may be left out.
pub(crate) fn symbols_by_name(plan: &Plan, dims: &[(&str, i64)]) -> Result<Vec<i64>, Error> {
    let known = || plan.symbols.iter().map(|s| format!("`{}` {}..{}", s.name, s.min, s.max)).collect::<Vec<_>>().join(", ");
    for (i, (name, _)) in dims.iter().enumerate() {
        if plan.symbols.iter().all(|s| s.name != *name) || dims[..i].iter().any(|(n, _)| n == name) {
            return Err(Error::UnknownDim { name: (*name).to_string(), known: known() });
        }
    }
    plan.symbols
        .iter()
        .map(|s| {
            let given = dims.iter().find(|(n, _)| *n == s.name).map(|(_, v)| *v);
            given.or((s.min == s.max).then_some(s.min)).ok_or_else(|| Error::DimUnbound(s.name.clone()))
        })
        .collect()
}

fn mismatch(plan: &Plan, s: &TensorSpec, v: &TensorView<'_>) -> Error {
    Error::InputType { name: s.name.clone(), expected: plan.type_text(s), got: type_text(v.dtype(), v.shape()) }
}

/// Evaluates a valid plan for symbol values.
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
    let dims = |specs: &[TensorSpec]| {
        specs.iter().map(|t| t.dims.iter().map(size).collect()).collect::<Result<Vec<Vec<usize>>, Error>>()
    };
    let bytes = |specs: &[TensorSpec], dims: &[Vec<usize>]| {
        let one = |(t, d): (&TensorSpec, &Vec<usize>)| d.iter().try_fold(t.dtype.size_bytes(), |a, d| a.checked_mul(*d));
        specs.iter().zip(dims).map(one).collect::<Option<Vec<usize>>>().ok_or(Error::Arithmetic)
    };
    let (input_dims, output_dims) = (dims(&plan.inputs)?, dims(&plan.outputs)?);
    let (input_bytes, output_bytes) = (bytes(&plan.inputs, &input_dims)?, bytes(&plan.outputs, &output_dims)?);
    let mut launches = Vec::with_capacity(plan.launches.len());
    let (mut scratch_bytes, mut device_scratch_bytes) = (0, 0);
    // Estimates may overflow where the sizes do not: then they are large.
    let estimate = |e: &Expr| e.eval(&symbols).map_or(u64::MAX, |v| u64::try_from(v).unwrap_or(0));
    for l in &plan.launches {
        let (units, scratch) = (size(&l.extent)?, size(&l.scratch_bytes)?);
        launches.push(BoundLaunch {
            extent: l.extent.eval(&symbols)?,
            cost_ns: l.cost_ns.eval(&symbols).unwrap_or(i64::MAX),
            shared_bytes: u32::try_from(size(&l.shared_bytes)?).map_err(|_| Error::Arithmetic)?,
            macs: estimate(&l.work.macs),
            bytes: estimate(&l.work.bytes),
        });
        scratch_bytes = scratch_bytes.max(scratch);
        let all = units.checked_mul(l.block as usize).and_then(|n| n.checked_mul(scratch)).ok_or(Error::Arithmetic)?;
        device_scratch_bytes = device_scratch_bytes.max(all);
    }
    let sizes = plan.temps.iter().map(|t| size(&t.size_bytes)).collect::<Result<Vec<_>, _>>()?;
    let (offsets, arena_bytes) = place::place(&sizes, &place::lives(plan)).ok_or(Error::Arithmetic)?;
    Ok(Binding {
        symbols,
        input_dims,
        output_dims,
        input_bytes,
        output_bytes,
        offsets,
        temp_bytes: sizes,
        arena_bytes,
        launches,
        scratch_bytes,
        device_scratch_bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::abi::{ABI_VERSION, Check, DType, Symbol};

    const BATCH: Expr = Expr::Sym(0);
    const SEQ: Expr = Expr::Sym(1);

    fn plan(inputs: &[(&str, &[Expr])]) -> Plan {
        let symbol = |name: &str, max| Symbol { name: name.into(), min: 1, max };
        let spec = |(name, dims): &(&str, &[Expr])| TensorSpec { name: (*name).into(), dtype: DType::F32, dims: dims.to_vec() };
        Plan {
            abi_version: ABI_VERSION,
            name: String::new(),
            producer: String::new(),
            features: vec![],
            device: None,
            kernels: vec![],
            symbols: vec![symbol("batch", 8), symbol("seq", 512)],
            inputs: inputs.iter().map(spec).collect(),
            outputs: vec![],
            temps: vec![],
            consts: vec![],
            launches: vec![],
            checks: vec![],
            ledger: vec![],
            facts: BTreeMap::new(),
        }
    }

    fn bound(plan: &Plan, given: &[(&str, DType, &[usize])]) -> Result<Vec<i64>, Error> {
        let bytes: Vec<Vec<u8>> = given.iter().map(|(_, d, s)| vec![0; s.iter().product::<usize>() * d.size_bytes()]).collect();
        let views: Vec<_> =
            given.iter().zip(&bytes).map(|((n, d, s), b)| (*n, TensorView::new(*d, s, b).expect("fits"))).collect();
        let mut order = Vec::new();
        order_inputs(plan, &views, &mut order)?;
        let ordered: Vec<_> = order.iter().map(|i| views[*i].1).collect();
        check_types(plan, ordered.iter().copied())?;
        bind(plan, solve(plan, &ordered)?).map(|b| b.symbols)
    }

    const F: DType = DType::F32;

    #[test]
    fn symbols_follow_from_the_shapes() {
        let p = plan(&[("x", &[BATCH, SEQ])]);
        assert_eq!(bound(&p, &[("x", F, &[2, 7])]).expect("fits"), [2, 7]);
        // The second dim needs `seq`, which only a later input gives; order of the given inputs does not matter.
        let sum = Expr::Add(vec![Expr::Mul(vec![Expr::Const(3), BATCH]), SEQ, Expr::Const(-1)]);
        let p = plan(&[("x", &[sum]), ("y", &[SEQ]), ("z", &[])]);
        assert_eq!(bound(&p, &[("z", F, &[]), ("y", F, &[5]), ("x", F, &[10])]).expect("fits"), [2, 5]);
        let mut p = plan(&[("x", &[BATCH])]);
        p.symbols[1] = Symbol { name: "seq".into(), min: 4, max: 4 };
        assert_eq!(bound(&p, &[("x", F, &[3])]).expect("fits"), [3, 4]);
    }

    #[test]
    fn errors_say_what_was_expected_and_what_was_given() {
        let p = plan(&[("x", &[BATCH, SEQ]), ("y", &[BATCH])]);
        let message = |given: &[(&str, DType, &[usize])]| bound(&p, given).expect_err("bad").to_string();
        assert_eq!(message(&[("x", F, &[4, 2]), ("y", F, &[8])]), "dim `batch` is 4 in `x` and 8 in `y`");
        assert_eq!(message(&[("x", F, &[4])]), "input `y` is missing; the inputs are `x` f32[batch,seq], `y` f32[batch]");
        assert!(message(&[("q", F, &[4])]).starts_with("`q` is not an input; the inputs are `x`"));
        assert!(message(&[("y", F, &[4]), ("x", F, &[4, 1]), ("y", F, &[4])]).starts_with("input `y` is given twice"));
        assert_eq!(message(&[("x", F, &[4]), ("y", F, &[4])]), "input `x` expects f32[batch,seq], got f32[4]");
        assert_eq!(message(&[("x", DType::I64, &[4, 1]), ("y", F, &[4])]), "input `x` expects f32[batch,seq], got i64[4,1]");
        assert_eq!(message(&[("x", F, &[9, 1]), ("y", F, &[9])]), "dim `batch` is 9, outside 1..8");
        assert_eq!(message(&[("x", F, &[0, 1]), ("y", F, &[0])]), "dim `batch` is 0, outside 1..8");
    }

    #[test]
    fn dims_that_have_no_solution_are_refused() {
        let p = plan(&[("x", &[Expr::Mul(vec![Expr::Const(2), BATCH]), SEQ])]);
        assert!(matches!(bound(&p, &[("x", F, &[3, 1])]), Err(Error::InputType { .. })));
        let half = Expr::FloorDiv(Box::new(BATCH), Box::new(Expr::Const(2)));
        assert!(matches!(bound(&plan(&[("x", &[half, SEQ])]), &[("x", F, &[3, 1])]), Err(Error::DimUnbound(_))));
        let p = plan(&[("x", &[BATCH, Expr::Const(3), SEQ])]);
        assert!(matches!(bound(&p, &[("x", F, &[1, 4, 1])]), Err(Error::InputType { .. })));
        let p = plan(&[("x", &[BATCH, SEQ, Expr::Add(vec![BATCH, SEQ])])]);
        assert!(matches!(bound(&p, &[("x", F, &[1, 2, 4])]), Err(Error::InputType { .. })));
        let mut p = plan(&[("x", &[BATCH, SEQ])]);
        p.checks.push(Check { lhs: BATCH, rhs: SEQ, message: "square".into() });
        assert_eq!(bound(&p, &[("x", F, &[2, 3])]).expect_err("not square").to_string(), "square: 2 is not 3");
    }

    #[test]
    fn dims_can_be_given_by_name() {
        let p = plan(&[]);
        assert_eq!(symbols_by_name(&p, &[("seq", 7), ("batch", 2)]).expect("all given"), [2, 7]);
        assert!(matches!(symbols_by_name(&p, &[("seq", 7)]), Err(Error::DimUnbound(_))));
        assert!(matches!(symbols_by_name(&p, &[("len", 7)]), Err(Error::UnknownDim { .. })));
        assert!(matches!(symbols_by_name(&p, &[("seq", 7), ("seq", 7), ("batch", 1)]), Err(Error::UnknownDim { .. })));
    }

    #[test]
    fn sizes_that_overflow_or_are_negative_are_refused() {
        let huge = Expr::Mul(vec![Expr::Const(i64::MAX / 2), SEQ]);
        let mut p = plan(&[]);
        p.outputs.push(TensorSpec { name: "y".into(), dtype: DType::F64, dims: vec![huge.clone()] });
        assert!(matches!(bind(&p, vec![1, 1]), Err(Error::Arithmetic)));
        p.outputs[0].dims = vec![Expr::Const(-1)];
        assert!(matches!(bind(&p, vec![1, 1]), Err(Error::Arithmetic)));
    }
}
