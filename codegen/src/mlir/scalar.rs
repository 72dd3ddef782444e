//! Scalar operations in `arith`, `math` and `vector`, for scalars and vectors alike.

use transc_ir::loops::{Packs, TargetInst, Ty};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::DType;

use super::text::{Text, vector_of};

fn int(t: &mut Text, ty: Ty, v: i64) -> String {
    t.constant(ty.lanes, Literal::from_i64(ty.dtype, v))
}

fn float(t: &mut Text, ty: Ty, v: f64) -> String {
    t.constant(ty.lanes, Literal::from_f64(ty.dtype, v))
}

/// Half-width floats compute in `f32` and round after each operation.
fn is_half(d: DType) -> bool {
    matches!(d, DType::F16 | DType::Bf16)
}

fn widen(t: &mut Text, ty: Ty, a: &str) -> String {
    cast(t, ty, DType::F32, a)
}

fn narrow(t: &mut Text, ty: Ty, a: &str) -> String {
    cast(t, ty.with_dtype(DType::F32), ty.dtype, a)
}

/// An operation whose operands and result have one type.
fn same(t: &mut Text, name: &str, ty: Ty, args: &[&str]) -> String {
    t.def(&format!("{name} {} : {}", args.join(", "), t.reg_type(ty)))
}

fn compare(t: &mut Text, name: &str, ty: Ty, a: &str, b: &str) -> String {
    let dialect = if ty.dtype.is_float() { "cmpf" } else { "cmpi" };
    t.def(&format!("arith.{dialect} {name}, {a}, {b} : {}", t.reg_type(ty)))
}

/// Lane by lane; a scalar condition chooses all lanes.
pub(super) fn select(t: &mut Text, cond_lanes: u16, ty: Ty, c: &str, a: &str, b: &str) -> String {
    let cond = if cond_lanes == 1 { String::new() } else { format!("{}, ", vector_of("i1", cond_lanes)) };
    t.def(&format!("arith.select {c}, {a}, {b} : {cond}{}", t.reg_type(ty)))
}

fn blend(t: &mut Text, ty: Ty, c: &str, a: &str, b: &str) -> String {
    select(t, ty.lanes, ty, c, a, b)
}

/// An operation on one operand.
pub(super) fn un(t: &mut Text, op: UnOp, ty: Ty, a: &str) -> String {
    if is_half(ty.dtype) {
        let x = widen(t, ty, a);
        let y = un(t, op, ty.with_dtype(DType::F32), &x);
        return if matches!(op, UnOp::IsNan | UnOp::IsInf) { y } else { narrow(t, ty, &y) };
    }
    if !ty.dtype.is_float() {
        return int_un(t, op, ty, a);
    }
    let name = match op {
        UnOp::Neg => "arith.negf",
        UnOp::Abs => "math.absf",
        UnOp::Exp => "math.exp",
        UnOp::Log => "math.log",
        UnOp::Sqrt => "math.sqrt",
        UnOp::Floor => "math.floor",
        UnOp::Ceil => "math.ceil",
        UnOp::Trunc => "math.trunc",
        UnOp::Round => "math.roundeven",
        UnOp::Erf => "math.erf",
        UnOp::Tanh => "math.tanh",
        UnOp::Sin => "math.sin",
        UnOp::Cos => "math.cos",
        UnOp::Tan => "math.tan",
        UnOp::Asin => "math.asin",
        UnOp::Acos => "math.acos",
        UnOp::Atan => "math.atan",
        UnOp::Sinh => "math.sinh",
        UnOp::Cosh => "math.cosh",
        UnOp::Asinh => "math.asinh",
        UnOp::Acosh => "math.acosh",
        UnOp::Atanh => "math.atanh",
        UnOp::Log1p => "math.log1p",
        UnOp::Sign => {
            let (zero, one, minus) = (float(t, ty, 0.0), float(t, ty, 1.0), float(t, ty, -1.0));
            let (above, below) = (compare(t, "ogt", ty, a, &zero), compare(t, "olt", ty, a, &zero));
            let v = blend(t, ty, &above, &one, a);
            return blend(t, ty, &below, &minus, &v);
        }
        UnOp::Recip => {
            let one = float(t, ty, 1.0);
            return same(t, "arith.divf", ty, &[&one, a]);
        }
        UnOp::Sigmoid => {
            let n = same(t, "arith.negf", ty, &[a]);
            let x = same(t, "math.exp", ty, &[&n]);
            let one = float(t, ty, 1.0);
            let d = same(t, "arith.addf", ty, &[&x, &one]);
            return same(t, "arith.divf", ty, &[&one, &d]);
        }
        UnOp::IsNan => return compare(t, "uno", ty, a, a),
        UnOp::IsInf => {
            let (x, inf) = (same(t, "math.absf", ty, &[a]), float(t, ty, f64::INFINITY));
            return compare(t, "oeq", ty, &x, &inf);
        }
        // An operation on integers; the type rule keeps it away from floats.
        UnOp::Not => return a.into(),
    };
    same(t, name, ty, &[a])
}

fn int_un(t: &mut Text, op: UnOp, ty: Ty, a: &str) -> String {
    let signed = ty.dtype.is_signed_int();
    match op {
        UnOp::Neg => {
            let zero = int(t, ty, 0);
            same(t, "arith.subi", ty, &[&zero, a])
        }
        UnOp::Abs if signed => same(t, "math.absi", ty, &[a]),
        UnOp::Sign => {
            let (zero, one) = (int(t, ty, 0), int(t, ty, 1));
            let above = compare(t, "ne", ty, a, &zero);
            let v = blend(t, ty, &above, &one, &zero);
            if !signed {
                return v;
            }
            let (minus, below) = (int(t, ty, -1), compare(t, "slt", ty, a, &zero));
            blend(t, ty, &below, &minus, &v)
        }
        UnOp::Not => {
            let ones = int(t, ty, if ty.dtype == DType::Bool { 1 } else { -1 });
            same(t, "arith.xori", ty, &[a, &ones])
        }
        _ => a.into(),
    }
}

/// An operation on two operands of one type. Integer division by zero gives an unspecified number, never a trap.
pub(super) fn bin(t: &mut Text, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    if is_half(ty.dtype) {
        let (x, y) = (widen(t, ty, a), widen(t, ty, b));
        let v = bin(t, op, ty.with_dtype(DType::F32), &x, &y);
        return if op.is_compare() { v } else { narrow(t, ty, &v) };
    }
    if ty.dtype.is_float() { float_bin(t, op, ty, a, b) } else { int_bin(t, op, ty, a, b) }
}

fn float_bin(t: &mut Text, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let name = match op {
        BinOp::Add => "arith.addf",
        BinOp::Sub => "arith.subf",
        BinOp::Mul => "arith.mulf",
        BinOp::Div => "arith.divf",
        BinOp::Min => "arith.minimumf",
        BinOp::Max => "arith.maximumf",
        BinOp::Rem => "arith.remf",
        BinOp::Pow => "math.powf",
        BinOp::Atan2 => "math.atan2",
        BinOp::Eq => return compare(t, "oeq", ty, a, b),
        BinOp::Ne => return compare(t, "une", ty, a, b),
        BinOp::Lt => return compare(t, "olt", ty, a, b),
        BinOp::Le => return compare(t, "ole", ty, a, b),
        BinOp::Gt => return compare(t, "ogt", ty, a, b),
        BinOp::Ge => return compare(t, "oge", ty, a, b),
        BinOp::Mod => {
            let (r, zero) = (same(t, "arith.remf", ty, &[a, b]), float(t, ty, 0.0));
            let nonzero = compare(t, "one", ty, &r, &zero);
            let (rn, bn) = (compare(t, "olt", ty, &r, &zero), compare(t, "olt", ty, b, &zero));
            return toward_divisor(t, ty, "arith.addf", [&r, b], &nonzero, [&rn, &bn]);
        }
        // Bit operations are for integers; the type rule keeps them away from floats.
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::Shr => return a.into(),
    };
    same(t, name, ty, &[a, b])
}

/// The remainder `r`, moved by the divisor if it is not zero and their signs differ.
fn toward_divisor(t: &mut Text, ty: Ty, add: &str, [r, b]: [&str; 2], nonzero: &str, [rn, bn]: [&str; 2]) -> String {
    let bools = ty.with_dtype(DType::Bool);
    let differ = same(t, "arith.xori", bools, &[rn, bn]);
    let fix = same(t, "arith.andi", bools, &[nonzero, &differ]);
    let sum = same(t, add, ty, &[r, b]);
    blend(t, ty, &fix, &sum, r)
}

fn int_bin(t: &mut Text, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let signed = ty.dtype.is_signed_int();
    let pick = |s: &'static str, u: &'static str| if signed { s } else { u };
    let is_bool = ty.dtype == DType::Bool;
    let name = match op {
        BinOp::Add => "arith.addi",
        BinOp::Sub => "arith.subi",
        BinOp::Mul => "arith.muli",
        BinOp::And => "arith.andi",
        BinOp::Or => "arith.ori",
        BinOp::Xor => "arith.xori",
        BinOp::Min if is_bool => "arith.andi",
        BinOp::Max if is_bool => "arith.ori",
        BinOp::Min => pick("arith.minsi", "arith.minui"),
        BinOp::Max => pick("arith.maxsi", "arith.maxui"),
        BinOp::Eq => return compare(t, "eq", ty, a, b),
        BinOp::Ne => return compare(t, "ne", ty, a, b),
        BinOp::Lt => return compare(t, pick("slt", "ult"), ty, a, b),
        BinOp::Le => return compare(t, pick("sle", "ule"), ty, a, b),
        BinOp::Gt => return compare(t, pick("sgt", "ugt"), ty, a, b),
        BinOp::Ge => return compare(t, pick("sge", "uge"), ty, a, b),
        BinOp::Div | BinOp::Rem | BinOp::Mod => return divide(t, op, ty, a, b),
        BinOp::Shl | BinOp::Shr => return shift(t, op, ty, a, b),
        BinOp::Pow => return int_pow(t, ty, a, b),
        BinOp::Atan2 => return a.into(),
    };
    same(t, name, ty, &[a, b])
}

/// Division without the two traps of processors: by zero, and `MIN / -1`.
fn divide(t: &mut Text, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let (zero, one) = (int(t, ty, 0), int(t, ty, 1));
    let bad = compare(t, "eq", ty, b, &zero);
    if !ty.dtype.is_signed_int() {
        let safe = blend(t, ty, &bad, &one, b);
        return same(t, if op == BinOp::Div { "arith.divui" } else { "arith.remui" }, ty, &[a, &safe]);
    }
    let minus = int(t, ty, -1);
    let is_minus = compare(t, "eq", ty, b, &minus);
    let bad = same(t, "arith.ori", ty.with_dtype(DType::Bool), &[&bad, &is_minus]);
    let safe = blend(t, ty, &bad, &one, b);
    if op == BinOp::Div {
        let (q, n) = (same(t, "arith.divsi", ty, &[a, &safe]), same(t, "arith.subi", ty, &[&zero, a]));
        return blend(t, ty, &is_minus, &n, &q);
    }
    // The remainder by -1 is that by 1.
    let r = same(t, "arith.remsi", ty, &[a, &safe]);
    if op == BinOp::Rem {
        return r;
    }
    let nonzero = compare(t, "ne", ty, &r, &zero);
    let (rn, bn) = (compare(t, "slt", ty, &r, &zero), compare(t, "slt", ty, b, &zero));
    toward_divisor(t, ty, "arith.addi", [&r, b], &nonzero, [&rn, &bn])
}

fn shift(t: &mut Text, op: BinOp, ty: Ty, a: &str, b: &str) -> String {
    let signed = ty.dtype.is_signed_int();
    let (width, zero) = (int(t, ty, ty.dtype.bits().into()), int(t, ty, 0));
    let inside = compare(t, "ult", ty, b, &width);
    let by = blend(t, ty, &inside, b, &zero);
    let name = match op {
        BinOp::Shl => "arith.shli",
        _ if signed => "arith.shrsi",
        _ => "arith.shrui",
    };
    let v = same(t, name, ty, &[a, &by]);
    let beyond = if op == BinOp::Shr && signed {
        let top = int(t, ty, i64::from(ty.dtype.bits()) - 1);
        same(t, "arith.shrsi", ty, &[a, &top])
    } else {
        zero
    };
    blend(t, ty, &inside, &v, &beyond)
}

/// By squaring over the bits of the exponent, without a branch; a negative exponent gives 0, or the sign of +-1.
fn int_pow(t: &mut Text, ty: Ty, a: &str, b: &str) -> String {
    let (zero, one) = (int(t, ty, 0), int(t, ty, 1));
    let (mut base, mut out) = (a.to_string(), one.clone());
    for i in 0..ty.dtype.bits() {
        let by = int(t, ty, i64::from(i));
        let bit = same(t, "arith.shrui", ty, &[b, &by]);
        let bit = same(t, "arith.andi", ty, &[&bit, &one]);
        let set = compare(t, "ne", ty, &bit, &zero);
        let product = same(t, "arith.muli", ty, &[&out, &base]);
        out = blend(t, ty, &set, &product, &out);
        base = same(t, "arith.muli", ty, &[&base, &base]);
    }
    if !ty.dtype.is_signed_int() {
        return out;
    }
    // The powers of -1 have period 2, so `out` is right for it also where the exponent is negative.
    let minus = int(t, ty, -1);
    let (is_one, is_minus) = (compare(t, "eq", ty, a, &one), compare(t, "eq", ty, a, &minus));
    let unit = same(t, "arith.ori", ty.with_dtype(DType::Bool), &[&is_one, &is_minus]);
    let negative = compare(t, "slt", ty, b, &zero);
    let inverse = blend(t, ty, &unit, &out, &zero);
    blend(t, ty, &negative, &inverse, &out)
}

/// `a * b + c` with one rounding; half-width floats round once more on the way back.
pub(super) fn fma(t: &mut Text, ty: Ty, args: [&str; 3]) -> String {
    if is_half(ty.dtype) {
        let [a, b, c] = args.map(|a| widen(t, ty, a));
        let v = same(t, "math.fma", ty.with_dtype(DType::F32), &[&a, &b, &c]);
        return narrow(t, ty, &v);
    }
    same(t, "math.fma", ty, &args)
}

/// Conversion; see [`transc_ir::scalar::Inst::Cast`].
pub(super) fn cast(t: &mut Text, from: Ty, to: DType, a: &str) -> String {
    if from.dtype == to {
        return a.into();
    }
    let target = from.with_dtype(to);
    let convert = |t: &mut Text, name: &str| t.def(&format!("arith.{name} {a} : {} to {}", t.reg_type(from), t.reg_type(target)));
    let f32_ty = from.with_dtype(DType::F32);
    match (from.dtype, to) {
        (DType::Bf16, DType::F32) if t.is_bits(from.dtype) => from_bf16(t, from, a),
        (DType::F32, DType::Bf16) if t.is_bits(to) => round_to_bf16(t, from, a),
        (d, DType::F64) if d == DType::F32 || is_half(d) && !t.is_bits(d) => convert(t, "extf"),
        (DType::F16 | DType::Bf16, DType::F32) => convert(t, "extf"),
        (DType::F32, DType::F16 | DType::Bf16) | (DType::F64, DType::F32) => convert(t, "truncf"),
        (d, DType::Bool) if !is_half(d) => {
            let zero = if d.is_float() { float(t, from, 0.0) } else { int(t, from, 0) };
            compare(t, if d.is_float() { "une" } else { "ne" }, from, a, &zero)
        }
        // Half-width floats convert through f32, in both directions.
        (d, _) if is_half(d) => {
            let x = widen(t, from, a);
            cast(t, f32_ty, to, &x)
        }
        (_, d) if is_half(d) => {
            let x = cast(t, from, DType::F32, a);
            cast(t, f32_ty, to, &x)
        }
        (d, _) if d.is_float() => saturate(t, from, to, a),
        (d, to) if to.is_float() => convert(t, if d.is_signed_int() { "sitofp" } else { "uitofp" }),
        (d, to) => {
            let (n, m) = (if d == DType::Bool { 1 } else { d.bits() }, to.bits());
            match n.cmp(&m) {
                std::cmp::Ordering::Equal => a.into(),
                std::cmp::Ordering::Greater => convert(t, "trunci"),
                std::cmp::Ordering::Less => convert(t, if d.is_signed_int() { "extsi" } else { "extui" }),
            }
        }
    }
}

/// The bits of a `bf16` are the upper half of those of an `f32`.
fn from_bf16(t: &mut Text, from: Ty, a: &str) -> String {
    let wide = from.with_dtype(DType::U32);
    let bits = cast(t, from.with_dtype(DType::U16), DType::U32, a);
    let sixteen = int(t, wide, 16);
    let bits = same(t, "arith.shli", wide, &[&bits, &sixteen]);
    t.def(&format!("arith.bitcast {bits} : {} to {}", t.reg_type(wide), t.reg_type(from.with_dtype(DType::F32))))
}

/// To nearest even on the bits; NaN stays a quiet NaN.
fn round_to_bf16(t: &mut Text, from: Ty, a: &str) -> String {
    let wide = from.with_dtype(DType::U32);
    let bits = t.def(&format!("arith.bitcast {a} : {} to {}", t.reg_type(from), t.reg_type(wide)));
    let (sixteen, one, half, quiet) = (int(t, wide, 16), int(t, wide, 1), int(t, wide, 0x7fff), int(t, wide, 0x40_0000));
    let odd = same(t, "arith.shrui", wide, &[&bits, &sixteen]);
    let odd = same(t, "arith.andi", wide, &[&odd, &one]);
    let bias = same(t, "arith.addi", wide, &[&odd, &half]);
    let rounded = same(t, "arith.addi", wide, &[&bits, &bias]);
    let nan = compare(t, "uno", from, a, a);
    let quieted = same(t, "arith.ori", wide, &[&bits, &quiet]);
    let v = blend(t, wide, &nan, &quieted, &rounded);
    let v = same(t, "arith.shrui", wide, &[&v, &sixteen]);
    cast(t, wide, DType::U16, &v)
}

/// Float to integer: out of range gives the nearest end, NaN gives 0. MLIR's own conversion is undefined there, so it sees numbers in
/// range only.
fn saturate(t: &mut Text, from: Ty, to: DType, a: &str) -> String {
    let target = from.with_dtype(to);
    let signed = to.is_signed_int();
    let half = 2f64.powi(to.bits() as i32 - 1);
    // Both ends are powers of two, exact in every float; the last number below the low one may round to it, which the low end covers.
    let (below, above) = if signed { (-half - 1.0, half) } else { (-1.0, 2.0 * half) };
    let (below, above, zero) = (float(t, from, below), float(t, from, above), float(t, from, 0.0));
    let (over, under) = (compare(t, "oge", from, a, &above), compare(t, "ole", from, a, &below));
    let inside = (compare(t, "olt", from, a, &above), compare(t, "ogt", from, a, &below));
    let inside = same(t, "arith.andi", from.with_dtype(DType::Bool), &[&inside.0, &inside.1]);
    let safe = blend(t, from, &inside, a, &zero);
    let name = if signed { "fptosi" } else { "fptoui" };
    let v = t.def(&format!("arith.{name} {safe} : {} to {}", t.reg_type(from), t.reg_type(target)));
    let (low, high) = if signed { (i64::MIN >> (64 - to.bits()), i64::MAX >> (64 - to.bits())) } else { (0, -1) };
    let (low, high) = (int(t, target, low), int(t, target, high));
    let v = blend(t, target, &over, &high, &v);
    blend(t, target, &under, &low, &v)
}

/// Bytes of two tables, one after the other.
fn look_up(t: &mut Text, ty: Ty, args: &[String]) -> String {
    let (n, vector, both) = (ty.lanes, t.reg_type(ty), t.reg_type(Ty { lanes: 2 * ty.lanes, ..ty }));
    let picks: Vec<String> = (0..2 * n).map(|i| i.to_string()).collect();
    let table = t.def(&format!("vector.shuffle {}, {} [{}] : {vector}, {vector}", args[1], args[2], picks.join(", ")));
    let most = int(t, ty, i64::from(2 * n - 1));
    let index = same(t, "arith.andi", ty, &[&args[0], &most]);
    let mut out = int(t, ty, 0);
    for i in 0..n {
        let at = t.def(&format!("vector.extract {index}[{i}] : i8 from {vector}"));
        let at = t.def(&format!("arith.index_castui {at} : i8 to index"));
        let byte = t.def(&format!("vector.extract {table}[{at}] : i8 from {both}"));
        out = t.def(&format!("vector.insert {byte}, {out} [{i}] : i8 into {vector}"));
    }
    out
}

/// A saturating conversion, and another result where that has no such number.
fn to_integers(t: &mut Text, ty: Ty, x: &str) -> String {
    let int_ty = ty.with_dtype(DType::I32);
    let rounded = un(t, UnOp::Round, ty, x);
    let whole = cast(t, ty, DType::I32, &rounded);
    let (end, least) = (float(t, ty, 2f64.powi(31)), int(t, int_ty, i32::MIN.into()));
    let fits = compare(t, "olt", ty, x, &end);
    blend(t, int_ty, &fits, &whole, &least)
}

/// Limits, conversions and a shuffle.
fn pack(t: &mut Text, ty: Ty, Packs { to, range, .. }: Packs, args: &[String]) -> String {
    let [least, most] = range.map(|v| int(t, ty, v));
    let [a, b] = [0, 1].map(|i: usize| {
        let x = bin(t, BinOp::Max, ty, &args[i], &least);
        let x = bin(t, BinOp::Min, ty, &x, &most);
        cast(t, ty, to, &x)
    });
    let picks: Vec<String> = TargetInst::packed_lanes(ty).iter().map(|i| i.to_string()).collect();
    let narrow = t.reg_type(ty.with_dtype(to));
    t.def(&format!("vector.shuffle {a}, {b} [{}] : {narrow}, {narrow}", picks.join(", ")))
}

/// A target instruction by its stated meaning.
pub(super) fn target(t: &mut Text, inst: TargetInst, types: &[Ty], args: &[String]) -> String {
    let (product_dtype, per_lane) = match inst {
        TargetInst::VPermI2B => return look_up(t, types[0], args),
        TargetInst::VCvtNePs2Bf16 => return cast(t, types[0], DType::Bf16, &args[0]),
        TargetInst::VCvtPs2Dq => return to_integers(t, types[0], &args[0]),
        TargetInst::VPackSsDw => return pack(t, types[0], Packs::WORDS, args),
        TargetInst::VPackUsWb => return pack(t, types[0], Packs::BYTES, args),
        TargetInst::VpDpBusd => (DType::I32, 4),
        TargetInst::VpDpWssd => (DType::I32, 2),
        TargetInst::VDpBf16Ps => (DType::F32, 2),
    };
    let wide = t.reg_type(Ty::vector(product_dtype, types[1].lanes));
    let (x, y) = (cast(t, types[1], product_dtype, &args[1]), cast(t, types[2], product_dtype, &args[2]));
    let mut sum = args[0].clone();
    for j in (0..per_lane).rev() {
        let picks: Vec<String> = (0..types[0].lanes).map(|i| (i * per_lane + j).to_string()).collect();
        let lanes_of = |t: &mut Text, v: &str| t.def(&format!("vector.shuffle {v}, {v} [{}] : {wide}, {wide}", picks.join(", ")));
        let (a, b) = (lanes_of(t, &x), lanes_of(t, &y));
        sum = if inst == TargetInst::VDpBf16Ps {
            fma(t, types[0], [&a, &b, &sum])
        } else {
            let product = bin(t, BinOp::Mul, types[0], &a, &b);
            bin(t, BinOp::Add, types[0], &sum, &product)
        };
    }
    sum
}
