//! What stands on top of a body: heads by the end of the architecture's name, and those that are alike for many bodies.

use transc_ir::Value;
use transc_ir::op::{ArgReduce, GatherNd, Map};
use transc_ir::scalar::{BinOp, Body, Literal};
use transc_ir::types::{DType, Dim, Symbol, SymbolRange, TensorType};

use super::config::Config;
use super::layers::{Layers, typed};
use super::weights::ANY;
use super::{Result, no_recipe};

/// Largest batch.
const MAX_BATCH: usize = 4096;
/// Most answers to choose from.
const MAX_CHOICES: usize = 256;

/// What stands on top of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    None,
    CausalLm,
    MaskedLm,
    /// What the model was trained with first.
    PreTraining,
    SequenceClassification,
    TokenClassification,
    QuestionAnswering,
    MultipleChoice,
    ImageClassification,
    /// Class and distillation classifiers, averaged.
    Teacher,
    /// A projection into the space of another tower.
    Projection,
}

/// By the end of the architecture's name; the first that fits.
const ENDS: [(&str, Head); 12] = [
    ("ForCausalLM", Head::CausalLm),
    ("LMHeadModel", Head::CausalLm),
    ("ForMaskedLM", Head::MaskedLm),
    ("ForPreTraining", Head::PreTraining),
    ("ForSequenceClassification", Head::SequenceClassification),
    ("ForTokenClassification", Head::TokenClassification),
    ("ForQuestionAnswering", Head::QuestionAnswering),
    ("ForMultipleChoice", Head::MultipleChoice),
    ("ForImageClassification", Head::ImageClassification),
    ("ForImageClassificationWithTeacher", Head::Teacher),
    ("ModelWithProjection", Head::Projection),
    ("Model", Head::None),
];

impl Head {
    /// The head of an architecture; `None` if no recipe has it.
    pub(crate) fn of(architecture: &str) -> Option<Self> {
        if architecture.is_empty() {
            return Some(Self::None);
        }
        let fits = |end: &str| architecture.ends_with(end) && !architecture.ends_with("HeadsModel");
        ENDS.iter().find(|(end, _)| fits(end)).map(|(_, head)| *head)
    }
}

/// What tops off a decoder.
pub(crate) struct Tops<'a> {
    /// The head of the vocabulary.
    pub(crate) words: &'static str,
    /// The table of the embedding, by its full name, which that head may share.
    pub(crate) table: &'a str,
    /// It does where the config does not say.
    pub(crate) tied: bool,
    /// The classifier of tokens.
    pub(crate) classes: &'static str,
    /// The id of padding where the config does not say.
    pub(crate) pad: Option<i64>,
    /// Soft cap of the logits.
    pub(crate) softcap: Option<f64>,
}

impl Layers<'_> {
    /// A dim of the inputs with sizes up to `max`.
    pub(crate) fn dim(&mut self, name: &str, max: usize) -> Dim {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.symbols.insert(Symbol::new(name), SymbolRange { min: 1, max });
        Dim::sym(name)
    }

    /// The dim of rows that do not depend on each other.
    pub(crate) fn batch(&mut self, name: &str) -> Dim {
        self.dim(name, MAX_BATCH)
    }

    /// Declares an input.
    pub(crate) fn input(&mut self, name: &str, ty: TensorType) -> Value {
        self.b.func.add_param(name, ty)
    }

    /// Declares an input `i64[batch, seq]` of sequences up to `longest`, or `i64[batch, choices, seq]` that is read as one batch.
    pub(crate) fn tokens(&mut self, name: &str, head: Head, longest: usize) -> Result<Value> {
        let mut dims = vec![self.batch("batch")];
        if head == Head::MultipleChoice {
            dims.push(self.dim("choices", MAX_CHOICES));
        }
        let rows: Dim = dims.iter().product();
        let seq = self.dim("seq", longest);
        dims.push(seq.clone());
        let ids = self.input(name, TensorType::new(DType::I64, dims));
        typed(self.b.reshape(ids, vec![rows, seq]))
    }

    /// The scores of as many classes as the file has, as the output `logits`.
    pub(crate) fn classify(&mut self, name: &str, x: Value) -> Result<()> {
        let logits = self.linear(name, x, ANY)?;
        self.output("logits", logits);
        Ok(())
    }

    /// One score for each answer, from the rows of all of them.
    pub(crate) fn choose(&mut self, name: &str, rows: Value) -> Result<()> {
        let score = self.linear(name, rows, 1)?;
        let logits = typed(self.b.reshape(score, vec![Dim::sym("batch"), Dim::sym("choices")]))?;
        self.output("logits", logits);
        Ok(())
    }

    /// Where an answer starts and ends.
    pub(crate) fn spans(&mut self, name: &str, hidden: Value) -> Result<()> {
        let both = self.linear(name, hidden, 2)?;
        for (name, end) in [("start_logits", 0), ("end_logits", 1)] {
            let one = self.cut(both, 2, end, 1)?;
            let dims = self.b.ty(one).dims[..2].to_vec();
            let logits = typed(self.b.reshape(one, dims))?;
            self.output(name, logits);
        }
        Ok(())
    }

    /// `x W^T` with the head's own weight, or with the embedding's table where both are one and the file has no other. The bias stays out.
    pub(crate) fn words(&mut self, c: &Config, head: &str, table: &str, tied: bool, x: Value) -> Result<Value> {
        let own = format!("{head}.weight");
        let tied = c.flag("tie_word_embeddings").unwrap_or(tied) && !self.weights.has(&own);
        self.project(if tied { table } else { &own }, x, ANY)
    }

    /// The row `place[B, 1]` of each sequence of `x[B, S, W]`.
    pub(crate) fn rows_at(&mut self, x: Value, place: Value) -> Result<Value> {
        typed(self.b.add(GatherNd { batch_dims: 1 }, &[x, place]))
    }

    /// The row of each sequence at its last token that is not padding, or at its end in models without padding.
    fn last_token(&mut self, x: Value, ids: Value, pad: Option<i64>) -> Result<Value> {
        let Some(pad) = pad else {
            let last = &self.b.ty(x).dims[1].clone() - &Dim::from(1);
            return self.token(x, last);
        };
        let index = self.positions(ids)?;
        let mut f = Body::builder(2);
        let (id, i, pad) = (f.arg(0), f.arg(1), f.lit(Literal::i64(pad)));
        let (padding, first) = (f.bin(BinOp::Eq, id, pad), f.lit(Literal::i64(0)));
        let place = f.select(padding, first, i);
        let places = typed(self.b.add(Map { body: f.finish(place) }, &[ids, index]))?;
        let place = typed(self.b.add(ArgReduce { max: true, axis: 1, keep: true, last: false }, &[places]))?;
        self.rows_at(x, place)
    }

    /// The outputs of a decoder for its `hidden[B, S, W]`.
    pub(crate) fn top_off(&mut self, c: &Config, head: Head, hidden: Value, ids: Value, t: &Tops<'_>) -> Result<()> {
        match head {
            Head::None => self.output("last_hidden_state", hidden),
            Head::CausalLm => {
                let mut logits = self.words(c, t.words, t.table, t.tied, hidden)?;
                if let Some(cap) = t.softcap {
                    logits = self.soft_cap(logits, cap)?;
                }
                self.output("logits", logits);
            }
            Head::SequenceClassification => {
                let last = self.last_token(hidden, ids, c.id("pad_token_id", t.pad))?;
                self.classify("score", last)?;
            }
            Head::TokenClassification => self.classify(t.classes, hidden)?,
            Head::QuestionAnswering => self.spans("qa_outputs", hidden)?,
            _ => return Err(no_recipe(c)),
        }
        Ok(())
    }
}
