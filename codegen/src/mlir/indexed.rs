//! Ops whose indices come from data. Every index is checked: an assertion in front of the op, and a clamp where it is used, so that
//! nothing outside is touched even if the two are reordered.

use transc_ir::loops::Ty;
use transc_ir::op::{Gather, GatherElements, GatherNd, ScatterElements, ScatterKind, ScatterNd};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim, TensorType};

use super::func::{Emitter, Operand, Tensor, axes, axis, iterators, tensor_type};
use super::scalar;

impl Emitter<'_> {
    pub(super) fn gather(&mut self, o: &Gather, x: &[Tensor], ty: &TensorType) -> Tensor {
        let (data, index, n) = (&x[0], &x[1], x[1].ty.rank());
        let extent = &data.ty.dims[o.axis];
        self.check_indices(index, std::slice::from_ref(extent));
        let ins = [Operand::new(index, (o.axis..o.axis + n).map(axis).collect())];
        self.elements(&ins, ty, |e, v| {
            let at = e.wrapped(&v[0], index.ty.dtype, extent);
            let lead = (0..o.axis).map(|i| e.loop_index(i)).collect::<Vec<_>>();
            let tail: Vec<String> = (o.axis + n..ty.rank()).map(|i| e.loop_index(i)).collect();
            e.extract(data, &[lead, vec![at], tail].concat())
        })
    }

    pub(super) fn gather_elements(&mut self, o: &GatherElements, x: &[Tensor], ty: &TensorType) -> Tensor {
        let (data, index) = (&x[0], &x[1]);
        self.check_indices(index, std::slice::from_ref(&data.ty.dims[o.axis]));
        self.pick(data, index, o.axis, ty)
    }

    /// One element per index along an axis; the indices have been checked.
    pub(super) fn pick(&mut self, data: &Tensor, index: &Tensor, axis: usize, ty: &TensorType) -> Tensor {
        let ins = [Operand::new(index, axes(ty.rank()))];
        self.elements(&ins, ty, |e, v| {
            let at = e.wrapped(&v[0], index.ty.dtype, &data.ty.dims[axis]);
            let all: Vec<String> = (0..ty.rank()).map(|i| if i == axis { at.clone() } else { e.loop_index(i) }).collect();
            e.extract(data, &all)
        })
    }

    pub(super) fn gather_nd(&mut self, o: &GatherNd, x: &[Tensor], ty: &TensorType) -> Tensor {
        let (data, index, b) = (&x[0], &x[1], o.batch_dims);
        let lead = index.ty.rank() - 1;
        let k = index.ty.dims[lead].as_usize().unwrap_or(0);
        self.check_indices(index, &data.ty.dims[b..b + k]);
        self.elements(&[], ty, |e, _| {
            let position: Vec<String> = (0..lead).map(|i| e.loop_index(i)).collect();
            let mut at = position[..b].to_vec();
            at.extend(e.tuple(index, &position, &data.ty.dims[b..b + k]));
            at.extend((lead..ty.rank()).map(|i| e.loop_index(i)));
            e.extract(data, &at)
        })
    }

    /// The index tuple at a position, each part wrapped into its extent.
    fn tuple(&mut self, index: &Tensor, position: &[String], extents: &[Dim]) -> Vec<String> {
        let mut out = Vec::with_capacity(extents.len());
        for (j, extent) in extents.iter().enumerate() {
            let last = self.dim(&Dim::from(j));
            let v = self.extract(index, &[position, &[last]].concat());
            out.push(self.wrapped(&v, index.ty.dtype, extent));
        }
        out
    }

    pub(super) fn scatter_elements(&mut self, o: &ScatterElements, x: &[Tensor]) -> Tensor {
        let (data, index, updates) = (&x[0], &x[1], &x[2]);
        let extent = data.ty.dims[o.axis].clone();
        self.check_indices(index, std::slice::from_ref(&extent));
        self.for_nest(&index.ty.dims, data, |e, position, out| {
            let i = e.extract(index, position);
            let mut at = position.to_vec();
            at[o.axis] = e.wrapped(&i, index.ty.dtype, &extent);
            let v = e.extract(updates, position);
            e.combine(o.kind, out, &at, v)
        })
    }

    pub(super) fn scatter_nd(&mut self, o: &ScatterNd, x: &[Tensor]) -> Tensor {
        let (data, index, updates) = (&x[0], &x[1], &x[2]);
        let lead = index.ty.rank() - 1;
        let k = index.ty.dims[lead].as_usize().unwrap_or(0);
        self.check_indices(index, &data.ty.dims[..k]);
        self.for_nest(&updates.ty.dims, data, |e, position, out| {
            let mut at = e.tuple(index, &position[..lead], &data.ty.dims[..k]);
            at.extend_from_slice(&position[lead..]);
            let v = e.extract(updates, position);
            e.combine(o.kind, out, &at, v)
        })
    }

    /// `out` with `v` combined into one element.
    fn combine(&mut self, kind: ScatterKind, out: &Tensor, at: &[String], v: String) -> Tensor {
        let op = match kind {
            ScatterKind::Set => None,
            ScatterKind::Add => Some(BinOp::Add),
            ScatterKind::Mul => Some(BinOp::Mul),
            ScatterKind::Min => Some(BinOp::Min),
            ScatterKind::Max => Some(BinOp::Max),
        };
        let v = match op {
            Some(op) => {
                let old = self.extract(out, at);
                scalar::bin(&mut self.t, op, Ty::scalar(out.ty.dtype), &old, &v)
            }
            None => v,
        };
        let name = self.t.def(&format!("tensor.insert {v} into {}[{}] : {}", out.name, at.join(", "), tensor_type(&out.ty)));
        Tensor::new(name, &out.ty)
    }

    /// Loops in row-major order that carry a tensor: what is written twice keeps its order.
    fn for_nest(&mut self, dims: &[Dim], init: &Tensor, body: impl FnOnce(&mut Self, &[String], &Tensor) -> Tensor) -> Tensor {
        let ty = tensor_type(&init.ty);
        let (zero, one) = (self.dim(&0.into()), self.dim(&1.into()));
        let (mut results, mut position, mut carried) = (Vec::new(), Vec::new(), init.clone());
        for d in dims {
            let (n, result, iv, arg) = (self.dim(d), self.t.name(), self.t.name(), self.t.name());
            self.t.open(&format!(
                "{result} = scf.for {iv} = {zero} to {n} step {one} iter_args({arg} = {}) -> ({ty}) {{",
                carried.name
            ));
            carried = Tensor::new(arg, &init.ty);
            position.push(iv);
            results.push(result);
        }
        let mut inner = body(self, &position, &carried);
        for result in results.into_iter().rev() {
            self.t.line(&format!("scf.yield {} : {ty}", inner.name));
            self.t.close("}");
            inner.name = result;
        }
        inner
    }

    /// An index that may count from the end, as a position inside its axis.
    fn wrapped(&mut self, v: &str, dtype: DType, extent: &Dim) -> String {
        let int = Ty::INDEX;
        let v = scalar::cast(&mut self.t, Ty::scalar(dtype), DType::I64, v);
        let n = self.dim(extent);
        let n = self.t.def(&format!("arith.index_cast {n} : index to i64"));
        let (zero, one) = (self.t.constant(1, Literal::i64(0)), self.t.constant(1, Literal::i64(1)));
        let negative = scalar::bin(&mut self.t, BinOp::Lt, int, &v, &zero);
        let from_end = scalar::bin(&mut self.t, BinOp::Add, int, &v, &n);
        let v = scalar::select(&mut self.t, 1, int, &negative, &from_end, &v);
        let last = scalar::bin(&mut self.t, BinOp::Sub, int, &n, &one);
        let v = scalar::bin(&mut self.t, BinOp::Min, int, &v, &last);
        let v = scalar::bin(&mut self.t, BinOp::Max, int, &v, &zero);
        self.t.index_of(&v, "i64")
    }

    /// Asserts that all indices are inside; `extents` has one entry, or one per position on the last axis of the indices. Nothing
    /// is emitted for constants that are.
    fn check_indices(&mut self, index: &Tensor, extents: &[Dim]) {
        let inside = |(lo, hi): (i64, i64)| extents.iter().all(|d| d.as_const().is_some_and(|n| lo >= -n && hi < n));
        if extents.is_empty() || index.range.is_some_and(inside) {
            return;
        }
        let ok = self.filled(&TensorType::scalar(DType::Bool), Literal::bool(true));
        let n = index.ty.rank();
        let (ins, outs) = ([Operand::new(index, axes(n))], [Operand::new(&ok, Vec::new())]);
        let ok = self.generic(&iterators(0, n), &ins, &outs, |e, x, acc| {
            let int = Ty::INDEX;
            let v = scalar::cast(&mut e.t, Ty::scalar(index.ty.dtype), DType::I64, &x[0]);
            let mut extent = e.extent(&extents[0]);
            for (j, d) in extents.iter().enumerate().skip(1) {
                let (at, here, other) = (e.loop_index(n - 1), e.dim(&Dim::from(j)), e.extent(d));
                let here = e.t.def(&format!("arith.cmpi eq, {at}, {here} : index"));
                extent = scalar::select(&mut e.t, 1, int, &here, &other, &extent);
            }
            let zero = e.t.constant(1, Literal::i64(0));
            let low = scalar::bin(&mut e.t, BinOp::Sub, int, &zero, &extent);
            let above = scalar::bin(&mut e.t, BinOp::Ge, int, &v, &low);
            let below = scalar::bin(&mut e.t, BinOp::Lt, int, &v, &extent);
            let good = scalar::bin(&mut e.t, BinOp::And, Ty::BOOL, &above, &below);
            vec![scalar::bin(&mut e.t, BinOp::And, Ty::BOOL, &acc[0], &good)]
        });
        self.assert_tensor(&ok[0], "an index lies outside its tensor");
    }

    /// A dim as an `i64`.
    fn extent(&mut self, d: &Dim) -> String {
        let v = self.dim(d);
        self.t.def(&format!("arith.index_cast {v} : index to i64"))
    }
}
