//! What goes wrong in a pass.

use transc_ir::diag::{Diagnose, Diagnostic, Fault, Place};
use transc_ir::op::TypeError;
use transc_ir::verify::VerifyProblem;

use crate::lossy::cut::CutError;
use crate::lossy::merge_tokens::MergeError;
use crate::lossy::round_products::PrecisionError;
use crate::lossy::weights::WeightError;

/// An error of the pass runner or of a pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// A pass that is not in the table.
    #[error("there is no pass `{0}`")]
    Unknown(String),
    /// A pass that was asked to run on a module of another stage.
    #[error("pass `{pass}` takes a module of stage {want}, this one is at stage {got}")]
    Stage {
        /// The pass.
        pass: &'static str,
        /// The stage it takes.
        want: &'static str,
        /// The stage of the module.
        got: &'static str,
    },
    /// A rewrite that made an ill-typed node.
    #[error("pass `{pass}` made a node with a type error: {source}")]
    Type {
        /// The pass.
        pass: &'static str,
        /// What is wrong with the node.
        source: TypeError,
    },
    /// A merge of tokens that cannot be done.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A cut of layers that cannot be done.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// A compression of weights that cannot be done.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Element types that do not fit.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// A module that does not verify.
    #[error("the module does not verify {when}: {}", problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "))]
    Verify {
        /// Before or after which pass.
        when: String,
        /// Everything that is wrong.
        problems: Vec<VerifyProblem>,
    },
}

impl Diagnose for PassError {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        let one =
            |code, fault, help: &str| vec![Diagnostic { code, fault, message: self.to_string(), place: None, help: help.into() }];
        match self {
            PassError::Unknown(_) => one("T0501", Fault::Invalid, "`transc passes` lists them"),
            PassError::Stage { .. } => one("T0502", Fault::Invalid, "`transc passes` lists what each pass takes"),
            PassError::Merge(e) => e.diagnostics(),
            PassError::Cut(e) => e.diagnostics(),
            PassError::Weights(e) => e.diagnostics(),
            PassError::Precision(e) => e.diagnostics(),
            PassError::Type { .. } => one("T0503", Fault::Bug, ""),
            PassError::Verify { when, problems } => problems
                .iter()
                .map(|p| Diagnostic {
                    code: "T0504",
                    fault: Fault::Bug,
                    message: format!("{} ({when})", p.message),
                    place: (!p.loc.path().is_empty()).then(|| Place { node: p.loc.path().into(), ..Place::default() }),
                    help: String::new(),
                })
                .collect(),
        }
    }
}
