//! Contractions through their templates, where operands are strided views: in `f32`, or in `bf16` if one operand is constant.

use transc_ir::Value;
use transc_ir::loops::{Access, Buf, KernelBuilder, Reg};
use transc_ir::op::{Contract, Op};
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Axis, merged};
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::{Elements, Lanes, Stuck};
use super::index::Index;
use super::nest::{is_f32, results, store};
use super::region::Region;
use super::strided::{Strided, strided};
use crate::panels::Panels;
use crate::program::{Matrix, Packing, Tunable};
use crate::template::ahead::Touched;
use crate::template::groups::Group;
use crate::template::matmul::{self, Lhs, MatmulProblem, Rhs, Weight};
use crate::template::{matmul_amx, matmul_bf16, tile};
use crate::{Target, tuning};

/// Multiply-adds per nanosecond that one core reaches about.
pub(crate) const MACS_PER_NS: i64 = 40;

/// A contraction as batched matrix product: which label plays which part.
pub(crate) struct Roles {
    pub(crate) batch: Vec<u8>,
    pub(crate) rows: Vec<u8>,
    pub(crate) columns: Vec<u8>,
    pub(crate) inner: Vec<u8>,
}

pub(crate) fn roles(c: &Contract, lhs: &[u8], rhs: &[u8]) -> Roles {
    let pick = |labels: &[u8], f: &dyn Fn(&u8) -> bool| labels.iter().filter(|l| f(l)).copied().collect::<Vec<_>>();
    Roles {
        batch: pick(&c.out, &|l| lhs.contains(l) && rhs.contains(l)),
        rows: pick(&c.out, &|l| lhs.contains(l) && !rhs.contains(l)),
        columns: pick(&c.out, &|l| rhs.contains(l) && !lhs.contains(l)),
        inner: pick(lhs, &|l| !c.out.contains(l)),
    }
}

/// An operand with its labels.
pub(super) struct Operand {
    pub(super) labels: Vec<u8>,
    pub(super) view: Strided,
    pub(super) dims: Vec<Dim>,
}

impl Operand {
    pub(super) fn axes(&self, labels: &[u8]) -> Vec<Axis> {
        let at = |l: &u8| self.labels.iter().position(|m| m == l);
        labels
            .iter()
            .filter_map(at)
            .map(|i| Axis { extent: self.dims[i].clone(), stride: self.view.strides[i].clone() })
            .collect()
    }
}

/// The kernel of a contraction by the matrix template; `None` where it does not fit.
pub(crate) fn matmul_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let Op::Contract(c) = &node.op else { return None };
    let root = r.roots()[0];
    let all = |d: DType| node.operands.iter().all(|v| r.ty(*v).dtype == d);
    let bf16 = all(DType::Bf16);
    if !(bf16 || all(DType::F32) && is_f32(c.out_dtype)) || r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    let operand = |i: usize, labels: &[u8]| {
        let v = r.body.unrounded(node.operands[i]);
        Some(Operand { labels: labels.to_vec(), view: strided(r, v)?, dims: r.ty(v).dims.clone() })
    };
    let (mut a, mut b) = (operand(0, &c.lhs)?, operand(1, &c.rhs)?);
    // Columns are neighbours in the result, so the operand that owns its last label is the right one.
    let last = c.out.last()?;
    if !b.labels.contains(last) || a.labels.contains(last) {
        std::mem::swap(&mut a, &mut b);
    }
    let roles = roles(c, &a.labels, &b.labels);
    let [column] = roles.columns.as_slice() else { return None };
    if column != last || roles.inner.is_empty() {
        return None;
    }
    let k_axes = (a.axes(&roles.inner), b.axes(&roles.inner));
    let (a_k, b_k) = (merged(&k_axes.0)?, merged(&k_axes.1)?);
    let extents = |o: &Operand, labels: &[u8]| o.axes(labels).into_iter().map(|a| a.extent).collect::<Vec<Dim>>();
    let (rows, batch) = (extents(&a, &roles.rows), extents(&a, &roles.batch));
    let n = b.axes(&[*column])[0].clone();
    let p = MatmulProblem {
        batch: batch.clone(),
        m: rows.iter().product(),
        n: n.extent.clone(),
        k: extents(&a, &roles.inner).iter().product(),
    };
    let matrices = (bf16 && target.has_matrices()).then(|| matmul_amx::Schedule::choose(Group::Bf16, &p.n, &p.k));
    let usual = matmul::Schedule::choose(target.lanes(), &p.n);
    let problem = tuning::problem(&p, if bf16 { "matmul_bf16" } else { "matmul_f32" });
    let mut s = target.tuning().matmul(&problem, usual);
    let group = if bf16 { Group::Bf16.size() } else { 1 };
    let (width, depth) = matrices.map_or((s.tile.width(), group), |s| (s.tile.width(), s.depth()));
    let packing = panels(r, &b, &p, &roles, (&b_k, &n.stride), [width, group, depth]);
    if bf16 && packing.is_none() {
        return None;
    }
    let kind = if packing.is_some() { "w" } else { "a" };
    if packing.is_none() {
        s.chunk = matmul::GATHERED_CHUNK;
    } else if matrices.is_none() {
        r.tunable.replace(Some(Tunable { problem, schedule: tuning::short(s) }));
    }
    let (name, extent) = match matrices {
        Some(s) => (s.to_string(), s.extent(&p)),
        None if bf16 => (matmul_bf16::name(s), s.extent(&p)),
        None => (s.to_string(), s.extent(&p)),
    };
    let mut kb = KernelBuilder::new(&format!("{name}{kind}"), r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let a_buf = e.buffer(&mut kb, a.view.base)?;
    let b_base = b.view.base;
    let b_buf = match packing {
        Some((id, packing)) if bf16 => e.packed(&mut kb, matmul_bf16::weight_type(target.multiplies_bf16()), id, packing),
        Some((id, packing)) => e.constant(&mut kb, b_base, id, packing),
        None => e.buffer(&mut kb, b_base)?,
    };
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let touched = if batch.is_empty() { touched(r, anchor, &mut kb, &mut e, out) } else { Touched::default() };
    let row_axes = a.axes(&roles.rows);
    let (a_batch, b_batch) = (a.axes(&roles.batch), b.axes(&roles.batch));
    let mut row = |kb: &mut KernelBuilder, at: &[Reg], m: Reg| {
        let start = offset(kb, &a.view.offset, &a_batch, at);
        match merged(&row_axes) {
            Some(stride) => {
                let stride = kb.dim(&stride);
                let step = kb.mul(m, stride);
                kb.add(start, step)
            }
            None => {
                let idx = tile::unflatten(kb, m, &rows);
                let zero = Dim::from(0);
                let inside = offset(kb, &zero, &row_axes, &idx);
                kb.add(start, inside)
            }
        }
    };
    let mut gather = |kb: &mut KernelBuilder, at: &[Reg], n0: Reg, panel: Buf| {
        let base = offset(kb, &b.view.offset, &b_batch, at);
        let src = tile::Source { buf: b_buf, base, k_stride: &b_k, n_stride: &n.stride };
        let start = kb.index(0);
        tile::pack_panel(kb, s.tile, (&p.k, &p.n), &src, n0, (panel, start));
    };
    let mut lhs = Lhs { buf: a_buf, row: &mut row, k_stride: a_k };
    let mut stuck = None;
    let mut epilogue = |kb: &mut KernelBuilder, at: &[Reg], m: Reg, n: Reg, x: Reg, count: Option<Reg>| {
        let x = kb.cast(c.out_dtype, x);
        let rows_at = tile::unflatten(kb, m, &rows);
        let index: Vec<Index> = c
            .out
            .iter()
            .map(|l| {
                let from = |labels: &[u8], regs: &[Reg]| labels.iter().position(|m| m == l).map(|i| Index::scalar(regs[i]));
                from(&roles.batch, at).or_else(|| from(&roles.rows, &rows_at)).unwrap_or(Index::vector(n))
            })
            .collect();
        if let Err(s) = finish(&mut e, kb, (anchor, root), out, &index, x, count) {
            stuck = Some(s);
        }
    };
    let batched = !batch.is_empty();
    if bf16 {
        let weight = Weight { buf: b_buf, batched, touched };
        match matrices {
            Some(s) => matmul_amx::build(&mut kb, &p, s, &mut lhs, &weight, &mut epilogue, None),
            None => matmul_bf16::build(&mut kb, &p, s, &mut lhs, &weight, &mut epilogue),
        }
    } else {
        let mut rhs = match packing {
            Some(_) => Rhs::Packed(Weight { buf: b_buf, batched, touched }),
            None => Rhs::Gathered(&mut gather),
        };
        matmul::build(&mut kb, &p, s, &mut lhs, &mut rhs, &mut epilogue);
    }
    if stuck.is_some() {
        return None;
    }
    let macs = p.batch.iter().fold(&(&p.m * &p.n) * &p.k, |a, d| &a * d);
    let rate = matrices.map_or(MACS_PER_NS, matmul_amx::Schedule::macs_per_ns);
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&rate.into()) })
}

/// The result, and what maps behind an anchor of the same dims read at the same place.
pub(super) fn touched(r: &Region, anchor: Value, kb: &mut KernelBuilder, e: &mut Elements<'_>, out: Buf) -> Touched {
    let maps: Vec<Value> =
        r.body.nodes().filter(|(_, n)| matches!(n.op, Op::Map(_))).flat_map(|(_, n)| n.operands.iter().copied()).collect();
    let read = |v: &Value| maps.contains(v) && r.ty(*v).dims == r.ty(anchor).dims;
    let params: Vec<Value> = r.body.params().iter().map(|(_, v)| *v).filter(read).collect();
    Touched { bufs: params.into_iter().filter_map(|v| e.buffer(kb, v)).chain([out]).collect() }
}

/// The layout of a constant right operand.
fn panels(
    r: &Region,
    b: &Operand,
    p: &MatmulProblem,
    roles: &Roles,
    (k_stride, n_stride): (&Dim, &Dim),
    [width, group, depth]: [i64; 3],
) -> Option<(transc_ir::ConstId, Packing)> {
    let id = r.body.constant(b.view.base)?;
    let batch_axes = b.axes(&roles.batch);
    let batch_stride = if batch_axes.is_empty() { Dim::from(0) } else { merged(&batch_axes)? };
    let panels = Panels {
        batch: p.batch.iter().try_fold(1, |a, d| Some(a * d.as_usize()?))?,
        matrix: Matrix { k: p.k.as_usize()?, n: p.n.as_usize()?, k_stride: k_stride.as_usize()?, n_stride: n_stride.as_usize()? },
        offset: b.view.offset.as_usize()?,
        batch_stride: batch_stride.as_usize()?,
        width: usize::try_from(width).ok()?,
        group: usize::try_from(group).ok()?,
        depth: usize::try_from(depth).ok()?,
        words: false,
    };
    Some((id, Packing::Panels(panels)))
}

/// `start + sum of at[i] * stride[i]`.
pub(super) fn offset(kb: &mut KernelBuilder, start: &Dim, axes: &[Axis], at: &[Reg]) -> Reg {
    tile::place(kb, start, axes.iter().map(|a| &a.stride), at)
}

/// Applies the epilogue to a vector of the anchor and stores it.
pub(super) fn finish(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    (anchor, root): (Value, Value),
    out: Buf,
    idx: &[Index],
    x: Reg,
    count: Option<Reg>,
) -> Result<(), Stuck> {
    let y = e.behind(kb, (anchor, x), idx, count)?;
    store(kb, out, &e.region.view(root), idx, y, Lanes { n: kb.ty(y).lanes, count })
}
