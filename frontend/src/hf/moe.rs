//! Gated units of experts, of which each token takes the few that its scores rank first (Shazeer et al. 2017). All are computed; the weight of
//! those that a token does not take is 0.

use serde_json::Value as Json;
use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Iota, Map, Softmax, TopK};
use transc_ir::scalar::{BinOp, Body, UnOp};
use transc_ir::types::{DType, Dim};

use super::Result;
use super::activations::Activation;
use super::config::{Config, FILE, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::problem;

/// How a family names its experts, and what absent fields mean.
pub(crate) struct Kinds {
    /// The path of the unit in a layer.
    path: &'static str,
    /// Gate, values and what leads back to the width.
    parts: [&'static str; 3],
    /// The names of the field of the number of experts, and its default.
    count: ([&'static str; 2], usize),
    /// Of those that a token takes.
    top: usize,
    /// Of an expert's inner width.
    inner: (&'static str, usize),
    /// The weights of those that a token takes always sum up to 1, not just where a field asks for it.
    normed: bool,
    /// Of the inner width of an expert that all tokens take.
    shared: Option<(&'static str, usize)>,
}

/// Mixtral.
pub(crate) const MIXTRAL: Kinds = Kinds {
    path: "block_sparse_moe",
    parts: ["w1", "w3", "w2"],
    count: (["num_local_experts", "num_experts"], 8),
    top: 2,
    inner: ("intermediate_size", 14336),
    normed: true,
    shared: None,
};

/// Qwen2-MoE.
pub(crate) const QWEN2: Kinds = Kinds {
    path: "mlp",
    parts: ["gate_proj", "up_proj", "down_proj"],
    count: (["num_experts", "num_local_experts"], 60),
    top: 4,
    inner: ("moe_intermediate_size", 1408),
    normed: false,
    shared: Some(("shared_expert_intermediate_size", 5632)),
};

/// Qwen3-MoE.
pub(crate) const QWEN3: Kinds =
    Kinds { count: (QWEN2.count.0, 128), top: 8, inner: ("moe_intermediate_size", 768), shared: None, ..QWEN2 };

/// The experts of a model.
pub(crate) struct Experts {
    kinds: &'static Kinds,
    count: usize,
    top: usize,
    inner: usize,
    normed: bool,
    shared: Option<usize>,
    /// Every so manyth layer has experts..
    step: usize,
    /// ..but these.
    dense: Vec<usize>,
}

impl Experts {
    /// Reads their number and sizes.
    pub(crate) fn read(c: &Config, kinds: &'static Kinds) -> Result<Self> {
        let sizes = |(field, absent): (&str, usize)| c.count(field, absent, MAX_WIDTH);
        let listed = c.field("mlp_only_layers").and_then(Json::as_array).into_iter().flatten();
        let experts = Self {
            kinds,
            count: sizes((c.named(kinds.count.0), kinds.count.1))?,
            top: sizes(("num_experts_per_tok", kinds.top))?,
            inner: sizes(kinds.inner)?,
            normed: kinds.normed || c.flag("norm_topk_prob") == Some(true),
            shared: kinds.shared.map(sizes).transpose()?,
            step: sizes(("decoder_sparse_step", 1))?,
            dense: listed.filter_map(|i| usize::try_from(i.as_u64()?).ok()).collect(),
        };
        if experts.top > experts.count || experts.count.checked_mul(experts.inner).is_none_or(|n| n > i32::MAX as usize) {
            let message = format!("takes {} of {} experts of width {}", experts.top, experts.count, experts.inner);
            return Err(problem("T0405", Fault::Invalid, FILE, message, ""));
        }
        Ok(experts)
    }

    /// True if the gated unit of layer `i` is one of experts.
    pub(crate) fn stand_in(&self, i: usize) -> bool {
        (i + 1).is_multiple_of(self.step) && !self.dense.contains(&i)
    }

    /// What they make of `x[B, S, W]`.
    pub(crate) fn of(&self, l: &mut Layers<'_>, x: Value, activation: Activation) -> Result<Value> {
        l.scope(self.kinds.path, |l| {
            let weights = self.weights(l, x)?;
            // All experts side by side are one wide unit, whose inner features are weighted by those of their expert.
            let mut wide = [x; 2];
            for (y, part) in wide.iter_mut().zip(self.kinds.parts) {
                let w = self.side_by_side(l, part, [self.inner, l.width(x)], 0)?;
                *y = l.contract_last(x, w, true)?;
            }
            let gate = l.activate(activation, wide[0])?;
            let h = l.times(gate, wide[1])?;
            let dims = l.b.ty(h).dims.clone();
            let apart = [&dims[..2], &[Dim::from(self.count), Dim::from(self.inner)]].concat();
            let h = typed(l.b.reshape(h, apart))?;
            let h = l.times(h, weights)?;
            let h = typed(l.b.reshape(h, dims))?;
            let w = self.side_by_side(l, self.kinds.parts[2], [l.width(x), self.inner], 1)?;
            let y = l.contract_last(h, w, true)?;
            let Some(inner) = self.shared else { return Ok(y) };
            let all = l.scope("shared_expert", |l| l.gated_unit(x, inner, activation))?;
            let gate = l.linear("shared_expert_gate", x, 1)?;
            let gate = typed(l.b.un(UnOp::Sigmoid, gate))?;
            let all = l.times(all, gate)?;
            l.plus(y, all)
        })
    }

    /// The weights of all experts for each token, `[B, S, E, 1]`.
    fn weights(&self, l: &mut Layers<'_>, x: Value) -> Result<Value> {
        let scores = l.linear("gate", x, self.count)?;
        let shares = typed(l.b.add(Softmax { axis: 2, log: false }, &[scores]))?;
        let top = typed(l.b.add_multi(TopK { k: self.top.into(), axis: 2, largest: true }, &[shares]))?;
        let mut taken = top[0];
        if self.normed {
            let sum = l.sum(taken, 2, true)?;
            taken = typed(l.b.bin(BinOp::Div, taken, sum))?;
        }
        let dims = l.b.ty(taken).dims.clone();
        let apart = [dims, vec![Dim::from(1)]].concat();
        let (taken, place) = (typed(l.b.reshape(taken, apart.clone()))?, typed(l.b.reshape(top[1], apart))?);
        let experts = typed(l.b.add(Iota { dims: vec![self.count.into()], axis: 0 }, &[]))?;
        let mut f = Body::builder(3);
        let (share, place_arg, expert, zero) = (f.arg(0), f.arg(1), f.arg(2), f.num(DType::F32, 0.0));
        let its = f.bin(BinOp::Eq, place_arg, expert);
        let share = f.select(its, share, zero);
        let shares = typed(l.b.add(Map { body: f.finish(share) }, &[taken, place, experts]))?;
        let weights = l.sum(shares, 2, false)?;
        let dims = [l.b.ty(weights).dims.clone(), vec![Dim::from(1)]].concat();
        typed(l.b.reshape(weights, dims))
    }

    /// The weights of a part of all experts, joined along an axis.
    fn side_by_side(&self, l: &mut Layers<'_>, part: &str, dims: [usize; 2], axis: usize) -> Result<Value> {
        let names: Vec<String> = (0..self.count).map(|i| l.full(&format!("experts.{i}.{part}.weight"))).collect();
        let data = l.weights.joined(&names, dims, axis)?;
        let name = l.full(&format!("experts.{part}.weight"));
        l.constant(&name, data)
    }
}
