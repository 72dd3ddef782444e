//! What is wrong with a compression.

use transc_ir::diag::{Diagnostic, Fault};

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
    /// Something that follows from observed activations, without inputs to observe.
    #[error("{0} needs inputs to observe")]
    NoCalibration(&'static str),
    /// A model without a layer to compress.
    #[error("the model has no layer with a constant weight in f32")]
    NoSite,
    /// A budget that even a few compressed layers exceed.
    #[error(
        "the error of the outputs cannot be kept within {budget}: with {compressed} of {layers} layers compressed it is {error}"
    )]
    Budget {
        /// What was allowed.
        budget: String,
        /// The smallest error that was reached.
        error: String,
        /// How many layers were compressed then.
        compressed: usize,
        /// Of how many.
        layers: usize,
    },
}

impl WeightError {
    /// The error for people.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let one = |code, fault, help: String| vec![Diagnostic { code, fault, message: self.to_string(), place: None, help }];
        match self {
            WeightError::Spec { option, .. } => one("T0514", Fault::Invalid, usage(option).into()),
            WeightError::NoCalibration(_) => {
                one("T0515", Fault::Invalid, "give `transc compile` typical inputs with `--calib inputs.npz`".into())
            }
            WeightError::NoSite => {
                one("T0516", Fault::Invalid, "layers of other types, and weights that are computed, stay as they are".into())
            }
            WeightError::Budget { error, .. } => {
                one("T0517", Fault::Verify, format!("`--budget max-err={error}` is the nearest that can be met"))
            }
        }
    }
}

/// What an option takes.
fn usage(option: &str) -> &'static str {
    match option {
        "--sparse" => "`--sparse prune-4x1=0.8`, `prune-2:4` or `prune-unstructured=0.9`",
        "--factorize" => "`--factorize dsformer:r=256,k=16` (`,b=32`) or `low-rank:r=1/4`",
        "--int8" => "`--int8 dynamic` or `static[:minmax|:percentile=99.9|:mse][,smooth[=0.5]][,outliers=4]`",
        "--llm-int8" => "`--llm-int8 6.0`: the magnitude from which an input stays in f32",
        "--w4" => "`--w4 g128`: the number of inputs that share a scale",
        _ => "`--budget max-err=0.01`: the relative error of the outputs on the inputs of `--calib`",
    }
}
