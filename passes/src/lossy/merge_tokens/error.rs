//! Why tokens are not merged.

use transc_ir::Loc;
use transc_ir::diag::{Diagnostic, Fault, Place};
use transc_ir::op::Planner;

/// A merge that was asked for and cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A codec that does not exist.
    #[error("there is no codec `{name}` that merges tokens")]
    Codec {
        /// What was asked for.
        name: String,
    },
    /// A codec with parameters that it does not have.
    #[error("`{text}` does not say how tokens are merged: {why}")]
    Spec {
        /// What was asked for.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// As many tokens to remove as there are.
    #[error("{remove} tokens are to be removed where there are {tokens}")]
    TooMany {
        /// How many are to be removed.
        remove: usize,
        /// How many there are.
        tokens: usize,
        /// Where.
        site: Loc,
    },
    /// A model without a place where tokens may be merged.
    #[error("tokens can be merged nowhere in this model")]
    NoSite {
        /// Why not, for each attention.
        reasons: Vec<(Loc, String)>,
    },
}

impl MergeError {
    /// The error for people.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let place = |loc: &Loc| (!loc.path().is_empty()).then(|| Place { node: loc.path().into(), ..Place::default() });
        let one = |code, place, help: String| Diagnostic { code, fault: Fault::Invalid, message: self.to_string(), place, help };
        match self {
            MergeError::Codec { .. } => {
                let names: Vec<&str> = Planner::ALL.iter().map(|p| p.name()).collect();
                vec![one("T0510", None, format!("codecs: {}; for example `tome:r=8`", names.join(", ")))]
            }
            MergeError::Spec { .. } => {
                vec![one("T0511", None, "`tome:r=N` removes N tokens per block; `,inflect=-1` removes most of them early".into())]
            }
            MergeError::TooMany { site, .. } => {
                vec![one("T0512", place(site), "choose a smaller `r`; at most half of the tokens go in one block".into())]
            }
            MergeError::NoSite { reasons } => {
                let help = "merging needs blocks of self-attention with a residual sum, whose tokens are treated alike up to the read-out";
                let mut all = vec![one("T0513", None, help.into())];
                all.extend(reasons.iter().map(|(loc, why)| Diagnostic {
                    code: "T0513",
                    fault: Fault::Invalid,
                    message: format!("no merge here: {why}"),
                    place: place(loc),
                    help: String::new(),
                }));
                all
            }
        }
    }
}
