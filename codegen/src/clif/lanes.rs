//! Operations across lanes, and target instructions by their stated meaning.

use cranelift_codegen::ir::{ConstantData, InstBuilder as _, Value, types};
use transc_ir::loops::{Packs, ReduceOp, TargetInst, Ty};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::DType;

use super::cast::{bf16_to_f32, cast};
use super::emit::{Emitter, plain};
use super::ops;
use super::parts::{self, Parts, layout, packed};

/// A vector of equal lanes.
pub(super) fn splat(e: &mut Emitter<'_>, d: DType, lanes: u16, x: Value) -> Parts {
    let ty = Ty::vector(d, lanes);
    let (t, n) = layout(ty);
    if !packed(ty) {
        return vec![x; n];
    }
    let x = if d == DType::Bool {
        let x = e.f.ins().uextend(types::I32, x);
        e.f.ins().ineg(x)
    } else {
        x
    };
    let v = e.f.ins().splat(t, x);
    vec![v; n]
}

/// `0, 1, 2, ..`.
pub(super) fn count(e: &mut Emitter<'_>, ty: Ty) -> Parts {
    let (t, n) = layout(ty);
    if !packed(ty) {
        return (0..i64::from(ty.lanes)).map(|i| e.f.ins().iconst(t, i)).collect();
    }
    let bytes = |i: u16| i64::from(i).to_le_bytes()[..ty.dtype.size_bytes()].to_vec();
    let all: Vec<u8> = (0..ty.lanes).flat_map(bytes).collect();
    all.chunks(all.len() / n)
        .map(|c| {
            let data = e.f.func.dfg.constants.insert(ConstantData::from(c));
            e.f.ins().vconst(t, data)
        })
        .collect()
}

/// Lanes picked from the concatenation of two vectors.
pub(super) fn shuffle(e: &mut Emitter<'_>, ty: Ty, a: &Parts, b: &Parts, picks: &[u16]) -> Parts {
    let out = Ty::vector(ty.dtype, picks.len() as u16);
    if packed(ty) && packed(out) {
        let (t, _) = layout(ty);
        let per_part = t.lane_count() as u16;
        let both: Vec<Value> = a.iter().chain(b).copied().collect();
        let chosen: Option<Parts> = picks.chunks(per_part.into()).map(|p| shuffle_part(e, &both, per_part, p)).collect();
        if let Some(v) = chosen {
            return v;
        }
    }
    let mut all = parts::lanes(e, ty, a);
    all.extend(parts::lanes(e, ty, b));
    let chosen: Vec<Value> = picks.iter().map(|i| all[usize::from(*i)]).collect();
    parts::from_lanes(e, out, &chosen)
}

/// One register of a shuffle, if its lanes come from at most two registers.
fn shuffle_part(e: &mut Emitter<'_>, both: &[Value], per_part: u16, picks: &[u16]) -> Option<Value> {
    let first = picks[0] / per_part;
    let second = picks.iter().map(|p| p / per_part).find(|r| *r != first).unwrap_or(first);
    let width = 16 / per_part;
    let mut bytes = Vec::with_capacity(16);
    for p in picks {
        let register = match p / per_part {
            r if r == first => 0,
            r if r == second => 16,
            _ => return None,
        };
        bytes.extend((0..width).map(|i| (register + (p % per_part) * width + i) as u8));
    }
    let t = e.f.func.dfg.value_type(both[usize::from(first)]);
    let v = parts::shuffle16(e, both[usize::from(first)], both[usize::from(second)], &bytes);
    Some(parts::bitcast(e, t, v))
}

/// Lane `i` with lane `i + n/2`, halving.
pub(super) fn reduce(e: &mut Emitter<'_>, op: ReduceOp, ty: Ty, v: &Parts) -> Value {
    let op = match op {
        ReduceOp::Add => BinOp::Add,
        ReduceOp::Mul => BinOp::Mul,
        ReduceOp::Min => BinOp::Min,
        ReduceOp::Max => BinOp::Max,
    };
    // Whole registers as long as there are several.
    let (mut v, mut ty) = (v.clone(), ty);
    while packed(ty) && v.len() > 1 && v.len().is_multiple_of(2) {
        let high = v.split_off(v.len() / 2);
        ty.lanes /= 2;
        v = ops::bin(e, op, ty, &v, &high, None);
    }
    let mut all = parts::lanes(e, ty, &v);
    while all.len() > 1 {
        let half = all.len() / 2;
        let one = Ty::scalar(ty.dtype);
        all = (0..half).map(|i| ops::bin(e, op, one, &vec![all[i]], &vec![all[half + i]], None)[0]).collect();
    }
    all[0]
}

/// A target instruction by its stated meaning.
pub(super) fn target(e: &mut Emitter<'_>, t: TargetInst, types: &[Ty], args: &[Parts]) -> Parts {
    let ty = types[0];
    match t {
        TargetInst::VpDpBusd if packed(ty) => {
            let registers = args[0].iter().zip(args[1].iter().zip(&args[2]));
            registers.map(|(acc, (a, b))| dot_u8_i8(e, *acc, *a, *b)).collect()
        }
        TargetInst::VpDpWssd if packed(ty) => {
            let registers = args[0].iter().zip(args[1].iter().zip(&args[2]));
            registers
                .map(|(acc, (a, b))| {
                    let sums = pairs(e, *a, *b);
                    e.f.ins().iadd(*acc, sums)
                })
                .collect()
        }
        TargetInst::VDpBf16Ps if packed(ty) => {
            let registers = args[0].iter().zip(args[1].iter().zip(&args[2]));
            registers.map(|(acc, (a, b))| dot_bf16(e, *acc, *a, *b)).collect()
        }
        TargetInst::VpDpBusd => by_lanes(e, DType::I32, 4, types, args),
        TargetInst::VpDpWssd => by_lanes(e, DType::I32, 2, types, args),
        TargetInst::VDpBf16Ps => by_lanes(e, DType::F32, 2, types, args),
        TargetInst::VPermI2B => look_up(e, ty, args),
        TargetInst::VCvtNePs2Bf16 => cast(e, ty, DType::Bf16, &args[0]),
        TargetInst::VCvtPs2Dq => to_integers(e, ty, &args[0]),
        TargetInst::VPackSsDw => pack(e, ty, Packs::WORDS, args),
        TargetInst::VPackUsWb => pack(e, ty, Packs::BYTES, args),
    }
}

/// A saturating conversion, and another result where that has no such number.
fn to_integers(e: &mut Emitter<'_>, ty: Ty, x: &Parts) -> Parts {
    let (int, truth) = (ty.with_dtype(DType::I32), ty.with_dtype(DType::Bool));
    let rounded = ops::un(e, UnOp::Round, ty, x);
    let whole = cast(e, ty, DType::I32, &rounded);
    let (end, least) =
        (constant(e, ty, Literal::f32(2f32.powi(31))), constant(e, int, Literal::from_i64(DType::I32, i32::MIN.into())));
    let fits = ops::bin(e, BinOp::Lt, ty, x, &end, None);
    ops::select(e, truth, int, &fits, &whole, &least)
}

/// Limits, conversions and a shuffle.
fn pack(e: &mut Emitter<'_>, ty: Ty, Packs { to, range, .. }: Packs, args: &[Parts]) -> Parts {
    let [least, most] = range.map(|v| constant(e, ty, Literal::from_i64(ty.dtype, v)));
    let [a, b] = [0, 1].map(|i: usize| {
        let x = ops::bin(e, BinOp::Max, ty, &args[i], &least, None);
        let x = ops::bin(e, BinOp::Min, ty, &x, &most, None);
        cast(e, ty, to, &x)
    });
    shuffle(e, ty.with_dtype(to), &a, &b, &TargetInst::packed_lanes(ty))
}

/// A vector of one number.
fn constant(e: &mut Emitter<'_>, ty: Ty, l: Literal) -> Parts {
    let x = ops::literal(e, l);
    splat(e, ty.dtype, ty.lanes, x)
}

/// Sums of neighbouring products of 16-bit numbers: a pattern that Cranelift knows as one instruction.
fn pairs(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (a0, b0) = (e.f.ins().swiden_low(a), e.f.ins().swiden_low(b));
    let (a1, b1) = (e.f.ins().swiden_high(a), e.f.ins().swiden_high(b));
    let (low, high) = (e.f.ins().imul(a0, b0), e.f.ins().imul(a1, b1));
    e.f.ins().iadd_pairwise(low, high)
}

/// Products as pairs of 16-bit numbers, whose sums fit 32 bits; then neighbouring sums.
fn dot_u8_i8(e: &mut Emitter<'_>, acc: Value, a: Value, b: Value) -> Value {
    let (al, bl) = (e.f.ins().uwiden_low(a), e.f.ins().swiden_low(b));
    let (ah, bh) = (e.f.ins().uwiden_high(a), e.f.ins().swiden_high(b));
    let (low, high) = (pairs(e, al, bl), pairs(e, ah, bh));
    let sums = e.f.ins().iadd_pairwise(low, high);
    e.f.ins().iadd(acc, sums)
}

/// The odd products first, as the instruction is defined.
fn dot_bf16(e: &mut Emitter<'_>, acc: Value, a: Value, b: Value) -> Value {
    let upper = ops::int(e, types::I32X4, 0xffff_0000);
    let split = |e: &mut Emitter<'_>, x: Value| {
        let x = parts::bitcast(e, types::I32X4, x);
        let odd = e.f.ins().band(x, upper);
        (bf16_to_f32(e, x), parts::bitcast(e, types::F32X4, odd))
    };
    let ((a0, a1), (b0, b1)) = (split(e, a), split(e, b));
    let acc = e.f.ins().fma(a1, b1, acc);
    e.f.ins().fma(a0, b0, acc)
}

/// Through a copy of both tables on the stack.
fn look_up(e: &mut Emitter<'_>, ty: Ty, args: &[Parts]) -> Parts {
    let both = e.stack(Ty { lanes: 2 * ty.lanes, ..ty });
    let second = e.f.ins().iadd_imm_s(both, i64::from(ty.lanes));
    e.store_parts(ty, both, &args[1]);
    e.store_parts(ty, second, &args[2]);
    let bytes: Parts = parts::lanes(e, ty, &args[0])
        .into_iter()
        .map(|i| {
            let i = e.f.ins().band_imm_u(i, i64::from(2 * ty.lanes - 1));
            let i = e.f.ins().uextend(types::I64, i);
            let at = e.f.ins().iadd(both, i);
            e.f.ins().load(types::I8, plain(), at, 0)
        })
        .collect();
    parts::from_lanes(e, ty, &bytes)
}

fn by_lanes(e: &mut Emitter<'_>, d: DType, group: usize, types: &[Ty], args: &[Parts]) -> Parts {
    let wide = |e: &mut Emitter<'_>, i: usize| {
        let v = cast(e, types[i], d, &args[i]);
        parts::lanes(e, types[i].with_dtype(d), &v)
    };
    let (a, b) = (wide(e, 1), wide(e, 2));
    let mut sums = parts::lanes(e, types[0], &args[0]);
    for (i, sum) in sums.iter_mut().enumerate() {
        for j in (0..group).rev() {
            let (a, b) = (a[group * i + j], b[group * i + j]);
            *sum = if d.is_float() {
                e.f.ins().fma(a, b, *sum)
            } else {
                let product = ops::bin1(e, BinOp::Mul, d, a, b);
                ops::bin1(e, BinOp::Add, d, *sum, product)
            };
        }
    }
    parts::from_lanes(e, types[0], &sums)
}
