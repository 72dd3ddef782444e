//! Scalar semantics: what every scalar operation means, one rounding each.

use super::{EvalCx, EvalError};
use crate::scalar::{BinOp, Body, Inst, Literal, Ref, UnOp};
use crate::types::DType;

/// Evaluates a body. `slots` is working memory, reused between calls.
///
/// # Errors
/// An integer division by zero, or a dim with no value.
pub fn eval_body(body: &Body, args: &[Literal], cx: &EvalCx<'_>, slots: &mut Vec<Literal>) -> Result<Literal, EvalError> {
    slots.clear();
    for inst in &body.insts {
        let at = |r: Ref| match r {
            Ref::Arg(i) => args[i as usize],
            Ref::Inst(i) => slots[i as usize],
        };
        let v = match inst {
            Inst::Const(l) => *l,
            Inst::Dim(d) => Literal::i64(d.eval(cx.symbols)?),
            Inst::Un(op, a) => un(*op, at(*a)),
            Inst::Bin(op, a, b) => bin(*op, at(*a), at(*b))?,
            Inst::Select(c, a, b) => {
                if at(*c).bits != 0 {
                    at(*a)
                } else {
                    at(*b)
                }
            }
            Inst::Cast(d, a) => cast(*d, at(*a)),
        };
        slots.push(v);
    }
    Ok(match body.result {
        Ref::Arg(i) => args[i as usize],
        Ref::Inst(i) => slots[i as usize],
    })
}

/// Conversion; see [`Inst::Cast`].
pub fn cast(to: DType, a: Literal) -> Literal {
    match (a.dtype.is_float(), to) {
        (_, t) if t == a.dtype => a,
        (true, DType::Bool) => Literal::bool(a.to_f64() != 0.0),
        (false, DType::Bool) => Literal::bool(a.bits != 0),
        (true, t) => Literal::from_f64(t, a.to_f64()),
        (false, t) if t.is_float() && a.dtype == DType::U64 => match t {
            DType::F32 => Literal::f32(a.bits as f32),
            t => Literal::from_f64(t, a.bits as f64),
        },
        (false, t) => Literal::from_i64(t, a.to_i64()),
    }
}

/// An operation on one scalar.
pub fn un(op: UnOp, a: Literal) -> Literal {
    let d = a.dtype;
    if !d.is_float() {
        let v = a.to_i64();
        return match op {
            UnOp::Neg => Literal::from_i64(d, v.wrapping_neg()),
            UnOp::Abs if d.is_signed_int() => Literal::from_i64(d, v.wrapping_abs()),
            UnOp::Sign if d.is_signed_int() => Literal::from_i64(d, v.signum()),
            UnOp::Sign => Literal::from_i64(d, i64::from(a.bits != 0)),
            UnOp::Not if d == DType::Bool => Literal::bool(a.bits == 0),
            UnOp::Not => Literal::from_i64(d, !v),
            _ => a,
        };
    }
    let x = a.to_f64();
    let y = match op {
        UnOp::Neg => -x,
        UnOp::Abs => x.abs(),
        UnOp::Sign => {
            if x.is_nan() || x == 0.0 {
                x
            } else {
                x.signum()
            }
        }
        UnOp::Exp => x.exp(),
        UnOp::Log => x.ln(),
        UnOp::Sqrt => x.sqrt(),
        UnOp::Recip => 1.0 / x,
        UnOp::Floor => x.floor(),
        UnOp::Ceil => x.ceil(),
        UnOp::Trunc => x.trunc(),
        UnOp::Round => x.round_ties_even(),
        UnOp::Erf => libm::erf(x),
        UnOp::Tanh => x.tanh(),
        UnOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnOp::Sin => x.sin(),
        UnOp::Cos => x.cos(),
        UnOp::Tan => x.tan(),
        UnOp::Asin => x.asin(),
        UnOp::Acos => x.acos(),
        UnOp::Atan => x.atan(),
        UnOp::Sinh => x.sinh(),
        UnOp::Cosh => x.cosh(),
        UnOp::Asinh => libm::asinh(x),
        // libm gives numbers for some arguments below the domain.
        UnOp::Acosh if x < 1.0 => f64::NAN,
        UnOp::Acosh => libm::acosh(x),
        UnOp::Atanh => libm::atanh(x),
        UnOp::Log1p => x.ln_1p(),
        UnOp::IsNan => return Literal::bool(x.is_nan()),
        UnOp::IsInf => return Literal::bool(x.is_infinite()),
        UnOp::Not => x,
    };
    Literal::from_f64(d, y)
}

/// An operation on two scalars of one type.
///
/// # Errors
/// An integer division by zero.
pub fn bin(op: BinOp, a: Literal, b: Literal) -> Result<Literal, EvalError> {
    let d = a.dtype;
    if d.is_float() {
        return Ok(float_bin(op, a, b));
    }
    if d == DType::U64 {
        return unsigned_bin(op, a.bits, b.bits);
    }
    let (x, y) = (a.to_i64(), b.to_i64());
    let v = match op {
        BinOp::Add => x.wrapping_add(y),
        BinOp::Sub => x.wrapping_sub(y),
        BinOp::Mul => x.wrapping_mul(y),
        BinOp::Div | BinOp::Rem | BinOp::Mod if y == 0 => return Err(EvalError::DivisionByZero),
        BinOp::Div => x.wrapping_div(y),
        BinOp::Rem => x.wrapping_rem(y),
        BinOp::Mod => {
            let r = x.wrapping_rem(y);
            if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
        }
        BinOp::Pow => int_pow(x, y),
        BinOp::Min => x.min(y),
        BinOp::Max => x.max(y),
        BinOp::And => x & y,
        BinOp::Or => x | y,
        BinOp::Xor => x ^ y,
        BinOp::Shl => {
            if (0..i64::from(d.bits())).contains(&y) {
                x << y
            } else {
                0
            }
        }
        BinOp::Shr => {
            if (0..i64::from(d.bits())).contains(&y) {
                x >> y
            } else {
                x >> 63
            }
        }
        BinOp::Eq => return Ok(Literal::bool(x == y)),
        BinOp::Ne => return Ok(Literal::bool(x != y)),
        BinOp::Lt => return Ok(Literal::bool(x < y)),
        BinOp::Le => return Ok(Literal::bool(x <= y)),
        BinOp::Gt => return Ok(Literal::bool(x > y)),
        BinOp::Ge => return Ok(Literal::bool(x >= y)),
        BinOp::Atan2 => 0,
    };
    Ok(Literal::from_i64(d, v))
}

/// `x^y` by squaring, wrapping; see [`BinOp::Pow`].
fn int_pow(x: i64, y: i64) -> i64 {
    if y < 0 {
        return match x {
            1 => 1,
            -1 if y % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut base, mut rest, mut out) = (x, y, 1i64);
    while rest > 0 {
        if rest & 1 == 1 {
            out = out.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        rest >>= 1;
    }
    out
}

fn unsigned_bin(op: BinOp, x: u64, y: u64) -> Result<Literal, EvalError> {
    let v = match op {
        BinOp::Div | BinOp::Rem | BinOp::Mod if y == 0 => return Err(EvalError::DivisionByZero),
        BinOp::Div => x / y,
        BinOp::Rem | BinOp::Mod => x % y,
        BinOp::Min => x.min(y),
        BinOp::Max => x.max(y),
        BinOp::Shl => x.checked_shl(u32::try_from(y).unwrap_or(64)).unwrap_or(0),
        BinOp::Shr => x.checked_shr(u32::try_from(y).unwrap_or(64)).unwrap_or(0),
        BinOp::Lt => return Ok(Literal::bool(x < y)),
        BinOp::Le => return Ok(Literal::bool(x <= y)),
        BinOp::Gt => return Ok(Literal::bool(x > y)),
        BinOp::Ge => return Ok(Literal::bool(x >= y)),
        // The others do not depend on the sign.
        other => {
            let signed = |bits| Literal { dtype: DType::I64, bits };
            let v = bin(other, signed(x), signed(y))?;
            return Ok(if other.is_compare() { v } else { Literal { dtype: DType::U64, bits: v.bits } });
        }
    };
    Ok(Literal { dtype: DType::U64, bits: v })
}

fn float_bin(op: BinOp, a: Literal, b: Literal) -> Literal {
    let (x, y) = (a.to_f64(), b.to_f64());
    let v = match op {
        BinOp::Add => x + y,
        BinOp::Sub => x - y,
        BinOp::Mul => x * y,
        BinOp::Div => x / y,
        BinOp::Rem => x % y,
        BinOp::Mod => {
            let r = x % y;
            if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
        }
        BinOp::Pow => x.powf(y),
        BinOp::Atan2 => x.atan2(y),
        BinOp::Min => {
            if x.is_nan() || y.is_nan() {
                f64::NAN
            } else {
                x.min(y)
            }
        }
        BinOp::Max => {
            if x.is_nan() || y.is_nan() {
                f64::NAN
            } else {
                x.max(y)
            }
        }
        BinOp::Eq => return Literal::bool(x == y),
        BinOp::Ne => return Literal::bool(x != y),
        BinOp::Lt => return Literal::bool(x < y),
        BinOp::Le => return Literal::bool(x <= y),
        BinOp::Gt => return Literal::bool(x > y),
        BinOp::Ge => return Literal::bool(x >= y),
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::Shr => f64::NAN,
    };
    Literal::from_f64(a.dtype, v)
}

/// The value that a fold starts from.
pub fn identity(kind: crate::op::ReduceKind, d: DType) -> Literal {
    use crate::op::ReduceKind as K;
    let extreme = |low: bool| {
        if d.is_float() {
            return Literal::from_f64(d, if low { f64::NEG_INFINITY } else { f64::INFINITY });
        }
        match (d, low) {
            (DType::Bool, low) => Literal::bool(!low),
            (DType::U64, false) => Literal { dtype: d, bits: u64::MAX },
            (d, true) if !d.is_signed_int() => Literal::from_i64(d, 0),
            (d, false) if !d.is_signed_int() => Literal::from_i64(d, (1i64 << d.bits()) - 1),
            (d, low) => {
                let top = i64::MAX >> (64 - d.bits());
                Literal::from_i64(d, if low { -top - 1 } else { top })
            }
        }
    };
    match kind {
        K::Sum => Literal::from_i64(d, 0),
        K::Prod => Literal::from_i64(d, 1),
        K::Max => extreme(true),
        K::Min => extreme(false),
    }
}

/// The operation of a fold.
pub fn fold_op(kind: crate::op::ReduceKind) -> BinOp {
    use crate::op::ReduceKind as K;
    match kind {
        K::Sum => BinOp::Add,
        K::Prod => BinOp::Mul,
        K::Max => BinOp::Max,
        K::Min => BinOp::Min,
    }
}
