//! Operations, on scalars and 128-bit vectors alike: most of Cranelift's instructions take both. What has no vector form goes lane by lane.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder as _, Type, Value, types};
use transc_ir::loops::Ty;
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::DType;

use super::cast::cast;
use super::emit::Emitter;
use super::parts::{self, Parts};

/// Half-width floats compute in `f32` and round after each operation.
fn is_half(d: DType) -> bool {
    matches!(d, DType::F16 | DType::Bf16)
}

fn type_of(e: &Emitter<'_>, v: Value) -> Type {
    e.f.func.dfg.value_type(v)
}

/// An integer of a scalar type, or of each lane of a vector type.
pub(super) fn int(e: &mut Emitter<'_>, t: Type, v: i64) -> Value {
    let lane = t.lane_type();
    let mask = u64::MAX >> (64 - lane.bits());
    let x = e.f.ins().iconst(lane, (v as u64 & mask) as i64);
    if t.is_vector() { e.f.ins().splat(t, x) } else { x }
}

/// A float of a scalar type, or of each lane of a vector type.
pub(super) fn float(e: &mut Emitter<'_>, t: Type, v: f64) -> Value {
    let x = if t.lane_type() == types::F32 { e.f.ins().f32const(v as f32) } else { e.f.ins().f64const(v) };
    if t.is_vector() { e.f.ins().splat(t, x) } else { x }
}

/// A constant.
pub(super) fn literal(e: &mut Emitter<'_>, l: Literal) -> Value {
    use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
    match l.dtype {
        DType::F32 => e.f.ins().f32const(Ieee32::with_bits(l.bits as u32)),
        DType::F64 => e.f.ins().f64const(Ieee64::with_bits(l.bits)),
        d => int(e, parts::scalar_type(d), l.bits as i64),
    }
}

/// All zeros.
pub(super) fn zero(e: &mut Emitter<'_>, ty: Ty) -> Parts {
    let (t, n) = parts::layout(ty);
    let z = if ty.dtype.is_float() && !is_half(ty.dtype) { float(e, t, 0.0) } else { int(e, t, 0) };
    vec![z; n]
}

/// `if mask { a } else { b }`: the mask as comparisons give it, 0 or 1 for scalars.
pub(super) fn choose(e: &mut Emitter<'_>, mask: Value, a: Value, b: Value) -> Value {
    let t = type_of(e, a);
    if !t.is_vector() {
        return e.f.ins().select(mask, a, b);
    }
    let mask = parts::bitcast(e, t, mask);
    e.f.ins().bitselect(mask, a, b)
}

/// Selection by a `bool` per lane, or by one for all.
pub(super) fn select(e: &mut Emitter<'_>, cond: Ty, ty: Ty, c: &Parts, a: &Parts, b: &Parts) -> Parts {
    if cond.lanes == 1 {
        return a.iter().zip(b).map(|(a, b)| e.f.ins().select(c[0], *a, *b)).collect();
    }
    let masks = parts::masks_for(e, ty, c);
    masks.iter().zip(a.iter().zip(b)).map(|(m, (a, b))| choose(e, *m, *a, *b)).collect()
}

/// An operation on one operand.
pub(super) fn un(e: &mut Emitter<'_>, op: UnOp, ty: Ty, a: &Parts) -> Parts {
    let test = matches!(op, UnOp::IsNan | UnOp::IsInf);
    if is_half(ty.dtype) {
        let wide = ty.with_dtype(DType::F32);
        let x = cast(e, ty, DType::F32, a);
        let y = un(e, op, wide, &x);
        return if test { y } else { cast(e, wide, ty.dtype, &y) };
    }
    if test {
        let raw: Parts = a.iter().map(|x| float_test(e, op, *x)).collect();
        return parts::bool_from_masks(e, ty, &raw);
    }
    if parts::packed(ty) && ty.dtype.is_float() && c_name(op).is_some() {
        return parts::lanewise(e, ty, &[(ty, a)], |e, x| un1(e, op, ty.dtype, x[0]));
    }
    a.iter().map(|x| un1(e, op, ty.dtype, *x)).collect()
}

fn float_test(e: &mut Emitter<'_>, op: UnOp, x: Value) -> Value {
    if op == UnOp::IsNan {
        return e.f.ins().fcmp(FloatCC::Unordered, x, x);
    }
    let t = type_of(e, x);
    let inf = float(e, t, f64::INFINITY);
    let x = e.f.ins().fabs(x);
    e.f.ins().fcmp(FloatCC::Equal, x, inf)
}

/// The function of the C library behind an operation.
fn c_name(op: UnOp) -> Option<&'static str> {
    use UnOp as U;
    match op {
        U::Sigmoid => Some("exp"),
        U::Neg | U::Abs | U::Sign | U::Sqrt | U::Recip | U::Floor | U::Ceil | U::Trunc | U::Round => None,
        U::IsNan | U::IsInf | U::Not => None,
        _ => Some(op.name()),
    }
}

/// Calls a function of the C library on scalars.
fn libm(e: &mut Emitter<'_>, name: &str, args: &[Value]) -> Value {
    let t = type_of(e, args[0]);
    let name = if t == types::F32 { format!("{name}f") } else { name.into() };
    e.call(&name, t, args)
}

fn un1(e: &mut Emitter<'_>, op: UnOp, d: DType, a: Value) -> Value {
    let t = type_of(e, a);
    if !d.is_float() {
        return int_un(e, op, d, t, a);
    }
    match op {
        UnOp::Neg => e.f.ins().fneg(a),
        UnOp::Abs => e.f.ins().fabs(a),
        UnOp::Sqrt => e.f.ins().sqrt(a),
        UnOp::Floor => e.f.ins().floor(a),
        UnOp::Ceil => e.f.ins().ceil(a),
        UnOp::Trunc => e.f.ins().trunc(a),
        UnOp::Round => e.f.ins().nearest(a),
        UnOp::Sign => {
            let (zero, one, minus) = (float(e, t, 0.0), float(e, t, 1.0), float(e, t, -1.0));
            let above = e.f.ins().fcmp(FloatCC::GreaterThan, a, zero);
            let below = e.f.ins().fcmp(FloatCC::LessThan, a, zero);
            let v = choose(e, above, one, a);
            choose(e, below, minus, v)
        }
        UnOp::Recip => {
            let one = float(e, t, 1.0);
            e.f.ins().fdiv(one, a)
        }
        UnOp::Sigmoid => {
            let n = e.f.ins().fneg(a);
            let x = libm(e, "exp", &[n]);
            let one = float(e, t, 1.0);
            let d = e.f.ins().fadd(x, one);
            e.f.ins().fdiv(one, d)
        }
        // The verifier keeps `not` away from floats; the tests were answered before.
        UnOp::Not | UnOp::IsNan | UnOp::IsInf => a,
        _ => libm(e, op.name(), &[a]),
    }
}

fn int_un(e: &mut Emitter<'_>, op: UnOp, d: DType, t: Type, a: Value) -> Value {
    match op {
        UnOp::Neg => e.f.ins().ineg(a),
        UnOp::Abs if d.is_signed_int() => e.f.ins().iabs(a),
        UnOp::Sign => {
            let (zero, one) = (int(e, t, 0), int(e, t, 1));
            let nonzero = e.f.ins().icmp(IntCC::NotEqual, a, zero);
            let v = choose(e, nonzero, one, zero);
            if !d.is_signed_int() {
                return v;
            }
            let minus = int(e, t, -1);
            let below = e.f.ins().icmp(IntCC::SignedLessThan, a, zero);
            choose(e, below, minus, v)
        }
        UnOp::Not if d == DType::Bool && !t.is_vector() => e.f.ins().bxor_imm_s(a, 1),
        UnOp::Not => e.f.ins().bnot(a),
        _ => a,
    }
}

/// An operation on two operands of one type; `literal` is the second one if it is known.
pub(super) fn bin(e: &mut Emitter<'_>, op: BinOp, ty: Ty, a: &Parts, b: &Parts, literal: Option<Literal>) -> Parts {
    if is_half(ty.dtype) {
        let wide = ty.with_dtype(DType::F32);
        let (x, y) = (cast(e, ty, DType::F32, a), cast(e, ty, DType::F32, b));
        let v = bin(e, op, wide, &x, &y, None);
        return if op.is_compare() { v } else { cast(e, wide, ty.dtype, &v) };
    }
    if parts::packed(ty) {
        if let Some(bits) = literal.filter(|l| matches!(op, BinOp::Shl | BinOp::Shr) && l.bits < ty.dtype.bits().into())
            && ty.dtype.size_bytes() > 1
        {
            return a.iter().map(|x| shift(e, op, ty.dtype, *x, bits.bits)).collect();
        }
        if !has_vector_form(op, ty.dtype) {
            let out = if op.is_compare() { ty.with_dtype(DType::Bool) } else { ty };
            return parts::lanewise(e, out, &[(ty, a), (ty, b)], |e, x| bin1(e, op, ty.dtype, x[0], x[1]));
        }
    }
    let raw: Parts = a.iter().zip(b).map(|(a, b)| bin1(e, op, ty.dtype, *a, *b)).collect();
    if op.is_compare() { parts::bool_from_masks(e, ty, &raw) } else { raw }
}

fn has_vector_form(op: BinOp, d: DType) -> bool {
    use BinOp as B;
    match op {
        B::Pow | B::Atan2 | B::Rem | B::Mod => false,
        B::Add | B::Sub | B::And | B::Or | B::Xor | B::Eq | B::Ne => true,
        B::Div => d.is_float(),
        B::Mul => d.size_bytes() > 1 || d == DType::Bool,
        B::Min | B::Max | B::Lt | B::Le | B::Gt | B::Ge => d != DType::U64,
        B::Shl | B::Shr => false,
    }
}

/// A shift of all lanes by less than their width.
fn shift(e: &mut Emitter<'_>, op: BinOp, d: DType, a: Value, bits: u64) -> Value {
    let by = e.f.ins().iconst(types::I32, bits as i64);
    match op {
        BinOp::Shl => e.f.ins().ishl(a, by),
        _ if d.is_signed_int() => e.f.ins().sshr(a, by),
        _ => e.f.ins().ushr(a, by),
    }
}

/// An operation on two scalars, or on two vectors where there is such a form. Comparisons give 0 or 1, or masks.
pub(super) fn bin1(e: &mut Emitter<'_>, op: BinOp, d: DType, a: Value, b: Value) -> Value {
    if d.is_float() { float_bin(e, op, a, b) } else { int_bin(e, op, d, a, b) }
}

fn float_bin(e: &mut Emitter<'_>, op: BinOp, a: Value, b: Value) -> Value {
    let t = type_of(e, a);
    match op {
        BinOp::Add => e.f.ins().fadd(a, b),
        BinOp::Sub => e.f.ins().fsub(a, b),
        BinOp::Mul => e.f.ins().fmul(a, b),
        BinOp::Div => e.f.ins().fdiv(a, b),
        BinOp::Eq => e.f.ins().fcmp(FloatCC::Equal, a, b),
        BinOp::Ne => e.f.ins().fcmp(FloatCC::NotEqual, a, b),
        BinOp::Lt => e.f.ins().fcmp(FloatCC::LessThan, a, b),
        BinOp::Le => e.f.ins().fcmp(FloatCC::LessThanOrEqual, a, b),
        BinOp::Gt => e.f.ins().fcmp(FloatCC::GreaterThan, a, b),
        BinOp::Ge => e.f.ins().fcmp(FloatCC::GreaterThanOrEqual, a, b),
        BinOp::Min | BinOp::Max => {
            let cc = if op == BinOp::Min { FloatCC::LessThan } else { FloatCC::GreaterThan };
            let c = e.f.ins().fcmp(cc, a, b);
            let v = choose(e, c, a, b);
            let nan = e.f.ins().fcmp(FloatCC::Unordered, a, a);
            choose(e, nan, a, v)
        }
        BinOp::Rem => libm(e, "fmod", &[a, b]),
        BinOp::Mod => {
            let r = libm(e, "fmod", &[a, b]);
            let zero = float(e, t, 0.0);
            let nonzero = e.f.ins().fcmp(FloatCC::OrderedNotEqual, r, zero);
            let (rn, bn) = (e.f.ins().fcmp(FloatCC::LessThan, r, zero), e.f.ins().fcmp(FloatCC::LessThan, b, zero));
            let differ = e.f.ins().bxor(rn, bn);
            let fix = e.f.ins().band(nonzero, differ);
            let sum = e.f.ins().fadd(r, b);
            choose(e, fix, sum, r)
        }
        BinOp::Pow => libm(e, "pow", &[a, b]),
        BinOp::Atan2 => libm(e, "atan2", &[a, b]),
        // Bit operations are for integers; the verifier keeps them away from floats.
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::Shr => a,
    }
}

fn int_bin(e: &mut Emitter<'_>, op: BinOp, d: DType, a: Value, b: Value) -> Value {
    let signed = d.is_signed_int();
    let cc = |s: IntCC, u: IntCC| if signed { s } else { u };
    let compare = |e: &mut Emitter<'_>, cc: IntCC| e.f.ins().icmp(cc, a, b);
    match op {
        BinOp::Add => e.f.ins().iadd(a, b),
        BinOp::Sub => e.f.ins().isub(a, b),
        BinOp::Mul => e.f.ins().imul(a, b),
        BinOp::And => e.f.ins().band(a, b),
        BinOp::Or => e.f.ins().bor(a, b),
        BinOp::Xor => e.f.ins().bxor(a, b),
        BinOp::Eq => compare(e, IntCC::Equal),
        BinOp::Ne => compare(e, IntCC::NotEqual),
        BinOp::Lt => compare(e, cc(IntCC::SignedLessThan, IntCC::UnsignedLessThan)),
        BinOp::Le => compare(e, cc(IntCC::SignedLessThanOrEqual, IntCC::UnsignedLessThanOrEqual)),
        BinOp::Gt => compare(e, cc(IntCC::SignedGreaterThan, IntCC::UnsignedGreaterThan)),
        BinOp::Ge => compare(e, cc(IntCC::SignedGreaterThanOrEqual, IntCC::UnsignedGreaterThanOrEqual)),
        BinOp::Min | BinOp::Max => {
            let less = if op == BinOp::Min { BinOp::Lt } else { BinOp::Gt };
            let c = int_bin(e, less, d, a, b);
            choose(e, c, a, b)
        }
        BinOp::Div | BinOp::Rem | BinOp::Mod => divide(e, op, d, a, b),
        BinOp::Shl | BinOp::Shr => {
            let t = type_of(e, a);
            let bits = i64::from(d.bits());
            let inside = e.f.ins().icmp_imm_u(IntCC::UnsignedLessThan, b, bits);
            let v = match op {
                BinOp::Shl => e.f.ins().ishl(a, b),
                _ if signed => e.f.ins().sshr(a, b),
                _ => e.f.ins().ushr(a, b),
            };
            let beyond = if op == BinOp::Shr && signed { e.f.ins().sshr_imm_u(a, bits - 1) } else { int(e, t, 0) };
            choose(e, inside, v, beyond)
        }
        BinOp::Pow => int_pow(e, d, a, b),
        BinOp::Atan2 => a,
    }
}

/// Division of scalars without the two traps of the processor: by zero (which lowering refuses before its result is used) and `MIN / -1`.
fn divide(e: &mut Emitter<'_>, op: BinOp, d: DType, a: Value, b: Value) -> Value {
    let t = type_of(e, a);
    let (zero, one) = (int(e, t, 0), int(e, t, 1));
    let mut bad = e.f.ins().icmp(IntCC::Equal, b, zero);
    if !d.is_signed_int() {
        let b = e.f.ins().select(bad, one, b);
        return narrow_division(e, false, op != BinOp::Div, a, b);
    }
    let is_minus = e.f.ins().icmp_imm_s(IntCC::Equal, b, -1);
    bad = e.f.ins().bor(bad, is_minus);
    let safe = e.f.ins().select(bad, one, b);
    if op == BinOp::Div {
        let q = narrow_division(e, true, false, a, safe);
        let n = e.f.ins().ineg(a);
        return e.f.ins().select(is_minus, n, q);
    }
    // The remainder by -1 is that by 1.
    let r = narrow_division(e, true, true, a, safe);
    if op == BinOp::Rem {
        return r;
    }
    let nonzero = e.f.ins().icmp(IntCC::NotEqual, r, zero);
    let signs = e.f.ins().bxor(r, b);
    let differ = e.f.ins().icmp(IntCC::SignedLessThan, signs, zero);
    let fix = e.f.ins().band(nonzero, differ);
    let sum = e.f.ins().iadd(r, b);
    e.f.ins().select(fix, sum, r)
}

/// Quotient or remainder; narrow integers divide as 32 bits.
fn narrow_division(e: &mut Emitter<'_>, signed: bool, remainder: bool, a: Value, b: Value) -> Value {
    let t = type_of(e, a);
    let wide = |e: &mut Emitter<'_>, x: Value| {
        if t.bits() >= 32 {
            x
        } else if signed {
            e.f.ins().sextend(types::I32, x)
        } else {
            e.f.ins().uextend(types::I32, x)
        }
    };
    let (a, b) = (wide(e, a), wide(e, b));
    let v = match (signed, remainder) {
        (true, false) => e.f.ins().sdiv(a, b),
        (true, true) => e.f.ins().srem(a, b),
        (false, false) => e.f.ins().udiv(a, b),
        (false, true) => e.f.ins().urem(a, b),
    };
    if t.bits() >= 32 { v } else { e.f.ins().ireduce(t, v) }
}

/// Power of scalars by squaring; a negative exponent gives 0 or the sign of +-1.
fn int_pow(e: &mut Emitter<'_>, d: DType, a: Value, b: Value) -> Value {
    let t = type_of(e, a);
    let (zero, one) = (int(e, t, 0), int(e, t, 1));
    let vars = [one, a, b].map(|first| {
        let v = e.f.declare_var(t);
        e.f.def_var(v, first);
        v
    });
    let [out, base, rest] = vars;
    e.while_loop(
        |e| {
            let rest = e.f.use_var(rest);
            e.f.ins().icmp(IntCC::NotEqual, rest, zero)
        },
        |e| {
            let (o, p, r) = (e.f.use_var(out), e.f.use_var(base), e.f.use_var(rest));
            let bit = e.f.ins().band(r, one);
            let product = e.f.ins().imul(o, p);
            let next = e.f.ins().select(bit, product, o);
            e.f.def_var(out, next);
            let square = e.f.ins().imul(p, p);
            e.f.def_var(base, square);
            let shifted = e.f.ins().ushr(r, one);
            e.f.def_var(rest, shifted);
        },
    );
    let out = e.f.use_var(out);
    if !d.is_signed_int() {
        return out;
    }
    // For a negative exponent: 1 stays 1, -1 alternates (its powers have period 2, so `out` is right), all else is 0.
    let (is_one, is_minus) = (e.f.ins().icmp(IntCC::Equal, a, one), e.f.ins().icmp_imm_s(IntCC::Equal, a, -1));
    let unit = e.f.ins().bor(is_one, is_minus);
    let negative = e.f.ins().icmp(IntCC::SignedLessThan, b, zero);
    let inverse = e.f.ins().select(unit, out, zero);
    e.f.ins().select(negative, inverse, out)
}

/// `a * b + c` with one rounding; half-width floats round once more on the way back.
pub(super) fn fma(e: &mut Emitter<'_>, ty: Ty, args: [&Parts; 3]) -> Parts {
    if is_half(ty.dtype) {
        let wide = ty.with_dtype(DType::F32);
        let [a, b, c] = args.map(|x| cast(e, ty, DType::F32, x));
        let v = fma(e, wide, [&a, &b, &c]);
        return cast(e, wide, ty.dtype, &v);
    }
    let [a, b, c] = args;
    a.iter().zip(b.iter().zip(c)).map(|(a, (b, c))| e.f.ins().fma(*a, *b, *c)).collect()
}
