//! Rotary positions (Su et al. 2021): the frequencies, and the ways in which models stretch them over longer texts than they were trained on.

use serde_json::{Map, Value as Json};
use transc_ir::diag::Fault;

use super::config::{Config, FILE};
use super::{Result, problem};

/// Base of the frequencies where a model names none.
const THETA: f64 = 10_000.0;

/// What turns positions into rotations.
pub(crate) struct Rotations {
    /// Angle per position of each pair of features.
    pub(crate) frequencies: Vec<f32>,
    /// Factor of cosine and sine.
    pub(crate) factor: f64,
}

/// How frequencies are stretched.
struct Parameters<'a> {
    fields: Option<&'a Map<String, Json>>,
    /// Longest text of the model.
    positions: f64,
}

/// The rotations of heads of `head_dim` features, in the layout of published folders or in that of current transformers.
pub(crate) fn rotations(c: &Config, head_dim: usize) -> Result<Rotations> {
    let [scaling, parameters] = ["rope_scaling", "rope_parameters"].map(|f| c.object(f).filter(|o| !o.is_empty()));
    let fields = scaling.or(parameters);
    let theta = fields.and_then(|f| f.get("rope_theta")).or(c.field("rope_theta"));
    let theta = theta.or_else(|| parameters.and_then(|p| p.get("rope_theta"))).map_or(Some(THETA), Json::as_f64);
    let theta =
        theta.filter(|v| v.is_finite() && *v >= 1.0).ok_or_else(|| Config::bad("rope_theta", "is no base of rotations"))?;
    let p = Parameters { fields, positions: c.max_seq().map_or(2048.0, |n| n as f64) };
    let usual: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let kind = ["rope_type", "type"].iter().find_map(|f| fields?.get(*f)?.as_str()).unwrap_or("default");
    let (frequencies, factor) = match kind {
        // `dynamic` changes nothing up to the longest text of the model.
        "default" | "dynamic" => (usual, 1.0),
        "linear" => {
            let factor = p.number("factor", None)?;
            (usual.iter().map(|f| f / factor).collect(), 1.0)
        }
        "llama3" => (p.by_wavelength(&usual)?, 1.0),
        "yarn" => p.yarn(&usual, theta)?,
        other => {
            let message = format!("scales its rotary positions by `{other}`, which is not supported");
            return Err(problem("T0401", Fault::Unsupported, FILE, message, "export the model to ONNX"));
        }
    };
    Ok(Rotations { frequencies: frequencies.into_iter().map(|f| f as f32).collect(), factor })
}

impl Parameters<'_> {
    /// A positive number, or one that stands in for an absent field.
    fn number(&self, field: &str, default: Option<f64>) -> Result<f64> {
        let value = self.fields.and_then(|f| f.get(field)).filter(|v| !v.is_null());
        let value = value.map_or(default, Json::as_f64).filter(|v| v.is_finite() && *v > 0.0);
        value.ok_or_else(|| Config::bad(&format!("rope_scaling.{field}"), "is no positive number"))
    }

    fn flag(&self, field: &str) -> Option<bool> {
        self.fields.and_then(|f| f.get(field)).and_then(Json::as_bool)
    }

    /// Long waves are stretched, short ones stay, those between are in between (Grattafiori et al. 2024).
    fn by_wavelength(&self, usual: &[f64]) -> Result<Vec<f64>> {
        let (factor, trained) = (self.number("factor", None)?, self.number("original_max_position_embeddings", None)?);
        let (low, high) = (self.number("low_freq_factor", None)?, self.number("high_freq_factor", None)?);
        let stretched = |f: &f64| {
            let waves = trained * f / std::f64::consts::TAU;
            let stays = if high > low { ((waves - low) / (high - low)).clamp(0.0, 1.0) } else { f64::from(waves > high) };
            (1.0 - stays) * f / factor + stays * f
        };
        Ok(usual.iter().map(stretched).collect())
    }

    /// YaRN (Peng et al. 2023, section 3): a ramp over the features from frequencies that stay to those that are stretched, and a temperature of the logits.
    fn yarn(&self, usual: &[f64], theta: f64) -> Result<(Vec<f64>, f64)> {
        let trained = self.number("original_max_position_embeddings", Some(self.positions))?;
        let factor = self.number("factor", Some(self.positions / trained))?;
        let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let [m, all] = ["mscale", "mscale_all_dim"].map(|f| self.number(f, None).ok());
        let usual_temperature = m.zip(all).map_or(scale(1.0), |(m, all)| scale(m) / scale(all));
        let temperature = self.number("attention_factor", Some(usual_temperature))?;
        let dim = 2.0 * usual.len() as f64;
        // The feature whose pair turns so often over a text of the trained length.
        let place = |turns: f64| dim * (trained / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let (mut from, mut to) = (place(self.number("beta_fast", Some(32.0))?), place(self.number("beta_slow", Some(1.0))?));
        if self.flag("truncate") != Some(false) {
            (from, to) = (from.floor(), to.ceil());
        }
        (from, to) = (from.max(0.0), to.min(dim - 1.0));
        let width = if to == from { 0.001 } else { to - from };
        let stretched = usual.iter().enumerate().map(|(i, f)| {
            let share = ((i as f64 - from) / width).clamp(0.0, 1.0);
            share * f / factor + (1.0 - share) * f
        });
        Ok((stretched.collect(), temperature))
    }
}
