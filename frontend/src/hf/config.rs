//! `config.json`: typed, checked access.

use std::path::Path;

use serde_json::{Map, Value as Json};
use transc_ir::diag::{Diagnostic, Fault};
use transc_ir::scalar::UnOp;

use super::{Recipe, Result, bert, clip, gpt2, llama, problem, vit};

/// Largest size of a layer, of a table, or number of heads that a config may ask for.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Most layers that a config may ask for.
pub(crate) const MAX_LAYERS: usize = 4096;

const FILE: &str = "config.json";
/// Largest accepted `config.json`, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The fields of a `config.json`.
pub(crate) struct Config {
    fields: Map<String, Json>,
}

/// Activation functions by their name in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x/2 (1 + erf(x/sqrt 2))`.
    Gelu,
    /// The tanh approximation of gelu (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// A function of one operation.
    Un(UnOp),
}

impl Config {
    /// Reads and parses the file.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let missing = |e: std::io::Error| problem("T0402", Fault::Environment, FILE, format!("cannot be read: {e}"), "");
        let len = std::fs::metadata(&path).map_err(missing)?.len();
        if len > MAX_BYTES {
            return Err(problem("T0403", Fault::Limit, FILE, format!("has {len} bytes, more than {MAX_BYTES}"), ""));
        }
        let text = std::fs::read_to_string(&path).map_err(missing)?;
        match serde_json::from_str(&text) {
            Ok(Json::Object(fields)) => Ok(Self { fields }),
            Ok(_) => Err(problem("T0404", Fault::Invalid, FILE, "is not a JSON object", "")),
            Err(e) => Err(problem("T0404", Fault::Invalid, FILE, format!("is not valid JSON: {e}"), "")),
        }
    }

    fn bad(field: &str, what: impl std::fmt::Display) -> Box<Diagnostic> {
        problem("T0405", Fault::Invalid, FILE, format!("field `{field}` {what}"), "")
    }

    /// A positive integer up to `max`; `default` stands in for an absent field, none means that the field is required.
    pub(crate) fn count(&self, field: &str, default: Option<usize>, max: usize) -> Result<usize> {
        let value = match (self.fields.get(field), default) {
            (None | Some(Json::Null), Some(d)) => return Ok(d),
            (None | Some(Json::Null), None) => return Err(Self::bad(field, "is missing")),
            (Some(v), _) => v.as_u64().and_then(|v| usize::try_from(v).ok()),
        };
        match value {
            Some(v) if v > max => {
                Err(problem("T0403", Fault::Limit, FILE, format!("field `{field}` is {v}, more than the limit of {max}"), ""))
            }
            Some(v) if v > 0 => Ok(v),
            _ => Err(Self::bad(field, "is not a positive integer")),
        }
    }

    /// A number of heads, which divides the width that they share.
    pub(crate) fn heads(&self, field: &str, width: usize) -> Result<usize> {
        let heads = self.count(field, None, MAX_WIDTH)?;
        if width.is_multiple_of(heads) {
            Ok(heads)
        } else {
            Err(Self::bad(field, format!("is {heads}, which does not divide the width {width}")))
        }
    }

    /// A positive finite number.
    pub(crate) fn epsilon(&self, field: &str, default: f64) -> Result<f64> {
        match self.fields.get(field) {
            None | Some(Json::Null) => Ok(default),
            Some(v) => {
                v.as_f64().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| Self::bad(field, "is not a finite number >= 0"))
            }
        }
    }

    /// An integer that may be absent, such as a token id.
    pub(crate) fn id(&self, field: &str) -> Option<i64> {
        self.fields.get(field).and_then(Json::as_i64)
    }

    /// A text field, empty if absent.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Json::as_str).unwrap_or("")
    }

    /// The activation named by a field.
    pub(crate) fn activation(&self, field: &str) -> Result<Activation> {
        Ok(match self.text(field) {
            "gelu" | "" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Un(UnOp::Tanh),
            "sigmoid" => Activation::Un(UnOp::Sigmoid),
            other => {
                let message = format!("field `{field}` names the activation `{other}`, which is not supported");
                return Err(problem(
                    "T0401",
                    Fault::Unsupported,
                    FILE,
                    message,
                    "supported: gelu, gelu_new, quick_gelu, relu, silu, tanh",
                ));
            }
        })
    }

    /// The recipe for the architecture.
    pub(crate) fn recipe(&self) -> Result<Recipe> {
        let architecture = self.fields.get("architectures").and_then(|a| a.get(0)).and_then(Json::as_str).unwrap_or("");
        let model_type = self.text("model_type");
        let recipe = bert::Model::find(model_type, architecture).map(Recipe::Bert);
        let recipe = recipe.or_else(|| clip::Model::find(model_type, architecture).map(Recipe::Clip));
        let recipe = recipe.or_else(|| gpt2::Model::find(model_type, architecture).map(Recipe::Gpt2));
        let recipe = recipe.or_else(|| llama::Model::find(model_type, architecture).map(Recipe::Llama));
        recipe.or_else(|| vit::Model::find(model_type, architecture).map(Recipe::Vit)).ok_or_else(|| {
            let message = format!("describes `{architecture}` (model_type `{model_type}`), which has no importer");
            let help = "folders of BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ViT, DeiT, CLIP's text tower, GPT-2, Llama, Mistral, \
                        Qwen2, Qwen3 and Gemma can be imported; export other models to ONNX";
            problem("T0401", Fault::Unsupported, FILE, message, help)
        })
    }

    /// A field that is true or false.
    pub(crate) fn flag(&self, field: &str) -> Option<bool> {
        self.fields.get(field).and_then(Json::as_bool)
    }

    /// Base of the rotary frequencies, in the layout of published folders or in that of current transformers.
    pub(crate) fn rope_theta(&self) -> Result<f64> {
        let parameters = self.fields.get("rope_parameters");
        let scaling = self.fields.get("rope_scaling").or(parameters).filter(|s| !s.is_null());
        let kind = scaling.and_then(|s| s.get("rope_type").or(s.get("type"))).and_then(Json::as_str).unwrap_or("default");
        if kind != "default" {
            let message = format!("scales its rotary positions by `{kind}`, which is not supported");
            return Err(problem("T0401", Fault::Unsupported, FILE, message, "export the model to ONNX"));
        }
        let theta = self.fields.get("rope_theta").or_else(|| parameters.and_then(|p| p.get("rope_theta")));
        match theta {
            None | Some(Json::Null) => Ok(10_000.0),
            Some(v) => v
                .as_f64()
                .filter(|v| v.is_finite() && *v >= 1.0)
                .ok_or_else(|| Self::bad("rope_theta", "is no base of rotations")),
        }
    }

    /// How many of the latest keys a windowed layer sees.
    pub(crate) fn window(&self) -> Result<Option<usize>> {
        let absent =
            self.fields.get("sliding_window").is_none_or(Json::is_null) || self.flag("use_sliding_window") == Some(false);
        if absent { Ok(None) } else { self.count("sliding_window", None, 1 << 30).map(Some) }
    }

    /// True if a layer's attention is windowed: `layer_types` says which are, or they start at `max_window_layers`, or all are.
    pub(crate) fn is_windowed(&self, layer: usize) -> bool {
        let kind = self.fields.get("layer_types").and_then(|t| t.get(layer)).and_then(Json::as_str);
        let first = self.id("max_window_layers").unwrap_or(0);
        kind.map_or(layer as i64 >= first, |k| k == "sliding_attention")
    }

    /// The longest sequence of a text model; `None` for image models.
    pub(crate) fn max_seq(&self) -> Option<i64> {
        let positions = self.id("max_position_embeddings").or_else(|| self.id("n_positions")).filter(|v| *v > 0)?;
        // RoBERTa's table starts behind the padding index.
        let reserved = if self.text("model_type").contains("roberta") { self.id("pad_token_id").unwrap_or(1) + 1 } else { 0 };
        Some((positions - reserved).max(1))
    }
}
