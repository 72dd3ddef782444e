//! Products of an activation by a constant weight whose codes or zeros have kernels of their own.

use transc_ir::Value;
use transc_ir::loops::{Access, KernelBuilder, Reg};
use transc_ir::op::{Contract, Op};
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::Elements;
use super::index::Index;
use super::nest::results;
use super::products::{self, Operand, Roles, roles};
use super::region::Region;
use super::strided::{merged, strided};
use crate::Target;
use crate::program::{Matrix, Packing};
use crate::template::{matmul_int8, tile};

/// Multiply-adds of bytes per nanosecond that one core reaches about.
const INT8_MACS_PER_NS: i64 = 160;

/// A contraction of an activation by one matrix of weights.
struct Layer<'a> {
    contract: &'a Contract,
    /// The activation, contiguous along the sums.
    a: Operand,
    /// The weight.
    b: Operand,
    roles: Roles,
    matrix: Matrix,
    id: transc_ir::ConstId,
    rows: Vec<Dim>,
    m: Dim,
}

impl<'a> Layer<'a> {
    fn find(r: &Region, node: &'a Node) -> Option<Self> {
        let Op::Contract(c) = &node.op else { return None };
        let operand = |i: usize, labels: &[u8]| {
            let v = node.operands[i];
            Some(Operand { labels: labels.to_vec(), view: strided(r, v)?, dims: r.ty(v).dims.clone() })
        };
        let (mut a, mut b) = (operand(0, &c.lhs)?, operand(1, &c.rhs)?);
        let last = c.out.last()?;
        if !b.labels.contains(last) {
            std::mem::swap(&mut a, &mut b);
        }
        let roles = roles(c, &a.labels, &b.labels);
        let Op::Constant(k) = &r.body.def_node(b.view.base)?.op else { return None };
        if roles.columns.as_slice() != [*last] || roles.inner.is_empty() || !roles.batch.is_empty() || !b.view.offset.is(0) {
            return None;
        }
        let (a_k, b_k) = (a.axes(&roles.inner), b.axes(&roles.inner));
        if !merged(&a_k)?.is(1) {
            return None;
        }
        let column = b.axes(&roles.columns)[0].clone();
        let matrix = Matrix {
            k: b_k.iter().try_fold(1, |n, (d, _)| Some(n * d.as_usize()?))?,
            n: column.0.as_usize()?,
            k_stride: merged(&b_k)?.as_usize()?,
            n_stride: column.1.as_usize()?,
        };
        let rows: Vec<Dim> = a.axes(&roles.rows).into_iter().map(|(d, _)| d).collect();
        let m = rows.iter().fold(Dim::from(1), |x, y| &x * y);
        Some(Self { contract: c, a, b, roles, matrix, id: k.id, rows, m })
    }

    /// The offset of a row of the activation.
    fn row(&self, kb: &mut KernelBuilder, m: Reg) -> Reg {
        let axes = self.a.axes(&self.roles.rows);
        match merged(&axes) {
            Some(stride) => {
                let (start, stride) = (kb.dim(&self.a.view.offset), kb.dim(&stride));
                let step = kb.mul(m, stride);
                kb.add(start, step)
            }
            None => {
                let idx = tile::unflatten(kb, m, &self.rows);
                products::offset(kb, &self.a.view.offset, &axes, &idx)
            }
        }
    }

    /// The index of element `[m, n]` of the result.
    fn index(&self, kb: &mut KernelBuilder, m: Reg, n: Reg) -> Vec<Index> {
        let at = tile::unflatten(kb, m, &self.rows);
        let row = |l: &u8| self.roles.rows.iter().position(|r| r == l).map(|i| Index::scalar(at[i]));
        self.contract.out.iter().map(|l| row(l).unwrap_or(Index { reg: n, step: 1, aligned: true })).collect()
    }

    fn macs(&self) -> Dim {
        &self.m * &Dim::from(self.matrix.k * self.matrix.n)
    }
}

/// The kernel of a product by a constant weight; `None` where no template fits.
pub(crate) fn product_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let root = r.roots()[0];
    if r.ty(root).dims != r.ty(anchor).dims || r.ty(anchor).dtype != DType::I32 {
        return None;
    }
    let layer = Layer::find(r, node)?;
    if r.ty(layer.a.view.base).dtype != DType::U8 || r.ty(layer.b.view.base).dtype != DType::I8 {
        return None;
    }
    let n = Dim::from(layer.matrix.n);
    let s = matmul_int8::Schedule::choose(target.lanes(), &n);
    let mut kb = KernelBuilder::new(&s.to_string(), r.symbols.clone(), s.extent(&layer.m, &n));
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let a = e.buffer(&mut kb, layer.a.view.base)?;
    let packing = Packing::Quads { matrix: layer.matrix, width: usize::try_from(s.tile.width()).ok()? };
    let b = e.constant(&mut kb, layer.b.view.base, layer.id, packing);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let ty = r.ty(root).clone();
    let mut stuck = None;
    let mut epilogue = |kb: &mut KernelBuilder, m: Reg, n: Reg, x: Reg, count: Option<Reg>| {
        let index = layer.index(kb, m, n);
        if let Err(s) = products::finish(&mut e, kb, (anchor, root), out, &ty, &index, x, count) {
            stuck = Some(s);
        }
    };
    let p = matmul_int8::Problem { m: &layer.m, n: layer.matrix.n as i64, k: layer.matrix.k as i64, a, b };
    matmul_int8::build(&mut kb, &p, s, &mut |kb, m| layer.row(kb, m), &mut epilogue);
    if stuck.is_some() {
        return None;
    }
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: layer.macs().floor_div(&INT8_MACS_PER_NS.into()) })
}
