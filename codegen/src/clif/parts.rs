//! How values of the loop IR lie in Cranelift values.
//!
//! A scalar is one value; `f16` and `bf16` travel as their bits. A vector whose lanes fill 128-bit registers is one value per register, any
//! other vector one scalar per lane. Lanes of `bool` in registers are masks of 32 bits.

use cranelift_codegen::ir::{Endianness, InstBuilder as _, MemFlagsData, Type, Value, types};
use transc_ir::loops::Ty;
use transc_ir::types::DType;

use super::emit::Emitter;

/// The Cranelift values of a loop-IR value.
pub(super) type Parts = Vec<Value>;

/// The type of a scalar.
pub(super) fn scalar_type(d: DType) -> Type {
    match d {
        DType::F32 => types::F32,
        DType::F64 => types::F64,
        DType::F16 | DType::Bf16 | DType::U16 | DType::I16 => types::I16,
        DType::U8 | DType::I8 | DType::Bool => types::I8,
        DType::U32 | DType::I32 => types::I32,
        DType::U64 | DType::I64 => types::I64,
    }
}

/// Bytes of a lane in a register.
fn lane_bytes(d: DType) -> u16 {
    if d == DType::Bool { 4 } else { d.size_bytes() as u16 }
}

/// True if the lanes fill 128-bit registers.
pub(super) fn packed(ty: Ty) -> bool {
    ty.lanes > 1 && ty.lanes.is_multiple_of(16 / lane_bytes(ty.dtype))
}

/// The type and the number of the parts.
pub(super) fn layout(ty: Ty) -> (Type, usize) {
    if !packed(ty) {
        return (scalar_type(ty.dtype), ty.lanes.into());
    }
    let lane = if ty.dtype == DType::Bool { types::I32 } else { scalar_type(ty.dtype) };
    let per_part = 16 / lane_bytes(ty.dtype);
    (lane.by(per_part.into()).unwrap_or(lane), (ty.lanes / per_part).into())
}

/// The same bits as another type.
pub(super) fn bitcast(e: &mut Emitter<'_>, to: Type, v: Value) -> Value {
    if e.f.func.dfg.value_type(v) == to {
        return v;
    }
    e.f.ins().bitcast(to, MemFlagsData::new().with_endianness(Endianness::Little), v)
}

/// One lane as a scalar.
pub(super) fn lane(e: &mut Emitter<'_>, ty: Ty, v: &Parts, i: u16) -> Value {
    if !packed(ty) {
        return v[usize::from(i)];
    }
    let per_part = 16 / lane_bytes(ty.dtype);
    let x = e.f.ins().extractlane(v[usize::from(i / per_part)], (i % per_part) as u8);
    if ty.dtype == DType::Bool { bool_of_mask(e, x) } else { x }
}

/// All lanes as scalars.
pub(super) fn lanes(e: &mut Emitter<'_>, ty: Ty, v: &Parts) -> Vec<Value> {
    (0..ty.lanes).map(|i| lane(e, ty, v, i)).collect()
}

/// A value from all its lanes.
pub(super) fn from_lanes(e: &mut Emitter<'_>, ty: Ty, all: &[Value]) -> Parts {
    if !packed(ty) {
        return all.to_vec();
    }
    let (t, n) = layout(ty);
    let all: Vec<Value> =
        if ty.dtype == DType::Bool { all.iter().map(|x| mask_of_bool(e, types::I32, *x)).collect() } else { all.to_vec() };
    let part = |e: &mut Emitter<'_>, lanes: &[Value]| {
        let first = e.f.ins().splat(t, lanes[0]);
        lanes.iter().enumerate().skip(1).fold(first, |v, (i, x)| e.f.ins().insertlane(v, *x, i as u8))
    };
    all.chunks(all.len() / n).map(|c| part(e, c)).collect()
}

/// Applies a function of scalars lane by lane.
pub(super) fn lanewise(
    e: &mut Emitter<'_>,
    out: Ty,
    args: &[(Ty, &Parts)],
    mut f: impl FnMut(&mut Emitter<'_>, &[Value]) -> Value,
) -> Parts {
    let mut all = Vec::with_capacity(out.lanes.into());
    for i in 0..out.lanes {
        let args: Vec<Value> = args.iter().map(|(ty, v)| lane(e, *ty, v, i)).collect();
        all.push(f(e, &args));
    }
    from_lanes(e, out, &all)
}

/// 0 or 1 from a mask of a scalar type.
fn bool_of_mask(e: &mut Emitter<'_>, x: Value) -> Value {
    let t = e.f.func.dfg.value_type(x);
    let x = if t == types::I8 { x } else { e.f.ins().ireduce(types::I8, x) };
    e.f.ins().band_imm_s(x, 1)
}

/// All ones or all zeros from 0 or 1.
fn mask_of_bool(e: &mut Emitter<'_>, t: Type, x: Value) -> Value {
    let x = if t == types::I8 { x } else { e.f.ins().uextend(t, x) };
    e.f.ins().ineg(x)
}

/// A `bool` from what comparisons of values of type `ty` give: 0 or 1 for scalars, masks as wide as the operands for vectors.
pub(super) fn bool_from_masks(e: &mut Emitter<'_>, ty: Ty, raw: &Parts) -> Parts {
    let to = ty.with_dtype(DType::Bool);
    match (packed(ty), packed(to)) {
        (false, false) => raw.clone(),
        (true, true) => resize(e, lane_bytes(ty.dtype), 4, raw),
        (false, true) => from_lanes(e, to, raw),
        (true, false) => {
            let per_part = 16 / lane_bytes(ty.dtype);
            let lane = |e: &mut Emitter<'_>, i: u16| {
                let x = e.f.ins().extractlane(raw[usize::from(i / per_part)], (i % per_part) as u8);
                bool_of_mask(e, x)
            };
            (0..ty.lanes).map(|i| lane(e, i)).collect()
        }
    }
}

/// The masks that choose between values of type `ty`: 0 or 1 for scalars.
pub(super) fn masks_for(e: &mut Emitter<'_>, ty: Ty, v: &Parts) -> Parts {
    let from = ty.with_dtype(DType::Bool);
    match (packed(from), packed(ty)) {
        (false, false) => v.clone(),
        (true, true) => resize(e, 4, lane_bytes(ty.dtype), v),
        (true, false) => lanes(e, from, v),
        (false, true) => {
            let t = layout(ty).0.lane_type().as_int();
            let all: Vec<Value> = v.iter().map(|x| mask_of_bool(e, t, *x)).collect();
            let int = match lane_bytes(ty.dtype) {
                1 => DType::I8,
                2 => DType::I16,
                4 => DType::I32,
                _ => DType::I64,
            };
            from_lanes(e, ty.with_dtype(int), &all)
        }
    }
}

/// Masks of other widths: every lane is all ones or all zeros, so that signed widening and saturated narrowing keep it.
fn resize(e: &mut Emitter<'_>, from: u16, to: u16, v: &Parts) -> Parts {
    let (mut v, mut width) = (v.clone(), from);
    while width < to {
        v = widen(e, true, &v);
        width *= 2;
    }
    while width > to {
        v = narrow(e, &v);
        width /= 2;
    }
    v
}

/// Integer lanes of twice the width.
pub(super) fn widen(e: &mut Emitter<'_>, signed: bool, v: &Parts) -> Parts {
    let mut out = Parts::with_capacity(v.len() * 2);
    for x in v {
        out.extend(if signed {
            [e.f.ins().swiden_low(*x), e.f.ins().swiden_high(*x)]
        } else {
            [e.f.ins().uwiden_low(*x), e.f.ins().uwiden_high(*x)]
        });
    }
    out
}

/// Integer lanes of half the width: the low halves.
pub(super) fn narrow(e: &mut Emitter<'_>, v: &Parts) -> Parts {
    let half = e.f.func.dfg.value_type(v[0]).lane_bits() / 16;
    // The low halves of both registers.
    let picks: Vec<u8> = (0..32).filter(|i| (u32::from(*i) / half).is_multiple_of(2)).collect();
    v.chunks(2).map(|pair| shuffle_bytes(e, pair[0], pair[1], &picks, half)).collect()
}

/// Bytes picked from two registers, as integer lanes of a width in bytes.
fn shuffle_bytes(e: &mut Emitter<'_>, a: Value, b: Value, picks: &[u8], width: u32) -> Value {
    let v = shuffle16(e, a, b, picks);
    let t = match width {
        1 => types::I8X16,
        2 => types::I16X8,
        4 => types::I32X4,
        _ => types::I64X2,
    };
    bitcast(e, t, v)
}

/// Sixteen bytes picked from two registers.
pub(super) fn shuffle16(e: &mut Emitter<'_>, a: Value, b: Value, picks: &[u8]) -> Value {
    let (a, b) = (bitcast(e, types::I8X16, a), bitcast(e, types::I8X16, b));
    let mask = e.f.func.dfg.immediates.push(picks.to_vec().into());
    e.f.ins().shuffle(a, b, mask)
}
