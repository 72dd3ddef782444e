//! Operations on registers: slices of elements as bits, all threads and lanes side by side. The common types have fast paths; all others go
//! through the scalar semantics of [`crate::interp::scalar`].

use crate::interp::scalar;
use crate::loops::Packs;
use crate::scalar::{BinOp, Literal, UnOp};
use crate::types::DType;

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn b(v: f32) -> u64 {
    v.to_bits().into()
}

fn zip(out: &mut [u64], x: &[u64], y: &[u64], op: impl Fn(u64, u64) -> u64) {
    for ((o, a), b) in out.iter_mut().zip(x).zip(y) {
        *o = op(*a, *b);
    }
}

/// An operation on one operand of type `d`.
pub(super) fn un(op: UnOp, d: DType, out: &mut [u64], x: &[u64]) {
    for (o, a) in out.iter_mut().zip(x) {
        *o = match (op, d) {
            (UnOp::Neg, DType::F32) => a ^ 0x8000_0000,
            (UnOp::Abs, DType::F32) => a & 0x7fff_ffff,
            (UnOp::Sqrt, DType::F32) => b(f(*a).sqrt()),
            _ => scalar::un(op, Literal { dtype: d, bits: *a }).bits,
        };
    }
}

/// An operation on two operands of type `d`. The error is the position of an integer division by zero for which `counts` holds; where it
/// does not, such a division gives 0.
pub(super) fn bin(
    op: BinOp,
    d: DType,
    out: &mut [u64],
    (x, y): (&[u64], &[u64]),
    counts: impl Fn(usize) -> bool,
) -> Result<(), usize> {
    use BinOp as B;
    match (d, op) {
        (DType::F32, B::Add) => zip(out, x, y, |p, q| b(f(p) + f(q))),
        (DType::F32, B::Sub) => zip(out, x, y, |p, q| b(f(p) - f(q))),
        (DType::F32, B::Mul) => zip(out, x, y, |p, q| b(f(p) * f(q))),
        (DType::F32, B::Div) => zip(out, x, y, |p, q| b(f(p) / f(q))),
        (DType::F32, B::Lt) => zip(out, x, y, |p, q| u64::from(f(p) < f(q))),
        (DType::F32, B::Gt) => zip(out, x, y, |p, q| u64::from(f(p) > f(q))),
        (DType::F32, B::Max) => zip(out, x, y, |p, q| if f(p).is_nan() || f(p) > f(q) { p } else { q }),
        (DType::F32, B::Min) => zip(out, x, y, |p, q| if f(p).is_nan() || f(p) < f(q) { p } else { q }),
        (DType::I64, B::Add) => zip(out, x, y, u64::wrapping_add),
        (DType::I64, B::Sub) => zip(out, x, y, u64::wrapping_sub),
        (DType::I64, B::Mul) => zip(out, x, y, u64::wrapping_mul),
        (DType::I64, B::Lt) => zip(out, x, y, |p, q| u64::from((p as i64) < q as i64)),
        (DType::I64, B::Ge) => zip(out, x, y, |p, q| u64::from(p as i64 >= q as i64)),
        (DType::I64, B::Min) => zip(out, x, y, |p, q| (p as i64).min(q as i64) as u64),
        (DType::I64 | DType::Bool, B::And) => zip(out, x, y, |p, q| p & q),
        (DType::I64 | DType::Bool, B::Or) => zip(out, x, y, |p, q| p | q),
        _ => {
            let lit = |bits| Literal { dtype: d, bits };
            for (i, o) in out.iter_mut().enumerate() {
                *o = match scalar::bin(op, lit(x[i]), lit(y[i])) {
                    Ok(v) => v.bits,
                    Err(_) if counts(i) => return Err(i),
                    Err(_) => 0,
                };
            }
        }
    }
    Ok(())
}

/// `a * b + c` with one rounding to `d`.
pub(super) fn fma(d: DType, out: &mut [u64], [x, y, z]: [&[u64]; 3]) {
    let lit = |bits| Literal { dtype: d, bits }.to_f64();
    for (i, o) in out.iter_mut().enumerate() {
        *o = match d {
            DType::F32 => b(f(x[i]).mul_add(f(y[i]), f(z[i]))),
            // Exact for half-width operands before the one rounding: their products have at most 22 bits.
            _ => Literal::from_f64(d, lit(x[i]).mul_add(lit(y[i]), lit(z[i]))).bits,
        };
    }
}

/// Conversion.
pub(super) fn cast(from: DType, to: DType, out: &mut [u64], x: &[u64]) {
    for (o, a) in out.iter_mut().zip(x) {
        *o = scalar::cast(to, Literal { dtype: from, bits: *a }).bits;
    }
}

/// `acc + sum of a[j] * b[j]`, wrapping.
pub(super) fn vpdpbusd(acc: u64, a: &[u64], b: &[u64]) -> u64 {
    let products = a.iter().zip(b).map(|(a, b)| i32::from(*a as u8).wrapping_mul(i32::from(*b as u8 as i8)));
    u64::from(products.fold(acc as i32, i32::wrapping_add) as u32)
}

/// `acc + a[0]*b[0] + a[1]*b[1]`, wrapping.
pub(super) fn vpdpwssd(acc: u64, a: &[u64], b: &[u64]) -> u64 {
    let products = a.iter().zip(b).map(|(a, b)| i32::from(*a as u16 as i16).wrapping_mul(i32::from(*b as u16 as i16)));
    u64::from(products.fold(acc as i32, i32::wrapping_add) as u32)
}

/// To `bf16`; denormals are zero here.
pub(super) fn vcvtneps2bf16(out: &mut [u64], x: &[u64]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = half::bf16::from_f32(flush(f(*x))).to_bits().into();
    }
}

/// To `i32`, as the processor does.
pub(super) fn vcvtps2dq(out: &mut [u64], x: &[u64]) {
    for (o, x) in out.iter_mut().zip(x) {
        let x = f(*x).round_ties_even();
        let fits = (-2f32.powi(31)..2f32.powi(31)).contains(&x);
        *o = u64::from(if fits { x as i32 } else { i32::MIN } as u32);
    }
}

/// An element of what an instruction packs.
pub(super) fn saturated(p: Packs, x: u64) -> u64 {
    let [least, most] = p.range;
    let x = Literal { dtype: p.from, bits: x }.to_i64().clamp(least, most);
    Literal::from_i64(p.to, x).bits
}

/// One element of [`crate::loops::MatrixDot::Bytes`]: quads of `u8` by quads of `i8`.
pub(super) fn tdpbusd<'a>(acc: u32, quads: impl Iterator<Item = (&'a u32, &'a u32)>) -> u32 {
    quads.fold(acc, |sum, (x, y)| {
        let products = x.to_le_bytes().into_iter().zip(y.to_le_bytes()).map(|(x, y)| i32::from(x) * i32::from(y as i8));
        sum.wrapping_add(products.sum::<i32>() as u32)
    })
}

/// One element of [`crate::loops::MatrixDot::Bf16`]: pairs by pairs.
pub(super) fn tdpbf16ps<'a>(acc: u32, pairs: impl Iterator<Item = (&'a u32, &'a u32)>) -> u32 {
    let even = |w: u32| flush(f32::from_bits(w << 16));
    let odd = |w: u32| flush(f32::from_bits(w & 0xffff_0000));
    let (mut evens, mut odds) = (0.0f32, 0.0f32);
    for (x, y) in pairs {
        evens = flush(even(*x).mul_add(even(*y), evens));
        odds = flush(odd(*x).mul_add(odd(*y), odds));
    }
    flush(flush(f32::from_bits(acc)) + flush(evens + odds)).to_bits()
}

/// Denormals are zero.
fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0.0f32.copysign(v) } else { v }
}

/// An element of two tables of one length, the second behind the first.
pub(super) fn vpermi2b(index: u64, [a, b]: [&[u64]; 2]) -> u64 {
    let i = index as usize % (2 * a.len()).max(1);
    a.iter().chain(b).nth(i).copied().unwrap_or_default()
}

/// `acc + a[1]*b[1]`, then `+ a[0]*b[0]`: products of `bf16` are exact, so each step rounds once. Denormals are zero here.
pub(super) fn vdpbf16ps(acc: u64, x: &[u64], y: &[u64]) -> u64 {
    let wide = |bits: u64| flush(f(bits << 16));
    let step = |j: usize, sum: f32| flush(wide(x[j]).mul_add(wide(y[j]), sum));
    b(step(0, step(1, flush(f(acc)))))
}
