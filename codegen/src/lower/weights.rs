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
use crate::program::{LayerChoice, Matrix, Packing};
use crate::sparse::{Sparse, SparsePart};
use crate::template::{matmul, matmul_int8, spmm, tile};

/// Multiply-adds of bytes per nanosecond that one core reaches about.
const INT8_MACS_PER_NS: i64 = 160;
/// The same of floats.
const F32_MACS_PER_NS: i64 = 40;

/// A contraction of an activation by one matrix of weights.
struct Layer<'a> {
    contract: &'a Contract,
    /// The activation, contiguous along the sums, or along the rows if `turned`.
    a: Operand,
    /// The weight.
    b: Operand,
    roles: Roles,
    matrix: Matrix,
    id: transc_ir::ConstId,
    rows: Vec<Dim>,
    m: Dim,
    /// Activation `[k, m]` and result `[n, m]`, one label each.
    turned: bool,
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
        let is_const = |o: &Operand| r.body.def_node(o.view.base).is_some_and(|n| matches!(n.op, Op::Constant(_)));
        if is_const(&a) {
            std::mem::swap(&mut a, &mut b);
        }
        let roles = roles(c, &a.labels, &b.labels);
        let Op::Constant(k) = &r.body.def_node(b.view.base)?.op else { return None };
        let [column] = roles.columns.as_slice() else { return None };
        let turned = column != last;
        if roles.inner.is_empty() || !roles.batch.is_empty() || !b.view.offset.is(0) {
            return None;
        }
        let (a_k, b_k) = (a.axes(&roles.inner), b.axes(&roles.inner));
        let neighbours = if turned { a.axes(&roles.rows) } else { a_k.clone() };
        if !merged(&neighbours)?.is(1) || merged(&a_k).is_none() || turned && roles.rows.len() != 1 {
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
        Some(Self { contract: c, a, b, roles, matrix, id: k.id, rows, m, turned })
    }

    /// The offset of a row of the activation, or of a row of sums if `turned`.
    fn row(&self, kb: &mut KernelBuilder, m: Reg) -> Reg {
        let axes = self.a.axes(if self.turned { &self.roles.inner } else { &self.roles.rows });
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
        let vector = |reg| Index { reg, step: 1, aligned: true };
        if self.turned {
            return vec![Index::scalar(n), vector(m)];
        }
        let at = tile::unflatten(kb, m, &self.rows);
        let row = |l: &u8| self.roles.rows.iter().position(|r| r == l).map(|i| Index::scalar(at[i]));
        self.contract.out.iter().map(|l| row(l).unwrap_or(vector(n))).collect()
    }

    fn macs(&self) -> Dim {
        &self.m * &Dim::from(self.matrix.k * self.matrix.n)
    }
}

/// Cost of a product per row of the activation, in multiply-adds of the dense kernel.
mod cost {
    use crate::program::Matrix;
    use crate::template::spmm::Schedule;

    /// What turning an element of the activation costs, and an element of the result.
    const TURN: [usize; 2] = [10, 40];

    pub(super) fn dense(m: Matrix) -> f64 {
        (m.k * m.n) as f64
    }

    /// `macs` of a sparse kernel; `fill` is the share of a tile's rows that exist.
    pub(super) fn sparse(m: Matrix, macs: usize, s: Schedule, fill: f64) -> f64 {
        // Blocks of one column load as much as they multiply. Few registers spill the tile.
        let slow = if s.height == 1 { 1.7 } else { 1.05 } * if s.lanes == 16 { 1.0 } else { 2.0 };
        let turn = if s.int8 { 1.0 } else { 0.25 } * if s.turned { 0.2 } else { 1.0 };
        (macs as f64 * slow + turn * (TURN[0] * m.k + TURN[1] * m.n) as f64) / fill
    }
}

/// Chooses the kernel of a layer: the sparse one where it is faster.
fn choose(layer: &Layer<'_>, src: &[u8], int8: bool, target: &Target) -> (LayerChoice, Option<(Sparse, spmm::Schedule)>) {
    let (m, size) = (layer.matrix, if int8 { 1 } else { 4 });
    let zeros = src.chunks_exact(size).filter(|e| e.iter().all(|b| *b == 0)).count() as f64 * size as f64 / src.len() as f64;
    let mut choice = LayerChoice { int8, sparse: 0, macs: (m.k * m.n, m.k * m.n), zeros, sparse_cost: f64::INFINITY };
    // Quads of bytes multiply four columns at once; floats can also go one by one.
    let heights: &[u16] = if int8 { &[4] } else { &[4, 1] };
    let mut best = None;
    // Blocks of zeros cannot be more than zeros.
    for height in heights.iter().filter(|_| zeros > 0.25) {
        let s = spmm::Schedule::choose(target.lanes(), *height, int8, layer.turned);
        let rows =
            layer.m.as_const().filter(|m| *m > 0).map_or(1.0, |m| m as f64 / (((m + s.rows() - 1) / s.rows()) * s.rows()) as f64);
        let [quad, stride] = [s.quad(), s.rows()].map(|v| v as usize);
        let sparse = Sparse::new(src, size, m, (*height).into(), quad, stride);
        let cost = cost::sparse(m, sparse.macs(), s, rows) / cost::dense(m);
        if cost < choice.sparse_cost {
            choice.sparse_cost = cost;
            best = Some((sparse, s));
        }
    }
    let best = best.filter(|_| choice.sparse_cost < 1.0);
    if let Some((s, _)) = best {
        (choice.sparse, choice.macs.0) = (s.height, s.macs());
    }
    (choice, best)
}

/// The kernel of a product by a constant weight, of bytes or with zeros; `None` where no template fits.
pub(crate) fn product_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let root = r.roots()[0];
    if r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    let layer = Layer::find(r, node)?;
    let int8 = match (r.ty(layer.a.view.base).dtype, r.ty(layer.b.view.base).dtype, r.ty(anchor).dtype) {
        (DType::U8, DType::I8, DType::I32) => true,
        (DType::F32, DType::F32, DType::F32) => false,
        _ => return None,
    };
    let (choice, sparse) = choose(&layer, r.consts.get(layer.id)?.bytes(), int8, target);
    r.layer.set(Some(choice));
    if sparse.is_none() && (!int8 || layer.turned) {
        return None;
    }
    let n = Dim::from(layer.matrix.n);
    let s = matmul::Schedule::choose(target.lanes(), &n);
    let (name, extent) = match &sparse {
        Some((_, s)) => (s.to_string(), s.extent(&layer.m, &n)),
        None => (matmul_int8::name(s), matmul_int8::extent(s, &layer.m, &n)),
    };
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let a = e.buffer(&mut kb, layer.a.view.base)?;
    let (columns, k) = (layer.matrix.n as i64, layer.matrix.k as i64);
    let ty = r.ty(root).clone();
    let mut stuck = None;
    let mut row = |kb: &mut KernelBuilder, m: Reg| layer.row(kb, m);
    let macs = match sparse {
        Some((sparse, s)) => {
            let mut part =
                |part: SparsePart, dtype: DType| e.packed(&mut kb, dtype, layer.id, Packing::Sparse(Sparse { part, ..sparse }));
            let values = if int8 { DType::I8 } else { DType::F32 };
            let p = spmm::Problem {
                m: &layer.m,
                n: columns,
                k,
                a,
                starts: part(SparsePart::Starts, DType::I32),
                offsets: part(SparsePart::Offsets, DType::I32),
                values: part(SparsePart::Values, values),
            };
            let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
            spmm::build(&mut kb, &p, s, &mut row, &mut |kb, m, n, x, count| {
                let index = layer.index(kb, m, n);
                stuck = products::finish(&mut e, kb, (anchor, root), out, &ty, &index, x, count).err().or(stuck);
            });
            &layer.m * &Dim::from(sparse.macs())
        }
        None => {
            let packing = Packing::Quads { matrix: layer.matrix, width: usize::try_from(s.tile.width()).ok()? };
            let b = e.constant(&mut kb, layer.b.view.base, layer.id, packing);
            let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
            let p = matmul_int8::Problem { m: &layer.m, n: columns, k, a, b };
            matmul_int8::build(&mut kb, &p, s, &mut row, &mut |kb, m, n, x, count| {
                let index = layer.index(kb, m, n);
                stuck = products::finish(&mut e, kb, (anchor, root), out, &ty, &index, x, count).err().or(stuck);
            });
            layer.macs()
        }
    };
    if stuck.is_some() {
        return None;
    }
    let rate = if int8 { INT8_MACS_PER_NS } else { F32_MACS_PER_NS };
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&rate.into()) })
}
