//! Vision transformers: ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021).

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Concat, Conv};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim, TensorType};

use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::{Result, input, problem};

/// What stands on top of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    None,
    Classifier,
    /// Class and distillation classifiers, averaged.
    Teacher,
}

/// A vision model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    distilled: bool,
    head: Head,
}

impl Model {
    /// The model for a `model_type` and architecture.
    pub(crate) fn find(model_type: &str, architecture: &str) -> Option<Self> {
        let distilled = match model_type {
            "vit" => false,
            "deit" => true,
            _ => return None,
        };
        let head = match architecture.split_once("For").map(|(_, h)| h) {
            None => Head::None,
            Some("ImageClassification") => Head::Classifier,
            Some("ImageClassificationWithTeacher") => Head::Teacher,
            Some(_) => return None,
        };
        Some(Self { distilled, head })
    }
}

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, model: Model) -> Result<()> {
    let width = c.count("hidden_size", None, MAX_WIDTH)?;
    let heads = c.heads("num_attention_heads", width)?;
    let layers = c.count("num_hidden_layers", None, MAX_LAYERS)?;
    let inner = c.count("intermediate_size", None, MAX_WIDTH)?;
    let size = c.extents("image_size", 224)?;
    let patch = c.extents("patch_size", 16)?;
    let channels = c.count("num_channels", Some(3), 1 << 16)?;
    let epsilon = c.epsilon("layer_norm_eps", 1e-12)?;
    let activation = c.activation("hidden_act", "gelu")?;
    // Rows and columns that fill no patch fall away.
    let grid = [0, 1].map(|i| size[i] / patch[i]);
    if grid.contains(&0) {
        let message = format!("an image of {size:?} holds no patch of {patch:?}");
        return Err(problem("T0405", Fault::Invalid, "config.json", message, ""));
    }
    let batch = Dim::sym("batch");
    let pixels = TensorType::new(DType::F32, vec![batch.clone(), channels.into(), size[0].into(), size[1].into()]);
    let pixels = input(l, "pixel_values", pixels);
    let prefix = if model.distilled { "deit" } else { "vit" };
    let nested = l.weights.has(&format!("{prefix}.embeddings.cls_token"));
    let encode = |l: &mut Layers<'_>| -> Result<Value> {
        let mut x = l.scope("embeddings", |l| embed(l, pixels, model, (width, grid, patch, channels)))?;
        for i in 0..layers {
            x = l.scope(&format!("encoder.layer.{i}"), |l| {
                let y = l.layer_norm("layernorm_before", x, width, epsilon)?;
                let mut qkv = [y; 3];
                for (v, name) in qkv.iter_mut().zip(["query", "key", "value"]) {
                    *v = l.linear(&format!("attention.attention.{name}"), y, width, width)?;
                }
                let y = l.attention(qkv, None, heads, false)?;
                let y = l.linear("attention.output.dense", y, width, width)?;
                let x = typed(l.b.bin(BinOp::Add, y, x))?;
                let y = l.layer_norm("layernorm_after", x, width, epsilon)?;
                let y = l.linear("intermediate.dense", y, width, inner)?;
                let y = l.activate(activation, y)?;
                let y = l.linear("output.dense", y, inner, width)?;
                typed(l.b.bin(BinOp::Add, y, x))
            })?;
        }
        l.layer_norm("layernorm", x, width, epsilon)
    };
    let hidden = if nested { l.scope(prefix, encode)? } else { encode(l)? };
    match model.head {
        Head::None => {
            l.output("last_hidden_state", hidden);
            let pooler = if nested { format!("{prefix}.pooler.dense") } else { "pooler.dense".into() };
            if l.weights.has(&format!("{pooler}.weight")) {
                let first = l.token(hidden, 0)?;
                let pooled = l.linear(&pooler, first, width, c.count("pooler_output_size", Some(width), MAX_WIDTH)?)?;
                let pooled = l.activate(c.activation("pooler_act", "tanh")?, pooled)?;
                l.output("pooler_output", pooled);
            }
        }
        Head::Classifier => {
            let logits = classify(l, "classifier", hidden, 0, width)?;
            l.output("logits", logits);
        }
        Head::Teacher => {
            let a = classify(l, "cls_classifier", hidden, 0, width)?;
            let b = classify(l, "distillation_classifier", hidden, 1, width)?;
            let sum = typed(l.b.bin(BinOp::Add, a, b))?;
            let two = typed(l.b.scalar(Literal::f32(2.0)))?;
            let mean = typed(l.b.bin(BinOp::Div, sum, two))?;
            l.output("logits", mean);
            l.output("cls_logits", a);
            l.output("distillation_logits", b);
        }
    }
    Ok(())
}

fn classify(l: &mut Layers<'_>, name: &str, hidden: Value, token: i64, width: usize) -> Result<Value> {
    let x = l.token(hidden, token)?;
    let n = l.weights.get(&format!("{}{name}.weight", l.prefix), &[usize::MAX, width])?.dims()[0];
    l.linear(name, x, width, n)
}

/// Patches by a strided convolution, class (and distillation) tokens in front, positions added.
fn embed(
    l: &mut Layers<'_>,
    pixels: Value,
    model: Model,
    (width, grid, patch, channels): (usize, [usize; 2], [usize; 2], usize),
) -> Result<Value> {
    let batch = l.b.ty(pixels).dims[0].clone();
    let step = patch.iter().map(|p| *p as i64).collect();
    let count = grid[0] * grid[1];
    let w = l.weight("patch_embeddings.projection.weight", &[width, channels, patch[0], patch[1]])?;
    let conv = Conv { strides: step, dilations: vec![1; 2], lo: vec![0; 2], hi: vec![0; 2], groups: 1 };
    let x = typed(l.b.add(conv, &[pixels, w]))?;
    let bias = l.weight("patch_embeddings.projection.bias", &[width])?;
    let x = typed(l.b.reshape(x, vec![batch.clone(), width.into(), count.into()]))?;
    let x = typed(l.b.transpose(x, &[0, 2, 1]))?;
    let x = typed(l.b.bin(BinOp::Add, x, bias))?;
    let mut parts = Vec::new();
    for (name, wanted) in [("cls_token", true), ("distillation_token", model.distilled)] {
        if wanted {
            let token = l.weight(name, &[1, 1, width])?;
            parts.push(typed(l.b.broadcast(token, vec![batch.clone(), 1.into(), width.into()]))?);
        }
    }
    let extra = parts.len();
    parts.push(x);
    let x = typed(l.b.add(Concat { axis: 1 }, &parts))?;
    let positions = l.weight("position_embeddings", &[1, count + extra, width])?;
    typed(l.b.bin(BinOp::Add, x, positions))
}
