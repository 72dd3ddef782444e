//! `transc bench`: latency of one model at one size, alone or against other engines in the same run.

mod page;
mod peers;
mod profile;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use transc::ir::diag::Fault;
use transc::ir::interp::Tensor as Plain;
use transc::runtime::artefact::write_atomic;
use transc::runtime::{Session, Sizes, Tensor};
use transc_codegen::probe::Arithmetic;

use super::Failure;
use super::args::{BenchArgs, ModelArgs, Tolerance};
use super::machine::Machine;
use super::report::{Progress, clean};
use super::run::check;
use super::{source, tensors};
use page::Page;
pub use peers::PeerName;
use peers::{Peer, Setting};
use profile::Profile;

/// Pause before a timed run where engines take turns: the threads of the one before fall asleep.
const REST: Duration = Duration::from_millis(5);

/// Times of runs in milliseconds, ascending.
pub struct Samples(Vec<f64>);

impl Samples {
    fn new(mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        Self(ms)
    }

    /// The times.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// A quantile.
    pub fn at(&self, q: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * q).round() as usize]
    }

    /// The shortest.
    pub fn min(&self) -> f64 {
        self.0[0]
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// How far the middle 80 % lie apart, relative to the median.
    pub fn spread(&self) -> f64 {
        (self.at(0.9) - self.at(0.1)) / self.at(0.5)
    }
}

/// One engine's times.
pub struct Line {
    name: &'static str,
    version: String,
    /// Its runs.
    pub samples: Samples,
    /// Largest difference of an output to transc's, relative to the largest value of the output.
    difference: Option<f64>,
}

impl Line {
    /// Name and version.
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn json(&self) -> Json {
        let s = &self.samples;
        json!({
            "version": self.version, "p50_ms": s.at(0.5), "p90_ms": s.at(0.9), "p99_ms": s.at(0.99), "min_ms": s.min(),
            "mean_ms": s.mean(), "spread": s.spread(), "max_rel_diff": self.difference,
        })
    }
}

/// Runs the command.
pub fn run(a: &BenchArgs, quiet: bool) -> Result<(), Failure> {
    for path in a.trace.iter().chain(&a.report) {
        writable(path)?;
    }
    let peer_model = if a.against.is_empty() { None } else { Some(peer_model(a)?) };
    let mut progress = Progress::new(quiet || a.json);
    let began = Instant::now();
    let session = source::open_session(&a.model, &a.target, a.device, a.threads, &mut progress)?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let inputs = match a.inputs.as_slice() {
        [] => inputs_of(&session, &a.model)?,
        files => tensors::session_inputs(&tensors::read_inputs(files)?, &session)?,
    };
    let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let sizes = session.bind_inputs(&views).map_err(transc::Error::from)?;
    let kinds: Vec<Arithmetic> = profile::kinds(session.plan()).collect();
    // Multiply-adds by kind.
    let macs = |kind: Arithmetic| {
        kinds.iter().zip(&sizes.launches).filter(|(k, _)| **k == kind).map(|(_, l)| l.macs as f64).sum::<f64>()
    };
    let used: Vec<Arithmetic> = Arithmetic::ALL.into_iter().filter(|k| macs(*k) > 0.0).collect();
    let detailed = a.profile || a.trace.is_some() || a.report.is_some();
    progress.phase("peak");
    let mut machine = match a.device {
        None => Some(Machine::new(&used, session.threads(), a.report.is_some())?),
        Some(_) => None,
    };
    machine.as_mut().map_or(Ok(()), Machine::measure)?;
    let folder = scratch_folder()?;
    let mut peers = Vec::new();
    if let Some(model) = peer_model {
        let file = folder.0.join("inputs.npz");
        let plain = inputs.iter().map(|(n, t)| Ok((n.clone(), tensors::to_plain(t)?))).collect::<Result<Vec<_>, Failure>>()?;
        source::write_npz(&file, &plain)?;
        let setting = Setting {
            python: &a.python,
            model,
            inputs: &file,
            folder: &folder.0,
            threads: session.threads(),
            warmup: a.warmup,
            dtype: if used.contains(&Arithmetic::Bf16) { "bf16" } else { "f32" },
        };
        for name in &a.against {
            progress.phase("load engine");
            peers.push(Peer::start(*name, &setting)?);
        }
    }
    progress.phase("run");
    let first = Instant::now();
    let mut outputs = session.run(&views).map_err(transc::Error::from)?;
    let first_ms = first.elapsed().as_secs_f64() * 1e3;
    for _ in 1..a.warmup.max(1) {
        outputs = session.run(&views).map_err(transc::Error::from)?;
    }
    let samples = timed(a, &session, &views, &mut peers)?;
    machine.as_mut().map_or(Ok(()), Machine::measure)?;
    let profile = if detailed { Some(Profile::of(&session, &sizes, &views)?) } else { None };
    progress.end();

    let dims = inputs.iter().map(|(n, t)| format!("{}{:?}", clean(n), t.shape())).collect();
    let mut lines = vec![Line { name: "transc", version: env!("CARGO_PKG_VERSION").into(), samples, difference: None }];
    let outputs = outputs.iter().map(|(n, t)| Ok((n.clone(), tensors::to_plain(t)?))).collect::<Result<Vec<_>, Failure>>()?;
    for p in &mut peers {
        let theirs = tensors::read_npz(&folder.0.join(format!("{}.npz", p.name)))?;
        let samples = Samples::new(std::mem::take(&mut p.times));
        lines.push(Line { name: p.name, version: p.version.clone(), samples, difference: Some(difference(&outputs, &theirs)) });
    }
    drop(peers);
    let p50 = lines[0].samples.at(0.5);
    let gflops = 2.0 * used.iter().map(|k| macs(*k)).sum::<f64>() / p50 / 1e6;
    // The time that the products would take at the peak of their kind.
    let floor = machine.as_ref().map(|m| used.iter().filter_map(|k| Some(2.0 * macs(*k) / m.peak(*k)?[1] / 1e6)).sum::<f64>());
    let share = floor.map(|ms| ms / p50);
    let measured = Measured { session: &session, sizes: &sizes, dims, lines, machine, profile, load_ms, first_ms, gflops, share };
    if a.json {
        source::print_json(&measured.json());
    } else {
        source::print_text(&measured.text(a.profile));
    }
    measured.write(a)?;
    agree(a, &session, &used, &measured.lines)
}

/// What one run of the command found.
struct Measured<'a> {
    session: &'a Session,
    sizes: &'a Sizes,
    /// Names and dims of the inputs.
    dims: Vec<String>,
    /// transc first.
    lines: Vec<Line>,
    machine: Option<Machine>,
    profile: Option<Profile>,
    load_ms: f64,
    first_ms: f64,
    gflops: f64,
    /// Of the time, what the products would take at the peak of the machine.
    share: Option<f64>,
}

impl Measured<'_> {
    /// The fastest other engine, and its median over transc's.
    fn best_peer(&self) -> Option<(&'static str, f64)> {
        let p50 = |l: &Line| l.samples.at(0.5);
        let best = self.lines[1..].iter().min_by(|a, b| p50(a).total_cmp(&p50(b)));
        best.map(|l| (l.name, p50(l) / p50(&self.lines[0])))
    }

    fn weight_bytes(&self) -> u64 {
        self.session.plan().consts.iter().map(|c| c.len_bytes).sum()
    }

    fn scratch_bytes(&self) -> usize {
        self.sizes.scratch_bytes * self.session.threads()
    }

    /// For scripts.
    fn json(&self) -> Json {
        let s = &self.lines[0].samples;
        let others: serde_json::Map<_, _> = self.lines[1..].iter().map(|l| (l.name.to_string(), l.json())).collect();
        let best = self.best_peer();
        json!({
            "schema_version": 1,
            "p50_ms": s.at(0.5), "p90_ms": s.at(0.9), "p99_ms": s.at(0.99), "min_ms": s.min(), "mean_ms": s.mean(), "spread": s.spread(),
            "iters": s.all().len(), "threads": self.session.threads(), "dims": self.dims, "gflops": self.gflops, "peak_share": self.share,
            "peak_gflops": self.machine.as_ref().map_or(json!({}), Machine::peaks_json), "load_ms": self.load_ms, "first_run_ms": self.first_ms,
            "weight_bytes": self.weight_bytes(), "plan_bytes": self.sizes.plan_bytes, "scratch_bytes": self.scratch_bytes(),
            "peers": others, "best_peer": best.map(|b| b.0), "ratio": best.map(|b| b.1),
            "profile": self.profile.as_ref().map(Profile::json),
        })
    }

    /// For people.
    fn text(&self, with_profile: bool) -> String {
        let mut text = format!("{}\n{}", self.dims.join(" "), table(&self.lines));
        if let Some((name, ratio)) = self.best_peer() {
            text.push_str(&format!("ratio of medians {ratio:.2} ({name} / transc)\n"));
        }
        text.push_str(&format!("{} runs, {} threads", self.lines[0].samples.all().len(), self.session.threads()));
        if self.gflops > 0.0 {
            text.push_str(&format!(", {:.1} GFLOP/s", self.gflops));
        }
        if let Some(share) = self.share.filter(|s| *s > 0.0) {
            text.push_str(&format!(", {:.0} % of the peak of this machine", share * 100.0));
        }
        text.push('\n');
        for (kind, [one, all]) in self.machine.iter().flat_map(Machine::peaks) {
            let (kind, threads) = (kind.name(), self.session.threads());
            text.push_str(&format!("peak {kind}: {one:.0} GFLOP/s with 1 thread, {all:.0} with {threads}\n"));
        }
        text.push_str(&format!(
            "memory: weights {:.1} MB, between launches {:.2} MB, scratch {:.2} MB; first run {:.1} ms\n",
            self.weight_bytes() as f64 / 1e6,
            self.sizes.plan_bytes as f64 / 1e6,
            self.scratch_bytes() as f64 / 1e6,
            self.first_ms
        ));
        if let Some(p) = self.profile.as_ref().filter(|_| with_profile) {
            text.push_str(&p.text());
        }
        text
    }

    /// The files that were asked for.
    fn write(&self, a: &BenchArgs) -> Result<(), Failure> {
        let Some(profile) = &self.profile else { return Ok(()) };
        let write = |path: &Path, text: String| {
            write_atomic(path, |f| std::io::Write::write_all(f, text.as_bytes())).map_err(transc::Error::from)
        };
        let plan = self.session.plan();
        if let Some(path) = &a.trace {
            write(path, profile.trace(&plan.name).to_string())?;
        }
        if let Some(path) = &a.report {
            let (dims, lines, sizes, machine) = (&self.dims, &self.lines, self.sizes, self.machine.as_ref());
            write(path, Page { plan, dims, lines, samples: &lines[0].samples, profile, sizes, machine }.html())?;
        }
        Ok(())
    }
}

/// Timed runs; engines take turns in an order that rotates.
fn timed(
    a: &BenchArgs,
    session: &Session,
    views: &[(&str, transc::TensorView<'_>)],
    peers: &mut [Peer],
) -> Result<Samples, Failure> {
    let mut samples = Vec::new();
    let start = Instant::now();
    loop {
        let done = match a.duration {
            Some(limit) => start.elapsed().as_secs_f64() >= limit,
            None => samples.len() >= a.iters.max(1),
        };
        if done && !samples.is_empty() {
            return Ok(Samples::new(samples));
        }
        let (n, turn) = (peers.len() + 1, samples.len());
        for i in (0..n).map(|i| (i + turn) % n) {
            if n > 1 {
                std::thread::sleep(REST);
            }
            match peers.get_mut(i) {
                Some(peer) => peer.run()?,
                None => {
                    let t = Instant::now();
                    session.run(views).map_err(transc::Error::from)?;
                    samples.push(t.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
}

fn table(lines: &[Line]) -> String {
    let mut text =
        format!("{:20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}", "", "p50 ms", "p90 ms", "p99 ms", "min ms", "mean ms", "spread");
    text.push_str(if lines.len() > 1 { "  difference\n" } else { "\n" });
    for l in lines {
        let s = &l.samples;
        text.push_str(&format!(
            "{:20} {:9.3} {:9.3} {:9.3} {:9.3} {:9.3} {:5.1} %",
            l.title(),
            s.at(0.5),
            s.at(0.9),
            s.at(0.99),
            s.min(),
            s.mean(),
            s.spread() * 100.0
        ));
        text.push_str(&l.difference.map_or("\n".into(), |d| format!("  {d:.1e}\n")));
    }
    text
}

/// Exit 5 where an engine computes something else. Lossy steps are meant to differ.
fn agree(a: &BenchArgs, session: &Session, used: &[Arithmetic], lines: &[Line]) -> Result<(), Failure> {
    // In 8 bits one rounding that falls the other way moves everything after it by a step.
    let usual = if used.contains(&Arithmetic::Int8) {
        0.5
    } else if used.contains(&Arithmetic::Bf16) {
        0.1
    } else {
        1e-3
    };
    let limit = a.tolerance.unwrap_or(if session.plan().ledger.is_empty() { usual } else { f64::INFINITY });
    match lines.iter().find(|l| l.difference.is_some_and(|d| d > limit)) {
        None => Ok(()),
        Some(l) => {
            let message = format!("the outputs of {} differ from transc's by more than {limit:e} of their largest value", l.name);
            Err(Failure::one(
                "T0922",
                Fault::Verify,
                message,
                "`transc run --expect` and `transc compare` say where; --tolerance sets the limit",
            ))
        }
    }
}

/// Largest difference over all outputs that have the same name, relative to the largest value of the output; infinite if there are none.
fn difference(ours: &[(String, Plain)], theirs: &[(String, Plain)]) -> f64 {
    let mut worst = f64::INFINITY;
    for (name, o) in ours {
        let Some(pair) = theirs.iter().find(|(n, _)| n == name) else { continue };
        let any = Tolerance { rtol: 0.0, atol: f64::INFINITY };
        let d = check(&[(name.clone(), o.clone())], std::slice::from_ref(pair), any);
        let largest = (0..pair.1.count()).map(|i| pair.1.get_f64(i).abs()).fold(1e-30, f64::max);
        let one = d
            .iter()
            .map(|d| if d.mismatch.is_some() || d.max_abs.is_infinite() { f64::INFINITY } else { d.max_abs / largest })
            .fold(0.0, f64::max);
        worst = if worst.is_infinite() { one } else { worst.max(one) };
    }
    worst
}

/// The file that other engines load.
fn peer_model(a: &BenchArgs) -> Result<&Path, Failure> {
    let path = a.peer_model.as_ref().unwrap_or(&a.model.model);
    if path.is_dir() || path.extension().is_some_and(|e| e == "onnx") {
        return Ok(path);
    }
    let message = format!("`{}` is nothing that other engines can load", path.display());
    Err(Failure::one("T0923", Fault::Invalid, message, "name the ONNX file or Hugging Face folder with --peer-model"))
}

/// Refuses a file that cannot be written before any work is done.
pub fn writable(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !parent.is_dir() {
        let message = format!("`{}` cannot be written", path.display());
        return Err(Failure::one("T0924", Fault::Environment, message, "name a file in a folder that is there"));
    }
    Ok(())
}

/// A folder that is removed when dropped.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch_folder() -> Result<Folder, Failure> {
    let path = std::env::temp_dir().join(format!("transc-bench-{}", std::process::id()));
    std::fs::create_dir_all(&path).map_err(|e| {
        Failure::one(
            "T0924",
            Fault::Environment,
            format!("`{}` cannot be made: {e}", path.display()),
            "set TMPDIR to a folder that is there",
        )
    })?;
    Ok(Folder(path))
}

/// Inputs of the sizes of `--dim` (1 for other dims): floats from a fixed pseudo-random sequence in [-1, 1), integers all 1, which is a valid
/// token, segment and mask entry.
pub fn inputs_of(session: &Session, m: &ModelArgs) -> Result<Vec<(String, Tensor)>, Failure> {
    let dims: Vec<(&str, i64)> = session
        .symbols()
        .iter()
        .map(|s| (s.name.as_str(), m.dims.iter().find(|d| d.name == s.name).map_or(s.min.max(1), |d| d.max)))
        .collect();
    let sizes = session.bind(&dims).map_err(transc::Error::from)?;
    let mut seed = 1u32;
    let mut out = Vec::new();
    for (spec, dims) in session.inputs().iter().zip(&sizes.inputs) {
        let count: usize = dims.iter().product();
        let data: Vec<u8> = if spec.dtype == transc::runtime::DType::F32 {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (f64::from(seed) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
            };
            (0..count).flat_map(|_| next().to_le_bytes()).collect()
        } else {
            let mut one = vec![0u8; spec.dtype.size_bytes()];
            one[0] = 1;
            one.repeat(count)
        };
        let t = Tensor::from_bytes(spec.dtype, dims, &data).map_err(transc::Error::from)?;
        out.push((spec.name.clone(), t));
    }
    Ok(out)
}
