//! Symbolic dimensions: integer polynomials over named symbols, with floor division, modulo, minimum and maximum.
//!
//! Every [`Dim`] is kept in a canonical form, so that two dims which are equal as polynomials compare equal: monomials are sorted,
//! coefficients are non-zero, and divisions that come out even are carried out. Laws (see the tests):
//! addition and multiplication are commutative, associative and distributive; `(a*d) / d = a`; `(a*d) % d = 0`.

mod bounds;
mod division;

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Product;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

pub use bounds::{Ranges, SymbolRange};
use division::{checked_floor_div, checked_modulo};

/// The name of a symbolic dimension, such as `batch`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol by name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    /// The name, in quotes unless it is a plain word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.0.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        if word && !self.0.starts_with(|c: char| c.is_ascii_digit()) && !self.0.is_empty() {
            f.write_str(&self.0)
        } else {
            write!(f, "{:?}", &*self.0)
        }
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a dim has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// A symbol without a value.
    #[error("dim `{0}` has no value")]
    Unbound(Symbol),
    /// The arithmetic left 64 bits.
    #[error("dim arithmetic overflows 64 bits")]
    Overflow,
    /// A division or modulo by zero.
    #[error("dim arithmetic divides by zero")]
    DivisionByZero,
}

/// A factor of a monomial that is not a number.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A symbol.
    Sym(Symbol),
    /// Quotient rounded toward minus infinity.
    FloorDiv(Dim, Dim),
    /// Remainder with the sign of the divisor.
    Mod(Dim, Dim),
    /// The smaller of two.
    Min(Dim, Dim),
    /// The larger of two.
    Max(Dim, Dim),
}

/// A product of atoms, sorted, repetition meaning a power. Empty: the number one.
pub type Monomial = Vec<Atom>;

/// An integer expression over symbols; see the module docs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Const(i64),
    /// Sorted by monomial; never a plain constant.
    Poly(Arc<Vec<(Monomial, i64)>>),
}

impl From<i64> for Dim {
    fn from(v: i64) -> Self {
        Dim(Repr::Const(v))
    }
}

impl From<i32> for Dim {
    fn from(v: i32) -> Self {
        i64::from(v).into()
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Self {
        Dim(Repr::Const(i64::try_from(v).unwrap_or(i64::MAX)))
    }
}

impl From<Symbol> for Dim {
    fn from(s: Symbol) -> Self {
        Dim::atom(Atom::Sym(s))
    }
}

impl Dim {
    /// The dim that is one symbol.
    pub fn sym(name: &str) -> Self {
        Symbol::new(name).into()
    }

    fn atom(a: Atom) -> Self {
        Dim(Repr::Poly(Arc::new(vec![(vec![a], 1)])))
    }

    fn from_terms(terms: BTreeMap<Monomial, i64>) -> Self {
        let mut terms: Vec<_> = terms.into_iter().filter(|(_, c)| *c != 0).collect();
        match terms.as_slice() {
            [] => Dim::from(0),
            [(m, c)] if m.is_empty() => Dim::from(*c),
            _ => {
                terms.shrink_to_fit();
                let d = Dim(Repr::Poly(Arc::new(terms)));
                d.without_remainder().unwrap_or(d)
            }
        }
    }

    /// `k * d * floordiv(x, d)` for the terms `k * x - k * mod(x, d)`, so that a length padded to a multiple is seen to be one; and
    /// `k * x` for `k * d * floordiv(x, d) + k * mod(x, d)`.
    fn without_remainder(&self) -> Option<Dim> {
        let Repr::Poly(p) = &self.0 else { return None };
        let factor = |m: &Monomial| p.iter().find(|(n, _)| n == m).map_or(0, |(_, c)| *c);
        p.iter().find_map(|(m, k)| {
            let [Atom::Mod(x, d)] = m.as_slice() else { return None };
            let n = d.as_const().filter(|d| *d > 0)?;
            let quotient = vec![Atom::FloorDiv(x.clone(), d.clone())];
            if k.checked_mul(n).is_some_and(|whole| factor(&quotient) == whole) {
                let rest = p.iter().filter(|(o, _)| o != m && *o != quotient).cloned().collect();
                return Some(&Dim::from_terms(rest) + &(&Dim::from(*k) * x));
            }
            let cancels = |(n, c): &(Monomial, i64)| n.is_empty() || c.checked_mul(*k).is_some_and(|c| factor(n) == -c);
            if !x.terms().iter().all(cancels) {
                return None;
            }
            let rest = p.iter().filter(|(n, _)| n != m).cloned().collect();
            let k = Dim::from(*k);
            Some(&(&Dim::from_terms(rest) + &(&k * x)) - &(&(&k * d) * &x.floor_div(d)))
        })
    }

    /// The terms of the polynomial: monomial and coefficient, sorted.
    pub fn terms(&self) -> Vec<(Monomial, i64)> {
        match &self.0 {
            Repr::Const(0) => Vec::new(),
            Repr::Const(c) => vec![(Vec::new(), *c)],
            Repr::Poly(p) => p.to_vec(),
        }
    }

    /// The value, if it is a constant.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(c) => Some(c),
            Repr::Poly(_) => None,
        }
    }

    /// The value as an unsigned number, if it is a non-negative constant.
    pub fn as_usize(&self) -> Option<usize> {
        self.as_const().and_then(|c| usize::try_from(c).ok())
    }

    /// The symbol, if it is exactly one symbol.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        match self.as_atom() {
            Some(Atom::Sym(s)) => Some(s),
            _ => None,
        }
    }

    fn as_atom(&self) -> Option<&Atom> {
        let Repr::Poly(p) = &self.0 else { return None };
        let [(m, 1)] = p.as_slice() else { return None };
        if let [atom] = m.as_slice() { Some(atom) } else { None }
    }

    /// True if it is the constant `v`.
    pub fn is(&self, v: i64) -> bool {
        self.as_const() == Some(v)
    }

    /// The smaller of two.
    pub fn min_with(&self, o: &Dim) -> Dim {
        if let Some(diff) = (self - o).as_const() {
            return if diff <= 0 { self.clone() } else { o.clone() };
        }
        let (a, b) = if self <= o { (self, o) } else { (o, self) };
        Dim::atom(Atom::Min(a.clone(), b.clone()))
    }

    /// The larger of two.
    pub fn max_with(&self, o: &Dim) -> Dim {
        if let Some(diff) = (self - o).as_const() {
            return if diff >= 0 { self.clone() } else { o.clone() };
        }
        let (a, b) = if self <= o { (self, o) } else { (o, self) };
        Dim::atom(Atom::Max(a.clone(), b.clone()))
    }

    /// The value when symbols are bound by `env`.
    ///
    /// # Errors
    /// An unbound symbol, overflow, or a division by zero.
    pub fn eval(&self, env: &dyn Fn(&Symbol) -> Option<i64>) -> Result<i64, DimError> {
        let p = match &self.0 {
            Repr::Const(c) => return Ok(*c),
            Repr::Poly(p) => p,
        };
        let mut sum = 0i64;
        for (m, c) in p.iter() {
            let mut prod = *c;
            for a in m {
                let v = match a {
                    Atom::Sym(s) => env(s).ok_or_else(|| DimError::Unbound(s.clone()))?,
                    Atom::FloorDiv(a, b) => checked_floor_div(a.eval(env)?, b.eval(env)?).ok_or(DimError::DivisionByZero)?,
                    Atom::Mod(a, b) => checked_modulo(a.eval(env)?, b.eval(env)?).ok_or(DimError::DivisionByZero)?,
                    Atom::Min(a, b) => a.eval(env)?.min(b.eval(env)?),
                    Atom::Max(a, b) => a.eval(env)?.max(b.eval(env)?),
                };
                prod = prod.checked_mul(v).ok_or(DimError::Overflow)?;
            }
            sum = sum.checked_add(prod).ok_or(DimError::Overflow)?;
        }
        Ok(sum)
    }

    /// Replaces symbols by dims.
    pub fn subst(&self, map: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        self.replace(&|a| if let Atom::Sym(s) = a { map(s) } else { None })
    }

    /// Replaces atoms by dims, those inside of others first.
    pub fn replace(&self, map: &dyn Fn(&Atom) -> Option<Dim>) -> Dim {
        let p = match &self.0 {
            Repr::Const(_) => return self.clone(),
            Repr::Poly(p) => p,
        };
        let mut sum = Dim::from(0);
        for (m, c) in p.iter() {
            let prod = m.iter().fold(Dim::from(*c), |prod, a| &prod * &a.replace(map));
            sum = &sum + &prod;
        }
        sum
    }

    /// All symbols in it, in first-seen order.
    pub fn symbols(&self, out: &mut Vec<Symbol>) {
        self.each_atom(&mut |a| {
            if let Atom::Sym(s) = a
                && !out.contains(s)
            {
                out.push(s.clone());
            }
        });
    }

    /// Calls `f` with every atom, those inside of others first.
    pub fn each_atom(&self, f: &mut dyn FnMut(&Atom)) {
        for (m, _) in self.terms() {
            for a in m {
                if let Some([x, y]) = a.parts() {
                    x.each_atom(f);
                    y.each_atom(f);
                }
                f(&a);
            }
        }
    }
}

impl Atom {
    /// The operands, but for a symbol.
    fn parts(&self) -> Option<[&Dim; 2]> {
        match self {
            Atom::Sym(_) => None,
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => Some([a, b]),
        }
    }

    fn replace(&self, map: &dyn Fn(&Atom) -> Option<Dim>) -> Dim {
        let Some(parts) = self.parts() else { return map(self).unwrap_or_else(|| Dim::atom(self.clone())) };
        let [a, b] = parts.map(|d| d.replace(map));
        let d = match self {
            Atom::FloorDiv(..) => a.floor_div(&b),
            Atom::Mod(..) => a.modulo(&b),
            Atom::Min(..) => a.min_with(&b),
            _ => a.max_with(&b),
        };
        // One that is still an atom may be replaced itself; a symbol was asked for already.
        match d.as_atom() {
            Some(atom) if atom.parts().is_some() => map(atom).unwrap_or(d),
            _ => d,
        }
    }
}

impl Add for &Dim {
    type Output = Dim;

    fn add(self, o: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), o.as_const()) {
            return a.saturating_add(b).into();
        }
        let mut t: BTreeMap<Monomial, i64> = self.terms().into_iter().collect();
        for (m, c) in o.terms() {
            let e = t.entry(m).or_insert(0);
            *e = e.saturating_add(c);
        }
        Dim::from_terms(t)
    }
}

impl Sub for &Dim {
    type Output = Dim;

    fn sub(self, o: &Dim) -> Dim {
        self + &(o * &Dim::from(-1))
    }
}

impl Mul for &Dim {
    type Output = Dim;

    fn mul(self, o: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), o.as_const()) {
            return a.saturating_mul(b).into();
        }
        let mut t: BTreeMap<Monomial, i64> = BTreeMap::new();
        for (ma, ca) in self.terms() {
            for (mb, cb) in o.terms() {
                let mut m = ma.clone();
                m.extend(mb);
                m.sort();
                let e = t.entry(m).or_insert(0);
                *e = e.saturating_add(ca.saturating_mul(cb));
            }
        }
        Dim::from_terms(t)
    }
}

impl<'a> Product<&'a Dim> for Dim {
    fn product<I: Iterator<Item = &'a Dim>>(factors: I) -> Dim {
        factors.fold(Dim::from(1), |a, d| &a * d)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "floordiv({a},{b})"),
            Atom::Mod(a, b) => write!(f, "mod({a},{b})"),
            Atom::Min(a, b) => write!(f, "min({a},{b})"),
            Atom::Max(a, b) => write!(f, "max({a},{b})"),
        }
    }
}

impl fmt::Display for Dim {
    /// `2*B*S+1`, `floordiv(S,2)`: what the parser of the text form reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = self.terms();
        if terms.is_empty() {
            return f.write_str("0");
        }
        // Symbolic terms first, the constant last, as people write them.
        let ordered = terms.iter().filter(|t| !t.0.is_empty()).chain(terms.iter().filter(|t| t.0.is_empty()));
        for (i, (m, c)) in ordered.enumerate() {
            if i > 0 && *c >= 0 {
                f.write_str("+")?;
            }
            match (m.is_empty(), *c) {
                (true, c) => write!(f, "{c}")?,
                (false, 1) => {}
                (false, -1) => f.write_str("-")?,
                (false, c) => write!(f, "{c}*")?,
            }
            for (j, a) in m.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                write!(f, "{a}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn b() -> Dim {
        Dim::sym("B")
    }

    pub(super) fn s() -> Dim {
        Dim::sym("S")
    }

    #[test]
    fn prints_canonically() {
        assert_eq!((&(&s() + &Dim::from(1)) * &b()).to_string(), "B+B*S");
        assert_eq!((&s() - &Dim::from(3)).floor_div(&2.into()).to_string(), "floordiv(S+1,2)-2");
    }
}
