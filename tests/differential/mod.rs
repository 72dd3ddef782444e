//! All ways to run a model judge each other: the interpreter settles what is right, every backend must agree.

#[path = "../../passes/tests/kit/cases.rs"]
mod cases;
mod graph;
// The passes' tests use parts that these tests do not.
#[allow(dead_code, reason = "shared with the tests of the passes")]
#[path = "../../passes/tests/kit/mod.rs"]
mod graphs;
mod shrink;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use transc::ir::Module;
use transc::ir::interp::{Tensor, eval_module};
use transc::ir::op::{self, Op, ReduceKind};
use transc::ir::tensor::rewrite::rewrite;
use transc::ir::tensor::{Builder, Node, Value};
use transc_passes::egraph::drawn;

use crate::kit;
use crate::ways::{self, Failure, Ready, Way};
use graphs::Random;
use shrink::{Case, shrink};

/// Random graphs of one run of the tests; `TRANSC_GRAPHS` asks for another number.
const GRAPHS: u64 = 512;

/// Forms of each graph of the rules.
const FORMS: usize = 8;
/// Several rules, of which each may round elsewhere by 1e-4, make a form. A fault is of the order of the values.
const FORM_TOLERANCE: f64 = 1e-3;

/// The optimiser at full effort is the business of the model tests; here its time would be most of all.
const OPT_LEVEL: u8 = 1;

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
            Err(Failure::Refused(_)) => return None,
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
    c.difference(way.run(&c.module, &c.inputs), &c.value()?)
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
    let (ways, mut failures, mut valueless) = (ways::ways(OPT_LEVEL), Vec::new(), 0);
    let (mut ops, mut refused): (BTreeMap<&str, usize>, BTreeMap<&str, u64>) = Default::default();
    for seed in 0..count {
        let case = case(seed);
        case.module.main.nodes().for_each(|(_, n)| *ops.entry(n.op.mnemonic()).or_default() += 1);
        let Some(want) = case.value() else {
            valueless += 1;
            continue;
        };
        for way in &ways {
            let got = way.run(&case.module, &case.inputs);
            if matches!(got, Err(Failure::Refused(_))) {
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

/// Every graph on which a rule is tested, in forms that are drawn from its own e-graph, as code.
#[test]
fn forms_of_a_graph_agree_in_code() {
    let ways = ways::ways(OPT_LEVEL);
    // That which compiles in the shortest time, where the build has it.
    let way = ways.iter().find(|w| w.name == "clif").unwrap_or(&ways[0]);
    let mut compared = 0;
    for (seed, (path, module)) in (0..).zip(cases::of(&kit::root().join("tests/rules"))) {
        let mut r = Random::new(seed);
        let inputs = graphs::inputs(&module, &mut r, false);
        let Ok(want) = eval_module(&module, &inputs) else { continue };
        let forms = drawn(&module, FORMS, &mut || 1.0 + r.below(1000) as f64).expect("forms");
        for (i, form) in forms.iter().enumerate() {
            let at = format!("{}, form {i}, {}", path.display(), way.name);
            let got = match way.run(form, &inputs) {
                Ok(got) => got,
                Err(Failure::Refused(_)) => continue,
                Err(Failure::Fault(e)) => panic!("{at}: {e}\n{form}"),
            };
            for (g, w) in got.iter().zip(&want) {
                assert_eq!(kit::difference(g, w, FORM_TOLERANCE, FORM_TOLERANCE), None, "{at}\n{form}");
            }
            compared += 1;
        }
    }
    println!("{compared} forms agree with their graphs by {}", way.name);
    assert!(compared >= 500, "only {compared} forms");
}

/// The harness itself: a wrong op anywhere in a graph is found, and what is left of the graph is that op.
#[test]
fn a_fault_is_found_and_shrunk() {
    let faulty = |m: &Module| {
        let mut wrong = m.clone();
        let smallest_for_sum = |b: &mut Builder<'_>, _, n: &Node, operands: &[Value]| match &n.op {
            Op::Reduce(r) if r.kind == ReduceKind::Sum => {
                b.add_multi(op::Reduce { kind: ReduceKind::Min, ..r.clone() }, operands).map(Some)
            }
            _ => Ok(None),
        };
        wrong.main = rewrite(m.main.clone(), &mut wrong.consts, smallest_for_sum).expect("the same types");
        let run = move |inputs: &[Tensor]| eval_module(&wrong, inputs).map_err(|e| Failure::Fault(e.to_string()));
        Ok(Box::new(run) as Ready)
    };
    let way = Way { name: "faulty", simulated: false, prepare: Box::new(faulty) };
    let hit = (0..256).map(case).filter(|c| differs(&way, c).is_some());
    let sizes: Vec<(usize, usize)> =
        hit.map(|c| (c.module.main.node_count(), shrink(&c, &|c| differs(&way, c).is_some()).module.main.node_count())).collect();
    println!("nodes before and after: {sizes:?}");
    assert!(sizes.len() >= 8, "the fault shows in only {} of 256 graphs", sizes.len());
    assert!(sizes.iter().all(|(_, after)| *after == 1), "{sizes:?}");
}

/// The interpreter and all ways on a model, against the outputs of its reference.
fn model_agrees(model: &Path, arrays: &[(String, Tensor)], golden: &[(String, Tensor)], atol: f64) {
    let module = transc::load(model).expect("the model imports");
    let inputs = ways::inputs(&module, arrays);
    let check = |way: &str, got: Vec<Tensor>| {
        let got: Vec<_> = module.main.results().iter().map(|(n, _)| n.clone()).zip(got).collect();
        let golden: Vec<_> = golden.iter().filter(|(n, _)| got.iter().any(|(g, _)| g == n)).cloned().collect();
        assert!(!golden.is_empty(), "the reference has outputs of the model");
        assert_eq!(kit::outputs_differ(&got, &golden, 0.0, atol), None, "{way}");
    };
    check("interpreter", eval_module(&module, &inputs).expect("the interpreter runs"));
    for way in ways::ways(OPT_LEVEL) {
        match way.run(&module, &inputs) {
            Ok(got) => check(way.name, got),
            Err(Failure::Refused(why) | Failure::Fault(why)) => panic!("{}: {why}", way.name),
        }
    }
}

#[test]
fn digits_agree() {
    let dir = kit::root().join("examples/digits-vit");
    let first = |file: &str| kit::rows(&kit::npz(&dir.join(file)), 0..3);
    model_agrees(&dir.join("model.onnx"), &first("heldout.npz"), &first("golden.npz"), 1e-4);
}

#[test]
fn a_sentence_agrees() {
    let Some(model) = kit::minilm() else { return };
    let dir = kit::root().join("tests/data/minilm");
    model_agrees(&model, &kit::npz(&dir.join("inputs_b1.npz")), &kit::npz(&dir.join("outputs_b1.npz")), 1e-4);
}
