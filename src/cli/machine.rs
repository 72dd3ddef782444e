//! What this machine can do: measured by code of the same backend that makes the models' code.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value as Json, json};
use transc::runtime::{Session, Tensor};
use transc::{Backend, SessionOptions, Target};
use transc_codegen::probe::{self, Arithmetic};
use transc_codegen::{EmitOptions, Program, compile};

use super::Failure;

/// Floats of a block of the stream, and number of blocks: 128 MiB, more than caches hold.
const STREAM: (usize, usize) = (1 << 16, 1 << 9);
/// Units of arithmetic per thread in one burst, about a millisecond: one of many finds the machine undisturbed.
const UNITS: usize = 32;
/// Bursts of one measurement.
const BURSTS: usize = 12;

/// A program ready to run, and how much one run does.
struct Probe {
    session: Session,
    inputs: Vec<(String, Tensor)>,
    amount: f64,
    best: f64,
}

impl Probe {
    fn new(program: &Program, target: &Target, threads: usize, amount: f64) -> Result<Self, Failure> {
        let code = compile(program, target, &EmitOptions::default())?;
        let options = SessionOptions { threads, ..SessionOptions::default() };
        let session = Session::new(code.jit()?, options).map_err(transc::Error::from)?;
        let sizes = session.bind(&[]).map_err(transc::Error::from)?;
        let mut inputs = Vec::new();
        for (spec, dims) in session.inputs().iter().zip(&sizes.inputs) {
            // Bytes that make small normal numbers of every type, in memory that is really there.
            let bytes = vec![0x3c; dims.iter().product::<usize>() * spec.dtype.size_bytes()];
            inputs.push((spec.name.clone(), Tensor::from_bytes(spec.dtype, dims, &bytes).map_err(transc::Error::from)?));
        }
        Ok(Self { session, inputs, amount, best: 0.0 })
    }

    /// Runs once; what counts is the best rate of all runs, since others only slow it down.
    fn burst(&mut self) -> Result<(), Failure> {
        let views: Vec<_> = self.inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        let start = Instant::now();
        self.session.run(&views).map_err(transc::Error::from)?;
        self.best = self.best.max(self.amount / start.elapsed().as_secs_f64() / 1e9);
        Ok(())
    }
}

/// Peaks of a machine: operations (two per multiply-add) and bytes, in billions per second.
pub struct Machine {
    /// With one thread, and with those of the session.
    arithmetic: BTreeMap<Arithmetic, [Probe; 2]>,
    stream: Option<Probe>,
}

impl Machine {
    /// Probes for these kinds of arithmetic, and for memory if wanted.
    pub fn new(kinds: &[Arithmetic], threads: usize, stream: bool) -> Result<Self, Failure> {
        let target = Backend::default().target(&Target::host());
        let probe = |kind: Arithmetic, threads: usize| {
            let (program, macs) = probe::arithmetic(kind, &target, UNITS * threads);
            Probe::new(&program, &target, threads, 2.0 * macs as f64 * (UNITS * threads) as f64)
        };
        let mut arithmetic = BTreeMap::new();
        for kind in kinds {
            arithmetic.insert(*kind, [probe(*kind, 1)?, probe(*kind, threads)?]);
        }
        let (block, units) = STREAM;
        let memory = || Probe::new(&probe::stream(&target, units, block), &target, threads, (4 * block * units) as f64);
        Ok(Self { arithmetic, stream: if stream { Some(memory()?) } else { None } })
    }

    /// What it costs to hand work to `threads` threads and to wait for them, in nanoseconds: how much longer a launch with some microseconds of
    /// work for each of them takes than the same work on one thread.
    pub fn handover_ns(threads: usize) -> Result<f64, Failure> {
        const LAUNCHES: usize = 500;
        let target = Backend::default().target(&Target::host());
        let launch = |threads: usize| {
            let p = Probe::new(&probe::handover(&target, LAUNCHES, threads), &target, threads, 1.0)?;
            let views: Vec<_> = p.inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
            let mut ns: Vec<u64> = Vec::new();
            for _ in 0..5 {
                ns.extend(p.session.profile_run(&views).map_err(transc::Error::from)?.iter().map(|s| s.ns));
            }
            ns.sort_unstable();
            Ok::<_, Failure>(ns[ns.len() / 2] as f64)
        };
        Ok(launch(threads)? - launch(1)?)
    }

    /// Measures for some tens of milliseconds; the best of all calls counts.
    pub fn measure(&mut self) -> Result<(), Failure> {
        for _ in 0..BURSTS {
            self.arithmetic.values_mut().flatten().chain(&mut self.stream).try_for_each(Probe::burst)?;
        }
        Ok(())
    }

    /// Billions of operations per second with one thread and with all.
    pub fn peak(&self, kind: Arithmetic) -> Option<[f64; 2]> {
        self.arithmetic.get(&kind).map(|p| [p[0].best, p[1].best])
    }

    /// All peaks.
    pub fn peaks(&self) -> impl Iterator<Item = (Arithmetic, [f64; 2])> {
        self.arithmetic.iter().map(|(k, p)| (*k, [p[0].best, p[1].best]))
    }

    /// All peaks, for scripts.
    pub fn peaks_json(&self) -> Json {
        self.peaks().map(|(k, [one, all])| (k.name(), json!({ "one_thread": one, "all_threads": all }))).collect()
    }

    /// Billions of bytes per second from memory, if measured.
    pub fn stream(&self) -> Option<f64> {
        self.stream.as_ref().map(|p| p.best)
    }
}
