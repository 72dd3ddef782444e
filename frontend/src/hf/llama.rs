//! Decoder-only language models with rotary positions and RMS norm: Llama (Touvron et al. 2023), Mistral (Jiang et al. 2023), Qwen2
//! (Yang et al. 2024), Qwen3 (Yang et al. 2025) and Gemma (Mesnard et al. 2024). One pass over whole sequences, without a cache.

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Map, Real, RmsNorm, Rope};
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};
use transc_ir::tensor::ConstData;
use transc_ir::types::{DType, TensorType};

use super::activations::Activation;
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::rope::{Rotations, rotations};
use super::{Result, input, problem, tokens};
use crate::activations::gelu_tanh;

/// Members of the family, which differ in what a config leaves out and in windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Llama,
    /// All layers have a window.
    Mistral,
    /// Some layers have a window, where that is asked for.
    Qwen2,
    Qwen3,
    /// Norm weights are stored minus 1, embeddings scaled by the root of the width.
    Gemma,
}

/// Keys that a windowed layer sees where the config does not say.
const WINDOW: usize = 4096;
/// The first layer of Qwen with a window, likewise.
const FIRST_WINDOWED: i64 = 28;

/// A model of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    member: Member,
    /// With the language model's head on top.
    head: bool,
}

impl Model {
    /// The model for a `model_type` and architecture.
    pub(crate) fn find(model_type: &str, architecture: &str) -> Option<Self> {
        let member = match model_type {
            "llama" => Member::Llama,
            "mistral" => Member::Mistral,
            "qwen2" => Member::Qwen2,
            "qwen3" => Member::Qwen3,
            "gemma" => Member::Gemma,
            _ => return None,
        };
        let head = match architecture.split_once("For").map(|(_, h)| h) {
            None => false,
            Some("CausalLM") => true,
            Some(_) => return None,
        };
        Some(Self { member, head })
    }

    fn is_gemma(self) -> bool {
        self.member == Member::Gemma
    }

    /// How many of the latest keys a windowed layer sees, and which layers have that window; `None` if none has.
    fn window(self, c: &Config, layers: usize) -> Result<Option<(usize, Vec<bool>)>> {
        let given = || c.count("sliding_window", Some(WINDOW), 1 << 30);
        Ok(match self.member {
            Member::Llama | Member::Gemma => None,
            Member::Mistral if c.is_null("sliding_window") => None,
            Member::Mistral => Some((given()?, vec![true; layers])),
            Member::Qwen2 | Member::Qwen3 => {
                if c.flag("use_sliding_window") != Some(true) || c.is_null("sliding_window") {
                    return Ok(None);
                }
                let kinds = c.field("layer_types");
                let first = c.id("max_window_layers").unwrap_or(FIRST_WINDOWED);
                let windowed = |i: usize| {
                    let kind = kinds.and_then(|t| t.get(i)).and_then(|k| k.as_str());
                    kind.map_or(i as i64 >= first, |k| k == "sliding_attention")
                };
                Some((given()?, (0..layers).map(windowed).collect()))
            }
        }
        .filter(|(_, which)| which.contains(&true)))
    }
}

struct Sizes {
    width: usize,
    heads: usize,
    key_heads: usize,
    head_dim: usize,
    inner: usize,
    epsilon: f64,
    activation: Activation,
}

impl Sizes {
    fn read(c: &Config, model: Model) -> Result<Self> {
        let width = c.count("hidden_size", None, MAX_WIDTH)?;
        let heads = c.count("num_attention_heads", None, MAX_WIDTH)?;
        let key_heads = c.count("num_key_value_heads", Some(heads), MAX_WIDTH)?;
        let usual_dim = match model.member {
            Member::Qwen3 => 128,
            Member::Gemma => 256,
            _ => (width / heads).max(1),
        };
        let sizes = Self {
            width,
            heads,
            key_heads,
            head_dim: c.count("head_dim", Some(usual_dim), MAX_WIDTH)?,
            inner: c.count("intermediate_size", None, MAX_WIDTH)?,
            epsilon: c.epsilon("rms_norm_eps", 1e-6)?,
            activation: match (model.is_gemma(), c.text("hidden_act")) {
                // Its first files name the exact gelu and mean the approximation.
                (true, "" | "gelu") => |f, x| gelu_tanh(f, DType::F32, x),
                _ => c.activation("hidden_act", "silu")?,
            },
        };
        if heads % key_heads != 0 || !sizes.head_dim.is_multiple_of(2) {
            let message = format!("{heads} heads of {} features do not fit {key_heads} key heads", sizes.head_dim);
            return Err(problem("T0405", Fault::Invalid, "config.json", message, ""));
        }
        Ok(sizes)
    }
}

/// What all layers share.
struct Shared {
    /// The mask of padding.
    bias: Value,
    /// The mask of padding, window and future, if a layer has a window.
    windowed: Option<Value>,
    /// A token sees those before it only.
    causal: bool,
    cos: Value,
    sin: Value,
}

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, model: Model) -> Result<()> {
    let s = Sizes::read(c, model)?;
    let layers = c.count("num_hidden_layers", None, MAX_LAYERS)?;
    let ids = input(l, "input_ids", tokens());
    let mask = input(l, "attention_mask", tokens());
    let both_ways = c.flag("is_causal") == Some(false) || model.is_gemma() && c.flag("use_bidirectional_attention") == Some(true);
    let causal = !both_ways;
    let window = model.window(c, layers)?;
    if both_ways && window.is_some() {
        let message = "looks ahead in layers with a window, which is not supported";
        return Err(problem("T0401", Fault::Unsupported, "config.json", message, "export the model to ONNX"));
    }
    let table = if l.weights.has("model.embed_tokens.weight") { "model.embed_tokens.weight" } else { "embed_tokens.weight" };
    let nested = table.starts_with("model.");
    let decode = |l: &mut Layers<'_>| -> Result<Value> {
        let mut x = l.embedding("embed_tokens.weight", [usize::MAX, s.width], ids)?;
        if model.is_gemma() {
            x = scaled(l, x, (s.width as f64).sqrt())?;
        }
        let (cos, sin) = rotation(l, ids, &rotations(c, s.head_dim)?)?;
        let windowed = match &window {
            Some((keys, _)) => Some(l.window_bias(mask, *keys)?),
            None => None,
        };
        let shared = Shared { bias: l.mask_bias(mask)?, windowed, causal, cos, sin };
        for i in 0..layers {
            let windowed = shared.windowed.filter(|_| window.as_ref().is_some_and(|(_, which)| which[i]));
            x = l.scope(&format!("layers.{i}"), |l| layer(l, &s, model, &shared, windowed, x))?;
        }
        rms_norm(l, "norm", x, s.width, s.epsilon, model)
    };
    let hidden = if nested { l.scope("model", decode)? } else { decode(l)? };
    if !model.head {
        l.output("last_hidden_state", hidden);
        return Ok(());
    }
    let tied = c.flag("tie_word_embeddings").unwrap_or(model.is_gemma());
    let head = if tied && !l.weights.has("lm_head.weight") { table } else { "lm_head.weight" };
    let vocabulary = l.weights.get(table, &[usize::MAX, s.width])?.dims()[0];
    let logits = l.project(head, hidden, [vocabulary, s.width])?;
    l.output("logits", logits);
    Ok(())
}

fn layer(l: &mut Layers<'_>, s: &Sizes, model: Model, shared: &Shared, windowed: Option<Value>, x: Value) -> Result<Value> {
    let h = rms_norm(l, "input_layernorm", x, s.width, s.epsilon, model)?;
    let h = l.scope("self_attn", |l| {
        let mut qkv = [h; 3];
        for (v, (name, heads)) in qkv.iter_mut().zip([("q", s.heads), ("k", s.key_heads), ("v", s.key_heads)]) {
            let y = l.linear(&format!("{name}_proj"), h, s.width, heads * s.head_dim)?;
            let mut y = l.split_heads(y, heads)?;
            if name != "v" {
                let norm = format!("{name}_norm");
                if l.weights.has(&format!("{}{norm}.weight", l.prefix)) {
                    y = rms_norm(l, &norm, y, s.head_dim, s.epsilon, model)?;
                }
                let rope = Rope { rotary: s.head_dim, interleaved: false };
                y = l.scope(&format!("{name}_rope"), |l| typed(l.b.add(rope, &[y, shared.cos, shared.sin])))?;
            }
            *v = y;
        }
        let y = match windowed {
            Some(bias) => l.attend(qkv, Some(bias), None)?,
            None => l.attend(qkv, Some(shared.bias), shared.causal.then(|| 0.into()))?,
        };
        l.linear("o_proj", y, s.heads * s.head_dim, s.width)
    })?;
    let x = typed(l.b.bin(BinOp::Add, x, h))?;
    let h = rms_norm(l, "post_attention_layernorm", x, s.width, s.epsilon, model)?;
    let h = l.scope("mlp", |l| {
        let gate = l.linear("gate_proj", h, s.width, s.inner)?;
        let gate = l.activate(s.activation, gate)?;
        let up = l.linear("up_proj", h, s.width, s.inner)?;
        let h = typed(l.b.bin(BinOp::Mul, gate, up))?;
        l.linear("down_proj", h, s.inner, s.width)
    })?;
    typed(l.b.bin(BinOp::Add, x, h))
}

fn rms_norm(l: &mut Layers<'_>, name: &str, x: Value, width: usize, epsilon: f64, model: Model) -> Result<Value> {
    l.scope(name, |l| {
        let mut scale = l.weight("weight", &[width])?;
        if model.is_gemma() {
            let mut f = Body::builder(1);
            let (w, one) = (f.arg(0), f.num(DType::F32, 1.0));
            let w = f.bin(BinOp::Add, w, one);
            scale = typed(l.b.add(Map { body: f.finish(w) }, &[scale]))?;
        }
        let axis = l.b.ty(x).rank() - 1;
        typed(l.b.add(RmsNorm { axis, epsilon: Real(epsilon) }, &[x, scale]))
    })
}

fn scaled(l: &mut Layers<'_>, x: Value, factor: f64) -> Result<Value> {
    let mut f = Body::builder(1);
    let (x0, factor) = (f.arg(0), f.lit(Literal::from_f64(DType::F32, factor)));
    let y = f.bin(BinOp::Mul, x0, factor);
    typed(l.b.add(Map { body: f.finish(y) }, &[x]))
}

/// Cosine and sine of the rotations, `[S, d/2]`: position times frequency.
fn rotation(l: &mut Layers<'_>, ids: Value, r: &Rotations) -> Result<(Value, Value)> {
    let bytes: Vec<u8> = r.frequencies.iter().flat_map(|f| f.to_le_bytes()).collect();
    let data = ConstData::new(TensorType::new(DType::F32, vec![r.frequencies.len().into()]), bytes)
        .ok_or_else(|| problem("T0405", Fault::Invalid, "config.json", "has a head size without rotations", ""))?;
    let frequencies = typed(l.b.constant("rotary_emb.inv_freq", data))?;
    let seq = l.b.ty(ids).dims[1].clone();
    let positions = l.positions(ids)?;
    let positions = typed(l.b.cast(DType::F32, positions))?;
    let positions = typed(l.b.reshape(positions, vec![seq, 1.into()]))?;
    let angles = typed(l.b.bin(BinOp::Mul, positions, frequencies))?;
    let mut table = |f: UnOp| {
        let x = typed(l.b.un(f, angles))?;
        if r.factor == 1.0 { Ok(x) } else { scaled(l, x, r.factor) }
    };
    Ok((table(UnOp::Cos)?, table(UnOp::Sin)?))
}
