//! The PTX assembler. The tests of the root package use this file, too.

use std::path::Path;
use std::process::Command;

/// Assembles PTX for an architecture such as `sm_80`: what `ptxas -v` says of each kernel, or `None` where there is no assembler.
///
/// # Panics
/// If the assembler refuses the text.
pub fn assemble(text: &str, arch: &str) -> Option<String> {
    let ptxas = std::env::var_os("TRANSC_PTXAS").unwrap_or_else(|| "ptxas".into());
    if !Command::new(&ptxas).arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: PTX is not assembled (no ptxas: set TRANSC_PTXAS, see docs/gpu.md)");
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| -> Box<Path> { dir.path().join(name).into() };
    std::fs::write(path("k.ptx"), text).expect("a file");
    let mut command = Command::new(&ptxas);
    command.arg(format!("-arch={arch}")).arg("-v").arg("-o").arg(&*path("k.cubin")).arg(&*path("k.ptx"));
    let run = command.output().expect("ptxas runs");
    let log = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{arch}: {log}\n{text}");
    Some(log)
}
