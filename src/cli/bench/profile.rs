//! Where the time of a run goes: one row per launch, with the user's node.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use transc::TensorView;
use transc::runtime::{LaunchSizes, Plan, Session, Sizes, Span};
use transc_codegen::probe::Arithmetic;

use super::super::Failure;
use super::super::report::clean;

/// Profiled runs; the median of each launch is shown.
const RUNS: usize = 11;

/// One launch.
pub struct Row {
    /// The user's node.
    pub node: String,
    /// The kernel.
    pub kernel: String,
    /// Kind of its products.
    pub kind: Arithmetic,
    /// Work of the launch.
    pub work: LaunchSizes,
    /// Median time.
    pub ns: f64,
}

impl Row {
    /// Billions of operations per second, two per multiply-add.
    pub fn gflops(&self) -> f64 {
        2.0 * self.work.macs as f64 / self.ns.max(1.0)
    }

    /// Billions of bytes per second.
    pub fn gbytes(&self) -> f64 {
        self.work.bytes as f64 / self.ns.max(1.0)
    }
}

/// All launches, and when each one ran in the run of median length.
pub struct Profile {
    /// In the order of the plan.
    pub rows: Vec<Row>,
    spans: Vec<Span>,
}

/// The kind of arithmetic of each launch.
pub fn kinds(plan: &Plan) -> impl Iterator<Item = Arithmetic> {
    let dtype = |d: transc::runtime::DType| transc::ir::DType::from_onnx(d.number()).unwrap_or(transc::ir::DType::F32);
    plan.launches.iter().map(move |l| Arithmetic::of(dtype(l.work.dtype)))
}

impl Profile {
    /// Profiles some runs.
    pub fn of(session: &Session, sizes: &Sizes, views: &[(&str, TensorView<'_>)]) -> Result<Profile, Failure> {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            runs.push(session.profile_run(views).map_err(transc::Error::from)?);
        }
        let length = |spans: &[Span]| spans.last().map_or(0, |s| s.start_ns + s.ns);
        runs.sort_by_key(|spans| length(spans));
        let plan = session.plan();
        let rows = plan.launches.iter().zip(kinds(plan)).zip(&sizes.launches).enumerate().map(|(i, ((l, kind), work))| {
            let mut ns: Vec<u64> = runs.iter().map(|spans| spans[i].ns).collect();
            ns.sort_unstable();
            let kernel = plan.kernels.get(l.kernel as usize).cloned().unwrap_or_default();
            Row { node: l.node.clone(), kernel, kind, work: *work, ns: ns[RUNS / 2] as f64 }
        });
        Ok(Profile { rows: rows.collect(), spans: runs.swap_remove(RUNS / 2) })
    }

    /// Sum of the launches' times.
    pub fn total_ns(&self) -> f64 {
        self.rows.iter().map(|r| r.ns).sum::<f64>().max(1.0)
    }

    /// For people.
    pub fn text(&self) -> String {
        let total = self.total_ns();
        let mut text = String::from("     time us   share   GFLOP/s      GB/s  kernel, for node\n");
        for r in &self.rows {
            let flops = if r.work.macs == 0 { "-".into() } else { format!("{:.1}", r.gflops()) };
            let _ = writeln!(
                text,
                "{:>12.1} {:>6.1}% {flops:>9} {:>9.1}  {}, for {}",
                r.ns / 1e3,
                r.ns * 100.0 / total,
                r.gbytes(),
                clean(&r.kernel),
                clean(&r.node)
            );
        }
        text
    }

    /// For scripts.
    pub fn json(&self) -> Json {
        let row = |r: &Row| {
            json!({
                "node": r.node, "kernel": r.kernel, "us": r.ns / 1e3, "share": r.ns / self.total_ns(),
                "gflops": r.gflops(), "gbytes": r.gbytes(), "macs": r.work.macs, "bytes": r.work.bytes, "arithmetic": r.kind.name(),
            })
        };
        self.rows.iter().map(row).collect()
    }

    /// The run of median length in the trace event format of Chrome and Perfetto.
    pub fn trace(&self, model: &str) -> Json {
        let event = |(r, s): (&Row, &Span)| {
            json!({
                "name": r.node, "cat": r.kernel, "ph": "X", "pid": 1, "tid": 1,
                "ts": s.start_ns as f64 / 1e3, "dur": s.ns as f64 / 1e3,
                "args": { "kernel": r.kernel, "macs": r.work.macs, "bytes": r.work.bytes },
            })
        };
        let name = json!({ "name": "process_name", "ph": "M", "pid": 1, "args": { "name": model } });
        let events: Vec<Json> = [name].into_iter().chain(self.rows.iter().zip(&self.spans).map(event)).collect();
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }
}
