//! Dim expressions of the plan.

use serde::{Deserialize, Serialize};

use crate::Error;

/// An integer expression over the plan's symbols.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expr {
    /// A number.
    Const(i64),
    /// A symbol by position.
    Sym(u32),
    /// Sum.
    Add(Vec<Expr>),
    /// Product.
    Mul(Vec<Expr>),
    /// Quotient toward minus infinity.
    FloorDiv(Box<Expr>, Box<Expr>),
    /// Remainder with the sign of the divisor.
    Mod(Box<Expr>, Box<Expr>),
    /// Minimum.
    Min(Box<Expr>, Box<Expr>),
    /// Maximum.
    Max(Box<Expr>, Box<Expr>),
}

/// Deepest nesting of a decoded expression.
const MAX_DEPTH: usize = 64;

impl Expr {
    /// The value for symbol values.
    ///
    /// # Errors
    /// Overflow, a division by zero, or a symbol outside `syms`.
    pub fn eval(&self, syms: &[i64]) -> Result<i64, Error> {
        self.try_eval(&|i| syms.get(i as usize).copied()).ok_or(Error::Arithmetic)
    }

    /// The value, if all symbols have one and the arithmetic does not overflow.
    pub(crate) fn try_eval(&self, sym: &dyn Fn(u32) -> Option<i64>) -> Option<i64> {
        let floor_div = |a: i64, b: i64| a.checked_div_euclid(b).map(|q| if b < 0 && a.rem_euclid(b) != 0 { q - 1 } else { q });
        Some(match self {
            Expr::Const(c) => *c,
            Expr::Sym(i) => sym(*i)?,
            Expr::Add(v) => v.iter().try_fold(0i64, |a, e| a.checked_add(e.try_eval(sym)?))?,
            Expr::Mul(v) => v.iter().try_fold(1i64, |a, e| a.checked_mul(e.try_eval(sym)?))?,
            Expr::FloorDiv(a, b) => floor_div(a.try_eval(sym)?, b.try_eval(sym)?)?,
            Expr::Mod(a, b) => {
                let (a, b) = (a.try_eval(sym)?, b.try_eval(sym)?);
                a.checked_sub(floor_div(a, b)?.checked_mul(b)?)?
            }
            Expr::Min(a, b) => a.try_eval(sym)?.min(b.try_eval(sym)?),
            Expr::Max(a, b) => a.try_eval(sym)?.max(b.try_eval(sym)?),
        })
    }

    /// Calls `f` with each symbol.
    pub(crate) fn symbols(&self, f: &mut dyn FnMut(u32)) {
        match self {
            Expr::Const(_) => {}
            Expr::Sym(i) => f(*i),
            Expr::Add(v) | Expr::Mul(v) => v.iter().for_each(|e| e.symbols(f)),
            Expr::FloorDiv(a, b) | Expr::Mod(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
                a.symbols(f);
                b.symbols(f);
            }
        }
    }

    /// True if nesting and symbols are within bounds.
    pub(crate) fn valid(&self, n_symbols: usize) -> bool {
        fn depth(e: &Expr, left: usize, n: usize) -> bool {
            if left == 0 {
                return false;
            }
            match e {
                Expr::Const(_) => true,
                Expr::Sym(i) => (*i as usize) < n,
                Expr::Add(v) | Expr::Mul(v) => v.iter().all(|e| depth(e, left - 1, n)),
                Expr::FloorDiv(a, b) | Expr::Mod(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => depth(a, left - 1, n) && depth(b, left - 1, n),
            }
        }
        depth(self, MAX_DEPTH, n_symbols)
    }

    /// The expression with symbol names.
    pub fn display(&self, names: &dyn Fn(u32) -> String) -> String {
        let join = |v: &[Expr], s: &str| v.iter().map(|e| e.display(names)).collect::<Vec<_>>().join(s);
        match self {
            Expr::Const(c) => c.to_string(),
            Expr::Sym(i) => names(*i),
            Expr::Add(v) => join(v, "+"),
            Expr::Mul(v) => join(v, "*"),
            Expr::FloorDiv(a, b) => format!("floordiv({},{})", a.display(names), b.display(names)),
            Expr::Mod(a, b) => format!("mod({},{})", a.display(names), b.display(names)),
            Expr::Min(a, b) => format!("min({},{})", a.display(names), b.display(names)),
            Expr::Max(a, b) => format!("max({},{})", a.display(names), b.display(names)),
        }
    }
}
