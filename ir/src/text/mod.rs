//! The text form `.tir`: printer and parser. `parse(print(m)) == m`; weights print as type and content hash.
//!
//! ```text
//! module "tiny" {
//!   dim batch in 1..64
//!   const @c0 "scale": f32[1] = [2.0]
//!   func @main(%0 "x": f32[batch,4]) {
//!     %1: f32[1] = constant() {id = @c0}
//!     %2: f32[batch,4] = map(%0, %1) {body = {2: i0 = mul a0 a1; i0}} loc("layer.0/Mul")
//!     return %2 "y"
//!   }
//! }
//! ```

mod cursor;
mod parse;
mod print;

pub use cursor::{Cursor, ParseError};
pub(crate) use parse::{parse_body, parse_func};
pub use parse::{parse_module, parse_module_with};
pub(crate) use print::{float, print_body, print_func};
