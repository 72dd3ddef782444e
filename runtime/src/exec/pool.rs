//! A fixed pool of threads: static partition, spin briefly, then park.
//!
//! A launch's units are cut into one contiguous share per thread. Units are independent, so the shares do not change any bit.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::abi::KernelFn;
use crate::mem::AlignedBytes;
use crate::Error;

/// Turns of the waiting loop before a thread parks; a few tens of microseconds.
const SPINS: u32 = 20_000;

/// A launch with all pointers resolved.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) kernel: KernelFn,
    pub(crate) bufs: *const *mut u8,
    pub(crate) syms: *const i64,
    pub(crate) extent: i64,
}

struct Shared {
    /// Number of the current launch; workers wait for it to change.
    epoch: AtomicU64,
    /// Workers that have not finished the current launch.
    busy: AtomicUsize,
    /// First non-zero status of the current launch, 0 if none.
    status: AtomicI32,
    stop: AtomicBool,
    slot: Mutex<Slot>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Slot {
    job: Option<Job>,
    scratch: usize,
    stride: usize,
}

// SAFETY: the pointers of a job are used only while `run` waits for all workers, and `run`'s caller keeps them valid.
unsafe impl Send for Slot {}

/// The threads. The caller of [`Pool::run`] does the first share itself.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    scratch: AlignedBytes,
    stride: usize,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while the lock is held, and the data stays consistent if it did.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    pub(crate) fn new(threads: usize) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            status: AtomicI32::new(0),
            stop: AtomicBool::new(false),
            slot: Mutex::new(Slot { job: None, scratch: 0, stride: 0 }),
            wake: Condvar::new(),
        });
        let mut workers = Vec::new();
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&shared);
            let worker = std::thread::Builder::new().name(format!("transc-{index}")).spawn(move || work(&shared, index, threads));
            workers.push(worker.map_err(|e| Error::Io { path: "thread".into(), message: e.to_string() })?);
        }
        Ok(Self { shared, workers, scratch: AlignedBytes::zeroed(0)?, stride: 0 })
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes sure that every thread has this much scratch memory.
    pub(crate) fn reserve_scratch(&mut self, bytes: usize) -> Result<(), Error> {
        // A gap between the blocks keeps threads off each other's cache lines.
        let stride = bytes.next_multiple_of(4096) + 256;
        if stride > self.stride {
            let total = stride.checked_mul(self.threads()).ok_or(Error::Memory(bytes))?;
            self.scratch = AlignedBytes::zeroed(total)?;
            self.stride = stride;
        }
        Ok(())
    }

    /// Runs a launch and gives its status; on the caller alone unless `parallel`.
    ///
    /// # Safety
    /// The job's kernel must be code for this machine; its pointers must be valid for what the kernel does with them until this returns,
    /// with the scratch memory reserved before.
    pub(crate) unsafe fn run(&mut self, job: Job, parallel: bool) -> i32 {
        let threads = self.threads() as i64;
        if !parallel || threads == 1 || job.extent < 2 {
            // SAFETY: passed on from the caller; all units in one share.
            return unsafe { (job.kernel)(job.bufs, job.syms, self.scratch.as_ptr(), 0, job.extent) };
        }
        let s = &self.shared;
        s.status.store(0, Ordering::Relaxed);
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        {
            let mut slot = lock(&s.slot);
            *slot = Slot { job: Some(job), scratch: self.scratch.as_ptr() as usize, stride: self.stride };
            s.epoch.fetch_add(1, Ordering::Release);
        }
        s.wake.notify_all();
        let (lo, hi) = share(job.extent, 0, threads);
        // SAFETY: passed on from the caller; shares do not overlap.
        let mine = unsafe { (job.kernel)(job.bufs, job.syms, self.scratch.as_ptr(), lo, hi) };
        let mut turns = 0u32;
        while s.busy.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if mine != 0 { mine } else { s.status.load(Ordering::Relaxed) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _slot = lock(&self.shared.slot);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

/// The units of thread `i` of `n`.
fn share(extent: i64, i: i64, n: i64) -> (i64, i64) {
    (extent * i / n, extent * (i + 1) / n)
}

fn work(s: &Shared, index: usize, threads: usize) {
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while s.epoch.load(Ordering::Acquire) == seen && turns < SPINS {
            std::hint::spin_loop();
            turns += 1;
        }
        let slot = {
            let mut slot = lock(&s.slot);
            while s.epoch.load(Ordering::Acquire) == seen {
                slot = s.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            seen = s.epoch.load(Ordering::Acquire);
            *slot
        };
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(job) = slot.job else { continue };
        let (lo, hi) = share(job.extent, index as i64, threads as i64);
        let scratch = (slot.scratch + index * slot.stride) as *mut u8;
        if lo < hi {
            // SAFETY: `Pool::run` waits for `busy` to fall to zero and its caller keeps the pointers valid until then; the share and the
            // scratch block are this thread's alone.
            let status = unsafe { (job.kernel)(job.bufs, job.syms, scratch, lo, hi) };
            if status != 0 {
                s.status.store(status, Ordering::Relaxed);
            }
        }
        s.busy.fetch_sub(1, Ordering::Release);
    }
}
