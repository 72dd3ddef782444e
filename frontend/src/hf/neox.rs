//! Decoders whose query, key and value heads are one layer, group by group, and whose attention and feed-forward part may stand side by side:
//! GPT-NeoX (Black et al. 2022) and Falcon (Almazrouei et al. 2023). One pass over whole sequences, without a cache.

use transc_ir::Value;
use transc_ir::types::Dim;

use super::Result;
use super::activations::Activation;
use super::attention::Sight;
use super::config::{Config, MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH};
use super::heads::{Head, Tops};
use super::layers::{Layers, typed};
use super::rope::{self, THETA, Turns, Wanted};
use super::weights::ANY;

/// A member of the family.
pub(crate) struct Member {
    /// The path of the body in files of models with a head.
    prefix: &'static str,
    table: &'static str,
    layer: &'static str,
    attention: &'static str,
    norm: &'static str,
    words: &'static str,
    /// Width, heads and layers where they are absent.
    sizes: [usize; 3],
    /// The fields of inner width, activation and epsilon.
    fields: [&'static str; 3],
    /// The inner width where it is absent; 0 for four times the width.
    inner: usize,
    /// The fields of the share of rotated features and of their base, and that share where it is absent.
    rotations: (&'static str, &'static str, f64),
    tied: bool,
    falcon: bool,
}

/// GPT-NeoX.
pub(crate) const NEOX: Member = Member {
    prefix: "gpt_neox",
    table: "embed_in.weight",
    layer: "layers",
    attention: "attention",
    norm: "final_layer_norm",
    words: "embed_out",
    sizes: [6144, 64, 44],
    fields: ["intermediate_size", "hidden_act", "layer_norm_eps"],
    inner: 24576,
    rotations: ("rotary_pct", "rotary_emb_base", 0.25),
    tied: false,
    falcon: false,
};

/// Falcon.
pub(crate) const FALCON: Member = Member {
    prefix: "transformer",
    table: "word_embeddings.weight",
    layer: "h",
    attention: "self_attention",
    norm: "ln_f",
    words: "lm_head",
    sizes: [4544, 71, 32],
    fields: ["ffn_hidden_size", "activation", "layer_norm_epsilon"],
    inner: 0,
    rotations: ("partial_rotary_factor", "rope_theta", 1.0),
    tied: true,
    falcon: true,
};

/// Where the feed-forward part has its rows from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The sum with attention, through a norm.
    Behind,
    /// What comes into the layer, through a norm of its own.
    Beside([&'static str; 2]),
    /// What attention has.
    Same,
}

/// A model of the family with its sizes.
struct Model<'a> {
    m: &'a Member,
    width: usize,
    heads: usize,
    /// Groups of query heads with one key and value head each.
    groups: usize,
    layers: usize,
    inner: usize,
    positions: usize,
    epsilon: f64,
    activation: Activation,
    order: Order,
}

impl<'a> Model<'a> {
    fn read(c: &Config, m: &'a Member) -> Result<Self> {
        let width = c.count("hidden_size", m.sizes[0], MAX_WIDTH)?;
        let heads = c.heads("num_attention_heads", m.sizes[1], width)?;
        let [inner, activation, epsilon] = m.fields;
        let flag = |field: &str, absent: bool| c.flag(field).unwrap_or(absent);
        let (mut groups, mut order) = (heads, Order::Behind);
        if m.falcon {
            if flag("alibi", false) {
                return Err(Config::unsupported("asks for biases by distance (`alibi`), which are not supported"));
            }
            let (grouped, beside) = (flag("new_decoder_architecture", false), flag("parallel_attn", true));
            groups = match (grouped, flag("multi_query", true)) {
                (true, _) => c.count("num_kv_heads", heads, MAX_WIDTH)?,
                (false, true) => 1,
                (false, false) => heads,
            };
            order = match (grouped, beside, c.count("num_ln_in_parallel_attn", 2, 2)?) {
                (true, true, 2) => Order::Beside(["ln_attn", "ln_mlp"]),
                (_, true, _) => Order::Same,
                (false, false, _) => Order::Behind,
                (true, false, _) => return Err(Config::unsupported("has groups of heads without `parallel_attn`")),
            };
        } else if flag("use_parallel_residual", true) {
            order = Order::Beside(["input_layernorm", "post_attention_layernorm"]);
        }
        if !heads.is_multiple_of(groups) {
            return Err(Config::bad("num_kv_heads", format!("is {groups}, which does not divide the {heads} heads")));
        }
        Ok(Self {
            m,
            width,
            heads,
            groups,
            layers: c.count("num_hidden_layers", m.sizes[2], MAX_LAYERS)?,
            inner: c.count(inner, if m.inner == 0 { 4 * width } else { m.inner }, MAX_WIDTH)?,
            positions: c.count("max_position_embeddings", 2048, MAX_POSITIONS)?,
            epsilon: c.epsilon(epsilon, 1e-5)?,
            activation: c.activation(activation, "gelu")?,
            order,
        })
    }
}

/// Builds a model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head, m: &Member) -> Result<()> {
    let model = Model::read(c, m)?;
    let ids = l.tokens("input_ids", head, model.positions)?;
    let mask = l.tokens("attention_mask", head, model.positions)?;
    let base = l.base(&[m.prefix], m.table);
    let (share, theta, usual) = m.rotations;
    let features = rope::rotated(c, share, usual, model.width / model.heads)?;
    let wanted = Wanted { features, positions: model.positions, theta: THETA };
    let hidden = l.scope(base, |l| {
        let mut x = l.embedding(m.table, [ANY, model.width], ids)?;
        let turns = rope::rotations(c, theta, wanted)?.turns(l, ids)?;
        let sight = Sight { mask: Some(l.mask_bias(mask)?), causal: c.is_causal(), ..Sight::default() };
        for i in 0..model.layers {
            x = l.scope(&format!("{}.{i}", m.layer), |l| model.layer(l, turns, sight, x))?;
        }
        l.layer_norm(m.norm, x, model.epsilon)
    })?;
    let table = l.under(base, m.table);
    // Files of GPT-NeoX have it under either name.
    let words = if l.has("lm_head.weight") { "lm_head" } else { m.words };
    let tops = Tops { words, table: &table, tied: m.tied, classes: "classifier", pad: None, softcap: None };
    l.top_off(c, head, hidden, ids, &tops)
}

impl Model<'_> {
    fn layer(&self, l: &mut Layers<'_>, turns: Turns, sight: Sight, x: Value) -> Result<Value> {
        let first = if let Order::Beside([first, _]) = self.order { first } else { "input_layernorm" };
        let h = l.layer_norm(first, x, self.epsilon)?;
        let a = l.scope(self.m.attention, |l| {
            let mut qkv = self.heads_of(l, h)?;
            for (x, name) in qkv.iter_mut().zip(["q_rope", "k_rope"]) {
                *x = l.scope(name, |l| turns.of(l, *x))?;
            }
            let y = l.attend(qkv, sight)?;
            l.linear("dense", y, self.width)
        })?;
        let sum = l.plus(a, x)?;
        let h = match self.order {
            Order::Behind => l.layer_norm("post_attention_layernorm", sum, self.epsilon)?,
            Order::Beside([_, own]) => l.layer_norm(own, x, self.epsilon)?,
            Order::Same => h,
        };
        let h = l.scope("mlp", |l| {
            let h = l.linear("dense_h_to_4h", h, self.inner)?;
            let h = l.activate(self.activation, h)?;
            l.linear("dense_4h_to_h", h, self.width)
        })?;
        l.plus(h, sum)
    }

    /// The heads of the one layer, `[B, H, S, d]` and `[B, G, S, d]`: each group has its queries, then key and value.
    fn heads_of(&self, l: &mut Layers<'_>, x: Value) -> Result<[Value; 3]> {
        let (d, queries) = (self.width / self.heads, self.heads / self.groups);
        let all = l.linear("query_key_value", x, (self.heads + 2 * self.groups) * d)?;
        let rows = l.b.ty(all).dims[..2].to_vec();
        let apart: Vec<Dim> = [&rows[..], &[self.groups, queries + 2, d].map(Dim::from)[..]].concat();
        let all = typed(l.b.reshape(all, apart))?;
        let mut qkv = [all; 3];
        for (x, (start, n)) in qkv.iter_mut().zip([(0, queries), (queries, 1), (queries + 1, 1)]) {
            let part = l.cut(*x, 3, start, n)?;
            let heads: Vec<Dim> = [&rows[..], &[self.groups * n, d].map(Dim::from)[..]].concat();
            let part = typed(l.b.reshape(part, heads))?;
            *x = typed(l.b.transpose(part, &[0, 2, 1, 3]))?;
        }
        Ok(qkv)
    }
}
