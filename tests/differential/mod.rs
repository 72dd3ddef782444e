//! All ways to run a model judge each other: the interpreter settles what is right, every backend must agree.

mod graph;
// The passes' tests use parts that these tests do not.
#[allow(dead_code, reason = "shared with the tests of the passes")]
#[path = "../../passes/tests/kit/mod.rs"]
mod graphs;
mod shrink;

use std::collections::BTreeMap;
use std::path::PathBuf;

use transc::ir::Module;
use transc::ir::diag::{Diagnose, Fault};
use transc::ir::interp::{Tensor, eval_module};
use transc::ir::op::{self, Op, ReduceKind};
use transc::ir::tensor::rewrite::rewrite;
use transc::ir::tensor::{Builder, Node, Value};
use transc::{Backend, Compiler, Target};

use crate::kit;
use graphs::Random;
use shrink::{Case, shrink};

/// Random graphs of one run of the tests; `TRANSC_GRAPHS` asks for another number.
const GRAPHS: u64 = 512;

/// Why a way gave no values.
enum Failure {
    /// The compiler says that it has no code for this: no fault, but counted.
    Refused,
    Fault(String),
}

impl<E: Into<transc::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        let e = e.into();
        let refused = e.diagnostics().iter().all(|d| d.fault == Fault::Unsupported);
        if refused { Failure::Refused } else { Failure::Fault(e.to_string()) }
    }
}

type Run = Box<dyn Fn(&Module, &[Tensor]) -> Result<Vec<Tensor>, Failure>>;

/// A way to run a module: its name, and outputs from inputs.
struct Way {
    name: &'static str,
    run: Run,
}

/// The ways of this build. A new one is one row.
fn ways() -> Vec<Way> {
    let compiled = |b: Backend| Way { name: b.name(), run: Box::new(move |m, inputs| run_compiled(b, m, inputs)) };
    let mut all: Vec<Way> = Backend::built().map(compiled).collect();
    let simulated = |name, target: Target| Way { name, run: Box::new(move |m, inputs| run_loops(&target, m, inputs)) };
    all.push(simulated("loops", Target::X86_64_V3));
    all.push(simulated("ptx", Target::CUDA_SM_80));
    all
}

/// The loop IR for a target in its own interpreter, which also watches every access, and for a device every race.
fn run_loops(target: &Target, m: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
    let program = Compiler::new().target(target.clone()).lower(m)?.expanded()?;
    transc::simulate(&program, inputs).map_err(|e| Failure::Fault(e.to_string()))
}

fn run_compiled(b: Backend, m: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
    // The optimiser at full effort is the business of the model tests; here its time would be most of all.
    let session = Compiler::new().backend(b).opt_level(1).threads(1).compile(m)?.session(1)?;
    let named: Vec<(String, Tensor)> = m.main.params().iter().map(|(n, _)| n.clone()).zip(inputs.iter().cloned()).collect();
    Ok(kit::run(&session, &named)?.into_iter().map(|(_, t)| t).collect())
}

impl Case {
    /// What the interpreter gives; `None` where it has no value, such as the quotient by zero: there a way may stop or have skipped what
    /// nobody reads.
    fn value(&self) -> Option<Vec<Tensor>> {
        eval_module(&self.module, &self.inputs).ok()
    }

    /// The first difference between what a way gave and the interpreter's values.
    fn difference(&self, got: Result<Vec<Tensor>, Failure>, want: &[Tensor]) -> Option<String> {
        let got = match got {
            Ok(got) => got,
            Err(Failure::Refused) => return None,
            Err(Failure::Fault(e)) => return Some(e),
        };
        let results = self.module.main.results();
        if got.len() != results.len() {
            return Some(format!("{} results instead of {}", got.len(), results.len()));
        }
        let mut pairs = results.iter().zip(got.iter().zip(want));
        pairs.find_map(|((name, v), (g, w))| kit::difference(g, w, 0.0, self.bounds[v.index()]).map(|d| format!("{name}: {d}")))
    }
}

/// How a way differs from the interpreter on a case.
fn differs(way: &Way, c: &Case) -> Option<String> {
    c.difference((way.run)(&c.module, &c.inputs), &c.value()?)
}

/// Shrinks a case and writes it where the message says.
fn report(way: &Way, name: &str, case: &Case) -> String {
    let small = shrink(case, &|c| differs(way, c).is_some());
    let why = differs(way, &small).unwrap_or_default();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("differential");
    std::fs::create_dir_all(&dir).expect("a folder for the case");
    let file = dir.join(format!("{name}-{}.tir", way.name));
    std::fs::write(&file, small.module.to_string()).expect("the case can be written");
    let arrays = small.module.main.params().iter().zip(&small.inputs).map(|((n, _), t)| (n.as_str(), t));
    let npz = transc_frontend::npz::write(arrays).unwrap_or_else(|_| panic!("{name}: the inputs can be written"));
    std::fs::write(file.with_extension("npz"), npz).expect("the inputs can be written");
    format!("{} differs from the interpreter: {why}\n  {}\n{}", way.name, file.display(), small.module)
}

/// Inputs of a random graph. NaN and infinities stay where no rounding is involved; a bound of errors says nothing about them.
fn inputs(g: &graph::Graph, r: &mut Random) -> Vec<Tensor> {
    graphs::inputs(&g.module, r, g.bounds.iter().all(|b| *b == 0.0))
}

/// The random case of a seed.
fn case(seed: u64) -> Case {
    let mut r = Random::new(seed);
    let steps = 3 + r.below(8);
    let g = graph::random(&mut r, steps);
    let inputs = inputs(&g, &mut r);
    Case { module: g.module, inputs, bounds: g.bounds }
}

#[test]
fn random_graphs_agree() {
    let count = std::env::var("TRANSC_GRAPHS").map_or(GRAPHS, |n| n.parse().expect("TRANSC_GRAPHS is a number"));
    let (ways, mut failures, mut valueless) = (ways(), Vec::new(), 0);
    let (mut ops, mut refused): (BTreeMap<&str, usize>, BTreeMap<&str, u64>) = Default::default();
    for seed in 0..count {
        let case = case(seed);
        case.module.main.nodes().for_each(|(_, n)| *ops.entry(n.op.mnemonic()).or_default() += 1);
        let Some(want) = case.value() else {
            valueless += 1;
            continue;
        };
        for way in &ways {
            let got = (way.run)(&case.module, &case.inputs);
            if matches!(got, Err(Failure::Refused)) {
                *refused.entry(way.name).or_default() += 1;
            }
            if case.difference(got, &want).is_some() {
                failures.push(report(way, &format!("seed{seed}"), &case));
            }
        }
        if failures.len() > 4 {
            break;
        }
    }
    let names: Vec<&str> = ways.iter().map(|w| w.name).collect();
    println!("{count} random graphs, {valueless} without a value, by {}, refused {refused:?}: {ops:?}", names.join(", "));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(valueless * 5 < count, "{valueless} graphs have no value");
    assert!(refused.values().all(|n| n * 20 < count), "too many graphs are refused: {refused:?}");
    assert!(ops.len() >= 30, "the graphs cover only {} ops", ops.len());
}

/// The harness itself: a wrong op anywhere in a graph is found, and what is left of the graph is that op.
#[test]
fn a_fault_is_found_and_shrunk() {
    let faulty = |m: &Module, inputs: &[Tensor]| {
        let mut wrong = m.clone();
        let smallest_for_sum = |b: &mut Builder<'_>, _, n: &Node, operands: &[Value]| match &n.op {
            Op::Reduce(r) if r.kind == ReduceKind::Sum => {
                b.add_multi(op::Reduce { kind: ReduceKind::Min, ..r.clone() }, operands).map(Some)
            }
            _ => Ok(None),
        };
        wrong.main = rewrite(m.main.clone(), &mut wrong.consts, smallest_for_sum).expect("the same types");
        eval_module(&wrong, inputs).map_err(|e| Failure::Fault(e.to_string()))
    };
    let way = Way { name: "faulty", run: Box::new(faulty) };
    let hit = (0..256).map(case).filter(|c| differs(&way, c).is_some());
    let sizes: Vec<(usize, usize)> =
        hit.map(|c| (c.module.main.node_count(), shrink(&c, &|c| differs(&way, c).is_some()).module.main.node_count())).collect();
    println!("nodes before and after: {sizes:?}");
    assert!(sizes.len() >= 8, "the fault shows in only {} of 256 graphs", sizes.len());
    assert!(sizes.iter().all(|(_, after)| *after == 1), "{sizes:?}");
}

/// The ways on a model against the interpreter, on inputs by name.
fn model_agrees(model: &std::path::Path, arrays: &[(String, Tensor)], atol: f64) {
    let module = transc::load(model).expect("the model imports");
    let find = |n: &str| arrays.iter().find(|(a, _)| a == n).map(|(_, t)| t.clone()).expect("an input");
    let inputs: Vec<Tensor> = module.main.params().iter().map(|(n, _)| find(n)).collect();
    let want = eval_module(&module, &inputs).expect("the interpreter runs");
    for way in ways() {
        let got = (way.run)(&module, &inputs).unwrap_or_else(|e| match e {
            Failure::Refused => panic!("{} refuses the model", way.name),
            Failure::Fault(e) => panic!("{}: {e}", way.name),
        });
        for (((name, _), g), w) in module.main.results().iter().zip(&got).zip(&want) {
            assert_eq!(kit::difference(g, w, 0.0, atol), None, "{} {name}", way.name);
        }
    }
}

#[test]
fn digits_agree() {
    let dir = kit::root().join("examples/digits-vit");
    model_agrees(&dir.join("model.onnx"), &kit::first_rows(kit::npz(&dir.join("heldout.npz")), 3), 1e-4);
}

#[test]
fn a_short_sentence_agrees() {
    let model = kit::root().join("models/minilm");
    if !model.join("model.safetensors").exists() {
        println!("skipped: the MiniLM weights are not here (./x models fetches them)");
        return;
    }
    let tokens = |values: [i64; 6]| Tensor {
        dtype: transc::ir::DType::I64,
        dims: vec![1, values.len()],
        data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let arrays = [("input_ids", [101, 1037, 2460, 6251, 1012, 102]), ("attention_mask", [1; 6]), ("token_type_ids", [0; 6])];
    let arrays: Vec<_> = arrays.into_iter().map(|(n, v)| (n.to_string(), tokens(v))).collect();
    model_agrees(&model, &arrays, 1e-4);
}
