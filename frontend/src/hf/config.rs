//! `config.json`: typed, checked access.

use std::path::Path;

use serde_json::{Map, Value as Json};
use transc_ir::diag::{Diagnostic, Fault};

use super::activations::{self, Activation};
use super::{Result, problem};

/// Largest size of a layer, of a table, or number of heads that a config may ask for.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Largest extent of an image or a patch.
const MAX_EXTENT: usize = 1 << 16;
/// Most layers that a config may ask for.
pub(crate) const MAX_LAYERS: usize = 4096;
/// Longest sequence where positions need no table.
pub(crate) const MAX_POSITIONS: usize = 1 << 30;

/// The file.
pub(crate) const FILE: &str = "config.json";
/// Largest accepted `config.json`, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The fields of a `config.json`.
pub(crate) struct Config {
    fields: Map<String, Json>,
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

    pub(crate) fn bad(field: &str, what: impl std::fmt::Display) -> Box<Diagnostic> {
        problem("T0405", Fault::Invalid, FILE, format!("field `{field}` {what}"), "")
    }

    /// A positive integer up to `max`, `default` if it is absent or null.
    pub(crate) fn count(&self, field: &str, default: usize, max: usize) -> Result<usize> {
        let Some(value) = self.field(field) else { return Ok(default) };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(v) if v > max => {
                Err(problem("T0403", Fault::Limit, FILE, format!("field `{field}` is {v}, more than the limit of {max}"), ""))
            }
            Some(v) if v > 0 => Ok(v),
            _ => Err(Self::bad(field, "is not a positive integer")),
        }
    }

    /// Height and width: one number for both, or two.
    pub(crate) fn extents(&self, field: &str, default: usize) -> Result<[usize; 2]> {
        let Some(Json::Array(both)) = self.fields.get(field) else {
            return Ok([self.count(field, default, MAX_EXTENT)?; 2]);
        };
        let extent = |v: &Json| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MAX_EXTENT).contains(v));
        match both.iter().map(extent).collect::<Option<Vec<_>>>().as_deref() {
            Some([h, w]) => Ok([*h, *w]),
            _ => Err(Self::bad(field, "is not a positive integer or a pair of them")),
        }
    }

    /// The first of some names of one field that is there.
    pub(crate) fn named<'n>(&self, names: [&'n str; 2]) -> &'n str {
        if self.field(names[0]).is_none() && self.field(names[1]).is_some() { names[1] } else { names[0] }
    }

    /// A number of heads, which divides the width that they share.
    pub(crate) fn heads(&self, field: &str, default: usize, width: usize) -> Result<usize> {
        let heads = self.count(field, default, MAX_WIDTH)?;
        if width.is_multiple_of(heads) {
            Ok(heads)
        } else {
            Err(Self::bad(field, format!("is {heads}, which does not divide the width {width}")))
        }
    }

    /// A finite number of at least 0, `default` if it is absent or null.
    pub(crate) fn epsilon(&self, field: &str, default: f64) -> Result<f64> {
        self.field(field).map_or(Ok(default), |v| {
            v.as_f64().filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| Self::bad(field, "is not a finite number >= 0"))
        })
    }

    /// A positive number that null turns off.
    pub(crate) fn option(&self, field: &str, absent: Option<f64>) -> Result<Option<f64>> {
        match self.fields.get(field) {
            None => Ok(absent),
            Some(Json::Null) => Ok(None),
            Some(v) => {
                let v = v.as_f64().filter(|v| v.is_finite() && *v > 0.0);
                v.map(Some).ok_or_else(|| Self::bad(field, "is not a positive number"))
            }
        }
    }

    /// An integer that may be null, such as a token id.
    pub(crate) fn id(&self, field: &str, absent: Option<i64>) -> Option<i64> {
        self.fields.get(field).map_or(absent, Json::as_i64)
    }

    /// A text field, empty if absent.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Json::as_str).unwrap_or("")
    }

    /// The activation named by a field, or a default.
    pub(crate) fn activation(&self, field: &str, default: &str) -> Result<Activation> {
        let name = Some(self.text(field)).filter(|n| !n.is_empty()).unwrap_or(default);
        activations::find(name).ok_or_else(|| {
            let message = format!("field `{field}` names the activation `{name}`, which is not supported");
            problem("T0401", Fault::Unsupported, FILE, message, &format!("supported: {}", activations::names()))
        })
    }

    /// The name of the model's class, empty if absent.
    pub(crate) fn architecture(&self) -> &str {
        self.fields.get("architectures").and_then(|a| a.get(0)).and_then(Json::as_str).unwrap_or("")
    }

    /// Which kind of attention layer `i` has, where the config lists it.
    pub(crate) fn layer_type(&self, i: usize) -> Option<&str> {
        self.field("layer_types")?.get(i)?.as_str()
    }

    /// The config of a part of the model, empty where there is none; in old files `<part>_dict` stands above `<part>`.
    pub(crate) fn part(&self, name: &str) -> Self {
        let fields = self.object(&format!("{name}_dict")).or_else(|| self.object(name));
        Self { fields: fields.cloned().unwrap_or_default() }
    }

    /// False if the model of a decoder looks ahead.
    pub(crate) fn is_causal(&self) -> bool {
        self.flag("is_causal") != Some(false)
    }

    /// The error for a field that asks for what no recipe does.
    pub(crate) fn unsupported(what: impl Into<String>) -> Box<Diagnostic> {
        problem("T0401", Fault::Unsupported, FILE, what, "export the model to ONNX")
    }

    /// A field that is true or false.
    pub(crate) fn flag(&self, field: &str) -> Option<bool> {
        self.fields.get(field).and_then(Json::as_bool)
    }

    /// A field that is there and not null.
    pub(crate) fn field(&self, field: &str) -> Option<&Json> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// A field with fields of its own.
    pub(crate) fn object(&self, field: &str) -> Option<&Map<String, Json>> {
        self.fields.get(field).and_then(Json::as_object)
    }

    /// True if a field is there to say that it has no value.
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Json::is_null)
    }
}
