//! Building blocks shared by the recipes.

use transc_ir::Value;
use transc_ir::diag::{Diagnostic, Fault};
use transc_ir::op::{Attention, Contract, Gather, Iota, LayerNorm, Map, Real, TypeError};
use transc_ir::scalar::{BinOp, Body, Literal};
use transc_ir::tensor::{Builder, Loc};
use transc_ir::types::{DType, Dim};

use super::activations::Activation;
use super::weights::Weights;
use super::{Result, problem};

/// A function under construction with the weights that it uses. `prefix` is the path of the current layer, ending in a dot.
pub(crate) struct Layers<'a> {
    pub(crate) b: Builder<'a>,
    pub(crate) weights: Weights,
    pub(crate) prefix: String,
}

/// The recipes build well-typed graphs; a type error means that config and weights describe another model than the recipe's.
pub(crate) fn typed<T>(r: std::result::Result<T, TypeError>) -> Result<T> {
    r.map_err(|e: TypeError| -> Box<Diagnostic> {
        problem(e.code, Fault::Invalid, "config.json", e.message, "the config does not fit itself")
    })
}

impl Layers<'_> {
    /// Runs `f` inside a sub-layer: provenance and weight names get its path.
    pub(crate) fn scope<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = self.prefix.clone();
        self.prefix = format!("{outer}{name}.");
        self.b.loc = Loc::new(self.prefix.trim_end_matches('.'));
        let out = f(self);
        self.b.loc = Loc::new(outer.trim_end_matches('.'));
        self.prefix = outer;
        out
    }

    /// A weight of the current layer as a value.
    pub(crate) fn weight(&mut self, name: &str, dims: &[usize]) -> Result<Value> {
        let name = format!("{}{name}", self.prefix);
        let data = self.weights.get(&name, dims)?;
        typed(self.b.constant(&name, data))
    }

    /// `x W^T + b` with `W[out, in]`; the bias may be absent.
    pub(crate) fn linear(&mut self, name: &str, x: Value, inp: usize, out: usize) -> Result<Value> {
        self.scope(name, |l| {
            let y = l.project(&format!("{}weight", l.prefix), x, [out, inp])?;
            l.biased(y, out)
        })
    }

    /// `x W + b` with `W[in, out]`; the bias may be absent.
    pub(crate) fn linear_in_out(&mut self, name: &str, x: Value, inp: usize, out: usize) -> Result<Value> {
        self.scope(name, |l| {
            let w = l.weight("weight", &[inp, out])?;
            let y = l.contract_last(x, w, false)?;
            l.biased(y, out)
        })
    }

    /// `x W^T` with the weight `W[out, in]` of this full name.
    pub(crate) fn project(&mut self, weight: &str, x: Value, dims: [usize; 2]) -> Result<Value> {
        let data = self.weights.get(weight, &dims)?;
        let w = typed(self.b.constant(weight, data))?;
        self.contract_last(x, w, true)
    }

    /// Contracts the last axis of `x` with the rows of `w[in, out]`, or of `w[out, in]` if that is transposed.
    fn contract_last(&mut self, x: Value, w: Value, transposed: bool) -> Result<Value> {
        let rank = self.b.ty(x).rank() as u8;
        let lhs: Vec<u8> = (0..rank).collect();
        let (k, n) = (rank - 1, rank);
        let mut out = lhs.clone();
        out[usize::from(k)] = n;
        let rhs = if transposed { vec![n, k] } else { vec![k, n] };
        typed(self.b.add(Contract { lhs, rhs, out, out_dtype: DType::F32 }, &[x, w]))
    }

    /// Adds the bias of the current layer, if it has one.
    fn biased(&mut self, y: Value, out: usize) -> Result<Value> {
        if !self.weights.has(&format!("{}bias", self.prefix)) {
            return Ok(y);
        }
        let bias = self.weight("bias", &[out])?;
        typed(self.b.bin(BinOp::Add, y, bias))
    }

    /// Layer norm over the last axis.
    pub(crate) fn layer_norm(&mut self, name: &str, x: Value, width: usize, epsilon: f64) -> Result<Value> {
        self.scope(name, |l| {
            // The names of TensorFlow, as the first published files have them.
            let names = if l.weights.has(&format!("{}gamma", l.prefix)) { ["gamma", "beta"] } else { ["weight", "bias"] };
            let (scale, bias) = (l.weight(names[0], &[width])?, l.weight(names[1], &[width])?);
            let axis = l.b.ty(x).rank() - 1;
            typed(l.b.add(LayerNorm { axis, epsilon: Real(epsilon) }, &[x, scale, bias]))
        })
    }

    /// `[B, S, heads*d]` to `[B, heads, S, d]`.
    pub(crate) fn split_heads(&mut self, x: Value, heads: usize) -> Result<Value> {
        let dims = self.b.ty(x).dims.clone();
        let d = dims[2].floor_div(&heads.into());
        let x = typed(self.b.reshape(x, vec![dims[0].clone(), dims[1].clone(), heads.into(), d]))?;
        typed(self.b.transpose(x, &[0, 2, 1, 3]))
    }

    /// Attention over `[B, S, width]` projections, back to `[B, S, width]`.
    pub(crate) fn attention(&mut self, qkv: [Value; 3], mask: Option<Value>, heads: usize, causal: bool) -> Result<Value> {
        let mut split = qkv;
        for x in &mut split {
            *x = self.split_heads(*x, heads)?;
        }
        self.attend(split, mask, causal.then(|| 0.into()))
    }

    /// Attention over split heads `q[B, H, S, d]`, `k` and `v[B, G, S, d]`, scaled by `1/sqrt d`, back to `[B, S, H*d]`.
    pub(crate) fn attend(&mut self, [q, k, v]: [Value; 3], mask: Option<Value>, causal: Option<Dim>) -> Result<Value> {
        let dims = self.b.ty(q).dims.clone();
        let scale = 1.0 / (dims[3].as_const().unwrap_or(1) as f64).sqrt();
        let operands: Vec<Value> = [q, k, v].into_iter().chain(mask).collect();
        let y = typed(self.b.add(Attention { scale: Real(scale), causal, softcap: Real(0.0), clear: true }, &operands))?;
        let y = typed(self.b.transpose(y, &[0, 2, 1, 3]))?;
        typed(self.b.reshape(y, vec![dims[0].clone(), dims[2].clone(), &dims[1] * &dims[3]]))
    }

    /// Rows of table `name[extent, width]` (any extent for `usize::MAX`) at the indices.
    pub(crate) fn embedding(&mut self, name: &str, [extent, width]: [usize; 2], index: Value) -> Result<Value> {
        let table = self.weight(name, &[extent, width])?;
        typed(self.b.add(Gather { axis: 0 }, &[table, index]))
    }

    /// `0, 1, 2, ..` along the tokens of `ids[B, S]`.
    pub(crate) fn positions(&mut self, ids: Value) -> Result<Value> {
        let seq = self.b.ty(ids).dims[1].clone();
        typed(self.b.add(Iota { dims: vec![seq], axis: 0 }, &[]))
    }

    /// `attention_mask[B, S]` as an additive mask `[B, 1, 1, S]`: 0 where set, the lowest `f32` elsewhere, as transformers does it.
    pub(crate) fn mask_bias(&mut self, mask: Value) -> Result<Value> {
        let dims = self.b.ty(mask).dims.clone();
        let mut f = Body::builder(1);
        let (m, zero) = (f.arg(0), f.lit(Literal::i64(0)));
        let keep = f.bin(BinOp::Ne, m, zero);
        let bias = keep_or_lowest(&mut f, keep);
        let bias = typed(self.b.add(Map { body: f.finish(bias) }, &[mask]))?;
        typed(self.b.reshape(bias, vec![dims[0].clone(), 1.into(), 1.into(), dims[1].clone()]))
    }

    /// As [`Layers::mask_bias`], and a query sees itself and the `window - 1` keys before it (Beltagy et al. 2020): `[B, 1, S, S]`.
    pub(crate) fn window_bias(&mut self, mask: Value, window: usize) -> Result<Value> {
        let dims = self.b.ty(mask).dims.clone();
        let keys = self.positions(mask)?;
        let queries = typed(self.b.reshape(keys, vec![dims[1].clone(), 1.into()]))?;
        let mask = typed(self.b.reshape(mask, vec![dims[0].clone(), 1.into(), 1.into(), dims[1].clone()]))?;
        let mut f = Body::builder(3);
        let (m, i, j) = (f.arg(0), f.arg(1), f.arg(2));
        let (zero, window) = (f.lit(Literal::i64(0)), f.lit(Literal::i64(window as i64)));
        let age = f.bin(BinOp::Sub, i, j);
        let near = f.bin(BinOp::Lt, age, window);
        let valid = f.bin(BinOp::Ne, m, zero);
        let past = f.bin(BinOp::Le, zero, age);
        let near = f.bin(BinOp::And, past, near);
        let keep = f.bin(BinOp::And, valid, near);
        let bias = keep_or_lowest(&mut f, keep);
        typed(self.b.add(Map { body: f.finish(bias) }, &[mask, queries, keys]))
    }

    /// An activation.
    pub(crate) fn activate(&mut self, a: Activation, x: Value) -> Result<Value> {
        let mut f = Body::builder(1);
        let x0 = f.arg(0);
        let result = a(&mut f, x0);
        typed(self.b.add(Map { body: f.finish(result) }, &[x]))
    }

    /// Row `i` of axis 1: `[B, S, W]` to `[B, W]`.
    pub(crate) fn token(&mut self, x: Value, i: i64) -> Result<Value> {
        let dims = self.b.ty(x).dims.clone();
        let mut sizes = dims.clone();
        sizes[1] = Dim::from(1);
        let starts = vec![0.into(), i.into(), 0.into()];
        let row = typed(self.b.add(transc_ir::op::Slice { starts, sizes, steps: vec![1; 3] }, &[x]))?;
        typed(self.b.reshape(row, vec![dims[0].clone(), dims[2].clone()]))
    }

    /// Declares an output.
    pub(crate) fn output(&mut self, name: &str, v: Value) {
        self.b.func.add_result(name, v);
    }
}

/// 0 where `keep`, the lowest `f32` elsewhere.
fn keep_or_lowest(f: &mut transc_ir::scalar::BodyBuilder, keep: transc_ir::scalar::Ref) -> transc_ir::scalar::Ref {
    let (on, off) = (f.num(DType::F32, 0.0), f.lit(Literal::f32(f32::MIN)));
    f.select(keep, on, off)
}
