//! The text form `.tir`: printer and parser.

mod cursor;

pub use cursor::{Cursor, ParseError};
