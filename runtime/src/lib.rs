//! The runtime of transc: loads compiled models, plans memory from the bound dims, runs launches on threads.
//!
//! Depends on no compiler crate. A compiled `.so` contains this crate; the in-process compiler and the command line link it as a library.
//!
//! A [`Model`] is code, a [`Plan`] and packed weights: from a file ([`Model::open`]) or from memory ([`Model::from_parts`]). A [`Session`] adds
//! threads and memory. A run binds the symbolic dims from the shapes of its inputs, looks up or makes the memory plan for them, and does the
//! launches in order. Each launch is cut into contiguous shares of independent units, so results do not depend on the number of threads.
#![deny(clippy::print_stdout, reason = "stdout carries results only")]

pub mod abi;
pub mod artefact;
mod bind;
#[cfg(feature = "embedded")]
mod capi;
pub mod cuda;
mod error;
mod exec;
pub mod header;
mod load;
pub mod mem;
mod place;
mod session;
mod tensor;

pub use abi::{Arg, DType, Expr, Plan, TensorSpec};
pub use error::{Error, Fault};
pub use load::{Model, OpenOptions, Weights, has_feature};
pub use session::{LaunchSizes, Session, SessionOptions, Sizes, Span, TempSizes};
pub use tensor::{Element, Tensor, TensorView, TensorViewMut};
