//! The error of the facade: what any phase reports.

use transc_ir::diag::{Diagnose, Diagnostic, Fault};

/// An error of any phase. [`Diagnose::diagnostics`] gives codes, the user's nodes and help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the model.
    #[error(transparent)]
    Frontend(#[from] transc_frontend::FrontendError),
    /// A pass.
    #[error(transparent)]
    Passes(#[from] transc_passes::PassError),
    /// Generating code or writing an artefact.
    #[error(transparent)]
    Codegen(#[from] transc_codegen::CodegenError),
    /// Loading or running.
    #[error(transparent)]
    Runtime(#[from] transc_runtime::Error),
}

impl Diagnose for Error {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        match self {
            Error::Frontend(e) => e.diagnostics(),
            Error::Passes(e) => e.diagnostics(),
            Error::Codegen(e) => e.diagnostics(),
            Error::Runtime(e) => vec![runtime_diagnostic(e)],
        }
    }
}

/// The runtime knows no compiler crate, so its errors are translated here.
fn runtime_diagnostic(e: &transc_runtime::Error) -> Diagnostic {
    use transc_runtime::Fault as F;
    let fault = match e.fault() {
        F::Usage | F::Invalid => Fault::Invalid,
        F::Unsupported => Fault::Unsupported,
        F::Verify => Fault::Verify,
        F::Limit => Fault::Limit,
        F::Environment => Fault::Environment,
        F::Bug => Fault::Bug,
    };
    Diagnostic { code: e.code(), fault, message: e.to_string(), place: None, help: e.help().to_string() }
}
