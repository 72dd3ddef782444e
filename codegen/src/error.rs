//! Errors of code generation.

use crate::Target;
use transc_ir::diag::{Diagnose, Diagnostic, Fault, Place};

/// What goes wrong between a module and an artefact.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// A node without a lowering.
    #[error("`{op}` of {ty} has no lowering")]
    NoLowering {
        /// Mnemonic.
        op: String,
        /// Type of the result.
        ty: String,
        /// The user's node.
        node: String,
    },
    /// Nodes without a form in MLIR: the user's node, and what has none.
    #[error("{} parts of the model have no form in MLIR", .0.len())]
    NoMlir(Vec<(String, String)>),
    /// A target that is not known.
    #[error("there is no target `{0}`")]
    UnknownTarget(String),
    /// A device beside other targets.
    #[error("an artefact for a device holds no other code")]
    MixedTargets,
    /// A backend that is not known.
    #[error("there is no backend `{0}`")]
    UnknownBackend(String),
    /// A kernel that the back end refuses.
    #[error("kernel `{kernel}`: {message}")]
    Backend {
        /// Symbol name.
        kernel: String,
        /// What it says.
        message: String,
    },
    /// No linker, or it failed.
    #[error("the linker failed: {0}")]
    Linker(String),
    /// A file that cannot be written.
    #[error(transparent)]
    Runtime(#[from] transc_runtime::Error),
    /// A function that a device does not have.
    #[error("there is no {function} on devices (in `{kernel}`)")]
    NoFunction {
        /// The function and its type.
        function: String,
        /// The kernel.
        kernel: String,
    },
    /// A form of output that the target does not have.
    #[error("code for {target} has no {form}")]
    NoForm {
        /// The form.
        form: &'static str,
        /// The target.
        target: &'static str,
    },
    /// A backend that this build leaves out.
    #[error("this build has no backend `{0}`")]
    NotBuilt(&'static str),
    /// A text that a backend does not have.
    #[error("the backend `{backend}` has no {what}")]
    NotOffered {
        /// The backend.
        backend: &'static str,
        /// The text.
        what: &'static str,
    },
}

impl Diagnose for CodegenError {
    fn diagnostics(&self) -> Vec<Diagnostic> {
        if let CodegenError::NoMlir(problems) = self {
            let one = |(node, message): &(String, String)| Diagnostic {
                code: "T0608",
                fault: Fault::Unsupported,
                message: message.clone(),
                place: (!node.is_empty()).then(|| Place { node: node.clone(), ..Place::default() }),
                help: String::new(),
            };
            return problems.iter().map(one).collect();
        }
        let targets = format!("targets: {}", Target::names().collect::<Vec<_>>().join(", "));
        let (code, fault, help) = match self {
            CodegenError::NoLowering { .. } => ("T0601", Fault::Unsupported, "the interpreter runs it: transc run --interpret"),
            CodegenError::UnknownTarget(_) => ("T0602", Fault::Invalid, targets.as_str()),
            CodegenError::MixedTargets => ("T0615", Fault::Invalid, "compile for the device and for the host into two files"),
            CodegenError::Backend { .. } => ("T0603", Fault::Bug, ""),
            CodegenError::Linker(_) => {
                ("T0604", Fault::Environment, "install a C compiler driver (`cc`); `transc doctor` shows what is found")
            }
            CodegenError::NoMlir(_) => ("T0608", Fault::Unsupported, ""),
            CodegenError::NotBuilt(_) => (
                "T0605",
                Fault::Environment,
                "build transc with the backend's feature (`llvm-out`, `clif-out`, `mlir-out`), or choose another --backend",
            ),
            CodegenError::UnknownBackend(_) => {
                ("T0606", Fault::Invalid, "backends: llvm, clif, mlir; `transc doctor` shows what is built")
            }
            CodegenError::NotOffered { .. } => ("T0607", Fault::Unsupported, "choose another --backend or another --emit"),
            CodegenError::NoFunction { .. } => ("T0610", Fault::Unsupported, "compile for the host"),
            CodegenError::NoForm { .. } => {
                ("T0609", Fault::Unsupported, "devices have tsc, ptx, llvm-ir, loops; the host has all but ptx")
            }
            CodegenError::Runtime(e) => {
                let fault = if e.fault() == transc_runtime::Fault::Environment { Fault::Environment } else { Fault::Bug };
                (e.code(), fault, e.help())
            }
        };
        let place = match self {
            CodegenError::NoLowering { node, .. } if !node.is_empty() => Some(Place { node: node.clone(), ..Place::default() }),
            _ => None,
        };
        vec![Diagnostic { code, fault, message: self.to_string(), place, help: help.into() }]
    }
}
