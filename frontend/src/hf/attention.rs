//! Attention of the recipes: heads, and which keys a query sees.

use transc_ir::Value;
use transc_ir::op::{Attention, Map, Real};
use transc_ir::scalar::{BinOp, Body, BodyBuilder, Literal, Ref};
use transc_ir::types::{DType, Dim};

use super::Result;
use super::layers::{Layers, typed};

/// How logits are made, and which keys a query sees.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight {
    /// Added to the logits.
    pub(crate) mask: Option<Value>,
    /// No key behind the query.
    pub(crate) causal: bool,
    /// Factor of the logits, if it is not one over the root of the size of a head.
    pub(crate) scale: Option<f64>,
    /// Soft cap of the logits.
    pub(crate) softcap: Option<f64>,
}

impl Layers<'_> {
    /// `[B, S, heads*d]` to `[B, heads, S, d]`.
    pub(crate) fn split_heads(&mut self, x: Value, heads: usize) -> Result<Value> {
        let dims = self.b.ty(x).dims.clone();
        let d = dims[2].floor_div(&heads.into());
        let x = typed(self.b.reshape(x, vec![dims[0].clone(), dims[1].clone(), heads.into(), d]))?;
        typed(self.b.transpose(x, &[0, 2, 1, 3]))
    }

    /// Attention over split heads `q[B, H, S, d]`, `k` and `v[B, G, T, d]`, back to `[B, S, H*d]`.
    pub(crate) fn attend(&mut self, [q, k, v]: [Value; 3], sight: Sight) -> Result<Value> {
        let dims = self.b.ty(q).dims.clone();
        let scale = sight.scale.unwrap_or_else(|| 1.0 / (self.width(q) as f64).sqrt());
        let attention = Attention {
            scale: Real(scale),
            causal: sight.causal.then(|| 0.into()),
            softcap: Real(sight.softcap.unwrap_or(0.0)),
            clear: true,
        };
        let operands: Vec<Value> = [q, k, v].into_iter().chain(sight.mask).collect();
        let y = typed(self.b.add(attention, &operands))?;
        let y = typed(self.b.transpose(y, &[0, 2, 1, 3]))?;
        typed(self.b.reshape(y, vec![dims[0].clone(), dims[2].clone(), &dims[1] * &dims[3]]))
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

    /// As [`Layers::mask_bias`], and a query sees itself, `before` keys before it and `behind` keys behind it (Beltagy et al. 2020):
    /// `[B, 1, S, S]`.
    pub(crate) fn window_bias(&mut self, mask: Value, before: usize, behind: usize) -> Result<Value> {
        let dims = self.b.ty(mask).dims.clone();
        let (queries, keys) = self.places(mask)?;
        let mask = typed(self.b.reshape(mask, vec![dims[0].clone(), 1.into(), 1.into(), dims[1].clone()]))?;
        let mut f = Body::builder(3);
        let (m, i, j) = (f.arg(0), f.arg(1), f.arg(2));
        let (zero, least) = (f.lit(Literal::i64(0)), f.lit(Literal::i64(-(behind as i64))));
        let window = f.lit(Literal::i64(before as i64 + 1));
        let age = f.bin(BinOp::Sub, i, j);
        let near = f.bin(BinOp::Lt, age, window);
        let valid = f.bin(BinOp::Ne, m, zero);
        let past = f.bin(BinOp::Le, least, age);
        let near = f.bin(BinOp::And, past, near);
        let keep = f.bin(BinOp::And, valid, near);
        let bias = keep_or_lowest(&mut f, keep);
        typed(self.b.add(Map { body: f.finish(bias) }, &[mask, queries, keys]))
    }

    /// The places of queries `[S, 1]` and of keys `[S]` of `ids[B, S]`.
    pub(crate) fn places(&mut self, ids: Value) -> Result<(Value, Value)> {
        let keys = self.positions(ids)?;
        let seq = self.b.ty(ids).dims[1].clone();
        Ok((typed(self.b.reshape(keys, vec![seq, Dim::from(1)]))?, keys))
    }
}

/// 0 where `keep`, the lowest `f32` elsewhere.
fn keep_or_lowest(f: &mut BodyBuilder, keep: Ref) -> Ref {
    let (on, off) = (f.num(DType::F32, 0.0), f.lit(Literal::f32(f32::MIN)));
    f.select(keep, on, off)
}
