//! Conversions between element types.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder as _, Type, Value, types};
use transc_ir::loops::Ty;
use transc_ir::types::DType;

use super::emit::Emitter;
use super::ops::{choose, float, int};
use super::parts::{self, Parts};

/// Conversion; see the loop IR.
pub(super) fn cast(e: &mut Emitter<'_>, from: Ty, to: DType, a: &Parts) -> Parts {
    if from.dtype == to {
        return a.clone();
    }
    let through = |e: &mut Emitter<'_>, d: DType| {
        let x = cast(e, from, d, a);
        cast(e, from.with_dtype(d), to, &x)
    };
    let half = |d: DType| matches!(d, DType::F16 | DType::Bf16);
    if half(from.dtype) && to != DType::F32 || half(to) && from.dtype != DType::F32 {
        return through(e, DType::F32);
    }
    if to == DType::Bool {
        let raw: Parts = a.iter().map(|x| nonzero(e, *x)).collect();
        return parts::bool_from_masks(e, from, &raw);
    }
    if let Some(v) = packed(e, from, to, a) {
        return v;
    }
    if parts::packed(from) || parts::packed(from.with_dtype(to)) {
        return parts::lanewise(e, from.with_dtype(to), &[(from, a)], |e, x| scalar(e, from.dtype, to, x[0]));
    }
    a.iter().map(|x| scalar(e, from.dtype, to, *x)).collect()
}

fn nonzero(e: &mut Emitter<'_>, x: Value) -> Value {
    let t = e.f.func.dfg.value_type(x);
    if t.lane_type().is_float() {
        let zero = float(e, t, 0.0);
        return e.f.ins().fcmp(FloatCC::NotEqual, x, zero);
    }
    let zero = int(e, t, 0);
    e.f.ins().icmp(IntCC::NotEqual, x, zero)
}

/// Conversion of packed vectors where whole registers will do.
fn packed(e: &mut Emitter<'_>, from: Ty, to: DType, a: &Parts) -> Option<Parts> {
    use DType as D;
    let out = from.with_dtype(to);
    if !parts::packed(from) || !parts::packed(out) {
        return None;
    }
    let each =
        |e: &mut Emitter<'_>, v: &Parts, f: &dyn Fn(&mut Emitter<'_>, Value) -> Value| v.iter().map(|x| f(e, *x)).collect();
    let v: Parts = match (from.dtype, to) {
        (D::Bool, d) if d.is_float() => {
            let ints = cast(e, from, D::I32, a);
            cast(e, from.with_dtype(D::I32), d, &ints)
        }
        (D::Bool, _) => {
            let masks = parts::masks_for(e, out, a);
            each(e, &masks, &|e, x| {
                let t = e.f.func.dfg.value_type(x);
                let one = int(e, t, 1);
                e.f.ins().band(x, one)
            })
        }
        (D::F32, D::I32) => each(e, a, &|e, x| e.f.ins().fcvt_to_sint_sat(types::I32X4, x)),
        (D::F32, D::U32) => each(e, a, &|e, x| e.f.ins().fcvt_to_uint_sat(types::I32X4, x)),
        (D::I32, D::F32) => each(e, a, &|e, x| e.f.ins().fcvt_from_sint(types::F32X4, x)),
        (D::U32, D::F32) => each(e, a, &|e, x| e.f.ins().fcvt_from_uint(types::F32X4, x)),
        (D::F32, D::I8 | D::U8 | D::I16 | D::U16) => {
            let ints: Parts = each(e, a, &|e, x| {
                let i = e.f.ins().fcvt_to_sint_sat(types::I32X4, x);
                clamp(e, to, i)
            });
            cast(e, from.with_dtype(D::I32), to, &ints)
        }
        (D::I8 | D::U8 | D::I16 | D::U16, D::F32) => {
            let ints = cast(e, from, D::I32, a);
            cast(e, from.with_dtype(D::I32), to, &ints)
        }
        (D::Bf16, D::F32) => {
            let wide = parts::widen(e, false, a);
            each(e, &wide, &bf16_to_f32)
        }
        (D::F32, D::Bf16) => {
            let wide: Parts = each(e, a, &f32_to_bf16);
            parts::narrow(e, &wide)
        }
        (D::F16, D::F32) => {
            let wide = parts::widen(e, false, a);
            each(e, &wide, &f16_to_f32)
        }
        (D::F32, D::F16) => {
            let wide: Parts = each(e, a, &f32_to_f16);
            parts::narrow(e, &wide)
        }
        (d, t) if d.is_int() && t.is_int() => {
            let (mut v, mut n) = (a.clone(), d.bits());
            while n < t.bits() {
                v = parts::widen(e, d.is_signed_int(), &v);
                n *= 2;
            }
            while n > t.bits() {
                v = parts::narrow(e, &v);
                n /= 2;
            }
            v
        }
        _ => return None,
    };
    Some(v)
}

/// 32-bit integers limited to the range of a narrow type.
fn clamp(e: &mut Emitter<'_>, to: DType, x: Value) -> Value {
    let t = e.f.func.dfg.value_type(x);
    let bits = to.bits();
    let (lo, hi) = if to.is_signed_int() { (-1i64 << (bits - 1), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
    let (lo, hi) = (int(e, t, lo), int(e, t, hi));
    let below = e.f.ins().icmp(IntCC::SignedLessThan, x, lo);
    let x = choose(e, below, lo, x);
    let above = e.f.ins().icmp(IntCC::SignedGreaterThan, x, hi);
    choose(e, above, hi, x)
}

fn scalar(e: &mut Emitter<'_>, from: DType, to: DType, a: Value) -> Value {
    use DType as D;
    let t = parts::scalar_type(to);
    match (from, to) {
        (D::Bf16, _) => {
            let x = e.f.ins().uextend(types::I32, a);
            bf16_to_f32(e, x)
        }
        (D::F16, _) => {
            let x = e.f.ins().uextend(types::I32, a);
            f16_to_f32(e, x)
        }
        (_, D::Bf16 | D::F16) => {
            let x = if to == D::Bf16 { f32_to_bf16(e, a) } else { f32_to_f16(e, a) };
            e.f.ins().ireduce(types::I16, x)
        }
        (D::F32, D::F64) => e.f.ins().fpromote(types::F64, a),
        (D::F64, D::F32) => e.f.ins().fdemote(types::F32, a),
        (d, D::Bool) if d.is_float() => nonzero(e, a),
        (_, D::Bool) => nonzero(e, a),
        (d, to) if d.is_float() => match to {
            D::I32 | D::I64 => e.f.ins().fcvt_to_sint_sat(t, a),
            D::U32 | D::U64 => e.f.ins().fcvt_to_uint_sat(t, a),
            _ => {
                let x = e.f.ins().fcvt_to_sint_sat(types::I32, a);
                let x = clamp(e, to, x);
                e.f.ins().ireduce(t, x)
            }
        },
        (d, to) if to.is_float() => {
            if d == D::U64 {
                return e.f.ins().fcvt_from_uint(t, a);
            }
            // Everything else fits 64 bits with a sign.
            let x = extend(e, d.is_signed_int(), types::I64, a);
            e.f.ins().fcvt_from_sint(t, x)
        }
        (d, to) => {
            if d.bits() >= to.bits() && d != D::Bool {
                if d.bits() == to.bits() { a } else { e.f.ins().ireduce(t, a) }
            } else {
                extend(e, d.is_signed_int(), t, a)
            }
        }
    }
}

fn extend(e: &mut Emitter<'_>, signed: bool, t: Type, a: Value) -> Value {
    if e.f.func.dfg.value_type(a) == t {
        a
    } else if signed {
        e.f.ins().sextend(t, a)
    } else {
        e.f.ins().uextend(t, a)
    }
}

/// The float type with the lanes of a 32-bit integer type, and the other way round.
fn twin(t: Type) -> Type {
    match t {
        types::I32 => types::F32,
        types::F32 => types::I32,
        types::I32X4 => types::F32X4,
        _ => types::I32X4,
    }
}

fn shift_left(e: &mut Emitter<'_>, x: Value, by: i64) -> Value {
    let by = e.f.ins().iconst(types::I32, by);
    e.f.ins().ishl(x, by)
}

fn shift_right(e: &mut Emitter<'_>, x: Value, by: i64) -> Value {
    let by = e.f.ins().iconst(types::I32, by);
    e.f.ins().ushr(x, by)
}

/// From the bits in the low half of 32-bit integers.
pub(super) fn bf16_to_f32(e: &mut Emitter<'_>, x: Value) -> Value {
    let t = twin(e.f.func.dfg.value_type(x));
    let x = shift_left(e, x, 16);
    parts::bitcast(e, t, x)
}

/// To nearest even on the bits, in the low half of 32-bit integers; NaN stays a (quiet) NaN.
fn f32_to_bf16(e: &mut Emitter<'_>, a: Value) -> Value {
    let t = twin(e.f.func.dfg.value_type(a));
    let bits = parts::bitcast(e, t, a);
    let (one, half, quiet) = (int(e, t, 1), int(e, t, 0x7fff), int(e, t, 0x40_0000));
    let odd = shift_right(e, bits, 16);
    let odd = e.f.ins().band(odd, one);
    let bias = e.f.ins().iadd(odd, half);
    let rounded = e.f.ins().iadd(bits, bias);
    let nan = e.f.ins().fcmp(FloatCC::Unordered, a, a);
    let quieted = e.f.ins().bor(bits, quiet);
    let v = choose(e, nan, quieted, rounded);
    shift_right(e, v, 16)
}

/// From the bits in the low half of 32-bit integers: exponent and fraction move into place, a product sets the bias and makes denormals
/// normal; what had the largest exponent gets the largest again.
fn f16_to_f32(e: &mut Emitter<'_>, x: Value) -> Value {
    let t = e.f.func.dfg.value_type(x);
    let ft = twin(t);
    let (sign_mask, rest_mask) = (int(e, t, 0x8000), int(e, t, 0x7fff));
    let sign = e.f.ins().band(x, sign_mask);
    let sign = shift_left(e, sign, 16);
    let rest = e.f.ins().band(x, rest_mask);
    let rest = shift_left(e, rest, 13);
    let scale = float(e, ft, 2f64.powi(112));
    let v = parts::bitcast(e, ft, rest);
    let v = e.f.ins().fmul(v, scale);
    let v = parts::bitcast(e, t, v);
    let (limit, top) = (int(e, t, 0x0f80_0000), int(e, t, 0x7f80_0000));
    let special = e.f.ins().icmp(IntCC::SignedGreaterThanOrEqual, rest, limit);
    let inf_or_nan = e.f.ins().bor(rest, top);
    let v = choose(e, special, inf_or_nan, v);
    let v = e.f.ins().bor(v, sign);
    parts::bitcast(e, ft, v)
}

/// To nearest even, the bits in the low half of 32-bit integers. Below the smallest normal number the sum with 0.5, whose last place is the
/// smallest denormal, rounds.
fn f32_to_f16(e: &mut Emitter<'_>, a: Value) -> Value {
    let ft = e.f.func.dfg.value_type(a);
    let t = twin(ft);
    let bits = parts::bitcast(e, t, a);
    let magnitude_mask = int(e, t, 0x7fff_ffff);
    let m = e.f.ins().band(bits, magnitude_mask);
    let sign = e.f.ins().bxor(bits, m);
    let sign = shift_right(e, sign, 16);
    // Normal: the new bias and half a last place, to even.
    let (one, bias) = (int(e, t, 1), int(e, t, (15 - 127) * (1 << 23) + 0xfff));
    let odd = shift_right(e, m, 13);
    let odd = e.f.ins().band(odd, one);
    let normal = e.f.ins().iadd(m, bias);
    let normal = e.f.ins().iadd(normal, odd);
    let normal = shift_right(e, normal, 13);
    let half = float(e, ft, 0.5);
    let f = parts::bitcast(e, ft, m);
    let f = e.f.ins().fadd(f, half);
    let f = parts::bitcast(e, t, f);
    let half_bits = int(e, t, 0x3f00_0000);
    let denormal = e.f.ins().isub(f, half_bits);
    let (smallest, overflow, inf) = (int(e, t, 0x3880_0000), int(e, t, 0x477f_f000), int(e, t, 0x7f80_0000));
    let small = e.f.ins().icmp(IntCC::SignedLessThan, m, smallest);
    let v = choose(e, small, denormal, normal);
    let large = e.f.ins().icmp(IntCC::SignedGreaterThanOrEqual, m, overflow);
    let inf16 = int(e, t, 0x7c00);
    let v = choose(e, large, inf16, v);
    let nan = e.f.ins().icmp(IntCC::SignedGreaterThan, m, inf);
    let nan16 = int(e, t, 0x7e00);
    let v = choose(e, nan, nan16, v);
    e.f.ins().bor(v, sign)
}
