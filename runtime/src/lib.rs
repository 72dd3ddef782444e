//! The runtime of transc: loads compiled models, plans memory from the bound dims, runs launches on threads.
//!
//! Depends on no compiler crate. A compiled `.so` contains this crate; the in-process compiler and the command line link it as a library.

pub mod abi;
pub mod artefact;
mod bind;
#[cfg(feature = "embedded")]
mod capi;
mod error;
mod exec;
pub mod header;
mod load;
pub mod mem;
mod session;
mod tensor;

pub use abi::{Arg, DType, Expr, Plan, TensorSpec};
pub use error::{Error, Fault};
pub use load::{Model, Weights};
pub use session::{OutputSlot, Session, SessionOptions};
pub use tensor::{Tensor, TensorView};
