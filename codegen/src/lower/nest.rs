//! The generic nest, and the choice of a template for a region.

use transc_ir::loops::{Access, Buf, KernelBuilder, Reg, Unroll};
use transc_ir::op::Op;
use transc_ir::scalar::BinOp;
use transc_ir::tensor::strided::{Blocks, Strided as View};
use transc_ir::types::{DType, Dim};
use transc_ir::{TensorType, Value};

use super::anchor;
use super::element::{Elements, Lanes, Stuck, place};
use super::index::Index;
use super::region::Region;
use super::{Lowered, Source, attention, conv, device, no_lowering, norm, products, rows, tokens, weights};
use crate::template::tile;
use crate::{CodegenError, Target};

/// Elements of one unit along the last axis.
const CHUNK: i64 = 4096;

/// Lowers one region, to kernels that run one after the other.
pub(crate) fn lower_region(r: &Region, target: &Target) -> Result<Vec<Lowered>, CodegenError> {
    let anchor = r.anchor.and_then(|v| r.body.def_node(v).map(|n| (v, n)));
    let one = match anchor {
        Some((v, n)) if matches!(n.op, Op::Attention(_) | Op::IntAttention(_)) && !target.is_device() => {
            return attention::lower(r, n, target).ok_or_else(|| no_lowering(&n.op, r.ty(v), &r.loc));
        }
        _ if target.is_device() => device::lower(r, anchor, target),
        Some((v, n)) => match &n.op {
            Op::Contract(_) => weights::product_of(r, v, n, target)
                .or_else(|| products::matmul_of(r, v, n, target))
                .map_or_else(|| pointwise(r, target), Ok),
            Op::Conv(_) => conv::conv_of(r, v, n, target).map_or_else(|| pointwise(r, target), Ok),
            Op::LayerNorm(_) | Op::RmsNorm(_) => match norm::lower(r, v, n, target) {
                None | Some(Err(Stuck::Vector)) => rows::lower(r, v, n, target),
                Some(lowered) => lowered,
            },
            Op::Softmax(_) | Op::Scan(_) => rows::lower(r, v, n, target),
            Op::TopK(_) => rows::top_k(r, n, target),
            Op::ScatterElements(_) | Op::ScatterNd(_) => rows::scatter(r, v, n, target),
            Op::TokenPlan(_) => tokens::plan(r, n, target).ok_or(Stuck::Op(v)),
            Op::TokenApply(_) => tokens::apply(r, n, target),
            _ => pointwise(r, target),
        },
        None => pointwise(r, target),
    };
    one.map(|l| vec![l]).map_err(|_| {
        let (op, ty) = match anchor {
            Some((v, n)) => (n.op.clone(), r.ty(v).clone()),
            None => {
                let last = r.roots()[0];
                let op = r.body.def_node(last).map_or(Op::Reshape(transc_ir::op::Reshape { dims: Vec::new() }), |n| n.op.clone());
                (op, r.ty(last).clone())
            }
        };
        no_lowering(&op, &ty, &r.loc)
    })
}

/// Row-major flat position and the step of its lanes.
pub(crate) fn flat_index(kb: &mut KernelBuilder, dims: &[Dim], idx: &[Index]) -> Result<(Reg, Dim), Stuck> {
    place(kb, &View::contiguous(dims), idx)
}

/// Stores a value at an index of a tensor that lies so.
pub(crate) fn store(kb: &mut KernelBuilder, buf: Buf, view: &View, idx: &[Index], value: Reg, lanes: Lanes) -> Result<(), Stuck> {
    let (at, step) = place(kb, view, idx)?;
    match lanes.n {
        1 => kb.store(buf, at, value),
        _ if !step.is(1) => return Err(Stuck::Vector),
        _ => kb.store_part(buf, at, value, lanes.count),
    }
    Ok(())
}

/// Declares the result buffers of a region.
pub(crate) fn results(kb: &mut KernelBuilder, e: &mut Elements<'_>, access: Access) -> Vec<(Value, Buf)> {
    let roots = e.region.roots();
    roots
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            e.args.push(Source::Result(i));
            (v, kb.param(&format!("y{i}"), e.region.ty(v).dtype, access))
        })
        .collect()
}

/// Every element of the results by its element function.
fn pointwise(r: &Region, target: &Target) -> Result<Lowered, Stuck> {
    let ty = r.ty(r.roots()[0]).clone();
    let narrow = loops(r, &ty).last().and_then(|l| l.extent.as_const()).is_some_and(|d| d < i64::from(target.lanes()));
    if !narrow && ty.rank() > 0 && !integer_division(r) {
        match pointwise_with(r, &ty, target, true) {
            Err(Stuck::Vector) => {}
            other => return other,
        }
    }
    pointwise_with(r, &ty, target, false)
}

/// Integer divisions check their divisor, one lane at a time.
fn integer_division(r: &Region) -> bool {
    r.body.nodes().any(|(_, n)| match &n.op {
        Op::Map(m) => {
            let divides =
                |i: &transc_ir::scalar::Inst| matches!(i, transc_ir::scalar::Inst::Bin(BinOp::Div | BinOp::Mod | BinOp::Rem, ..));
            !r.ty(n.results[0]).dtype.is_float() && m.body.insts.iter().any(divides)
        }
        _ => false,
    })
}

/// A loop of a nest.
struct Loop {
    axis: usize,
    extent: Dim,
    /// The length of a block, if the turns are blocks of the axis: the innermost loop runs over the elements of one.
    block: Option<i64>,
}

impl Loop {
    /// The index along the axis in turn `i`, where that of the innermost loop is `j`.
    fn index(&self, kb: &mut KernelBuilder, i: Reg, j: Index) -> Index {
        let Some(len) = self.block else { return Index::scalar(i) };
        let len = kb.index(len);
        let first = kb.mul(i, len);
        Index { reg: kb.add(first, j.reg), ..j }
    }
}

/// The loops over the first result, by the place of its elements in memory.
fn loops(r: &Region, ty: &TensorType) -> Vec<Loop> {
    let whole = |axis: usize| Loop { axis, extent: ty.dims[axis].clone(), block: None };
    let Some(order) = r.order(r.roots()[0]) else { return (0..ty.rank()).map(whole).collect() };
    let mut loops: Vec<Loop> = order.axes.iter().map(|a| whole(*a)).collect();
    if let Some(Blocks { axis, len }) = order.blocks {
        for l in loops.iter_mut().filter(|l| l.axis == axis) {
            (l.extent, l.block) = (l.extent.floor_div(&len.into()), Some(len));
        }
        loops.push(Loop { axis, extent: len.into(), block: None });
    }
    loops
}

fn pointwise_with(r: &Region, ty: &TensorType, target: &Target, vectors: bool) -> Result<Lowered, Stuck> {
    let mut loops = loops(r, ty);
    let last = loops.pop().map_or(1.into(), |l| l.extent);
    let outer: Vec<Dim> = loops.iter().map(|l| l.extent.clone()).collect();
    let chunks = last.ceil_div(&CHUNK.into());
    let extent = outer.iter().fold(chunks.clone(), |a, d| &a * d);
    let turned = if r.order(r.roots()[0]).is_some() { "t" } else { "" };
    let name = format!("nest_{}{}{turned}", ty.dtype, if vectors { format!("x{}", target.lanes()) } else { String::new() });
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let results = results(&mut kb, &mut e, Access::Write);
    let (lo, hi) = (kb.lo(), kb.hi());
    let mut out = Ok(());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (row, chunk) = tile::div_rem(kb, unit, &chunks);
        let at = tile::unflatten(kb, row, &outer);
        let (len, end) = (kb.index(CHUNK), kb.dim(&last));
        let j0 = kb.mul(chunk, len);
        let j1 = kb.add(j0, len);
        let j1 = kb.bin(BinOp::Min, j1, end);
        let mut element = |e: &mut Elements<'_>, kb: &mut KernelBuilder, j: Index, lanes: Lanes| -> Result<(), Stuck> {
            let mut idx = vec![j; ty.rank()];
            for (l, i) in loops.iter().zip(&at) {
                idx[l.axis] = l.index(kb, *i, j);
            }
            for (v, buf) in &results {
                let x = e.at(kb, *v, &idx, lanes)?;
                store(kb, *buf, &e.region.view(*v), &idx, x, lanes)?;
            }
            Ok(())
        };
        let mark = e.mark();
        if vectors {
            out = vector_range(&mut e, kb, (j0, j1), &last, &mut element);
        } else {
            kb.for_(j0, j1, 1, Unroll::Auto, |kb, j| out = element(&mut e, kb, Index::scalar(j), Lanes::ONE));
        }
        e.release(mark);
    });
    out?;
    let cost_ns = cost(r, ty, if vectors { 1 } else { 4 });
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns })
}

/// A vector loop over `j0..j1`, `j0` at a multiple of the vector width.
pub(crate) fn vector_range(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    (j0, j1): (Reg, Reg),
    extent: &Dim,
    body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, Index, Lanes) -> Result<(), Stuck>,
) -> Result<(), Stuck> {
    let n = e.width;
    let width = kb.index(n.into());
    let left = kb.sub(j1, j0);
    let turns = kb.bin(BinOp::Div, left, width);
    let whole = kb.mul(turns, width);
    let end = kb.add(j0, whole);
    let mut out = Ok(());
    let mark = e.mark();
    kb.for_(j0, end, n.into(), Unroll::Auto, |kb, i| {
        out = body(e, kb, Index::vector(i), Lanes { n, count: None });
    });
    e.release(mark);
    out?;
    if extent.modulo(&i64::from(n).into()).is(0) {
        return Ok(());
    }
    let (rest, zero) = (kb.sub(j1, end), kb.index(0));
    let some = kb.bin(BinOp::Gt, rest, zero);
    let mut out = Ok(());
    let mark = e.mark();
    kb.if_(some, |kb| out = body(e, kb, Index::vector(end), Lanes { n, count: Some(rest) }), |_| {});
    e.release(mark);
    out
}

/// A rough estimate in nanoseconds on one thread: elements of the result times the work of one.
pub(crate) fn cost(r: &Region, ty: &TensorType, scale: i64) -> Dim {
    let mut work = Dim::from(1);
    for (_, n) in r.body.nodes() {
        let t = |i: usize| r.ty(n.operands[i]);
        match &n.op {
            Op::Map(m) => work = &work + &Dim::from(m.body.insts.len() / 4),
            Op::Reduce(x) => work = x.axes.iter().fold(work, |a, axis| &a * &t(0).dims[*axis]),
            Op::Contract(c) => {
                let inner = c.lhs.iter().enumerate().filter(|(_, l)| !c.out.contains(l));
                work = inner.fold(work, |a, (i, _)| &a * &t(0).dims[i]);
            }
            Op::Window(w) => work = &work * &Dim::from(w.kernel.iter().product::<i64>()),
            Op::Conv(_) => work = t(1).dims[1..].iter().fold(work, |a, d| &a * d),
            Op::ArgReduce(x) => work = &work * &t(0).dims[x.axis],
            _ => {}
        }
    }
    (&(&ty.count() * &work) * &Dim::from(scale)).floor_div(&4.into())
}

/// All index tuples of a dense tensor, scalar loops.
pub(crate) fn all_indices(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    dims: &[Dim],
    body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, &[Index]) -> Result<(), Stuck>,
) -> Result<(), Stuck> {
    anchor::loops(e, kb, dims, &mut Vec::new(), &mut |e, kb, at| {
        let idx: Vec<Index> = at.iter().map(|r| Index::scalar(*r)).collect();
        body(e, kb, &idx)
    })
}

/// True for the dtype that the vector templates take.
pub(crate) fn is_f32(d: DType) -> bool {
    d == DType::F32
}
