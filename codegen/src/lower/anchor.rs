//! Anchors whose elements can be computed where they are needed, with a loop of their own: the generic nest's form.

use transc_ir::Value;
use transc_ir::loops::{KernelBuilder, ReduceOp, Reg, Unroll};
use transc_ir::op::{Contract, Conv, Op, Reduce, ReduceKind, Window};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::element::{Elements, Lanes, Stuck};
use super::index::Index;
use crate::template::tile;

type Result<T> = std::result::Result<T, Stuck>;

/// The type in which sums of a dtype are kept.
pub(crate) fn wide(d: DType) -> DType {
    if matches!(d, DType::F16 | DType::Bf16) { DType::F32 } else { d }
}

/// The operation of a fold.
pub(crate) fn fold_op(kind: ReduceKind) -> (BinOp, ReduceOp) {
    match kind {
        ReduceKind::Sum => (BinOp::Add, ReduceOp::Add),
        ReduceKind::Prod => (BinOp::Mul, ReduceOp::Mul),
        ReduceKind::Max => (BinOp::Max, ReduceOp::Max),
        ReduceKind::Min => (BinOp::Min, ReduceOp::Min),
    }
}

/// The value that a fold starts from.
pub(crate) fn identity(kb: &mut KernelBuilder, kind: ReduceKind, d: DType, lanes: u16) -> Reg {
    let r = kb.lit(transc_ir::interp::scalar::identity(kind, d));
    kb.splat(lanes, r)
}

/// The element of an anchor, computed by an inner loop.
pub(crate) fn element(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    v: Value,
    node: &Node,
    idx: &[Index],
    lanes: Lanes,
) -> Result<Reg> {
    match &node.op {
        Op::Reduce(r) => reduce(e, kb, r, node.operands[0], idx, lanes),
        Op::Contract(c) => contract(e, kb, c, node, idx, lanes),
        Op::Window(w) => window(e, kb, w, node.operands[0], idx, lanes),
        Op::Conv(c) => conv(e, kb, c, node, idx, lanes),
        Op::ArgReduce(_) if lanes.n > 1 => Err(Stuck::Vector),
        Op::ArgReduce(a) => arg_reduce(e, kb, a, node.operands[0], idx),
        _ => Err(Stuck::Op(v)),
    }
}

/// Nested loops over `dims`; `body` gets the loop variables.
pub(crate) fn loops(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    dims: &[Dim],
    at: &mut Vec<Reg>,
    body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, &[Reg]) -> Result<()>,
) -> Result<()> {
    let Some((first, rest)) = dims.split_first() else {
        let out = body(e, kb, at);
        return out;
    };
    let (zero, n) = (kb.index(0), kb.dim(first));
    let mut out = Ok(());
    let depth = at.len();
    let saved = e.mark();
    kb.for_(zero, n, 1, Unroll::Auto, |kb, i| {
        at.push(i);
        out = loops(e, kb, rest, at, body);
        at.truncate(depth);
    });
    e.release(saved);
    out
}

fn reduce(e: &mut Elements<'_>, kb: &mut KernelBuilder, r: &Reduce, x: Value, idx: &[Index], lanes: Lanes) -> Result<Reg> {
    let ty = e.region.ty(x).clone();
    let (op, fold) = fold_op(r.kind);
    let acc_ty = wide(ty.dtype);
    // The index of the operand, folded axes still open.
    let mut inner: Vec<Option<Index>> = Vec::with_capacity(ty.rank());
    let mut next = 0;
    for a in 0..ty.rank() {
        let folded = r.axes.contains(&a);
        inner.push(if folded { None } else { Some(idx[next]) });
        if !folded || r.keep {
            next += 1;
        }
    }
    let last = ty.rank().wrapping_sub(1);
    let along_rows = lanes.n == 1 && r.axes.contains(&last);
    if along_rows && let Some(sum) = vector_reduce(e, kb, r, x, &inner, acc_ty, (op, fold))? {
        return Ok(kb.cast(ty.dtype, sum));
    }
    let init = identity(kb, r.kind, acc_ty, lanes.n);
    let acc = kb.var(init);
    let dims: Vec<Dim> = r.axes.iter().map(|a| ty.dims[*a].clone()).collect();
    loops(e, kb, &dims, &mut Vec::new(), &mut |e, kb, at| {
        let mut open = at.iter();
        let full: Vec<Index> = inner.iter().filter_map(|i| i.or_else(|| open.next().map(|r| Index::scalar(*r)))).collect();
        let y = e.at(kb, x, &full, lanes)?;
        let y = kb.cast(acc_ty, y);
        let old = kb.get(acc);
        let new = kb.bin(op, old, y);
        kb.set(acc, new);
        Ok(())
    })?;
    let sum = kb.get(acc);
    Ok(kb.cast(ty.dtype, sum))
}

/// A fold whose last axis is folded too: vectors along that axis, lanes folded at the end in a fixed tree.
fn vector_reduce(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    r: &Reduce,
    x: Value,
    inner: &[Option<Index>],
    acc_ty: DType,
    (op, fold): (BinOp, ReduceOp),
) -> Result<Option<Reg>> {
    let ty = e.region.ty(x).clone();
    let n = e.width;
    if ty.dtype == DType::Bool || ty.dims.last().and_then(Dim::as_const).is_some_and(|d| d < i64::from(n)) {
        return Ok(None);
    }
    let before = e.snapshot(kb);
    let init = identity(kb, r.kind, acc_ty, n);
    let acc = kb.var(init);
    let Some((row, outer)) = r.axes.split_last() else { return Ok(None) };
    let dims: Vec<Dim> = outer.iter().map(|a| ty.dims[*a].clone()).collect();
    let result = loops(e, kb, &dims, &mut Vec::new(), &mut |e, kb, at| {
        vector_loop(e, kb, &ty.dims[*row], &mut |e, kb, j, lanes| {
            let mut open = at.iter();
            let full: Vec<Index> = (0..inner.len())
                .filter_map(|a| if a == *row { Some(j) } else { inner[a].or_else(|| open.next().map(|r| Index::scalar(*r))) })
                .collect();
            let y = e.at(kb, x, &full, lanes)?;
            let mut y = kb.cast(acc_ty, y);
            if let Some(c) = lanes.count {
                y = tile::keep_lanes(kb, y, c, init);
            }
            let old = kb.get(acc);
            let new = kb.bin(op, old, y);
            kb.set(acc, new);
            Ok(())
        })
    });
    match result {
        Ok(()) => {
            let sum = kb.get(acc);
            Ok(Some(kb.reduce(fold, sum)))
        }
        Err(Stuck::Vector) => {
            e.restore(kb, before);
            Ok(None)
        }
        Err(s) => Err(s),
    }
}

/// A loop over `0..extent` in vectors, with a last turn for the rest.
pub(crate) fn vector_loop(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    extent: &Dim,
    body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, Index, Lanes) -> Result<()>,
) -> Result<()> {
    let n = e.width;
    let (zero, end, width) = (kb.index(0), kb.dim(extent), kb.index(n.into()));
    let turns = kb.bin(BinOp::Div, end, width);
    let whole = kb.mul(turns, width);
    let mut out = Ok(());
    let saved = e.mark();
    kb.for_(zero, whole, n.into(), Unroll::Auto, |kb, i| {
        out = body(e, kb, Index::vector(i), Lanes { n, count: None });
    });
    e.release(saved);
    out?;
    if extent.modulo(&i64::from(n).into()).is(0) {
        return Ok(());
    }
    let rest = kb.sub(end, whole);
    let some = kb.bin(BinOp::Gt, rest, zero);
    let mut out = Ok(());
    let saved = e.mark();
    kb.if_(some, |kb| out = body(e, kb, Index::vector(whole), Lanes { n, count: Some(rest) }), |_| {});
    e.release(saved);
    out
}

fn contract(e: &mut Elements<'_>, kb: &mut KernelBuilder, c: &Contract, node: &Node, idx: &[Index], lanes: Lanes) -> Result<Reg> {
    let (a, b) = (node.operands[0], node.operands[1]);
    let inner: Vec<u8> = c.lhs.iter().filter(|l| !c.out.contains(l)).copied().collect();
    let dims: Vec<Dim> =
        inner.iter().filter_map(|l| c.lhs.iter().position(|m| m == l)).map(|i| e.region.ty(a).dims[i].clone()).collect();
    let acc_ty = if c.out_dtype.is_float() { wide(c.out_dtype) } else { c.out_dtype };
    let zero = kb.lit(Literal::from_i64(acc_ty, 0));
    let zero = kb.splat(lanes.n, zero);
    let acc = kb.var(zero);
    loops(e, kb, &dims, &mut Vec::new(), &mut |e, kb, at| {
        let index = |labels: &[u8]| -> Vec<Index> {
            labels
                .iter()
                .filter_map(|l| match c.out.iter().position(|m| m == l) {
                    Some(i) => Some(idx[i]),
                    None => inner.iter().position(|m| m == l).map(|i| Index::scalar(at[i])),
                })
                .collect()
        };
        let (x, y) = (e.at(kb, a, &index(&c.lhs), lanes)?, e.at(kb, b, &index(&c.rhs), lanes)?);
        let (x, y) = (kb.cast(acc_ty, x), kb.cast(acc_ty, y));
        let sum = kb.get(acc);
        let sum = multiply_add(kb, x, y, sum);
        kb.set(acc, sum);
        Ok(())
    })?;
    let sum = kb.get(acc);
    Ok(kb.cast(c.out_dtype, sum))
}

fn multiply_add(kb: &mut KernelBuilder, x: Reg, y: Reg, sum: Reg) -> Reg {
    if kb.ty(sum).dtype.is_float() {
        return kb.fma(x, y, sum);
    }
    let p = kb.mul(x, y);
    kb.add(sum, p)
}

/// Position `out*stride - lo + k*dilation` along a window axis, and whether it lies inside.
fn window_position(kb: &mut KernelBuilder, out: Reg, k: Reg, [stride, lo, dilation]: [i64; 3], extent: &Dim) -> (Reg, Reg) {
    let (stride, lo, dilation) = (kb.index(stride), kb.index(lo), kb.index(dilation));
    let start = kb.mul(out, stride);
    let start = kb.sub(start, lo);
    let offset = kb.mul(k, dilation);
    let at = kb.add(start, offset);
    let (zero, n) = (kb.index(0), kb.dim(extent));
    let (above, below) = (kb.bin(BinOp::Ge, at, zero), kb.bin(BinOp::Lt, at, n));
    (at, kb.bin(BinOp::And, above, below))
}

fn window(e: &mut Elements<'_>, kb: &mut KernelBuilder, w: &Window, x: Value, idx: &[Index], lanes: Lanes) -> Result<Reg> {
    let ty = e.region.ty(x).clone();
    let lead = ty.rank() - w.kernel.len();
    if idx[lead..].iter().any(|i| i.step != 0) {
        return Err(Stuck::Vector);
    }
    let (op, _) = fold_op(w.kind);
    let acc_ty = wide(ty.dtype);
    let init = identity(kb, w.kind, acc_ty, lanes.n);
    let acc = kb.var(init);
    let dims: Vec<Dim> = w.kernel.iter().map(|k| Dim::from(*k)).collect();
    loops(e, kb, &dims, &mut Vec::new(), &mut |e, kb, k| {
        let mut full = idx.to_vec();
        let mut inside = None;
        for a in 0..k.len() {
            let (at, here) =
                window_position(kb, idx[lead + a].reg, k[a], [w.strides[a], w.lo[a], w.dilations[a]], &ty.dims[lead + a]);
            full[lead + a] = Index::scalar(at);
            inside = Some(inside.map_or(here, |before| kb.bin(BinOp::And, before, here)));
        }
        let Some(inside) = inside else { return Ok(()) };
        let mut out = Ok(());
        kb.if_(
            inside,
            |kb| {
                out = e.at(kb, x, &full, lanes).map(|y| {
                    let y = kb.cast(acc_ty, y);
                    let old = kb.get(acc);
                    let new = kb.bin(op, old, y);
                    kb.set(acc, new);
                });
            },
            |_| {},
        );
        out
    })?;
    let sum = kb.get(acc);
    Ok(kb.cast(ty.dtype, sum))
}

fn conv(e: &mut Elements<'_>, kb: &mut KernelBuilder, c: &Conv, node: &Node, idx: &[Index], lanes: Lanes) -> Result<Reg> {
    let (x, w) = (node.operands[0], node.operands[1]);
    let (xt, wt) = (e.region.ty(x).clone(), e.region.ty(w).clone());
    if idx[2..].iter().any(|i| i.step != 0) || idx[1].step != 0 && c.groups > 1 {
        return Err(Stuck::Vector);
    }
    let acc_ty = wide(xt.dtype);
    let zero = kb.lit(Literal::from_i64(acc_ty, 0));
    let zero = kb.splat(lanes.n, zero);
    let acc = kb.var(zero);
    let per_group = kb.dim(&wt.dims[0].floor_div(&c.groups.into()));
    let group = kb.bin(BinOp::Div, idx[1].reg, per_group);
    let channels = kb.dim(&wt.dims[1]);
    let first = kb.mul(group, channels);
    let dims = wt.dims[1..].to_vec();
    loops(e, kb, &dims, &mut Vec::new(), &mut |e, kb, k| {
        let channel = kb.add(first, k[0]);
        let mut at = vec![idx[0], Index::scalar(channel)];
        let mut inside = None;
        for a in 0..c.strides.len() {
            let (p, here) =
                window_position(kb, idx[2 + a].reg, k[1 + a], [c.strides[a], c.lo[a], c.dilations[a]], &xt.dims[2 + a]);
            at.push(Index::scalar(p));
            if c.lo[a] != 0 || c.hi[a] != 0 {
                inside = Some(inside.map_or(here, |before| kb.bin(BinOp::And, before, here)));
            }
        }
        let mut weight = vec![idx[1]];
        weight.extend(k.iter().map(|r| Index::scalar(*r)));
        let mut step = |kb: &mut KernelBuilder| -> Result<()> {
            let (p, q) = (e.at(kb, x, &at, lanes)?, e.at(kb, w, &weight, lanes)?);
            let (p, q) = (kb.cast(acc_ty, p), kb.cast(acc_ty, q));
            let sum = kb.get(acc);
            let sum = multiply_add(kb, p, q, sum);
            kb.set(acc, sum);
            Ok(())
        };
        let Some(inside) = inside else { return step(kb) };
        let mut out = Ok(());
        kb.if_(inside, |kb| out = step(kb), |_| {});
        out
    })?;
    let sum = kb.get(acc);
    Ok(kb.cast(xt.dtype, sum))
}

fn arg_reduce(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    a: &transc_ir::op::ArgReduce,
    x: Value,
    idx: &[Index],
) -> Result<Reg> {
    let ty = e.region.ty(x).clone();
    let mut full: Vec<Index> = idx.to_vec();
    let zero = kb.index(0);
    if !a.keep {
        full.insert(a.axis, Index::scalar(zero));
    }
    full[a.axis] = Index::scalar(zero);
    let saved = e.mark();
    let first = e.at(kb, x, &full, Lanes::ONE)?;
    let (best, place) = (kb.var(first), kb.var(zero));
    let (one, n) = (kb.index(1), kb.dim(&ty.dims[a.axis]));
    let mut out = Ok(());
    kb.for_(one, n, 1, Unroll::Auto, |kb, i| {
        full[a.axis] = Index::scalar(i);
        out = e.at(kb, x, &full, Lanes::ONE).map(|y| {
            let old = kb.get(best);
            let op = match (a.max, a.last) {
                (true, false) => BinOp::Gt,
                (true, true) => BinOp::Ge,
                (false, false) => BinOp::Lt,
                (false, true) => BinOp::Le,
            };
            let mut better = kb.bin(op, y, old);
            if ty.dtype.is_float() {
                // NaN is the extreme; the first (or last) NaN wins.
                let (new_nan, old_nan) = (kb.un(UnOp::IsNan, y), kb.un(UnOp::IsNan, old));
                let fresh = if a.last {
                    new_nan
                } else {
                    let open = kb.un(UnOp::Not, old_nan);
                    kb.bin(BinOp::And, new_nan, open)
                };
                better = kb.bin(BinOp::Or, better, fresh);
            }
            let value = kb.select(better, y, old);
            let at = kb.get(place);
            let at = kb.select(better, i, at);
            kb.set(best, value);
            kb.set(place, at);
        });
    });
    e.release(saved);
    out?;
    Ok(kb.get(place))
}
