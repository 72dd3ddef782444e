//! Element functions: the code that computes one element (or one vector of neighbours) of a value of a region.

use std::collections::HashMap;

use transc_ir::Value;
use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Status, Ty};
use transc_ir::op::{Op, PadMode};
use transc_ir::scalar::{BinOp, Body, Inst as Scalar, Literal, Ref, UnOp};
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Axis, Strided as View};
use transc_ir::types::{DType, Dim};

use super::index::{Index, through_reshape};
use super::region::{Region, is_anchor};
use super::{Source, anchor};
use crate::program::Packing;
use crate::template::tile;

/// Why an element cannot be computed this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// The lanes of a vector need different code; one lane at a time works.
    Vector,
    /// The op has no element function.
    Op(Value),
}

type Result<T> = std::result::Result<T, Stuck>;

/// Builds element functions of one region into one kernel.
pub(crate) struct Elements<'r> {
    /// The region.
    pub(crate) region: &'r Region,
    /// Buffers of parameters and constants, in the order in which the kernel got them.
    pub(crate) args: Vec<Source>,
    bufs: HashMap<Value, Buf>,
    /// A value that is already in a register.
    bound: Option<(Value, Reg)>,
    /// Lanes of a vector on the target.
    pub(crate) width: u16,
    memo: Vec<(Value, Vec<Index>, u16, Reg)>,
}

/// See [`Elements::snapshot`].
pub(crate) struct Snapshot {
    kb: KernelBuilder,
    args: Vec<Source>,
    bufs: HashMap<Value, Buf>,
    memo: usize,
}

/// How many lanes are computed, and how many of them count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    /// Lanes of the result.
    pub(crate) n: u16,
    /// Active lanes; all if none.
    pub(crate) count: Option<Reg>,
}

impl Lanes {
    /// One lane.
    pub(crate) const ONE: Lanes = Lanes { n: 1, count: None };
}

impl<'r> Elements<'r> {
    /// Declares a buffer for every parameter that the body uses.
    pub(crate) fn new(kb: &mut KernelBuilder, region: &'r Region, width: u16) -> Self {
        let mut e = Self { region, args: Vec::new(), bufs: HashMap::new(), bound: None, width, memo: Vec::new() };
        let uses = region.body.use_counts();
        for (i, (_, v)) in region.body.params().iter().enumerate() {
            if uses[v.index()] > 0 {
                let buf = kb.param(&format!("x{i}"), region.ty(*v).dtype, transc_ir::loops::Access::Read);
                e.bufs.insert(*v, buf);
                e.args.push(Source::Operand(i));
            }
        }
        e
    }

    /// How much is remembered now; see [`Elements::release`].
    pub(crate) fn mark(&self) -> usize {
        self.memo.len()
    }

    /// Forgets registers of a block that has ended: all that came since the mark.
    pub(crate) fn release(&mut self, mark: usize) {
        self.memo.truncate(mark);
    }

    /// The state to return to when an attempt fails.
    pub(crate) fn snapshot(&self, kb: &KernelBuilder) -> Snapshot {
        Snapshot { kb: kb.clone(), args: self.args.clone(), bufs: self.bufs.clone(), memo: self.memo.len() }
    }

    /// Returns to a snapshot: nothing of the attempt stays.
    pub(crate) fn restore(&mut self, kb: &mut KernelBuilder, s: Snapshot) {
        *kb = s.kb;
        self.args = s.args;
        self.bufs = s.bufs;
        self.memo.truncate(s.memo);
    }

    /// The buffer of a parameter, or of a constant in the model's own layout.
    pub(crate) fn buffer(&mut self, kb: &mut KernelBuilder, v: Value) -> Option<Buf> {
        if let Some(b) = self.bufs.get(&v) {
            return Some(*b);
        }
        let Some(Node { op: Op::Constant(c), .. }) = self.region.body.def_node(v) else { return None };
        let buf = self.constant(kb, v, c.id, Packing::Raw);
        self.bufs.insert(v, buf);
        Some(buf)
    }

    /// A parameter for a constant in a layout.
    pub(crate) fn constant(&mut self, kb: &mut KernelBuilder, v: Value, id: transc_ir::ConstId, packing: Packing) -> Buf {
        self.packed(kb, self.region.ty(v).dtype, id, packing)
    }

    /// A parameter for a constant in a layout whose elements are of another type than its own.
    pub(crate) fn packed(&mut self, kb: &mut KernelBuilder, dtype: DType, id: transc_ir::ConstId, packing: Packing) -> Buf {
        self.args.push(Source::Const(id, packing));
        kb.param(&format!("c{}", self.args.len()), dtype, transc_ir::loops::Access::Read)
    }

    /// A parameter for the table of the region.
    pub(crate) fn table(&mut self, kb: &mut KernelBuilder) -> Buf {
        self.args.push(Source::Table);
        kb.param("table", DType::U8, transc_ir::loops::Access::Read)
    }

    /// The element of `v` at `idx`.
    pub(crate) fn at(&mut self, kb: &mut KernelBuilder, v: Value, idx: &[Index], lanes: Lanes) -> Result<Reg> {
        if let Some((bound, reg)) = self.bound
            && bound == v
        {
            return Ok(reg);
        }
        if let Some((.., r)) = self.memo.iter().find(|(w, i, n, _)| *w == v && i == idx && *n == lanes.n) {
            return Ok(*r);
        }
        let r = match self.region.body.def_node(v) {
            None => self.load(kb, v, &self.region.view(v), idx, lanes)?,
            Some(node) => self.node(kb, v, &node.clone(), idx, lanes)?,
        };
        self.memo.push((v, idx.to_vec(), lanes.n, r));
        Ok(r)
    }

    /// What follows an anchor, at an index of the region's result, where that of the anchor is `x`.
    pub(crate) fn behind(
        &mut self,
        kb: &mut KernelBuilder,
        (anchor, x): (Value, Reg),
        idx: &[Index],
        count: Option<Reg>,
    ) -> Result<Reg> {
        let root = self.region.roots()[0];
        let lanes = Lanes { n: kb.ty(x).lanes, count };
        self.bind((anchor, x), |e| e.at(kb, root, idx, lanes))
    }

    /// The same where the region's result is a map, with another body in its place.
    pub(crate) fn behind_as(
        &mut self,
        kb: &mut KernelBuilder,
        (anchor, x): (Value, Reg),
        body: &Body,
        idx: &[Index],
    ) -> Result<Reg> {
        let root = self.region.roots()[0];
        let Some(node) = self.region.body.def_node(root) else { return Err(Stuck::Op(root)) };
        let lanes = Lanes { n: kb.ty(x).lanes, count: None };
        self.bind((anchor, x), |e| e.map(kb, root, body, &node.operands, idx, lanes))
    }

    /// Computes something of an anchor that is in a register.
    fn bind(&mut self, anchor: (Value, Reg), f: impl FnOnce(&mut Self) -> Result<Reg>) -> Result<Reg> {
        self.bound = Some(anchor);
        let mark = self.mark();
        let y = f(self);
        self.release(mark);
        self.bound = None;
        y
    }

    /// The element of an integer value at indices that all lanes share, as an index.
    fn index_at(&mut self, kb: &mut KernelBuilder, v: Value, idx: &[Index]) -> Result<Reg> {
        if idx.iter().any(|i| i.step != 0) {
            return Err(Stuck::Vector);
        }
        let r = self.at(kb, v, idx, Lanes::ONE)?;
        Ok(kb.cast(DType::I64, r))
    }

    /// The element of what lies in memory so.
    fn load(&mut self, kb: &mut KernelBuilder, v: Value, view: &View, idx: &[Index], lanes: Lanes) -> Result<Reg> {
        let buf = self.buffer(kb, v).ok_or(Stuck::Op(v))?;
        let (at, step) = place(kb, view, idx)?;
        Ok(load_lanes(kb, buf, at, &step, lanes))
    }

    fn node(&mut self, kb: &mut KernelBuilder, v: Value, node: &Node, idx: &[Index], lanes: Lanes) -> Result<Reg> {
        let ty = self.region.ty(v).clone();
        let operand = |i: usize| node.operands[i];
        match &node.op {
            Op::Constant(c) => {
                let data = self.region.consts.get(c.id).ok_or(Stuck::Op(v))?;
                if data.bytes().len() == ty.dtype.size_bytes() {
                    let bits = data.bytes().iter().rev().fold(0u64, |a, b| a << 8 | u64::from(*b));
                    let r = kb.lit(Literal { dtype: ty.dtype, bits });
                    return Ok(kb.splat(lanes.n, r));
                }
                self.load(kb, v, &View::contiguous(&ty.dims), idx, lanes)
            }
            Op::Dims(d) => {
                if idx[0].step != 0 {
                    return Err(Stuck::Vector);
                }
                let mut r = kb.dim(&d.values[0]);
                for (i, value) in d.values.iter().enumerate().skip(1) {
                    let (i, value) = (kb.index(i as i64), kb.dim(value));
                    let here = kb.bin(BinOp::Eq, idx[0].reg, i);
                    r = kb.select(here, value, r);
                }
                Ok(kb.splat(lanes.n, r))
            }
            Op::Iota(i) => {
                let x = idx[i.axis];
                let base = kb.splat(lanes.n, x.reg);
                if lanes.n == 1 || x.step == 0 {
                    return Ok(base);
                }
                let ty = Ty::vector(DType::I64, lanes.n);
                let lane = kb.push(Inst::Lanes(ty));
                let step = kb.num(ty, x.step as f64);
                let lane = kb.mul(lane, step);
                Ok(kb.add(base, lane))
            }
            Op::Map(m) => self.map(kb, v, &m.body, &node.operands, idx, lanes),
            Op::Broadcast(_) => {
                let inner = self.broadcast_index(kb, operand(0), idx);
                self.at(kb, operand(0), &inner, lanes)
            }
            // In memory the elements stand in the same order.
            Op::Reshape(_) if self.is_param(operand(0)) && self.region.order(operand(0)).is_none() => {
                self.load(kb, operand(0), &View::contiguous(&ty.dims), idx, lanes)
            }
            Op::Reshape(_) => {
                let from = self.region.ty(operand(0)).dims.clone();
                let inner = through_reshape(kb, &from, &ty.dims, idx, self.width).ok_or(Stuck::Vector)?;
                self.at(kb, operand(0), &inner, lanes)
            }
            Op::Transpose(t) => {
                let mut inner = idx.to_vec();
                for (i, p) in t.perm.iter().enumerate() {
                    inner[*p] = idx[i];
                }
                self.at(kb, operand(0), &inner, lanes)
            }
            Op::Slice(s) => {
                let width = i64::from(self.width);
                let inner: Vec<Index> = (0..idx.len())
                    .map(|a| {
                        let (step, start) = (kb.index(s.steps[a]), kb.dim(&s.starts[a]));
                        let scaled = kb.mul(idx[a].reg, step);
                        let reg = kb.add(start, scaled);
                        let aligned = idx[a].aligned && s.steps[a] == 1 && s.starts[a].as_const().is_some_and(|c| c % width == 0);
                        Index { reg, step: idx[a].step * s.steps[a], aligned }
                    })
                    .collect();
                self.at(kb, operand(0), &inner, lanes)
            }
            Op::Concat(c) => self.concat(kb, c.axis, &node.operands, &ty, idx, lanes),
            Op::Pad(p) => self.pad(kb, p, &node.operands, idx, lanes),
            Op::Gather(g) => {
                let (data, index) = (operand(0), operand(1));
                let n = self.region.ty(index).rank();
                let i = self.index_at(kb, index, &idx[g.axis..g.axis + n])?;
                let extent = self.region.ty(data).dims[g.axis].clone();
                let i = checked_index(kb, i, &extent);
                let mut inner = idx[..g.axis].to_vec();
                inner.push(Index::scalar(i));
                inner.extend_from_slice(&idx[g.axis + n..]);
                self.at(kb, data, &inner, lanes)
            }
            Op::GatherElements(g) => {
                let (data, index) = (operand(0), operand(1));
                let i = self.index_at(kb, index, idx)?;
                let extent = self.region.ty(data).dims[g.axis].clone();
                let mut inner = idx.to_vec();
                inner[g.axis] = Index::scalar(checked_index(kb, i, &extent));
                self.at(kb, data, &inner, lanes)
            }
            Op::GatherNd(g) => {
                let (data, index) = (operand(0), operand(1));
                let lead = self.region.ty(index).rank() - 1;
                let k = self.region.ty(index).dims[lead].as_usize().ok_or(Stuck::Op(v))?;
                let mut inner = idx[..g.batch_dims].to_vec();
                for j in 0..k {
                    let mut at = idx[..lead].to_vec();
                    at.push(Index::scalar(kb.index(j as i64)));
                    let i = self.index_at(kb, index, &at)?;
                    let extent = self.region.ty(data).dims[g.batch_dims + j].clone();
                    inner.push(Index::scalar(checked_index(kb, i, &extent)));
                }
                inner.extend_from_slice(&idx[lead..]);
                self.at(kb, data, &inner, lanes)
            }
            Op::Quantize(q) => self.quantize(kb, q.to, &node.operands, idx, lanes),
            Op::Dequantize(_) => self.dequantize(kb, &node.operands, idx, lanes),
            op if is_anchor(op) => anchor::element(self, kb, v, node, idx, lanes),
            _ => Err(Stuck::Op(v)),
        }
    }

    fn is_param(&self, v: Value) -> bool {
        self.region.body.def_node(v).is_none() && self.bound.is_none_or(|(bound, _)| bound != v)
    }

    /// Index of an operand under NumPy broadcasting: right-aligned, 0 where it has extent 1.
    fn broadcast_index(&self, kb: &mut KernelBuilder, v: Value, idx: &[Index]) -> Vec<Index> {
        let dims = &self.region.ty(v).dims;
        let skip = idx.len() - dims.len();
        dims.iter().zip(&idx[skip..]).map(|(d, i)| if d.is(1) { Index::scalar(kb.index(0)) } else { *i }).collect()
    }

    fn map(
        &mut self,
        kb: &mut KernelBuilder,
        v: Value,
        body: &Body,
        operands: &[Value],
        idx: &[Index],
        lanes: Lanes,
    ) -> Result<Reg> {
        let types: Vec<DType> = operands.iter().map(|o| self.region.ty(*o).dtype).collect();
        let inst_types = body.infer(&types).map_err(|_| Stuck::Op(v))?;
        let mut args = Vec::with_capacity(operands.len());
        for o in operands {
            let inner = self.broadcast_index(kb, *o, idx);
            args.push(self.at(kb, *o, &inner, lanes)?);
        }
        let mut slots: Vec<Reg> = Vec::with_capacity(body.insts.len());
        for (inst, ty) in body.insts.iter().zip(&inst_types) {
            let at = |r: Ref| match r {
                Ref::Arg(i) => args[i as usize],
                Ref::Inst(i) => slots[i as usize],
            };
            let r = match inst {
                Scalar::Const(l) => {
                    let r = kb.lit(*l);
                    kb.splat(lanes.n, r)
                }
                Scalar::Dim(d) => {
                    let r = kb.dim(d);
                    kb.splat(lanes.n, r)
                }
                Scalar::Un(op, a) => kb.un(*op, at(*a)),
                Scalar::Bin(op @ (BinOp::Div | BinOp::Mod | BinOp::Rem), a, b) if !ty.is_float() => {
                    if lanes.n > 1 {
                        return Err(Stuck::Vector);
                    }
                    let (a, b) = (at(*a), at(*b));
                    let zero = kb.lit(Literal::from_i64(*ty, 0));
                    let bad = kb.bin(BinOp::Eq, b, zero);
                    kb.fail_if(bad, Status::DivisionByZero);
                    kb.bin(*op, a, b)
                }
                Scalar::Bin(op, a, b) => kb.bin(*op, at(*a), at(*b)),
                Scalar::Select(c, a, b) => kb.select(at(*c), at(*a), at(*b)),
                Scalar::Cast(d, a) => kb.cast(*d, at(*a)),
            };
            slots.push(r);
        }
        Ok(match body.result {
            Ref::Arg(i) => args[i as usize],
            Ref::Inst(i) => slots[i as usize],
        })
    }

    /// One branch per source, so that no source is read outside its bounds.
    fn concat(
        &mut self,
        kb: &mut KernelBuilder,
        axis: usize,
        operands: &[Value],
        ty: &transc_ir::TensorType,
        idx: &[Index],
        lanes: Lanes,
    ) -> Result<Reg> {
        if idx[axis].step != 0 {
            return Err(Stuck::Vector);
        }
        let zero = kb.lit(Literal::from_i64(ty.dtype, 0));
        let zero = kb.splat(lanes.n, zero);
        let out = kb.var(zero);
        let mut start = Dim::from(0);
        let mut stuck = None;
        for o in operands {
            let end = &start + &self.region.ty(*o).dims[axis];
            let (lo, hi) = (kb.dim(&start), kb.dim(&end));
            let (above, below) = (kb.bin(BinOp::Ge, idx[axis].reg, lo), kb.bin(BinOp::Lt, idx[axis].reg, hi));
            let here = kb.bin(BinOp::And, above, below);
            let mut inner = idx.to_vec();
            inner[axis] = Index::scalar(kb.sub(idx[axis].reg, lo));
            let kept = self.mark();
            kb.if_(
                here,
                |kb| match self.at(kb, *o, &inner, lanes) {
                    Ok(r) => kb.set(out, r),
                    Err(s) => stuck = Some(s),
                },
                |_| {},
            );
            // What was computed inside the branch is not there outside.
            self.release(kept);
            start = end;
        }
        stuck.map_or_else(|| Ok(kb.get(out)), Err)
    }

    fn pad(
        &mut self,
        kb: &mut KernelBuilder,
        p: &transc_ir::op::Pad,
        operands: &[Value],
        idx: &[Index],
        lanes: Lanes,
    ) -> Result<Reg> {
        let dims = self.region.ty(operands[0]).dims.clone();
        let mut inner = idx.to_vec();
        let mut inside = None;
        for a in 0..idx.len() {
            if p.lo[a].is(0) && p.hi[a].is(0) {
                continue;
            }
            if idx[a].step != 0 {
                return Err(Stuck::Vector);
            }
            let (lo, n, zero) = (kb.dim(&p.lo[a]), kb.dim(&dims[a]), kb.index(0));
            let i = kb.sub(idx[a].reg, lo);
            let one = kb.index(1);
            let last = kb.sub(n, one);
            let source = match p.mode {
                PadMode::Constant => {
                    let (above, below) = (kb.bin(BinOp::Ge, i, zero), kb.bin(BinOp::Lt, i, n));
                    let here = kb.bin(BinOp::And, above, below);
                    inside = Some(inside.map_or(here, |before| kb.bin(BinOp::And, before, here)));
                    i
                }
                PadMode::Edge => {
                    let i = kb.bin(BinOp::Max, i, zero);
                    kb.bin(BinOp::Min, i, last)
                }
                PadMode::Wrap => kb.bin(BinOp::Mod, i, n),
                PadMode::Reflect => {
                    let two = kb.index(2);
                    let period = kb.mul(last, two);
                    let period = kb.bin(BinOp::Max, period, one);
                    let r = kb.bin(BinOp::Mod, i, period);
                    let mirrored = kb.sub(period, r);
                    let i = kb.bin(BinOp::Min, r, mirrored);
                    kb.bin(BinOp::Min, i, last)
                }
            };
            inner[a] = Index::scalar(source);
        }
        let Some(inside) = inside else { return self.at(kb, operands[0], &inner, lanes) };
        let value = self.at(kb, operands[1], &[], lanes)?;
        let out = kb.var(value);
        let mut stuck = None;
        let kept = self.mark();
        kb.if_(
            inside,
            |kb| match self.at(kb, operands[0], &inner, lanes) {
                Ok(r) => kb.set(out, r),
                Err(s) => stuck = Some(s),
            },
            |_| {},
        );
        self.release(kept);
        stuck.map_or_else(|| Ok(kb.get(out)), Err)
    }

    fn quantize(&mut self, kb: &mut KernelBuilder, to: DType, operands: &[Value], idx: &[Index], lanes: Lanes) -> Result<Reg> {
        let x = self.at(kb, operands[0], idx, lanes)?;
        let dtype = self.region.ty(operands[0]).dtype;
        let inner = self.broadcast_index(kb, operands[1], idx);
        let scale = self.at(kb, operands[1], &inner, lanes)?;
        let scale = kb.cast(dtype, scale);
        let q = kb.bin(BinOp::Div, x, scale);
        let q = kb.cast(DType::F32, q);
        let mut q = kb.un(UnOp::Round, q);
        if let Some(z) = operands.get(2) {
            let inner = self.broadcast_index(kb, *z, idx);
            let z = self.at(kb, *z, &inner, lanes)?;
            let z = kb.cast(DType::F32, z);
            q = kb.add(q, z);
        }
        // The conversion saturates.
        Ok(kb.cast(to, q))
    }

    fn dequantize(&mut self, kb: &mut KernelBuilder, operands: &[Value], idx: &[Index], lanes: Lanes) -> Result<Reg> {
        let float = self.region.ty(operands[1]).dtype;
        let x = self.at(kb, operands[0], idx, lanes)?;
        let mut x = kb.cast(DType::I64, x);
        if let Some(z) = operands.get(2) {
            let inner = self.broadcast_index(kb, *z, idx);
            let z = self.at(kb, *z, &inner, lanes)?;
            let z = kb.cast(DType::I64, z);
            x = kb.sub(x, z);
        }
        let x = kb.cast(float, x);
        let inner = self.broadcast_index(kb, operands[1], idx);
        let scale = self.at(kb, operands[1], &inner, lanes)?;
        Ok(kb.mul(x, scale))
    }
}

/// The position of an index in memory, and the step of its lanes. Lanes along an axis that lies in blocks have to be neighbours in one.
pub(crate) fn place(kb: &mut KernelBuilder, view: &View, idx: &[Index]) -> Result<(Reg, Dim)> {
    let (mut at, mut step) = (kb.index(0), Dim::from(0));
    for (axis, (Axis { stride, .. }, i)) in view.axes.iter().zip(idx).enumerate().rev() {
        let len = view.blocks.filter(|b| b.axis == axis).map(|b| b.len);
        let lanes = match (len, i.step) {
            (Some(_), 0) => 0.into(),
            (Some(_), 1) if i.aligned => 1.into(),
            (Some(_), _) => return Err(Stuck::Vector),
            (None, by) => stride * &by.into(),
        };
        let offset = tile::along(kb, i.reg, stride, len);
        at = kb.add(at, offset);
        step = &step + &lanes;
    }
    Ok((at, step))
}

/// Loads lanes at `at + lane * step`.
pub(crate) fn load_lanes(kb: &mut KernelBuilder, buf: Buf, at: Reg, step: &Dim, lanes: Lanes) -> Reg {
    if lanes.n == 1 {
        return kb.load(buf, at, 1);
    }
    if step.is(0) {
        let r = kb.load(buf, at, 1);
        return kb.splat(lanes.n, r);
    }
    if step.is(1) {
        return kb.load_part(buf, at, lanes.n, lanes.count);
    }
    let step = kb.dim(step);
    let zero = kb.lit(Literal::from_i64(kb.buf_dtype(buf), 0));
    let mut out = kb.splat(lanes.n, zero);
    for l in 0..lanes.n {
        let mut lane = kb.index(l.into());
        if let Some(c) = lanes.count {
            // Lanes beyond the count read the last one that counts.
            let one = kb.index(1);
            let last = kb.sub(c, one);
            lane = kb.bin(BinOp::Min, lane, last);
        }
        let offset = kb.mul(lane, step);
        let at = kb.add(at, offset);
        let x = kb.load(buf, at, 1);
        out = kb.push(Inst::Insert(out, l, x));
    }
    out
}

/// An index from data: negative ones count from the end; outside is an error.
pub(crate) fn checked_index(kb: &mut KernelBuilder, i: Reg, extent: &Dim) -> Reg {
    let (n, zero) = (kb.dim(extent), kb.index(0));
    let negative = kb.bin(BinOp::Lt, i, zero);
    let wrapped = kb.add(i, n);
    let i = kb.select(negative, wrapped, i);
    let (below, above) = (kb.bin(BinOp::Lt, i, zero), kb.bin(BinOp::Ge, i, n));
    let bad = kb.bin(BinOp::Or, below, above);
    kb.fail_if(bad, Status::IndexOutOfRange);
    i
}
