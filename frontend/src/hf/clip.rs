//! The text tower of CLIP (Radford et al. 2021).

use transc_ir::Value;
use transc_ir::op::{ArgReduce, GatherNd};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::DType;

use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::{Result, input, tokens};

/// The end-of-text id of the first published checkpoints, whose real one is the largest id of the vocabulary.
const LEGACY_END: i64 = 2;

/// The end-of-text id where the config names none.
const END: i64 = 49_407;

/// The tower, with its projection into the shared space or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    projection: bool,
}

impl Model {
    /// The model for a `model_type` and architecture.
    pub(crate) fn find(model_type: &str, architecture: &str) -> Option<Self> {
        match (model_type, architecture) {
            ("clip_text_model", "CLIPTextModelWithProjection") => Some(Self { projection: true }),
            ("clip_text_model", "CLIPTextModel") => Some(Self { projection: false }),
            _ => None,
        }
    }
}

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, model: Model) -> Result<()> {
    let width = c.count("hidden_size", None, MAX_WIDTH)?;
    let heads = c.heads("num_attention_heads", width)?;
    let layers = c.count("num_hidden_layers", None, MAX_LAYERS)?;
    let inner = c.count("intermediate_size", None, MAX_WIDTH)?;
    let positions = c.count("max_position_embeddings", Some(77), MAX_WIDTH)?;
    let epsilon = c.epsilon("layer_norm_eps", 1e-5)?;
    let activation = c.activation("hidden_act", "quick_gelu")?;
    let ids = input(l, "input_ids", tokens());
    let mask = input(l, "attention_mask", tokens());
    let nested = l.weights.has("text_model.embeddings.token_embedding.weight");
    let encode = |l: &mut Layers<'_>| -> Result<Value> {
        let x = l.embedding("embeddings.token_embedding.weight", [usize::MAX, width], ids)?;
        let index = l.positions(ids)?;
        let p = l.embedding("embeddings.position_embedding.weight", [positions, width], index)?;
        let mut x = typed(l.b.bin(BinOp::Add, x, p))?;
        let bias = l.mask_bias(mask)?;
        for i in 0..layers {
            x = l.scope(&format!("encoder.layers.{i}"), |l| {
                let h = l.layer_norm("layer_norm1", x, width, epsilon)?;
                let mut qkv = [h; 3];
                for (v, name) in qkv.iter_mut().zip(["q", "k", "v"]) {
                    let y = l.linear(&format!("self_attn.{name}_proj"), h, width, width)?;
                    *v = l.split_heads(y, heads)?;
                }
                let h = l.attend(qkv, Some(bias), Some(0.into()))?;
                let h = l.linear("self_attn.out_proj", h, width, width)?;
                let x = typed(l.b.bin(BinOp::Add, x, h))?;
                let h = l.layer_norm("layer_norm2", x, width, epsilon)?;
                let h = l.linear("mlp.fc1", h, width, inner)?;
                let h = l.activate(activation, h)?;
                let h = l.linear("mlp.fc2", h, inner, width)?;
                typed(l.b.bin(BinOp::Add, x, h))
            })?;
        }
        l.layer_norm("final_layer_norm", x, width, epsilon)
    };
    let hidden = if nested { l.scope("text_model", encode)? } else { encode(l)? };
    let pooled = at_end(l, hidden, ids, c.id("eos_token_id").unwrap_or(END))?;
    if model.projection {
        let size = c.count("projection_dim", Some(512), MAX_WIDTH)?;
        let embeds = l.project("text_projection.weight", pooled, [size, width])?;
        l.output("text_embeds", embeds);
        l.output("last_hidden_state", hidden);
    } else {
        l.output("last_hidden_state", hidden);
        l.output("pooler_output", pooled);
    }
    Ok(())
}

/// The row of `hidden[B, S, W]` at the end of each text: the first end token, or the largest id.
fn at_end(l: &mut Layers<'_>, hidden: Value, ids: Value, end: i64) -> Result<Value> {
    let scores = if end == LEGACY_END {
        ids
    } else {
        let end = typed(l.b.scalar(Literal::i64(end)))?;
        let is_end = typed(l.b.bin(BinOp::Eq, ids, end))?;
        typed(l.b.cast(DType::I64, is_end))?
    };
    let place = typed(l.b.add(ArgReduce { max: true, axis: 1, keep: true, last: false }, &[scores]))?;
    typed(l.b.add(GatherNd { batch_dims: 1 }, &[hidden, place]))
}
