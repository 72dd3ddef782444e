//! Softmax, norms and folds: a block per row. Each thread visits every `THREADS`-th element; sums are joined in a fixed tree.

use transc_ir::Value;
use transc_ir::loops::{Access, Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::op::{Op, Reduce, ReduceKind};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::THREADS;
use crate::lower::Lowered;
use crate::lower::anchor::{fold_op, identity, wide};
use crate::lower::element::{Elements, Lanes, Stuck};
use crate::lower::index::Index;
use crate::lower::nest::{cost, results, store};
use crate::lower::region::Region;
use crate::lower::rows::{divide, inverse_root, scale_and_shift};
use crate::template::{device, tile};

type Result<T> = std::result::Result<T, Stuck>;

/// Rows up to this many elements are kept in shared memory between the visits.
const CACHED: i64 = 8192;
/// A fold of fewer elements is one thread's work.
const FEW: i64 = 32;

/// True if a fold is worth a block per element of its result.
pub(super) fn pays(r: &Region, v: Value, n: &Node, x: &Reduce) -> bool {
    let dims = &r.ty(n.operands[0]).dims;
    let long = x.axes.iter().map(|i| &dims[*i]).product::<Dim>().bounds(&r.ranges).1 >= FEW;
    long && r.ty(r.roots()[0]).dims == r.ty(v).dims && r.ty(n.operands[0]).dtype != DType::Bool
}

/// The row of one block.
struct Row<'a> {
    x: Value,
    dims: &'a [Dim],
    axes: &'a [usize],
    len: &'a Dim,
    /// Indices of the other axes.
    outer: Vec<(usize, Reg)>,
    cache: Option<Buf>,
    partial: Buf,
    acc: DType,
}

impl Row<'_> {
    /// Calls `body` with the index and the place of each of this thread's elements.
    fn visit(
        &self,
        e: &mut Elements<'_>,
        kb: &mut KernelBuilder,
        body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, &[Index], Reg) -> Result<()>,
    ) -> Result<()> {
        let inner: Vec<Dim> = self.axes.iter().map(|a| self.dims[*a].clone()).collect();
        let (thread, end) = (kb.thread(), kb.dim(self.len));
        let (mut out, mark) = (Ok(()), e.mark());
        kb.for_(thread, end, THREADS, Unroll::No, |kb, j| {
            let mut idx = vec![Index::scalar(j); self.dims.len()];
            for (a, i) in self.axes.iter().zip(tile::unflatten(kb, j, &inner)) {
                idx[*a] = Index::scalar(i);
            }
            for (a, i) in &self.outer {
                idx[*a] = Index::scalar(*i);
            }
            out = body(e, kb, &idx, j);
        });
        e.release(mark);
        out
    }

    fn load(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, idx: &[Index], j: Reg) -> Result<Reg> {
        if let Some(cache) = self.cache {
            return Ok(kb.load(cache, j, 1));
        }
        let x = e.at(kb, self.x, idx, Lanes::ONE)?;
        Ok(kb.cast(self.acc, x))
    }

    /// Folds `f` of every element; all threads get the result.
    fn fold(
        &self,
        e: &mut Elements<'_>,
        kb: &mut KernelBuilder,
        kind: ReduceKind,
        f: &mut dyn FnMut(&mut KernelBuilder, Reg) -> Reg,
    ) -> Result<Reg> {
        let start = identity(kb, kind, self.acc, 1);
        let sum = kb.var(start);
        let (op, _) = fold_op(kind);
        self.visit(e, kb, &mut |e, kb, idx, j| {
            let x = self.load(e, kb, idx, j)?;
            let (y, old) = (f(kb, x), kb.get(sum));
            let new = kb.bin(op, old, y);
            kb.set(sum, new);
            Ok(())
        })?;
        let mine = kb.get(sum);
        Ok(device::fold(kb, self.partial, THREADS, op, mine))
    }
}

/// Lowers softmax, a norm or a fold with its prologue and epilogue.
pub(super) fn lower(r: &Region, anchor: Value, node: &Node) -> Result<Lowered> {
    let x = node.operands[0];
    let (ty, root) = (r.ty(x).clone(), r.roots()[0]);
    if r.ty(root).dims != r.ty(anchor).dims {
        return Err(Stuck::Op(anchor));
    }
    let axes: Vec<usize> = match &node.op {
        Op::Softmax(s) => vec![s.axis],
        Op::LayerNorm(n) => (n.axis..ty.rank()).collect(),
        Op::RmsNorm(n) => (n.axis..ty.rank()).collect(),
        Op::Reduce(x) => {
            let mut axes = x.axes.clone();
            axes.sort_unstable();
            axes
        }
        _ => return Err(Stuck::Op(anchor)),
    };
    let outer_axes: Vec<usize> = (0..ty.rank()).filter(|a| !axes.contains(a)).collect();
    let outer: Vec<Dim> = outer_axes.iter().map(|a| ty.dims[*a].clone()).collect();
    let len = axes.iter().map(|i| &ty.dims[*i]).product::<Dim>();
    let extent = outer.iter().product::<Dim>();
    let mut kb = KernelBuilder::new(&format!("{}_{}", node.op.mnemonic(), ty.dtype), r.symbols.clone(), extent);
    kb.set_block(THREADS as u32);
    let mut e = Elements::new(&mut kb, r, 1);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let acc = wide(ty.dtype);
    let partial = kb.shared(acc, THREADS.into());
    // A fold visits its row once.
    let keep = !matches!(node.op, Op::Reduce(_)) && len.bounds(&r.ranges).1 <= CACHED;
    let cache = keep.then(|| kb.shared(acc, len.clone()));
    let unit = kb.lo();
    let outer: Vec<(usize, Reg)> = outer_axes.into_iter().zip(tile::unflatten(&mut kb, unit, &outer)).collect();
    let row = Row { x, dims: &ty.dims, axes: &axes, len: &len, outer, cache, partial, acc };
    if let Some(cache) = cache {
        // Each thread reads only what it wrote itself.
        row.visit(&mut e, &mut kb, &mut |e, kb, idx, j| {
            let v = e.at(kb, x, idx, Lanes::ONE)?;
            let v = kb.cast(acc, v);
            kb.store(cache, j, v);
            Ok(())
        })?;
    }
    match &node.op {
        Op::Reduce(x) => fold_row(&mut e, &mut kb, &row, (anchor, x), out)?,
        _ => whole_row(&mut e, &mut kb, &row, (anchor, node), out)?,
    }
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns: cost(r, &ty, 4) })
}

fn fold_row(e: &mut Elements<'_>, kb: &mut KernelBuilder, row: &Row<'_>, (anchor, x): (Value, &Reduce), out: Buf) -> Result<()> {
    let sum = row.fold(e, kb, x.kind, &mut |_, x| x)?;
    let (zero, thread) = (kb.index(0), kb.thread());
    let mut idx: Vec<Index> = row.outer.iter().map(|(_, i)| Index::scalar(*i)).collect();
    if x.keep {
        idx = vec![Index::scalar(zero); row.dims.len()];
        for (a, i) in &row.outer {
            idx[*a] = Index::scalar(*i);
        }
    }
    let first = kb.bin(BinOp::Eq, thread, zero);
    let mut done = Ok(());
    kb.if_(first, |kb| done = finish(e, kb, anchor, sum, &idx, out), |_| {});
    done
}

fn whole_row(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    row: &Row<'_>,
    (anchor, node): (Value, &Node),
    out: Buf,
) -> Result<()> {
    let each = |e: &mut Elements<'_>,
                kb: &mut KernelBuilder,
                f: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, Reg, &[Index]) -> Result<Reg>| {
        row.visit(e, kb, &mut |e, kb, idx, j| {
            let x = row.load(e, kb, idx, j)?;
            let y = f(e, kb, x, idx)?;
            finish(e, kb, anchor, y, idx, out)
        })
    };
    match &node.op {
        Op::Softmax(s) => {
            let max = row.fold(e, kb, ReduceKind::Max, &mut |_, x| x)?;
            let sum = row.fold(e, kb, ReduceKind::Sum, &mut |kb, x| {
                let d = kb.sub(x, max);
                kb.un(UnOp::Exp, d)
            })?;
            let one = kb.num(Ty::scalar(row.acc), 1.0);
            let factor = if s.log { kb.un(UnOp::Log, sum) } else { kb.bin(BinOp::Div, one, sum) };
            each(e, kb, &mut |_, kb, x, _| {
                let d = kb.sub(x, max);
                if s.log {
                    return Ok(kb.sub(d, factor));
                }
                let v = kb.un(UnOp::Exp, d);
                Ok(kb.mul(v, factor))
            })
        }
        Op::LayerNorm(n) => {
            let sum = row.fold(e, kb, ReduceKind::Sum, &mut |_, x| x)?;
            let mean = divide(kb, sum, row.len);
            let square = row.fold(e, kb, ReduceKind::Sum, &mut |kb, x| {
                let d = kb.sub(x, mean);
                kb.mul(d, d)
            })?;
            let inverse = inverse_root(kb, square, row.len, n.epsilon.0);
            each(e, kb, &mut |e, kb, x, idx| {
                let d = kb.sub(x, mean);
                let y = kb.mul(d, inverse);
                scale_and_shift(e, kb, y, node, &idx[n.axis..], Lanes::ONE)
            })
        }
        Op::RmsNorm(n) => {
            let square = row.fold(e, kb, ReduceKind::Sum, &mut |kb, x| kb.mul(x, x))?;
            let inverse = inverse_root(kb, square, row.len, n.epsilon.0);
            each(e, kb, &mut |e, kb, x, idx| {
                let y = kb.mul(x, inverse);
                scale_and_shift(e, kb, y, node, &idx[n.axis..], Lanes::ONE)
            })
        }
        _ => Err(Stuck::Op(anchor)),
    }
}

/// Applies the epilogue to one element of the anchor and stores it.
pub(super) fn finish(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    anchor: Value,
    value: Reg,
    idx: &[Index],
    out: Buf,
) -> Result<()> {
    let root = e.region.roots()[0];
    let value = kb.cast(e.region.ty(anchor).dtype, value);
    let y = e.behind(kb, (anchor, value), idx, None)?;
    store(kb, out, &e.region.view(root), idx, y, Lanes::ONE)
}
