//! Reals that are quotients of dims, as exporters compute sizes: `ceil((n - 3) / 4 + 1)`.

use transc_ir::op::Op;
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref, UnOp};
use transc_ir::tensor::Node;
use transc_ir::types::Ranges;
use transc_ir::{DType, Dim, Module};

/// Most binary digits of a constant behind its point.
const MAX_DIGITS: u32 = 16;
/// Largest bottom.
const MAX_BOTTOM: i64 = 1 << 32;

/// `top / bottom`, the bottom positive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fraction {
    pub(super) top: Dim,
    pub(super) bottom: i64,
}

impl Fraction {
    pub(super) fn whole(top: Dim) -> Self {
        Self { top, bottom: 1 }
    }

    fn new(top: Dim, bottom: i64) -> Option<Self> {
        match top.exact_div(&bottom.into()) {
            Some(whole) => Some(Self::whole(whole)),
            None => (1..=MAX_BOTTOM).contains(&bottom).then_some(Self { top, bottom }),
        }
    }

    /// A number with few binary digits.
    fn constant(l: Literal) -> Option<Self> {
        let v = l.to_f64();
        let digits = (0..=MAX_DIGITS).find(|k| (v * f64::from(1u32 << k)).fract() == 0.0)?;
        let scaled = v * f64::from(1u32 << digits);
        if scaled.abs() < 1e15 { Self::new(Dim::from(scaled as i64), 1 << digits) } else { None }
    }

    fn floor(&self) -> Dim {
        self.top.floor_div(&self.bottom.into())
    }

    fn ceil(&self) -> Dim {
        self.top.ceil_div(&self.bottom.into())
    }

    fn bin(op: BinOp, a: &Self, b: &Self) -> Option<Self> {
        let bottom = a.bottom.checked_mul(b.bottom)?;
        let scaled = |f: &Self, by: i64| &f.top * &Dim::from(by);
        match op {
            BinOp::Add => Self::new(&scaled(a, b.bottom) + &scaled(b, a.bottom), bottom),
            BinOp::Sub => Self::new(&scaled(a, b.bottom) - &scaled(b, a.bottom), bottom),
            BinOp::Mul => Self::new(&a.top * &b.top, bottom),
            BinOp::Div => {
                let by = b.top.as_const().filter(|by| *by != 0)?;
                Self::new(scaled(a, b.bottom.checked_mul(by.signum())?), a.bottom.checked_mul(by.checked_abs()?)?)
            }
            _ => None,
        }
    }
}

/// The result of a node of one element, if it is one of the arithmetic of sizes.
pub(super) fn eval(m: &Module, node: &Node, operands: &[Option<Fraction>]) -> Option<Fraction> {
    match &node.op {
        Op::Constant(c) => {
            let t = transc_ir::interp::Tensor::from_const(m.consts.get(c.id)?);
            (t.count() == 1).then(|| Fraction::constant(t.get(0)))?
        }
        Op::Reshape(_) | Op::Broadcast(_) => operands.first()?.clone(),
        Op::Map(map) => {
            let types: Vec<DType> = node.operands.iter().map(|v| m.main.ty(*v).dtype).collect();
            scalar(&map.body, operands, &map.body.infer(&types).ok()?, &m.symbols)
        }
        _ => None,
    }
}

fn scalar(body: &Body, args: &[Option<Fraction>], types: &[DType], ranges: &Ranges) -> Option<Fraction> {
    let mut slots: Vec<Fraction> = Vec::new();
    let at = |slots: &[Fraction], r: Ref| match r {
        Ref::Arg(i) => args.get(i as usize)?.clone(),
        Ref::Inst(i) => slots.get(i as usize).cloned(),
    };
    for (inst, ty) in body.insts.iter().zip(types) {
        let of = |r: &Ref| at(&slots, *r);
        let v = match inst {
            Inst::Const(l) => Fraction::constant(*l)?,
            Inst::Dim(d) => Fraction::whole(d.clone()),
            Inst::Un(UnOp::Neg, a) => Fraction::bin(BinOp::Sub, &Fraction::whole(Dim::from(0)), &of(a)?)?,
            Inst::Un(UnOp::Floor, a) => Fraction::whole(of(a)?.floor()),
            Inst::Un(UnOp::Ceil, a) => Fraction::whole(of(a)?.ceil()),
            Inst::Bin(op, a, b) if ty.is_float() => Fraction::bin(*op, &of(a)?, &of(b)?)?,
            Inst::Cast(d, a) if d.is_float() => of(a)?,
            // Toward zero.
            Inst::Cast(DType::I64 | DType::I32, a) => {
                let f = of(a)?;
                Fraction::whole(if f.top.bounds(ranges).0 >= 0 { f.floor() } else { return None })
            }
            _ => return None,
        };
        slots.push(v);
    }
    at(&slots, body.result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(v: f32) -> Fraction {
        Fraction::constant(Literal::f32(v)).expect("it has few digits")
    }

    #[test]
    fn sizes_are_rounded() {
        let n = Fraction::whole(Dim::sym("n"));
        let frames = Fraction::bin(BinOp::Div, &n, &real(4.0)).and_then(|q| Fraction::bin(BinOp::Add, &q, &real(0.5)));
        let frames = frames.expect("it is a fraction");
        for v in 1..20 {
            let at = |d: &Dim| d.eval(&|_| Some(v));
            assert_eq!(at(&frames.floor()), Ok((v as f64 / 4.0 + 0.5).floor() as i64));
            assert_eq!(at(&frames.ceil()), Ok((v as f64 / 4.0 + 0.5).ceil() as i64));
        }
        assert_eq!(Fraction::bin(BinOp::Mul, &frames, &real(-4.0)).map(|f| f.bottom), Some(1));
    }

    #[test]
    fn other_numbers_are_not_followed() {
        assert_eq!(Fraction::constant(Literal::f32(1.0 / 3.0)), None);
        assert_eq!(Fraction::constant(Literal::f32(f32::NAN)), None);
        assert_eq!(Fraction::bin(BinOp::Div, &real(1.0), &real(0.0)), None);
    }
}
