//! `transc doctor`: what this machine offers.

use std::process::Command;

use serde_json::json;
use transc::{Backend, Target};

use transc_codegen::probe::Arithmetic;

use super::Failure;
use super::machine::Machine;
use super::source;

/// Runs the command.
pub fn run(as_json: bool) -> Result<(), Failure> {
    let target = Target::host();
    let linker = Command::new("cc").arg("--version").output().ok().filter(|o| o.status.success());
    let linker = linker.map_or("missing: needed to write .so and .tsc files".to_string(), |o| {
        String::from_utf8_lossy(&o.stdout).lines().next().unwrap_or("").to_string()
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let features = target.features().join(" ");
    let backends: Vec<_> = Backend::ALL.iter().map(|b| (*b, b.version())).collect();
    let shown: Vec<String> =
        backends.iter().map(|(b, v)| format!("{b} {}", v.as_deref().unwrap_or("(not in this build)"))).collect();
    let mut machine = Machine::new(&Arithmetic::ALL, threads, true)?;
    machine.measure()?;
    let handover = Machine::handover_ns(threads)?;
    if as_json {
        source::print_json(&json!({
            "schema_version": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "target": target.name(),
            "features": target.features(),
            "threads": threads,
            "backends": backends.iter().map(|(b, v)| (b.name().to_string(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "linker": linker,
            "peak_gflops": machine.peaks_json(),
            "memory_gbytes": machine.stream(),
            "handover_us": handover / 1e3,
        }));
    } else {
        source::print_text(&format!(
            "transc    {}\ntarget    {}\nfeatures  {features}\nthreads   {threads}\nbackends  {}\nlinker    {linker}\n",
            env!("CARGO_PKG_VERSION"),
            target.name(),
            shown.join(", ")
        ));
        for (kind, [one, all]) in machine.peaks() {
            source::print_text(&format!(
                "peak      {one:.0} GFLOP/s in {} with 1 thread, {all:.0} with {threads}\n",
                kind.name()
            ));
        }
        source::print_text(&format!(
            "memory    {:.0} GB/s with {threads} threads\nhand-over {:.2} us per launch on {threads} threads\n",
            machine.stream().unwrap_or(0.0),
            handover / 1e3
        ));
    }
    Ok(())
}
