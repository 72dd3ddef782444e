//! What the builder of an operator sees: its operands and attributes, and short forms to build with.

use std::collections::BTreeMap;

use transc_ir::interp::Tensor;
use transc_ir::op::{self, ReduceKind, TypeError};
use transc_ir::scalar::{BinOp, Body, BodyBuilder, Literal, Ref, UnOp};
use transc_ir::{DType, Dim, Loc, Op, TensorType, Value};

use super::error::{OpError, Result, data_dependent, invalid, too_symbolic};
use super::import::Importer;
use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::error::quote;

/// Attributes by name, references to those of the enclosing function resolved.
pub(super) type Attrs<'a> = BTreeMap<&'a str, &'a AttributeProto>;

/// One node while it is built.
pub(super) struct OpCx<'i, 'a> {
    pub(super) imp: &'i mut Importer<'a>,
    pub(super) scope: usize,
    pub(super) node: &'a NodeProto,
    pub(super) attrs: &'i Attrs<'a>,
    pub(super) operands: &'i [Option<Value>],
    /// Version of the operator set of the node's domain.
    pub(super) opset: i64,
    pub(super) loc: Loc,
}

/// Operands.
impl OpCx<'_, '_> {
    /// Operand `i`, which must be there.
    pub(super) fn x(&self, i: usize) -> Result<Value> {
        self.opt(i).ok_or_else(|| {
            OpError::Type(TypeError::arity(self.node.op_type(), &format!("at least {}", i + 1), self.operands.len()))
        })
    }

    /// Operand `i`, if it is there.
    pub(super) fn opt(&self, i: usize) -> Option<Value> {
        self.operands.get(i).copied().flatten()
    }

    /// All operands, each of which must be there.
    pub(super) fn all(&self) -> Result<Vec<Value>> {
        (0..self.operands.len().max(1)).map(|i| self.x(i)).collect()
    }

    /// True if result `i` is used.
    pub(super) fn wants(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|o| !o.is_empty())
    }

    pub(super) fn ty(&self, v: Value) -> TensorType {
        self.imp.module.main.ty(v).clone()
    }

    pub(super) fn dims(&self, v: Value) -> Vec<Dim> {
        self.imp.module.main.ty(v).dims.clone()
    }

    pub(super) fn rank(&self, v: Value) -> usize {
        self.imp.module.main.ty(v).rank()
    }

    pub(super) fn dtype(&self, v: Value) -> DType {
        self.imp.module.main.ty(v).dtype
    }

    /// A tensor of small integers that is known now, such as axes: constants only.
    pub(super) fn ints(&mut self, v: Value, what: &str) -> Result<Vec<i64>> {
        let dims = self.extents(v, what)?;
        match dims.iter().find(|d| d.as_const().is_none()) {
            Some(d) => too_symbolic(format!("needs {what} as a number, it is {d}")),
            None => Ok(dims.iter().filter_map(Dim::as_const).collect()),
        }
    }

    /// A tensor of dims that is known now, such as a shape: constants and expressions over symbolic dims.
    pub(super) fn extents(&mut self, v: Value, what: &str) -> Result<Vec<Dim>> {
        match self.imp.facts.dims(&self.imp.module, v, self.imp.options.limits.fold_elements)? {
            Some(d) => Ok(d),
            None => data_dependent(what),
        }
    }

    /// One integer that is known now.
    pub(super) fn int_value(&mut self, v: Value, what: &str) -> Result<i64> {
        match self.ints(v, what)?.as_slice() {
            [n] => Ok(*n),
            other => invalid(format!("{what} must be one number, got {}", other.len())),
        }
    }

    /// A constant tensor.
    pub(super) fn constant_of(&mut self, v: Value, what: &str) -> Result<Tensor> {
        match self.imp.facts.constant(&self.imp.module, v, self.imp.options.limits.fold_elements)? {
            Some(t) => Ok(t),
            None => data_dependent(what),
        }
    }

    /// A constant tensor, or nothing if it is not constant.
    pub(super) fn try_constant(&mut self, v: Value) -> Result<Option<Tensor>> {
        self.imp.facts.constant(&self.imp.module, v, self.imp.options.limits.fold_elements)
    }

    /// A constant tensor as real numbers.
    pub(super) fn reals(&mut self, v: Value, what: &str) -> Result<Vec<f64>> {
        let t = self.constant_of(v, what)?;
        Ok(elements(&t).map(Literal::to_f64).collect())
    }
}

/// The elements of a tensor.
pub(super) fn elements(t: &Tensor) -> impl Iterator<Item = Literal> {
    t.data.chunks_exact(t.dtype.size_bytes()).map(|c| {
        let mut bits = [0u8; 8];
        bits[..c.len()].copy_from_slice(c);
        Literal { dtype: t.dtype, bits: u64::from_le_bytes(bits) }
    })
}

/// Attributes.
impl<'a> OpCx<'_, 'a> {
    pub(super) fn attr(&self, name: &str) -> Option<&'a AttributeProto> {
        self.attrs.get(name).copied()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attr(name).map_or(default, AttributeProto::i)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    pub(super) fn real(&self, name: &str, default: f32) -> f64 {
        self.attr(name).map_or(default, AttributeProto::f).into()
    }

    pub(super) fn int_list(&self, name: &str) -> Option<Vec<i64>> {
        self.attr(name).map(|a| a.ints.clone())
    }

    pub(super) fn text(&self, name: &str, default: &str) -> Result<String> {
        match self.attr(name) {
            None => Ok(default.to_owned()),
            Some(a) => match std::str::from_utf8(a.s()) {
                Ok(s) => Ok(s.to_owned()),
                Err(_) => invalid(format!("the attribute {} is not text", quote(name))),
            },
        }
    }

    pub(super) fn tensor_attr(&self, name: &str) -> Option<&'a TensorProto> {
        self.attr(name).and_then(|a| a.t.as_ref())
    }

    pub(super) fn graph(&self, name: &str) -> Result<&'a GraphProto> {
        match self.attr(name).and_then(|a| a.g.as_ref()) {
            Some(g) => Ok(g),
            None => invalid(format!("the attribute {} is missing", quote(name))),
        }
    }

    /// An integer list of `n` numbers, or `n` times the default.
    pub(super) fn int_list_of(&self, name: &str, n: usize, default: i64) -> Result<Vec<i64>> {
        let v = self.int_list(name).filter(|v| !v.is_empty()).unwrap_or_else(|| vec![default; n]);
        if v.len() == n { Ok(v) } else { invalid(format!("the attribute {} needs {n} numbers, has {}", quote(name), v.len())) }
    }

    /// An axis with negative numbers counted from the end.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let n = rank as i64;
        match usize::try_from(if axis < 0 { axis.saturating_add(n) } else { axis }) {
            Ok(a) if a < rank => Ok(a),
            _ => Err(TypeError::axis(self.node.op_type(), axis, rank).into()),
        }
    }

    /// Distinct axes, ascending.
    pub(super) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>> {
        let mut out = axes.iter().map(|a| self.axis(*a, rank)).collect::<Result<Vec<_>>>()?;
        out.sort_unstable();
        if let Some(w) = out.windows(2).find(|w| w[0] == w[1]) {
            return Err(TypeError::axis(self.node.op_type(), w[0], rank).into());
        }
        Ok(out)
    }
}

/// Building.
impl OpCx<'_, '_> {
    pub(super) fn add_multi(&mut self, o: impl Into<Op>, operands: &[Value]) -> Result<Vec<Value>> {
        let loc = self.loc.clone();
        Ok(self.imp.builder(loc).add_multi(o, operands)?)
    }

    pub(super) fn add(&mut self, o: impl Into<Op>, operands: &[Value]) -> Result<Value> {
        let loc = self.loc.clone();
        Ok(self.imp.builder(loc).add(o, operands)?)
    }

    /// An element-wise body, the operands broadcast.
    pub(super) fn map(&mut self, body: Body, operands: &[Value]) -> Result<Value> {
        self.broadcastable(operands)?;
        self.add(op::Map { body }, operands)
    }

    /// An element-wise body of one operand, written with its type at hand.
    pub(super) fn map1(&mut self, x: Value, f: impl FnOnce(&mut BodyBuilder, DType, Ref) -> Ref) -> Result<Value> {
        let mut b = Body::builder(1);
        let r = f(&mut b, self.dtype(x), Ref::Arg(0));
        self.map(b.finish(r), &[x])
    }

    /// An element-wise body of two operands.
    pub(super) fn map2(&mut self, x: Value, y: Value, f: impl FnOnce(&mut BodyBuilder, DType, Ref, Ref) -> Ref) -> Result<Value> {
        let mut b = Body::builder(2);
        let r = f(&mut b, self.dtype(x), Ref::Arg(0), Ref::Arg(1));
        self.map(b.finish(r), &[x, y])
    }

    pub(super) fn un(&mut self, o: UnOp, x: Value) -> Result<Value> {
        self.map(Body::un(o), &[x])
    }

    pub(super) fn bin(&mut self, o: BinOp, x: Value, y: Value) -> Result<Value> {
        self.map(Body::bin(o), &[x, y])
    }

    /// `x o number`, the number in the type of `x`.
    pub(super) fn bin_num(&mut self, o: BinOp, x: Value, number: f64) -> Result<Value> {
        self.map1(x, |b, d, x| {
            let n = b.num(d, number);
            b.bin(o, x, n)
        })
    }

    pub(super) fn cast(&mut self, to: DType, x: Value) -> Result<Value> {
        if self.dtype(x) == to { Ok(x) } else { self.add(op::Map { body: Body::cast(to) }, &[x]) }
    }

    pub(super) fn select(&mut self, c: Value, x: Value, y: Value) -> Result<Value> {
        self.map(Body::select(), &[c, x, y])
    }

    /// A scalar.
    pub(super) fn num(&mut self, dtype: DType, v: f64) -> Result<Value> {
        self.add(op::Map { body: Body::constant(Literal::from_f64(dtype, v)) }, &[])
    }

    /// A scalar that holds a dim, in some type.
    pub(super) fn dim_value(&mut self, dtype: DType, d: &Dim) -> Result<Value> {
        let mut b = Body::builder(0);
        let v = b.push(transc_ir::scalar::Inst::Dim(d.clone()));
        let v = if dtype == DType::I64 { v } else { b.cast(dtype, v) };
        self.add(op::Map { body: b.finish(v) }, &[])
    }

    /// A tensor of one number.
    pub(super) fn full(&mut self, dtype: DType, v: f64, dims: &[Dim]) -> Result<Value> {
        let s = self.num(dtype, v)?;
        self.broadcast(s, dims)
    }

    /// A constant from numbers, converted to a type.
    pub(super) fn table(&mut self, dtype: DType, dims: &[usize], values: impl IntoIterator<Item = f64>) -> Result<Value> {
        let data: Vec<u8> = values
            .into_iter()
            .flat_map(|v| Literal::from_f64(dtype, v).bits.to_le_bytes().into_iter().take(dtype.size_bytes()))
            .collect();
        self.imp.tensor("", Tensor { dtype, dims: dims.to_vec(), data })
    }

    /// A constant of integers.
    pub(super) fn int_table(&mut self, dims: &[usize], values: impl IntoIterator<Item = i64>) -> Result<Value> {
        let data: Vec<u8> = values.into_iter().flat_map(i64::to_le_bytes).collect();
        self.imp.tensor("", Tensor { dtype: DType::I64, dims: dims.to_vec(), data })
    }

    pub(super) fn reshape(&mut self, x: Value, dims: impl Into<Vec<Dim>>) -> Result<Value> {
        let dims = dims.into();
        if self.dims(x) == dims { Ok(x) } else { self.add(op::Reshape { dims }, &[x]) }
    }

    pub(super) fn transpose(&mut self, x: Value, perm: &[usize]) -> Result<Value> {
        let loc = self.loc.clone();
        Ok(self.imp.builder(loc).transpose(x, perm)?)
    }

    /// Moves one axis to another place.
    pub(super) fn move_axis(&mut self, x: Value, from: usize, to: usize) -> Result<Value> {
        let mut perm: Vec<usize> = (0..self.rank(x)).collect();
        let a = perm.remove(from);
        perm.insert(to, a);
        self.transpose(x, &perm)
    }

    pub(super) fn broadcast(&mut self, x: Value, dims: &[Dim]) -> Result<Value> {
        let loc = self.loc.clone();
        Ok(self.imp.builder(loc).broadcast(x, dims)?)
    }

    pub(super) fn reduce(&mut self, kind: ReduceKind, x: Value, axes: &[usize], keep: bool) -> Result<Value> {
        if axes.is_empty() {
            return Ok(x);
        }
        self.add(op::Reduce { kind, axes: axes.to_vec(), keep }, &[x])
    }

    /// Mean over axes.
    pub(super) fn mean(&mut self, x: Value, axes: &[usize], keep: bool) -> Result<Value> {
        let dims = self.dims(x);
        let n = axes.iter().map(|a| &dims[*a]).product::<Dim>();
        let sum = self.reduce(ReduceKind::Sum, x, axes, keep)?;
        self.div_dim(sum, &n)
    }

    /// `x / n` for a dim `n`.
    pub(super) fn div_dim(&mut self, x: Value, n: &Dim) -> Result<Value> {
        if n.is(1) {
            return Ok(x);
        }
        self.map1(x, |b, d, x| {
            let n = match n.as_const() {
                Some(n) => b.num(d, n as f64),
                None => {
                    let n = b.push(transc_ir::scalar::Inst::Dim(n.clone()));
                    if d == DType::I64 { n } else { b.cast(d, n) }
                }
            };
            b.bin(BinOp::Div, x, n)
        })
    }

    /// Joins tensors; their other dims are made equal.
    pub(super) fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value> {
        if let [one] = parts {
            return Ok(*one);
        }
        let first = self.dims(parts[0]);
        for p in &parts[1..] {
            let d = self.dims(*p);
            for i in (0..first.len().min(d.len())).filter(|i| *i != axis) {
                self.equal(&first[i], &d[i])?;
            }
        }
        self.add(op::Concat { axis }, parts)
    }

    /// `size` elements from `start` by `step` along one axis.
    pub(super) fn slice(&mut self, x: Value, axis: usize, start: &Dim, size: &Dim, step: i64) -> Result<Value> {
        let dims = self.dims(x);
        if start.is(0) && step == 1 && *size == dims[axis] {
            return Ok(x);
        }
        let mut starts = vec![Dim::from(0); dims.len()];
        let mut sizes = dims;
        let mut steps = vec![1; starts.len()];
        starts[axis] = start.clone();
        sizes[axis] = size.clone();
        steps[axis] = step;
        self.add(op::Slice { starts, sizes, steps }, &[x])
    }

    /// The elements along one axis in reverse.
    pub(super) fn reversed(&mut self, x: Value, axis: usize) -> Result<Value> {
        let n = self.dims(x)[axis].clone();
        self.slice(x, axis, &(&n - &Dim::from(1)), &n, -1)
    }

    pub(super) fn gather(&mut self, x: Value, index: Value, axis: usize) -> Result<Value> {
        let index = self.indices(index)?;
        self.add(op::Gather { axis }, &[x, index])
    }

    /// Indices in a type that indexed access takes.
    pub(super) fn indices(&mut self, index: Value) -> Result<Value> {
        if matches!(self.dtype(index), DType::I32 | DType::I64) { Ok(index) } else { self.cast(DType::I64, index) }
    }

    /// Pads with a number.
    pub(super) fn pad(&mut self, x: Value, lo: &[Dim], hi: &[Dim], value: f64) -> Result<Value> {
        if lo.iter().chain(hi).all(|d| d.is(0)) {
            return Ok(x);
        }
        let v = self.num(self.dtype(x), value)?;
        self.add(op::Pad { lo: lo.to_vec(), hi: hi.to_vec(), mode: op::PadMode::Constant }, &[x, v])
    }

    /// `0, 1, ..` along one axis of a tensor of that many axes, the other extents 1.
    pub(super) fn iota(&mut self, n: &Dim, axis: usize, rank: usize) -> Result<Value> {
        let mut dims = vec![Dim::from(1); rank];
        dims[axis] = n.clone();
        self.add(op::Iota { dims, axis }, &[])
    }

    pub(super) fn softmax(&mut self, x: Value, axis: usize) -> Result<Value> {
        self.add(op::Softmax { axis, log: false }, &[x])
    }

    /// A constant factor per channel (axis 1) as a tensor that broadcasts over `rank` axes.
    pub(super) fn per_channel(&mut self, v: Value, rank: usize) -> Result<Value> {
        let n = self.dims(v);
        if n.len() != 1 || rank < 2 {
            return invalid(format!("needs one value per channel, got {}", self.ty(v)));
        }
        let mut dims = vec![Dim::from(1); rank - 1];
        dims[0] = n[0].clone();
        self.reshape(v, dims)
    }
}
