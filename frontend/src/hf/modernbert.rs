//! ModernBERT (Warner et al. 2024): an encoder of texts with rotary positions and gated units, in most of whose layers a token sees its
//! neighbours only.

use transc_ir::Value;
use transc_ir::op::ArgReduce;
use transc_ir::scalar::BinOp;
use transc_ir::types::DType;

use super::activations::Activation;
use super::attention::Sight;
use super::config::{Config, MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH};
use super::heads::Head;
use super::layers::{Layers, typed};
use super::rope::{self, Kind, THETA, Turns, Wanted};
use super::weights::ANY;
use super::{Result, no_recipe};

/// The layers that see all tokens, and the others.
const KINDS: [(Kind, f64); 2] = [
    (Kind { name: "full_attention", theta: "global_rope_theta", stretched: true }, 160_000.0),
    (Kind { name: "sliding_attention", theta: "local_rope_theta", stretched: true }, THETA),
];

/// Every so manyth layer sees all tokens where the config does not say.
const GLOBAL: usize = 3;

/// A model with its sizes.
struct Model {
    width: usize,
    heads: usize,
    inner: usize,
    layers: usize,
    positions: usize,
    epsilon: f64,
    /// Norms have a bias.
    biased: bool,
    activation: Activation,
}

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head) -> Result<()> {
    let width = c.count("hidden_size", 768, MAX_WIDTH)?;
    let model = Model {
        width,
        heads: c.heads("num_attention_heads", 12, width)?,
        inner: c.count("intermediate_size", 1152, MAX_WIDTH)?,
        layers: c.count("num_hidden_layers", 22, MAX_LAYERS)?,
        positions: c.count("max_position_embeddings", 8192, MAX_POSITIONS)?,
        epsilon: c.epsilon("norm_eps", 1e-5)?,
        biased: c.flag("norm_bias") == Some(true),
        activation: c.activation("hidden_activation", "gelu")?,
    };
    let ids = l.tokens("input_ids", head, model.positions)?;
    let mask = l.tokens("attention_mask", head, model.positions)?;
    let base = l.base(&["model"], "embeddings.tok_embeddings.weight");
    let hidden = l.scope(base, |l| model.encode(l, c, ids, mask))?;
    match head {
        Head::None => l.output("last_hidden_state", hidden),
        Head::MaskedLm => {
            let x = model.top(l, c, hidden)?;
            let table = l.under(base, "embeddings.tok_embeddings.weight");
            let logits = l.words(c, "decoder", &table, true, x)?;
            let logits = l.scope("decoder", |l| l.biased(logits))?;
            l.output("logits", logits);
        }
        Head::SequenceClassification => {
            let x = if mean(c)? { pooled(l, hidden, mask)? } else { l.token(hidden, 0)? };
            let x = model.top(l, c, x)?;
            l.classify("classifier", x)?;
        }
        Head::TokenClassification => {
            let x = model.top(l, c, hidden)?;
            l.classify("classifier", x)?;
        }
        Head::QuestionAnswering => {
            let x = model.top(l, c, hidden)?;
            l.spans("classifier", x)?;
        }
        Head::MultipleChoice => {
            let x = if mean(c)? {
                pooled(l, hidden, mask)?
            } else {
                // The first token that is not padding.
                let place = typed(l.b.add(ArgReduce { max: true, axis: 1, keep: true, last: false }, &[mask]))?;
                l.rows_at(hidden, place)?
            };
            let x = model.top(l, c, x)?;
            l.choose("classifier", x)?;
        }
        _ => return Err(no_recipe(c)),
    }
    Ok(())
}

/// True if a text is the mean of its tokens, and not the first of them.
fn mean(c: &Config) -> Result<bool> {
    match c.text("classifier_pooling") {
        "" | "cls" => Ok(false),
        "mean" => Ok(true),
        other => Err(Config::bad("classifier_pooling", format!("is `{other}`, not `cls` or `mean`"))),
    }
}

/// The mean of the tokens that are not padding.
fn pooled(l: &mut Layers<'_>, hidden: Value, mask: Value) -> Result<Value> {
    let dims = l.b.ty(mask).dims.clone();
    let mask = typed(l.b.cast(DType::F32, mask))?;
    let count = l.sum(mask, 1, true)?;
    let mask = typed(l.b.reshape(mask, vec![dims[0].clone(), dims[1].clone(), 1.into()]))?;
    let x = l.times(hidden, mask)?;
    let x = l.sum(x, 1, false)?;
    typed(l.b.bin(BinOp::Div, x, count))
}

impl Model {
    fn encode(&self, l: &mut Layers<'_>, c: &Config, ids: Value, mask: Value) -> Result<Value> {
        let mut x = l.scope("embeddings", |l| {
            let x = l.embedding("tok_embeddings.weight", [ANY, self.width], ids)?;
            self.norm(l, "norm", x)
        })?;
        let local = c.count("local_attention", 128, MAX_POSITIONS)? / 2;
        let masks = [l.mask_bias(mask)?, l.window_bias(mask, local, local)?];
        let mut kinds = Vec::new();
        for ((kind, theta), mask) in KINDS.iter().zip(masks) {
            let wanted = Wanted { features: self.width / self.heads, positions: self.positions, theta: *theta };
            let turns = rope::rotations_of(c, kind, wanted)?.turns(l, ids)?;
            kinds.push((turns, Sight { mask: Some(mask), ..Sight::default() }));
        }
        let every = c.count("global_attn_every_n_layers", GLOBAL, MAX_LAYERS)?;
        for i in 0..self.layers {
            let near = c.layer_type(i).map_or(!i.is_multiple_of(every), |kind| kind == "sliding_attention");
            let (turns, sight) = kinds[usize::from(near)];
            x = l.scope(&format!("layers.{i}"), |l| self.layer(l, i, turns, sight, x))?;
        }
        self.norm(l, "final_norm", x)
    }

    fn layer(&self, l: &mut Layers<'_>, i: usize, turns: Turns, sight: Sight, x: Value) -> Result<Value> {
        // The norm of the embeddings stands in for that of the first layer.
        let h = if i == 0 { x } else { self.norm(l, "attn_norm", x)? };
        let h = l.scope("attn", |l| {
            let all = l.linear("Wqkv", h, 3 * self.width)?;
            let mut qkv = l.split(all, [self.width; 3])?;
            for (v, name) in qkv.iter_mut().zip(["q_rope", "k_rope", ""]) {
                *v = l.split_heads(*v, self.heads)?;
                if !name.is_empty() {
                    *v = l.scope(name, |l| turns.of(l, *v))?;
                }
            }
            let y = l.attend(qkv, sight)?;
            l.linear("Wo", y, self.width)
        })?;
        let x = l.plus(h, x)?;
        let h = self.norm(l, "mlp_norm", x)?;
        let h = l.scope("mlp", |l| {
            let h = l.linear("Wi", h, 2 * self.inner)?;
            let h = l.gated(self.activation, h)?;
            l.linear("Wo", h, self.width)
        })?;
        l.plus(h, x)
    }

    /// The layer that all heads share.
    fn top(&self, l: &mut Layers<'_>, c: &Config, x: Value) -> Result<Value> {
        l.scope("head", |l| {
            let x = l.linear("dense", x, self.width)?;
            let x = l.activate(c.activation("classifier_activation", "gelu")?, x)?;
            self.norm(l, "norm", x)
        })
    }

    fn norm(&self, l: &mut Layers<'_>, name: &str, x: Value) -> Result<Value> {
        l.norm(name, x, self.epsilon, self.biased)
    }
}
