//! The runtime from outside: models made of Rust and C kernels, run through the public interface.

mod embedded;
mod kit;
mod load;
mod session;
