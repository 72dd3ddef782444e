//! Models of layers that are spelled out as exporters do. Equal layers are saturated once: the work on a deep model is that on a shallow one.
//! And self-attack: forms of a graph that are drawn at random from its own e-graph agree with it under the interpreter.

#[path = "kit/cases.rs"]
mod cases;
mod kit;

use std::path::Path;
use std::time::Instant;

use kit::Random;
use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Reduce, ReduceKind, Slice, Softmax};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::tensor::{Builder, Value};
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{DType, Dim, Loc, Module, TensorType};
use transc_passes::egraph::drawn;
use transc_passes::{Codes, PassCx, PassStats, macs_of, optimise};

/// More than what a piece holds as a constant of its own.
const WIDTH: usize = 96;

/// Builds layers; every weight has values of its own.
struct Layers<'a> {
    b: Builder<'a>,
    /// Features of a token.
    width: usize,
    weights: usize,
}

impl<'a> Layers<'a> {
    fn new(b: Builder<'a>, width: usize) -> Self {
        Self { b, width, weights: 0 }
    }

    fn weight(&mut self, dims: &[usize]) -> Value {
        self.weights += 1;
        let data: Vec<f32> = (0..dims.iter().product()).map(|i| ((i * 7 + self.weights * 13) % 31) as f32 / 31.0).collect();
        self.b.constant("", Tensor::from_f32(dims, &data).to_const().expect("a small tensor")).expect("typed")
    }

    fn linear(&mut self, x: Value, from: usize, to: usize) -> Value {
        let (w, bias) = (self.weight(&[from, to]), self.weight(&[to]));
        let y = self.b.add(Contract::linear(3, DType::F32), &[x, w]).expect("typed");
        self.bin(BinOp::Add, y, bias)
    }

    fn bin(&mut self, op: BinOp, x: Value, y: Value) -> Value {
        self.b.bin(op, x, y).expect("typed")
    }

    fn number(&mut self, v: f64) -> Value {
        self.b.scalar(Literal::from_f64(DType::F32, v)).expect("typed")
    }

    fn mean(&mut self, x: Value) -> Value {
        let sum = self.b.add(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[x]).expect("typed");
        let n = self.number(self.width as f64);
        self.bin(BinOp::Div, sum, n)
    }

    /// A layer norm, or without `centre` an RMS norm, spelled out.
    fn norm(&mut self, x: Value, centre: bool) -> Value {
        let mut c = x;
        if centre {
            let mean = self.mean(x);
            c = self.bin(BinOp::Sub, x, mean);
        }
        let square = self.bin(BinOp::Mul, c, c);
        let (variance, epsilon) = (self.mean(square), self.number(1e-5));
        let shifted = self.bin(BinOp::Add, variance, epsilon);
        let root = self.b.un(UnOp::Sqrt, shifted).expect("typed");
        let y = self.bin(BinOp::Div, c, root);
        let scale = self.weight(&[self.width]);
        self.bin(BinOp::Mul, y, scale)
    }

    /// Attention with one head, spelled out.
    fn attention(&mut self, x: Value) -> Value {
        let [q, k, v] = [(); 3].map(|()| self.linear(x, self.width, self.width));
        let k = self.b.transpose(k, &[0, 2, 1]).expect("typed");
        let logits = self.b.add(Contract::matmul(1, DType::F32), &[q, k]).expect("typed");
        let scale = self.number(0.25);
        let logits = self.bin(BinOp::Mul, logits, scale);
        let weights = self.b.add(Softmax { axis: 2, log: false }, &[logits]).expect("typed");
        let y = self.b.add(Contract::matmul(1, DType::F32), &[weights, v]).expect("typed");
        self.linear(y, self.width, self.width)
    }

    /// An encoder layer, or a decoder layer with RMS norms and a gated activation.
    fn layer(&mut self, x: Value, gated: bool) -> Value {
        let n = self.norm(x, !gated);
        let a = self.attention(n);
        let x = self.bin(BinOp::Add, x, a);
        let n = self.norm(x, !gated);
        let h = self.linear(n, self.width, 2 * self.width);
        let s = self.b.un(UnOp::Sigmoid, h).expect("typed");
        let mut h = self.bin(BinOp::Mul, h, s);
        if gated {
            let up = self.linear(n, self.width, 2 * self.width);
            h = self.bin(BinOp::Mul, h, up);
        }
        let h = self.linear(h, 2 * self.width, self.width);
        self.bin(BinOp::Add, x, h)
    }

    fn first_row(&mut self, x: Value) -> Value {
        let mut sizes = self.b.ty(x).dims.clone();
        sizes[1] = Dim::from(1);
        self.b.add(Slice { starts: vec![Dim::from(0); 3], sizes, steps: vec![1; 3] }, &[x]).expect("typed")
    }

    /// A step on `x[B, S, width]` that keeps its type but for the number of rows.
    fn random_step(&mut self, r: &mut Random, x: Value) -> Value {
        match r.below(9) {
            0 => self.norm(x, true),
            1 => self.norm(x, false),
            2 => self.attention(x),
            3 => {
                let s = self.b.un(UnOp::Sigmoid, x).expect("typed");
                self.bin(BinOp::Mul, x, s)
            }
            4 => {
                // x/2 (1 + erf(x / sqrt 2)).
                let (root, one, half) = (self.number(2f64.sqrt()), self.number(1.0), self.number(0.5));
                let u = self.bin(BinOp::Div, x, root);
                let e = self.b.un(UnOp::Erf, u).expect("typed");
                let e = self.bin(BinOp::Add, e, one);
                let y = self.bin(BinOp::Mul, x, e);
                self.bin(BinOp::Mul, y, half)
            }
            5 => {
                // Of order one, so that no exponential overflows.
                let x = self.norm(x, true);
                let e = self.b.un(UnOp::Exp, x).expect("typed");
                let sum = self.b.add(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[e]).expect("typed");
                self.bin(BinOp::Div, e, sum)
            }
            6 => {
                let y = self.linear(x, self.width, self.width);
                self.bin(BinOp::Add, x, y)
            }
            7 => self.first_row(x),
            _ => {
                let y = self.linear(x, self.width, self.width);
                let n = self.norm(y, true);
                self.bin(BinOp::Mul, n, y)
            }
        }
    }
}

/// `layers` layers; all rows of the last, or the first alone.
fn model(layers: usize, gated: bool, first_row: bool) -> Module {
    let mut m = Module::new("layers");
    for (name, max) in [("B", 8), ("S", 64)] {
        m.symbols.insert(Symbol::new(name), SymbolRange { min: 1, max });
    }
    let mut x = m.main.add_param("x", TensorType::new(DType::F32, vec![Dim::sym("B"), Dim::sym("S"), Dim::from(WIDTH)]));
    let mut l = Layers::new(Builder::new(&mut m.main, &mut m.consts), WIDTH);
    for i in 0..layers {
        l.b.loc = Loc::new(&format!("layer.{i}"));
        x = l.layer(x, gated);
    }
    if first_row {
        x = l.first_row(x);
    }
    m.main.add_result("y", x);
    m
}

/// E-nodes of the pieces that were saturated, how many these were, milliseconds of all passes and of saturation.
fn work(layers: usize, gated: bool) -> (usize, usize, f64, f64) {
    let mut cx = PassCx::default();
    cx.egraph = Some(Vec::new());
    let mut m = model(layers, gated, false);
    let start = Instant::now();
    optimise(&mut m, &mut cx).expect("it is optimised");
    let all = start.elapsed().as_secs_f64() * 1e3;
    let nodes = cx.egraph.expect("recorded");
    let pieces: std::collections::BTreeSet<&str> = nodes.iter().filter_map(|n| n.id.split_once('.').map(|p| p.0)).collect();
    let saturate = |s: &&PassStats| s.pass == "saturate";
    let ms = cx.stats.iter().find(saturate).map_or(0.0, |s| s.time.as_secs_f64() * 1e3);
    assert_eq!(cx.fused["attention"], layers);
    (nodes.len(), pieces.len(), all, ms)
}

#[test]
fn deep_models_cost_what_shallow_ones_do() {
    for (name, gated) in [("encoder", false), ("gated decoder", true)] {
        let shallow = work(6, gated);
        for layers in [32, 48] {
            let deep = work(layers, gated);
            println!(
                "{name}: {layers} layers {:.1} ms (saturate {:.1} ms), 6 layers {:.1} ms ({:.1} ms): {:.2} times",
                deep.2,
                deep.3,
                shallow.2,
                shallow.3,
                deep.2 / shallow.2
            );
            assert_eq!((deep.0, deep.1), (shallow.0, shallow.1), "{name}: e-nodes and pieces of {layers} layers and of 6");
        }
    }
}

/// If the first row alone is read, the last layer computes keys and values of all rows and everything else of that one, whatever stands for a product.
#[test]
fn rows_that_nobody_reads_are_not_computed() {
    let (rows, w) = (64, WIDTH as i64);
    let (projections, ffn, attended) = (4 * w * w, 4 * w * w, 2 * rows * w);
    let whole = rows * (projections + ffn + attended);
    let last = rows * projections / 2 + (projections / 2 + ffn + attended);
    for codes in [None, Some(Codes::Dynamic), Some(Codes::Weights8)] {
        let mut m = model(2, false, true);
        let mut cx = PassCx::default();
        cx.weights.codes = codes;
        optimise(&mut m, &mut cx).expect("it is optimised");
        let size = |s: &Symbol| Some(if s.name() == "S" { rows } else { 1 });
        assert_eq!(macs_of(&m.main).eval(&size).expect("a number"), whole + last, "{codes:?}");
    }
}

/// Random graphs; `TRANSC_GRAPHS` asks for more.
const GRAPHS: u64 = 200;
/// Forms of each.
const VARIANTS: u64 = 8;
/// Relative to 1 + |value|: several rules of bound 1e-4 follow each other. A fault is of the order of the values.
const TOLERANCE: f64 = 1e-3;

/// A few formulas on one another.
fn random(seed: u64) -> Module {
    let (mut m, mut r) = (Module::new("random"), Random::new(seed));
    for (name, max) in [("B", 3), ("S", 5)] {
        m.symbols.insert(Symbol::new(name), SymbolRange { min: 1, max });
    }
    let width = 2 + r.below(5);
    let mut x = m.main.add_param("x", TensorType::new(DType::F32, vec![Dim::sym("B"), Dim::sym("S"), Dim::from(width)]));
    let mut l = Layers::new(Builder::new(&mut m.main, &mut m.consts), width);
    for _ in 0..2 + r.below(5) {
        x = l.random_step(&mut r, x);
    }
    m.main.add_result("y", x);
    m
}

/// Compares a module with forms of it; how many differ in text from all before, and how many could be compared.
fn attack(name: &str, m: &Module, seed: u64) -> (usize, u64) {
    let (mut forms, mut compared) = (std::collections::BTreeSet::from([m.to_string()]), 0);
    let mut r = Random::new(seed);
    let drawn = drawn(m, VARIANTS as usize, &mut || 1.0 + r.below(1000) as f64).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (i, variant) in (0..).zip(drawn) {
        match kit::agree(m, &variant, seed + i, TOLERANCE, false) {
            Ok(both) => compared += u64::from(both),
            Err(e) => panic!("{name}, form {i}: {e}\n{m}\n{variant}"),
        }
        forms.insert(variant.to_string());
    }
    (forms.len() - 1, compared)
}

#[test]
fn random_graphs_agree_with_their_forms() {
    let graphs = std::env::var("TRANSC_GRAPHS").ok().and_then(|n| n.parse().ok()).unwrap_or(GRAPHS);
    let all = (0..graphs).map(|seed| attack(&format!("graph {seed}"), &random(seed), seed));
    let (forms, compared) = all.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("{graphs} graphs, {compared} comparisons, {forms} distinct forms");
    assert!(compared * 10 >= graphs * VARIANTS * 9, "only {compared} comparisons");
    assert!(forms as u64 >= graphs, "only {forms} distinct forms");
}

#[test]
fn cases_of_rules_agree_with_their_forms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/rules");
    for (path, module) in cases::of(&root) {
        attack(&path.display().to_string(), &module, 1);
    }
}
