//! Texts and images in one space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023), whole or their text tower.

use transc_ir::Value;
use transc_ir::op::{ArgReduce, Contract};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::{DType, Dim};

use super::attention::Sight;
use super::block::{Block, Names};
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::heads::Head;
use super::layers::{Layers, typed};
use super::vision::{self, Tower, classify, see};
use super::weights::ANY;
use super::{Result, no_recipe};

/// The end-of-text id of the first published checkpoints of CLIP, whose real one is the largest id of the vocabulary.
const LEGACY_END: i64 = 2;

/// The end-of-text id where the config names none.
const END: i64 = 49_407;

/// Where the parts of a layer are in the files, of both towers.
pub(crate) const PARTS: Names = Names {
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    norms: ["layer_norm1", "layer_norm2"],
    up: "mlp.fc1",
    down: "mlp.fc2",
    scales: None,
    in_out: false,
};

/// A member of the family.
pub(crate) struct Member {
    /// Width, heads, layers, inner width and positions of the text tower where they are absent.
    sizes: [usize; 5],
    epsilon: f64,
    activation: &'static str,
    /// A token of a text sees those before it only, and the row of a text is that of its end. Else the row is the last, through a layer.
    causal: bool,
    vision: &'static Tower,
}

/// CLIP.
pub(crate) const CLIP: Member =
    Member { sizes: [512, 8, 12, 2048, 77], epsilon: 1e-5, activation: "quick_gelu", causal: true, vision: &vision::CLIP };

/// SigLIP.
pub(crate) const SIGLIP: Member = Member {
    sizes: [768, 12, 12, 3072, 64],
    epsilon: 1e-6,
    activation: "gelu_pytorch_tanh",
    causal: false,
    vision: &vision::SIGLIP,
};

/// The path of the text tower.
const TEXT: &str = "text_model";

/// What a text tower makes of texts: the rows of all tokens, and one for each text.
struct Read {
    hidden: Value,
    pooled: Value,
}

/// Builds the text tower.
pub(crate) fn build_text(l: &mut Layers<'_>, c: &Config, head: Head, m: &Member) -> Result<()> {
    let base = l.base(&[TEXT], "embeddings.token_embedding.weight");
    let text = read(l, c, m, base)?;
    match head {
        Head::None => {
            l.output("last_hidden_state", text.hidden);
            l.output("pooler_output", text.pooled);
        }
        Head::Projection if m.causal => {
            let size = c.count("projection_dim", 512, MAX_WIDTH)?;
            let embeds = l.project("text_projection.weight", text.pooled, size)?;
            l.output("text_embeds", embeds);
            l.output("last_hidden_state", text.hidden);
        }
        _ => return Err(no_recipe(c)),
    }
    Ok(())
}

/// Builds both towers and the similarity of all texts to all images, or the classifier of images.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head, m: &Member) -> Result<()> {
    let vision = c.part("vision_config");
    if head == Head::ImageClassification {
        let seen = see(l, &vision, m.vision, m.vision.prefix, "batch")?;
        return classify(l, m.vision, &seen);
    }
    if head != Head::None {
        return Err(no_recipe(c));
    }
    let text = read(l, &c.part("text_config"), m, TEXT)?;
    let seen = see(l, &vision, m.vision, m.vision.prefix, "images")?;
    let mut texts = text.pooled;
    let mut images = seen.pooled.ok_or_else(|| no_recipe(c))?;
    if m.causal {
        let size = c.count("projection_dim", 512, MAX_WIDTH)?;
        texts = l.project("text_projection.weight", texts, size)?;
        images = l.project("visual_projection.weight", images, size)?;
    }
    for x in [&mut texts, &mut images] {
        *x = normalised(l, *x)?;
    }
    let contract = Contract { lhs: vec![0, 2], rhs: vec![1, 2], out: vec![0, 1], out_dtype: DType::F32 };
    let mut logits = typed(l.b.add(contract, &[texts, images]))?;
    // SigLIP keeps its numbers as vectors of one element.
    let dims: &[usize] = if m.causal { &[] } else { &[1] };
    let scale = l.weight("logit_scale", dims)?;
    let scale = typed(l.b.un(UnOp::Exp, scale))?;
    logits = l.times(logits, scale)?;
    if !m.causal {
        let bias = l.weight("logit_bias", dims)?;
        logits = l.plus(logits, bias)?;
    }
    let per_image = typed(l.b.transpose(logits, &[1, 0]))?;
    l.output("logits_per_image", per_image);
    l.output("logits_per_text", logits);
    l.output("text_embeds", texts);
    l.output("image_embeds", images);
    Ok(())
}

/// Rows of length 1.
fn normalised(l: &mut Layers<'_>, x: Value) -> Result<Value> {
    let squares = l.times(x, x)?;
    let sum = l.sum(squares, 1, true)?;
    let length = typed(l.b.un(UnOp::Sqrt, sum))?;
    typed(l.b.bin(BinOp::Div, x, length))
}

/// The text tower at `base` of the file.
fn read(l: &mut Layers<'_>, c: &Config, m: &Member, base: &str) -> Result<Read> {
    let width = c.count("hidden_size", m.sizes[0], MAX_WIDTH)?;
    let block = Block {
        names: &PARTS,
        width,
        heads: c.heads("num_attention_heads", m.sizes[1], width)?,
        inner: c.count("intermediate_size", m.sizes[3], MAX_WIDTH)?,
        epsilon: c.epsilon("layer_norm_eps", m.epsilon)?,
        activation: c.activation("hidden_act", m.activation)?,
        norm_first: true,
        gated: false,
    };
    let layers = c.count("num_hidden_layers", m.sizes[2], MAX_LAYERS)?;
    let positions = c.count("max_position_embeddings", m.sizes[4], MAX_WIDTH)?;
    let ids = l.tokens("input_ids", Head::None, positions)?;
    let mask = l.tokens("attention_mask", Head::None, positions)?;
    l.scope(base, |l| {
        let x = l.embedding("embeddings.token_embedding.weight", [ANY, width], ids)?;
        let index = l.positions(ids)?;
        let p = l.embedding("embeddings.position_embedding.weight", [positions, width], index)?;
        let x = l.plus(x, p)?;
        let sight = Sight { mask: Some(l.mask_bias(mask)?), causal: m.causal, ..Sight::default() };
        let x = block.stack(l, "encoder.layers", layers, x, sight)?;
        let hidden = l.layer_norm("final_layer_norm", x, block.epsilon)?;
        let pooled = if m.causal {
            at_end(l, hidden, ids, c.id("eos_token_id", Some(END)).unwrap_or(END))?
        } else {
            let last = &l.b.ty(hidden).dims[1].clone() - &Dim::from(1);
            let last = l.token(hidden, last)?;
            l.linear("head", last, c.count("projection_size", width, MAX_WIDTH)?)?
        };
        Ok(Read { hidden, pooled })
    })
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
    l.rows_at(hidden, place)
}
