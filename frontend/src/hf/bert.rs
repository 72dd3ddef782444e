//! BERT-family encoders: BERT (Devlin et al. 2019), RoBERTa and XLM-RoBERTa (Liu et al. 2019), DistilBERT (Sanh et al. 2019).

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Map, ReduceKind, Scan};
use transc_ir::scalar::{BinOp, Body, Literal};
use transc_ir::types::DType;

use super::activations::{self, Activation};
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::layers::{Layers, typed};
use super::{Result, input, problem, tokens};

/// Which member of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    Roberta,
    Distil,
}

/// What stands on top of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    None,
    SequenceClassification,
    TokenClassification,
}

/// A model of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    family: Family,
    head: Head,
}

impl Model {
    /// The model for a `model_type` and architecture.
    pub(crate) fn find(model_type: &str, architecture: &str) -> Option<Self> {
        let family = match model_type {
            "bert" => Family::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            "distilbert" => Family::Distil,
            _ => return None,
        };
        let head = match architecture.split_once("For").map(|(_, h)| h) {
            None if architecture.ends_with("LMHeadModel") => return None,
            None => Head::None,
            Some("SequenceClassification") => Head::SequenceClassification,
            Some("TokenClassification") => Head::TokenClassification,
            Some(_) => return None,
        };
        Some(Self { family, head })
    }
}

/// The sizes of an encoder.
struct Sizes {
    width: usize,
    heads: usize,
    layers: usize,
    inner: usize,
    epsilon: f64,
    activation: Activation,
    /// A token sees those before it only.
    causal: bool,
}

impl Sizes {
    fn read(c: &Config, family: Family) -> Result<Self> {
        let [width, heads, layers, inner, activation] = match family {
            Family::Distil => ["dim", "n_heads", "n_layers", "hidden_dim", "activation"],
            _ => ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "hidden_act"],
        };
        let width = c.count(width, None, MAX_WIDTH)?;
        Ok(Self {
            width,
            heads: c.heads(heads, width)?,
            layers: c.count(layers, None, MAX_LAYERS)?,
            inner: c.count(inner, None, MAX_WIDTH)?,
            // DistilBERT has no field for it.
            epsilon: if family == Family::Distil { 1e-12 } else { c.epsilon("layer_norm_eps", 1e-12)? },
            activation: c.activation(activation, "gelu")?,
            causal: family != Family::Distil && c.flag("is_decoder") == Some(true),
        })
    }
}

/// Where the tensors of a layer are in the file.
struct Names {
    layer: &'static str,
    qkv: [&'static str; 3],
    attention_out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    out_norm: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    out_norm: "output.LayerNorm",
};

const DISTIL: Names = Names {
    layer: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    out_norm: "output_layer_norm",
};

/// Builds the model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, model: Model) -> Result<()> {
    let sizes = Sizes::read(c, model.family)?;
    if !matches!(c.text("position_embedding_type"), "" | "absolute") {
        let message = format!("position embeddings of type `{}` are not supported", c.text("position_embedding_type"));
        return Err(problem("T0401", Fault::Unsupported, "config.json", message, "absolute positions are"));
    }
    let ids = input(l, "input_ids", tokens());
    let mask = input(l, "attention_mask", tokens());
    let types = (model.family == Family::Bert).then(|| input(l, "token_type_ids", tokens()));
    // Files of bare encoders have no model prefix; those with a head do.
    let prefix = match model.family {
        Family::Bert => "bert",
        Family::Roberta => "roberta",
        Family::Distil => "distilbert",
    };
    let nested = l.weights.has(&format!("{prefix}.embeddings.word_embeddings.weight"));
    let encode = |l: &mut Layers<'_>| -> Result<Value> {
        let x = embed(l, c, &sizes, model.family, ids, types)?;
        let bias = l.mask_bias(mask)?;
        let names = if model.family == Family::Distil { &DISTIL } else { &BERT };
        encoder(l, &sizes, names, x, bias)
    };
    let hidden = if nested { l.scope(prefix, encode)? } else { encode(l)? };
    match model.head {
        Head::None => {
            l.output("last_hidden_state", hidden);
            let pooler = if nested { format!("{prefix}.pooler.dense") } else { "pooler.dense".into() };
            if l.weights.has(&format!("{pooler}.weight")) {
                let first = l.token(hidden, 0)?;
                let pooled = l.linear(&pooler, first, sizes.width, sizes.width)?;
                let pooled = l.activate(activations::tanh, pooled)?;
                l.output("pooler_output", pooled);
            }
        }
        Head::TokenClassification => {
            let logits = l.linear("classifier", hidden, sizes.width, labels(l, "classifier.weight")?)?;
            l.output("logits", logits);
        }
        Head::SequenceClassification => {
            let first = l.token(hidden, 0)?;
            let (features, name) = match model.family {
                Family::Bert => {
                    let x = l.linear(&format!("{prefix}.pooler.dense"), first, sizes.width, sizes.width)?;
                    (l.activate(activations::tanh, x)?, "classifier")
                }
                Family::Roberta => {
                    let x = l.linear("classifier.dense", first, sizes.width, sizes.width)?;
                    (l.activate(activations::tanh, x)?, "classifier.out_proj")
                }
                Family::Distil => {
                    let x = l.linear("pre_classifier", first, sizes.width, sizes.width)?;
                    (l.activate(activations::relu, x)?, "classifier")
                }
            };
            let n = labels(l, &format!("{name}.weight"))?;
            let logits = l.linear(name, features, sizes.width, n)?;
            l.output("logits", logits);
        }
    }
    Ok(())
}

/// Number of classes: the first axis of the classifier.
fn labels(l: &Layers<'_>, name: &str) -> Result<usize> {
    Ok(l.weights.get(name, &[usize::MAX, usize::MAX])?.dims()[0])
}

fn embed(l: &mut Layers<'_>, c: &Config, s: &Sizes, family: Family, ids: Value, types: Option<Value>) -> Result<Value> {
    l.scope("embeddings", |l| {
        let positions = c.count("max_position_embeddings", Some(512), MAX_WIDTH)?;
        let mut x = l.embedding("word_embeddings.weight", [usize::MAX, s.width], ids)?;
        if family != Family::Distil {
            let row = match types {
                Some(t) => l.embedding("token_type_embeddings.weight", [usize::MAX, s.width], t)?,
                None => {
                    let table = l.weight("token_type_embeddings.weight", &[usize::MAX, s.width])?;
                    let sizes = vec![1.into(), s.width.into()];
                    let starts = vec![0.into(), 0.into()];
                    typed(l.b.add(transc_ir::op::Slice { starts, sizes, steps: vec![1, 1] }, &[table]))?
                }
            };
            x = typed(l.b.bin(BinOp::Add, x, row))?;
        }
        let index = position_ids(l, c, family, ids)?;
        let p = l.embedding("position_embeddings.weight", [positions, s.width], index)?;
        let x = typed(l.b.bin(BinOp::Add, x, p))?;
        l.layer_norm("LayerNorm", x, s.width, s.epsilon)
    })
}

/// `0, 1, 2, ..`, or RoBERTa's count of tokens that are not padding, starting behind the padding index.
fn position_ids(l: &mut Layers<'_>, c: &Config, family: Family, ids: Value) -> Result<Value> {
    if family != Family::Roberta {
        return l.positions(ids);
    }
    let pad = c.id("pad_token_id").unwrap_or(1);
    let mut f = Body::builder(1);
    let (x, p) = (f.arg(0), f.lit(Literal::i64(pad)));
    let real = f.bin(BinOp::Ne, x, p);
    let real = f.cast(DType::I64, real);
    let real = typed(l.b.add(Map { body: f.finish(real) }, &[ids]))?;
    let count = typed(l.b.add(Scan { kind: ReduceKind::Sum, axis: 1, exclusive: false, reverse: false }, &[real]))?;
    let mut f = Body::builder(2);
    let (n, real_arg, p) = (f.arg(0), f.arg(1), f.lit(Literal::i64(pad)));
    let n = f.bin(BinOp::Mul, n, real_arg);
    let n = f.bin(BinOp::Add, n, p);
    typed(l.b.add(Map { body: f.finish(n) }, &[count, real]))
}

fn encoder(l: &mut Layers<'_>, s: &Sizes, n: &Names, mut x: Value, bias: Value) -> Result<Value> {
    for i in 0..s.layers {
        x = l.scope(&format!("{}.{i}", n.layer), |l| {
            let mut qkv = [x; 3];
            for (v, name) in qkv.iter_mut().zip(n.qkv) {
                *v = l.linear(name, x, s.width, s.width)?;
            }
            let a = l.attention(qkv, Some(bias), s.heads, s.causal)?;
            let a = l.linear(n.attention_out, a, s.width, s.width)?;
            let a = typed(l.b.bin(BinOp::Add, a, x))?;
            let a = l.layer_norm(n.attention_norm, a, s.width, s.epsilon)?;
            let h = l.linear(n.up, a, s.width, s.inner)?;
            let h = l.activate(s.activation, h)?;
            let h = l.linear(n.down, h, s.inner, s.width)?;
            let h = typed(l.b.bin(BinOp::Add, h, a))?;
            l.layer_norm(n.out_norm, h, s.width, s.epsilon)
        })?;
    }
    Ok(x)
}
