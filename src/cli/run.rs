//! `transc run`.

use std::time::{Duration, Instant};

use serde_json::json;
use transc::ir::diag::Fault;
use transc::ir::interp::{self, Tensor as Plain};
use transc::passes::{self, Precision};

use super::Failure;
use super::args::{RunArgs, Tolerance};
use super::compile::compiler;
use super::report::{Progress, clean};
use super::source;
use super::tensors::{self, Difference};

/// Runs the command.
pub fn run(a: &RunArgs, quiet: bool) -> Result<(), Failure> {
    let inputs = tensors::read_inputs(&a.inputs)?;
    let mut progress = Progress::new(quiet || a.json);
    let outputs = match (a.interpret, a.simulate) {
        (true, _) => interpret(a, &inputs)?,
        (_, true) => simulate(a, &inputs)?,
        _ => execute(a, &inputs, &mut progress)?,
    };
    if let Some(path) = &a.output_npz {
        source::write_npz(path, &outputs)?;
    }
    match &a.expect {
        Some(file) => {
            let expected = tensors::read_npz(file)?;
            let differences = check(&outputs, &expected, a.tolerance);
            if a.json {
                source::print_json(&differences_json(&differences));
            } else {
                print_differences(&differences);
            }
            if differences.iter().all(Difference::ok) { Ok(()) } else { Err(Failure::silent(Fault::Verify)) }
        }
        None => {
            print_outputs(&outputs, a.json);
            Ok(())
        }
    }
}

fn execute(a: &RunArgs, inputs: &[(String, Plain)], progress: &mut Progress) -> Result<Vec<(String, Plain)>, Failure> {
    let began = Instant::now();
    let session = source::open_session(&a.model, &a.target, a.device, a.threads, progress)?;
    let opened = began.elapsed();
    let first = Instant::now();
    let outputs = run_session(&session, inputs)?;
    if a.time_phases {
        let (first, second) = (first.elapsed(), Instant::now());
        run_session(&session, inputs)?;
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let (opened, first, second) = (ms(opened), ms(first), ms(second.elapsed()));
        eprintln!(
            "open {opened:.1} ms, first run {first:.1} ms, to the first result {:.1} ms, second run {second:.1} ms",
            opened + first
        );
    }
    Ok(outputs)
}

/// Runs a session on those of the arrays that are its inputs.
pub fn run_session(session: &transc::Session, inputs: &[(String, Plain)]) -> Result<Vec<(String, Plain)>, Failure> {
    let given = tensors::session_inputs(inputs, session)?;
    let views: Vec<_> = given.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let outputs = session.run(&views).map_err(transc::Error::from)?;
    outputs.into_iter().map(|(n, t)| Ok((n, tensors::to_plain(&t)?))).collect()
}

fn interpret(a: &RunArgs, inputs: &[(String, Plain)]) -> Result<Vec<(String, Plain)>, Failure> {
    let mut module = source::load_module(&a.model)?;
    let mut cx = source::pass_context();
    cx.merge = source::merge_spec(&a.target.lossy)?;
    cx.cuts = source::cut_spec(&a.target.lossy)?;
    cx.weights = source::weight_spec(&a.target.lossy)?;
    cx.precision = source::precision(&a.target.lossy)?;
    if !a.target.lossy.is_empty() {
        // Changed as compiled code would be, so that both can be compared.
        let last = if cx.precision == Precision::Model { "merge-tokens" } else { "round-products" };
        passes::run(&mut module, &passes::pipeline::until(last), &mut cx).map_err(transc::Error::from)?;
    }
    let operands = operands(&module, inputs)?;
    let values = interp::eval_module(&module, &operands).map_err(|e| source::missing(&e.to_string()))?;
    Ok(named(&module, values))
}

fn simulate(a: &RunArgs, inputs: &[(String, Plain)]) -> Result<Vec<(String, Plain)>, Failure> {
    let module = source::load_module(&a.model)?;
    let program = compiler(&a.target, None)?.lower(&module)?;
    let program = program.expanded().map_err(transc::Error::from)?;
    let values = transc::simulate(&program, &operands(&module, inputs)?).map_err(|e| {
        let fault = if e.is_fault_of_data() { Fault::Invalid } else { Fault::Bug };
        Failure::one("T0908", fault, e.to_string(), "")
    })?;
    Ok(named(&module, values))
}

/// The arrays in the order of a module's inputs.
fn operands(module: &transc::ir::Module, inputs: &[(String, Plain)]) -> Result<Vec<Plain>, Failure> {
    let find = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
    let one = |name: &str| find(name).ok_or_else(|| source::missing(&format!("input `{name}` is missing")));
    module.main.params().iter().map(|(name, _)| one(name)).collect()
}

/// Values with the names of a module's results.
fn named(module: &transc::ir::Module, values: Vec<Plain>) -> Vec<(String, Plain)> {
    module.main.results().iter().map(|(n, _)| n.clone()).zip(values).collect()
}

/// Compares outputs by name; an output that is missing on either side is a mismatch.
pub fn check(got: &[(String, Plain)], want: &[(String, Plain)], tolerance: Tolerance) -> Vec<Difference> {
    let absent = |name: &str, side: &str| Difference {
        name: name.into(),
        mismatch: Some(format!("is missing from the {side}")),
        max_abs: 0.0,
        max_rel: 0.0,
        at: Vec::new(),
        outside: 0,
    };
    let find = |list: &[(String, Plain)], name: &str| list.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
    let mut all: Vec<Difference> = want
        .iter()
        .map(|(name, w)| match find(got, name) {
            Some(g) => tensors::difference(name, &g, w, tolerance),
            None => absent(name, "outputs"),
        })
        .collect();
    all.extend(got.iter().filter(|(n, _)| find(want, n).is_none()).map(|(n, _)| absent(n, "expected file")));
    all
}

/// One row per output, for scripts.
pub fn differences_json(all: &[Difference]) -> serde_json::Value {
    let rows: Vec<_> = all
        .iter()
        .map(|d| json!({"name": d.name, "ok": d.ok(), "max_abs": d.max_abs, "max_rel": d.max_rel, "at": d.at, "outside": d.outside, "mismatch": d.mismatch}))
        .collect();
    json!({"schema_version": 1, "ok": all.iter().all(Difference::ok), "outputs": rows})
}

/// Prints one line per output.
pub fn print_differences(all: &[Difference]) {
    for d in all {
        let verdict = if d.ok() { "ok  " } else { "FAIL" };
        let text = match &d.mismatch {
            Some(m) => format!("{verdict} {} {m}\n", clean(&d.name)),
            None => format!(
                "{verdict} {} max abs {:.3e}, max rel {:.3e} at {:?}, {} outside\n",
                clean(&d.name),
                d.max_abs,
                d.max_rel,
                d.at,
                d.outside
            ),
        };
        source::print_text(&text);
    }
}

fn print_outputs(outputs: &[(String, Plain)], as_json: bool) {
    if as_json {
        let rows: Vec<_> = outputs.iter().map(|(n, t)| json!({"name": n, "dtype": t.dtype.name(), "dims": t.dims})).collect();
        source::print_json(&json!({"schema_version": 1, "outputs": rows}));
        return;
    }
    for (name, t) in outputs {
        let shown: Vec<String> = (0..t.count().min(8)).map(|i| format!("{}", t.get_f64(i))).collect();
        let more = if t.count() > 8 { ", .." } else { "" };
        source::print_text(&format!("{}: {} = [{}{more}]\n", clean(name), t.ty(), shown.join(", ")));
    }
}
