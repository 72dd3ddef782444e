//! Anchors that work on whole rows: softmax, norms, scans, top-k; and scatters, which work on the whole tensor.
//!
//! A row is evaluated once into scratch memory, so that its prologue costs nothing twice; sums run in a fixed order.

use transc_ir::Value;
use transc_ir::loops::{Access, Buf, KernelBuilder, ReduceOp, Reg, Ty, Unroll, Var};
use transc_ir::op::{Op, ReduceKind, ScatterKind};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::anchor::{fold_op, identity, loops, wide};
use super::element::{Elements, Lanes, Stuck, checked_index};
use super::index::Index;
use super::nest::{all_indices, cost, flat_index, results, store, vector_range};
use super::products;
use super::region::Region;
use crate::Target;
use crate::math::softmax_exp;
use crate::template::tile;

type Result<T> = std::result::Result<T, Stuck>;

/// Lowers softmax, a norm or a scan with its prologue and epilogue.
pub(crate) fn lower(r: &Region, anchor: Value, node: &Node, target: &Target) -> Result<Lowered> {
    let root = r.roots()[0];
    if r.ty(root).dims != r.ty(anchor).dims {
        return Err(Stuck::Op(anchor));
    }
    let vectors = !matches!(node.op, Op::Scan(_)) && r.ty(anchor).dtype == DType::F32;
    if vectors {
        match lower_with(r, anchor, node, target, target.lanes()) {
            Err(Stuck::Vector) => {}
            other => return other,
        }
    }
    lower_with(r, anchor, node, target, 1)
}

/// Sums that grow side by side, since an addition waits for the one before.
const CHAINS: usize = 4;

/// The axes of a row.
fn row_axes(node: &Node, rank: usize) -> Vec<usize> {
    match &node.op {
        Op::Softmax(s) => vec![s.axis],
        Op::Scan(s) => vec![s.axis],
        Op::LayerNorm(n) => (n.axis..rank).collect(),
        Op::RmsNorm(n) => (n.axis..rank).collect(),
        _ => Vec::new(),
    }
}

/// One row: where it is, and how its elements are visited.
struct Row<'a> {
    dims: &'a [Dim],
    axes: &'a [usize],
    outer: Vec<(usize, Reg)>,
    lanes: u16,
    /// Its elements as they were evaluated, and how many.
    buf: Buf,
    len: &'a Dim,
}

impl Row<'_> {
    /// Calls `body` for every element with its index and its place in the row buffer.
    fn visit(
        &self,
        e: &mut Elements<'_>,
        kb: &mut KernelBuilder,
        body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, &[Index], Reg, Lanes) -> Result<()>,
    ) -> Result<()> {
        let Some((last, before)) = self.axes.split_last() else { return Ok(()) };
        let before_dims: Vec<Dim> = before.iter().map(|a| self.dims[*a].clone()).collect();
        let extent = &self.dims[*last];
        loops(e, kb, &before_dims, &mut Vec::new(), &mut |e, kb, at| {
            let mut base = kb.index(0);
            for (r, d) in at.iter().zip(&before_dims) {
                let d = kb.dim(d);
                let scaled = kb.mul(base, d);
                base = kb.add(scaled, *r);
            }
            let n = kb.dim(extent);
            let base = kb.mul(base, n);
            let mut element = |e: &mut Elements<'_>, kb: &mut KernelBuilder, j: Index, lanes: Lanes| {
                let mut idx = vec![j; self.dims.len()];
                for (a, r) in &self.outer {
                    idx[*a] = Index::scalar(*r);
                }
                for (a, r) in before.iter().zip(at) {
                    idx[*a] = Index::scalar(*r);
                }
                let place = kb.add(base, j.reg);
                body(e, kb, &idx, place, lanes)
            };
            let zero = kb.index(0);
            if self.lanes > 1 {
                return vector_range(e, kb, (zero, n), extent, &mut element);
            }
            let mut out = Ok(());
            let mark = e.mark();
            kb.for_(zero, n, 1, Unroll::Auto, |kb, j| out = element(e, kb, Index::scalar(j), Lanes::ONE));
            e.release(mark);
            out
        })
    }

    fn load(&self, kb: &mut KernelBuilder, at: Reg, lanes: Lanes) -> Reg {
        kb.load_part(self.buf, at, lanes.n, lanes.count)
    }

    fn store(&self, kb: &mut KernelBuilder, at: Reg, x: Reg, lanes: Lanes) {
        kb.store_part(self.buf, at, x, lanes.count);
    }

    /// Folds `f` of every element of the row buffer, in [`CHAINS`] accumulators that come together at the end.
    fn fold(
        &self,
        kb: &mut KernelBuilder,
        (kind, acc_ty): (ReduceKind, DType),
        f: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Lanes) -> Reg,
    ) -> Reg {
        let init = identity(kb, kind, acc_ty, self.lanes);
        let (op, _) = fold_op(kind);
        let chains: Vec<Var> = (0..CHAINS).map(|_| kb.var(init)).collect();
        let mut step = |kb: &mut KernelBuilder, chain: Var, place: Reg, count: Option<Reg>| {
            let lanes = Lanes { n: self.lanes, count };
            let x = self.load(kb, place, lanes);
            let mut y = f(kb, x, place, lanes);
            if let Some(c) = count {
                y = tile::keep_lanes(kb, y, c, init);
            }
            let old = kb.get(chain);
            let new = kb.bin(op, old, y);
            kb.set(chain, new);
        };
        let lanes = i64::from(self.lanes);
        let (zero, end) = (kb.index(0), kb.dim(self.len));
        let mut from = zero;
        for (stride, chains) in [(CHAINS as i64 * lanes, chains.as_slice()), (lanes, &chains[..1])] {
            let to = tile::whole_turns(kb, (from, end), stride);
            kb.for_(from, to, stride, Unroll::No, |kb, i| {
                for (j, chain) in (0..).zip(chains) {
                    let j = kb.index(j * lanes);
                    let place = kb.add(i, j);
                    step(kb, *chain, place, None);
                }
            });
            from = to;
        }
        if !self.len.modulo(&lanes.into()).is(0) {
            let left = kb.sub(end, from);
            let some = kb.bin(BinOp::Gt, left, zero);
            kb.if_(some, |kb| step(kb, chains[0], from, Some(left)), |_| {});
        }
        let sums: Vec<Reg> = chains.iter().map(|c| kb.get(*c)).collect();
        let sum = sums.into_iter().reduce(|a, b| kb.bin(op, a, b)).unwrap_or(init);
        kb.reduce(if kind == ReduceKind::Max { ReduceOp::Max } else { ReduceOp::Add }, sum)
    }
}

fn lower_with(r: &Region, anchor: Value, node: &Node, target: &Target, lanes: u16) -> Result<Lowered> {
    let ty = r.ty(anchor).clone();
    let axes = row_axes(node, ty.rank());
    if lanes > 1 && axes.last() != Some(&(ty.rank() - 1)) {
        return Err(Stuck::Vector);
    }
    let outer_axes: Vec<usize> = (0..ty.rank()).filter(|a| !axes.contains(a)).collect();
    let outer: Vec<Dim> = outer_axes.iter().map(|a| ty.dims[*a].clone()).collect();
    let row_len = axes.iter().map(|i| &ty.dims[*i]).product::<Dim>();
    let extent = outer.iter().product::<Dim>();
    let name = format!("{}_{}{}", node.op.mnemonic(), ty.dtype, if lanes > 1 { format!("x{lanes}") } else { String::new() });
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let (_, out_buf) = results(&mut kb, &mut e, Access::Write)[0];
    let acc_ty = wide(ty.dtype);
    let buf = kb.local(acc_ty, row_len.clone());
    let (lo, hi) = (kb.lo(), kb.hi());
    let mut out = Ok(());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let at = tile::unflatten(kb, unit, &outer);
        let row =
            Row { dims: &ty.dims, axes: &axes, outer: outer_axes.iter().copied().zip(at).collect(), lanes, buf, len: &row_len };
        let mark = e.mark();
        out = one_row(&mut e, kb, &row, (anchor, node), acc_ty, out_buf);
        e.release(mark);
    });
    out?;
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns: cost(r, &ty, if lanes > 1 { 4 } else { 16 }) })
}

fn one_row(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    row: &Row<'_>,
    (anchor, node): (Value, &Node),
    acc_ty: DType,
    out_buf: Buf,
) -> Result<()> {
    let x = node.operands[0];
    row.visit(e, kb, &mut |e, kb, idx, place, lanes| {
        let v = e.at(kb, x, idx, lanes)?;
        let v = kb.cast(acc_ty, v);
        row.store(kb, place, v, lanes);
        Ok(())
    })?;
    match &node.op {
        Op::Softmax(s) => {
            let max = row.fold(kb, (ReduceKind::Max, acc_ty), &mut |_, x, _, _| x);
            let log = s.log;
            let sum = row.fold(kb, (ReduceKind::Sum, acc_ty), &mut |kb, x, place, lanes| {
                let m = kb.splat(lanes.n, max);
                let d = kb.sub(x, m);
                let v = softmax_exp(kb, d);
                row.store(kb, place, if log { d } else { v }, lanes);
                v
            });
            let factor = if log {
                kb.un(UnOp::Log, sum)
            } else {
                let one = kb.num(Ty::scalar(acc_ty), 1.0);
                kb.bin(BinOp::Div, one, sum)
            };
            finish(e, kb, row, anchor, out_buf, &mut |_, kb, x, _, lanes| {
                let f = kb.splat(lanes.n, factor);
                Ok(if log { kb.sub(x, f) } else { kb.mul(x, f) })
            })
        }
        Op::LayerNorm(n) => {
            let sum = row.fold(kb, (ReduceKind::Sum, acc_ty), &mut |_, x, _, _| x);
            let mean = divide(kb, sum, row.len);
            let square = row.fold(kb, (ReduceKind::Sum, acc_ty), &mut |kb, x, _, lanes| {
                let m = kb.splat(lanes.n, mean);
                let d = kb.sub(x, m);
                kb.mul(d, d)
            });
            let inv = inverse_root(kb, square, row.len, n.epsilon.0);
            let axis = n.axis;
            finish(e, kb, row, anchor, out_buf, &mut |e, kb, x, idx, lanes| {
                let (m, i) = (kb.splat(lanes.n, mean), kb.splat(lanes.n, inv));
                let d = kb.sub(x, m);
                let y = kb.mul(d, i);
                scale_and_shift(e, kb, y, node, &idx[axis..], lanes)
            })
        }
        Op::RmsNorm(n) => {
            let square = row.fold(kb, (ReduceKind::Sum, acc_ty), &mut |kb, x, _, _| kb.mul(x, x));
            let inv = inverse_root(kb, square, row.len, n.epsilon.0);
            let axis = n.axis;
            finish(e, kb, row, anchor, out_buf, &mut |e, kb, x, idx, lanes| {
                let i = kb.splat(lanes.n, inv);
                let y = kb.mul(x, i);
                scale_and_shift(e, kb, y, node, &idx[axis..], lanes)
            })
        }
        Op::Scan(s) => {
            let (op, _) = fold_op(s.kind);
            let init = identity(kb, s.kind, acc_ty, 1);
            let acc = kb.var(init);
            let (zero, n, one) = (kb.index(0), kb.dim(row.len), kb.index(1));
            kb.for_(zero, n, 1, Unroll::No, |kb, i| {
                let at = if s.reverse {
                    let last = kb.sub(n, one);
                    kb.sub(last, i)
                } else {
                    i
                };
                let x = kb.load(row.buf, at, 1);
                let old = kb.get(acc);
                let new = kb.bin(op, old, x);
                kb.set(acc, new);
                kb.store(row.buf, at, if s.exclusive { old } else { new });
            });
            finish(e, kb, row, anchor, out_buf, &mut |_, _, x, _, _| Ok(x))
        }
        _ => Err(Stuck::Op(anchor)),
    }
}

/// Turns every element of the row buffer into the anchor's value, applies the epilogue and stores.
fn finish(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    row: &Row<'_>,
    anchor: Value,
    out_buf: Buf,
    f: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, Reg, &[Index], Lanes) -> Result<Reg>,
) -> Result<()> {
    let root = e.region.roots()[0];
    let dtype = e.region.ty(anchor).dtype;
    row.visit(e, kb, &mut |e, kb, idx, place, lanes| {
        let x = row.load(kb, place, lanes);
        let y = f(e, kb, x, idx, lanes)?;
        let y = kb.cast(dtype, y);
        products::finish(e, kb, (anchor, root), out_buf, idx, y, lanes.count)
    })
}

pub(crate) fn scale_and_shift(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    y: Reg,
    node: &Node,
    idx: &[Index],
    lanes: Lanes,
) -> Result<Reg> {
    let dtype = kb.ty(y).dtype;
    let mut y = y;
    for (i, op) in [(1, BinOp::Mul), (2, BinOp::Add)] {
        if let Some(p) = node.operands.get(i) {
            let dims = e.region.ty(*p).dims.clone();
            let skip = idx.len() - dims.len();
            let at: Vec<Index> =
                dims.iter().zip(&idx[skip..]).map(|(d, i)| if d.is(1) { Index::scalar(kb.index(0)) } else { *i }).collect();
            let v = e.at(kb, *p, &at, lanes)?;
            let v = kb.cast(dtype, v);
            y = kb.bin(op, y, v);
        }
    }
    Ok(y)
}

pub(crate) fn divide(kb: &mut KernelBuilder, sum: Reg, n: &Dim) -> Reg {
    let (n, ty) = (kb.dim(n), kb.ty(sum));
    let n = kb.cast(ty.dtype, n);
    let n = kb.splat(ty.lanes, n);
    kb.bin(BinOp::Div, sum, n)
}

pub(crate) fn inverse_root(kb: &mut KernelBuilder, sum: Reg, n: &Dim, epsilon: f64) -> Reg {
    let mean = divide(kb, sum, n);
    let ty = kb.ty(sum);
    let (epsilon, one) = (kb.num(ty, epsilon), kb.num(ty, 1.0));
    let v = kb.add(mean, epsilon);
    let root = kb.un(UnOp::Sqrt, v);
    kb.bin(BinOp::Div, one, root)
}

/// The `k` first of a row by repeated selection; equal elements keep their order.
pub(crate) fn top_k(r: &Region, node: &Node, target: &Target) -> Result<Lowered> {
    let Op::TopK(t) = &node.op else { return Err(Stuck::Op(node.results[0])) };
    let (x, ty) = (node.operands[0], r.ty(node.operands[0]).clone());
    let outer_axes: Vec<usize> = (0..ty.rank()).filter(|a| *a != t.axis).collect();
    let outer: Vec<Dim> = outer_axes.iter().map(|a| ty.dims[*a].clone()).collect();
    let extent = outer.iter().product::<Dim>();
    let mut kb = KernelBuilder::new(&format!("top_k_{}", ty.dtype), r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let outs = results(&mut kb, &mut e, Access::Write);
    let n_dim = ty.dims[t.axis].clone();
    let (values, used) = (kb.local(ty.dtype, n_dim.clone()), kb.local(DType::U8, n_dim.clone()));
    let (lo, hi) = (kb.lo(), kb.hi());
    let mut out = Ok(());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let at = tile::unflatten(kb, unit, &outer);
        let mut idx = vec![Index::scalar(unit); ty.rank()];
        for (a, reg) in outer_axes.iter().zip(at) {
            idx[*a] = Index::scalar(reg);
        }
        let (zero, n, k) = (kb.index(0), kb.dim(&n_dim), kb.dim(&t.k));
        let (free, taken) = (kb.lit(Literal::from_i64(DType::U8, 0)), kb.lit(Literal::from_i64(DType::U8, 1)));
        let mark = e.mark();
        kb.for_(zero, n, 1, Unroll::No, |kb, j| {
            idx[t.axis] = Index::scalar(j);
            out = e.at(kb, x, &idx, Lanes::ONE).map(|v| kb.store(values, j, v));
            kb.store(used, j, free);
        });
        e.release(mark);
        kb.for_(zero, k, 1, Unroll::No, |kb, i| {
            let minus = kb.index(-1);
            let best = kb.var(minus);
            kb.for_(zero, n, 1, Unroll::No, |kb, j| {
                let (flag, old) = (kb.load(used, j, 1), kb.get(best));
                let open = kb.bin(BinOp::Eq, flag, free);
                let none = kb.bin(BinOp::Lt, old, zero);
                let from = kb.bin(BinOp::Max, old, zero);
                let (v, w) = (kb.load(values, j, 1), kb.load(values, from, 1));
                let mut better = kb.bin(if t.largest { BinOp::Gt } else { BinOp::Lt }, v, w);
                if ty.dtype.is_float() {
                    // NaN counts as the largest.
                    let (vn, wn) = (kb.un(UnOp::IsNan, v), kb.un(UnOp::IsNan, w));
                    let (first, second) = if t.largest { (vn, wn) } else { (wn, vn) };
                    let not = kb.un(UnOp::Not, second);
                    let wins = kb.bin(BinOp::And, first, not);
                    better = kb.bin(BinOp::Or, better, wins);
                }
                let better = kb.bin(BinOp::Or, better, none);
                let take = kb.bin(BinOp::And, better, open);
                let new = kb.select(take, j, old);
                kb.set(best, new);
            });
            let j = kb.get(best);
            kb.store(used, j, taken);
            let v = kb.load(values, j, 1);
            let mut to = idx.clone();
            to[t.axis] = Index::scalar(i);
            for (n, value) in [v, j].into_iter().enumerate() {
                // Either result may be unused and then has no buffer.
                if let Some((root, buf)) = outs.iter().find(|(root, _)| *root == node.results[n]) {
                    out = out.and(store(kb, *buf, &r.view(*root), &to, value, Lanes::ONE));
                }
            }
        });
    });
    out?;
    let cost_ns = &ty.count() * &t.k;
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns })
}

/// A copy of the data, then the updates in order, in one unit.
pub(crate) fn scatter(r: &Region, anchor: Value, node: &Node, target: &Target) -> Result<Lowered> {
    if r.roots() != [anchor] {
        return Err(Stuck::Op(anchor));
    }
    let (data, index, updates) = (node.operands[0], node.operands[1], node.operands[2]);
    let ty = r.ty(anchor).clone();
    let mut kb = KernelBuilder::new(&format!("{}_{}", node.op.mnemonic(), ty.dtype), r.symbols.clone(), Dim::from(1));
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let (_, buf) = results(&mut kb, &mut e, Access::ReadWrite)[0];
    let (lo, hi) = (kb.lo(), kb.hi());
    let mut out = Ok(());
    kb.for_(lo, hi, 1, Unroll::No, |kb, _| {
        out = all_indices(&mut e, kb, &ty.dims, &mut |e, kb, idx| {
            let v = e.at(kb, data, idx, Lanes::ONE)?;
            store(kb, buf, &r.view(anchor), idx, v, Lanes::ONE)
        })
        .and_then(|()| {
            let dims = r.ty(updates).dims.clone();
            all_indices(&mut e, kb, &dims, &mut |e, kb, idx| {
                let (to, kind) = target_index(e, kb, node, index, idx, &ty.dims)?;
                let v = e.at(kb, updates, idx, Lanes::ONE)?;
                let (at, _) = flat_index(kb, &ty.dims, &to)?;
                let old = kb.load(buf, at, 1);
                let new = match kind {
                    ScatterKind::Set => v,
                    ScatterKind::Add => kb.add(old, v),
                    ScatterKind::Mul => kb.mul(old, v),
                    ScatterKind::Min => kb.bin(BinOp::Min, old, v),
                    ScatterKind::Max => kb.bin(BinOp::Max, old, v),
                };
                kb.store(buf, at, new);
                Ok(())
            })
        });
    });
    out?;
    let cost_ns = &ty.count() + &r.ty(updates).count();
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns })
}

/// Where an update goes.
fn target_index(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    node: &Node,
    index: Value,
    idx: &[Index],
    dims: &[Dim],
) -> Result<(Vec<Index>, ScatterKind)> {
    match &node.op {
        Op::ScatterElements(s) => {
            let i = e.at(kb, index, idx, Lanes::ONE)?;
            let i = kb.cast(DType::I64, i);
            let mut to = idx.to_vec();
            to[s.axis] = Index::scalar(checked_index(kb, i, &dims[s.axis]));
            Ok((to, s.kind))
        }
        Op::ScatterNd(s) => {
            let lead = e.region.ty(index).rank() - 1;
            let k = e.region.ty(index).dims[lead].as_usize().unwrap_or(0);
            let mut to = Vec::new();
            for (j, extent) in dims.iter().enumerate().take(k) {
                let mut at = idx[..lead].to_vec();
                at.push(Index::scalar(kb.index(j as i64)));
                let i = e.at(kb, index, &at, Lanes::ONE)?;
                let i = kb.cast(DType::I64, i);
                to.push(Index::scalar(checked_index(kb, i, extent)));
            }
            to.extend_from_slice(&idx[lead..]);
            Ok((to, s.kind))
        }
        _ => Err(Stuck::Op(index)),
    }
}
