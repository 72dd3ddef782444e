//! The backends: one folder each, one arm of [`Backend`] each, and one trait between them and the rest.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use transc_ir::loops::Kernel;
use transc_runtime::abi::Plan;
use transc_runtime::{Model, Weights};

use crate::compiled::EmitOptions;
use crate::program::Program;
use crate::{CodegenError, Target};

/// A way from loops to code. All are known to every build; see [`Backend::is_built`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// LLVM 22: the fastest code.
    Llvm,
    /// Cranelift: the fastest compiler, and it needs nothing but Rust.
    Clif,
    /// MLIR's own passes down to LLVM: a third opinion.
    Mlir,
}

impl Backend {
    /// Every backend, the best code first.
    pub const ALL: &'static [Backend] = &[Backend::Llvm, Backend::Clif, Backend::Mlir];

    /// The name on the command line and in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Llvm => "llvm",
            Backend::Clif => "clif",
            Backend::Mlir => "mlir",
        }
    }

    /// True if this build contains the backend.
    pub const fn is_built(self) -> bool {
        match self {
            Backend::Llvm => cfg!(feature = "llvm-out"),
            Backend::Clif => cfg!(feature = "clif-out"),
            Backend::Mlir => cfg!(feature = "mlir-out"),
        }
    }

    /// The backends of this build, the best code first.
    pub fn built() -> impl Iterator<Item = Backend> {
        Self::ALL.iter().copied().filter(|b| b.is_built())
    }

    /// Version of the compiler behind the backend, if it is built.
    pub fn version(self) -> Option<String> {
        match self {
            #[cfg(feature = "llvm-out")]
            Backend::Llvm => Some(crate::llvm::version()),
            #[cfg(feature = "clif-out")]
            Backend::Clif => Some(crate::clif::VERSION.into()),
            #[cfg(feature = "mlir-out")]
            Backend::Mlir => Some(crate::llvm::version()),
            #[allow(unreachable_patterns, reason = "every backend may be left out")]
            _ => None,
        }
    }

    /// The target that programs should be lowered for: what the backend can use of `wanted`.
    #[must_use]
    pub fn target(self, wanted: &Target) -> Target {
        match self {
            Backend::Llvm => wanted.clone(),
            // Its dialects have no matrix registers whose numbers we choose.
            Backend::Mlir => wanted.clone().without_matrices(),
            _ if wanted.is_device() => wanted.clone(),
            // Its vectors have 128 bits, and it knows no AVX-512.
            Backend::Clif => Target::X86_64_V3_128,
        }
    }

    /// Compiles the kernels of a program.
    pub(crate) fn compile(self, job: &Job<'_>) -> Result<Box<dyn Code>, CodegenError> {
        match self {
            #[cfg(feature = "llvm-out")]
            Backend::Llvm => crate::llvm::compile(job, self, crate::llvm::module),
            #[cfg(feature = "clif-out")]
            Backend::Clif => crate::clif::compile(job),
            #[cfg(feature = "mlir-out")]
            Backend::Mlir => crate::llvm::compile(job, self, crate::mlir::module),
            #[allow(unreachable_patterns, reason = "every backend may be left out")]
            _ => {
                let _ = job;
                Err(CodegenError::NotBuilt(self.name()))
            }
        }
    }
}

impl Default for Backend {
    /// The best code that this build can make.
    fn default() -> Self {
        Self::built().next().unwrap_or(Backend::Llvm)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = CodegenError;

    fn from_str(s: &str) -> Result<Self, CodegenError> {
        Self::ALL.iter().copied().find(|b| b.name() == s).ok_or_else(|| CodegenError::UnknownBackend(s.into()))
    }
}

/// A text that a backend may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// LLVM IR, optimised.
    LlvmIr,
    /// Cranelift's IR.
    Clif,
    /// Assembly.
    Asm,
    /// PTX of a device.
    Ptx,
}

impl Text {
    fn what(self) -> &'static str {
        match self {
            Text::LlvmIr => "LLVM IR",
            Text::Clif => "Cranelift IR",
            Text::Asm => "assembly",
            Text::Ptx => "PTX",
        }
    }

    /// The refusal of a backend that has no such text.
    pub(crate) fn refused(self, backend: Backend) -> CodegenError {
        CodegenError::NotOffered { backend: backend.name(), what: self.what() }
    }
}

/// What a backend compiles.
pub(crate) struct Job<'a> {
    /// The program; its kernels use only the operations that backends must know.
    pub(crate) program: &'a Program,
    /// What the code may use.
    pub(crate) target: &'a Target,
    /// Options.
    pub(crate) options: &'a EmitOptions,
}

impl Job<'_> {
    /// Compiles the kernels side by side; the results keep their order.
    pub(crate) fn per_kernel<T: Send>(
        &self,
        compile: impl Fn(&Kernel) -> Result<T, CodegenError> + Sync + Send,
    ) -> Result<Vec<T>, CodegenError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.options.threads).build();
        let pool = pool.map_err(|e| CodegenError::Backend { kernel: String::new(), message: e.to_string() })?;
        pool.install(|| self.program.kernels.par_iter().map(compile).collect())
    }
}

/// Code of a program's kernels as a backend made it.
pub(crate) trait Code: Send + Sync {
    /// ELF objects that define the kernels by their names.
    fn objects(&self) -> Result<Cow<'_, [Vec<u8>]>, CodegenError>;

    /// The model in this process.
    fn load(&self, plan: Plan, weights: Weights) -> Result<Model, CodegenError>;

    /// A text of all kernels.
    fn text(&self, job: &Job<'_>, form: Text) -> Result<String, CodegenError>;
}
