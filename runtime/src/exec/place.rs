//! On which processors threads may run.

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// A set of processors.
#[derive(Clone, Copy)]
pub(crate) struct Processors(libc::cpu_set_t);

impl Processors {
    /// Those that this thread may run on; `None` if the system does not say.
    pub(crate) fn allowed() -> Option<Processors> {
        // SAFETY: the set is plain bits, for which zero is a value; the call writes at most its size.
        let (set, status) = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            let status = libc::sched_getaffinity(0, size_of_val(&set), &mut set);
            (set, status)
        };
        (status == 0).then_some(Processors(set))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        // SAFETY: reads the set.
        usize::try_from(unsafe { libc::CPU_COUNT(&self.0) }).unwrap_or(0)
    }

    /// The others; `None` if it is not among them.
    pub(crate) fn without(&self, processor: usize) -> Option<Processors> {
        let mut set = self.0;
        // SAFETY: both calls stay inside a set for numbers below its size in bits.
        let had = processor < 8 * size_of_val(&set) && unsafe { libc::CPU_ISSET(processor, &set) };
        had.then(|| {
            // SAFETY: as above.
            unsafe { libc::CPU_CLR(processor, &mut set) };
            Processors(set)
        })
    }

    /// Restricts a thread to them; where the system refuses, the thread stays where it may be.
    pub(crate) fn keep<T>(&self, thread: &JoinHandle<T>) {
        // SAFETY: a handle that was not joined names a thread that still has its entry; the call reads the set.
        unsafe { libc::pthread_setaffinity_np(thread.as_pthread_t() as libc::pthread_t, size_of_val(&self.0), &self.0) };
    }
}

/// The processor that this thread runs on; `None` if the system does not say.
pub(crate) fn here() -> Option<usize> {
    // SAFETY: takes nothing and writes nothing.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}
