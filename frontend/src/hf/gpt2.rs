//! GPT-2 (Radford et al. 2019). One pass over whole sequences, without a cache.

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::Slice;
use transc_ir::scalar::BinOp;

use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::{Result, input, problem, tokens};

/// GPT-2, with the language model's head or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    head: bool,
}

impl Model {
    /// The model for a `model_type` and architecture.
    pub(crate) fn find(model_type: &str, architecture: &str) -> Option<Self> {
        match (model_type, architecture) {
            ("gpt2", "GPT2LMHeadModel") => Some(Self { head: true }),
            ("gpt2", "GPT2Model") => Some(Self { head: false }),
            _ => None,
        }
    }
}

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, model: Model) -> Result<()> {
    let width = c.count(c.named(["n_embd", "hidden_size"]), None, MAX_WIDTH)?;
    let heads = c.heads(c.named(["n_head", "num_attention_heads"]), width)?;
    let layers = c.count(c.named(["n_layer", "num_hidden_layers"]), None, MAX_LAYERS)?;
    let inner = c.count("n_inner", Some(4 * width), MAX_WIDTH)?;
    let positions = c.count(c.named(["n_positions", "max_position_embeddings"]), Some(1024), MAX_WIDTH)?;
    let epsilon = c.epsilon("layer_norm_epsilon", 1e-5)?;
    let activation = c.activation("activation_function", "gelu_new")?;
    for (field, usual) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)] {
        if c.flag(field).is_some_and(|v| v != usual) {
            let message = format!("field `{field}` asks for an attention scale that is not supported");
            return Err(problem("T0401", Fault::Unsupported, "config.json", message, "export the model to ONNX"));
        }
    }
    let ids = input(l, "input_ids", tokens());
    let mask = input(l, "attention_mask", tokens());
    let nested = l.weights.has("transformer.wte.weight");
    let decode = |l: &mut Layers<'_>| -> Result<Value> {
        let x = l.embedding("wte.weight", [usize::MAX, width], ids)?;
        let index = l.positions(ids)?;
        let p = l.embedding("wpe.weight", [positions, width], index)?;
        let mut x = typed(l.b.bin(BinOp::Add, x, p))?;
        let bias = l.mask_bias(mask)?;
        for i in 0..layers {
            x = l.scope(&format!("h.{i}"), |l| {
                let h = l.layer_norm("ln_1", x, width, epsilon)?;
                let qkv = l.linear_in_out("attn.c_attn", h, width, 3 * width)?;
                let parts = split(l, qkv, width, heads)?;
                let h = l.attend(parts, Some(bias), Some(0.into()))?;
                let h = l.linear_in_out("attn.c_proj", h, width, width)?;
                let x = typed(l.b.bin(BinOp::Add, h, x))?;
                let h = l.layer_norm("ln_2", x, width, epsilon)?;
                let h = l.linear_in_out("mlp.c_fc", h, width, inner)?;
                let h = l.activate(activation, h)?;
                let h = l.linear_in_out("mlp.c_proj", h, inner, width)?;
                typed(l.b.bin(BinOp::Add, x, h))
            })?;
        }
        l.layer_norm("ln_f", x, width, epsilon)
    };
    let hidden = if nested { l.scope("transformer", decode)? } else { decode(l)? };
    if !model.head {
        l.output("last_hidden_state", hidden);
        return Ok(());
    }
    let table = if nested { "transformer.wte.weight" } else { "wte.weight" };
    let vocabulary = l.weights.get(table, &[usize::MAX, width])?.dims()[0];
    let head = if l.weights.has("lm_head.weight") { "lm_head.weight" } else { table };
    let logits = l.project(head, hidden, [vocabulary, width])?;
    l.output("logits", logits);
    Ok(())
}

/// Query, key and value heads of the packed projection `[B, S, 3*width]`.
fn split(l: &mut Layers<'_>, qkv: Value, width: usize, heads: usize) -> Result<[Value; 3]> {
    let dims = l.b.ty(qkv).dims.clone();
    let mut parts = [qkv; 3];
    for (i, part) in parts.iter_mut().enumerate() {
        let starts = vec![0.into(), 0.into(), (i * width).into()];
        let sizes = vec![dims[0].clone(), dims[1].clone(), width.into()];
        let x = typed(l.b.add(Slice { starts, sizes, steps: vec![1; 3] }, &[qkv]))?;
        *part = l.split_heads(x, heads)?;
    }
    Ok(parts)
}
