//! Functions for targets without a library of them, in `f64` arithmetic: for `f32` operands the result is rounded once, and within 1 ulp.
//! For `f64` operands the relative error is below `1e-13`. Sine, cosine and tangent give NaN beyond `2^45`, where their argument carries no
//! angle; `erf` and remainders of `f64` are not here.
//!
//! Series are Taylor's or those of `atanh`, after the argument has been reduced so far that their length is short.

use transc_ir::loops::{Block, Inst, Reg, Stmt, Ty};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::DType;

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E, PI};

/// ln 2 split so that multiples of the first part by exponents are exact.
const LN2_HI: f64 = 0.693_147_180_369_123_8;
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
/// What `FRAC_PI_2` lacks, in two parts.
const PI_2_MID: f64 = 6.123_233_995_736_766e-17;
const PI_2_LO: f64 = -1.497_384_904_859_17e-33;

/// Appends instructions on `f64` values of one number of lanes.
pub(super) struct Wide<'a> {
    pub(super) regs: &'a mut Vec<Ty>,
    pub(super) out: &'a mut Block,
    pub(super) lanes: u16,
}

impl Wide<'_> {
    pub(super) fn push(&mut self, dtype: DType, inst: Inst) -> Reg {
        self.regs.push(Ty::vector(dtype, self.lanes));
        let r = Reg((self.regs.len() - 1) as u32);
        self.out.push(Stmt::Let(r, inst));
        r
    }

    fn lit(&mut self, v: Literal) -> Reg {
        self.regs.push(Ty::scalar(v.dtype));
        let r = Reg((self.regs.len() - 1) as u32);
        self.out.push(Stmt::Let(r, Inst::Const(v)));
        if self.lanes == 1 { r } else { self.push(v.dtype, Inst::Splat(self.lanes, r)) }
    }

    fn num(&mut self, v: f64) -> Reg {
        self.lit(Literal::from_f64(DType::F64, v))
    }

    fn int(&mut self, v: i64) -> Reg {
        self.lit(Literal::i64(v))
    }

    fn un(&mut self, op: UnOp, a: Reg) -> Reg {
        self.push(DType::F64, Inst::Un(op, a))
    }

    fn bin(&mut self, op: BinOp, a: Reg, b: Reg) -> Reg {
        let d = if op.is_compare() { DType::Bool } else { self.regs[a.0 as usize].dtype };
        self.push(d, Inst::Bin(op, a, b))
    }

    /// An operation with a constant on the right.
    fn with(&mut self, op: BinOp, a: Reg, b: f64) -> Reg {
        let b = self.num(b);
        self.bin(op, a, b)
    }

    fn fma(&mut self, a: Reg, b: Reg, c: Reg) -> Reg {
        self.push(DType::F64, Inst::Fma(a, b, c))
    }

    fn select(&mut self, c: Reg, a: Reg, b: Reg) -> Reg {
        self.push(self.regs[a.0 as usize].dtype, Inst::Select(c, a, b))
    }

    fn bits(&mut self, to: DType, a: Reg) -> Reg {
        self.push(to, Inst::Bitcast(to, a))
    }

    /// Horner's rule, lowest power first.
    fn poly(&mut self, x: Reg, coefficients: &[f64]) -> Reg {
        let mut acc = self.num(coefficients[coefficients.len() - 1]);
        for c in coefficients.iter().rev().skip(1) {
            let c = self.num(*c);
            acc = self.fma(acc, x, c);
        }
        acc
    }

    fn copy_sign(&mut self, magnitude: Reg, sign: Reg) -> Reg {
        let magnitude = self.un(UnOp::Abs, magnitude);
        let (m, s) = (self.bits(DType::I64, magnitude), self.bits(DType::I64, sign));
        let mask = self.int(i64::MIN);
        let s = self.bin(BinOp::And, s, mask);
        let m = self.bin(BinOp::Or, m, s);
        self.bits(DType::F64, m)
    }

    /// The function of an operation; `None` if it is not here.
    pub(super) fn function(&mut self, op: UnOp, x: Reg) -> Option<Reg> {
        Some(match op {
            UnOp::Exp => self.exp(x),
            UnOp::Log => self.log(x),
            UnOp::Log1p => self.log1p(x),
            UnOp::Sigmoid => {
                let n = self.un(UnOp::Neg, x);
                let e = self.exp(n);
                let d = self.with(BinOp::Add, e, 1.0);
                let one = self.num(1.0);
                self.bin(BinOp::Div, one, d)
            }
            UnOp::Tanh => self.tanh(x),
            UnOp::Sinh => self.sinh(x),
            UnOp::Cosh => {
                let (e, inverse) = self.exp_both(x);
                let sum = self.bin(BinOp::Add, e, inverse);
                self.with(BinOp::Mul, sum, 0.5)
            }
            UnOp::Asinh => self.asinh(x),
            UnOp::Acosh => self.acosh(x),
            UnOp::Atanh => self.atanh(x),
            UnOp::Sin => self.sin_cos(x).0,
            UnOp::Cos => self.sin_cos(x).1,
            UnOp::Tan => {
                let (s, c) = self.sin_cos(x);
                self.bin(BinOp::Div, s, c)
            }
            UnOp::Asin => {
                let (less, more) = self.one_minus_plus(x);
                let p = self.bin(BinOp::Mul, less, more);
                let root = self.un(UnOp::Sqrt, p);
                let t = self.bin(BinOp::Div, x, root);
                self.atan(t)
            }
            UnOp::Acos => {
                let (less, more) = self.one_minus_plus(x);
                let q = self.bin(BinOp::Div, less, more);
                let t = self.un(UnOp::Sqrt, q);
                let half = self.atan(t);
                self.with(BinOp::Mul, half, 2.0)
            }
            UnOp::Atan => self.atan(x),
            _ => return None,
        })
    }

    /// `2^n` for integers with `-1023 < n < 1024`.
    fn pow2(&mut self, n: Reg) -> Reg {
        let (bias, shift) = (self.int(1023), self.int(52));
        let e = self.bin(BinOp::Add, n, bias);
        let e = self.bin(BinOp::Shl, e, shift);
        self.bits(DType::F64, e)
    }

    /// `e^x = 2^n e^r` with `n = round(x / ln 2)`; `2^n` in two factors, for the ends of the range.
    fn exp(&mut self, x: Reg) -> Reg {
        let (top, bottom) = (self.num(710.0), self.num(-746.0));
        let over = self.bin(BinOp::Gt, x, top);
        let x = self.select(over, top, x);
        let under = self.bin(BinOp::Lt, x, bottom);
        let x = self.select(under, bottom, x);
        let n = self.with(BinOp::Mul, x, LOG2_E);
        let n = self.un(UnOp::Round, n);
        let (hi, lo) = (self.num(-LN2_HI), self.num(-LN2_LO));
        let r = self.fma(n, hi, x);
        let r = self.fma(n, lo, r);
        let mut factorial = 1.0;
        let series: Vec<f64> = (0..15)
            .map(|k| {
                factorial *= f64::from(k.max(1));
                1.0 / factorial
            })
            .collect();
        let q = self.poly(r, &series);
        let n = self.push(DType::I64, Inst::Cast(DType::I64, n));
        let one = self.int(1);
        let half = self.bin(BinOp::Shr, n, one);
        let rest = self.bin(BinOp::Sub, n, half);
        let (f, g) = (self.pow2(half), self.pow2(rest));
        let q = self.bin(BinOp::Mul, q, f);
        self.bin(BinOp::Mul, q, g)
    }

    /// `log(m 2^e) = e ln 2 + 2 atanh((m - 1) / (m + 1))` with `m` in `[sqrt(1/2), sqrt(2))`.
    fn log(&mut self, x: Reg) -> Reg {
        let small = self.with(BinOp::Lt, x, f64::MIN_POSITIVE);
        let scaled = self.with(BinOp::Mul, x, (1i64 << 54) as f64);
        let y = self.select(small, scaled, x);
        let (zero, minus) = (self.int(0), self.int(-54));
        let e0 = self.select(small, minus, zero);
        let b = self.bits(DType::I64, y);
        let root_half = self.int(std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64);
        let d = self.bin(BinOp::Sub, b, root_half);
        let shift = self.int(52);
        let e = self.bin(BinOp::Shr, d, shift);
        let exponent = self.bin(BinOp::Shl, e, shift);
        let m = self.bin(BinOp::Sub, b, exponent);
        let m = self.bits(DType::F64, m);
        let e = self.bin(BinOp::Add, e, e0);
        let e = self.push(DType::F64, Inst::Cast(DType::F64, e));
        let (f, g) = (self.with(BinOp::Sub, m, 1.0), self.with(BinOp::Add, m, 1.0));
        let s = self.bin(BinOp::Div, f, g);
        let z = self.bin(BinOp::Mul, s, s);
        let series: Vec<f64> = (0..13).map(|k| 2.0 / f64::from(2 * k + 1)).collect();
        let p = self.poly(z, &series);
        let (hi, lo) = (self.num(LN2_HI), self.num(LN2_LO));
        let low = self.bin(BinOp::Mul, e, lo);
        let low = self.fma(s, p, low);
        let value = self.fma(e, hi, low);
        let (neg_inf, nan) = (self.num(f64::NEG_INFINITY), self.num(f64::NAN));
        let is_zero = self.with(BinOp::Eq, x, 0.0);
        let value = self.select(is_zero, neg_inf, value);
        let negative = self.with(BinOp::Lt, x, 0.0);
        let value = self.select(negative, nan, value);
        // Infinity and NaN pass.
        let finite = self.with(BinOp::Lt, x, f64::INFINITY);
        self.select(finite, value, x)
    }

    /// `log(u)` with `u = 1 + x`, plus what the rounding of `u` lost.
    fn log1p(&mut self, x: Reg) -> Reg {
        let u = self.with(BinOp::Add, x, 1.0);
        let log = self.log(u);
        let kept = self.with(BinOp::Sub, u, 1.0);
        let lost = self.bin(BinOp::Sub, x, kept);
        let lost = self.bin(BinOp::Div, lost, u);
        let value = self.bin(BinOp::Add, log, lost);
        // At the ends, and where -1 gives -inf, the correction has no value.
        let size = self.un(UnOp::Abs, log);
        let finite = self.with(BinOp::Lt, size, f64::INFINITY);
        self.select(finite, value, log)
    }

    /// `e^|x|` and its inverse.
    fn exp_both(&mut self, x: Reg) -> (Reg, Reg) {
        let a = self.un(UnOp::Abs, x);
        let e = self.exp(a);
        let one = self.num(1.0);
        (e, self.bin(BinOp::Div, one, e))
    }

    fn sinh(&mut self, x: Reg) -> Reg {
        let (e, inverse) = self.exp_both(x);
        let d = self.bin(BinOp::Sub, e, inverse);
        let d = self.with(BinOp::Mul, d, 0.5);
        let large = self.copy_sign(d, x);
        let z = self.bin(BinOp::Mul, x, x);
        let mut factorial = 1.0;
        let series: Vec<f64> = (0..8)
            .map(|k| {
                factorial *= f64::from((2 * k * (2 * k + 1)).max(1));
                1.0 / factorial
            })
            .collect();
        let p = self.poly(z, &series);
        let small = self.bin(BinOp::Mul, x, p);
        let a = self.un(UnOp::Abs, x);
        let c = self.with(BinOp::Lt, a, 0.5);
        self.select(c, small, large)
    }

    /// `s / sqrt(1 + s^2)` of `s = sinh(x)` near zero, `1 - 2 / (e^(2|x|) + 1)` elsewhere.
    fn tanh(&mut self, x: Reg) -> Reg {
        let a = self.un(UnOp::Abs, x);
        let double = self.with(BinOp::Mul, a, 2.0);
        let e = self.exp(double);
        let d = self.with(BinOp::Add, e, 1.0);
        let (one, two) = (self.num(1.0), self.num(2.0));
        let q = self.bin(BinOp::Div, two, d);
        let large = self.bin(BinOp::Sub, one, q);
        let large = self.copy_sign(large, x);
        let s = self.sinh(x);
        let root = self.fma(s, s, one);
        let root = self.un(UnOp::Sqrt, root);
        let small = self.bin(BinOp::Div, s, root);
        let c = self.with(BinOp::Lt, a, 0.5);
        self.select(c, small, large)
    }

    /// `value` up to `1e8`, beyond it `log(2 a)`, whose difference from both inverse functions has vanished.
    fn or_log_of_double(&mut self, a: Reg, value: Reg) -> Reg {
        let log = self.log(a);
        let log = self.with(BinOp::Add, log, LN_2);
        let c = self.with(BinOp::Gt, a, 1e8);
        self.select(c, log, value)
    }

    fn asinh(&mut self, x: Reg) -> Reg {
        let a = self.un(UnOp::Abs, x);
        let one = self.num(1.0);
        let square = self.bin(BinOp::Mul, a, a);
        let root = self.bin(BinOp::Add, square, one);
        let root = self.un(UnOp::Sqrt, root);
        let d = self.bin(BinOp::Add, root, one);
        let q = self.bin(BinOp::Div, square, d);
        let t = self.bin(BinOp::Add, a, q);
        let value = self.log1p(t);
        let value = self.or_log_of_double(a, value);
        self.copy_sign(value, x)
    }

    fn acosh(&mut self, x: Reg) -> Reg {
        let t = self.with(BinOp::Sub, x, 1.0);
        let two = self.num(2.0);
        let double = self.bin(BinOp::Mul, t, two);
        let root = self.fma(t, t, double);
        let root = self.un(UnOp::Sqrt, root);
        let t = self.bin(BinOp::Add, t, root);
        let value = self.log1p(t);
        let value = self.or_log_of_double(x, value);
        let (valid, nan) = (self.with(BinOp::Ge, x, 1.0), self.num(f64::NAN));
        self.select(valid, value, nan)
    }

    fn atanh(&mut self, x: Reg) -> Reg {
        let a = self.un(UnOp::Abs, x);
        let one = self.num(1.0);
        let (double, d) = (self.bin(BinOp::Add, a, a), self.bin(BinOp::Sub, one, a));
        let q = self.bin(BinOp::Div, double, d);
        let value = self.log1p(q);
        let value = self.with(BinOp::Mul, value, 0.5);
        let signed = self.copy_sign(value, x);
        // The sign of NaN is free; NaN itself must stay.
        let valid = self.bin(BinOp::Le, a, one);
        self.select(valid, signed, value)
    }

    fn one_minus_plus(&mut self, x: Reg) -> (Reg, Reg) {
        let one = self.num(1.0);
        (self.bin(BinOp::Sub, one, x), self.bin(BinOp::Add, one, x))
    }

    /// Both from the remainder by a quarter turn (Cody and Waite 1980, in three parts) and the quarter.
    fn sin_cos(&mut self, x: Reg) -> (Reg, Reg) {
        let n = self.with(BinOp::Mul, x, std::f64::consts::FRAC_2_PI);
        let n = self.un(UnOp::Round, n);
        let mut r = x;
        for part in [-FRAC_PI_2, -PI_2_MID, -PI_2_LO] {
            let part = self.num(part);
            r = self.fma(n, part, r);
        }
        let z = self.bin(BinOp::Mul, r, r);
        let alternating = |from: u32| -> Vec<f64> {
            let mut f = 1.0;
            let mut series = Vec::new();
            for k in 0..10u32 {
                if k > 0 {
                    f *= -f64::from((2 * k + from - 1) * (2 * k + from));
                }
                series.push(1.0 / f);
            }
            series
        };
        let s = self.poly(z, &alternating(1));
        let s = self.bin(BinOp::Mul, s, r);
        let c = self.poly(z, &alternating(0));
        let quarter = self.push(DType::I64, Inst::Cast(DType::I64, n));
        let (zero, one, two) = (self.int(0), self.int(1), self.int(2));
        let bit = |w: &mut Self, v: Reg, mask: Reg| {
            let b = w.bin(BinOp::And, v, mask);
            w.bin(BinOp::Ne, b, zero)
        };
        let odd = bit(self, quarter, one);
        let next = self.bin(BinOp::Add, quarter, one);
        let (sin_negative, cos_negative) = (bit(self, quarter, two), bit(self, next, two));
        let size = self.un(UnOp::Abs, x);
        let sane = self.with(BinOp::Le, size, (1i64 << 45) as f64);
        let nan = self.num(f64::NAN);
        let mut pick = |a: Reg, b: Reg, negative: Reg| {
            let v = self.select(odd, b, a);
            let minus = self.un(UnOp::Neg, v);
            let v = self.select(negative, minus, v);
            self.select(sane, v, nan)
        };
        (pick(s, c, sin_negative), pick(c, s, cos_negative))
    }

    /// The angle is split at `tan(pi/8)` and `tan(3 pi/8)`, so that the series sees at most `tan(pi/8)`.
    fn atan(&mut self, x: Reg) -> Reg {
        let a = self.un(UnOp::Abs, x);
        let (minus, zero) = (self.num(-1.0), self.num(0.0));
        let (less, more) = (self.with(BinOp::Sub, a, 1.0), self.with(BinOp::Add, a, 1.0));
        let (middle, far) = (self.bin(BinOp::Div, less, more), self.bin(BinOp::Div, minus, a));
        let root = std::f64::consts::SQRT_2;
        let (over, beyond) = (self.with(BinOp::Gt, a, root - 1.0), self.with(BinOp::Gt, a, root + 1.0));
        let t = self.select(over, middle, a);
        let t = self.select(beyond, far, t);
        let (eighth, quarter) = (self.num(FRAC_PI_4), self.num(FRAC_PI_2));
        let base = self.select(over, eighth, zero);
        let base = self.select(beyond, quarter, base);
        let z = self.bin(BinOp::Mul, t, t);
        let series: Vec<f64> = (0..21).map(|k| if k % 2 == 0 { 1.0 } else { -1.0 } / f64::from(2 * k + 1)).collect();
        let p = self.poly(z, &series);
        let v = self.fma(t, p, base);
        self.copy_sign(v, x)
    }

    pub(super) fn atan2(&mut self, y: Reg, x: Reg) -> Reg {
        let (ax, ay) = (self.un(UnOp::Abs, x), self.un(UnOp::Abs, y));
        let q = self.bin(BinOp::Div, ay, ax);
        // Equal sizes stand for 45 degrees, also where they are infinite; two zeros for none.
        let (one, zero) = (self.num(1.0), self.num(0.0));
        let equal = self.bin(BinOp::Eq, ax, ay);
        let q = self.select(equal, one, q);
        let none = self.with(BinOp::Eq, ay, 0.0);
        let number = self.bin(BinOp::Eq, x, x);
        let none = self.bin(BinOp::And, none, number);
        let q = self.select(none, zero, q);
        let v = self.atan(q);
        let pi = self.num(PI);
        let back = self.bin(BinOp::Sub, pi, v);
        let bits = self.bits(DType::I64, x);
        let least = self.int(0);
        let behind = self.bin(BinOp::Lt, bits, least);
        let v = self.select(behind, back, v);
        self.copy_sign(v, y)
    }

    /// `e^(y log |x|)`, with the sign and the special cases of C's `pow`.
    pub(super) fn pow(&mut self, x: Reg, y: Reg) -> Reg {
        let (ax, ay) = (self.un(UnOp::Abs, x), self.un(UnOp::Abs, y));
        let log = self.log(ax);
        let product = self.bin(BinOp::Mul, y, log);
        let size = self.exp(product);
        let whole = self.un(UnOp::Trunc, y);
        let whole = self.bin(BinOp::Eq, whole, y);
        let half = self.with(BinOp::Mul, y, 0.5);
        let half_whole = self.un(UnOp::Trunc, half);
        let uneven = self.bin(BinOp::Ne, half_whole, half);
        let odd = self.bin(BinOp::And, whole, uneven);
        let signed = self.copy_sign(size, x);
        let v = self.select(odd, signed, size);
        // A negative finite number has no real power that is no whole number.
        let (negative, finite) = (self.with(BinOp::Lt, x, 0.0), self.with(BinOp::Lt, ax, f64::INFINITY));
        let bad = self.bin(BinOp::And, negative, finite);
        let broken = self.push(DType::Bool, Inst::Un(UnOp::Not, whole));
        let bad = self.bin(BinOp::And, bad, broken);
        let nan = self.num(f64::NAN);
        let v = self.select(bad, nan, v);
        let one = self.num(1.0);
        let (unit, endless) = (self.with(BinOp::Eq, ax, 1.0), self.with(BinOp::Eq, ay, f64::INFINITY));
        let still = self.bin(BinOp::And, unit, endless);
        let (none, is_one) = (self.with(BinOp::Eq, y, 0.0), self.with(BinOp::Eq, x, 1.0));
        let constant = self.bin(BinOp::Or, none, is_one);
        let constant = self.bin(BinOp::Or, constant, still);
        self.select(constant, one, v)
    }

    /// The remainder of `f32` values by repeated exact steps: each takes 53 bits off a quotient of at most 277. With `floor` its sign is the
    /// divisor's, else the dividend's.
    pub(super) fn remainder(&mut self, x: Reg, y: Reg, floor: bool) -> Reg {
        let mut r = x;
        for _ in 0..6 {
            let q = self.bin(BinOp::Div, r, y);
            let q = self.un(UnOp::Trunc, q);
            let q = self.un(UnOp::Neg, q);
            r = self.fma(q, y, r);
        }
        // A rounded quotient may have gone one too far.
        let crossed = self.bin(BinOp::Mul, r, x);
        let crossed = self.with(BinOp::Lt, crossed, 0.0);
        let back = self.copy_sign(y, x);
        let sum = self.bin(BinOp::Add, r, back);
        let r = self.select(crossed, sum, r);
        let r = self.copy_sign(r, x);
        // By infinity, a number is its own remainder.
        let (ax, ay) = (self.un(UnOp::Abs, x), self.un(UnOp::Abs, y));
        let (endless, finite) = (self.with(BinOp::Eq, ay, f64::INFINITY), self.with(BinOp::Lt, ax, f64::INFINITY));
        let own = self.bin(BinOp::And, endless, finite);
        let r = self.select(own, x, r);
        if !floor {
            return r;
        }
        let opposite = self.bin(BinOp::Mul, r, y);
        let opposite = self.with(BinOp::Lt, opposite, 0.0);
        let sum = self.bin(BinOp::Add, r, y);
        self.select(opposite, sum, r)
    }
}
