//! Quotients and remainders of dims.

use std::collections::BTreeMap;

use super::{Atom, Dim, Monomial};

/// Terms of a quotient by several terms; what would need more is left as it stands.
const MAX_STEPS: usize = 16;

impl Dim {
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
            && let Some(rest) = checked_modulo(a, b)
        {
            return rest.into();
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

    /// The quotient, if the division comes out even as a polynomial: a monomial divisor that divides every term, or a divisor
    /// that is a constant multiple of the dividend.
    pub fn exact_div(&self, d: &Dim) -> Option<Dim> {
        if d.is(0) {
            return None;
        }
        let divisor = d.terms();
        if let [by] = divisor.as_slice() {
            let quotient = self.terms().iter().map(|term| divide_term(term, by)).collect::<Option<_>>()?;
            return Some(Dim::from_terms(quotient));
        }
        // Long division by the largest monomial of the divisor: each step removes a term.
        let lead = divisor.last()?;
        let mut rest = self.clone();
        let mut quotient = Dim::from(0);
        for _ in 0..MAX_STEPS {
            let Some(term) = rest.terms().iter().rev().find_map(|term| divide_term(term, lead)) else { break };
            let q = Dim::from_terms(BTreeMap::from([term]));
            rest = &rest - &(&q * d);
            quotient = &quotient + &q;
        }
        rest.is(0).then_some(quotient)
    }
}

pub(super) fn checked_floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && ((a < 0) != (b < 0)) { q - 1 } else { q })
}

pub(super) fn checked_modulo(a: i64, b: i64) -> Option<i64> {
    // The product may leave 64 bits; the difference is back inside.
    checked_floor_div(a, b).map(|q| a.wrapping_sub(q.wrapping_mul(b)))
}

/// The quotient of two terms, if it is even.
fn divide_term((m, c): &(Monomial, i64), (by_m, by_c): &(Monomial, i64)) -> Option<(Monomial, i64)> {
    let q = c.checked_div(*by_c).filter(|q| q * by_c == *c)?;
    let mut rest = m.clone();
    for a in by_m {
        let at = rest.iter().position(|x| x == a)?;
        rest.remove(at);
    }
    Some((rest, q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::dim::tests::{b, s};

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
    fn a_quotient_outside_of_64_bits_is_left_to_the_run() {
        let d = Dim::from(i64::MIN).floor_div(&(-1).into());
        assert_eq!(d.as_const(), None);
        assert!(d.eval(&|_| None).is_err());
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
}
