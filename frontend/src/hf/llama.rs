//! Decoders with rotary positions and RMS norms, whose members are in `members.rs`. One pass over whole sequences, without a cache.

use transc_ir::Value;
use transc_ir::op::{Map, Real, RmsNorm};
use transc_ir::scalar::{BinOp, Body};
use transc_ir::types::DType;

use super::Result;
use super::activations::{Activation, find};
use super::attention::Sight;
use super::config::{Config, MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH};
use super::heads::{Head, Tops};
use super::layers::{Layers, typed};
use super::members::Member;
use super::moe::Experts;
use super::rope::{self, Kind, Turns, Wanted};
use super::weights::ANY;

/// The layers that see all keys, and those with a window, where their rotations differ.
const KINDS: [Kind; 2] = [
    Kind { name: "full_attention", theta: "rope_theta", stretched: true },
    Kind { name: "sliding_attention", theta: "rope_local_base_freq", stretched: false },
];

/// A model of the family with its sizes.
struct Model<'a> {
    m: &'a Member,
    width: usize,
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    /// Features of a head that are rotated.
    rotated: usize,
    inner: usize,
    layers: usize,
    positions: usize,
    epsilon: f64,
    activation: Activation,
    /// Of the logits of attention and of words.
    softcaps: [Option<f64>; 2],
    experts: Option<Experts>,
}

impl<'a> Model<'a> {
    fn read(c: &Config, m: &'a Member) -> Result<Self> {
        let width = c.count("hidden_size", m.sizes.width, MAX_WIDTH)?;
        let heads = c.count("num_attention_heads", m.sizes.heads, MAX_WIDTH)?;
        let or = |size: usize, other: usize| if size == 0 { other } else { size };
        // Null means as many as heads, too.
        let key_heads = if c.is_null("num_key_value_heads") { heads } else { or(m.sizes.key_heads, heads) };
        let key_heads = c.count("num_key_value_heads", key_heads, MAX_WIDTH)?;
        let head_dim = c.count("head_dim", or(m.sizes.head_dim, (width / heads).max(1)), MAX_WIDTH)?;
        let (field, usual) = m.activation;
        // The first files of Gemma name the exact gelu and mean the approximation.
        let legacy = m.gemma && field == "hidden_act" && c.text(field) == "gelu";
        let activation = if legacy { find(usual) } else { None };
        // Of these, Phi-3 alone turns a part of a head.
        let rotated = if m.fused { rope::rotated(c, "partial_rotary_factor", 1.0, head_dim)? } else { head_dim };
        if !heads.is_multiple_of(key_heads) {
            return Err(Config::bad("num_key_value_heads", format!("is {key_heads}, which does not divide the {heads} heads")));
        }
        if !rotated.is_multiple_of(2) {
            return Err(Config::bad("head_dim", format!("asks for rotations of {rotated} features, which are no pairs")));
        }
        Ok(Self {
            m,
            width,
            heads,
            key_heads,
            head_dim,
            rotated,
            inner: c.count("intermediate_size", m.sizes.inner, MAX_WIDTH)?,
            layers: c.count("num_hidden_layers", m.sizes.layers, MAX_LAYERS)?,
            positions: c.count("max_position_embeddings", m.sizes.positions, MAX_POSITIONS)?,
            epsilon: c.epsilon("rms_norm_eps", m.epsilon)?,
            activation: activation.map_or_else(|| c.activation(field, usual), Ok)?,
            softcaps: {
                let [(attention, usual), (words, usual_of_words)] = m.softcaps;
                [c.option(attention, usual)?, c.option(words, usual_of_words)?]
            },
            experts: m.experts.map(|kinds| Experts::read(c, kinds)).transpose()?,
        })
    }
}

/// What layers of one kind share.
#[derive(Clone, Copy)]
struct Shared {
    sight: Sight,
    turns: Turns,
}

/// Builds a model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head, m: &Member) -> Result<()> {
    let model = Model::read(c, m)?;
    let ids = l.tokens("input_ids", head, model.positions)?;
    let mask = l.tokens("attention_mask", head, model.positions)?;
    // Heads of answers have the body under another name.
    let base = l.base(&["model", "transformer"], "embed_tokens.weight");
    let hidden = l.scope(base, |l| {
        let mut x = l.embedding("embed_tokens.weight", [ANY, model.width], ids)?;
        if m.gemma {
            x = l.scaled(x, (model.width as f64).sqrt())?;
        }
        let (whole, windowed) = model.shared(l, c, ids, mask)?;
        for i in 0..model.layers {
            let shared = windowed.as_ref().filter(|(_, which)| which[i]).map_or(whole, |(shared, _)| *shared);
            x = l.scope(&format!("layers.{i}"), |l| model.layer(l, i, &shared, x))?;
        }
        model.norm(l, "norm", x)
    })?;
    let table = l.under(base, "embed_tokens.weight");
    let softcap = model.softcaps[1];
    let tops = Tops { words: "lm_head", table: &table, tied: m.tied, classes: "score", pad: m.pad, softcap };
    l.top_off(c, head, hidden, ids, &tops)
}

impl Model<'_> {
    /// What the layers that see all keys share, and what those with a window do, with the list of these.
    fn shared(&self, l: &mut Layers<'_>, c: &Config, ids: Value, mask: Value) -> Result<(Shared, Option<(Shared, Vec<bool>)>)> {
        let ahead = self.m.gemma && c.flag("use_bidirectional_attention") == Some(true);
        let wanted = Wanted { features: self.rotated, positions: self.positions, theta: self.m.theta };
        let mut turns = Vec::new();
        if self.m.local_turns {
            for (kind, theta) in KINDS.iter().zip([self.m.theta, rope::THETA]) {
                turns.push(rope::rotations_of(c, kind, Wanted { theta, ..wanted })?.turns(l, ids)?);
            }
        } else {
            turns = vec![rope::rotations(c, "rope_theta", wanted)?.turns(l, ids)?; 2];
        }
        let scale = match self.m.query_scale {
            Some(absent) => c.option("query_pre_attn_scalar", Some(absent))?.map(|s| 1.0 / s.sqrt()),
            None => None,
        };
        let causal = c.is_causal() && !ahead;
        let sight = Sight { mask: Some(l.mask_bias(mask)?), causal, scale, softcap: self.softcaps[0] };
        let whole = Shared { sight, turns: turns[0] };
        let Some((keys, which)) = self.m.windows.read(c, self.layers)? else { return Ok((whole, None)) };
        let (before, behind) = match (causal, ahead) {
            (true, _) => (keys - 1, 0),
            // Gemma 3 halves the window where it looks ahead; Gemma 2 does not say what becomes of it.
            (false, true) if self.m.local_turns => (keys / 2, keys / 2),
            (false, true) => return Err(Config::unsupported("looks ahead in layers with a window, which is not supported")),
            (false, false) => (keys, keys),
        };
        let window = l.window_bias(mask, before, behind)?;
        let sight = Sight { mask: Some(window), causal: false, ..sight };
        Ok((whole, Some((Shared { sight, turns: turns[1] }, which))))
    }

    fn layer(&self, l: &mut Layers<'_>, i: usize, shared: &Shared, x: Value) -> Result<Value> {
        let h = self.norm(l, "input_layernorm", x)?;
        let mut h = l.scope("self_attn", |l| self.attention(l, shared, h))?;
        let mut before = "post_attention_layernorm";
        if self.m.norms_behind {
            h = self.norm(l, before, h)?;
            before = "pre_feedforward_layernorm";
        }
        let x = l.plus(x, h)?;
        let h = self.norm(l, before, x)?;
        let mut h = match self.experts.as_ref().filter(|e| e.stand_in(i)) {
            Some(experts) => experts.of(l, h, self.activation)?,
            None => l.scope("mlp", |l| self.gated(l, h, self.inner))?,
        };
        if self.m.norms_behind {
            h = self.norm(l, "post_feedforward_layernorm", h)?;
        }
        l.plus(x, h)
    }

    fn attention(&self, l: &mut Layers<'_>, shared: &Shared, x: Value) -> Result<Value> {
        let heads = [self.heads, self.key_heads, self.key_heads];
        let widths = heads.map(|n| n * self.head_dim);
        let names = ["q", "k", "v"];
        let mut qkv = [x; 3];
        if self.m.fused {
            let all = l.linear("qkv_proj", x, widths.iter().sum())?;
            qkv = l.split(all, widths)?;
        } else {
            for ((v, name), width) in qkv.iter_mut().zip(names).zip(widths) {
                *v = l.linear(&format!("{name}_proj"), x, width)?;
            }
        }
        for ((v, name), heads) in qkv.iter_mut().zip(names).zip(heads) {
            *v = l.split_heads(*v, heads)?;
            if name != "v" {
                let norm = format!("{name}_norm");
                if l.has(&format!("{norm}.weight")) {
                    *v = self.norm(l, &norm, *v)?;
                }
                *v = l.scope(&format!("{name}_rope"), |l| shared.turns.of(l, *v))?;
            }
        }
        let y = l.attend(qkv, shared.sight)?;
        l.linear("o_proj", y, self.width)
    }

    /// The gated unit.
    fn gated(&self, l: &mut Layers<'_>, x: Value, inner: usize) -> Result<Value> {
        if !self.m.fused {
            return l.gated_unit(x, inner, self.activation);
        }
        let h = l.linear("gate_up_proj", x, 2 * inner)?;
        let h = l.gated(self.activation, h)?;
        l.linear("down_proj", h, self.width)
    }

    fn norm(&self, l: &mut Layers<'_>, name: &str, x: Value) -> Result<Value> {
        let (axis, width) = (l.b.ty(x).rank() - 1, l.width(x));
        l.scope(name, |l| {
            let mut scale = l.weight("weight", &[width])?;
            if self.m.gemma {
                let mut f = Body::builder(1);
                let (w, one) = (f.arg(0), f.num(DType::F32, 1.0));
                let w = f.bin(BinOp::Add, w, one);
                scale = typed(l.b.add(Map { body: f.finish(w) }, &[scale]))?;
            }
            typed(l.b.add(RmsNorm { axis, epsilon: Real(self.epsilon) }, &[x, scale]))
        })
    }
}
