//! Symbolic dimensions: integer polynomials over named symbols, with floor division, modulo, minimum and maximum.
//!
//! Every [`Dim`] is kept in a canonical form, so that two dims which are equal as polynomials compare equal: monomials are sorted,
//! coefficients are non-zero, and divisions that come out even are carried out. Laws (see the tests):
//! addition and multiplication are commutative, associative and distributive; `(a*d) / d = a`; `(a*d) % d = 0`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

use indexmap::IndexMap;

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

/// The values that a symbol may take, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SymbolRange {
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
}

/// The symbols of a module with their ranges, in order of declaration.
pub type Ranges = IndexMap<Symbol, SymbolRange>;

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

    /// `k * d * floordiv(x, d)` for the terms `k * x - k * mod(x, d)`, so that a length padded to a multiple is seen to be one, and `k * x` for
    /// `k * d * floordiv(x, d) + k * mod(x, d)`.
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

    /// Quotient rounded toward minus infinity. A divisor of constant zero gives an atom that fails when evaluated.
    pub fn floor_div(&self, d: &Dim) -> Dim {
        if d.is(1) {
            return self.clone();
        }
        if let (Some(a), Some(b)) = (self.as_const(), d.as_const())
            && let Some(q) = checked_floor_div(a, b)
        {
            return q.into();
        }
        if let Some(q) = self.exact_div(d) {
            return q;
        }
        if let Some((quotient, rest)) = d.as_const().and_then(|c| self.split_multiples(c)) {
            return &quotient + &rest.floor_div(d);
        }
        if let Some((a, b)) = self.as_quotient()
            && let Some(c) = d.as_const().filter(|c| *c > 0)
            && let Some(by) = b.checked_mul(c)
        {
            return a.floor_div(&by.into());
        }
        Dim::atom(Atom::FloorDiv(self.clone(), d.clone()))
    }

    /// `(a + k * b, b)` of `floordiv(a, b) + k` with constant `b` and `k`, whose quotients are those of `a + k * b` by multiples of `b`.
    fn as_quotient(&self) -> Option<(Dim, i64)> {
        let (mut quotient, mut k) = (None, 0);
        for (m, c) in self.terms() {
            match m.as_slice() {
                [] => k = c,
                [Atom::FloorDiv(a, b)] if c == 1 && quotient.is_none() => quotient = Some((a.clone(), b.as_const()?)),
                _ => return None,
            }
        }
        let (a, b) = quotient.filter(|(_, b)| *b > 0)?;
        Some((&a + &Dim::from(k.checked_mul(b)?), b))
    }

    /// `(q, r)` with `self = q * c + r`, where no term of `r` is a multiple of `c` and its constant is in `0..c`; `None` if that is `self`.
    fn split_multiples(&self, c: i64) -> Option<(Dim, Dim)> {
        if c <= 0 {
            return None;
        }
        let (mut quotient, mut rest) = (Vec::new(), Vec::new());
        for (m, k) in self.terms() {
            let q = if m.is_empty() || k % c == 0 { k.div_euclid(c) } else { 0 };
            if k != q * c {
                rest.push((m.clone(), k - q * c));
            }
            if q != 0 {
                quotient.push((m, q));
            }
        }
        (!quotient.is_empty())
            .then(|| (Dim::from_terms(quotient.into_iter().collect()), Dim::from_terms(rest.into_iter().collect())))
    }

    /// Quotient rounded toward plus infinity.
    pub fn ceil_div(&self, d: &Dim) -> Dim {
        (&(self + d) - &Dim::from(1)).floor_div(d)
    }

    /// Remainder with the sign of the divisor.
    pub fn modulo(&self, d: &Dim) -> Dim {
        if d.is(1) {
            return 0.into();
        }
        if let (Some(a), Some(b)) = (self.as_const(), d.as_const())
            && let Some(q) = checked_floor_div(a, b)
        {
            return (a - q * b).into();
        }
        if self.exact_div(d).is_some() {
            return 0.into();
        }
        if let Some((_, rest)) = d.as_const().and_then(|c| self.split_multiples(c)) {
            return rest.modulo(d);
        }
        // `mod(a + k * mod(b, d), d)` is `mod(a + k * b, d)`.
        if let Some((m, k, inner)) = self.terms().iter().find_map(|(m, k)| match m.as_slice() {
            [Atom::Mod(inner, e)] if e == d => Some((m.clone(), *k, inner.clone())),
            _ => None,
        }) {
            let rest = Dim::from_terms(self.terms().into_iter().filter(|(n, _)| *n != m).collect());
            return (&rest + &(&Dim::from(k) * &inner)).modulo(d);
        }
        Dim::atom(Atom::Mod(self.clone(), d.clone()))
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

    /// The quotient, if the division comes out even as a polynomial: a monomial divisor that divides every term, or a divisor
    /// that is a constant multiple of the dividend.
    pub fn exact_div(&self, d: &Dim) -> Option<Dim> {
        if d.is(0) {
            return None;
        }
        let divisor = d.terms();
        if let [(dm, dc)] = divisor.as_slice() {
            let mut out = BTreeMap::new();
            for (m, c) in self.terms() {
                if c % dc != 0 {
                    return None;
                }
                out.insert(divide_monomial(&m, dm)?, c / dc);
            }
            return Some(Dim::from_terms(out));
        }
        // Long division by the largest monomial of the divisor; it ends since each step removes that term.
        let (lead_m, lead_c) = divisor.last()?;
        let mut rest = self.clone();
        let mut quotient = Dim::from(0);
        for _ in 0..16 {
            let Some((m, c)) =
                rest.terms().into_iter().rev().find(|(m, c)| c % lead_c == 0 && divide_monomial(m, lead_m).is_some())
            else {
                break;
            };
            let q = Dim::from_terms(BTreeMap::from([(divide_monomial(&m, lead_m)?, c / lead_c)]));
            rest = &rest - &(&q * d);
            quotient = &quotient + &q;
        }
        rest.is(0).then_some(quotient)
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
                    Atom::Mod(a, b) => {
                        let (a, b) = (a.eval(env)?, b.eval(env)?);
                        let q = checked_floor_div(a, b).ok_or(DimError::DivisionByZero)?;
                        a.wrapping_sub(q.wrapping_mul(b))
                    }
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

    /// The dim without the minima and maxima that ranges of symbols decide.
    pub fn within(&self, ranges: &Ranges) -> Dim {
        self.replace(&|atom| match atom {
            Atom::Min(a, b) => Some(a.min_within(b, ranges)),
            Atom::Max(a, b) => Some(a.max_within(b, ranges)),
            _ => None,
        })
    }

    /// The smaller of two, decided by ranges of symbols where possible.
    pub fn min_within(&self, o: &Dim, ranges: &Ranges) -> Dim {
        match (self - o).bounds(ranges) {
            (_, hi) if hi <= 0 => self.clone(),
            (lo, _) if lo >= 0 => o.clone(),
            _ => self.min_with(o),
        }
    }

    /// The larger of two, decided by ranges of symbols where possible.
    pub fn max_within(&self, o: &Dim, ranges: &Ranges) -> Dim {
        match (self - o).bounds(ranges) {
            (lo, _) if lo >= 0 => self.clone(),
            (_, hi) if hi <= 0 => o.clone(),
            _ => self.max_with(o),
        }
    }

    /// Bounds from the ranges of the symbols, saturating at the ends of 64 bits. Symbols without a range are taken as 0 or more.
    pub fn bounds(&self, ranges: &Ranges) -> (i64, i64) {
        let p = match &self.0 {
            Repr::Const(c) => return (*c, *c),
            Repr::Poly(p) => p,
        };
        let (mut lo, mut hi) = (0i64, 0i64);
        for (m, c) in p.iter() {
            let mut b = (*c, *c);
            for a in m {
                b = mul_bounds(b, atom_bounds(a, ranges));
            }
            lo = lo.saturating_add(b.0);
            hi = hi.saturating_add(b.1);
        }
        match self.without_quotient() {
            Some((d, rest)) => {
                let b = d.bounds(ranges);
                (lo.max(b.0.saturating_sub(rest.max(0))), hi.min(b.1.saturating_sub(rest.min(0))))
            }
            None => (lo, hi),
        }
    }

    /// The same with `a - mod(a, n)` in place of the first `n * floordiv(a, n)`, where what cancels does not widen bounds: the part without the
    /// remainders, and the largest of these, in size, times their factor.
    fn without_quotient(&self) -> Option<(Dim, i64)> {
        self.terms().into_iter().find_map(|(m, c)| {
            let [Atom::FloorDiv(a, n)] = m.as_slice() else { return None };
            let n = n.as_const().filter(|n| *n > 0 && c % n == 0)?;
            let times = c / n;
            let rest = self - &Dim::from_terms(BTreeMap::from([(m.clone(), c)]));
            Some((&rest + &(&Dim::from(times) * a), times.checked_mul(n - 1)?))
        })
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

fn checked_floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && ((a < 0) != (b < 0)) { q - 1 } else { q })
}

fn divide_monomial(m: &Monomial, d: &Monomial) -> Option<Monomial> {
    let mut rest = m.clone();
    for a in d {
        let at = rest.iter().position(|x| x == a)?;
        rest.remove(at);
    }
    Some(rest)
}

fn mul_bounds(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    let p = [a.0.saturating_mul(b.0), a.0.saturating_mul(b.1), a.1.saturating_mul(b.0), a.1.saturating_mul(b.1)];
    p.iter().fold((i64::MAX, i64::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
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

fn atom_bounds(a: &Atom, ranges: &Ranges) -> (i64, i64) {
    match a {
        Atom::Sym(s) => ranges.get(s).map_or((0, i64::MAX), |r| (r.min, r.max)),
        Atom::FloorDiv(a, b) => {
            let (a, b) = (a.bounds(ranges), b.bounds(ranges));
            if b.0 <= 0 {
                return (i64::MIN, i64::MAX);
            }
            let q = |x: i64, y: i64| checked_floor_div(x, y).unwrap_or(i64::MAX);
            (q(a.0, b.0).min(q(a.0, b.1)), q(a.1, b.0).max(q(a.1, b.1)))
        }
        Atom::Mod(_, b) => {
            let b = b.bounds(ranges);
            if b.0 <= 0 { (i64::MIN, i64::MAX) } else { (0, b.1 - 1) }
        }
        Atom::Min(a, b) => {
            let (a, b) = (a.bounds(ranges), b.bounds(ranges));
            (a.0.min(b.0), a.1.min(b.1))
        }
        Atom::Max(a, b) => {
            let (a, b) = (a.bounds(ranges), b.bounds(ranges));
            (a.0.max(b.0), a.1.max(b.1))
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

    fn b() -> Dim {
        Dim::sym("B")
    }

    fn s() -> Dim {
        Dim::sym("S")
    }

    #[test]
    fn products_divide_back() {
        let n = &(&b() * &s()) * &Dim::from(768);
        assert_eq!(n.floor_div(&(&b() * &s())), Dim::from(768));
        assert_eq!(n.floor_div(&Dim::from(64)), &(&b() * &s()) * &Dim::from(12));
        assert_eq!(n.modulo(&s()), Dim::from(0));
        let s1 = &s() + &Dim::from(1);
        assert_eq!((&s1 * &b()).exact_div(&s1), Some(b()));
    }

    #[test]
    fn a_length_padded_to_a_multiple_is_one() {
        let pad = |n: &Dim| (&Dim::from(0) - n).modulo(&4.into());
        let padded = &s() + &pad(&s());
        assert_eq!(padded, &padded.floor_div(&4.into()) * &Dim::from(4));
        assert_eq!((&Dim::from(0) - &s().modulo(&4.into())).modulo(&4.into()), pad(&s()));
        let next = &(&s() - &s().modulo(&4.into())) + &Dim::from(4);
        assert_eq!(next.to_string(), "4*floordiv(S,4)+4");
        for n in 1..9 {
            let at = |d: &Dim| d.eval(&|_| Some(n));
            assert_eq!(at(&padded), Ok((n + 3) / 4 * 4));
            assert_eq!(at(&next), Ok(n / 4 * 4 + 4));
        }
    }

    #[test]
    fn prints_canonically() {
        assert_eq!((&(&s() + &Dim::from(1)) * &b()).to_string(), "B+B*S");
        assert_eq!((&s() - &Dim::from(3)).floor_div(&2.into()).to_string(), "floordiv(S+1,2)-2");
    }

    #[test]
    fn bounds_follow_ranges() {
        let r: Ranges = [(Symbol::new("S"), SymbolRange { min: 1, max: 512 })].into_iter().collect();
        assert_eq!((&s() + &s()).bounds(&r), (2, 1024));
        assert_eq!(s().floor_div(&3.into()).bounds(&r), (0, 170));
    }

    #[test]
    fn quotients_compose() {
        let d = |n: i64| Dim::from(n);
        let strided = (&(&s() + &d(3)).floor_div(&d(4)) + &d(1)).floor_div(&d(2));
        assert_eq!(strided, (&s() + &d(7)).floor_div(&d(8)));
        for n in 0..20 {
            let by_steps = ((n + 3i64).div_euclid(4) + 1).div_euclid(2);
            assert_eq!(strided.eval(&|_| Some(n)), Ok(by_steps));
        }
        assert_eq!(&(&s().floor_div(&d(8)) * &d(16)) + &(&s().modulo(&d(8)) * &d(2)), &s() * &d(2));
    }

    #[test]
    fn ranges_decide_minima() {
        let range = |min, max| Ranges::from([(Symbol::new("S"), SymbolRange { min, max })]);
        let d = &s().min_with(&64.into()) + &s().max_with(&8.into());
        assert_eq!(d.within(&range(1, 100)), d);
        assert_eq!(d.within(&range(8, 64)), &s() + &s());
        assert_eq!(d.within(&range(64, 99)), &s() + &Dim::from(64));
    }

    #[test]
    fn a_padded_length_is_not_shorter() {
        let padded = &Dim::from(-4) * &(&Dim::from(0) - &s()).floor_div(&4.into());
        let ranges = Ranges::from([(Symbol::new("S"), SymbolRange { min: 1, max: 99 })]);
        assert_eq!((&padded - &s()).bounds(&ranges), (0, 3));
        assert_eq!(padded.min_with(&s()).within(&ranges), s());
    }
}
