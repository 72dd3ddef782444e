//! Building blocks shared by the recipes.

use std::collections::BTreeMap;

use transc_ir::Value;
use transc_ir::diag::{Diagnostic, Fault};
use transc_ir::op::{Contract, Gather, Iota, LayerNorm, Map, Real, Reduce, ReduceKind, Scan, Slice, TypeError};
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};
use transc_ir::tensor::{Builder, ConstData, Loc};
use transc_ir::types::{DType, Dim, Ranges};

use super::activations::Activation;
use super::config::FILE;
use super::weights::{ANY, Weights};
use super::{Result, problem};

/// A function under construction with the weights that it uses. `prefix` is the path of the current layer, ending in a dot.
pub(crate) struct Layers<'a> {
    pub(crate) b: Builder<'a>,
    pub(crate) weights: Weights,
    pub(crate) prefix: String,
    /// What stands before that path in the provenance of layers that share their weights with others.
    pub(crate) round: String,
    /// The dims of the inputs.
    pub(crate) symbols: Ranges,
    /// The weights that are constants already.
    pub(crate) known: BTreeMap<String, Value>,
}

/// The recipes build well-typed graphs; a type error means that config and weights describe another model than the recipe's.
pub(crate) fn typed<T>(r: std::result::Result<T, TypeError>) -> Result<T> {
    r.map_err(|e: TypeError| -> Box<Diagnostic> {
        problem(e.code, Fault::Invalid, FILE, e.message, "the config does not fit itself")
    })
}

impl Layers<'_> {
    /// Runs `f` inside a sub-layer, if it has a name: provenance and weight names get its path.
    pub(crate) fn scope<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if name.is_empty() {
            return f(self);
        }
        let outer = self.prefix.clone();
        self.prefix = format!("{outer}{name}.");
        self.place();
        let out = f(self);
        self.prefix = outer;
        self.place();
        out
    }

    /// Runs `f` for layer `i` of several that share their weights.
    pub(crate) fn round<T>(&mut self, i: usize, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.round = format!("layers.{i}.");
        let out = f(self);
        self.round.clear();
        self.place();
        out
    }

    /// New nodes come from the current layer.
    fn place(&mut self) {
        self.b.loc = Loc::new(format!("{}{}", self.round, self.prefix).trim_end_matches('.'));
    }

    /// The path of the body in the file, which is told by a weight of it; empty in files of bare bodies.
    pub(crate) fn base(&self, paths: &[&'static str], weight: &str) -> &'static str {
        paths.iter().find(|p| self.weights.has(&self.under(p, weight))).copied().unwrap_or("")
    }

    /// The full name of a weight of the current layer.
    pub(crate) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name of a weight below a path that may be empty.
    pub(crate) fn under(&self, path: &str, name: &str) -> String {
        if path.is_empty() { self.full(name) } else { self.full(&format!("{path}.{name}")) }
    }

    /// True if the file has this weight of the current layer.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.has(&self.full(name))
    }

    /// A weight of the current layer as a value.
    pub(crate) fn weight(&mut self, name: &str, dims: &[usize]) -> Result<Value> {
        let name = self.full(name);
        self.named(&name, dims)
    }

    /// The weight of this full name as a value, one for all its uses.
    fn named(&mut self, name: &str, dims: &[usize]) -> Result<Value> {
        if let Some(v) = self.known.get(name) {
            let have = &self.b.ty(*v).dims;
            if have.len() == dims.len() && have.iter().zip(dims).all(|(h, d)| *d == ANY || h.as_usize() == Some(*d)) {
                return Ok(*v);
            }
        }
        let data = self.weights.get(name, dims)?;
        let v = self.constant(name, data)?;
        self.known.insert(name.into(), v);
        Ok(v)
    }

    /// A constant.
    pub(crate) fn constant(&mut self, name: &str, data: ConstData) -> Result<Value> {
        typed(self.b.constant(name, data))
    }

    /// The extent of the last axis, which is a number in all hidden states.
    pub(crate) fn width(&self, x: Value) -> usize {
        self.b.ty(x).dims.last().and_then(Dim::as_usize).unwrap_or(ANY)
    }

    /// `x W^T + b` with `W[out, in]` (any number of rows for [`ANY`]); the bias may be absent.
    pub(crate) fn linear(&mut self, name: &str, x: Value, out: usize) -> Result<Value> {
        self.scope(name, |l| {
            let y = l.project(&l.full("weight"), x, out)?;
            l.biased(y)
        })
    }

    /// `x W + b` with `W[in, out]`; the bias may be absent.
    pub(crate) fn linear_in_out(&mut self, name: &str, x: Value, out: usize) -> Result<Value> {
        self.scope(name, |l| {
            let w = l.weight("weight", &[l.width(x), out])?;
            let y = l.contract_last(x, w, false)?;
            l.biased(y)
        })
    }

    /// `x W^T` with the weight `W[out, in]` of this full name.
    pub(crate) fn project(&mut self, weight: &str, x: Value, out: usize) -> Result<Value> {
        let w = self.named(weight, &[out, self.width(x)])?;
        self.contract_last(x, w, true)
    }

    /// Contracts the last axis of `x` with the rows of `w[in, out]`, or of `w[out, in]` if that is transposed.
    pub(crate) fn contract_last(&mut self, x: Value, w: Value, transposed: bool) -> Result<Value> {
        let rank = self.b.ty(x).rank() as u8;
        let lhs: Vec<u8> = (0..rank).collect();
        let (k, n) = (rank - 1, rank);
        let mut out = lhs.clone();
        out[usize::from(k)] = n;
        let rhs = if transposed { vec![n, k] } else { vec![k, n] };
        typed(self.b.add(Contract { lhs, rhs, out, out_dtype: DType::F32 }, &[x, w]))
    }

    /// Adds the bias of the current layer, if it has one.
    pub(crate) fn biased(&mut self, y: Value) -> Result<Value> {
        if !self.has("bias") {
            return Ok(y);
        }
        let bias = self.weight("bias", &[self.width(y)])?;
        self.plus(y, bias)
    }

    /// The sum of two tensors.
    pub(crate) fn plus(&mut self, a: Value, b: Value) -> Result<Value> {
        typed(self.b.bin(BinOp::Add, a, b))
    }

    /// The product of two tensors, element by element.
    pub(crate) fn times(&mut self, a: Value, b: Value) -> Result<Value> {
        typed(self.b.bin(BinOp::Mul, a, b))
    }

    /// Layer norm over the last axis.
    pub(crate) fn layer_norm(&mut self, name: &str, x: Value, epsilon: f64) -> Result<Value> {
        self.norm(name, x, epsilon, true)
    }

    /// Layer norm over the last axis, with a bias or without.
    pub(crate) fn norm(&mut self, name: &str, x: Value, epsilon: f64, biased: bool) -> Result<Value> {
        let width = self.width(x);
        self.scope(name, |l| {
            // The names of TensorFlow, as the first published files have them.
            let names = if l.has("gamma") { ["gamma", "beta"] } else { ["weight", "bias"] };
            let mut operands = vec![x];
            for name in &names[..1 + usize::from(biased)] {
                operands.push(l.weight(name, &[width])?);
            }
            let axis = l.b.ty(x).rank() - 1;
            typed(l.b.add(LayerNorm { axis, epsilon: Real(epsilon) }, &operands))
        })
    }

    /// Rows of table `name[extent, width]` at the indices.
    pub(crate) fn embedding(&mut self, name: &str, [extent, width]: [usize; 2], index: Value) -> Result<Value> {
        let table = self.weight(name, &[extent, width])?;
        typed(self.b.add(Gather { axis: 0 }, &[table, index]))
    }

    /// `0, 1, 2, ..` along the tokens of `ids[B, S]`.
    pub(crate) fn positions(&mut self, ids: Value) -> Result<Value> {
        let seq = self.b.ty(ids).dims[1].clone();
        typed(self.b.add(Iota { dims: vec![seq], axis: 0 }, &[]))
    }

    /// Places of the elements of `x[B, S]` that are not `none`, counted from `start + 1` on; those of the others are `start`.
    pub(crate) fn counted(&mut self, x: Value, none: i64, start: i64) -> Result<Value> {
        let mut f = Body::builder(1);
        let (x0, none) = (f.arg(0), f.lit(Literal::i64(none)));
        let real = f.bin(BinOp::Ne, x0, none);
        let real = f.cast(DType::I64, real);
        let real = typed(self.b.add(Map { body: f.finish(real) }, &[x]))?;
        let count = typed(self.b.add(Scan { kind: ReduceKind::Sum, axis: 1, exclusive: false, reverse: false }, &[real]))?;
        let mut f = Body::builder(2);
        let (n, real_arg, start) = (f.arg(0), f.arg(1), f.lit(Literal::i64(start)));
        let n = f.bin(BinOp::Mul, n, real_arg);
        let n = f.bin(BinOp::Add, n, start);
        typed(self.b.add(Map { body: f.finish(n) }, &[count, real]))
    }

    /// An activation.
    pub(crate) fn activate(&mut self, a: Activation, x: Value) -> Result<Value> {
        let mut f = Body::builder(1);
        let x0 = f.arg(0);
        let result = a(&mut f, x0);
        typed(self.b.add(Map { body: f.finish(result) }, &[x]))
    }

    /// A gated unit (Shazeer 2020): the first half of the last axis, activated, times the second.
    pub(crate) fn gated(&mut self, a: Activation, x: Value) -> Result<Value> {
        let half = self.width(x) / 2;
        let [gate, up] = self.split(x, [half; 2])?;
        let gate = self.activate(a, gate)?;
        self.times(gate, up)
    }

    /// The gated unit whose three layers stand apart.
    pub(crate) fn gated_unit(&mut self, x: Value, inner: usize, a: Activation) -> Result<Value> {
        let gate = self.linear("gate_proj", x, inner)?;
        let gate = self.activate(a, gate)?;
        let up = self.linear("up_proj", x, inner)?;
        let h = self.times(gate, up)?;
        self.linear("down_proj", h, self.width(x))
    }

    /// `x` times a number.
    pub(crate) fn scaled(&mut self, x: Value, factor: f64) -> Result<Value> {
        let mut f = Body::builder(1);
        let (x0, factor) = (f.arg(0), f.lit(Literal::from_f64(DType::F32, factor)));
        let y = f.bin(BinOp::Mul, x0, factor);
        typed(self.b.add(Map { body: f.finish(y) }, &[x]))
    }

    /// `cap * tanh(x / cap)`.
    pub(crate) fn soft_cap(&mut self, x: Value, cap: f64) -> Result<Value> {
        let mut f = Body::builder(1);
        let (x0, cap) = (f.arg(0), f.num(DType::F32, cap));
        let y = f.bin(BinOp::Div, x0, cap);
        let y = f.un(UnOp::Tanh, y);
        let y = f.bin(BinOp::Mul, y, cap);
        typed(self.b.add(Map { body: f.finish(y) }, &[x]))
    }

    /// `size` elements from `start` on along an axis.
    pub(crate) fn cut(&mut self, x: Value, axis: usize, start: impl Into<Dim>, size: impl Into<Dim>) -> Result<Value> {
        let mut sizes = self.b.ty(x).dims.clone();
        let mut starts = vec![Dim::from(0); sizes.len()];
        (starts[axis], sizes[axis]) = (start.into(), size.into());
        let steps = vec![1; sizes.len()];
        typed(self.b.add(Slice { starts, sizes, steps }, &[x]))
    }

    /// Neighbouring parts of the last axis.
    pub(crate) fn split<const N: usize>(&mut self, x: Value, sizes: [usize; N]) -> Result<[Value; N]> {
        let axis = self.b.ty(x).rank() - 1;
        let (mut parts, mut start) = ([x; N], 0);
        for (part, size) in parts.iter_mut().zip(sizes) {
            *part = self.cut(x, axis, start, size)?;
            start += size;
        }
        Ok(parts)
    }

    /// Row `i` of axis 1: `[B, S, W]` to `[B, W]`.
    pub(crate) fn token(&mut self, x: Value, i: impl Into<Dim>) -> Result<Value> {
        let dims = self.b.ty(x).dims.clone();
        let row = self.cut(x, 1, i, 1)?;
        typed(self.b.reshape(row, vec![dims[0].clone(), dims[2].clone()]))
    }

    /// The sum over an axis.
    pub(crate) fn sum(&mut self, x: Value, axis: usize, keep: bool) -> Result<Value> {
        typed(self.b.add(Reduce { kind: ReduceKind::Sum, axes: vec![axis], keep }, &[x]))
    }

    /// Declares an output.
    pub(crate) fn output(&mut self, name: &str, v: Value) {
        self.b.func.add_result(name, v);
    }
}
