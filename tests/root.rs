//! All integration tests of the root package in one binary: LLVM is linked once.

mod bench;
mod bf16;
mod c_program;
mod cli;
mod compression;
mod conformance;
mod determinism;
mod device;
mod differential;
mod digits;
mod encoders;
mod hostile;
mod integers;
mod kit;
#[cfg(target_os = "linux")]
mod memory;
mod mlir;
mod targets;
mod tidy;
mod tokens;
mod ways;
mod zoo;
