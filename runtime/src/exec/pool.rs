//! A fixed pool of threads: static partition, spin briefly, then park.
//!
//! A launch's units are cut into one contiguous share per thread. Units are independent, so the cut does not change any bit.
//!
//! One atomic word says which launch is current and how many threads take part in it. Each share but the caller's has a claim: the worker
//! takes it, or the caller does after its own share, so a worker that is still waking up holds nobody up. Whoever takes a claim reads the
//! task, does the share and counts `busy` down; nobody else looks at the task. The caller writes the next one only after `busy` has reached 0.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::place::{self, Processors};
use crate::Error;
use crate::abi::KernelFn;
use crate::mem::AlignedBytes;

/// Each thread that takes part gets at least this much estimated work: about what it costs to hand a share over.
const MIN_SHARE_NS: i64 = 4_000;

/// Most threads of a pool; they are counted in the lower bits of [`Shared::word`].
const MAX_THREADS: usize = 1 << 10;

/// Turns of a waiting loop between two looks at the clock.
const TURNS: u32 = 32;

/// How long the caller spins for the last worker before it offers its processor to others.
const CALLER_SPIN: Duration = Duration::from_micros(200);

/// A launch with all pointers resolved.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) kernel: KernelFn,
    pub(crate) bufs: *const *mut u8,
    pub(crate) syms: *const i64,
    pub(crate) extent: i64,
    pub(crate) cost_ns: i64,
}

/// A job and where its threads find their scratch blocks.
#[derive(Clone, Copy)]
struct Task {
    job: Job,
    scratch: *mut u8,
    stride: usize,
    /// Number of shares.
    active: usize,
}

/// Keeps what different threads write on different cache lines; processors fetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Number of the launch times [`WORD_STEP`], plus the number of threads that take part.
    word: Padded<AtomicU64>,
    /// Shares of the current launch that are not finished, the caller's own not counted.
    busy: Padded<AtomicUsize>,
    /// The failure of the lowest share: its index in the upper half, the kernel's status in the lower; `NO_FAILURE` if none.
    failure: AtomicU64,
    stop: AtomicBool,
    task: UnsafeCell<Option<Task>>,
    /// One for each worker.
    seats: Vec<Padded<Seat>>,
    spin: Duration,
}

/// The place of one worker in the pool.
#[derive(Default)]
struct Seat {
    /// The word of the launch whose share is to be taken here; 0 if it was taken.
    claim: AtomicU64,
    /// Whether the worker is parked or about to be.
    parked: AtomicBool,
    /// The worker's thread, set when it starts.
    thread: OnceLock<Thread>,
}

const NO_FAILURE: u64 = u64::MAX;

// SAFETY: `task` is written only between launches (`busy` is 0, acquired), and read only by who took a claim of the current launch, which was
// published after the task and counts in `busy`. The pointers inside are used only during `Pool::run`, whose caller vouches for them.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// The threads. The caller of [`Pool::run`] does the first share itself.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where the threads may run, if that is enough for each to have a processor of its own.
    processors: Option<Processors>,
    /// The processor that the workers are kept off.
    kept_off: Option<usize>,
    scratch: AlignedBytes,
    stride: usize,
    launches: u64,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; idle ones spin for `spin` before they park.
    pub(crate) fn new(threads: usize, spin: Duration) -> Result<Self, Error> {
        let refused = |message: String| Error::Io { path: "threads".into(), message };
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Usage(format!("{threads} threads; 1 to {MAX_THREADS} are possible")));
        }
        let shared = Arc::new(Shared {
            word: Padded(AtomicU64::new(0)),
            busy: Padded(AtomicUsize::new(0)),
            failure: AtomicU64::new(NO_FAILURE),
            stop: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            seats: (1..threads).map(|_| Padded(Seat::default())).collect(),
            spin,
        });
        // Filled step by step, so that an error on the way stops the threads that are already there.
        let processors = Processors::allowed().filter(|p| p.count() >= threads);
        let scratch = AlignedBytes::zeroed(0)?;
        let mut pool = Self { shared, workers: Vec::new(), processors, kept_off: None, scratch, stride: 0, launches: 0 };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("transc-{index}")).spawn(move || work(&shared, index));
            pool.workers.push(worker.map_err(|e| refused(e.to_string()))?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes sure that every thread has this much scratch memory.
    pub(crate) fn reserve_scratch(&mut self, bytes: usize) -> Result<(), Error> {
        // Whole pages and a gap, so that the blocks of two threads share no cache line and do not map to the same sets.
        let stride = bytes.checked_next_multiple_of(4096).and_then(|b| b.checked_add(256)).ok_or(Error::Memory(bytes))?;
        if stride > self.stride {
            let total = stride.checked_mul(self.threads()).ok_or(Error::Memory(bytes))?;
            self.scratch = AlignedBytes::zeroed(total)?;
            self.stride = stride;
        }
        Ok(())
    }

    /// Keeps the workers off this thread's processor: systems that wake a thread where its waker runs would let it wait there for a time slice, which is
    /// longer than most runs.
    fn make_room(&mut self) {
        let here = place::here();
        if here == self.kept_off {
            return;
        }
        self.kept_off = here;
        let Some(others) = self.processors.zip(here).and_then(|(all, here)| all.without(here)) else { return };
        self.workers.iter().for_each(|worker| others.keep(worker));
    }

    /// Runs a launch on as many threads as its cost is worth, and gives its status: that of the lowest unit that failed, or 0.
    ///
    /// # Safety
    /// The job's kernel must be code for this machine that keeps the contract of [`KernelFn`]; its pointers must be valid for what the
    /// kernel does with them until this returns, and its scratch memory must have been reserved.
    pub(crate) unsafe fn run(&mut self, job: Job) -> i32 {
        if job.extent <= 0 {
            return 0;
        }
        let worth = (job.cost_ns / MIN_SHARE_NS).min(job.extent);
        let active = usize::try_from(worth).unwrap_or(1).clamp(1, self.threads());
        if active == 1 {
            // SAFETY: passed on from the caller; all units in one share.
            return unsafe { (job.kernel)(job.bufs, job.syms, self.scratch.as_ptr(), 0, job.extent) };
        }
        if self.shared.seats[..active - 1].iter().any(|seat| seat.0.parked.load(Ordering::Relaxed)) {
            self.make_room();
        }
        let s = &*self.shared;
        let task = Task { job, scratch: self.scratch.as_ptr(), stride: self.stride, active };
        s.failure.store(NO_FAILURE, Ordering::Relaxed);
        s.busy.0.store(active - 1, Ordering::Relaxed);
        // SAFETY: all claims of the last launch are finished, see `Shared`; `&mut self` keeps other callers away.
        unsafe { *s.task.get() = Some(task) };
        self.launches += 1;
        let word = self.launches * WORD_STEP + active as u64;
        let seats = &s.seats[..active - 1];
        for seat in seats {
            seat.0.claim.store(word, Ordering::Release);
        }
        // The order of this store and of the loads of `parked` matters, see `work`.
        s.word.0.store(word, Ordering::SeqCst);
        s.wake(0, active);
        // SAFETY: passed on from the caller; share 0 is this thread's.
        unsafe { s.do_share(task, 0) };
        for (i, seat) in seats.iter().enumerate() {
            if seat.0.take(word) {
                // SAFETY: passed on from the caller; the claim makes this share this thread's.
                unsafe { s.do_share(task, i + 1) };
                s.busy.0.fetch_sub(1, Ordering::Release);
            }
        }
        wait(CALLER_SPIN, || s.busy.0.load(Ordering::Acquire) == 0);
        while s.busy.0.load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        match s.failure.load(Ordering::Relaxed) {
            NO_FAILURE => 0,
            failure => failure as u32 as i32,
        }
    }
}

impl Shared {
    /// Wakes the two workers below `index` in a binary tree that the caller is the root of, as far as they take part and are parked: waking
    /// costs microseconds, so the workers share it.
    fn wake(&self, index: usize, active: usize) {
        for seat in (2 * index + 1..=2 * index + 2).take_while(|child| *child < active).map(|child| &self.seats[child - 1].0) {
            if seat.parked.load(Ordering::SeqCst)
                && let Some(thread) = seat.thread.get()
            {
                thread.unpark();
            }
        }
    }

    /// Runs the kernel on one share and keeps its failure.
    ///
    /// # Safety
    /// The task's pointers must be valid, and nobody else may do this share or use its scratch block.
    unsafe fn do_share(&self, task: Task, index: usize) {
        let Task { job, scratch, stride, active } = task;
        let (lo, hi) = share(job.extent, index, active);
        // SAFETY: the scratch memory has a block of `stride` bytes for every thread, hence for every share.
        let scratch = unsafe { scratch.add(index * stride) };
        // SAFETY: by contract.
        let status = unsafe { (job.kernel)(job.bufs, job.syms, scratch, lo, hi) };
        if status != 0 {
            self.failure.fetch_min((index as u64) << 32 | u64::from(status as u32), Ordering::Relaxed);
        }
    }
}

impl Seat {
    /// Takes the share of a launch; false if it was taken, or belongs to another launch.
    fn take(&self, word: u64) -> bool {
        self.claim.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

/// What a launch adds to [`Shared::word`].
const WORD_STEP: u64 = 2 * MAX_THREADS as u64;

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A launch in which nobody takes part.
        self.shared.word.0.store((self.launches + 1) * WORD_STEP, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker runs no code that panics, and there is nobody left to tell.
            let _ = worker.join();
        }
    }
}

/// The units `lo..hi` of thread `i` of `n`.
fn share(extent: i64, i: usize, n: usize) -> (i64, i64) {
    let (i, n) = (i as i64, n as i64);
    let at = |i: i64| extent / n * i + (extent % n).min(i);
    (at(i), at(i + 1))
}

/// Spins until `done`, at most about `limit`; whether it was done.
fn wait(limit: Duration, done: impl Fn() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..TURNS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        // The first round needs no clock: most waits are short.
        if since.get_or_insert_with(Instant::now).elapsed() >= limit {
            return done();
        }
    }
}

fn work(s: &Shared, index: usize) {
    let seat = &s.seats[index - 1].0;
    seat.thread.get_or_init(std::thread::current);
    let mut seen = 0;
    loop {
        if !wait(s.spin, || s.word.0.load(Ordering::Acquire) != seen) {
            // Either this thread sees the new word, or who wakes it sees that it is parked: each stores, then loads, in one total order.
            seat.parked.store(true, Ordering::SeqCst);
            while s.word.0.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            seat.parked.store(false, Ordering::Relaxed);
        }
        seen = s.word.0.load(Ordering::Acquire);
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        let active = (seen % WORD_STEP) as usize;
        s.wake(index, active);
        if index >= active || !seat.take(seen) {
            continue;
        }
        // SAFETY: this worker took a claim of the current launch, so the caller wrote the task before and waits for `busy`.
        if let Some(task) = unsafe { *s.task.get() } {
            // SAFETY: the caller of `Pool::run` keeps the pointers valid until `busy` is 0; the claim makes the share this thread's.
            unsafe { s.do_share(task, index) };
        }
        s.busy.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds 1 to each unit of its only buffer and checks that its scratch block is its own; fails at units below `syms[0]`.
    extern "C" fn count(bufs: *const *mut u8, syms: *const i64, scratch: *mut u8, lo: i64, hi: i64) -> i32 {
        for i in lo..hi {
            // SAFETY: the tests give a buffer of `extent` numbers, one symbol and 64 bytes of scratch.
            unsafe {
                scratch.cast::<i64>().write_volatile(i);
                if i < *syms {
                    return 100 + i as i32;
                }
                let unit = (*bufs).cast::<i64>().add(i as usize);
                *unit += scratch.cast::<i64>().read_volatile() - i + 1;
            }
        }
        0
    }

    fn launch(pool: &mut Pool, units: &mut [i64], cost_ns: i64, fail_below: i64) -> i32 {
        let buf: *mut u8 = units.as_mut_ptr().cast();
        let job = Job { kernel: count, bufs: &buf, syms: &fail_below, extent: units.len() as i64, cost_ns };
        // SAFETY: `count` touches the buffer's units, one symbol and 64 bytes of scratch.
        unsafe { pool.run(job) }
    }

    fn pool(threads: usize, spin: Duration) -> Pool {
        let mut pool = Pool::new(threads, spin).expect("threads");
        pool.reserve_scratch(64).expect("memory");
        pool
    }

    #[test]
    fn every_unit_is_done_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 4, 7] {
            // Without spinning every hand-over goes through parking.
            for spin in [Duration::ZERO, Duration::from_micros(50)] {
                let mut pool = pool(threads, spin);
                let mut units = [0i64; 23];
                for n in 0..2000 {
                    let cost = if n % 7 == 0 { 0 } else { MIN_SHARE_NS * (n % 9) };
                    assert_eq!(launch(&mut pool, &mut units[..(n % 24) as usize], cost, 0), 0);
                }
                let expected: Vec<i64> = (0..23).map(|i| (0..2000).filter(|n| n % 24 > i).count() as i64).collect();
                assert_eq!(units.as_slice(), expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn workers_are_kept_off_the_callers_processor() {
        let count = |p: Option<Processors>| p.map_or(0, |p| p.count());
        let allowed = count(Processors::allowed());
        if allowed < 2 {
            return eprintln!("skipped: there is one processor");
        }
        let mut pool = pool(2, Duration::ZERO);
        assert_eq!(pool.processors.map_or(0, |p| p.count()), allowed);
        pool.make_room();
        let here = pool.kept_off.expect("the system says it");
        let others = pool.processors.and_then(|p| p.without(here)).expect("it is one of them");
        assert_eq!(others.count(), allowed - 1);
        assert!(others.without(here).is_none() && others.without(usize::MAX).is_none());
        assert_eq!(launch(&mut pool, &mut [0; 16], i64::MAX, 0), 0);
        assert!(self::pool(allowed + 1, Duration::ZERO).processors.is_none());
    }

    #[test]
    fn the_lowest_unit_that_fails_gives_the_status() {
        for threads in [1, 2, 4] {
            let mut pool = pool(threads, Duration::from_micros(50));
            for _ in 0..100 {
                assert_eq!(launch(&mut pool, &mut [0; 16], i64::MAX, 16), 100);
                assert_eq!(launch(&mut pool, &mut [0; 16], i64::MAX, 0), 0);
            }
        }
    }

    #[test]
    fn shares_cover_all_units_without_overflow() {
        for extent in [0, 1, 5, 64, i64::MAX] {
            for n in [1, 2, 3, 7] {
                assert_eq!(share(extent, 0, n).0, 0);
                assert_eq!(share(extent, n - 1, n).1, extent);
                assert!((1..n).all(|i| share(extent, i - 1, n).1 == share(extent, i, n).0));
            }
        }
    }

    #[test]
    fn too_many_threads_are_refused() {
        assert!(matches!(Pool::new(MAX_THREADS + 1, Duration::ZERO), Err(Error::Usage(_))));
    }
}
