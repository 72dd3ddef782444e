//! Builds the runtime as a static library, which compiled models contain.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    println!("cargo:rerun-if-changed=../runtime/src");
    println!("cargo:rerun-if-changed=../runtime/Cargo.toml");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_MLIR_OUT").is_some() {
        mlir_c_api(&out);
    }
    let target_dir = out.join("runtime");
    // The outer build's flags are for the compiler itself, not for what it links into models.
    let flags = [root.clone(), out.clone(), home()].map(|p| format!("--remap-path-prefix={}=.", full(&p).display())).join("\x1f");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&root)
        .args([
            "rustc",
            "-p",
            "transc-runtime",
            "--release",
            "--features",
            "embedded",
            "--crate-type",
            "staticlib",
            "--target-dir",
        ])
        .arg(&target_dir)
        .args([
            "--config",
            "profile.release.lto=\"fat\"",
            "--config",
            "profile.release.codegen-units=1",
            "--config",
            "profile.release.debug=false",
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the runtime library could not be built");
    let name = "libtransc_runtime.a";
    std::fs::copy(target_dir.join("release").join(name), out.join(name)).expect("the runtime library");
}

/// The packages hold MLIR's C interface as static archives beside the shared `libMLIR`, and no `libMLIR-C.so`, for which `mlir-sys` asks. A
/// linker script of that name stands for the archives; what they need comes from `libMLIR`, and so from the one shared LLVM.
fn mlir_c_api(out: &Path) {
    println!("cargo:rerun-if-env-changed=MLIR_SYS_220_PREFIX");
    let libraries = PathBuf::from(std::env::var_os("MLIR_SYS_220_PREFIX").expect(".cargo/config.toml sets it")).join("lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libraries.display());
    if libraries.join("libMLIR-C.so").exists() {
        return;
    }
    let name = |p: &Path| p.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut archives: Vec<PathBuf> = std::fs::read_dir(&libraries)
        .expect("the packages of MLIR (see ./x)")
        .flatten()
        .map(|e| e.path())
        .filter(|p| name(p).starts_with("libMLIRCAPI") && name(p).ends_with(".a"))
        .collect();
    archives.sort();
    let list: Vec<String> = archives.iter().map(|p| p.display().to_string()).collect();
    std::fs::write(out.join("libMLIR-C.so"), format!("GROUP ( {} )\n", list.join(" "))).expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search={}", out.display());
}

fn home() -> PathBuf {
    std::env::var_os("CARGO_HOME").or_else(|| std::env::var_os("HOME")).map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn full(p: &Path) -> PathBuf {
    p.canonicalize().unwrap_or_else(|_| p.to_path_buf())
}
