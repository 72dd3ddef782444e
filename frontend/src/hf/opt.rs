//! OPT (Zhang et al. 2022). One pass over whole sequences, without a cache.

use super::Result;
use super::attention::Sight;
use super::block::{Block, Names};
use super::clip::PARTS;
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::heads::{Head, Tops};
use super::layers::Layers;
use super::weights::ANY;

const NAMES: Names = Names { norms: ["self_attn_layer_norm", "final_layer_norm"], up: "fc1", down: "fc2", ..PARTS };

/// The norms have no field for it.
const EPSILON: f64 = 1e-5;

/// Rows of the table of places that stand before the first.
const RESERVED: usize = 2;

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head) -> Result<()> {
    let width = c.count("hidden_size", 768, MAX_WIDTH)?;
    let block = Block {
        names: &NAMES,
        width,
        heads: c.heads("num_attention_heads", 12, width)?,
        inner: c.count("ffn_dim", 3072, MAX_WIDTH)?,
        epsilon: EPSILON,
        activation: c.activation("activation_function", "relu")?,
        norm_first: c.flag("do_layer_norm_before") != Some(false),
        gated: false,
    };
    if c.flag("layer_norm_elementwise_affine") == Some(false) {
        return Err(Config::unsupported("asks for norms without weights, which are not supported"));
    }
    let layers = c.count("num_hidden_layers", 12, MAX_LAYERS)?;
    let positions = c.count("max_position_embeddings", 2048, MAX_WIDTH)?;
    let embedding = c.count("word_embed_proj_dim", width, MAX_WIDTH)?;
    let ids = l.tokens("input_ids", head, positions)?;
    let mask = l.tokens("attention_mask", head, positions)?;
    let base = l.base(&["model.decoder", "decoder"], "embed_tokens.weight");
    let hidden = l.scope(base, |l| {
        let mut x = l.embedding("embed_tokens.weight", [ANY, embedding], ids)?;
        if embedding != width {
            x = l.linear("project_in", x, width)?;
        }
        let index = l.counted(mask, 0, RESERVED as i64 - 1)?;
        let p = l.embedding("embed_positions.weight", [positions + RESERVED, width], index)?;
        let x = l.plus(x, p)?;
        let sight = Sight { mask: Some(l.mask_bias(mask)?), causal: c.is_causal(), ..Sight::default() };
        let mut x = block.stack(l, "layers", layers, x, sight)?;
        if block.norm_first && c.flag("_remove_final_layer_norm") != Some(true) {
            x = l.layer_norm("final_layer_norm", x, block.epsilon)?;
        }
        if embedding == width { Ok(x) } else { l.linear("project_out", x, embedding) }
    })?;
    let table = l.under(base, "embed_tokens.weight");
    let tops = Tops { words: "lm_head", table: &table, tied: true, classes: "classifier", pad: Some(1), softcap: None };
    l.top_off(c, head, hidden, ids, &tops)
}
