//! Attribute types: how each prints and parses.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::scalar::{Body, Inst};
use crate::tensor::ConstId;
use crate::text::{Cursor, ParseError};
use crate::types::{DType, Dim};

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

    /// Replaces the dims of attributes that hold some.
    fn map_dims(&mut self, _map: &dyn Fn(&Dim) -> Dim) {}
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

impl PartialOrd for Real {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}

impl Ord for Real {
    fn cmp(&self, o: &Self) -> Ordering {
        self.0.total_cmp(&o.0)
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

impl PartialOrd for Shared {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}

impl Ord for Shared {
    fn cmp(&self, o: &Self) -> Ordering {
        let params = |f: &crate::Func| f.params().iter().map(|p| f.ty(p.1).clone()).collect::<Vec<_>>();
        let nodes = |f: &crate::Func| f.nodes().map(|(_, n)| (n.op.clone(), n.operands.to_vec())).collect::<Vec<_>>();
        let results = |f: &crate::Func| f.results().iter().map(|r| r.1).collect::<Vec<_>>();
        let key = |f| (params(f), nodes(f), results(f));
        if Arc::ptr_eq(&self.0, &o.0) { Ordering::Equal } else { key(&self.0).cmp(&key(&o.0)) }
    }
}

fn same(a: &crate::Func, b: &crate::Func) -> bool {
    a.node_count() == b.node_count()
        && a.params().len() == b.params().len()
        && a.params().iter().zip(b.params()).all(|(x, y)| a.ty(x.1) == b.ty(y.1))
        && a.results().iter().map(|r| r.1).eq(b.results().iter().map(|r| r.1))
        && a.nodes().zip(b.nodes()).all(|((_, x), (_, y))| x.op == y.op && x.operands == y.operands)
}

impl Attr for Real {
    fn print(&self, out: &mut String) {
        out.push_str(&crate::text::float(self.0));
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        p.float().map(Real)
    }
}

impl Attr for Shared {
    fn print(&self, out: &mut String) {
        crate::text::print_func(&self.0, out, 2);
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        p.nested(crate::text::parse_func).map(|f| Shared(Arc::new(f)))
    }

    fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        Arc::make_mut(&mut self.0).map_dims(map);
    }
}

impl Attr for Body {
    fn print(&self, out: &mut String) {
        crate::text::print_body(self, out);
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        crate::text::parse_body(p)
    }

    fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        for inst in &mut self.insts {
            if let Inst::Dim(d) = inst {
                *d = map(d);
            }
        }
    }
}

impl Attr for Dim {
    fn print(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        p.dim()
    }

    fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        *self = map(self);
    }
}

impl Attr for bool {
    fn print(&self, out: &mut String) {
        out.push_str(if *self { "true" } else { "false" });
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        if p.eat("true") { Ok(true) } else { p.expect("false").map(|()| false) }
    }
}

impl Attr for ConstId {
    fn print(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        p.expect("@c")?;
        p.number().map(ConstId)
    }
}

impl Attr for DType {
    fn print(&self, out: &mut String) {
        out.push_str(self.name());
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        let word = p.word();
        word.parse().map_err(|()| p.error(format!("`{word}` is not an element type")))
    }
}

impl<T: Attr> Attr for Vec<T> {
    fn print(&self, out: &mut String) {
        out.push('[');
        for (i, x) in self.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            x.print(out);
        }
        out.push(']');
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        p.list(T::parse)
    }

    fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        for x in self {
            x.map_dims(map);
        }
    }
}

impl<T: Attr> Attr for Option<T> {
    fn print(&self, out: &mut String) {
        match self {
            Some(x) => x.print(out),
            None => out.push_str("none"),
        }
    }

    fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
        if p.eat("none") { Ok(None) } else { T::parse(p).map(Some) }
    }

    fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        if let Some(x) = self {
            x.map_dims(map);
        }
    }
}

macro_rules! integer_attrs {
    ($($t:ty),*) => { $(impl Attr for $t {
        fn print(&self, out: &mut String) {
            out.push_str(&self.to_string());
        }

        fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
            p.number()
        }
    })* };
}
integer_attrs!(usize, i64, u8);

macro_rules! named_attrs {
    ($($t:ty),*) => { $(impl Attr for $t {
        fn print(&self, out: &mut String) {
            out.push_str(self.name());
        }

        fn parse(p: &mut Cursor<'_>) -> Result<Self, ParseError> {
            let word = p.word();
            <$t>::from_name(word).ok_or_else(|| p.error(format!("`{word}` is not one of the names expected here")))
        }
    })* };
}
named_attrs!(super::PadMode, super::ScatterKind, super::ReduceKind, super::Planner);
