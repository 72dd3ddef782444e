//! What ranges of symbols say about dims: bounds, and which of two is smaller.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::division::checked_floor_div;
use super::{Atom, Dim, Repr, Symbol};

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

impl Dim {
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

    /// The dim with `k * a - k * mod(a, n)` in place of the first `k * n * floordiv(a, n)`: all but the remainder, and the largest that
    /// `k * mod(a, n)` gets, in size. Bounds of this form are tighter where `k * a` cancels.
    fn without_quotient(&self) -> Option<(Dim, i64)> {
        self.terms().into_iter().find_map(|(m, c)| {
            let [Atom::FloorDiv(a, n)] = m.as_slice() else { return None };
            let n = n.as_const().filter(|n| *n > 0 && c % n == 0)?;
            let times = c / n;
            let rest = self - &Dim::from_terms(BTreeMap::from([(m.clone(), c)]));
            Some((&rest + &(&Dim::from(times) * a), times.checked_mul(n - 1)?))
        })
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

fn mul_bounds(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    let p = [a.0.saturating_mul(b.0), a.0.saturating_mul(b.1), a.1.saturating_mul(b.0), a.1.saturating_mul(b.1)];
    p.iter().fold((i64::MAX, i64::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::dim::tests::s;

    #[test]
    fn bounds_follow_ranges() {
        let r: Ranges = [(Symbol::new("S"), SymbolRange { min: 1, max: 512 })].into_iter().collect();
        assert_eq!((&s() + &s()).bounds(&r), (2, 1024));
        assert_eq!(s().floor_div(&3.into()).bounds(&r), (0, 170));
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
