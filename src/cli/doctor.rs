//! `transc doctor`: what this machine offers.

use std::process::Command;

use serde_json::json;
use transc::{Backend, Target};

use super::Failure;
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
    if as_json {
        source::print_json(&json!({
            "schema_version": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "target": target.name(),
            "features": target.features(),
            "threads": threads,
            "backends": backends.iter().map(|(b, v)| (b.name().to_string(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "linker": linker,
        }));
    } else {
        source::print_text(&format!(
            "transc    {}\ntarget    {}\nfeatures  {features}\nthreads   {threads}\nbackends  {}\nlinker    {linker}\n",
            env!("CARGO_PKG_VERSION"),
            target.name(),
            shown.join(", ")
        ));
    }
    Ok(())
}
