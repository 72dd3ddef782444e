//! All integration tests of the root package in one binary: LLVM is linked once.

mod cli;
mod conformance;
mod determinism;
mod digits;
mod hostile;
mod kit;
mod minilm;
mod tidy;
mod zoo;
