//! Attribute types: how each prints and parses.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::text::{Cursor, ParseError};

/// A type that may stand as an attribute of an op.
pub trait Attr {
    /// Appends the text form.
    fn print(&self, out: &mut String);

    /// Reads the text form.
    ///
    /// # Errors
    /// If the text at the cursor is not of this type.
    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError>
    where
        Self: Sized;
}

/// A real attribute such as an epsilon: an `f64` that compares and hashes by its bits.
#[derive(Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, o: &Self) -> bool {
        self.0.to_bits() == o.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        self.0.to_bits().hash(h);
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A nested function owned by an op. Equal when the text form of the functions is (names and provenance aside).
#[derive(Clone)]
pub struct Shared(pub Arc<crate::Func>);

impl Deref for Shared {
    type Target = crate::Func;

    fn deref(&self) -> &crate::Func {
        &self.0
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "func {}", self.0.name)
    }
}

impl PartialEq for Shared {
    fn eq(&self, o: &Self) -> bool {
        Arc::ptr_eq(&self.0, &o.0) || same(&self.0, &o.0)
    }
}

impl Eq for Shared {}

impl std::hash::Hash for Shared {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        for (_, n) in self.0.nodes() {
            n.op.hash(h);
            n.operands.hash(h);
        }
        for (_, v) in self.0.results() {
            v.hash(h);
        }
    }
}

fn same(a: &crate::Func, b: &crate::Func) -> bool {
    a.node_count() == b.node_count()
        && a.params().len() == b.params().len()
        && a.params().iter().zip(b.params()).all(|(x, y)| a.ty(x.1) == b.ty(y.1))
        && a.results().iter().map(|r| r.1).eq(b.results().iter().map(|r| r.1))
        && a.nodes().zip(b.nodes()).all(|((_, x), (_, y))| x.op == y.op && x.operands == y.operands)
}

macro_rules! attr_todo { ($($t:ty),* $(,)?) => { $(impl Attr for $t {
    fn print(&self, out: &mut String) { out.push_str(&format!("{self:?}")); }
    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> { Err(p.error("no parser yet")) }
})* } }
attr_todo!(
    Real,
    Shared,
    usize,
    bool,
    crate::tensor::ConstId,
    crate::scalar::Body,
    crate::types::DType,
    Vec<usize>,
    Vec<i64>,
    Vec<u8>,
    Vec<crate::types::Dim>,
    crate::types::Dim,
    Option<crate::types::Dim>,
    super::PadMode,
    super::ScatterKind,
    super::ReduceKind
);
