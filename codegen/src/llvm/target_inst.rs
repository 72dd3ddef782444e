//! Target instructions in LLVM IR: the machine's own, or what they mean.

use transc_ir::loops::{Packs, TargetInst, Ty};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::DType;

use super::emit::{Emitter, reg_type, vector_of};
use super::ops::{bin, cast, float, fma, int, un};

/// A target instruction: the machine's own where there is one, else its stated meaning in simpler operations.
pub(super) fn emit(e: &mut Emitter<'_>, t: TargetInst, types: &[Ty], args: &[String]) -> String {
    let n = types[0].lanes;
    if t == TargetInst::VpDpBusd && matches!(n, 8 | 16) {
        return dot_bytes(e, n, types, args);
    }
    if t == TargetInst::VpDpWssd && matches!(n, 8 | 16) {
        let pairs = dot_words(e, n, (&reg_type(types[0]), &reg_type(types[1])), &args[1], &args[2]);
        return e.def(&format!("add {} {}, {pairs}", reg_type(types[0]), args[0]));
    }
    if t == TargetInst::VDpBf16Ps {
        return dot_bf16(e, types, args);
    }
    if t == TargetInst::VCvtNePs2Bf16 {
        return to_bf16(e, types[0], &args[0]);
    }
    if t == TargetInst::VPermI2B {
        return look_up(e, types[0], args);
    }
    if t == TargetInst::VCvtPs2Dq {
        return to_integers(e, types[0], &args[0]);
    }
    if let Some(packs) = t.packs() {
        return pack(e, (t, packs), types[0], args);
    }
    let per_lane = if t == TargetInst::VpDpBusd { 4 } else { 2 };
    let wide = Ty::vector(DType::I32, types[1].lanes);
    let (x, y) = (cast(e, types[1], DType::I32, &args[1]), cast(e, types[2], DType::I32, &args[2]));
    let mut sum = args[0].clone();
    let lanes_of = |e: &mut Emitter<'_>, v: &str, j: u16| {
        let picks: Vec<String> = (0..n).map(|i| format!("i32 {}", i * per_lane + j)).collect();
        e.def(&format!("shufflevector {w} {v}, {w} poison, <{n} x i32> <{}>", picks.join(", "), w = reg_type(wide)))
    };
    for j in (0..per_lane).rev() {
        let (a, b) = (lanes_of(e, &x, j), lanes_of(e, &y, j));
        let product = bin(e, BinOp::Mul, types[0], &a, &b);
        sum = bin(e, BinOp::Add, types[0], &sum, &product);
    }
    sum
}

/// `vcvtneps2bf16`, or without it on the bits.
fn to_bf16(e: &mut Emitter<'_>, ty: Ty, x: &str) -> String {
    let (n, t, bits) = (ty.lanes, reg_type(ty), reg_type(ty.with_dtype(DType::Bf16)));
    if !(e.bf16 && matches!(n, 16 | 32)) {
        return cast(e, ty, DType::Bf16, x);
    }
    let pairs = vector_of("bfloat", n);
    let y = if n == 16 {
        e.call(&pairs, "llvm.x86.avx512bf16.cvtneps2bf16.512", &[(t, x.into())])
    } else {
        let half = |e: &mut Emitter<'_>, from: u16| {
            let picks: Vec<String> = (from..from + 16).map(|i| format!("i32 {i}")).collect();
            e.def(&format!("shufflevector {t} {x}, {t} poison, <16 x i32> <{}>", picks.join(", ")))
        };
        let (upper, lower) = (half(e, 16), half(e, 0));
        let part = vector_of("float", 16);
        e.call(&pairs, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", &[(part.clone(), upper), (part, lower)])
    };
    e.def(&format!("bitcast {pairs} {y} to {bits}"))
}

/// `vcvtps2dq`, which every host has in vectors of its width, or a saturating conversion and another result where that has no such number.
fn to_integers(e: &mut Emitter<'_>, ty: Ty, x: &str) -> String {
    let (t, wide) = (reg_type(ty), reg_type(ty.with_dtype(DType::I32)));
    match ty.lanes {
        8 => return e.call(&wide, "llvm.x86.avx.cvt.ps2dq.256", &[(t, x.into())]),
        16 => {
            // All lanes, rounded as is set: to nearest even.
            let none = e.splat("i32", "0", 16);
            let args = [(t, x.into()), (wide.clone(), none), ("i16".into(), "-1".into()), ("i32".into(), "4".into())];
            return e.call(&wide, "llvm.x86.avx512.mask.cvtps2dq.512", &args);
        }
        _ => {}
    }
    let rounded = un(e, UnOp::Round, ty, x);
    let whole = cast(e, ty, DType::I32, &rounded);
    let (end, least) = (float(e, ty, 2f64.powi(31)), int(e, ty.with_dtype(DType::I32), i32::MIN.into()));
    let fits = e.def(&format!("fcmp olt {t} {x}, {end}"));
    e.def(&format!("select {} {fits}, {wide} {whole}, {wide} {least}", vector_of("i1", ty.lanes)))
}

/// `vpackssdw` and its like, which every host has in vectors of its width, or limits, conversions and a shuffle.
fn pack(e: &mut Emitter<'_>, (t, Packs { to, range, .. }): (TargetInst, Packs), ty: Ty, args: &[String]) -> String {
    let (wide, out) = (reg_type(ty), Ty::vector(to, 2 * ty.lanes));
    let bits = usize::from(ty.lanes) * ty.dtype.size_bytes() * 8;
    if matches!(bits, 256 | 512) {
        let set = if bits == 512 { "avx512" } else { "avx2" };
        let suffix = if bits == 512 { ".512" } else { "" };
        let name = format!("llvm.x86.{set}.{}{suffix}", &t.name()[1..]);
        return e.call(&reg_type(out), &name, &[(wide.clone(), args[0].clone()), (wide, args[1].clone())]);
    }
    let narrow = ty.with_dtype(to);
    let [least, most] = range.map(|v| int(e, ty, v));
    let parts = [0, 1].map(|i: usize| {
        let x = bin(e, BinOp::Max, ty, &args[i], &least);
        let x = bin(e, BinOp::Min, ty, &x, &most);
        cast(e, ty, to, &x)
    });
    let picks: Vec<String> = TargetInst::packed_lanes(ty).iter().map(|i| format!("i32 {i}")).collect();
    let [a, b] = parts;
    e.def(&format!("shufflevector {n} {a}, {n} {b}, <{} x i32> <{}>", out.lanes, picks.join(", "), n = reg_type(narrow)))
}

/// `vpermi2b`, or without it byte by byte.
fn look_up(e: &mut Emitter<'_>, ty: Ty, args: &[String]) -> String {
    let (n, t) = (ty.lanes, reg_type(ty));
    if e.vbmi && n == 64 {
        let args = [1, 0, 2].map(|i| (t.clone(), args[i].clone()));
        return e.call(&t, "llvm.x86.avx512.vpermi2var.qi.512", &args);
    }
    let both: Vec<String> = (0..2 * n).map(|i| format!("i32 {i}")).collect();
    let tables = vector_of("i8", 2 * n);
    let table = e.def(&format!("shufflevector {t} {}, {t} {}, <{} x i32> <{}>", args[1], args[2], 2 * n, both.join(", ")));
    let most = e.splat("i8", &(2 * n - 1).to_string(), n);
    let index = e.def(&format!("and {t} {}, {most}", args[0]));
    let mut out = "poison".to_string();
    for i in 0..n {
        let at = e.def(&format!("extractelement {t} {index}, i32 {i}"));
        let byte = e.def(&format!("extractelement {tables} {table}, i8 {at}"));
        out = e.def(&format!("insertelement {t} {out}, i8 {byte}, i32 {i}"));
    }
    out
}

/// `vdpbf16ps`, or without it the odd elements and then the even ones as `f32`, multiplied and added with one rounding.
fn dot_bf16(e: &mut Emitter<'_>, types: &[Ty], args: &[String]) -> String {
    let n = types[0].lanes;
    let (acc, bits, words) = (reg_type(types[0]), reg_type(types[1]), vector_of("i32", n));
    if e.bf16 && matches!(n, 4 | 8 | 16) {
        let pairs = vector_of("bfloat", 2 * n);
        let [x, w] = [1, 2].map(|i| e.def(&format!("bitcast {bits} {} to {pairs}", args[i])));
        let args = [(acc.clone(), args[0].clone()), (pairs.clone(), x), (pairs, w)];
        return e.call(&acc, &format!("llvm.x86.avx512bf16.dpbf16ps.{}", n * 32), &args);
    }
    let (half, upper) = (e.splat("i32", "16", n), e.splat("i32", "-65536", n));
    let split = |e: &mut Emitter<'_>, v: &str| {
        let v = e.def(&format!("bitcast {bits} {v} to {words}"));
        let (odd, even) = (e.def(&format!("and {words} {v}, {upper}")), e.def(&format!("shl {words} {v}, {half}")));
        [odd, even].map(|v| e.def(&format!("bitcast {words} {v} to {acc}")))
    };
    let (x, w) = (split(e, &args[1]), split(e, &args[2]));
    let mut sum = args[0].clone();
    for (x, w) in x.into_iter().zip(w) {
        sum = fma(e, types[0], [&x, &w, &sum]);
    }
    sum
}

/// `pmaddwd`.
fn dot_words(e: &mut Emitter<'_>, n: u16, (sums, words): (&str, &str), a: &str, b: &str) -> String {
    let name = if n == 16 { "llvm.x86.avx512.pmaddw.d.512" } else { "llvm.x86.avx2.pmadd.wd" };
    e.call(sums, name, &[(words.into(), a.into()), (words.into(), b.into())])
}

/// `vpdpbusd`, or without it products of 16-bit halves: the even bytes, then the odd ones, by `pmaddwd`, which is exact where the
/// byte-wise `pmaddubsw` saturates.
fn dot_bytes(e: &mut Emitter<'_>, n: u16, types: &[Ty], args: &[String]) -> String {
    let (acc, bytes, words) = (reg_type(types[0]), reg_type(types[1]), vector_of("i16", 2 * n));
    let bits = n * 32;
    if e.vnni {
        let args = [(acc.clone(), args[0].clone()), (bytes.clone(), args[1].clone()), (bytes, args[2].clone())];
        return e.call(&acc, &format!("llvm.x86.avx512.vpdpbusd.{bits}"), &args);
    }
    let [x, w] = [1, 2].map(|i| e.def(&format!("bitcast {bytes} {} to {words}", args[i])));
    let eight = e.splat("i16", "8", 2 * n);
    let low = e.splat("i16", "255", 2 * n);
    let x_even = e.def(&format!("and {words} {x}, {low}"));
    let x_odd = e.def(&format!("lshr {words} {x}, {eight}"));
    let w_even = e.def(&format!("shl {words} {w}, {eight}"));
    let w_even = e.def(&format!("ashr {words} {w_even}, {eight}"));
    let w_odd = e.def(&format!("ashr {words} {w}, {eight}"));
    let mut sum = args[0].clone();
    for (x, w) in [(x_even, w_even), (x_odd, w_odd)] {
        let pairs = dot_words(e, n, (&acc, &words), &x, &w);
        sum = e.def(&format!("add {acc} {sum}, {pairs}"));
    }
    sum
}
