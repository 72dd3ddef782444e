//! Random small typed graphs, with a bound on what rounding may change in each result.
//!
//! Every float value carries the largest magnitude that it can have and an absolute error that covers any order of its sums and any
//! implementation of its functions. Steps that jump (comparisons, roundings, indices) take only values without error, so that a
//! difference beyond the bound is a fault.

use transc_ir::op::{self, Op};
use transc_ir::scalar::{BinOp, Body, UnOp};
use transc_ir::tensor::{Builder, Value};
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{DType, Dim, Module, TensorType};

mod movement;
mod scalars;
mod sums;

use super::graphs::Random;

/// A random module.
pub struct Graph {
    pub module: Module,
    /// Largest absolute error of each value, by its number, for finite inputs of magnitude up to [`INPUT`]; 0 for exact values.
    pub bounds: Vec<f64>,
}

/// Largest magnitude of inputs.
pub const INPUT: f64 = 8.0;

/// Beyond this part of its magnitude an error makes a value useless.
const MAX_ERROR: f64 = 0.05;

/// Errors of this many units in the last place are granted to every function of one variable.
const FUNCTION_ULPS: f64 = 16.0;

#[derive(Clone, Copy)]
struct Info {
    v: Value,
    /// Largest magnitude.
    mag: f64,
    /// Largest absolute error; 0 only if all steps so far were exact.
    err: f64,
}

/// The relative error of one rounding.
fn eps(d: DType) -> f64 {
    match d {
        DType::F64 => f64::EPSILON,
        DType::F32 => f32::EPSILON.into(),
        DType::F16 => 2f64.powi(-10),
        DType::Bf16 => 2f64.powi(-7),
        _ => 0.0,
    }
}

/// Largest finite magnitude that a value may reach.
fn limit(d: DType) -> f64 {
    match d {
        DType::F16 => 2e4,
        d if d.is_float() => 1e6,
        _ => f64::INFINITY,
    }
}

struct Gen<'a, 'r> {
    b: Builder<'a>,
    r: &'r mut Random,
    /// What later steps may use.
    values: Vec<Info>,
    /// Every value, those inside of steps included.
    all: Vec<Info>,
    base: Vec<Dim>,
}

/// A module of about `steps` nodes.
pub fn random(r: &mut Random, steps: usize) -> Graph {
    let mut m = Module::new("random");
    for name in ["N", "M"] {
        m.symbols.insert(Symbol::new(name), SymbolRange { min: 1, max: 6 });
    }
    let base: Vec<Dim> = (0..3)
        .map(|_| match r.below(8) {
            0 => Dim::sym("N"),
            1 => Dim::sym("M"),
            _ => Dim::from(*r.pick(&[1i64, 2, 3, 4, 5, 8, 16, 17, 35])),
        })
        .collect();
    let consts = &mut m.consts;
    let mut g = Gen { b: Builder::new(&mut m.main, consts), r, values: Vec::new(), all: Vec::new(), base };
    g.params();
    let mut tries = 0;
    let first = g.values.len();
    while g.values.len() < first + steps && tries < steps * 20 {
        tries += 1;
        if let Some(new) = g.step() {
            g.values.extend(new);
        }
    }
    // What nothing uses is a result; an unused parameter is none.
    let (values, all) = (g.values, g.all);
    let uses = m.main.use_counts();
    let params: Vec<Value> = m.main.params().iter().map(|p| p.1).collect();
    for (i, v) in values.iter().filter(|i| uses[i.v.index()] == 0 && !params.contains(&i.v)).enumerate() {
        m.main.add_result(&format!("y{i}"), v.v);
    }
    let mut bounds = vec![0.0; m.main.value_count()];
    for i in all {
        bounds[i.v.index()] = i.err;
    }
    Graph { module: m, bounds }
}

impl Gen<'_, '_> {
    fn params(&mut self) {
        // The symbols stand alone in the first two, so that inputs bind them.
        let fixed = [(DType::F32, vec![Dim::sym("N"), Dim::sym("M")]), (DType::I64, vec![self.base[2].clone()])];
        let mut types: Vec<TensorType> = fixed.into_iter().map(|(d, dims)| TensorType::new(d, dims)).collect();
        for _ in 0..2 + self.r.below(4) {
            let dtype = if self.r.one_in(2) { DType::F32 } else { *self.r.pick(&DType::ALL) };
            let dims = self.dims();
            types.push(TensorType::new(dtype, dims));
        }
        for (i, ty) in types.into_iter().enumerate() {
            let mag = if ty.dtype == DType::Bool { 1.0 } else { INPUT };
            let v = self.b.func.add_param(&format!("x{i}"), ty);
            self.values.push(Info { v, mag, err: 0.0 });
        }
    }

    /// Dims from a few related shapes, so that operands often fit each other.
    fn dims(&mut self) -> Vec<Dim> {
        let [a, b, c] = [0, 1, 2].map(|i| self.base[i].clone());
        let one = Dim::from(1);
        match self.r.below(9) {
            0 => vec![],
            1 => vec![c],
            2 => vec![b, c],
            3 => vec![a, one, c],
            4 => vec![a, c, b],
            5 => vec![one, a, b, c],
            6 => vec![c, b],
            _ => vec![a, b, c],
        }
    }

    fn any(&mut self) -> Info {
        *self.r.pick(&self.values)
    }

    fn pick(&mut self, f: impl Fn(&TensorType, &Info) -> bool) -> Option<Info> {
        let fitting: Vec<Info> = self.values.iter().filter(|i| f(self.b.ty(i.v), i)).copied().collect();
        if fitting.is_empty() { None } else { Some(*self.r.pick(&fitting)) }
    }

    fn float(&mut self) -> Option<Info> {
        self.pick(|t, _| t.dtype.is_float())
    }

    fn dtype(&self, i: Info) -> DType {
        self.b.ty(i.v).dtype
    }

    /// The largest extent of dims.
    fn extent(&self, dims: &[Dim]) -> f64 {
        let largest = |_: &Symbol| Some(6);
        dims.iter().map(|d| d.eval(&largest).unwrap_or(1) as f64).product()
    }

    /// Adds a node whose result has this magnitude and error, unless it has grown useless.
    fn add(&mut self, op: impl Into<Op>, args: &[Info], mag: f64, err: f64) -> Option<Info> {
        let operands: Vec<Value> = args.iter().map(|a| a.v).collect();
        let types: Vec<&TensorType> = operands.iter().map(|v| self.b.ty(*v)).collect();
        let op = op.into();
        let out = op.infer(&types, self.b.consts).ok()?.first()?.clone();
        if self.extent(&out.dims) > 5e3 || mag > limit(out.dtype) || out.dtype.is_float() && err > MAX_ERROR * mag.max(1e-3) {
            return None;
        }
        let new = Info { v: self.b.add(op, &operands).ok()?, mag, err: if out.dtype.is_float() { err } else { 0.0 } };
        self.all.push(new);
        Some(new)
    }

    /// Data movement and the like: magnitude and error stay.
    fn moved(&mut self, op: impl Into<Op>, args: &[Info]) -> Option<Info> {
        let (mag, err) = args.iter().fold((0f64, 0f64), |(m, e), a| (m.max(a.mag), e.max(a.err)));
        self.add(op, args, mag, err)
    }

    /// As [`Gen::moved`], where only the first operand's values arrive.
    fn moved_first(&mut self, op: impl Into<Op>, args: &[Info]) -> Option<Info> {
        self.add(op, args, args[0].mag, args[0].err)
    }

    fn map_un(&mut self, op: UnOp, a: Info, mag: f64, err: f64) -> Option<Info> {
        self.add(op::Map { body: Body::un(op) }, &[a], mag, err)
    }

    fn map_bin(&mut self, op: BinOp, a: Info, b: Info, mag: f64, err: f64) -> Option<Info> {
        self.add(op::Map { body: Body::bin(op) }, &[a, b], mag, err)
    }

    fn step(&mut self) -> Option<Vec<Info>> {
        let one = match self.r.below(32) {
            0..=2 => self.unary(),
            3..=6 => self.binary(),
            7 => self.compare_and_select(),
            8 => self.cast(),
            9 => self.integer(),
            10..=12 => self.movement(),
            13 => self.concat(),
            14 => self.pad(),
            15 | 16 => self.reduce(),
            17 => self.scan_or_window(),
            18 => self.norm(),
            19 => self.softmax(),
            20 | 21 => self.contract(),
            22 => self.linear(),
            23 | 24 => self.attention(),
            25 | 26 => self.indexed(),
            27 => return self.top_k(),
            28 => self.rope(),
            29 => self.codes(),
            30 => self.tokens(),
            _ => self.conv(),
        };
        one.map(|i| vec![i])
    }
}
