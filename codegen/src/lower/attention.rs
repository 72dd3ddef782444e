//! Attention through its templates, where operands are strided views: of any type of floats up to `f32`, or of 8-bit codes.

use transc_ir::Value;
use transc_ir::loops::{Access, KernelBuilder, Reg};
use transc_ir::op::Op;
use transc_ir::scalar::Literal;
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::{Elements, Lanes};
use super::index::Index;
use super::nest::results;
use super::products::{MACS_PER_NS, finish};
use super::region::Region;
use super::strided::strided;
use crate::Target;
use crate::template::attention::{self, AttentionProblem, floats, int8};

/// The template's part: from operands, mask and epilogue.
type Build<'a> =
    dyn FnMut(&mut KernelBuilder, [&attention::Operand; 3], Option<&mut attention::Mask<'_>>, &mut attention::Epilogue<'_>) + 'a;

/// The kernel of an attention by its template; `None` where it does not fit.
pub(super) fn lower(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let operands = [0, 1, 2].map(|i| r.body.unrounded(node.operands[i]));
    let dtypes = operands.map(|x| r.ty(x).dtype);
    let dims = operands.map(|x| r.ty(x).dims.as_slice());
    let flags = |p: &AttentionProblem| p.flags(node.operands.len() > 3);
    match &node.op {
        Op::Attention(a) => {
            if !dtypes.iter().all(|d| matches!(d, DType::F16 | DType::Bf16 | DType::F32)) {
                return None;
            }
            let narrow = r.ty(node.operands[0]).dtype == DType::Bf16;
            let p = AttentionProblem::new(a, dims);
            let engine = floats::Engine::of_bf16(narrow && target.multiplies_bf16(), narrow && target.has_matrices());
            let s = floats::Schedule::choose(target.lanes(), engine, &p);
            let named = (format!("{s}{}", flags(&p)), &p, s.rows());
            kernel_of(r, (anchor, node), operands, target, named, &mut |kb, x, mask, epilogue| {
                floats::build(kb, &p, s, x, mask, epilogue);
            })
        }
        Op::IntAttention(a) => {
            let sizes = AttentionProblem::of_codes(a, dims);
            let s = int8::Schedule::choose(target.lanes(), target.has_byte_dot(), &sizes);
            let p = int8::Problem { sizes, op: a, dtypes };
            let named = (format!("{s}{}", flags(&p.sizes)), &p.sizes, attention::ROWS);
            kernel_of(r, (anchor, node), operands, target, named, &mut |kb, x, mask, epilogue| {
                int8::build(kb, &p, s, x, mask, epilogue);
            })
        }
        _ => None,
    }
}

/// A kernel with this name, and units of so many query rows.
fn kernel_of(
    r: &Region,
    (anchor, node): (Value, &Node),
    [q, k, v]: [Value; 3],
    target: &Target,
    (name, p, rows): (String, &AttentionProblem, i64),
    build: &mut Build<'_>,
) -> Option<Lowered> {
    let root = r.roots()[0];
    if r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), p.extent(rows));
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let operand = |x: Value, e: &mut Elements<'_>, kb: &mut KernelBuilder| {
        let view = strided(r, x)?;
        let strides: [Dim; 4] = view.strides.try_into().ok()?;
        Some(attention::Operand { buf: e.buffer(kb, view.base)?, offset: view.offset, strides })
    };
    let (qo, ko, vo) = (operand(q, &mut e, &mut kb)?, operand(k, &mut e, &mut kb)?, operand(v, &mut e, &mut kb)?);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let ty = r.ty(root).clone();
    let e = std::cell::RefCell::new(e);
    let stuck = std::cell::Cell::new(None);
    let mut mask = |kb: &mut KernelBuilder, at: &[Reg; 3], key: Reg, lanes: u16, count: Option<Reg>| {
        let m = node.operands[3];
        let dims = r.ty(m).dims.clone();
        let full = [Index::scalar(at[0]), Index::scalar(at[1]), Index::scalar(at[2]), Index { reg: key, step: 1, aligned: true }];
        let idx: Vec<Index> = dims
            .iter()
            .zip(&full[4 - dims.len()..])
            .map(|(d, i)| if d.is(1) { Index::scalar(kb.index(0)) } else { *i })
            .collect();
        let mut e = e.borrow_mut();
        let mark = e.mark();
        let x = e.at(kb, m, &idx, Lanes { n: lanes, count });
        e.release(mark);
        match x {
            Ok(x) if r.ty(m).dtype == DType::Bool => {
                let (on, off) = (kb.lit(Literal::f32(0.0)), kb.lit(Literal::f32(f32::NEG_INFINITY)));
                let (on, off) = (kb.splat(lanes, on), kb.splat(lanes, off));
                kb.select(x, on, off)
            }
            Ok(x) => kb.cast(DType::F32, x),
            Err(s) => {
                stuck.set(Some(s));
                let zero = kb.lit(Literal::f32(0.0));
                kb.splat(lanes, zero)
            }
        }
    };
    let mut epilogue = |kb: &mut KernelBuilder, at: &[Reg; 3], n: Reg, x: Reg, count: Option<Reg>| {
        let idx = [Index::scalar(at[0]), Index::scalar(at[1]), Index::scalar(at[2]), Index { reg: n, step: 1, aligned: true }];
        let x = kb.cast(r.ty(anchor).dtype, x);
        if let Err(s) = finish(&mut e.borrow_mut(), kb, (anchor, root), out, &ty, &idx, x, count) {
            stuck.set(Some(s));
        }
    };
    let masked: Option<&mut attention::Mask<'_>> = if node.operands.len() > 3 { Some(&mut mask) } else { None };
    build(&mut kb, [&qo, &ko, &vo], masked, &mut epilogue);
    if stuck.get().is_some() {
        return None;
    }
    let work = &(&(&p.b * &p.h) * &(&p.sq * &p.sk)) * &(&p.d + &p.e);
    let args = e.into_inner().args;
    Some(Lowered { kernel: kb.finish(), args, cost_ns: work.floor_div(&(MACS_PER_NS / 2).into()) })
}
