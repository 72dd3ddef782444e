//! What can be asked for, and what is wrong with it.

use std::str::FromStr;

use transc_ir::diag::{Diagnostic, Fault};

/// Which weights become zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prune {
    /// This share of the blocks of 4 neighbouring outputs by one input, those with the smallest sum of magnitudes.
    Blocks(f64),
    /// The two smaller of every four neighbouring inputs of an output.
    TwoOfFour,
    /// This share of the weights, the smallest.
    Unstructured(f64),
}

impl FromStr for Prune {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let wrong = |why: &str| WeightError::Spec { option: "--sparse", text: text.into(), why: why.into() };
        let share = |s: &str| {
            let v: Option<f64> = s.parse().ok().filter(|v: &f64| *v > 0.0 && *v < 1.0);
            v.ok_or_else(|| wrong("the share of zeros lies between 0 and 1"))
        };
        match text.split_once('=') {
            Some(("prune-4x1", s)) => Ok(Prune::Blocks(share(s)?)),
            Some(("prune-unstructured", s)) => Ok(Prune::Unstructured(share(s)?)),
            None if text == "prune-2:4" => Ok(Prune::TwoOfFour),
            _ => Err(wrong("there is no such pattern")),
        }
    }
}

/// How weights and activations become 8-bit codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Int8 {
    /// Weights per output; activations per row, by the largest magnitude that is there when the model runs.
    Dynamic,
    /// Weights per output; activations per tensor, in a range that was observed.
    Static(Observer),
}

impl FromStr for Int8 {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let wrong = |why: &str| WeightError::Spec { option: "--int8", text: text.into(), why: why.into() };
        match text.split_once(':') {
            None if text == "dynamic" => Ok(Int8::Dynamic),
            None if text == "static" => Ok(Int8::Static(Observer::MinMax)),
            Some(("static", "minmax")) => Ok(Int8::Static(Observer::MinMax)),
            Some(("static", "mse")) => Ok(Int8::Static(Observer::Mse)),
            Some(("static", p)) => {
                let p = p.strip_prefix("percentile=").and_then(|p| p.parse().ok()).filter(|p: &f64| *p > 50.0 && *p <= 100.0);
                Ok(Int8::Static(Observer::Percentile(
                    p.ok_or_else(|| wrong("observers are minmax, percentile=50..100 and mse"))?,
                )))
            }
            _ => Err(wrong("there is no such way")),
        }
    }
}

/// How a range follows from observed values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// All values.
    MinMax,
    /// This percentage of the values, the rest halved between both ends.
    Percentile(f64),
    /// The part of the whole range with the smallest mean square error.
    Mse,
}

/// A range of values, which contains 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest.
    pub lo: f32,
    /// The largest.
    pub hi: f32,
}

impl Range {
    /// Scale and zero point of unsigned codes.
    pub fn code(self) -> (f32, u8) {
        let scale = (self.hi - self.lo) / 255.0;
        let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };
        (scale, (-self.lo / scale).round_ties_even().clamp(0.0, 255.0) as u8)
    }
}

impl Observer {
    /// The range of values; NaN and infinities do not count.
    pub fn range(self, values: &[f32]) -> Range {
        let finite = values.iter().copied().filter(|v| v.is_finite());
        let (lo, hi) = finite.clone().fold((0.0f32, 0.0f32), |(lo, hi), v| (lo.min(v), hi.max(v)));
        match self {
            Observer::MinMax => Range { lo, hi },
            Observer::Percentile(p) => {
                let mut sorted: Vec<f32> = finite.collect();
                sorted.sort_by(f32::total_cmp);
                let at =
                    |share: f64| sorted.get((share * (sorted.len().max(1) - 1) as f64).round() as usize).copied().unwrap_or(0.0);
                let tail = (100.0 - p) / 200.0;
                Range { lo: at(tail).min(0.0), hi: at(1.0 - tail).max(0.0) }
            }
            Observer::Mse => {
                // A sample, the same in every run.
                let step = values.len().div_ceil(1 << 16).max(1);
                let sample: Vec<f32> = finite.step_by(step).collect();
                let candidates =
                    (0..40).map(|i| 1.0 - f64::from(i) * 0.02).map(|f| Range { lo: lo * f as f32, hi: hi * f as f32 });
                let error = |r: &Range| {
                    let (scale, zero) = r.code();
                    let coded = |v: f32| ((v / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0);
                    sample.iter().map(|v| f64::from((coded(*v) - f32::from(zero)) * scale - v).powi(2)).sum::<f64>()
                };
                let scored = candidates.map(|r| (error(&r), r));
                scored.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(Range { lo, hi }, |(_, r)| r)
            }
        }
    }
}

/// What happens to the weights of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightSpec {
    /// Zeros.
    pub prune: Option<Prune>,
    /// Codes.
    pub int8: Option<Int8>,
    /// For static codes: the range of the activation of each site, in order.
    pub ranges: Vec<Range>,
}

impl WeightSpec {
    /// True if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.prune.is_none() && self.int8.is_none()
    }
}

/// A compression that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// An option with a value that it does not have.
    #[error("`{option} {text}` cannot be done: {why}")]
    Spec {
        /// The option.
        option: &'static str,
        /// Its value.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Static codes without inputs to observe.
    #[error("static codes need inputs to observe")]
    NoCalibration,
    /// A model without a layer to compress.
    #[error("the model has no layer with a constant weight in f32")]
    NoSite,
}

impl WeightError {
    /// The error for people.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let (code, help) = match self {
            WeightError::Spec { .. } => (
                "T0514",
                "`--sparse prune-4x1=0.8`, `prune-2:4`, `prune-unstructured=0.9`; `--int8 dynamic`, `static[:minmax|:percentile=99.9|:mse]`",
            ),
            WeightError::NoCalibration => ("T0515", "give `transc compile` typical inputs with `--calib inputs.npz`"),
            WeightError::NoSite => ("T0516", "layers of other types, and weights that are computed, stay as they are"),
        };
        vec![Diagnostic { code, fault: Fault::Invalid, message: self.to_string(), place: None, help: help.into() }]
    }
}
