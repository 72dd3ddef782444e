//! Modules, functions and nodes of the tensor IR.

mod builder;
mod consts;
mod func;
mod loc;
mod macs;
pub mod rewrite;
pub mod strided;

pub use builder::Builder;
pub use consts::{ConstData, ConstId, ConstPool};
pub use func::{Func, Node, NodeId, Value, ValueDef};
pub use loc::Loc;
pub use macs::macs_of;

use std::sync::Arc;

use crate::types::Ranges;

/// A model: symbolic dims, constants and one entry function. Nested functions live in the attributes of the ops that own them.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name of the model.
    pub name: String,
    /// The symbolic dims with their ranges.
    pub symbols: Ranges,
    /// Pairs of dims that must be equal when the model runs, with the reason in words.
    pub constraints: Vec<(crate::Dim, crate::Dim, String)>,
    /// The constants. Shared: passes that add none keep the same pool.
    pub consts: Arc<ConstPool>,
    /// The entry function; its parameters and results are the model's inputs and outputs.
    pub main: Func,
}

impl Module {
    /// An empty module.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            symbols: Ranges::new(),
            constraints: Vec::new(),
            consts: Arc::new(ConstPool::default()),
            main: Func::new("main"),
        }
    }

    /// The entry function, in whose place the caller puts another.
    pub fn take_main(&mut self) -> Func {
        std::mem::replace(&mut self.main, Func::new("main"))
    }
}
