//! Encoders of texts with norms behind the sums: BERT (Devlin et al. 2019), RoBERTa and XLM-RoBERTa (Liu et al. 2019), DistilBERT
//! (Sanh et al. 2019), ELECTRA (Clark et al. 2020), ALBERT (Lan et al. 2020) and MPNet (Song et al. 2020).

use transc_ir::Value;

use super::activations::{self, Activation};
use super::attention::Sight;
use super::block::{Block, Names};
use super::buckets;
use super::config::{Config, MAX_LAYERS, MAX_WIDTH};
use super::heads::Head;
use super::layers::{Layers, typed};
use super::weights::ANY;
use super::{Result, no_recipe};

/// A member of the family.
pub(crate) struct Member {
    /// The path of the body in files of models with a head.
    prefix: &'static str,
    /// The fields of width, heads, layers, inner width, activation and epsilon; one that is empty is none.
    fields: [&'static str; 6],
    /// What the first four mean where they are absent.
    sizes: [usize; 4],
    activation: &'static str,
    layer: &'static str,
    names: &'static Names,
    segments: Segments,
    padding: Padding,
    /// The layer behind embeddings of a width of their own.
    widen: Option<Widen>,
    /// A token may be told to see those before it only.
    decoder: bool,
    /// A bias of the logits by the distance of query and key.
    relative: bool,
    /// Each layer is used several times.
    shared: bool,
    words: Words,
    /// What makes `pooler_output`.
    pooler: Option<Summary>,
    /// What stands under the classes of texts, and their layer.
    text: (Summary, &'static str),
    /// The layer of the answers to choose from, on the pooler or what stands in for it.
    choice: Option<&'static str>,
    training: Training,
}

/// What the first training put on top.
enum Training {
    /// The head of words, and one on the pooler for pairs of sentences with its output.
    Pairs(&'static str, &'static str),
    /// Which words are not those of the text.
    Replaced,
    Words,
}

/// Where a model knows the sentence of a token from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segments {
    /// The input `token_type_ids`.
    Input,
    /// All are of the first.
    First,
    None,
}

/// Which places tokens have.
enum Padding {
    /// `0, 1, 2, ..`
    Counts,
    /// Those of tokens that are not padding, counted from behind the id of padding, which a field gives.
    Field,
    /// Likewise, and that id is fixed.
    Fixed(i64),
}

/// When embeddings go through a layer.
struct Widen {
    layer: &'static str,
    /// Where their width is that of the layers, too.
    always: bool,
}

/// The head of masked words.
struct Words {
    dense: &'static str,
    norm: &'static str,
    decoder: &'static str,
    /// Where the bias of the vocabulary is, if not with the decoder.
    bias: &'static str,
    /// An activation that the config does not set.
    activation: Option<Activation>,
    /// The width is that of the embeddings.
    narrow: bool,
}

/// One row for a whole text: a layer and an activation on that of the first token.
#[derive(Clone, Copy)]
struct Summary {
    dense: &'static str,
    /// It is a part of the body.
    inside: bool,
    activation: Activation,
}

const FIELDS: [&str; 6] =
    ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "hidden_act", "layer_norm_eps"];

const BERT_NAMES: Names = Names {
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
    up: "intermediate.dense",
    down: "output.dense",
    scales: None,
    in_out: false,
};

const BERT_POOLER: Summary = Summary { dense: "pooler.dense", inside: true, activation: activations::tanh };

/// The words of RoBERTa and MPNet.
const LM_HEAD: Words = Words {
    dense: "lm_head.dense",
    norm: "lm_head.layer_norm",
    decoder: "lm_head.decoder",
    bias: "lm_head.bias",
    activation: Some(activations::gelu),
    narrow: false,
};

/// BERT.
pub(crate) const BERT: Member = Member {
    prefix: "bert",
    fields: FIELDS,
    sizes: [768, 12, 12, 3072],
    activation: "gelu",
    layer: "encoder.layer",
    names: &BERT_NAMES,
    segments: Segments::Input,
    padding: Padding::Counts,
    widen: None,
    decoder: true,
    relative: false,
    shared: false,
    words: Words {
        dense: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        decoder: "cls.predictions.decoder",
        bias: "cls.predictions.bias",
        activation: None,
        narrow: false,
    },
    pooler: Some(BERT_POOLER),
    text: (BERT_POOLER, "classifier"),
    choice: Some("classifier"),
    training: Training::Pairs("cls.seq_relationship", "seq_relationship_logits"),
};

/// RoBERTa, XLM-RoBERTa and CamemBERT.
pub(crate) const ROBERTA: Member = Member {
    prefix: "roberta",
    segments: Segments::First,
    padding: Padding::Field,
    words: LM_HEAD,
    text: (ROBERTA_TEXT, "classifier.out_proj"),
    training: Training::Words,
    ..BERT
};

const ROBERTA_TEXT: Summary = Summary { dense: "classifier.dense", inside: false, activation: activations::tanh };

/// DistilBERT.
pub(crate) const DISTIL: Member = Member {
    prefix: "distilbert",
    fields: ["dim", "n_heads", "n_layers", "hidden_dim", "activation", ""],
    sizes: [768, 12, 6, 3072],
    layer: "transformer.layer",
    names: &Names {
        qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        out: "attention.out_lin",
        norms: ["sa_layer_norm", "output_layer_norm"],
        up: "ffn.lin1",
        down: "ffn.lin2",
        scales: None,
        in_out: false,
    },
    segments: Segments::None,
    decoder: false,
    words: Words {
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        decoder: "vocab_projector",
        bias: "vocab_projector.bias",
        activation: None,
        narrow: false,
    },
    pooler: None,
    text: (Summary { dense: "pre_classifier", inside: false, activation: activations::relu }, "classifier"),
    training: Training::Words,
    ..BERT
};

/// ELECTRA.
pub(crate) const ELECTRA: Member = Member {
    prefix: "electra",
    sizes: [256, 4, 12, 1024],
    widen: Some(Widen { layer: "embeddings_project", always: false }),
    words: Words {
        dense: "generator_predictions.dense",
        norm: "generator_predictions.LayerNorm",
        decoder: "generator_lm_head",
        bias: "generator_lm_head.bias",
        activation: Some(activations::gelu),
        narrow: true,
    },
    pooler: None,
    text: (Summary { dense: "classifier.dense", inside: false, activation: activations::gelu }, "classifier.out_proj"),
    choice: None,
    training: Training::Replaced,
    ..BERT
};

/// ALBERT.
pub(crate) const ALBERT: Member = Member {
    prefix: "albert",
    sizes: [4096, 64, 12, 16384],
    activation: "gelu_new",
    layer: "encoder.albert_layer_groups",
    names: &Names {
        qkv: &["attention.query", "attention.key", "attention.value"],
        out: "attention.dense",
        norms: ["attention.LayerNorm", "full_layer_layer_norm"],
        up: "ffn",
        down: "ffn_output",
        scales: None,
        in_out: false,
    },
    widen: Some(Widen { layer: "encoder.embedding_hidden_mapping_in", always: true }),
    decoder: false,
    shared: true,
    words: Words {
        dense: "predictions.dense",
        norm: "predictions.LayerNorm",
        decoder: "predictions.decoder",
        bias: "predictions.bias",
        activation: None,
        narrow: true,
    },
    pooler: Some(ALBERT_POOLER),
    text: (ALBERT_POOLER, "classifier"),
    training: Training::Pairs("sop_classifier.classifier", "sop_logits"),
    ..BERT
};

const ALBERT_POOLER: Summary = Summary { dense: "pooler", inside: true, activation: activations::tanh };

/// MPNet.
pub(crate) const MPNET: Member = Member {
    prefix: "mpnet",
    names: &Names {
        qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
        out: "attention.attn.o",
        norms: ["attention.LayerNorm", "output.LayerNorm"],
        ..BERT_NAMES
    },
    segments: Segments::None,
    padding: Padding::Fixed(1),
    decoder: false,
    relative: true,
    words: LM_HEAD,
    text: (ROBERTA_TEXT, "classifier.out_proj"),
    training: Training::Words,
    ..BERT
};

/// A model of the family with its sizes.
struct Model<'a> {
    m: &'a Member,
    block: Block,
    layers: usize,
    /// The width of embeddings.
    embedding: usize,
    positions: usize,
    /// The id of padding, where it matters.
    pad: Option<i64>,
    causal: bool,
}

impl<'a> Model<'a> {
    fn read(c: &Config, m: &'a Member) -> Result<Self> {
        let [width, heads, layers, inner, activation, epsilon] = m.fields;
        let width = c.count(width, m.sizes[0], MAX_WIDTH)?;
        let block = Block {
            names: m.names,
            width,
            heads: c.heads(heads, m.sizes[1], width)?,
            inner: c.count(inner, m.sizes[3], MAX_WIDTH)?,
            epsilon: c.epsilon(epsilon, 1e-12)?,
            activation: c.activation(activation, m.activation)?,
            norm_first: false,
            gated: false,
        };
        Ok(Self {
            m,
            block,
            layers: c.count(layers, m.sizes[2], MAX_LAYERS)?,
            embedding: if m.widen.is_some() { c.count("embedding_size", 128, MAX_WIDTH)? } else { width },
            positions: c.count("max_position_embeddings", 512, MAX_WIDTH)?,
            pad: match m.padding {
                Padding::Counts => None,
                Padding::Field => Some(c.id("pad_token_id", Some(1)).unwrap_or(1)),
                Padding::Fixed(id) => Some(id),
            },
            causal: m.decoder && c.flag("is_decoder") == Some(true) && c.is_causal(),
        })
    }

    /// The longest text: the table of places starts behind the id of padding.
    fn longest(&self) -> usize {
        let reserved = self.pad.map_or(0, |p| usize::try_from(p + 1).unwrap_or(0));
        self.positions.saturating_sub(reserved).max(1)
    }
}

/// Builds a model.
pub(crate) fn build(l: &mut Layers<'_>, c: &Config, head: Head, m: &Member) -> Result<()> {
    let model = Model::read(c, m)?;
    let kind = c.text("position_embedding_type");
    if !matches!(kind, "" | "absolute") {
        return Err(Config::unsupported(format!("asks for position embeddings of type `{kind}`, which are not supported")));
    }
    let ids = l.tokens("input_ids", head, model.longest())?;
    let mask = l.tokens("attention_mask", head, model.longest())?;
    let segments = if m.segments == Segments::Input { Some(l.tokens("token_type_ids", head, model.longest())?) } else { None };
    let base = l.base(&[m.prefix], "embeddings.word_embeddings.weight");
    let hidden = l.scope(base, |l| {
        let x = model.embed(l, ids, segments)?;
        model.encode(l, c, x, mask)
    })?;
    match head {
        Head::None => {
            l.output("last_hidden_state", hidden);
            if let Some(pooler) = m.pooler
                && l.weights.has(&format!("{}.weight", l.under(base, pooler.dense)))
            {
                let pooled = pooler.of(l, base, hidden)?;
                l.output("pooler_output", pooled);
            }
        }
        Head::CausalLm if !m.decoder => return Err(no_recipe(c)),
        Head::MaskedLm | Head::CausalLm => {
            let logits = model.words(l, c, base, hidden)?;
            l.output("logits", logits);
        }
        Head::PreTraining => match (&m.training, m.pooler) {
            (Training::Pairs(pair, output), Some(pooler)) => {
                let logits = model.words(l, c, base, hidden)?;
                l.output("prediction_logits", logits);
                let pooled = pooler.of(l, base, hidden)?;
                let pair = l.linear(pair, pooled, ANY)?;
                l.output(output, pair);
            }
            (Training::Replaced, _) => model.replaced(l, hidden)?,
            _ => return Err(no_recipe(c)),
        },
        Head::TokenClassification => l.classify("classifier", hidden)?,
        Head::SequenceClassification => {
            let x = m.text.0.of(l, base, hidden)?;
            l.classify(m.text.1, x)?;
        }
        Head::QuestionAnswering => l.spans("qa_outputs", hidden)?,
        Head::MultipleChoice => {
            let choice = m.choice.ok_or_else(|| no_recipe(c))?;
            let x = m.pooler.unwrap_or(m.text.0).of(l, base, hidden)?;
            l.choose(choice, x)?;
        }
        _ => return Err(no_recipe(c)),
    }
    Ok(())
}

impl Summary {
    fn of(self, l: &mut Layers<'_>, base: &str, hidden: Value) -> Result<Value> {
        let first = l.token(hidden, 0)?;
        let width = l.width(hidden);
        let x = l.scope(if self.inside { base } else { "" }, |l| l.linear(self.dense, first, width))?;
        l.activate(self.activation, x)
    }
}

impl Model<'_> {
    fn embed(&self, l: &mut Layers<'_>, ids: Value, segments: Option<Value>) -> Result<Value> {
        let width = self.embedding;
        let x = l.scope("embeddings", |l| {
            let mut x = l.embedding("word_embeddings.weight", [ANY, width], ids)?;
            let table = "token_type_embeddings.weight";
            let row = match (segments, self.m.segments) {
                (Some(ids), _) => Some(l.embedding(table, [ANY, width], ids)?),
                (None, Segments::First) => {
                    let table = l.weight(table, &[ANY, width])?;
                    Some(l.cut(table, 0, 0, 1)?)
                }
                _ => None,
            };
            if let Some(row) = row {
                x = l.plus(x, row)?;
            }
            let index = match self.pad {
                Some(pad) => l.counted(ids, pad, pad)?,
                None => l.positions(ids)?,
            };
            let p = l.embedding("position_embeddings.weight", [self.positions, width], index)?;
            let x = l.plus(x, p)?;
            l.layer_norm("LayerNorm", x, self.block.epsilon)
        })?;
        match &self.m.widen {
            Some(w) if w.always || width != self.block.width => l.linear(w.layer, x, self.block.width),
            _ => Ok(x),
        }
    }

    fn encode(&self, l: &mut Layers<'_>, c: &Config, x: Value, mask: Value) -> Result<Value> {
        let mut bias = l.mask_bias(mask)?;
        if self.m.relative {
            let by_distance = l.scope("encoder", |l| buckets::bias(l, mask, self.longest(), self.block.heads))?;
            bias = l.plus(by_distance, bias)?;
        }
        let sight = Sight { mask: Some(bias), causal: self.causal, ..Sight::default() };
        if !self.m.shared {
            return self.block.stack(l, self.m.layer, self.layers, x, sight);
        }
        let groups = c.count("num_hidden_groups", 1, MAX_LAYERS)?;
        let inner = c.count("inner_group_num", 1, MAX_LAYERS)?;
        (0..self.layers).try_fold(x, |x, i| {
            let group = (i as f64 / (self.layers as f64 / groups as f64)) as usize;
            l.round(i, |l| self.block.stack(l, &format!("{}.{group}.albert_layers", self.m.layer), inner, x, sight))
        })
    }

    /// The logits of words.
    fn words(&self, l: &mut Layers<'_>, c: &Config, base: &str, hidden: Value) -> Result<Value> {
        let w = &self.m.words;
        let x = l.linear(w.dense, hidden, if w.narrow { self.embedding } else { self.block.width })?;
        let x = l.activate(w.activation.unwrap_or(self.block.activation), x)?;
        let x = l.layer_norm(w.norm, x, self.block.epsilon)?;
        let table = l.under(base, "embeddings.word_embeddings.weight");
        let logits = l.words(c, w.decoder, &table, true, x)?;
        let own = format!("{}.bias", w.decoder);
        let bias = l.weight(if l.has(&own) { &own } else { w.bias }, &[l.width(logits)])?;
        l.plus(logits, bias)
    }

    /// Which words ELECTRA takes for replaced ones.
    fn replaced(&self, l: &mut Layers<'_>, hidden: Value) -> Result<()> {
        let x = l.linear("discriminator_predictions.dense", hidden, self.block.width)?;
        let x = l.activate(self.block.activation, x)?;
        let x = l.linear("discriminator_predictions.dense_prediction", x, 1)?;
        let dims = l.b.ty(x).dims[..2].to_vec();
        let logits = typed(l.b.reshape(x, dims))?;
        l.output("logits", logits);
        Ok(())
    }
}
