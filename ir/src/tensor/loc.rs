//! Provenance: where a node comes from, in the user's words.

use std::fmt;
use std::sync::Arc;

/// The place in the model file that a node comes from, such as `encoder.layer.3.attention/MatMul_2`. Empty when unknown.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Loc(Option<Arc<str>>);

impl Loc {
    /// No known place.
    pub const fn unknown() -> Self {
        Loc(None)
    }

    /// A place by its path.
    pub fn new(path: &str) -> Self {
        if path.is_empty() { Loc(None) } else { Loc(Some(path.into())) }
    }

    /// The path, empty when unknown.
    pub fn path(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }

    /// The place of something made from several: the first known one.
    pub fn join<'a>(locs: impl IntoIterator<Item = &'a Loc>) -> Loc {
        locs.into_iter().find(|l| l.0.is_some()).cloned().unwrap_or_default()
    }
}

impl fmt::Debug for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}
