//! Division of `f32` by a constant without a division: two multiplications by parts of its reciprocal.
//!
//! `x / c = x * high + x * low`, the last step fused, where `high + low` is `1 / c` to twice the precision (Brisebarre, Muller and Raina 2004,
//! "Accelerating correctly rounded floating-point division when the divisor is known in advance"). The sum is within `2^-46` of the quotient
//! before it is rounded, so the result can differ from the quotient rounded once only where that lies as close to the middle between two
//! floats. Such dividends are few and known ([`close_to_a_middle`]); a constant for which one of them comes out wrong has no [`Reciprocal`].
//!
//! Both parts have one sign, so infinities stay infinite. Quotients below `2^-100` may be off by one unit in the last place.

/// What to multiply by in place of dividing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reciprocal {
    pub(super) high: f32,
    /// None where the first part is the reciprocal itself.
    pub(super) low: Option<f32>,
}

/// Divisors between these bounds keep the parts of their reciprocals far from denormals and overflow.
const SIZES: std::ops::RangeInclusive<f32> = 1e-18..=1e18;
/// Bits of a significand.
const BITS: u32 = f32::MANTISSA_DIGITS;
/// The largest distance of a quotient from a middle that needs a look, in units of its numerator: `2^24 * 2^24 * 2^-45`.
const NEAR: i64 = 8;

impl Reciprocal {
    /// The parts of `1 / c`; `None` if dividing by them is not dividing by `c`.
    pub(super) fn of(c: f32) -> Option<Reciprocal> {
        if !SIZES.contains(&c.abs()) {
            return None;
        }
        let inverse = 1.0 / f64::from(c);
        // Toward zero.
        let mut high = inverse as f32;
        if f64::from(high).abs() > inverse.abs() {
            high = f32::from_bits(high.to_bits() - 1);
        }
        // Products of two `f32` are exact in `f64`, and so is what this one lacks.
        let rest = (1.0 - f64::from(c) * f64::from(high)) / f64::from(c);
        let r = Reciprocal { high, low: (rest != 0.0).then_some(rest as f32) };
        close_to_a_middle(c).into_iter().all(|x| r.apply(x) == x / c).then_some(r)
    }

    /// `x / c` as the code computes it.
    fn apply(self, x: f32) -> f32 {
        self.low.map_or(x * self.high, |low| x.mul_add(self.high, x * low))
    }
}

/// Every significand `x`, as an integer, whose quotient by the significand of `c` lies within [`NEAR`] of the middle between two floats.
///
/// With `2^k m`, `m` odd and of 25 bits, that middle, `2^j x - s m = r` for a small `r`: for each `r` a congruence for `m`.
fn close_to_a_middle(c: f32) -> Vec<f32> {
    let s = i64::from(c.to_bits() & ((1 << (BITS - 1)) - 1) | 1 << (BITS - 1));
    let (even, odd) = (s.trailing_zeros(), s >> s.trailing_zeros());
    let mut found = Vec::new();
    // Quotients in 1..2, then in 1/2..1.
    for j in [BITS, BITS + 1] {
        for r in (-NEAR..=NEAR).filter(|r| *r != 0 && r % (1 << even) == 0) {
            let modulus = 1i64 << (j - even);
            let first = (-(r >> even)).wrapping_mul(inverse_mod_power_of_two(odd)).rem_euclid(modulus);
            let from = (1 << BITS) + (first - (1 << BITS)).rem_euclid(modulus);
            for m in (from..1 << (BITS + 1)).step_by(modulus as usize).filter(|m| m % 2 == 1) {
                let x = (s * m + r) >> j;
                if (s * m + r) % (1 << j) == 0 && (1 << (BITS - 1)..1 << BITS).contains(&x) {
                    found.push(x as f32);
                }
            }
        }
    }
    found
}

/// The inverse of an odd number modulo `2^64`: each step of Newton's doubles the bits that are right, and the number itself has three.
fn inverse_mod_power_of_two(odd: i64) -> i64 {
    (0..5).fold(odd, |y, _| y.wrapping_mul(2i64.wrapping_sub(odd.wrapping_mul(y))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> impl FnMut() -> u32 {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        }
    }

    #[test]
    fn quotients_are_rounded_once() {
        let mut next = random();
        let (mut found, total) = (0, 4000);
        for _ in 0..total {
            let c = f32::from_bits(next() & 0x807f_ffff | (100 + next() % 54) << 23);
            let Some(r) = Reciprocal::of(c) else { continue };
            found += 1;
            for _ in 0..500 {
                let x = f32::from_bits(next() & 0x807f_ffff | (90 + next() % 74) << 23);
                assert_eq!(r.apply(x).to_bits(), (x / c).to_bits(), "{x:e} / {c:e}");
            }
            for x in close_to_a_middle(c).into_iter().flat_map(|x| [x, -x, x * 1024.0, x / 65536.0]) {
                assert_eq!(r.apply(x).to_bits(), (x / c).to_bits(), "{x:e} / {c:e}");
            }
            for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(r.apply(x).to_bits(), (x / c).to_bits(), "{x:e} / {c:e}");
            }
            assert!(r.apply(f32::NAN).is_nan());
        }
        assert!(found > total * 9 / 10, "{found} of {total}");
    }

    /// All dividends of some divisors: none that is not in the list comes out wrong.
    #[test]
    fn no_dividend_is_forgotten() {
        let mut next = random();
        for _ in 0..12 {
            let c = f32::from_bits(next() & 0x007f_ffff | 127 << 23);
            let all_right = (1 << 23..1 << 24).all(|x| {
                let x = x as f32;
                let inverse = 1.0 / f64::from(c);
                let high = inverse as f32;
                let high = if f64::from(high) > inverse { high.next_down() } else { high };
                let low = ((1.0 - f64::from(c) * f64::from(high)) / f64::from(c)) as f32;
                x.mul_add(high, x * low) == x / c
            });
            assert_eq!(all_right, Reciprocal::of(c).is_some(), "{c:e}");
        }
    }

    #[test]
    fn powers_of_two_need_one_product() {
        for (c, high) in [(1.0, 1.0), (-4.0, -0.25), (0.125, 8.0)] {
            assert_eq!(Reciprocal::of(c), Some(Reciprocal { high, low: None }));
        }
        for c in [0.0, -0.0, f32::INFINITY, f32::NAN, 1e-30, 1e30] {
            assert_eq!(Reciprocal::of(c), None);
        }
    }
}
