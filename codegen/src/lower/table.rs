//! Functions of one byte as tables: what a layer computes from a code and from constants of its columns is looked up, not computed.
//!
//! Quantised models round the result of a product to bytes before bias and activation follow, which end in bytes again: 256 results for each column,
//! here as the interpreter gives them.

use transc_ir::Value;
use transc_ir::interp::{EvalCx, Tensor};
use transc_ir::op::{Map, Op, OpSpec};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref, UnOp};
use transc_ir::tensor::ConstData;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::types::DType;

use super::region::Region;
use crate::math;
use crate::template::bytes::Coding;

/// Cost of an exponential and its like, in simple instructions.
const TRANSCENDENTAL: usize = 16;
/// Values of a byte.
const BYTES: usize = 256;

/// A region without the end of its epilogue, and that end.
pub(super) struct Split {
    /// The region, whose result are codes of the type that it had.
    pub(super) region: Region,
    /// Its anchor.
    pub(super) anchor: Value,
    /// `u8[n, 256]`: what becomes of each code in each column.
    pub(super) table: ConstData,
}

/// Splits a region whose result depends on one code of its anchor's element and on constants of the `n` columns; `None` for others, and where the look-up
/// replaces less than `least` simple instructions.
pub(super) fn split(r: &Region, anchor: Value, n: usize, least: usize) -> Option<Split> {
    let root = r.roots()[0];
    let node = r.body.def_node(root)?;
    let Op::Map(Map { body }) = &node.op else { return None };
    let mut at = node.operands.iter().enumerate().filter(|(_, v)| **v == anchor).map(|(i, _)| i as u32);
    let element = at.next().filter(|_| at.next().is_none())?;
    let cut = cut(body, element, r.ty(root).dtype, least)?;
    let columns = node
        .operands
        .iter()
        .enumerate()
        .filter(|(_, v)| **v != anchor)
        .map(|(i, v)| Some((i as u32, by_column(r, *v, n)?)))
        .collect::<Option<Vec<_>>>()?;
    let table = tabulate(&rest(body, element, cut, r.ty(root).dtype), &columns, n, r.ty(root).dtype)?;
    // The first part, of the operands that it needs.
    let first = Body { n_args: body.n_args, insts: body.insts[..=cut].to_vec(), result: Ref::Inst(cut as u32) };
    let (mut consts, mut new_anchor) = (r.consts.clone(), None);
    let new = rewrite(r.body.clone(), &mut consts, |b, _, node, operands| {
        if node.results[0] != root {
            return Ok(None);
        }
        new_anchor = operands.get(element as usize).copied();
        let mut kept = Vec::new();
        let mut f = Body::builder(operands.len() as u32);
        for (i, v) in operands.iter().enumerate() {
            let used = first.insts.iter().flat_map(Inst::refs).any(|x| x == Ref::Arg(i as u32));
            if used {
                kept.push((i as u32, *v));
            }
        }
        let args: Vec<Ref> =
            (0..first.n_args).map(|i| kept.iter().position(|k| k.0 == i).map_or(Ref::Arg(0), |at| Ref::Arg(at as u32))).collect();
        let y = f.inline(&first, &args);
        let body = Body { n_args: kept.len() as u32, ..f.finish(y) };
        b.add(Map { body }, &kept.iter().map(|k| k.1).collect::<Vec<_>>()).map(|v| Some(vec![v]))
    });
    Some(Split { region: Region { body: new.ok()?, anchor: new_anchor, ..r.clone() }, anchor: new_anchor?, table })
}

/// The body of a region's result up to what is coded, and the coding, where a map ends in codes of `f32`.
pub(super) fn coded(r: &Region) -> Option<(Body, Coding)> {
    let node = r.body.def_node(r.roots()[0])?;
    let Op::Map(Map { body }) = &node.op else { return None };
    let inst = |x: Ref| if let Ref::Inst(i) = x { body.insts.get(i as usize) } else { None };
    let rounded = |x: Ref| if let Some(Inst::Un(UnOp::Round, x)) = inst(x) { Some(*x) } else { None };
    let Some(Inst::Cast(to @ (DType::U8 | DType::I8), v)) = inst(body.result) else { return None };
    let (real, zero) = match (rounded(*v), inst(*v)) {
        (Some(real), _) => (real, 0.0),
        (None, Some(Inst::Bin(BinOp::Add, x, zero))) => match inst(*zero) {
            Some(Inst::Const(zero)) => (rounded(*x)?, zero.to_f64()),
            _ => return None,
        },
        _ => return None,
    };
    let Ref::Inst(last) = real else { return None };
    let types: Vec<DType> = node.operands.iter().map(|v| r.ty(*v).dtype).collect();
    let is_f32 = body.infer(&types).ok()?[last as usize] == DType::F32;
    let range = if *to == DType::U8 { 0.0..=255.0 } else { -128.0..=127.0 };
    let fits = is_f32 && range.contains(&zero) && zero.fract() == 0.0;
    let body = Body { n_args: body.n_args, insts: body.insts[..=last as usize].to_vec(), result: real };
    fits.then_some((body, Coding { zero: zero as i64, to: *to }))
}

/// Which instructions depend on an argument, but for what depends on it through one of them.
fn dependent(body: &Body, element: u32, but: Option<usize>) -> Vec<bool> {
    let mut on = vec![false; body.insts.len()];
    for (i, inst) in body.insts.iter().enumerate() {
        let reads = |x: &Ref| match x {
            Ref::Arg(a) => *a == element,
            Ref::Inst(j) => on[*j as usize],
        };
        on[i] = but != Some(i) && inst.refs().iter().any(reads);
    }
    on
}

/// The first instruction that gives bytes of a type and is all that the result takes from an argument.
fn cut(body: &Body, element: u32, dtype: DType, least: usize) -> Option<usize> {
    let Ref::Inst(result) = body.result else { return None };
    let pays = |p: &usize| cost(&body.insts[p + 1..]) >= least;
    let codes = |p: &usize| matches!(body.insts[*p], Inst::Cast(to, _) if to == dtype);
    let of_it_alone = |p: &usize| !dependent(body, element, Some(*p))[result as usize];
    let bytes = matches!(dtype, DType::U8 | DType::I8);
    (0..body.insts.len()).filter(|_| bytes).filter(codes).find(of_it_alone).filter(pays)
}

/// How many simple instructions take as long as these.
pub(super) fn cost(insts: &[Inst]) -> usize {
    let cost = |i: &Inst| match i {
        Inst::Const(_) => 0,
        Inst::Un(op, _) if math::known(*op) => TRANSCENDENTAL,
        _ => 1,
    };
    insts.iter().map(cost).sum()
}

/// What follows instruction `cut`, with codes of a type as the element.
fn rest(body: &Body, element: u32, cut: usize, dtype: DType) -> Body {
    let mut rest = body.clone();
    for (inst, dead) in rest.insts.iter_mut().zip(dependent(body, element, None)).take(cut) {
        if dead {
            *inst = Inst::Const(Literal::bool(false));
        }
    }
    rest.insts[cut] = Inst::Cast(dtype, Ref::Arg(element));
    rest
}

/// A constant of one number per column, or one for all: `[n, 1]` or `[1, 1]`.
fn by_column(r: &Region, v: Value, n: usize) -> Option<Tensor> {
    let node = r.body.def_node(v)?;
    let mut t = match &node.op {
        Op::Constant(c) => Tensor::from_const(r.consts.get(c.id)?),
        Op::Reshape(_) | Op::Broadcast(_) => by_column(r, node.operands[0], n)?,
        _ => return None,
    };
    let count = t.count();
    t.dims = vec![count, 1];
    (count == n || count == 1).then_some(t)
}

/// Evaluates a body for all codes in all columns, some columns on each thread.
fn tabulate(body: &Body, columns: &[(u32, Tensor)], n: usize, dtype: DType) -> Option<ConstData> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let data = std::thread::scope(|s| {
        let share = n.div_ceil(threads).max(1);
        let parts: Vec<_> = (0..n)
            .step_by(share)
            .map(|from| s.spawn(move || codes_of(body, columns, from..n.min(from + share), dtype)))
            .collect();
        parts.into_iter().map(|p| p.join().ok().flatten()).collect::<Option<Vec<_>>>()
    })?;
    Tensor { dtype: DType::U8, dims: vec![n, BYTES], data: data.concat() }.to_const()
}

/// What becomes of each code in some columns.
fn codes_of(body: &Body, columns: &[(u32, Tensor)], range: std::ops::Range<usize>, dtype: DType) -> Option<Vec<u8>> {
    let codes = Tensor { dtype, dims: vec![1, BYTES], data: (0..=u8::MAX).collect() };
    let cut = |t: &Tensor| {
        let size = t.dtype.size_bytes();
        match t.dims[0] {
            1 => t.clone(),
            _ => Tensor { dims: vec![range.len(), 1], data: t.data[range.start * size..range.end * size].to_vec(), ..t.clone() },
        }
    };
    let columns: Vec<(u32, Tensor)> = columns.iter().map(|(i, t)| (*i, cut(t))).collect();
    let operands: Vec<&Tensor> = (0..body.n_args).map(|i| columns.iter().find(|c| c.0 == i).map_or(&codes, |c| &c.1)).collect();
    let consts = Default::default();
    let cx = EvalCx { consts: &consts, symbols: &|_| None };
    let y = Map { body: body.clone() }.eval(&operands, &cx).ok()?.into_iter().next()?;
    Some(if y.dims[0] == 1 { y.data.repeat(range.len()) } else { y.data })
}
