//! What it costs to evaluate a pointwise op at one index, in units of one vector instruction's share of an element.

use transc_ir::op::Op;
use transc_ir::scalar::{BinOp, Body, Inst, UnOp};
use transc_ir::types::{DType, Dim, Ranges, Symbol};

/// Cost of an access at an index from data.
const GATHER: f64 = 4.0;
/// Cost of a polynomial or of a chain of dependent instructions.
const TRANSCENDENTAL: f64 = 20.0;
/// Cost of a division or square root.
const DIVIDE: f64 = 6.0;
/// Storing an element, and reading it later from a cache that it may have left.
const STORE: f64 = 4.0;
/// Loading an element.
const LOAD: f64 = 1.0;
/// The hand-over of one kernel to the threads.
const LAUNCH: f64 = 65_536.0;
/// Stands for a symbol whose largest value is larger: where costs are compared, no model is larger than this.
const NOMINAL: i64 = 512;

/// Cost of the instructions of a body.
pub fn body(b: &Body, args: &[DType]) -> f64 {
    let types = b.infer(args).unwrap_or_default();
    let int = |i: usize| types.get(i).is_some_and(|d| !d.is_float());
    b.insts
        .iter()
        .enumerate()
        .map(|(i, inst)| match inst {
            Inst::Const(_) | Inst::Dim(_) => 0.0,
            Inst::Un(UnOp::Sqrt | UnOp::Recip, _) => DIVIDE,
            Inst::Un(
                UnOp::Neg
                | UnOp::Abs
                | UnOp::Sign
                | UnOp::Floor
                | UnOp::Ceil
                | UnOp::Trunc
                | UnOp::Round
                | UnOp::Not
                | UnOp::IsNan
                | UnOp::IsInf,
                _,
            ) => 1.0,
            Inst::Un(..) => TRANSCENDENTAL,
            Inst::Bin(BinOp::Div, ..) if !int(i) => DIVIDE,
            Inst::Bin(BinOp::Div | BinOp::Mod | BinOp::Rem | BinOp::Pow | BinOp::Atan2, ..) => TRANSCENDENTAL,
            Inst::Bin(..) | Inst::Select(..) | Inst::Cast(..) => 1.0,
        })
        .sum()
}

/// Cost of one evaluation of a pointwise op, its operands apart.
pub fn op(o: &Op, operand_types: &[DType]) -> f64 {
    match o {
        Op::Map(m) => body(&m.body, operand_types),
        Op::Reshape(_) => 2.0,
        Op::Concat(_) | Op::Pad(_) => 2.0,
        Op::Gather(_) | Op::GatherElements(_) | Op::GatherNd(_) => GATHER,
        Op::Broadcast(_) | Op::Transpose(_) | Op::Slice(_) => 0.5,
        _ => 0.0,
    }
}

/// Number of elements with every symbol at a fixed, ordinary size: decisions must not depend on the sizes of one run.
pub fn nominal(count: &Dim, ranges: &Ranges) -> f64 {
    let at = |s: &Symbol| Some(ranges.get(s).map_or(NOMINAL, |r| r.max.clamp(1, NOMINAL)));
    count.eval(&at).map_or(f64::MAX, |n| n.max(0) as f64)
}

/// True if evaluating a value anew at each of `evaluations` reads is no dearer than storing its `count` elements by a kernel of
/// its own and reading these. `cost` is that of one evaluation, `reads` the number of its operands.
pub fn inlining_pays(cost: f64, reads: usize, count: f64, evaluations: f64) -> bool {
    let each = cost + LOAD * reads as f64;
    let inline = each * evaluations;
    let stored = LAUNCH + (each + STORE) * count + LOAD * evaluations;
    inline <= stored
}

/// True if every value of one type has exactly one image of equal value in the other.
pub fn lossless(from: DType, to: DType) -> bool {
    // Bits of the integers that a float type holds exactly.
    let mantissa = |d: DType| match d {
        DType::F64 => 53,
        DType::F32 => 24,
        DType::F16 => 11,
        DType::Bf16 => 8,
        _ => 0,
    };
    match (from, to) {
        (a, b) if a == b => true,
        (_, DType::Bool) => false,
        (DType::Bool, _) => true,
        (a, DType::F64) if a.is_float() => true,
        (DType::F16 | DType::Bf16, DType::F32) => true,
        (a, b) if a.is_float() || b.is_float() => a.is_int() && a.bits() - u32::from(a.is_signed_int()) <= mantissa(b),
        (a, b) if a.is_signed_int() == b.is_signed_int() => a.bits() <= b.bits(),
        (a, b) => !a.is_signed_int() && a.bits() < b.bits(),
    }
}

/// The target type of a body that is one lossless conversion of integers, which costs nothing where they are read. Kernels of products read floats as they
/// lie, so one of these is computed once.
pub fn lossless_cast(b: &Body, from: DType) -> Option<DType> {
    match b.insts.as_slice() {
        [Inst::Cast(to, transc_ir::scalar::Ref::Arg(0))]
            if b.result == transc_ir::scalar::Ref::Inst(0) && !from.is_float() && lossless(from, *to) =>
        {
            Some(*to)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_that_lose_nothing() {
        for (from, to, want) in [
            (DType::U8, DType::I16, true),
            (DType::U8, DType::I8, false),
            (DType::I8, DType::U64, false),
            (DType::I32, DType::F32, false),
            (DType::I32, DType::F64, true),
            (DType::I16, DType::F16, false),
            (DType::Bf16, DType::F16, false),
            (DType::Bf16, DType::F32, true),
            (DType::Bool, DType::F16, true),
        ] {
            assert_eq!(lossless(from, to), want, "{from} to {to}");
        }
    }

    #[test]
    fn small_values_are_evaluated_anew_and_large_dear_ones_are_stored() {
        assert!(inlining_pays(40.0, 1, 1.0, 768.0));
        assert!(!inlining_pays(40.0, 1, 1e5, 1e8));
        assert!(inlining_pays(1.0, 1, 1e6, 2e6));
    }
}
