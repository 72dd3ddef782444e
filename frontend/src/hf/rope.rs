//! Rotary positions (Su et al. 2021): the frequencies, and the ways in which models stretch them over longer texts than they were trained on.

use serde_json::{Map as Fields, Value as Json};
use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Dims, Map, Rope};
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};
use transc_ir::tensor::ConstData;
use transc_ir::types::{DType, TensorType};

use super::config::{Config, FILE};
use super::layers::{Layers, typed};
use super::{Result, problem};

/// Base of the frequencies where a model names none.
pub(crate) const THETA: f64 = 10_000.0;

/// What turns positions into rotations.
pub(crate) struct Rotations {
    /// Angle per position of each pair of features.
    frequencies: Vec<f32>,
    /// The angles in sequences of more tokens than this.
    long: Option<(usize, Vec<f32>)>,
    /// Factor of cosine and sine.
    factor: f64,
}

/// What the rotations of all heads or of some layers are made for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Rotated features of a head.
    pub(crate) features: usize,
    /// Longest text of the model.
    pub(crate) positions: usize,
    /// The base where the config has none.
    pub(crate) theta: f64,
}

/// Layers with rotations of their own.
pub(crate) struct Kind {
    /// Their name among the types of layers.
    pub(crate) name: &'static str,
    /// The field of their base in files of the first form.
    pub(crate) theta: &'static str,
    /// They are stretched as that form says for all.
    pub(crate) stretched: bool,
}

/// How frequencies are stretched.
struct Parameters<'a> {
    fields: Fields<String, Json>,
    config: &'a Config,
    theta: f64,
    wanted: Wanted,
}

/// How many features of a head are rotated, by the share that a field gives.
pub(crate) fn rotated(c: &Config, field: &str, share: f64, head_dim: usize) -> Result<usize> {
    let given = c.object("rope_parameters").and_then(|p| p.get("partial_rotary_factor")).or_else(|| c.field(field));
    let share = given.map_or(Some(share), Json::as_f64).filter(|s| (0.0..=1.0).contains(s));
    let share = share.ok_or_else(|| Config::bad(field, "is no share of the features"))?;
    Ok((head_dim as f64 * share) as usize)
}

/// The rotations of all layers, in the layout of published folders or in that of current transformers.
pub(crate) fn rotations(c: &Config, theta: &str, wanted: Wanted) -> Result<Rotations> {
    let [scaling, parameters] = ["rope_scaling", "rope_parameters"].map(|f| c.object(f).filter(|o| !o.is_empty()));
    let fields = scaling.or(parameters).cloned().unwrap_or_default();
    let base = fields.get("rope_theta").or_else(|| c.field(theta)).or_else(|| parameters?.get("rope_theta")).cloned();
    Parameters::new(c, fields, base, wanted)?.rotations()
}

/// The rotations of the layers of a kind.
pub(crate) fn rotations_of(c: &Config, kind: &Kind, wanted: Wanted) -> Result<Rotations> {
    let own = c.object("rope_parameters").and_then(|p| p.get(kind.name)).and_then(Json::as_object);
    let mut fields = own.cloned().unwrap_or_default();
    if let Some(scaling) = c.object("rope_scaling").filter(|_| kind.stretched) {
        fields.extend(scaling.clone());
    }
    let base = fields.get("rope_theta").or_else(|| c.field(kind.theta)).cloned();
    Parameters::new(c, fields, base, wanted)?.rotations()
}

impl<'a> Parameters<'a> {
    fn new(config: &'a Config, fields: Fields<String, Json>, base: Option<Json>, wanted: Wanted) -> Result<Self> {
        let theta = base.map_or(Some(wanted.theta), |b| b.as_f64()).filter(|v| v.is_finite() && *v >= 1.0);
        let theta = theta.ok_or_else(|| Config::bad("rope_theta", "is no base of rotations"))?;
        Ok(Self { fields, config, theta, wanted })
    }

    fn rotations(&self) -> Result<Rotations> {
        let n = self.wanted.features;
        let usual: Vec<f64> = (0..n / 2).map(|i| self.theta.powf(-2.0 * i as f64 / n as f64)).collect();
        let kind = ["rope_type", "type"].iter().find_map(|f| self.fields.get(*f)?.as_str()).unwrap_or("default");
        // What Phi-3's first files call by these names stretches in its way.
        let kind = if self.config.text("model_type") == "phi3" && matches!(kind, "su" | "yarn") { "longrope" } else { kind };
        let (frequencies, factor) = match kind {
            // `dynamic` changes nothing up to the longest text of the model.
            "default" | "dynamic" => (usual, 1.0),
            "linear" => {
                let factor = self.number("factor", None)?;
                (usual.iter().map(|f| f / factor).collect(), 1.0)
            }
            "llama3" => (self.by_wavelength(&usual)?, 1.0),
            "yarn" => self.yarn(&usual)?,
            "longrope" => return self.by_length(&usual),
            other => {
                let message = format!("scales its rotary positions by `{other}`, which is not supported");
                return Err(Config::unsupported(message));
            }
        };
        Ok(Rotations { frequencies: narrow(&frequencies), long: None, factor })
    }

    /// A positive number, or one that stands in for an absent field.
    fn number(&self, field: &str, default: Option<f64>) -> Result<f64> {
        let value = self.fields.get(field).filter(|v| !v.is_null());
        let value = value.map_or(default, Json::as_f64).filter(|v| v.is_finite() && *v > 0.0);
        value.ok_or_else(|| Config::bad(&format!("rope_scaling.{field}"), "is no positive number"))
    }

    /// The longest text that the frequencies were made for.
    fn trained(&self) -> Result<f64> {
        let field = "original_max_position_embeddings";
        match self.config.field(field).and_then(Json::as_f64) {
            Some(outside) if outside > 0.0 => Ok(outside),
            _ => self.number(field, Some(self.wanted.positions as f64)),
        }
    }

    fn flag(&self, field: &str) -> Option<bool> {
        self.fields.get(field).and_then(Json::as_bool)
    }

    /// Long waves are stretched, short ones stay, those between are in between (Grattafiori et al. 2024).
    fn by_wavelength(&self, usual: &[f64]) -> Result<Vec<f64>> {
        let (factor, trained) = (self.number("factor", None)?, self.trained()?);
        let (low, high) = (self.number("low_freq_factor", None)?, self.number("high_freq_factor", None)?);
        let stretched = |f: &f64| {
            let waves = trained * f / std::f64::consts::TAU;
            let stays = if high > low { ((waves - low) / (high - low)).clamp(0.0, 1.0) } else { f64::from(waves > high) };
            (1.0 - stays) * f / factor + stays * f
        };
        Ok(usual.iter().map(stretched).collect())
    }

    /// YaRN (Peng et al. 2023, section 3): a ramp over the features from frequencies that stay to those that are stretched, and a temperature of the logits.
    fn yarn(&self, usual: &[f64]) -> Result<(Vec<f64>, f64)> {
        let trained = self.trained()?;
        let factor = self.number("factor", Some(self.wanted.positions as f64 / trained))?;
        let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let [m, all] = ["mscale", "mscale_all_dim"].map(|f| self.number(f, None).ok());
        let usual_temperature = m.zip(all).map_or(scale(1.0), |(m, all)| scale(m) / scale(all));
        let temperature = self.number("attention_factor", Some(usual_temperature))?;
        let dim = 2.0 * usual.len() as f64;
        // The feature whose pair turns so often over a text of the trained length.
        let place = |turns: f64| dim * (trained / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
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

    /// LongRoPE (Ding et al. 2024): a factor for each pair of features, others in texts beyond the trained length.
    fn by_length(&self, usual: &[f64]) -> Result<Rotations> {
        let trained = self.trained()?;
        let factor = self.number("factor", Some(self.wanted.positions as f64 / trained))?;
        let temperature = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / trained.ln()).sqrt() };
        let stretched = |field: &str| -> Result<Vec<f32>> {
            let factors = self.fields.get(field).and_then(Json::as_array).into_iter().flatten();
            let factors: Vec<f64> = factors.filter_map(Json::as_f64).filter(|f| f.is_finite() && *f > 0.0).collect();
            if factors.len() == usual.len() {
                Ok(narrow(&usual.iter().zip(factors).map(|(f, by)| f / by).collect::<Vec<_>>()))
            } else {
                Err(Config::bad(&format!("rope_scaling.{field}"), "is no list with a positive number for each pair of features"))
            }
        };
        let long = (self.wanted.positions as f64 > trained).then(|| stretched("long_factor")).transpose()?;
        Ok(Rotations {
            frequencies: stretched("short_factor")?,
            long: long.map(|f| (trained as usize, f)),
            factor: self.number("attention_factor", Some(temperature))?,
        })
    }
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|f| *f as f32).collect()
}

/// Cosine and sine of the rotations, `[S, d/2]`.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    cos: Value,
    sin: Value,
}

impl Rotations {
    /// The turns of the tokens of `ids[B, S]`: position times frequency.
    pub(crate) fn turns(&self, l: &mut Layers<'_>, ids: Value) -> Result<Turns> {
        let seq = l.b.ty(ids).dims[1].clone();
        let mut frequencies = angles(l, "rotary_emb.inv_freq", &self.frequencies)?;
        if let Some((trained, long)) = &self.long {
            let long = angles(l, "rotary_emb.long_inv_freq", long)?;
            let length = typed(l.b.add(Dims { values: vec![seq.clone()] }, &[]))?;
            let mut f = Body::builder(3);
            let (n, long_arg, short) = (f.arg(0), f.arg(1), f.arg(2));
            let trained = f.lit(Literal::i64(*trained as i64));
            let beyond = f.bin(BinOp::Lt, trained, n);
            let angle = f.select(beyond, long_arg, short);
            frequencies = typed(l.b.add(Map { body: f.finish(angle) }, &[length, long, frequencies]))?;
        }
        let positions = l.positions(ids)?;
        let positions = typed(l.b.cast(DType::F32, positions))?;
        let positions = typed(l.b.reshape(positions, vec![seq, 1.into()]))?;
        let angles = l.times(positions, frequencies)?;
        let mut table = |f: UnOp| {
            let x = typed(l.b.un(f, angles))?;
            if self.factor == 1.0 { Ok(x) } else { l.scaled(x, self.factor) }
        };
        Ok(Turns { cos: table(UnOp::Cos)?, sin: table(UnOp::Sin)? })
    }
}

impl Turns {
    /// Turns the first features of the heads of `x[B, H, S, d]`.
    pub(crate) fn of(self, l: &mut Layers<'_>, x: Value) -> Result<Value> {
        let rope = Rope { rotary: 2 * l.width(self.cos), interleaved: false };
        typed(l.b.add(rope, &[x, self.cos, self.sin]))
    }
}

/// The angles per position as a constant.
fn angles(l: &mut Layers<'_>, name: &str, angles: &[f32]) -> Result<Value> {
    let bytes = angles.iter().flat_map(|f| f.to_le_bytes()).collect();
    let data = ConstData::new(TensorType::new(DType::F32, vec![angles.len().into()]), bytes);
    let data = data.filter(|_| !angles.is_empty());
    let name = l.full(name);
    let data = data.ok_or_else(|| problem("T0405", Fault::Invalid, FILE, "has a head size without rotations", ""))?;
    l.constant(&name, data)
}
