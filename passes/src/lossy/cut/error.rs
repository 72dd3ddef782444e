//! Why units of layers are not cut.

use transc_ir::diag::{Diagnostic, Fault, Place};

/// A cut that was asked for and cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
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
    /// A model without layers of the kind that is asked for.
    #[error("the model has no {0} whose units could be cut")]
    NoLayer(&'static str),
    /// A layer that there is not.
    #[error("no feed-forward layer is called `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The layers that there are.
        known: Vec<String>,
    },
    /// A size that a layer cannot have.
    #[error("{why}")]
    Size {
        /// The user's node.
        site: String,
        /// What is wrong.
        why: String,
    },
    /// A mask file that does not fit.
    #[error("the mask `{name}` {why}")]
    Mask {
        /// The tensor or key.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl CutError {
    /// The error for people.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let one = |code, node: &str, help: String| {
            let place = (!node.is_empty()).then(|| Place { node: node.into(), ..Place::default() });
            vec![Diagnostic { code, fault: Fault::Invalid, message: self.to_string(), place, help }]
        };
        match self {
            CutError::Spec { option: "--mat", .. } => {
                one("T0518", "", "`--mat 1/2`, or by layer: `--mat l0-3=1/2,l4=768`".into())
            }
            CutError::Spec { .. } => {
                one("T0518", "", "`--prune-structured heads=0.25,ffn=0.5,layers=0.1`, or `mask=FILE.safetensors`".into())
            }
            CutError::NoLayer(_) => one(
                "T0519",
                "",
                "these are two matrix products by constants around an activation, and products behind attention".into(),
            ),
            CutError::Unknown { known, .. } => {
                let shown: Vec<&str> = known.iter().take(8).map(String::as_str).collect();
                let more = if known.len() > shown.len() { ", .." } else { "" };
                one("T0519", "", format!("l0 to l{}: {}{more}", known.len().saturating_sub(1), shown.join(", ")))
            }
            CutError::Size { site, .. } => {
                one("T0520", site, "choose another share, a number of units, or a mask without it".into())
            }
            CutError::Mask { .. } => {
                one("T0521", "", "docs/sparsity-and-quantisation.md lists the tensors of a mask file".into())
            }
        }
    }
}
