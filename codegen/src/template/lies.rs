//! How matrices lie between kernels.

use std::fmt;

/// How a matrix `[m, n]` of rows and columns lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lies {
    /// `[m, n]`.
    Rows,
    /// `[n, m]`.
    Turned,
    /// `[m / rows, n, rows]` for the rows of a tile of a sparse product.
    Blocks,
}

impl fmt::Display for Lies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lies::Rows => "r",
            Lies::Turned => "t",
            Lies::Blocks => "b",
        })
    }
}

impl Lies {
    /// True if rows lie beside each other.
    pub fn turned(self) -> bool {
        self != Lies::Rows
    }
}
