//! Smaller models against the whole one with the same units multiplied by masks.

mod kit;

use std::collections::BTreeMap;

use kit::{Random, agree};
use transc_ir::interp::Tensor;
use transc_ir::op::{Attention, Contract, Gather, LayerNorm, Op, Real, Slice};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::tensor::{Builder, Value};
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{DType, Dim, Loc, Module, TensorType};
use transc_passes::{CutError, CutSpec, Masks, PassCx, PassError, layers, run};

const WIDTH: usize = 12;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const HEAD: usize = 3;
const UNITS: usize = 20;
const LAYERS: usize = 2;
const TOLERANCE: f64 = 1e-5;

/// Masks by name, as a file has them.
type Named = BTreeMap<String, Vec<f32>>;

struct Model<'a> {
    b: Builder<'a>,
    weights: usize,
    masks: &'a Named,
}

impl Model<'_> {
    fn constant(&mut self, dims: &[usize], values: &[f32]) -> Value {
        self.b.constant("", Tensor::from_f32(dims, values).to_const().expect("a small tensor")).expect("typed")
    }

    fn weight(&mut self, dims: &[usize]) -> Value {
        self.weights += 1;
        let n = dims.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| ((i * 7 + self.weights * 13) % 31) as f32 / 31.0 - 0.5).collect();
        self.constant(dims, &values)
    }

    /// Weights of every other layer lie `[out, in]`.
    fn linear(&mut self, x: Value, from: usize, to: usize) -> Value {
        let mut c = Contract::linear(3, DType::F32);
        let w = if self.weights.is_multiple_of(2) {
            self.weight(&[from, to])
        } else {
            c.rhs.reverse();
            self.weight(&[to, from])
        };
        let bias = self.weight(&[to]);
        let y = self.b.add(c, &[x, w]).expect("typed");
        self.b.bin(BinOp::Add, y, bias).expect("typed")
    }

    /// Multiplied by a mask, with its numbers on the axis before `inner` others.
    fn masked(&mut self, x: Value, name: &str, inner: usize) -> Value {
        let Some(mask) = self.masks.get(name) else { return x };
        let mut dims = vec![mask.len()];
        dims.extend(std::iter::repeat_n(1, inner));
        let m = self.constant(&dims, mask);
        self.b.bin(BinOp::Mul, x, m).expect("typed")
    }

    /// The residual stream without the hidden dims that go, which are zeros in it.
    fn kept(&mut self, x: Value) -> Value {
        let Some(mask) = self.masks.get("hidden.mask") else { return x };
        let ones: Vec<f32> = mask.iter().map(|m| f32::from(*m != 0.0)).collect();
        let m = self.constant(&[WIDTH], &ones);
        self.b.bin(BinOp::Mul, x, m).expect("typed")
    }

    /// A norm of the stream. `norms.dense_zeros` stands for what training did: statistics over all places or over those that stay.
    fn norm(&mut self, x: Value) -> Value {
        let norm = LayerNorm { axis: 2, epsilon: Real(1e-5) };
        let mut operands = [x, self.weight(&[WIDTH]), self.weight(&[WIDTH])];
        let Some(mask) = self.masks.get("hidden.mask").filter(|_| !self.masks.contains_key("norms.dense_zeros")) else {
            let y = self.b.add(norm, &operands).expect("typed");
            return self.kept(y);
        };
        let kept: Vec<i64> = (0..WIDTH as i64).filter(|i| mask[*i as usize] != 0.0).collect();
        let index = self.b.constant("", Tensor::from_i64(&[kept.len()], &kept).to_const().expect("small")).expect("typed");
        for (v, axis) in operands.iter_mut().zip([2, 0, 0]) {
            *v = self.b.add(Gather { axis }, &[*v, index]).expect("typed");
        }
        let y = self.b.add(norm, &operands).expect("typed");
        // Back to their places: a product by rows of the identity.
        let mut rows = vec![0.0; kept.len() * WIDTH];
        kept.iter().enumerate().for_each(|(i, k)| rows[i * WIDTH + *k as usize] = 1.0);
        let rows = self.constant(&[kept.len(), WIDTH], &rows);
        self.b.add(Contract::linear(3, DType::F32), &[y, rows]).expect("typed")
    }

    fn part(&mut self, x: Value, start: usize, size: usize) -> Value {
        let mut sizes = self.b.ty(x).dims.clone();
        let (mut starts, steps) = (vec![Dim::from(0); sizes.len()], vec![1; sizes.len()]);
        let last = sizes.len() - 1;
        (starts[last], sizes[last]) = (Dim::from(start), Dim::from(size));
        self.b.add(Slice { starts, sizes, steps }, &[x]).expect("typed")
    }

    fn heads(&mut self, x: Value, n: usize) -> Value {
        let dims = self.b.ty(x).dims.clone();
        let x = self.b.reshape(x, vec![dims[0].clone(), dims[1].clone(), n.into(), HEAD.into()]).expect("typed");
        self.b.transpose(x, &[0, 2, 1, 3]).expect("typed")
    }

    fn layer(&mut self, x: Value, l: usize) -> Value {
        self.b.loc = Loc::new(&format!("layer.{l}"));
        let n = self.norm(x);
        let (q, k) = (HEADS * HEAD, KEY_HEADS * HEAD);
        let packed = self.linear(n, WIDTH, q + 2 * k);
        let parts = [(0, q, HEADS), (q, k, KEY_HEADS), (q + k, k, KEY_HEADS)].map(|(start, size, n)| {
            let part = self.part(packed, start, size);
            self.heads(part, n)
        });
        let attention = Attention { scale: Real(0.5), causal: None, softcap: Real(0.0), clear: false };
        let y = self.b.add(attention, &parts).expect("typed");
        let y = self.masked(y, &format!("layer.{l}.heads.mask"), 2);
        let y = self.b.transpose(y, &[0, 2, 1, 3]).expect("typed");
        let dims = self.b.ty(n).dims.clone();
        let y = self.b.reshape(y, vec![dims[0].clone(), dims[1].clone(), q.into()]).expect("typed");
        let y = self.linear(y, q, WIDTH);
        let y = self.masked(y, &format!("layer.{l}.attn.mask"), 0);
        let y = self.kept(y);
        let x = self.b.bin(BinOp::Add, x, y).expect("typed");
        let n = self.norm(x);
        let packed = self.linear(n, WIDTH, 2 * UNITS);
        let (gate, up) = (self.part(packed, 0, UNITS), self.part(packed, UNITS, UNITS));
        let gate = self.b.un(UnOp::Sigmoid, gate).expect("typed");
        let h = self.b.bin(BinOp::Mul, gate, up).expect("typed");
        let h = self.masked(h, &format!("layer.{l}.ffn_units.mask"), 0);
        let y = self.linear(h, UNITS, WIDTH);
        let y = self.masked(y, &format!("layer.{l}.ffn.mask"), 0);
        let y = self.kept(y);
        self.b.bin(BinOp::Add, y, x).expect("typed")
    }
}

/// A decoder of two layers, with grouped heads and packed projections; masks as multiplications.
fn model(masks: &Named) -> Module {
    let mut m = Module::new("cut");
    m.symbols.insert(Symbol::new("S"), SymbolRange { min: 1, max: 4 });
    let mut x = m.main.add_param("x", TensorType::new(DType::F32, vec![Dim::from(2), Dim::sym("S"), Dim::from(WIDTH)]));
    let mut builder = Model { b: Builder::new(&mut m.main, &mut m.consts), weights: 0, masks };
    let table = builder.weight(&[WIDTH]);
    x = builder.b.bin(BinOp::Add, x, table).expect("typed");
    x = builder.masked(x, "hidden.mask", 0);
    for l in 0..LAYERS {
        x = builder.layer(x, l);
    }
    builder.b.loc = Loc::new("head");
    let head = builder.linear(x, WIDTH, 3);
    m.main.add_result("y", x);
    m.main.add_result("head", head);
    m
}

fn cut(m: &Module, spec: CutSpec) -> Result<(Module, PassCx), PassError> {
    let (mut m, mut cx) = (m.clone(), PassCx::default());
    cx.cuts = spec;
    cx.verify_each = true;
    run(&mut m, &["cut-layers", "dce"], &mut cx)?;
    Ok((m, cx))
}

fn mat(m: &Module, sizes: &str) -> Module {
    cut(m, CutSpec { nested: Some(sizes.parse().expect("sizes")), ..CutSpec::default() }).expect("it is cut").0
}

fn masked(m: &Module, masks: &Named) -> Result<(Module, PassCx), PassError> {
    let norms = if masks.contains_key("norms.dense_zeros") { "dense_zeros" } else { "kept_only" };
    let tensors = masks.iter().filter(|(n, _)| n.ends_with(".mask"));
    let tensors: Vec<_> = tensors.map(|(n, v)| (n.clone(), Tensor::from_f32(&[v.len()], v))).collect();
    let header = BTreeMap::from([("ln_semantics".to_string(), norms.to_string())]);
    cut(m, CutSpec { masks: Some(Masks::new(&header, &tensors)?), ..CutSpec::default() })
}

/// Elements of constants that the function reads.
fn parameters(m: &Module) -> usize {
    let ids: std::collections::BTreeSet<_> =
        m.main.nodes().filter_map(|(_, n)| if let Op::Constant(c) = &n.op { Some(c.id) } else { None }).collect();
    ids.iter().map(|id| m.consts.get(*id).expect("of the pool").dims().iter().product::<usize>()).sum()
}

fn same(a: &Module, b: &Module) {
    for seed in 0..4 {
        assert_eq!(agree(a, b, seed, TOLERANCE, false), Ok(true));
    }
}

#[test]
fn first_units_are_the_model_without_the_others() {
    let whole = model(&Named::new());
    for (sizes, kept) in [("1/4", [5, 5]), ("l0=1/2", [10, UNITS]), ("l0-1=1/2,layer.1=3", [10, 3]), ("all=20,l1=1", [UNITS, 1])]
    {
        let mask = |n: usize| (0..UNITS).map(|u| f32::from(u < n)).collect::<Vec<_>>();
        let masks = kept.iter().enumerate().map(|(l, n)| (format!("layer.{l}.ffn_units.mask"), mask(*n))).collect();
        let small = mat(&whole, sizes);
        same(&model(&masks), &small);
        let lost: usize = kept.iter().map(|n| (UNITS - n) * (3 * WIDTH + 2)).sum();
        assert_eq!(parameters(&small), parameters(&whole) - lost, "{sizes}");
    }
}

#[test]
fn sub_models_nest() {
    let whole = model(&Named::new());
    assert_eq!(mat(&whole, "1/1").to_string(), whole.to_string());
    assert_eq!(mat(&mat(&whole, "1/2"), "1/2").to_string(), mat(&whole, "1/4").to_string());
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let whole = model(&Named::new());
    for sizes in ["1/3", "21", "l2=1/2", "layer.7=1/2"] {
        let refused = cut(&whole, CutSpec { nested: Some(sizes.parse().expect("sizes")), ..CutSpec::default() });
        assert!(matches!(refused, Err(PassError::Cut(CutError::Size { .. } | CutError::Unknown { .. }))), "{sizes}");
    }
}

#[test]
fn masks_are_multiplications() {
    let whole = model(&Named::new());
    let mut r = Random::new(1);
    for drop in [0, 3, 6, 10] {
        let mut masks = Named::new();
        let mut group = |name: String, n: usize| {
            let number = |_| if r.below(10) < drop { 0.0 } else { [1.0, 0.5, -2.0][r.below(3)] };
            masks.insert(name, (0..n).map(number).collect());
        };
        for l in 0..LAYERS {
            group(format!("layer.{l}.ffn_units.mask"), UNITS);
            group(format!("layer.{l}.attn.mask"), 1);
            group(format!("layer.{l}.ffn.mask"), 1);
        }
        for l in 0..LAYERS {
            // Heads that share keys go together.
            let one: Vec<f32> = (0..KEY_HEADS).map(|_| f32::from(r.below(10) >= drop)).collect();
            masks.insert(format!("layer.{l}.heads.mask"), one);
        }
        let (small, cx) = masked(&whole, &masks).expect("it is cut");
        // The reference masks each query head; without heads, the bias of the block goes too.
        for l in 0..LAYERS {
            let one = masks[&format!("layer.{l}.heads.mask")].clone();
            if one.iter().all(|m| *m == 0.0) {
                masks.insert(format!("layer.{l}.attn.mask"), vec![0.0]);
            }
            let each = one.iter().flat_map(|m| std::iter::repeat_n(*m, HEADS / KEY_HEADS)).collect();
            masks.insert(format!("layer.{l}.heads.mask"), each);
        }
        same(&model(&masks), &small);
        if drop > 0 {
            assert!(parameters(&small) < parameters(&whole) && !cx.ledger.is_empty());
        }
    }
}

#[test]
fn masks_of_all_that_stays_change_nothing_and_masks_commute() {
    let whole = model(&Named::new());
    let one = |name: &str, mask: &[f32]| Named::from([(name.to_string(), mask.to_vec())]);
    let (same, cx) = masked(&whole, &one("layer.0.heads.mask", &[1.0, 1.0])).expect("nothing to do");
    assert_eq!(same.to_string(), whole.to_string());
    assert!(cx.ledger.is_empty());
    let mut units = vec![1.0; UNITS];
    units[3] = 0.0;
    let (heads, units) = (one("layer.0.heads.mask", &[0.0, 1.0]), one("layer.0.ffn_units.mask", &units));
    let both = masked(&whole, &heads.clone().into_iter().chain(units.clone()).collect()).expect("it is cut").0;
    let one_by_one = masked(&masked(&whole, &heads).expect("it is cut").0, &units).expect("it is cut").0;
    assert_eq!(both.to_string(), one_by_one.to_string());
    for wrong in [one("layer.0.heads.mask", &[1.0; 4]), one("layer.9.heads.mask", &[1.0; 2]), one("layer.0.ffn.mask", &[1.0; 2])]
    {
        assert!(masked(&whole, &wrong).is_err(), "{wrong:?}");
    }
}

/// The residual stream gets narrower in every weight that makes or reads it; results keep their places, with zeros in those that went.
#[test]
fn hidden_dims_go_everywhere() {
    let whole = model(&Named::new());
    for dense_zeros in [false, true] {
        for (mask, kept) in [
            ([1., 1., 0., 1., 1., 1., 1., 0., 0., 1., 1., 1.], 9),
            ([0., 0.5, 0., -2.0, 1., 1., 0., 0., 0., 1., 0., 0.], 5),
            ([1., 1., 1., 1., 1., 1., 2., 1., 1., 1., 1., 1.], 12),
        ] {
            let mut masks = Named::from([("hidden.mask".to_string(), mask.to_vec())]);
            if dense_zeros {
                masks.insert("norms.dense_zeros".into(), Vec::new());
            }
            let (small, cx) = masked(&whole, &masks).expect("it is cut");
            same(&model(&masks), &small);
            assert_eq!(cx.ledger.len(), 1);
            let products = small.main.nodes().filter_map(|(_, n)| matches!(n.op, Op::Contract(_)).then_some(n));
            let sizes = |n: &transc_ir::tensor::Node| small.main.ty(n.operands[0]).dims[2].as_usize();
            let narrow = products.filter(|n| sizes(n) == Some(kept)).count();
            assert!(narrow > 2 * LAYERS, "{narrow} products read {kept} dims\n{small}");
            // With heads and units at once, in one step or two.
            let mut more = masks.clone();
            more.insert("layer.1.ffn_units.mask".into(), (0..UNITS).map(|u| f32::from(u % 3 > 0)).collect());
            same(&model(&more), &masked(&whole, &more).expect("it is cut").0);
        }
    }
}

#[test]
fn hidden_dims_that_cannot_go_are_named() {
    let whole = model(&Named::new());
    let one = |mask: &[f32]| Named::from([("hidden.mask".to_string(), mask.to_vec())]);
    for wrong in [one(&[0.0; WIDTH]), one(&[1.0, 0.0]), one(&[f32::NAN; WIDTH])] {
        assert!(matches!(masked(&whole, &wrong), Err(PassError::Cut(CutError::Mask { .. }))), "{wrong:?}");
    }
    // Heads of the stream itself.
    let mut m = whole.clone();
    let (_, y) = m.main.results()[0].clone();
    let mut b = Builder::new(&mut m.main, &mut m.consts);
    b.loc = Loc::new("split");
    let dims = b.ty(y).dims.clone();
    let split = b.reshape(y, vec![dims[0].clone(), dims[1].clone(), 3.into(), 4.into()]).expect("typed");
    m.main.add_result("split", split);
    let mut mask = [1.0; WIDTH];
    mask[3] = 0.0;
    match masked(&m, &one(&mask)) {
        Err(PassError::Cut(CutError::Size { site, .. })) => assert_eq!(site, "split"),
        other => panic!("{:?}", other.map(|(m, _)| m.to_string())),
    }
}

/// A weight with the inputs of a few units made small loses these.
#[test]
fn units_that_count_least_go() {
    let whole = model(&Named::new());
    let found = layers(&whole.main);
    assert_eq!(found.iter().map(|l| (l.units, l.width)).collect::<Vec<_>>(), [(2, 6), (UNITS, 1), (2, 6), (UNITS, 1)]);
    // As if units 0 to 4 were never on.
    let seen = found.iter().map(|l| (0..l.units * l.width).map(|i| f32::from(i > 4)).collect()).collect();
    let shares = Some("ffn=0.25,heads=0.5".parse().expect("shares"));
    let (small, _) = cut(&whole, CutSpec { shares, seen, ..CutSpec::default() }).expect("it is cut");
    let units: Vec<f32> = (0..UNITS).map(|u| f32::from(u > 4)).collect();
    let mut masks = Named::new();
    for l in 0..LAYERS {
        masks.insert(format!("layer.{l}.ffn_units.mask"), units.clone());
        masks.insert(format!("layer.{l}.heads.mask"), vec![0.0, 0.0, 1.0, 1.0]);
    }
    same(&model(&masks), &small);
}
