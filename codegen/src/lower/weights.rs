//! Products of an activation by a constant weight whose codes or zeros have kernels of their own.

use transc_ir::Value;
use transc_ir::loops::{Access, KernelBuilder, Reg, Ty};
use transc_ir::op::{Contract, Op};
use transc_ir::scalar::Body;
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Axis, merged};
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::Elements;
use super::index::Index;
use super::layout::{self, elements_behind};
use super::nest::results;
use super::products::{self, Operand, Roles, roles};
use super::region::Region;
use super::strided::{in_blocks, whole};
use super::table;
use crate::Target;
use crate::codes::{Codes, CodesPart};
use crate::panels::Panels;
use crate::program::{LayerChoice, Matrix, Packing};
use crate::sparse::{Block, NonZero, Sparse, SparsePart, share_of_zeros};
use crate::template::bytes::{Coding, Waiting};
use crate::template::groups::Group;
use crate::template::lies::Lies;
use crate::template::matmul::{Lhs, MatmulProblem, Weight};
use crate::template::{matmul_amx, matmul_codes, matmul_int8, spmm, tile};

/// Multiply-adds of bytes per nanosecond that one core reaches about.
const INT8_MACS_PER_NS: i64 = 160;
/// The same of floats.
const F32_MACS_PER_NS: i64 = 40;
/// Fewest simple instructions that are worth a look-up of bytes which stand along the columns, and of those that have to be turned for it.
const LOOK_UP: usize = 4;
const TURNED_LOOK_UP: usize = 20;
/// Most of them that may stand once per vector of a tile.
const SHORT: usize = 24;
/// The share of zeros up to which no sparse kernel is faster.
const FEW_ZEROS: f64 = 0.25;

/// A contraction of an activation by one matrix of weights.
struct Layer<'a> {
    contract: &'a Contract,
    /// The activation, contiguous along the sums or, if it lies turned, along the rows.
    a: Operand,
    roles: Roles,
    matrix: Matrix,
    id: transc_ir::ConstId,
    /// Element type of the weight.
    dtype: DType,
    rows: Vec<Dim>,
    m: Dim,
    /// How the activation lies, and the result.
    from: Lies,
    to: Lies,
}

/// The axes that have neighbours: others may have any stride.
fn long_axes(o: &Operand, labels: &[u8]) -> Vec<Axis> {
    o.axes(labels).into_iter().filter(|a| !a.extent.is(1)).collect()
}

/// How an operand of rows and columns lies; `None` if its blocks are not those of the rows.
fn lies(o: &Operand, rows: &[u8], columns: &[u8]) -> Option<Lies> {
    let (row_axes, column_axes) = (long_axes(o, rows), long_axes(o, columns));
    if let Some(b) = o.view.blocks {
        return (rows.last() == Some(&o.labels[b.axis]) && merged(&row_axes).is_some()).then_some(Lies::Blocks);
    }
    let beside = |axes: &[Axis]| axes.is_empty() || merged(axes).is_some_and(|s| s.is(1));
    Some(if beside(&row_axes) && !beside(&column_axes) { Lies::Turned } else { Lies::Rows })
}

impl<'a> Layer<'a> {
    fn find(r: &Region, node: &'a Node) -> Option<Self> {
        let Op::Contract(c) = &node.op else { return None };
        let operand = |i: usize, labels: &[u8]| {
            let v = r.body.unrounded(node.operands[i]);
            Some(Operand { labels: labels.to_vec(), view: in_blocks(r, v)?, dims: r.ty(v).dims.clone() })
        };
        let (mut a, mut b) = (operand(0, &c.lhs)?, operand(1, &c.rhs)?);
        let is_const = |o: &Operand| r.body.constant(o.view.base).is_some();
        if is_const(&a) {
            std::mem::swap(&mut a, &mut b);
        }
        let roles = roles(c, &a.labels, &b.labels);
        let id = r.body.constant(b.view.base)?;
        let [column] = roles.columns.as_slice() else { return None };
        if roles.inner.is_empty() || !roles.batch.is_empty() || !b.view.offset.is(0) {
            return None;
        }
        let (a_k, b_k) = (a.axes(&roles.inner), b.axes(&roles.inner));
        let from = lies(&a, &roles.rows, &roles.inner)?;
        let merged_k = merged(&a_k)?;
        let root = r.roots()[0];
        let out = Operand { labels: c.out.clone(), view: whole(r, root), dims: r.ty(root).dims.clone() };
        let to = lies(&out, &roles.rows, &[*column])?;
        let last = c.out.last() == Some(column);
        let rows_as_one = roles.rows.len() == 1 || last && elements_behind(r, Some(node.results[0])).is_some();
        if !from.turned() && !merged_k.is(1) || !to.turned() && !last || to.turned() && !rows_as_one {
            return None;
        }
        let column = b.axes(&roles.columns)[0].clone();
        let matrix = Matrix {
            k: b_k.iter().try_fold(1, |n, a| Some(n * a.extent.as_usize()?))?,
            n: column.extent.as_usize()?,
            k_stride: merged(&b_k)?.as_usize()?,
            n_stride: column.stride.as_usize()?,
        };
        let rows: Vec<Dim> = a.axes(&roles.rows).into_iter().map(|a| a.extent).collect();
        let m = rows.iter().product();
        let dtype = r.ty(b.view.base).dtype;
        Some(Self { contract: c, a, roles, matrix, id, dtype, rows, m, from, to })
    }

    /// The offset of a row of the activation, or if that lies turned of what is multiplied by row `m` of the weight.
    fn row(&self, kb: &mut KernelBuilder, m: Reg) -> Reg {
        let axes = self.a.axes(if self.from.turned() { &self.roles.inner } else { &self.roles.rows });
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

    /// The index of element `[m, n]` of the result; a vector along the columns, or with `by_rows` along the rows. The rows then count as one axis: all that
    /// is read there lies as the result does, or is the same for all rows.
    fn index(&self, kb: &mut KernelBuilder, m: Reg, n: Reg, by_rows: bool) -> Vec<Index> {
        let at = if by_rows { Vec::new() } else { tile::unflatten(kb, m, &self.rows) };
        let zero = kb.index(0);
        let row = |l: &u8| {
            let i = self.roles.rows.iter().position(|r| r == l)?;
            Some(match (by_rows, i + 1 == self.rows.len()) {
                (false, _) => Index::scalar(at[i]),
                (true, true) => Index::vector(m),
                (true, false) => Index::scalar(zero),
            })
        };
        let column = if by_rows { Index::scalar(n) } else { Index::vector(n) };
        self.contract.out.iter().map(|l| row(l).unwrap_or(column)).collect()
    }

    fn problem(&self) -> MatmulProblem {
        MatmulProblem { batch: Vec::new(), m: self.m.clone(), n: Dim::from(self.matrix.n), k: Dim::from(self.matrix.k) }
    }

    fn is_int8(&self) -> bool {
        self.dtype == DType::I8
    }

    fn macs(&self) -> Dim {
        &self.m * &Dim::from(self.matrix.k * self.matrix.n)
    }
}

/// The kernel of a dense product of bytes.
#[derive(Clone, Copy)]
enum Dense {
    Vectors(matmul_int8::Schedule),
    Matrices(matmul_amx::Schedule),
}

impl Dense {
    fn choose(target: &Target, n: i64, k: i64) -> Dense {
        if target.has_matrices() {
            return Dense::Matrices(matmul_amx::Schedule::choose(Group::Bytes, &n.into(), &k.into()));
        }
        Dense::Vectors(matmul_int8::Schedule::choose(target.lanes(), target.has_byte_dot(), n, k))
    }

    /// Rows and columns whose results are complete at once.
    fn blocks(self) -> (i64, i64) {
        match self {
            Dense::Vectors(s) => (s.chunk, s.tile.width()),
            Dense::Matrices(s) => (s.chunk, s.tile.width()),
        }
    }

    /// Element type and layout of the weight.
    fn packing(self, matrix: Matrix) -> Option<(DType, Packing)> {
        let (group, depth) = match self {
            Dense::Vectors(s) => (s.group(), s.group().size()),
            Dense::Matrices(s) => (Group::Bytes, s.depth()),
        };
        let (_, width) = self.blocks();
        let size = |n: i64| usize::try_from(n).ok();
        let panels = Panels::of(matrix, size(width)?, size(group.size())?, size(depth)?);
        let [_, dtype] = group.dtypes();
        Some((dtype, Packing::Panels(Panels { words: group == Group::Words, ..panels })))
    }
}

/// Cost of a product per row of the activation, in multiply-adds of the dense kernel of vectors for the same element type.
mod cost {
    use transc_ir::types::DType;

    use crate::Target;
    use crate::program::Matrix;
    use crate::template::groups::Group;
    use crate::template::spmm::Schedule;

    /// What turning an element of the activation costs, and an element of the result.
    const TURN: [usize; 2] = [10, 40];
    /// The share of that which is left out where they lie turned: they are copied or stored still.
    const SAVED: f64 = 0.8;

    /// How many times faster a product of bytes on matrix registers is than one of vectors: their instruction eight times, reading weights and
    /// finishing results not. And one of `bf16` than sparse ones, which are of `f32` there.
    const MATRICES: [f64; 2] = [3.0, 6.0];

    pub(super) fn dense(m: Matrix, dtype: DType, target: &Target) -> f64 {
        let faster = match dtype {
            DType::I8 if target.has_matrices() => MATRICES[0],
            DType::Bf16 if target.has_matrices() => MATRICES[1],
            _ => 1.0,
        };
        (m.k * m.n) as f64 / faster
    }

    /// `macs` of a sparse kernel; `fill` is the share of a tile's rows that exist.
    pub(super) fn sparse(m: Matrix, macs: usize, s: Schedule, fill: f64) -> f64 {
        // Blocks of one column load as much as they multiply; groups of rows that are no neighbours are unpacked first.
        let slow = match (s.block.columns, s.whole_groups(), s.group) {
            (1, true, _) => 1.5,
            (1, false, Some(Group::Bytes)) => 3.2,
            (1, false, _) => 1.7,
            // Four vectors of unpacked bytes and their sums want more than 16 registers.
            (_, false, Some(Group::Bytes)) if s.lanes < 16 => 2.3,
            (_, false, Some(_)) => 1.4,
            _ => 1.2,
        };
        let lie_so = [s.from, s.to];
        let turns: f64 =
            turns(m, s).iter().zip(lie_so).map(|(cost, lies)| cost * if lies.turned() { 1.0 - SAVED } else { 1.0 }).sum();
        (macs as f64 * slow + turns) / fill
    }

    /// What it costs to turn the activation, and the result.
    fn turns(m: Matrix, s: Schedule) -> [f64; 2] {
        let element = if s.is_int() { 1.0 } else { 0.25 };
        [element * (TURN[0] * m.k) as f64, element * (TURN[1] * m.n) as f64]
    }

    /// What is saved per row of the activation if that lies turned, and if the result does.
    pub(super) fn saved(m: Matrix, s: Schedule) -> [f64; 2] {
        turns(m, s).map(|cost| cost * SAVED)
    }
}

/// The blocks that kernels have for weights of an element type, and what an instruction sums for them.
fn candidates(dtype: DType, target: &Target) -> (Vec<Block>, Option<Group>) {
    let group = match dtype {
        DType::I8 if target.has_byte_dot() => Some(Group::Bytes),
        DType::I8 => Some(Group::Words),
        DType::Bf16 if target.multiplies_bf16() && !target.has_matrices() => Some(Group::Bf16),
        _ => None,
    };
    let rows = group.map_or(1, Group::size) as u16;
    let mut all: Vec<Block> = [(4, 1), (4, rows), (1, rows), (1, 1)].map(|(columns, rows)| Block { columns, rows }).into();
    all.dedup();
    (all, group)
}

/// Chooses the kernel of a layer: the sparse one where it is faster.
fn choose(layer: &Layer<'_>, src: &[u8], target: &Target) -> (LayerChoice, Option<(Sparse, spmm::Schedule)>) {
    let (m, dtype) = (layer.matrix, layer.dtype);
    let size = dtype.size_bytes();
    let macs = (m.k * m.n, m.k * m.n);
    let dense = |zeros: f64| LayerChoice { dtype, bits: 8 * size, sparse: None, macs, zeros, sparse_cost: f64::INFINITY };
    // Blocks of zeros cannot be more than zeros.
    if let Some(zeros) = share_of_zeros(src, dtype, m).filter(|zeros| *zeros <= FEW_ZEROS) {
        return (dense(zeros), None);
    }
    let nonzero = NonZero::of(src, dtype, m);
    let mut choice = dense(nonzero.zeros());
    let mut best = None;
    let (blocks, group) = candidates(dtype, target);
    for block in blocks.into_iter().filter(|_| choice.zeros > FEW_ZEROS) {
        let Layer { from, to, .. } = *layer;
        let s = spmm::Schedule { lanes: target.lanes(), block, group, from, to };
        let rows =
            layer.m.as_const().filter(|m| *m > 0).map_or(1.0, |m| m as f64 / (((m + s.rows() - 1) / s.rows()) * s.rows()) as f64);
        let sparse = Sparse::new(&nonzero, dtype, m, s);
        let cost = cost::sparse(m, sparse.macs(), s, rows) / cost::dense(m, dtype, target);
        if cost < choice.sparse_cost {
            choice.sparse_cost = cost;
            best = Some((sparse, s));
        }
    }
    let best = best.filter(|_| choice.sparse_cost < 1.0);
    if let Some((s, _)) = best {
        (choice.sparse, choice.macs.0) = (Some(s.block), s.macs());
    }
    (choice, best)
}

/// The layer of a region; `None` where no template fits.
fn layer_of<'a>(r: &Region, anchor: Value, node: &'a Node) -> Option<Layer<'a>> {
    if r.ty(r.roots()[0]).dims != r.ty(anchor).dims {
        return None;
    }
    let layer = Layer::find(r, node)?;
    let types = (r.ty(layer.a.view.base).dtype, layer.dtype, r.ty(anchor).dtype);
    let fits = match types {
        (DType::U8, DType::I8, DType::I32) | (DType::F32, DType::F32, DType::F32) => true,
        (DType::F32 | DType::Bf16, DType::Bf16, DType::F32) => node.operands.iter().all(|v| r.ty(*v).dtype == DType::Bf16),
        _ => false,
    };
    fits.then_some(layer)
}

/// Nanoseconds per token that a sparse product saves if its activation lies turned, and if its result does; `None` for another region.
pub(super) fn saved_by_turning(r: &Region, target: &Target) -> Option<[f64; 2]> {
    let anchor = r.anchor?;
    let layer = layer_of(r, anchor, r.body.def_node(anchor)?)?;
    let (_, sparse) = choose(&layer, r.consts.get(layer.id)?.bytes(), target);
    let rate = if layer.is_int8() { INT8_MACS_PER_NS } else { F32_MACS_PER_NS } as f64;
    Some(cost::saved(layer.matrix, sparse?.1).map(|saved| saved / rate))
}

/// True if an operand of a product may lie turned.
pub(super) fn takes_turned(r: &Region, operand: usize) -> bool {
    let rank = r.body.params().get(operand).map_or(0, |(_, v)| r.ty(*v).rank());
    let mut turned = r.clone();
    turned.orders[0].insert(operand, layout::turned(rank, None));
    let layer = r.anchor.and_then(|v| Layer::find(&turned, turned.body.def_node(v)?));
    layer.is_some_and(|l| l.from.turned())
}

/// True if the region is a product by a constant weight, as its values lie.
pub(super) fn finds_layer(r: &Region) -> bool {
    r.anchor.and_then(|v| Layer::find(r, r.body.def_node(v)?)).is_some()
}

/// True if what follows makes bytes of the sums of a column each, and the target's kernels of bytes take them.
fn becomes_bytes(r: &Region, anchor: Value, layer: &Layer<'_>, target: &Target) -> bool {
    let bytes = matches!(r.ty(r.roots()[0]).dtype, DType::U8 | DType::I8);
    let last = layer.contract.out.last() == layer.roles.columns.last();
    bytes
        && last
        && target.has_byte_dot()
        && target.lanes() == 16
        && elements_behind(r, Some(anchor)).is_some_and(|e| e.is_empty())
}

/// Instructions of the maps behind an anchor.
fn epilogue_cost(r: &Region, anchor: Value) -> usize {
    let maps = r
        .body
        .nodes()
        .filter(|(_, n)| n.results[0] > anchor)
        .filter_map(|(_, n)| if let Op::Map(m) = &n.op { Some(m) } else { None });
    maps.map(|m| table::cost(&m.body.insts)).sum()
}

/// How a layer is computed.
struct Plan {
    choice: LayerChoice,
    /// Where the sparse kernel is faster.
    sparse: Option<(Sparse, spmm::Schedule)>,
    /// What is coded and how, where the sums of the sparse kernel become bytes that depend on the column alone.
    coding: Option<(Body, Coding)>,
    /// Of these bytes, a table gives the result.
    looks_up: bool,
}

/// The kernel of a product by a constant weight, of bytes or with zeros; `None` where no template fits.
pub(crate) fn product_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let layer = layer_of(r, anchor, node)?;
    let (choice, sparse) = choose(&layer, r.consts.get(layer.id)?.bytes(), target);
    r.layer.set(Some(choice));
    let bytes = layer.is_int8() && becomes_bytes(r, anchor, &layer, target);
    let least = if sparse.is_some() { LOOK_UP } else { TURNED_LOOK_UP };
    let split = (bytes && target.looks_up_bytes()).then(|| table::split(r, anchor, layer.matrix.n, least)).flatten();
    // Sparse kernels look up what they have coded themselves.
    let codes = |r: &Region| if bytes && sparse.is_some() { table::coded(r) } else { None };
    let of_split = split.as_ref().and_then(|s| codes(&s.region));
    let split = split.filter(|_| sparse.is_none() || of_split.is_some());
    let coding = of_split.or_else(|| codes(r));
    let plan = Plan { choice, sparse, coding, looks_up: split.is_some() };
    let Some(split) = split else { return kernel_of(r, anchor, &layer, plan, target) };
    let node = split.region.body.def_node(split.anchor)?;
    let layer = layer_of(&split.region, split.anchor, node)?;
    let lowered = kernel_of(&split.region, split.anchor, &layer, plan, target);
    r.table.replace(Some(split.table));
    lowered
}

/// The kernel of a plan.
fn kernel_of(r: &Region, anchor: Value, layer: &Layer<'_>, plan: Plan, target: &Target) -> Option<Lowered> {
    let Plan { choice, sparse, coding, looks_up } = plan;
    let (root, int8) = (r.roots()[0], layer.is_int8());
    let turned = layer.from.turned() || layer.to.turned();
    if sparse.is_none() && layer.dtype == DType::F32 && !turned {
        return coded(r, (anchor, root), layer, choice, target);
    }
    if sparse.is_none() && (!int8 || turned) {
        return None;
    }
    let n = Dim::from(layer.matrix.n);
    let (columns, k) = (layer.matrix.n as i64, layer.matrix.k as i64);
    let dense = Dense::choose(target, columns, k);
    let (name, extent) = match (&sparse, dense) {
        (Some((_, s)), _) => (s.to_string(), s.extent(&layer.m, &n)),
        (None, Dense::Vectors(s)) => (s.to_string(), s.extent(&layer.m, &n)),
        (None, Dense::Matrices(s)) => (s.to_string(), s.extent(&layer.problem())),
    };
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let a = e.buffer(&mut kb, layer.a.view.base)?;
    let mut stuck = None;
    let mut row = |kb: &mut KernelBuilder, m: Reg| layer.row(kb, m);
    let macs = match sparse {
        Some((sparse, s)) => {
            let mut part =
                |part: SparsePart, dtype: DType| e.packed(&mut kb, dtype, layer.id, Packing::Sparse(Sparse { part, ..sparse }));
            let [starts, offsets] = [SparsePart::Starts, SparsePart::Offsets].map(|p| part(p, DType::I32));
            let values = part(SparsePart::Values, s.values());
            let table = looks_up.then(|| e.table(&mut kb));
            let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
            let touched = products::touched(r, anchor, &mut kb, &mut e, out);
            let short = epilogue_cost(r, anchor) <= SHORT;
            let rounded = layer.dtype == DType::Bf16;
            let a_stride = merged(&long_axes(&layer.a, &layer.roles.rows)).unwrap_or(1.into());
            let p = spmm::Problem { m: &layer.m, n: columns, k, a, a_stride, rounded, starts, offsets, values, touched, short };
            if let Some((body, coding)) = coding {
                let mut real = |kb: &mut KernelBuilder, m: Reg, n: Reg, x: Reg| {
                    let index = layer.index(kb, m, n, true);
                    e.behind_as(kb, (anchor, x), &body, &index).unwrap_or_else(|s| {
                        stuck = Some(s);
                        kb.num(Ty::vector(DType::F32, kb.ty(x).lanes), 0.0)
                    })
                };
                spmm::build(&mut kb, &p, s, &mut row, spmm::Finish::Bytes(spmm::Bytes { real: &mut real, coding, table, out }));
            } else {
                let mut each = |kb: &mut KernelBuilder, m: Reg, n: Reg, x: Reg, count: Option<Reg>| {
                    let index = layer.index(kb, m, n, layer.to.turned());
                    stuck = products::finish(&mut e, kb, (anchor, root), out, &index, x, count).err().or(stuck);
                };
                spmm::build(&mut kb, &p, s, &mut row, spmm::Finish::Each(&mut each));
            }
            &layer.m * &Dim::from(sparse.macs())
        }
        None => {
            let (dtype, packing) = dense.packing(layer.matrix)?;
            let b = e.packed(&mut kb, dtype, layer.id, packing);
            let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
            let touched = products::touched(r, anchor, &mut kb, &mut e, out);
            let waiting = looks_up.then(|| {
                let table = e.table(&mut kb);
                Waiting::new(&mut kb, (table, out), columns, dense.blocks())
            });
            let mut finish = |kb: &mut KernelBuilder, m: Reg, n: Reg, x: Reg, count: Option<Reg>| {
                let index = layer.index(kb, m, n, false);
                let done = match &waiting {
                    Some(w) => e.behind(kb, (anchor, x), &index, count).map(|y| w.put(kb, (m, n), y)),
                    None => products::finish(&mut e, kb, (anchor, root), out, &index, x, count),
                };
                stuck = done.err().or(stuck);
            };
            match dense {
                Dense::Vectors(s) => {
                    let p = matmul_int8::Problem { m: &layer.m, n: columns, k, a, b, touched };
                    matmul_int8::build(&mut kb, &p, s, &mut row, &mut finish, waiting.as_ref());
                }
                Dense::Matrices(s) => {
                    let mut row = |kb: &mut KernelBuilder, _: &[Reg], m: Reg| layer.row(kb, m);
                    let mut lhs = Lhs { buf: a, row: &mut row, k_stride: Dim::from(1) };
                    let b = Weight { buf: b, batched: false, touched };
                    let mut finish = |kb: &mut KernelBuilder, _: &[Reg], m: Reg, n: Reg, x: Reg, count: Option<Reg>| {
                        finish(kb, m, n, x, count)
                    };
                    matmul_amx::build(&mut kb, &layer.problem(), s, &mut lhs, &b, &mut finish, waiting.as_ref());
                }
            }
            layer.macs()
        }
    };
    if stuck.is_some() {
        return None;
    }
    let rate = match (int8, dense) {
        (true, Dense::Matrices(s)) if choice.sparse.is_none() => s.macs_per_ns(),
        (true, _) => INT8_MACS_PER_NS,
        (false, _) => F32_MACS_PER_NS,
    };
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&rate.into()) })
}

/// The kernel of a product by a weight of `f32` that is made of few bits; `None` for another one.
fn coded(r: &Region, (anchor, root): (Value, Value), layer: &Layer<'_>, choice: LayerChoice, target: &Target) -> Option<Lowered> {
    let n = Dim::from(layer.matrix.n);
    let s = matmul_codes::schedule(target.lanes(), &n);
    let layout = Codes::find(r.consts.get(layer.id)?.bytes(), layer.matrix, usize::try_from(s.tile.width()).ok()?)?;
    let p = layer.problem();
    let mut kb = KernelBuilder::new(&matmul_codes::name(s, &layout), r.symbols.clone(), s.extent(&p));
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let a = e.buffer(&mut kb, layer.a.view.base)?;
    let mut part = |part: CodesPart, dtype: DType| e.packed(&mut kb, dtype, layer.id, Packing::Codes(Codes { part, ..layout }));
    let (codes, scales) = (part(CodesPart::Codes, DType::U8), part(CodesPart::Scales, DType::F32));
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let mut stuck = None;
    let mut row = |kb: &mut KernelBuilder, _: &[Reg], m: Reg| layer.row(kb, m);
    let mut lhs = Lhs { buf: a, row: &mut row, k_stride: Dim::from(1) };
    let weight = matmul_codes::Weight { layout, codes, scales };
    matmul_codes::build(&mut kb, &p, s, &mut lhs, weight, &mut |kb, _, m, n, x, count| {
        let index = layer.index(kb, m, n, false);
        stuck = products::finish(&mut e, kb, (anchor, root), out, &index, x, count).err().or(stuck);
    });
    if stuck.is_some() {
        return None;
    }
    r.layer.set(Some(LayerChoice { bits: layout.bits, ..choice }));
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: layer.macs().floor_div(&F32_MACS_PER_NS.into()) })
}
