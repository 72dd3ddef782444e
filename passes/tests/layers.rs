//! Equal layers are saturated once: the work on a deep model is that on a shallow one.

use std::time::Instant;

use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Reduce, ReduceKind, Softmax};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::tensor::{Builder, Value};
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{DType, Dim, Loc, Module, TensorType};
use transc_passes::{PassCx, PassStats, optimise};

/// More than what a piece holds as a constant of its own.
const WIDTH: usize = 96;

/// Builds layers; every weight has values of its own.
struct Layers<'a> {
    b: Builder<'a>,
    weights: usize,
}

impl Layers<'_> {
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
        let n = self.number(WIDTH as f64);
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
        let scale = self.weight(&[WIDTH]);
        self.bin(BinOp::Mul, y, scale)
    }

    /// Attention with one head, spelled out.
    fn attention(&mut self, x: Value) -> Value {
        let [q, k, v] = [(); 3].map(|()| self.linear(x, WIDTH, WIDTH));
        let k = self.b.transpose(k, &[0, 2, 1]).expect("typed");
        let logits = self.b.add(Contract::matmul(1, DType::F32), &[q, k]).expect("typed");
        let scale = self.number(0.25);
        let logits = self.bin(BinOp::Mul, logits, scale);
        let weights = self.b.add(Softmax { axis: 2, log: false }, &[logits]).expect("typed");
        let y = self.b.add(Contract::matmul(1, DType::F32), &[weights, v]).expect("typed");
        self.linear(y, WIDTH, WIDTH)
    }

    /// An encoder layer, or a decoder layer with RMS norms and a gated activation.
    fn layer(&mut self, x: Value, gated: bool) -> Value {
        let n = self.norm(x, !gated);
        let a = self.attention(n);
        let x = self.bin(BinOp::Add, x, a);
        let n = self.norm(x, !gated);
        let h = self.linear(n, WIDTH, 2 * WIDTH);
        let s = self.b.un(UnOp::Sigmoid, h).expect("typed");
        let mut h = self.bin(BinOp::Mul, h, s);
        if gated {
            let up = self.linear(n, WIDTH, 2 * WIDTH);
            h = self.bin(BinOp::Mul, h, up);
        }
        let h = self.linear(h, 2 * WIDTH, WIDTH);
        self.bin(BinOp::Add, x, h)
    }
}

fn model(layers: usize, gated: bool) -> Module {
    let mut m = Module::new("layers");
    for (name, max) in [("B", 8), ("S", 64)] {
        m.symbols.insert(Symbol::new(name), SymbolRange { min: 1, max });
    }
    let mut x = m.main.add_param("x", TensorType::new(DType::F32, vec![Dim::sym("B"), Dim::sym("S"), Dim::from(WIDTH)]));
    let mut l = Layers { b: Builder::new(&mut m.main, &mut m.consts), weights: 0 };
    for i in 0..layers {
        l.b.loc = Loc::new(&format!("layer.{i}"));
        x = l.layer(x, gated);
    }
    m.main.add_result("y", x);
    m
}

/// E-nodes of the pieces that were saturated, how many these were, milliseconds of all passes and of saturation.
fn work(layers: usize, gated: bool) -> (usize, usize, f64, f64) {
    let mut cx = PassCx::default();
    cx.egraph = Some(Vec::new());
    let mut m = model(layers, gated);
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
