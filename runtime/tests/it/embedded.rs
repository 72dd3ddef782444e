//! The runtime as a static library, linked into a compiled model and used from C.

use std::path::{Path, PathBuf};
use std::process::Command;

use transc_runtime::{Model, Session, SessionOptions, header};

use crate::kit;

/// The profile of the embedded runtime: small, and whole-program optimised so that the linker can drop what is not used.
const PROFILE: [&str; 4] = ["lto='fat'", "codegen-units=1", "opt-level=2", "debug=false"];

/// Builds the static library.
fn static_library() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedded");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUSTFLAGS").args(["rustc", "--quiet", "--offline", "--release"]);
    cargo.args(["--crate-type", "staticlib", "--features", "embedded", "--target-dir"]).arg(&target);
    for setting in PROFILE {
        cargo.args(["--config", &format!("profile.release.{setting}")]);
    }
    let out = cargo.output().expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    target.join("release/libtransc_runtime.a")
}

/// Links `model.c` with a bias and the static library.
fn link_model(dir: &Path, bias: &str, archive: &Path, out: &str) {
    let file = |name: &str| dir.join(name).to_str().expect("utf-8").to_string();
    kit::write_model_data(&dir.join("data.h"));
    kit::compile_model(&dir.join("model.o"), bias, &["-c", &format!("-DMODEL_DATA=\"{}\"", file("data.h"))]);
    std::fs::write(file("exports"), "{ global: transc_*; local: *; };").expect("written");
    // With -Bsymbolic a library uses its own model, even if another one is in the process.
    let options = ["-shared", "-Wl,--gc-sections,-Bsymbolic,-s,--undefined=transc_open"];
    let script = format!("-Wl,--version-script={}", file("exports"));
    let inputs = [&file("model.o"), archive.to_str().expect("utf-8"), "-lgcc_s", "-lm", "-lc"];
    kit::run("cc", &[&options[..], &[&script], &inputs, &["-o", &file(out)]].concat());
}

#[test]
fn c_programs_run_models_with_embedded_runtime() {
    if !kit::have_cc() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str| dir.path().join(name).to_str().expect("utf-8").to_string();
    let archive = static_library();
    link_model(dir.path(), "1", &archive, "libsum.so");
    link_model(dir.path(), "2", &archive, "other.so");

    std::fs::write(file("sum.h"), header::c_header(&kit::plan(), "sum")).expect("written");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    let include = format!("-I{}", dir.path().display());
    let strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", &include];
    let libs = format!("-L{}", dir.path().display());
    kit::run(
        "cc",
        &[&strict[..], &[&format!("{tests}/main.c"), &libs, "-lsum", "-Wl,-rpath,$ORIGIN", "-o", &file("main")]].concat(),
    );
    kit::run(&file("main"), &[]);
    kit::run("cc", &[&strict[..], &["-D_GNU_SOURCE", &format!("{tests}/two.c"), "-ldl", "-o", &file("two")]].concat());
    kit::run(&file("two"), &[&file("libsum.so"), &file("other.so")]);

    // The same file opens from Rust, whose copy of the runtime does not meet the one inside.
    let session = Session::new(Model::open(file("libsum.so")).expect("opens"), SessionOptions::default()).expect("a session");
    kit::check(&session, 40, 1.0);

    let symbols = kit::run("nm", &["-D", "--defined-only", &file("libsum.so")]);
    assert!(symbols.lines().count() > 10 && symbols.lines().all(|l| l.contains(" transc_")), "{symbols}");
    let needed = kit::run("objdump", &["-p", &file("libsum.so")]);
    for library in needed.lines().filter_map(|l| l.trim().strip_prefix("NEEDED")).map(str::trim) {
        let known = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
        assert!(known.iter().any(|k| library.starts_with(k)), "the library needs {library}");
    }
}
