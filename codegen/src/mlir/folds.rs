//! Reductions, scans, orders, contractions and windows.

use transc_ir::interp::scalar::{fold_op, identity};
use transc_ir::loops::Ty;
use transc_ir::op::{ArgReduce, Contract, Conv, Reduce, Scan, TopK, Window};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::{DType, Dim, TensorType};

use super::func::{Emitter, Operand, Tensor, axes, axis, iterators, tensor_type};
use super::scalar;

/// The type in which a fold is kept: narrow floats accumulate in `f32` and round once.
fn wide(d: DType) -> DType {
    if matches!(d, DType::F16 | DType::Bf16) { DType::F32 } else { d }
}

impl Emitter<'_> {
    pub(super) fn reduce(&mut self, o: &Reduce, x: &Tensor, ty: &TensorType) -> Tensor {
        let (dtype, acc) = (x.ty.dtype, wide(x.ty.dtype));
        let kept: Vec<usize> = (0..x.ty.rank()).filter(|a| !o.axes.contains(a)).collect();
        let folded = TensorType::new(acc, kept.iter().map(|a| x.ty.dims[*a].clone()).collect::<Vec<_>>());
        let init = self.filled(&folded, identity(o.kind, acc));
        let ins = [Operand::new(x, axes(x.ty.rank()))];
        let outs = [Operand::new(&init, kept.iter().map(|a| axis(*a)).collect())];
        let loops: Vec<bool> = (0..x.ty.rank()).map(|a| o.axes.contains(&a)).collect();
        let folded = self.generic(&loops, &ins, &outs, |e, x, to| {
            let v = scalar::cast(&mut e.t, Ty::scalar(dtype), acc, &x[0]);
            vec![scalar::bin(&mut e.t, fold_op(o.kind), Ty::scalar(acc), &to[0], &v)]
        });
        let folded = self.converted(&folded[0], dtype);
        self.reshape(&folded, ty)
    }

    pub(super) fn arg_reduce(&mut self, o: &ArgReduce, x: &Tensor, ty: &TensorType) -> Tensor {
        let n = &x.ty.dims[o.axis];
        if n.as_const().is_none_or(|n| n <= 0) {
            self.assert_dims("sgt", n, &0.into(), "the extreme of no elements");
        }
        let dtype = x.ty.dtype;
        let kept: Vec<usize> = (0..x.ty.rank()).filter(|a| *a != o.axis).collect();
        let dims: Vec<Dim> = kept.iter().map(|a| x.ty.dims[*a].clone()).collect();
        // A position of -1 means that no element has been seen.
        let best = self.filled(&TensorType::new(dtype, dims.clone()), Literal::from_i64(dtype, 0));
        let position = self.filled(&TensorType::new(DType::I64, dims), Literal::i64(-1));
        let map: Vec<String> = kept.iter().map(|a| axis(*a)).collect();
        let (ins, outs) =
            ([Operand::new(x, axes(x.ty.rank()))], [Operand::new(&best, map.clone()), Operand::new(&position, map)]);
        let loops: Vec<bool> = (0..x.ty.rank()).map(|a| a == o.axis).collect();
        let results = self.generic(&loops, &ins, &outs, |e, x, to| {
            let (bools, elements) = (Ty::BOOL, Ty::scalar(dtype));
            let i = e.loop_index(o.axis);
            let i = e.t.def(&format!("arith.index_cast {i} : index to i64"));
            let zero = e.t.constant(1, Literal::i64(0));
            let first = scalar::bin(&mut e.t, BinOp::Lt, Ty::INDEX, &to[1], &zero);
            let (mut better, equal) = e.order(dtype, if o.max { BinOp::Gt } else { BinOp::Lt }, true, &x[0], &to[0]);
            let wins = scalar::bin(&mut e.t, if o.last { BinOp::Gt } else { BinOp::Lt }, Ty::INDEX, &i, &to[1]);
            let tie = scalar::bin(&mut e.t, BinOp::And, bools, &equal, &wins);
            better = scalar::bin(&mut e.t, BinOp::Or, bools, &better, &tie);
            better = scalar::bin(&mut e.t, BinOp::Or, bools, &better, &first);
            vec![
                scalar::select(&mut e.t, 1, elements, &better, &x[0], &to[0]),
                scalar::select(&mut e.t, 1, Ty::INDEX, &better, &i, &to[1]),
            ]
        });
        self.reshape(&results[1], ty)
    }

    /// Whether `a` comes before `b` in the order of `op` (greater or less), and whether they are equal. NaN is equal to NaN, and comes
    /// first if `nan_first`, else last.
    fn order(&mut self, dtype: DType, op: BinOp, nan_first: bool, a: &str, b: &str) -> (String, String) {
        let (ty, t) = (Ty::scalar(dtype), &mut self.t);
        let (mut before, mut equal) = (scalar::bin(t, op, ty, a, b), scalar::bin(t, BinOp::Eq, ty, a, b));
        if dtype.is_float() {
            let (an, bn) = (scalar::un(t, UnOp::IsNan, ty, a), scalar::un(t, UnOp::IsNan, ty, b));
            let (first, second) = if nan_first { (&an, &bn) } else { (&bn, &an) };
            let other = scalar::un(t, UnOp::Not, Ty::BOOL, second);
            let only = scalar::bin(t, BinOp::And, Ty::BOOL, first, &other);
            let both = scalar::bin(t, BinOp::And, Ty::BOOL, &an, &bn);
            before = scalar::bin(t, BinOp::Or, Ty::BOOL, &before, &only);
            equal = scalar::bin(t, BinOp::Or, Ty::BOOL, &equal, &both);
        }
        (before, equal)
    }

    /// One slice along the axis after another, each folded into what stands before it.
    pub(super) fn scan(&mut self, o: &Scan, x: &Tensor) -> Tensor {
        let (dtype, acc, rank) = (x.ty.dtype, wide(x.ty.dtype), x.ty.rank());
        let mut dims = x.ty.dims.clone();
        dims[o.axis] = 1.into();
        let slice = TensorType::new(dtype, dims);
        let (out, init) = (self.empty(&x.ty), self.filled(&slice.with_dtype(acc), identity(o.kind, acc)));
        let (zero, one, n) = (self.dim(&0.into()), self.dim(&1.into()), self.dim(&x.ty.dims[o.axis]));
        let (sizes, steps) = (self.bracketed(&slice.dims), self.bracketed(&vec![Dim::from(1); rank]));
        let [result, iv, to, running] = std::array::from_fn(|_| self.t.name());
        let (tt, st, at) = (tensor_type(&x.ty), tensor_type(&slice), tensor_type(&init.ty));
        self.t.open(&format!(
            "{result}:2 = scf.for {iv} = {zero} to {n} step {one} iter_args({to} = {}, {running} = {}) -> ({tt}, {at}) {{",
            out.name, init.name
        ));
        let mut i = iv;
        if o.reverse {
            let last = self.t.def(&format!("arith.subi {n}, {one} : index"));
            i = self.t.def(&format!("arith.subi {last}, {i} : index"));
        }
        let starts: Vec<&str> = (0..rank).map(|a| if a == o.axis { i.as_str() } else { "0" }).collect();
        let place = format!("[{}]{sizes}{steps}", starts.join(", "));
        let piece = self.t.def(&format!("tensor.extract_slice {}{place} : {tt} to {st}", x.name));
        let (piece, before) = (Tensor::new(piece, &slice), Tensor::new(running, &init.ty));
        let ins = [Operand::new(&piece, axes(rank)), Operand::new(&before, axes(rank))];
        let next = self.elements(&ins, &init.ty, |e, v| {
            let x = scalar::cast(&mut e.t, Ty::scalar(dtype), acc, &v[0]);
            scalar::bin(&mut e.t, fold_op(o.kind), Ty::scalar(acc), &v[1], &x)
        });
        let piece = self.converted(if o.exclusive { &before } else { &next }, dtype);
        let new = self.t.def(&format!("tensor.insert_slice {} into {to}{place} : {st} into {tt}", piece.name));
        self.t.line(&format!("scf.yield {new}, {} : {tt}, {at}", next.name));
        self.t.close("}");
        Tensor::new(format!("{result}#0"), &x.ty)
    }

    /// The place of an element in the sorted order is the number of elements that come before it; the element at each place follows by
    /// a second fold. Quadratic in the axis, but without data-dependent control.
    pub(super) fn top_k(&mut self, o: &TopK, x: &Tensor, types: &[TensorType]) -> Vec<Tensor> {
        let (n, extent) = (x.ty.rank(), &x.ty.dims[o.axis]);
        if (extent - &o.k).as_const().is_none_or(|d| d < 0) {
            self.assert_dims("sle", &o.k, extent, "more elements are asked for than there are");
        }
        let dtype = x.ty.dtype;
        let along = |with: String| -> Vec<String> { (0..n).map(|a| if a == o.axis { with.clone() } else { axis(a) }).collect() };
        let zeros = self.filled(&x.ty.with_dtype(DType::I64), Literal::i64(0));
        let ins = [Operand::new(x, axes(n)), Operand::new(x, along(axis(n)))];
        let place = self.generic(&iterators(n, 1), &ins, &[Operand::new(&zeros, axes(n))], |e, x, to| {
            let (i, j) = (e.loop_index(o.axis), e.loop_index(n));
            let op = if o.largest { BinOp::Gt } else { BinOp::Lt };
            let (before, equal) = e.order(dtype, op, o.largest, &x[1], &x[0]);
            let earlier = e.t.def(&format!("arith.cmpi slt, {j}, {i} : index"));
            let tie = scalar::bin(&mut e.t, BinOp::And, Ty::BOOL, &equal, &earlier);
            let before = scalar::bin(&mut e.t, BinOp::Or, Ty::BOOL, &before, &tie);
            let count = scalar::cast(&mut e.t, Ty::BOOL, DType::I64, &before);
            vec![scalar::bin(&mut e.t, BinOp::Add, Ty::INDEX, &to[0], &count)]
        });
        let zeros = self.filled(&types[1], Literal::i64(0));
        let ins = [Operand::new(&place[0], along(axis(n)))];
        let order = self.generic(&iterators(n, 1), &ins, &[Operand::new(&zeros, axes(n))], |e, x, to| {
            let (place, from) = (e.loop_index(o.axis), e.loop_index(n));
            let place = e.t.def(&format!("arith.index_cast {place} : index to i64"));
            let from = e.t.def(&format!("arith.index_cast {from} : index to i64"));
            let here = scalar::bin(&mut e.t, BinOp::Eq, Ty::INDEX, &x[0], &place);
            let sum = scalar::bin(&mut e.t, BinOp::Add, Ty::INDEX, &to[0], &from);
            vec![scalar::select(&mut e.t, 1, Ty::INDEX, &here, &sum, &to[0])]
        });
        let order = order[0].clone();
        vec![self.pick(x, &order, o.axis, &types[0]), order]
    }

    pub(super) fn contract(&mut self, o: &Contract, x: &[Tensor], ty: &TensorType) -> Tensor {
        let acc = wide(o.out_dtype);
        let out = self.filled(&ty.with_dtype(acc), Literal::from_i64(acc, 0));
        let batch = o.out.len().saturating_sub(2);
        let plain = Contract::matmul(batch, o.out_dtype);
        let one_type = x.iter().all(|t| t.ty.dtype == acc);
        if one_type && batch < 2 && (&o.lhs, &o.rhs, &o.out) == (&plain.lhs, &plain.rhs, &plain.out) {
            return self.named(if batch == 0 { "matmul" } else { "batch_matmul" }, "", x, &out);
        }
        let inner: Vec<u8> = o.lhs.iter().filter(|l| !o.out.contains(l)).copied().collect();
        let place = |labels: &[u8]| -> Vec<String> {
            let at = |l: &u8| o.out.iter().chain(&inner).position(|m| m == l).unwrap_or(0);
            labels.iter().map(|l| axis(at(l))).collect()
        };
        let ins = [Operand::new(&x[0], place(&o.lhs)), Operand::new(&x[1], place(&o.rhs))];
        let outs = [Operand::new(&out, axes(o.out.len()))];
        let types = [x[0].ty.dtype, x[1].ty.dtype];
        let loops = iterators(o.out.len(), inner.len());
        let out = self.generic(&loops, &ins, &outs, |e, v, to| vec![e.multiply_add(acc, types, v, &to[0])]);
        self.converted(&out[0], o.out_dtype)
    }

    /// A named op of two inputs.
    fn named(&mut self, op: &str, attrs: &str, x: &[Tensor], out: &Tensor) -> Tensor {
        let (a, b, c) = (tensor_type(&x[0].ty), tensor_type(&x[1].ty), tensor_type(&out.ty));
        let name = self
            .t
            .def(&format!("linalg.{op}{attrs} ins({}, {} : {a}, {b}) outs({} : {c}) -> {c}", x[0].name, x[1].name, out.name));
        Tensor::new(name, &out.ty)
    }

    fn multiply_add(&mut self, acc: DType, types: [DType; 2], v: &[String], to: &str) -> String {
        let ty = Ty::scalar(acc);
        let a = scalar::cast(&mut self.t, Ty::scalar(types[0]), acc, &v[0]);
        let b = scalar::cast(&mut self.t, Ty::scalar(types[1]), acc, &v[1]);
        let product = scalar::bin(&mut self.t, BinOp::Mul, ty, &a, &b);
        scalar::bin(&mut self.t, BinOp::Add, ty, to, &product)
    }

    /// The operand with its last axes padded.
    fn padded(&mut self, x: &Tensor, lo: &[i64], hi: &[i64], v: Literal) -> Tensor {
        let lead = x.ty.rank() - lo.len();
        let full = |p: &[i64]| vec![0; lead].into_iter().chain(p.iter().copied()).map(Dim::from).collect::<Vec<Dim>>();
        let (lo, hi) = (full(lo), full(hi));
        if lo.iter().chain(&hi).all(|d| d.is(0)) {
            return x.clone();
        }
        let dims: Vec<Dim> = x.ty.dims.iter().zip(lo.iter().zip(&hi)).map(|(d, (l, h))| &(d + l) + h).collect();
        let v = self.t.constant(1, v);
        self.pad_with(x, &lo, &hi, &v, &TensorType::new(x.ty.dtype, dims))
    }

    pub(super) fn window(&mut self, o: &Window, x: &Tensor, ty: &TensorType) -> Tensor {
        let (dtype, acc, n, k) = (x.ty.dtype, wide(x.ty.dtype), x.ty.rank(), o.kernel.len());
        let x = self.padded(x, &o.lo, &o.hi, identity(o.kind, dtype));
        let map = (0..n).map(|a| match a.checked_sub(n - k) {
            Some(i) => format!("{} * {} + {} * {}", axis(a), o.strides[i], axis(n + i), o.dilations[i]),
            None => axis(a),
        });
        // A tensor that only gives the window its extents, as in linalg's pooling ops.
        let shape = self.empty(&TensorType::new(dtype, o.kernel.iter().map(|k| Dim::from(*k)).collect::<Vec<_>>()));
        let out = self.filled(&ty.with_dtype(acc), identity(o.kind, acc));
        let ins = [Operand::new(&x, map.collect()), Operand::new(&shape, (n..n + k).map(axis).collect())];
        let out = self.generic(&iterators(n, k), &ins, &[Operand::new(&out, axes(n))], |e, v, to| {
            let x = scalar::cast(&mut e.t, Ty::scalar(dtype), acc, &v[0]);
            vec![scalar::bin(&mut e.t, fold_op(o.kind), Ty::scalar(acc), &to[0], &x)]
        });
        self.converted(&out[0], dtype)
    }

    pub(super) fn conv(&mut self, o: &Conv, x: &[Tensor], ty: &TensorType) -> Tensor {
        let (dtype, acc, n) = (ty.dtype, wide(ty.dtype), o.strides.len());
        let w = &x[1];
        let x = self.padded(&x[0], &o.lo, &o.hi, Literal::from_i64(dtype, 0));
        let out_ty = ty.with_dtype(acc);
        if o.groups == 1 && n == 2 && acc == dtype {
            let list = |v: &[i64]| format!("dense<[{}, {}]> : tensor<2xi64>", v[0], v[1]);
            let attrs = format!(" {{dilations = {}, strides = {}}}", list(&o.dilations), list(&o.strides));
            let out = self.filled(&out_ty, Literal::from_i64(acc, 0));
            return self.named("conv_2d_nchw_fchw", &attrs, &[x, w.clone()], &out);
        }
        // Channels as [group, channel of the group]; loops: batch, group, output channel, positions; input channel, kernel.
        let groups = Dim::from(o.groups);
        let split = |dims: &[Dim], at: usize| {
            let mut d = dims.to_vec();
            d.splice(at..=at, [groups.clone(), dims[at].floor_div(&groups)]);
            d
        };
        let x = self.reshape(&x, &TensorType::new(dtype, split(&x.ty.dims, 1)));
        let w = self.reshape(w, &TensorType::new(dtype, split(&w.ty.dims, 0)));
        let out = self.filled(&TensorType::new(acc, split(&ty.dims, 1)), Literal::from_i64(acc, 0));
        let spatial = |i: usize| format!("{} * {} + {} * {}", axis(3 + i), o.strides[i], axis(4 + n + i), o.dilations[i]);
        let x_map = [axis(0), axis(1), axis(3 + n)].into_iter().chain((0..n).map(spatial)).collect();
        let w_map = [axis(1), axis(2), axis(3 + n)].into_iter().chain((0..n).map(|i| axis(4 + n + i))).collect();
        let (ins, outs) = ([Operand::new(&x, x_map), Operand::new(&w, w_map)], [Operand::new(&out, axes(3 + n))]);
        let loops = iterators(3 + n, 1 + n);
        let out = self.generic(&loops, &ins, &outs, |e, v, to| vec![e.multiply_add(acc, [dtype; 2], v, &to[0])]);
        let out = self.reshape(&out[0], &out_ty);
        self.converted(&out, dtype)
    }
}
