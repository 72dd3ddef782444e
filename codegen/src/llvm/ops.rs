//! Scalar operations in LLVM IR, for scalars and vectors alike.

use transc_ir::loops::Ty;
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::DType;

use super::emit::{Emitter, reg_type, scalar_type, vector_of};

/// `f32` for `float`: how intrinsics name their types.
pub(super) fn mangled(scalar: &str) -> &str {
    match scalar {
        "float" => "f32",
        "double" => "f64",
        "half" => "f16",
        other => other,
    }
}

fn suffix(ty: Ty) -> String {
    let s = mangled(scalar_type(ty.dtype));
    if ty.lanes == 1 { s.into() } else { format!("v{}{s}", ty.lanes) }
}

/// Calls an intrinsic whose operands all have the result's type.
fn intrinsic(e: &mut Emitter<'_>, name: &str, ty: Ty, args: &[&str]) -> String {
    let t = reg_type(ty);
    let args: Vec<_> = args.iter().map(|a| (t.clone(), (*a).to_string())).collect();
    e.call(&t, &format!("llvm.{name}.{}", suffix(ty)), &args)
}

/// A float constant of a type, splat for vectors.
pub(super) fn float(e: &mut Emitter<'_>, ty: Ty, v: f64) -> String {
    let text = format!("0x{:016X}", v.to_bits());
    e.splat(scalar_type(ty.dtype), &text, ty.lanes)
}

pub(super) fn int(e: &mut Emitter<'_>, ty: Ty, v: i64) -> String {
    e.splat(scalar_type(ty.dtype), &v.to_string(), ty.lanes)
}

/// Half-width floats compute in `f32` and round after each operation.
fn is_half(d: DType) -> bool {
    matches!(d, DType::F16 | DType::Bf16)
}

fn widen(e: &mut Emitter<'_>, ty: Ty, a: &str) -> String {
    cast(e, ty, DType::F32, a)
}

fn narrow(e: &mut Emitter<'_>, ty: Ty, a: &str) -> String {
    cast(e, ty.with_dtype(DType::F32), ty.dtype, a)
}

/// Calls a function of the C library, lane by lane.
fn libm(e: &mut Emitter<'_>, name: &str, ty: Ty, args: &[&str]) -> String {
    let scalar = scalar_type(ty.dtype);
    let name = if ty.dtype == DType::F32 { format!("{name}f") } else { name.to_string() };
    if ty.lanes == 1 {
        let args: Vec<_> = args.iter().map(|a| (scalar.to_string(), (*a).to_string())).collect();
        return e.call(scalar, &name, &args);
    }
    let t = reg_type(ty);
    let mut out = String::from("poison");
    for i in 0..ty.lanes {
        let lane: Vec<_> =
            args.iter().map(|a| (scalar.to_string(), e.def(&format!("extractelement {t} {a}, i64 {i}")))).collect();
        let v = e.call(scalar, &name, &lane);
        out = e.def(&format!("insertelement {t} {out}, {scalar} {v}, i64 {i}"));
    }
    out
}

/// An operation on one operand.
pub(super) fn un(e: &mut Emitter<'_>, op: UnOp, ty: Ty, a: &str) -> String {
    let t = reg_type(ty);
    if is_half(ty.dtype) {
        let x = widen(e, ty, a);
        let wide = ty.with_dtype(DType::F32);
        let y = un(e, op, wide, &x);
        return if matches!(op, UnOp::IsNan | UnOp::IsInf) { y } else { narrow(e, ty, &y) };
    }
    if !ty.dtype.is_float() {
        return int_un(e, op, ty, a);
    }
    match op {
        UnOp::Neg => e.def(&format!("fneg {t} {a}")),
        UnOp::Abs => intrinsic(e, "fabs", ty, &[a]),
        UnOp::Sign => {
            let (zero, one, minus) = (float(e, ty, 0.0), float(e, ty, 1.0), float(e, ty, -1.0));
            let b = reg_type(ty.with_dtype(DType::Bool));
            let above = e.def(&format!("fcmp ogt {t} {a}, {zero}"));
            let below = e.def(&format!("fcmp olt {t} {a}, {zero}"));
            let v = e.def(&format!("select {b} {above}, {t} {one}, {t} {a}"));
            e.def(&format!("select {b} {below}, {t} {minus}, {t} {v}"))
        }
        UnOp::Sqrt => intrinsic(e, "sqrt", ty, &[a]),
        UnOp::Floor => intrinsic(e, "floor", ty, &[a]),
        UnOp::Ceil => intrinsic(e, "ceil", ty, &[a]),
        UnOp::Trunc => intrinsic(e, "trunc", ty, &[a]),
        UnOp::Round => intrinsic(e, "roundeven", ty, &[a]),
        UnOp::Recip => {
            let one = float(e, ty, 1.0);
            e.def(&format!("fdiv {t} {one}, {a}"))
        }
        UnOp::Sigmoid => {
            let n = e.def(&format!("fneg {t} {a}"));
            let x = libm(e, "exp", ty, &[&n]);
            let one = float(e, ty, 1.0);
            let d = e.def(&format!("fadd {t} {x}, {one}"));
            e.def(&format!("fdiv {t} {one}, {d}"))
        }
        UnOp::IsNan => e.def(&format!("fcmp uno {t} {a}, {a}")),
        UnOp::IsInf => {
            let x = intrinsic(e, "fabs", ty, &[a]);
            let inf = float(e, ty, f64::INFINITY);
            e.def(&format!("fcmp oeq {t} {x}, {inf}"))
        }
        // Not is an operation on integers; the verifier keeps it away from floats.
        UnOp::Not => a.into(),
        _ => libm(e, op.name(), ty, &[a]),
    }
}

fn int_un(e: &mut Emitter<'_>, op: UnOp, ty: Ty, a: &str) -> String {
    let t = reg_type(ty);
    match op {
        UnOp::Neg => {
            let zero = int(e, ty, 0);
            e.def(&format!("sub {t} {zero}, {a}"))
        }
        UnOp::Abs if ty.dtype.is_signed_int() => {
            let name = format!("llvm.abs.{}", suffix(ty));
            e.call(&t, &name, &[(t.clone(), a.into()), ("i1".into(), "false".into())])
        }
        UnOp::Sign => {
            let (zero, one) = (int(e, ty, 0), int(e, ty, 1));
            let b = reg_type(ty.with_dtype(DType::Bool));
            let above = e.def(&format!("icmp ne {t} {a}, {zero}"));
            let v = e.def(&format!("select {b} {above}, {t} {one}, {t} {zero}"));
            if !ty.dtype.is_signed_int() {
                return v;
            }
            let minus = int(e, ty, -1);
            let below = e.def(&format!("icmp slt {t} {a}, {zero}"));
            e.def(&format!("select {b} {below}, {t} {minus}, {t} {v}"))
        }
        UnOp::Not => {
            let ones = if ty.dtype == DType::Bool { e.splat("i1", "true", ty.lanes) } else { int(e, ty, -1) };
            e.def(&format!("xor {t} {a}, {ones}"))
        }
        _ => a.into(),
    }
}

/// An operation on two operands of one type.
pub(super) fn bin(e: &mut Emitter<'_>, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    if is_half(ty.dtype) {
        let (x, y) = (widen(e, ty, a), widen(e, ty, b));
        let v = bin(e, op, ty.with_dtype(DType::F32), &x, &y);
        return if op.is_compare() { v } else { narrow(e, ty, &v) };
    }
    if ty.dtype.is_float() { float_bin(e, op, ty, a, b) } else { int_bin(e, op, ty, a, b) }
}

fn float_bin(e: &mut Emitter<'_>, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let t = reg_type(ty);
    let mut simple = |name: &str| e.def(&format!("{name} {t} {a}, {b}"));
    match op {
        BinOp::Add => simple("fadd"),
        BinOp::Sub => simple("fsub"),
        BinOp::Mul => simple("fmul"),
        BinOp::Div => simple("fdiv"),
        BinOp::Eq => simple("fcmp oeq"),
        BinOp::Ne => simple("fcmp une"),
        BinOp::Lt => simple("fcmp olt"),
        BinOp::Le => simple("fcmp ole"),
        BinOp::Gt => simple("fcmp ogt"),
        BinOp::Ge => simple("fcmp oge"),
        // The processor's own minimum gives the second operand for NaN; one more blend makes the first NaN win too.
        BinOp::Min | BinOp::Max => {
            let c = simple(if op == BinOp::Min { "fcmp olt" } else { "fcmp ogt" });
            let bools = reg_type(ty.with_dtype(DType::Bool));
            let v = e.def(&format!("select {bools} {c}, {t} {a}, {t} {b}"));
            let nan = e.def(&format!("fcmp uno {t} {a}, {a}"));
            e.def(&format!("select {bools} {nan}, {t} {a}, {t} {v}"))
        }
        BinOp::Rem => libm(e, "fmod", ty, &[a, b]),
        BinOp::Mod => {
            let r = libm(e, "fmod", ty, &[a, b]);
            let zero = float(e, ty, 0.0);
            let bools = reg_type(ty.with_dtype(DType::Bool));
            let nonzero = e.def(&format!("fcmp one {t} {r}, {zero}"));
            let (rn, bn) = (e.def(&format!("fcmp olt {t} {r}, {zero}")), e.def(&format!("fcmp olt {t} {b}, {zero}")));
            let differ = e.def(&format!("xor {bools} {rn}, {bn}"));
            let fix = e.def(&format!("and {bools} {nonzero}, {differ}"));
            let sum = e.def(&format!("fadd {t} {r}, {b}"));
            e.def(&format!("select {bools} {fix}, {t} {sum}, {t} {r}"))
        }
        BinOp::Pow => libm(e, "pow", ty, &[a, b]),
        BinOp::Atan2 => libm(e, "atan2", ty, &[a, b]),
        // Bit operations are for integers; the verifier keeps them away from floats.
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::Shr => a.into(),
    }
}

fn int_bin(e: &mut Emitter<'_>, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let t = reg_type(ty);
    let signed = ty.dtype.is_signed_int();
    let pick = |s: &'static str, u: &'static str| if signed { s } else { u };
    let bools = reg_type(ty.with_dtype(DType::Bool));
    let simple = |e: &mut Emitter<'_>, name: &str| e.def(&format!("{name} {t} {a}, {b}"));
    match op {
        BinOp::Add => simple(e, "add"),
        BinOp::Sub => simple(e, "sub"),
        BinOp::Mul => simple(e, "mul"),
        BinOp::And => simple(e, "and"),
        BinOp::Or => simple(e, "or"),
        BinOp::Xor => simple(e, "xor"),
        BinOp::Eq => simple(e, "icmp eq"),
        BinOp::Ne => simple(e, "icmp ne"),
        BinOp::Lt => simple(e, pick("icmp slt", "icmp ult")),
        BinOp::Le => simple(e, pick("icmp sle", "icmp ule")),
        BinOp::Gt => simple(e, pick("icmp sgt", "icmp ugt")),
        BinOp::Ge => simple(e, pick("icmp sge", "icmp uge")),
        BinOp::Min if ty.dtype == DType::Bool => simple(e, "and"),
        BinOp::Max if ty.dtype == DType::Bool => simple(e, "or"),
        BinOp::Min => intrinsic(e, pick("smin", "umin"), ty, &[a, b]),
        BinOp::Max => intrinsic(e, pick("smax", "umax"), ty, &[a, b]),
        BinOp::Div | BinOp::Rem if !signed => simple(e, if op == BinOp::Div { "udiv" } else { "urem" }),
        BinOp::Mod if !signed => simple(e, "urem"),
        BinOp::Div | BinOp::Rem | BinOp::Mod => signed_div(e, op, ty, a, b),
        BinOp::Shl | BinOp::Shr => {
            let (width, zero) = (int(e, ty, ty.dtype.bits().into()), int(e, ty, 0));
            let inside = e.def(&format!("icmp ult {t} {b}, {width}"));
            let by = e.def(&format!("select {bools} {inside}, {t} {b}, {t} {zero}"));
            let v = e.def(&format!("{} {t} {a}, {by}", if op == BinOp::Shl { "shl" } else { pick("ashr", "lshr") }));
            let beyond = if op == BinOp::Shr && signed {
                let top = int(e, ty, i64::from(ty.dtype.bits()) - 1);
                e.def(&format!("ashr {t} {a}, {top}"))
            } else {
                zero
            };
            e.def(&format!("select {bools} {inside}, {t} {v}, {t} {beyond}"))
        }
        BinOp::Pow => int_pow(e, ty, a, b),
        BinOp::Atan2 => a.into(),
    }
}

/// Division without the two traps of the processor: by zero (which lowering refuses before its result is used) and `MIN / -1`.
fn signed_div(e: &mut Emitter<'_>, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let t = reg_type(ty);
    let bools = reg_type(ty.with_dtype(DType::Bool));
    let (zero, one, minus) = (int(e, ty, 0), int(e, ty, 1), int(e, ty, -1));
    let is_minus = e.def(&format!("icmp eq {t} {b}, {minus}"));
    let is_zero = e.def(&format!("icmp eq {t} {b}, {zero}"));
    let bad = e.def(&format!("or {bools} {is_minus}, {is_zero}"));
    let safe = e.def(&format!("select {bools} {bad}, {t} {one}, {t} {b}"));
    if op == BinOp::Div {
        let q = e.def(&format!("sdiv {t} {a}, {safe}"));
        let n = e.def(&format!("sub {t} {zero}, {a}"));
        return e.def(&format!("select {bools} {is_minus}, {t} {n}, {t} {q}"));
    }
    // The remainder by -1 is that by 1.
    let r = e.def(&format!("srem {t} {a}, {safe}"));
    if op == BinOp::Rem {
        return r;
    }
    let nonzero = e.def(&format!("icmp ne {t} {r}, {zero}"));
    let signs = e.def(&format!("xor {t} {r}, {b}"));
    let differ = e.def(&format!("icmp slt {t} {signs}, {zero}"));
    let fix = e.def(&format!("and {bools} {nonzero}, {differ}"));
    let sum = e.def(&format!("add {t} {r}, {b}"));
    e.def(&format!("select {bools} {fix}, {t} {sum}, {t} {r}"))
}

/// Quotient toward minus infinity and remainder with the divisor's sign, for dims.
pub(super) fn floor_div(e: &mut Emitter<'_>, a: &str, b: &str) -> (String, String) {
    let r = bin(e, BinOp::Mod, Ty::INDEX, a, b);
    let exact = e.def(&format!("sub i64 {a}, {r}"));
    (bin(e, BinOp::Div, Ty::INDEX, &exact, b), r)
}

/// Integer power by squaring over the bits of the exponent, without a branch; a negative exponent gives 0 or the sign of +-1.
fn int_pow(e: &mut Emitter<'_>, ty: Ty, a: &str, b: &str) -> String {
    let t = reg_type(ty);
    let bools = reg_type(ty.with_dtype(DType::Bool));
    let (zero, one) = (int(e, ty, 0), int(e, ty, 1));
    let (mut base, mut out) = (a.to_string(), one.clone());
    for i in 0..ty.dtype.bits() {
        let shift = int(e, ty, i64::from(i));
        let bit = e.def(&format!("lshr {t} {b}, {shift}"));
        let bit = e.def(&format!("and {t} {bit}, {one}"));
        let set = e.def(&format!("icmp ne {t} {bit}, {zero}"));
        let product = e.def(&format!("mul {t} {out}, {base}"));
        out = e.def(&format!("select {bools} {set}, {t} {product}, {t} {out}"));
        base = e.def(&format!("mul {t} {base}, {base}"));
    }
    if !ty.dtype.is_signed_int() {
        return out;
    }
    // For a negative exponent: 1 stays 1, -1 alternates (its powers have period 2, so `out` is right), all else is 0.
    let minus = int(e, ty, -1);
    let is_one = e.def(&format!("icmp eq {t} {a}, {one}"));
    let is_minus = e.def(&format!("icmp eq {t} {a}, {minus}"));
    let unit = e.def(&format!("or {bools} {is_one}, {is_minus}"));
    let negative = e.def(&format!("icmp slt {t} {b}, {zero}"));
    let inverse = e.def(&format!("select {bools} {unit}, {t} {out}, {t} {zero}"));
    e.def(&format!("select {bools} {negative}, {t} {inverse}, {t} {out}"))
}

/// `a * b + c` with one rounding; half-width floats round once more on the way back.
pub(super) fn fma(e: &mut Emitter<'_>, ty: Ty, args: [&str; 3]) -> String {
    if is_half(ty.dtype) {
        let wide: Vec<String> = args.iter().map(|a| widen(e, ty, a)).collect();
        let v = intrinsic(e, "fma", ty.with_dtype(DType::F32), &[&wide[0], &wide[1], &wide[2]]);
        return narrow(e, ty, &v);
    }
    intrinsic(e, "fma", ty, &args)
}

/// Conversion; see the loop IR.
pub(super) fn cast(e: &mut Emitter<'_>, from: Ty, to: DType, a: &str) -> String {
    if from.dtype == to {
        return a.into();
    }
    let (t, target) = (reg_type(from), reg_type(from.with_dtype(to)));
    let f32_ty = from.with_dtype(DType::F32);
    match (from.dtype, to) {
        (DType::Bf16, DType::F32) => {
            let wide = vector_of("i32", from.lanes);
            let bits = e.def(&format!("zext {t} {a} to {wide}"));
            let shift = e.splat("i32", "16", from.lanes);
            let bits = e.def(&format!("shl {wide} {bits}, {shift}"));
            e.def(&format!("bitcast {wide} {bits} to {target}"))
        }
        (DType::F32, DType::Bf16) => round_to_bf16(e, from, a),
        (DType::Bf16, _) => {
            let x = cast(e, from, DType::F32, a);
            cast(e, f32_ty, to, &x)
        }
        (DType::F16, DType::F32 | DType::F64) | (DType::F32, DType::F64) => e.def(&format!("fpext {t} {a} to {target}")),
        (DType::F64, DType::F32) | (DType::F32, DType::F16) => e.def(&format!("fptrunc {t} {a} to {target}")),
        (d, DType::Bool) if d.is_float() => {
            let x = if d == DType::F16 { cast(e, from, DType::F32, a) } else { a.into() };
            let ty = if d == DType::F16 { f32_ty } else { from };
            let zero = float(e, ty, 0.0);
            e.def(&format!("fcmp une {} {x}, {zero}", reg_type(ty)))
        }
        (_, DType::Bool) => {
            let zero = int(e, from, 0);
            e.def(&format!("icmp ne {t} {a}, {zero}"))
        }
        // Half-width floats convert through f32, integers to them likewise.
        (DType::F16, _) => {
            let x = cast(e, from, DType::F32, a);
            cast(e, f32_ty, to, &x)
        }
        (_, DType::Bf16 | DType::F16) => {
            let x = cast(e, from, DType::F32, a);
            cast(e, f32_ty, to, &x)
        }
        (_, DType::I8 | DType::U8 | DType::I16 | DType::U16) if from.dtype.is_float() => short_int(e, from, to, a),
        (d, to_d) if d.is_float() => {
            let name = if to_d.is_signed_int() { "fptosi" } else { "fptoui" };
            let out_ty = from.with_dtype(to_d);
            e.call(&target, &format!("llvm.{name}.sat.{}.{}", suffix(out_ty), suffix(from)), &[(t, a.into())])
        }
        (d, to_d) if to_d.is_float() => {
            e.def(&format!("{} {t} {a} to {target}", if d.is_signed_int() { "sitofp" } else { "uitofp" }))
        }
        (d, to_d) => {
            let (n, m) = (if d == DType::Bool { 1 } else { d.bits() }, to_d.bits());
            match n.cmp(&m) {
                std::cmp::Ordering::Equal => a.into(),
                std::cmp::Ordering::Greater => e.def(&format!("trunc {t} {a} to {target}")),
                std::cmp::Ordering::Less => {
                    e.def(&format!("{} {t} {a} to {target}", if d.is_signed_int() { "sext" } else { "zext" }))
                }
            }
        }
    }
}

/// A saturating conversion to short integers, NaN to 0: clamped in the float type, which holds the bounds, and cut to width. LLVM's own
/// saturating conversion works lane by lane here.
fn short_int(e: &mut Emitter<'_>, from: Ty, to: DType, a: &str) -> String {
    let (t, wide, narrow) = (reg_type(from), vector_of("i32", from.lanes), reg_type(from.with_dtype(to)));
    let bools = vector_of("i1", from.lanes);
    let (lo, hi) =
        if to.is_signed_int() { (-(1i64 << (to.bits() - 1)), (1 << (to.bits() - 1)) - 1) } else { (0, (1 << to.bits()) - 1) };
    let (lo, hi, zero) = (float(e, from, lo as f64), float(e, from, hi as f64), float(e, from, 0.0));
    let above = e.def(&format!("fcmp ogt {t} {a}, {lo}"));
    let v = e.def(&format!("select {bools} {above}, {t} {a}, {t} {lo}"));
    let below = e.def(&format!("fcmp olt {t} {v}, {hi}"));
    let mut v = e.def(&format!("select {bools} {below}, {t} {v}, {t} {hi}"));
    if to.is_signed_int() {
        let nan = e.def(&format!("fcmp uno {t} {a}, {a}"));
        v = e.def(&format!("select {bools} {nan}, {t} {zero}, {t} {v}"));
    }
    let v = e.def(&format!("fptosi {t} {v} to {wide}"));
    e.def(&format!("trunc {wide} {v} to {narrow}"))
}

/// To nearest even on the bits; NaN stays a (quiet) NaN.
fn round_to_bf16(e: &mut Emitter<'_>, from: Ty, a: &str) -> String {
    let (t, wide, narrow) = (reg_type(from), vector_of("i32", from.lanes), vector_of("i16", from.lanes));
    let bools = vector_of("i1", from.lanes);
    let n = |e: &mut Emitter<'_>, v: i64| e.splat("i32", &v.to_string(), from.lanes);
    let bits = e.def(&format!("bitcast {t} {a} to {wide}"));
    let (sixteen, one, half, quiet) = (n(e, 16), n(e, 1), n(e, 0x7fff), n(e, 0x40_0000));
    let odd = e.def(&format!("lshr {wide} {bits}, {sixteen}"));
    let odd = e.def(&format!("and {wide} {odd}, {one}"));
    let bias = e.def(&format!("add {wide} {odd}, {half}"));
    let rounded = e.def(&format!("add {wide} {bits}, {bias}"));
    let nan = e.def(&format!("fcmp uno {t} {a}, {a}"));
    let quieted = e.def(&format!("or {wide} {bits}, {quiet}"));
    let v = e.def(&format!("select {bools} {nan}, {wide} {quieted}, {wide} {rounded}"));
    let v = e.def(&format!("lshr {wide} {v}, {sixteen}"));
    e.def(&format!("trunc {wide} {v} to {narrow}"))
}
