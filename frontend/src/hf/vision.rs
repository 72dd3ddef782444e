//! Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), DINOv2 (Oquab et al. 2023), with registers (Darcet et al.
//! 2023) or without, and the vision towers of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Concat, Conv};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim, TensorType};

use super::attention::Sight;
use super::block::{Block, Names};
use super::clip::PARTS;
use super::config::{Config, FILE, MAX_LAYERS, MAX_WIDTH};
use super::heads::Head;
use super::layers::{Layers, typed};
use super::weights::ANY;
use super::{Result, activations, no_recipe, problem};

/// A kind of tower.
pub(crate) struct Tower {
    kind: Kind,
    /// The path of the body in files of models with a head.
    pub(crate) prefix: &'static str,
    patches: &'static str,
    /// Tokens that stand before the patches.
    tokens: &'static [&'static str],
    positions: &'static str,
    layer: &'static str,
    names: &'static Names,
    patch: usize,
    epsilon: f64,
    activation: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vit,
    Dino,
    Clip,
    Siglip,
}

/// ViT.
pub(crate) const VIT: Tower = Tower {
    kind: Kind::Vit,
    prefix: "vit",
    patches: "embeddings.patch_embeddings.projection",
    tokens: &["embeddings.cls_token"],
    positions: "embeddings.position_embeddings",
    layer: "encoder.layer",
    names: &Names {
        qkv: &["attention.attention.query", "attention.attention.key", "attention.attention.value"],
        out: "attention.output.dense",
        norms: ["layernorm_before", "layernorm_after"],
        up: "intermediate.dense",
        down: "output.dense",
        scales: None,
        in_out: false,
    },
    patch: 16,
    epsilon: 1e-12,
    activation: "gelu",
};

/// DeiT.
pub(crate) const DEIT: Tower =
    Tower { prefix: "deit", tokens: &["embeddings.cls_token", "embeddings.distillation_token"], ..VIT };

/// DINOv2.
pub(crate) const DINO: Tower = Tower {
    kind: Kind::Dino,
    prefix: "dinov2",
    names: &Names {
        qkv: VIT.names.qkv,
        out: "attention.output.dense",
        norms: ["norm1", "norm2"],
        up: "mlp.fc1",
        down: "mlp.fc2",
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
        in_out: false,
    },
    patch: 14,
    epsilon: 1e-6,
    ..VIT
};

/// The same with gated units.
const DINO_GATED: Names = Names { up: "mlp.weights_in", down: "mlp.weights_out", ..*DINO.names };

/// DINOv2 with registers.
pub(crate) const DINO_REGISTERS: Tower = Tower { prefix: "dinov2_with_registers", patch: 16, ..DINO };

/// The vision tower of CLIP.
pub(crate) const CLIP: Tower = Tower {
    kind: Kind::Clip,
    prefix: "vision_model",
    patches: "embeddings.patch_embedding",
    tokens: &["embeddings.class_embedding"],
    positions: "embeddings.position_embedding.weight",
    layer: "encoder.layers",
    names: &PARTS,
    patch: 32,
    epsilon: 1e-5,
    activation: "quick_gelu",
};

/// The vision tower of SigLIP.
pub(crate) const SIGLIP: Tower =
    Tower { kind: Kind::Siglip, tokens: &[], patch: 16, epsilon: 1e-6, activation: "gelu_pytorch_tanh", ..CLIP };

/// What a tower makes of images.
pub(crate) struct Seen {
    /// `[B, tokens and patches, W]`.
    pub(crate) hidden: Value,
    /// One row for each image.
    pub(crate) pooled: Option<Value>,
    /// Rows before those of patches.
    ahead: usize,
}

/// Builds a tower with its head.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head, t: &Tower) -> Result<()> {
    let base = l.base(&[t.prefix], t.positions);
    let seen = see(l, c, t, base, "batch")?;
    match head {
        Head::None => {
            l.output("last_hidden_state", seen.hidden);
            if let Some(pooled) = seen.pooled {
                l.output("pooler_output", pooled);
            }
        }
        Head::Projection if t.kind == Kind::Clip => {
            let size = c.count("projection_dim", 512, MAX_WIDTH)?;
            let pooled = seen.pooled.ok_or_else(|| no_recipe(c))?;
            let embeds = l.project("visual_projection.weight", pooled, size)?;
            l.output("image_embeds", embeds);
            l.output("last_hidden_state", seen.hidden);
        }
        Head::ImageClassification => classify(l, t, &seen)?,
        Head::Teacher if t.prefix == DEIT.prefix => {
            let mut logits = [seen.hidden; 2];
            for (i, (x, name)) in logits.iter_mut().zip(["cls_classifier", "distillation_classifier"]).enumerate() {
                let token = l.token(*x, i)?;
                *x = l.linear(name, token, ANY)?;
            }
            let sum = l.plus(logits[0], logits[1])?;
            let two = typed(l.b.scalar(Literal::f32(2.0)))?;
            let mean = typed(l.b.bin(BinOp::Div, sum, two))?;
            l.output("logits", mean);
            l.output("cls_logits", logits[0]);
            l.output("distillation_logits", logits[1]);
        }
        _ => return Err(no_recipe(c)),
    }
    Ok(())
}

/// The classifier of images: on the first token, on the mean of the patches, or on both.
pub(crate) fn classify(l: &mut Layers<'_>, t: &Tower, seen: &Seen) -> Result<()> {
    let features = match t.kind {
        Kind::Vit => l.token(seen.hidden, 0)?,
        Kind::Dino => {
            let parts = [l.token(seen.hidden, 0)?, mean(l, seen)?];
            typed(l.b.add(Concat { axis: 1 }, &parts))?
        }
        Kind::Clip | Kind::Siglip => mean(l, seen)?,
    };
    l.classify("classifier", features)
}

/// The mean of the patches.
fn mean(l: &mut Layers<'_>, seen: &Seen) -> Result<Value> {
    let rows = l.b.ty(seen.hidden).dims[1].as_usize().unwrap_or(1) - seen.ahead;
    let patches = l.cut(seen.hidden, 1, seen.ahead, rows)?;
    let sum = l.sum(patches, 1, false)?;
    let count = typed(l.b.scalar(Literal::f32(rows as f32)))?;
    typed(l.b.bin(BinOp::Div, sum, count))
}

/// A tower at `base` of the file on the images of a batch of its own.
pub(crate) fn see(l: &mut Layers<'_>, c: &Config, t: &Tower, base: &str, batch: &str) -> Result<Seen> {
    let width = c.count("hidden_size", 768, MAX_WIDTH)?;
    let gated = t.kind == Kind::Dino && c.flag("use_swiglu_ffn") == Some(true);
    let inner = match t.kind {
        Kind::Dino => {
            let inner = width * c.count("mlp_ratio", 4, 1 << 10)?;
            // Two thirds, in multiples of 8.
            if gated { (inner * 2 / 3).next_multiple_of(8) } else { inner }
        }
        _ => c.count("intermediate_size", 3072, MAX_WIDTH)?,
    };
    let block = Block {
        names: if gated { &DINO_GATED } else { t.names },
        width,
        heads: c.heads("num_attention_heads", 12, width)?,
        inner,
        epsilon: c.epsilon("layer_norm_eps", t.epsilon)?,
        activation: if gated { activations::silu } else { c.activation("hidden_act", t.activation)? },
        norm_first: true,
        gated,
    };
    let layers = c.count("num_hidden_layers", 12, MAX_LAYERS)?;
    let registers = if t.prefix == DINO_REGISTERS.prefix { c.count("num_register_tokens", 4, MAX_WIDTH)? } else { 0 };
    let images = images(l, c, t, batch)?;
    l.scope(base, |l| {
        let mut x = embed(l, t, &images, width)?;
        if registers > 0 {
            let (first, patches) = (l.cut(x, 1, 0, 1)?, l.cut(x, 1, 1, images.patches)?);
            let registers = rows(l, "embeddings.register_tokens", &[1, registers, width], x)?;
            x = typed(l.b.add(Concat { axis: 1 }, &[first, registers, patches]))?;
        }
        if t.kind == Kind::Clip {
            // As it is spelt in the files.
            x = l.layer_norm("pre_layrnorm", x, block.epsilon)?;
        }
        let x = block.stack(l, t.layer, layers, x, Sight::default())?;
        let hidden = match t.kind {
            Kind::Vit | Kind::Dino => l.layer_norm("layernorm", x, block.epsilon)?,
            Kind::Siglip => l.layer_norm("post_layernorm", x, block.epsilon)?,
            Kind::Clip => x,
        };
        let pooled = pool(l, c, t, &block, hidden)?;
        Ok(Seen { hidden, pooled, ahead: t.tokens.len() + registers })
    })
}

/// One row for each image.
fn pool(l: &mut Layers<'_>, c: &Config, t: &Tower, block: &Block, hidden: Value) -> Result<Option<Value>> {
    Ok(match t.kind {
        Kind::Vit if l.has("pooler.dense.weight") => {
            let first = l.token(hidden, 0)?;
            let pooled = l.linear("pooler.dense", first, c.count("pooler_output_size", block.width, MAX_WIDTH)?)?;
            Some(l.activate(c.activation("pooler_act", "tanh")?, pooled)?)
        }
        Kind::Dino => Some(l.token(hidden, 0)?),
        Kind::Clip => {
            let first = l.token(hidden, 0)?;
            Some(l.layer_norm("post_layernorm", first, block.epsilon)?)
        }
        Kind::Siglip if c.flag("vision_use_head") != Some(false) => Some(l.scope("head", |l| probe(l, block, hidden))?),
        _ => None,
    })
}

/// Attention of one learnt query to all patches, and a feed-forward part.
fn probe(l: &mut Layers<'_>, block: &Block, hidden: Value) -> Result<Value> {
    let (width, batch) = (block.width, l.b.ty(hidden).dims[0].clone());
    let query = l.weight("probe", &[1, 1, width])?;
    let query = typed(l.b.broadcast(query, vec![batch, 1.into(), width.into()]))?;
    let x = l.scope("attention", |l| {
        let (weight, bias) = (l.weight("in_proj_weight", &[3 * width, width])?, l.weight("in_proj_bias", &[3 * width])?);
        let mut qkv = [query, hidden, hidden];
        for (i, v) in qkv.iter_mut().enumerate() {
            let (w, b) = (l.cut(weight, 0, i * width, width)?, l.cut(bias, 0, i * width, width)?);
            let y = l.contract_last(*v, w, true)?;
            let y = l.plus(y, b)?;
            *v = l.split_heads(y, block.heads)?;
        }
        let y = l.attend(qkv, Sight::default())?;
        l.linear("out_proj", y, width)
    })?;
    let h = l.layer_norm("layernorm", x, block.epsilon)?;
    let h = l.linear(block.names.up, h, block.inner)?;
    let h = l.activate(block.activation, h)?;
    let h = l.linear(block.names.down, h, width)?;
    let x = l.plus(x, h)?;
    l.token(x, 0)
}

/// The input, and how it is cut up.
struct Images {
    pixels: Value,
    channels: usize,
    patch: [usize; 2],
    patches: usize,
}

fn images(l: &mut Layers<'_>, c: &Config, t: &Tower, batch: &str) -> Result<Images> {
    let size = c.extents("image_size", 224)?;
    let patch = c.extents("patch_size", t.patch)?;
    let channels = c.count("num_channels", 3, 1 << 16)?;
    // Rows and columns that fill no patch fall away.
    let grid = [0, 1].map(|i| size[i] / patch[i]);
    if grid.contains(&0) {
        let message = format!("an image of {size:?} holds no patch of {patch:?}");
        return Err(problem("T0405", Fault::Invalid, FILE, message, ""));
    }
    if t.kind == Kind::Dino && size[0] != size[1] {
        return Err(Config::unsupported("resizes its positions for images that are no squares, which is not supported"));
    }
    let batch = l.batch(batch);
    let ty = TensorType::new(DType::F32, vec![batch, channels.into(), size[0].into(), size[1].into()]);
    Ok(Images { pixels: l.input("pixel_values", ty), channels, patch, patches: grid[0] * grid[1] })
}

/// Patches by a strided convolution, tokens in front, positions added.
fn embed(l: &mut Layers<'_>, t: &Tower, i: &Images, width: usize) -> Result<Value> {
    let batch = l.b.ty(i.pixels).dims[0].clone();
    let mut x = l.scope(t.patches, |l| {
        let w = l.weight("weight", &[width, i.channels, i.patch[0], i.patch[1]])?;
        let strides = i.patch.iter().map(|p| *p as i64).collect();
        let conv = Conv { strides, dilations: vec![1; 2], lo: vec![0; 2], hi: vec![0; 2], groups: 1 };
        let x = typed(l.b.add(conv, &[i.pixels, w]))?;
        let x = typed(l.b.reshape(x, vec![batch, width.into(), i.patches.into()]))?;
        let x = typed(l.b.transpose(x, &[0, 2, 1]))?;
        l.biased(x)
    })?;
    // CLIP and SigLIP keep their rows without axes of extent 1.
    let bare = matches!(t.kind, Kind::Clip | Kind::Siglip);
    let shape: &[usize] = if bare { &[width] } else { &[1, 1, width] };
    let mut parts = Vec::new();
    for token in t.tokens {
        parts.push(rows(l, token, shape, x)?);
    }
    if !parts.is_empty() {
        parts.push(x);
        x = typed(l.b.add(Concat { axis: 1 }, &parts))?;
    }
    let count = i.patches + t.tokens.len();
    let shape: &[usize] = if bare { &[count, width] } else { &[1, count, width] };
    let positions = l.weight(t.positions, shape)?;
    l.plus(x, positions)
}

/// Learnt rows for each image of `x[B, S, W]`: `[B, rows, W]`.
fn rows(l: &mut Layers<'_>, name: &str, dims: &[usize], x: Value) -> Result<Value> {
    let of = l.b.ty(x).dims.clone();
    let rows = Dim::from(dims.iter().rev().nth(1).copied().unwrap_or(1));
    let weight = l.weight(name, dims)?;
    let weight = typed(l.b.reshape(weight, vec![Dim::from(1), rows.clone(), of[2].clone()]))?;
    typed(l.b.broadcast(weight, vec![of[0].clone(), rows, of[2].clone()]))
}
