//! What can be asked for, and what is wrong with it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Factor, Facts, WeightError};

/// The largest unsigned code of 8 bits.
pub(in crate::lossy) const MAX_BYTE: f32 = 255.0;

/// The neighbours of a weight that become zero together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// What asks for it.
    pub(super) name: &'static str,
    /// Neighbouring outputs.
    pub(super) outputs: usize,
    /// By neighbouring inputs.
    pub(super) inputs: usize,
}

/// The blocks that sparse kernels have.
const BLOCKS: [Block; 3] = [
    Block { name: "prune-4x1", outputs: 4, inputs: 1 },
    Block { name: "prune-1x4", outputs: 1, inputs: 4 },
    Block { name: "prune-4x4", outputs: 4, inputs: 4 },
];

/// Which weights become zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prune {
    /// This share of the blocks, those with the smallest sum of magnitudes.
    Blocks(Block, f64),
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
            Some(("prune-unstructured", s)) => Ok(Prune::Unstructured(share(s)?)),
            Some((pattern, s)) => {
                let block = BLOCKS.into_iter().find(|b| b.name == pattern).ok_or_else(|| wrong("there is no such pattern"))?;
                Ok(Prune::Blocks(block, share(s)?))
            }
            None if text == "prune-2:4" => Ok(Prune::TwoOfFour),
            None => Err(wrong("there is no such pattern")),
        }
    }
}

/// How weights, and activations, become codes or factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Codes {
    /// 8 bits: weights per output; activations per row, by the largest magnitude that is there when the model runs.
    Dynamic,
    /// 8 bits: weights per output; activations per tensor, in a range that was observed.
    Static {
        /// How the range follows from the values.
        observer: Observer,
        /// How much of the spread between an activation's columns moves into the weight, 0 to 1 (Xiao et al. 2022, "SmoothQuant").
        smooth: Option<f64>,
        /// The magnitude from which columns of the activation stay in `f32`.
        outliers: Option<f32>,
        /// Attention multiplies codes too: of queries, keys and values per tensor, and of its weights.
        attention: bool,
    },
    /// As `Dynamic`, with the columns of the activation that reached this magnitude in `f32` (Dettmers et al. 2022, "LLM.int8()").
    Outliers(f32),
    /// Weights alone, in 8 bits with a scale per output.
    Weights8,
    /// Weights as products of two.
    Factored(Factor),
    /// Weights alone, in 4 bits with a scale and zero point per output and this many inputs.
    Weights4(usize),
}

impl Codes {
    /// The value of `--int8`.
    ///
    /// # Errors
    /// A way that there is not.
    pub fn int8(text: &str) -> Result<Self, WeightError> {
        let wrong = |why: &str| WeightError::Spec { option: "--int8", text: text.into(), why: why.into() };
        if text == "dynamic" {
            return Ok(Codes::Dynamic);
        }
        let rest = text.strip_prefix("static").ok_or_else(|| wrong("there is no such way"))?;
        let (mut observer, mut smooth, mut outliers, mut attention) = (Observer::MinMax, None, None, false);
        let parts = rest.split([':', ',']).skip(1);
        if !rest.is_empty() && !rest.starts_with(':') {
            return Err(wrong("there is no such way"));
        }
        for part in parts {
            let (name, value) = part.split_once('=').map_or((part, None), |(n, v)| (n, Some(v)));
            let number = |lo: f64, hi: f64| value.and_then(|v| v.parse().ok()).filter(|v: &f64| (lo..=hi).contains(v));
            match name {
                "minmax" => observer = Observer::MinMax,
                "mse" => observer = Observer::Mse,
                "attention" if value.is_none() => attention = true,
                "percentile" => {
                    observer =
                        Observer::Percentile(number(50.0, 100.0).ok_or_else(|| wrong("a percentile lies between 50 and 100"))?);
                }
                "smooth" if value.is_none() => smooth = Some(0.5),
                "smooth" => smooth = Some(number(0.0, 1.0).ok_or_else(|| wrong("`smooth` takes a number between 0 and 1"))?),
                "outliers" => {
                    let magnitude =
                        number(f64::MIN_POSITIVE, f64::MAX).ok_or_else(|| wrong("a magnitude is a positive number"))?;
                    outliers = Some(magnitude as f32);
                }
                _ => return Err(wrong("observers are minmax, percentile=50..100 and mse")),
            }
        }
        Ok(Codes::Static { observer, smooth, outliers, attention })
    }

    /// The value of `--llm-int8`.
    ///
    /// # Errors
    /// No positive number.
    pub fn outliers(text: &str) -> Result<Self, WeightError> {
        let threshold = text.parse().ok().filter(|t: &f32| t.is_finite() && *t > 0.0);
        let wrong =
            || WeightError::Spec { option: "--llm-int8", text: text.into(), why: "a magnitude is a positive number".into() };
        threshold.map(Codes::Outliers).ok_or_else(wrong)
    }

    /// The value of `--w4`.
    ///
    /// # Errors
    /// No size of a group.
    pub fn weights4(text: &str) -> Result<Self, WeightError> {
        let group = text.strip_prefix('g').and_then(|g| g.parse().ok()).filter(|g| (1..=1 << 20).contains(g));
        let wrong = || WeightError::Spec { option: "--w4", text: text.into(), why: "a group has at least one input".into() };
        group.map(Codes::Weights4).ok_or_else(wrong)
    }

    /// The magnitude from which columns of the activation stay in `f32`.
    pub(super) fn threshold(self) -> Option<f32> {
        match self {
            Codes::Outliers(t) => Some(t),
            Codes::Static { outliers, .. } => outliers,
            _ => None,
        }
    }

    /// What needs observed activations, if it does.
    pub(super) fn needs_facts(self) -> Option<&'static str> {
        match self {
            Codes::Static { .. } => Some("a static range"),
            Codes::Outliers(_) => Some("finding outliers"),
            _ => None,
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// The smallest.
    pub lo: f32,
    /// The largest.
    pub hi: f32,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}..{:.4}", self.lo, self.hi)
    }
}

impl Range {
    /// Scale and zero point of unsigned codes up to `max`.
    pub(in crate::lossy) fn code(self, max: f32) -> (f32, f32) {
        let scale = (self.hi - self.lo) / max;
        let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };
        (scale, (-self.lo / scale).round_ties_even().clamp(0.0, max))
    }

    /// What values become in these codes.
    pub(super) fn decoded(self, max: f32) -> impl Fn(f32) -> f32 {
        let (scale, zero) = self.code(max);
        move |v| (((v / scale).round_ties_even() + zero).clamp(0.0, max) - zero) * scale
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
                    let decoded = r.decoded(MAX_BYTE);
                    sample.iter().map(|v| f64::from(decoded(*v) - v).powi(2)).sum::<f64>()
                };
                let scored = candidates.map(|r| (error(&r), r));
                scored.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(Range { lo, hi }, |(_, r)| r)
            }
        }
    }
}

/// The value of `--budget`: `max-err=E`.
///
/// # Errors
/// No positive number.
pub fn parse_budget(text: &str) -> Result<f64, WeightError> {
    let error = text.strip_prefix("max-err=").and_then(|e| e.parse().ok()).filter(|e: &f64| e.is_finite() && *e > 0.0);
    error.ok_or_else(|| WeightError::Spec { option: "--budget", text: text.into(), why: "an error is a positive number".into() })
}

/// What happens to the weights of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightSpec {
    /// Zeros.
    pub prune: Option<Prune>,
    /// Codes.
    pub codes: Option<Codes>,
    /// What was observed at each site, in order; empty without inputs.
    pub facts: Vec<Facts>,
    /// The ranges of queries, keys and values of each attention, in order; empty where these do not become codes.
    pub attention: Vec<[Range; 3]>,
    /// The user's node of each site, attentions after layers, and the relative error of its own result, in order; empty if it was not measured.
    pub errors: Vec<(String, f64)>,
    /// Sites that stay as they are.
    pub keep: BTreeSet<usize>,
}

impl WeightSpec {
    /// True if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.prune.is_none() && self.codes.is_none()
    }

    /// True if observed activations change what happens.
    pub fn wants_facts(&self) -> bool {
        self.codes.is_some_and(|c| c.needs_facts().is_some() || matches!(c, Codes::Factored(_)))
    }

    /// What needs observed activations and lacks them.
    pub fn lacks_facts(&self) -> Option<&'static str> {
        self.codes.and_then(Codes::needs_facts).filter(|_| self.facts.is_empty())
    }
}
