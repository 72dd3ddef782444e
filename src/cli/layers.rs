//! `transc report`: size, time and error of each layer, before and after lossy steps.

use std::collections::BTreeMap;

use serde_json::json;
use transc::ir::types::DType;
use transc::{Compiled, Tensor};
use transc_codegen::{Arg, LayerChoice, Program};

use super::Failure;
use super::args::ReportArgs;
use super::compile::compiler;
use super::report::{Progress, clean};
use super::{source, tensors};

/// Runs of which the fastest counts, launch by launch.
const RUNS: usize = 10;

/// What a layer takes.
struct Cost {
    bytes: usize,
    micros: f64,
    kernel: String,
}

/// Runs the command.
pub fn run(a: &ReportArgs, quiet: bool) -> Result<(), Failure> {
    let mut progress = Progress::new(quiet || a.json);
    progress.phase("import");
    let module = source::load_module(&a.model)?;
    let arrays = tensors::read_npz(&a.calib)?;
    let inputs = tensors::known_inputs(&arrays, &module)?;
    let lossy = compiler(&a.target, None)?.calibration(tensors::known_inputs(&arrays, &module)?);
    let exact = lossy.clone().without_lossy_steps();
    let mut cx = source::pass_context();
    let before = exact.compile_with(&module, &mut source::pass_context(), &mut |phase| progress.phase(phase))?;
    let after = lossy.compile_with(&module, &mut cx, &mut |phase| progress.phase(phase))?;
    progress.phase("time");
    let (old, new) = (costs(&before, &inputs, a.threads)?, costs(&after, &inputs, a.threads)?);
    progress.end();
    let errors: BTreeMap<&str, f64> = cx.weights.errors.iter().map(|(n, e)| (n.as_str(), *e)).collect();
    let mut names: Vec<&str> = before.program.layers.iter().map(|(loc, _)| loc.path()).collect();
    names.dedup();
    let kept = |n: &str| cx.remarks.iter().any(|r| r.pass == "compress-weights" && r.loc.path() == n);
    if a.json {
        let row = |n: &&str| {
            let side = |c: Option<&Cost>| c.map(|c| json!({"bytes": c.bytes, "us": c.micros, "kernel": c.kernel}));
            json!({"node": n, "before": side(old.get(*n)), "after": side(new.get(*n)), "error": errors.get(*n), "kept": kept(n)})
        };
        let rows: Vec<_> = names.iter().map(row).collect();
        source::print_json(&json!({"schema_version": 1, "layers": rows, "error": after.error}));
        return Ok(());
    }
    let mut text = format!("{:>10} {:>10} {:>9} {:>9} {:>9}  {:<10} layer\n", "bytes", "after", "us", "after", "error", "kernel");
    let none = Cost { bytes: 0, micros: 0.0, kernel: "-".into() };
    let mut total = [0.0; 4];
    for n in names {
        let (b, c) = (old.get(n).unwrap_or(&none), new.get(n).unwrap_or(&none));
        let error = errors.get(n).map_or_else(|| "-".into(), |e| format!("{e:.2e}"));
        let kept = if kept(n) { ", kept" } else { "" };
        text.push_str(&format!(
            "{:>10} {:>10} {:>9.1} {:>9.1} {error:>9}  {:<10} {}{kept}\n",
            b.bytes,
            c.bytes,
            b.micros,
            c.micros,
            c.kernel,
            clean(n)
        ));
        for (t, v) in total.iter_mut().zip([b.bytes as f64, c.bytes as f64, b.micros, c.micros]) {
            *t += v;
        }
    }
    text.push_str(&format!("{:>10} {:>10} {:>9.1} {:>9.1}  all layers\n", total[0], total[1], total[2], total[3]));
    if let Some(error) = after.error {
        text.push_str(&format!("relative error of the outputs: {error:.2e}\n"));
    }
    source::print_text(&text);
    Ok(())
}

/// By node: the bytes of the constants that its launches read, and their time.
fn costs(compiled: &Compiled, inputs: &[(String, Tensor)], threads: usize) -> Result<BTreeMap<String, Cost>, Failure> {
    let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let session = compiled.session(threads)?;
    let mut fastest: Vec<u64> = vec![u64::MAX; compiled.program.launches.len()];
    for _ in 0..RUNS {
        let times = session.profile_run(&views).map_err(transc::Error::from)?;
        fastest.iter_mut().zip(times).for_each(|(best, span)| *best = (*best).min(span.ns));
    }
    let p = &compiled.program;
    let mut all: BTreeMap<String, Cost> = BTreeMap::new();
    for (launch, ns) in p.launches.iter().zip(fastest) {
        let bytes: usize = launch.args.iter().map(|a| if let Arg::Const(i) = a { p.consts[*i].len_bytes() } else { 0 }).sum();
        let path = launch.loc.path();
        let cost = all.entry(path.into()).or_insert_with(|| Cost { bytes: 0, micros: 0.0, kernel: kernel(p, path) });
        cost.bytes += bytes;
        cost.micros += ns as f64 / 1e3;
    }
    Ok(all)
}

/// What multiplies in a layer.
fn kernel(p: &Program, path: &str) -> String {
    let name = |l: &LayerChoice| {
        let dtype = if l.dtype == DType::I8 { "int8".into() } else { l.dtype.to_string() };
        match l.sparse {
            Some(block) => format!("{dtype} {block}"),
            None if l.bits < 8 * l.dtype.size_bytes() => format!("{dtype} w{}", l.bits),
            None => dtype,
        }
    };
    p.layers.iter().find(|(loc, _)| loc.path() == path).map_or_else(|| "-".into(), |(_, l)| name(l))
}
