//! GPT-2 (Radford et al. 2019). One pass over whole sequences, without a cache.

use super::Result;
use super::attention::Sight;
use super::block::{Block, Names};
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::heads::{Head, Tops};
use super::layers::Layers;
use super::weights::ANY;

const NAMES: Names = Names {
    qkv: &["attn.c_attn"],
    out: "attn.c_proj",
    norms: ["ln_1", "ln_2"],
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    scales: None,
    in_out: true,
};

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head) -> Result<()> {
    let width = c.count(c.named(["n_embd", "hidden_size"]), 768, MAX_WIDTH)?;
    let block = Block {
        names: &NAMES,
        width,
        heads: c.heads(c.named(["n_head", "num_attention_heads"]), 12, width)?,
        inner: c.count("n_inner", 4 * width, MAX_WIDTH)?,
        epsilon: c.epsilon("layer_norm_epsilon", 1e-5)?,
        activation: c.activation("activation_function", "gelu_new")?,
        norm_first: true,
        gated: false,
    };
    let layers = c.count(c.named(["n_layer", "num_hidden_layers"]), 12, MAX_LAYERS)?;
    let positions = c.count(c.named(["n_positions", "max_position_embeddings"]), 1024, MAX_WIDTH)?;
    // The logits may be scaled by the size of a head or not, and by the number of the layer.
    let head_scale = if c.flag("scale_attn_weights") == Some(false) { 1.0 } else { 1.0 / ((width / block.heads) as f64).sqrt() };
    let by_layer = c.flag("scale_attn_by_inverse_layer_idx") == Some(true);
    let ids = l.tokens("input_ids", head, positions)?;
    let mask = l.tokens("attention_mask", head, positions)?;
    let base = l.base(&["transformer"], "wte.weight");
    let hidden = l.scope(base, |l| {
        let x = l.embedding("wte.weight", [ANY, width], ids)?;
        let index = l.positions(ids)?;
        let p = l.embedding("wpe.weight", [positions, width], index)?;
        let mut x = l.plus(x, p)?;
        let mask = Some(l.mask_bias(mask)?);
        for i in 0..layers {
            let scale = if by_layer { head_scale / (i + 1) as f64 } else { head_scale };
            let sight = Sight { mask, causal: c.is_causal(), scale: Some(scale), softcap: None };
            x = l.scope(&format!("h.{i}"), |l| block.layer(l, x, sight))?;
        }
        l.layer_norm("ln_f", x, block.epsilon)
    })?;
    let table = l.under(base, "wte.weight");
    let tops = Tops { words: "lm_head", table: &table, tied: true, classes: "classifier", pad: None, softcap: None };
    l.top_off(c, head, hidden, ids, &tops)
}
