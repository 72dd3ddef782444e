//! Element-wise steps.

use transc_ir::DType;
use transc_ir::op;
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};

use super::{FUNCTION_ULPS, Gen, Info, eps};

impl Gen<'_, '_> {
    /// `1 + |x|`: where division, roots and logarithms are tame.
    pub(super) fn one_plus_abs(&mut self, a: Info) -> Option<Info> {
        let d = self.dtype(a);
        let x = self.map_un(UnOp::Abs, a, a.mag, a.err)?;
        let one = self.b.scalar(Literal::from_f64(d, 1.0)).ok()?;
        let one = Info { v: one, mag: 1.0, err: 0.0 };
        self.map_bin(BinOp::Add, x, one, a.mag + 1.0, a.err + eps(d) * (a.mag + 1.0))
    }

    pub(super) fn unary(&mut self) -> Option<Info> {
        use UnOp as U;
        let a = self.float()?;
        let step = FUNCTION_ULPS * eps(self.dtype(a));
        let op = *self.r.pick(&[
            U::Neg,
            U::Abs,
            U::Sign,
            U::Exp,
            U::Log,
            U::Sqrt,
            U::Recip,
            U::Floor,
            U::Ceil,
            U::Trunc,
            U::Round,
            U::Erf,
            U::Tanh,
            U::Sigmoid,
            U::Sin,
            U::Cos,
            U::Atan,
            U::Asinh,
            U::Log1p,
            U::IsNan,
        ]);
        match op {
            U::Neg | U::Abs => self.map_un(op, a, a.mag, a.err),
            U::Sign | U::Floor | U::Ceil | U::Trunc | U::Round | U::IsNan if a.err > 0.0 => None,
            U::Sign | U::IsNan => self.map_un(op, a, 1.0, 0.0),
            U::Floor | U::Ceil | U::Trunc | U::Round => self.map_un(op, a, a.mag + 1.0, 0.0),
            U::Erf | U::Tanh | U::Sigmoid => self.map_un(op, a, 1.0, 1.2 * a.err + step),
            U::Sin | U::Cos => self.map_un(op, a, 1.0, a.err + step),
            U::Atan | U::Asinh => self.map_un(op, a, a.mag.min(16.0), a.err + step * a.mag.clamp(1.0, 16.0)),
            U::Exp => {
                let top = a.mag.exp();
                self.map_un(op, a, top, top * (1.1 * a.err + step))
            }
            _ => {
                let x = self.one_plus_abs(a)?;
                let (mag, slope) = if op == U::Recip { (1.0, 1.0) } else { (x.mag, 1.0) };
                self.map_un(op, x, mag, slope * x.err + step * mag)
            }
        }
    }

    pub(super) fn binary(&mut self) -> Option<Info> {
        use BinOp as B;
        let a = self.float()?;
        let d = self.dtype(a);
        let b = self.pick(|t, _| t.dtype == d)?;
        let op = *self.r.pick(&[B::Add, B::Sub, B::Mul, B::Div, B::Min, B::Max]);
        let e = eps(d);
        match op {
            B::Min | B::Max => self.map_bin(op, a, b, a.mag.max(b.mag), a.err.max(b.err)),
            B::Mul => self.map_bin(op, a, b, a.mag * b.mag, a.err * b.mag + b.err * a.mag + a.err * b.err + e * a.mag * b.mag),
            B::Div => {
                let x = self.one_plus_abs(b)?;
                self.map_bin(op, a, x, a.mag, a.err + 1.1 * a.mag * x.err + e * a.mag)
            }
            _ => self.map_bin(op, a, b, a.mag + b.mag, a.err + b.err + e * (a.mag + b.mag)),
        }
    }

    pub(super) fn compare_and_select(&mut self) -> Option<Info> {
        use BinOp as B;
        let a = self.pick(|_, i| i.err == 0.0)?;
        let d = self.dtype(a);
        let b = self.pick(|t, i| t.dtype == d && i.err == 0.0)?;
        let op = *self.r.pick(&[B::Eq, B::Ne, B::Lt, B::Le, B::Gt, B::Ge]);
        let c = self.map_bin(op, a, b, 1.0, 0.0)?;
        if self.r.one_in(3) {
            return Some(c);
        }
        let x = self.any();
        let d = self.dtype(x);
        let y = self.pick(|t, _| t.dtype == d)?;
        self.add(op::Map { body: Body::select() }, &[c, x, y], x.mag.max(y.mag), x.err.max(y.err))
    }

    pub(super) fn cast(&mut self) -> Option<Info> {
        let a = self.any();
        let (from, to) = (self.dtype(a), *self.r.pick(&DType::ALL));
        let op = op::Map { body: Body::cast(to) };
        if to.is_float() {
            // Twice: half-width floats may be reached through f32.
            return self.add(op, &[a], a.mag, if to == DType::F64 { a.err } else { a.err + 2.0 * eps(to) * a.mag });
        }
        if from.is_float() && a.err > 0.0 {
            return None;
        }
        let wraps = !from.is_float() && to != DType::Bool && (a.mag >= 100.0 || !to.is_signed_int());
        self.add(op, &[a], if wraps { 2f64.powi(to.bits() as i32) } else { a.mag.max(1.0) }, 0.0)
    }

    pub(super) fn integer(&mut self) -> Option<Info> {
        use BinOp as B;
        let a = self.pick(|t, _| !t.dtype.is_float())?;
        let d = self.dtype(a);
        let b = self.pick(|t, _| t.dtype == d)?;
        if d == DType::Bool {
            let op = *self.r.pick(&[B::And, B::Or, B::Xor]);
            return self.map_bin(op, a, b, 1.0, 0.0);
        }
        if self.r.one_in(4) {
            let op = *self.r.pick(&[UnOp::Neg, UnOp::Abs, UnOp::Sign, UnOp::Not]);
            return self.map_un(op, a, 2f64.powi(d.bits() as i32), 0.0);
        }
        let all = [B::Add, B::Sub, B::Mul, B::Div, B::Mod, B::Rem, B::Pow, B::Min, B::Max, B::And, B::Or, B::Xor, B::Shl, B::Shr];
        let op = *self.r.pick(&all);
        let mag = if matches!(op, B::Min | B::Max) { a.mag.max(b.mag) } else { 2f64.powi(d.bits() as i32) };
        self.map_bin(op, a, b, mag, 0.0)
    }

    /// Integer codes of exact values, or the values of codes.
    pub(super) fn codes(&mut self) -> Option<Info> {
        let short = |d: DType| matches!(d, DType::I8 | DType::U8 | DType::I16 | DType::U16);
        let to = *self.r.pick(&[DType::I8, DType::U8, DType::I16, DType::U16]);
        let float = if self.r.one_in(2) { self.pick(|t, i| t.dtype == DType::F32 && i.err == 0.0) } else { None };
        let a = match float {
            Some(a) => a,
            None => self.pick(|t, _| short(t.dtype))?,
        };
        let code = if float.is_some() { to } else { self.dtype(a) };
        // A power of two: the quotient has no rounding, and rounding it is exact.
        let scale = *self.r.pick(&[0.0625, 0.5, 2.0]);
        let v = self.b.scalar(Literal::from_f64(DType::F32, scale)).ok()?;
        let mut args = vec![a, Info { v, mag: scale, err: 0.0 }];
        if self.r.one_in(2) {
            let v = self.b.scalar(Literal::from_i64(code, 3)).ok()?;
            args.push(Info { v, mag: 3.0, err: 0.0 });
        }
        let top = 2f64.powi(code.bits() as i32);
        if float.is_some() {
            return self.add(op::Quantize { to }, &args, top, 0.0);
        }
        self.add(op::Dequantize {}, &args, top * scale, 0.0)
    }
}
