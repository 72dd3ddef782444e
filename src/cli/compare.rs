//! `transc compare`: two models on the same inputs; where their outputs differ, also layer by layer.

use std::collections::BTreeMap;

use serde_json::json;
use transc::ir::diag::Fault;
use transc::ir::interp::Tensor as Plain;
use transc::ir::op::Op;
use transc::ir::types::DType;
use transc::ir::{Func, Module, Value};
use transc::passes::{self, CutSpec, WeightSpec};
use transc::{Compiler, Tensor};

use super::Failure;
use super::args::{CompareArgs, LossyArgs, ModelArgs, TargetArgs};
use super::compile::compiler;
use super::report::{Progress, clean};
use super::run::{check, differences_json, print_differences, run_session};
use super::source;
use super::tensors::{self, Difference};

/// Runs the command. Lossy options are for the second model.
pub fn run(a: &CompareArgs, quiet: bool) -> Result<(), Failure> {
    let inputs = tensors::read_inputs(&a.inputs)?;
    let mut progress = Progress::new(quiet || a.json);
    let exact = TargetArgs { lossy: LossyArgs::default(), ..a.target.clone() };
    let mut results = Vec::new();
    let mut models = Vec::new();
    for (path, target) in [(&a.a, &exact), (&a.b, &a.target)] {
        let model = ModelArgs { model: path.clone(), dims: Vec::new(), set: Vec::new() };
        if source::is_artefact(path) {
            let session = source::open_session(&model, target, None, a.threads, &mut progress)?;
            results.push(run_session(&session, &inputs)?);
            continue;
        }
        progress.phase("import");
        let module = source::load_module(&model)?;
        let compiler = compiler(target, None)?.calibration(tensors::known_inputs(&inputs, &module)?);
        let mut cx = source::pass_context();
        let compiled = compiler.compile_with(&module, &mut cx, &mut |phase| progress.phase(phase))?;
        results.push(run_session(&compiled.session(a.threads)?, &inputs)?);
        models.push(Model { module, cuts: cx.cuts, weights: cx.weights, exact: compiler.without_lossy_steps() });
    }
    let differences = check(&results[1], &results[0], a.tolerance);
    let same = differences.iter().all(Difference::ok);
    let layers = match models.as_slice() {
        [before, after] if !same => {
            progress.phase("layers");
            layers(before, after, &inputs, a.threads)?
        }
        _ => Vec::new(),
    };
    progress.end();
    // The first layer beyond the tolerance; rounding alone stays far below it.
    let first = layers.iter().find(|(_, error)| *error > a.tolerance.rtol || error.is_nan());
    if a.json {
        let mut all = differences_json(&differences);
        all["layers"] = layers.iter().map(|(node, error)| json!({"node": node, "error": error})).collect();
        all["first"] = json!(first.map(|(node, _)| node));
        source::print_json(&all);
    } else {
        print_differences(&differences);
        for (node, error) in &layers {
            source::print_text(&format!("{error:>9.2e}  {}\n", clean(node)));
        }
        if let Some((node, error)) = first {
            source::print_text(&format!("departs first at \"{}\", relative error {error:.2e}\n", clean(node)));
        }
    }
    if same { Ok(()) } else { Err(Failure::silent(Fault::Verify)) }
}

/// A model that was compiled.
struct Model {
    module: Module,
    /// What was cut from its layers.
    cuts: CutSpec,
    /// How its layers were compressed.
    weights: WeightSpec,
    /// Its compiler without lossy steps.
    exact: Compiler,
}

impl Model {
    /// The module with its layers compressed, before anything is fused: the values of its nodes can still be told apart.
    fn compressed(&self) -> Result<Module, Failure> {
        let (mut module, mut cx) = (self.module.clone(), source::pass_context());
        cx.cuts = self.cuts.clone();
        cx.weights = self.weights.clone();
        let last = if self.weights.attention.is_empty() { "compress-weights" } else { "code-attention" };
        passes::run(&mut module, &passes::pipeline::until(last), &mut cx).map_err(transc::Error::from)?;
        Ok(module)
    }
}

/// The relative error of each layer that both models have, in the first one's order.
fn layers(before: &Model, after: &Model, inputs: &[(String, Plain)], threads: usize) -> Result<Vec<(String, f64)>, Failure> {
    let (mut a, mut b) = (before.compressed()?, after.compressed()?);
    let (last_a, last_b) = (last_values(&a.main), last_values(&b.main));
    let is_layer = |op: &Op| {
        matches!(op, Op::Contract(_) | Op::Conv(_) | Op::Attention(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Softmax(_))
    };
    let mut names: Vec<String> = Vec::new();
    for (_, n) in a.main.nodes().filter(|(_, n)| is_layer(&n.op)) {
        let (path, types) =
            (n.loc.path(), [(&a, &last_a), (&b, &last_b)].map(|(m, l)| l.get(n.loc.path()).map(|v| m.main.ty(*v))));
        if types[0].is_some() && types[0] == types[1] && !names.iter().any(|n| n == path) {
            names.push(path.into());
        }
    }
    let mut values = Vec::new();
    for (m, last, exact) in [(&mut a, &last_a, &before.exact), (&mut b, &last_b, &after.exact)] {
        let outputs = m.main.results().len();
        names.iter().enumerate().for_each(|(i, n)| m.main.add_result(&format!("layer {i}"), last[n.as_str()]));
        let given = tensors::known_inputs(inputs, m)?;
        let given: Vec<_> = given.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        let seen: Vec<(String, Tensor)> = exact.compile(m)?.session(threads)?.run(&given).map_err(transc::Error::from)?;
        values.push(seen.into_iter().skip(outputs).collect::<Vec<_>>());
    }
    let error = |i: usize| transc::relative_error(&values[0][i..=i], &values[1][i..=i]).unwrap_or(0.0);
    Ok(names.into_iter().enumerate().map(|(i, n)| (n, error(i))).collect())
}

/// The last value in `f32` that each of the user's nodes became.
fn last_values(f: &Func) -> BTreeMap<String, Value> {
    let named = f.nodes().filter(|(_, n)| !n.loc.path().is_empty() && f.ty(n.results[0]).dtype == DType::F32);
    named.map(|(_, n)| (n.loc.path().to_string(), n.results[0])).collect()
}
