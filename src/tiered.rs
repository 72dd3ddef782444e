//! Two tiers: code at once from the fastest compiler, the fastest code when it is ready.

use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use transc_codegen::Backend;
use transc_ir::Module;
use transc_runtime::{Session, Tensor, TensorView};

use crate::{Compiler, Error};

/// A session that answers with Cranelift's code while another thread compiles with the compiler's own backend, and with that code from then
/// on. The two agree within the bounds of rounding, not to the bit; every answer says who gave it.
pub struct Tiered {
    current: Arc<RwLock<(Backend, Session)>>,
    worker: Option<JoinHandle<Result<(), Error>>>,
}

impl Compiler {
    /// A session in two tiers; `threads = 0` means one per core. Without Cranelift in this build, or if the compiler's backend is Cranelift,
    /// there is one tier.
    ///
    /// # Errors
    /// As [`Compiler::compile`] and [`crate::Compiled::session`], of the first tier.
    pub fn tiered(&self, module: &Module, threads: usize) -> Result<Tiered, Error> {
        let last = self.clone();
        let first = if Backend::Clif.is_built() { self.clone().backend(Backend::Clif) } else { self.clone() };
        let code = first.compile(module)?;
        let (from, to) = (code.code().backend(), last.chosen_backend());
        let current = Arc::new(RwLock::new((from, code.session(threads)?)));
        let worker = (from != to).then(|| {
            let (current, module) = (Arc::clone(&current), module.clone());
            std::thread::spawn(move || {
                let session = last.compile(&module)?.session(threads)?;
                *current.write().unwrap_or_else(PoisonError::into_inner) = (to, session);
                Ok(())
            })
        });
        Ok(Tiered { current, worker })
    }
}

impl Tiered {
    /// Runs the model and says whose code ran.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<(Backend, Vec<(String, Tensor)>), Error> {
        let (backend, session) = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((backend, session.run(inputs)?))
    }

    /// Whose code would run now.
    pub fn backend(&self) -> Backend {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for the last tier.
    ///
    /// # Errors
    /// Why it could not be had; the session goes on with the first one.
    pub fn finish(&mut self) -> Result<(), Error> {
        match self.worker.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}
