//! Steps that fold: reductions, norms, products, groups of tokens.

use transc_ir::interp::Tensor;
use transc_ir::op::{self, Real, ReduceKind};
use transc_ir::scalar::{BinOp, Body, Literal, UnOp};
use transc_ir::{DType, Dim, TensorType};

use super::{FUNCTION_ULPS, Gen, Info, eps};
use crate::differential::graphs::literal;

impl Gen<'_, '_> {
    /// Magnitude and error of a fold of `n` elements.
    pub(super) fn folded(&self, kind: ReduceKind, a: Info, n: f64) -> Option<(f64, f64)> {
        let d = self.dtype(a);
        if !d.is_float() {
            let wraps = matches!(kind, ReduceKind::Sum | ReduceKind::Prod);
            return (d != DType::Bool || !wraps).then_some((if wraps { 2f64.powi(d.bits() as i32) } else { a.mag }, 0.0));
        }
        Some(match kind {
            ReduceKind::Sum => (n * a.mag, n * a.err + n * eps(d) * n * a.mag),
            ReduceKind::Prod if n <= 4.0 => {
                let top = a.mag.max(1.0).powf(n);
                (top, n * top * (a.err + eps(d)))
            }
            ReduceKind::Prod => return None,
            // The value that a fold of nothing starts from is infinite; there is always something here.
            ReduceKind::Max | ReduceKind::Min => (a.mag, a.err),
        })
    }

    pub(super) fn kind(&mut self) -> ReduceKind {
        *self.r.pick(&[ReduceKind::Sum, ReduceKind::Sum, ReduceKind::Prod, ReduceKind::Max, ReduceKind::Min])
    }

    pub(super) fn reduce(&mut self) -> Option<Info> {
        let a = self.any();
        let dims = self.b.ty(a.v).dims.clone();
        if dims.is_empty() {
            return None;
        }
        if self.r.one_in(4) && a.err == 0.0 {
            let axis = self.r.below(dims.len());
            let (max, keep, last) = (self.r.one_in(2), self.r.one_in(2), self.r.one_in(2));
            return self.add(op::ArgReduce { max, axis, keep, last }, &[a], 36.0, 0.0);
        }
        let axes: Vec<usize> = (0..dims.len()).filter(|_| self.r.one_in(2)).collect();
        let kind = self.kind();
        let folded: Vec<Dim> = axes.iter().map(|i| dims[*i].clone()).collect();
        let (mag, err) = self.folded(kind, a, self.extent(&folded))?;
        let keep = self.r.one_in(2);
        self.add(op::Reduce { kind, axes, keep }, &[a], mag, err)
    }

    pub(super) fn scan_or_window(&mut self) -> Option<Info> {
        let a = self.any();
        let dims = self.b.ty(a.v).dims.clone();
        let kind = self.kind();
        if self.r.one_in(2) {
            let axis = self.r.below(dims.len().max(1));
            // Exclusive folds give the start value, which is infinite for extremes.
            let exclusive = self.r.one_in(3) && kind == ReduceKind::Sum;
            let (mag, err) = self.folded(kind, a, self.extent(dims.get(axis..=axis)?))?;
            let reverse = self.r.one_in(2);
            return self.add(op::Scan { kind, axis, exclusive, reverse }, &[a], mag.max(1.0), err);
        }
        let last = dims.last()?.as_const()?;
        let kernel = 1 + self.r.below(last.min(3) as usize) as i64;
        let (mag, err) = self.folded(kind, a, kernel as f64)?;
        let stride = 1 + self.r.below(2) as i64;
        let op = op::Window {
            kind,
            kernel: vec![kernel],
            strides: vec![stride],
            dilations: vec![1],
            lo: vec![kernel / 2],
            hi: vec![0],
        };
        self.add(op, &[a], mag, err)
    }

    pub(super) fn norm(&mut self) -> Option<Info> {
        let a = self.float()?;
        let dims = self.b.ty(a.v).dims.clone();
        let axis = dims.len().checked_sub(1)?;
        let (n, e) = (self.extent(&dims[axis..]), eps(self.dtype(a)));
        let epsilon = Real(0.5);
        // The standard deviation is at least the root of epsilon.
        let err = (2.0 + 2.0 * n.sqrt()) * (a.err + n.min(64.0) * e * a.mag) / 0.7 + FUNCTION_ULPS * e * n.sqrt();
        if self.r.one_in(2) {
            self.add(op::LayerNorm { axis, epsilon }, &[a], n.sqrt(), err)
        } else {
            self.add(op::RmsNorm { axis, epsilon }, &[a], n.sqrt(), err)
        }
    }

    pub(super) fn softmax(&mut self) -> Option<Info> {
        let a = self.float()?;
        let dims = self.b.ty(a.v).dims.clone();
        let axis = self.r.below(dims.len().max(1));
        let (n, e) = (self.extent(dims.get(axis..=axis)?), eps(self.dtype(a)));
        let log = self.r.one_in(3);
        let mag = if log { 2.0 * a.mag + n.ln() + 1.0 } else { 1.0 };
        let err = 2.0 * a.err + (n + FUNCTION_ULPS) * e * mag + 2.0 * e * a.mag;
        self.add(op::Softmax { axis, log }, &[a], mag, err)
    }

    pub(super) fn contract(&mut self) -> Option<Info> {
        let a = self.pick(|t, _| t.rank() >= 2 && t.dtype != DType::Bool)?;
        let (d, n) = (self.dtype(a), self.b.ty(a.v).rank());
        let shared = self.b.ty(a.v).dims[n - 1].clone();
        let b = self.pick(|t, _| t.dtype == d && t.rank() >= 1 && t.dims.contains(&shared))?;
        let at = self.b.ty(b.v).dims.iter().position(|x| *x == shared)?;
        let lhs: Vec<u8> = (0..n as u8).collect();
        let k = n as u8 - 1;
        let rhs: Vec<u8> = (0..self.b.ty(b.v).rank()).map(|i| if i == at { k } else { 10 + i as u8 }).collect();
        let out = lhs.iter().chain(&rhs).copied().filter(|l| *l != k).collect();
        if !d.is_float() {
            let out_dtype = if d == DType::I64 { DType::I64 } else { DType::I32 };
            return self.add(op::Contract { lhs, rhs, out, out_dtype }, &[a, b], 2f64.powi(64), 0.0);
        }
        let k = self.extent(&[shared]);
        let (mag, err) = product(a, b, k, eps(d));
        self.add(op::Contract { lhs, rhs, out, out_dtype: d }, &[a, b], mag, err)
    }

    /// A product with a constant, dense or with zeros in blocks of four outputs or scattered.
    pub(super) fn linear(&mut self) -> Option<Info> {
        let a = self.pick(|t, _| t.rank() >= 2 && t.dtype == DType::F32)?;
        let rank = self.b.ty(a.v).rank();
        let k = self.b.ty(a.v).dims[rank - 1].as_usize()?;
        let n = *self.r.pick(&[3, 16, 36, 64]);
        let block = *self.r.pick(&[0, 1, 4]);
        let mut weight = Tensor::zeros(DType::F32, &[k, n]).ok()?;
        let mut kept = true;
        for i in 0..weight.count() {
            if block > 0 && (i % n).is_multiple_of(block) {
                kept = self.r.one_in(5);
            }
            if kept {
                weight.set(i, literal(self.r, DType::F32, false));
            }
        }
        let w = self.constant(weight)?;
        let lhs: Vec<u8> = (0..rank as u8).collect();
        let (l, o) = (rank as u8 - 1, rank as u8);
        let out = (0..l).chain([o]).collect();
        let (mag, err) = product(a, w, k as f64, eps(DType::F32));
        self.add(op::Contract { lhs, rhs: vec![l, o], out, out_dtype: DType::F32 }, &[a, w], mag, err)
    }

    pub(super) fn attention(&mut self) -> Option<Info> {
        let q = self.pick(|t, i| t.rank() == 4 && t.dtype.is_float() && i.mag < 50.0)?;
        let ty = self.b.ty(q.v).clone();
        // Fewer key heads than query heads where there are such.
        let fits =
            |t: &TensorType, _: &Info| t.dtype == ty.dtype && t.rank() == 4 && t.dims[0] == ty.dims[0] && t.dims[3] == ty.dims[3];
        let k = self.pick(fits)?;
        let keys = self.b.ty(k.v).clone();
        let v = self.pick(|t, _| *t == keys)?;
        let (d, e) = (self.extent(&ty.dims[3..]), eps(ty.dtype));
        let (_, logits) = product(q, k, d, e);
        let n = self.extent(&keys.dims[2..3]);
        let scale = 1.0 / d.sqrt();
        let mut args = vec![q, k, v];
        let mask = self.pick(|t, i| t.rank() <= 4 && (t.dtype == DType::Bool || t.dtype == ty.dtype && i.mag < 50.0));
        let masked = mask.filter(|_| self.r.one_in(2));
        args.extend(masked);
        let of_mask = masked.map_or(0.0, |m| m.err + e * m.mag);
        // A soft cap makes no error larger: its slope is at most 1.
        let softcap = Real(*self.r.pick(&[0.0, 0.0, 4.0]));
        let err =
            4.0 * (scale * logits + of_mask + FUNCTION_ULPS * e * softcap.0) * v.mag + v.err + (n + FUNCTION_ULPS) * e * v.mag;
        let causal = self.r.one_in(2).then(|| Dim::from(0));
        let clear = self.r.one_in(2);
        self.add(op::Attention { scale: Real(scale), causal, softcap, clear }, &args, v.mag, err)
    }

    pub(super) fn rope(&mut self) -> Option<Info> {
        let x = self.pick(|t, _| t.rank() >= 1 && t.dtype.is_float())?;
        let ty = self.b.ty(x.v).clone();
        let rotary = ty.dims[ty.rank() - 1].as_usize()? & !1;
        let mut half = ty.dims.clone();
        half[ty.rank() - 1] = Dim::from(rotary / 2);
        let angle = self.pick(|t, _| t.dtype == ty.dtype && t.rank() <= half.len())?;
        let of = |g: &mut Self, op| g.map_un(op, angle, 1.0, angle.err + FUNCTION_ULPS * eps(ty.dtype));
        let (cos, sin) = (of(self, UnOp::Cos)?, of(self, UnOp::Sin)?);
        let interleaved = self.r.one_in(2);
        let (mag, err) = product(x, cos, 2.0, eps(ty.dtype));
        self.add(op::Rope { rotary, interleaved }, &[x, cos, sin], mag, err)
    }

    /// Groups of tokens: their means, their sizes, or the values of groups given back to their members.
    pub(super) fn tokens(&mut self) -> Option<Info> {
        let x = self.pick(|t, _| t.rank() == 3 && t.dtype == DType::F32)?;
        let dims = self.b.ty(x.v).dims.clone();
        let n = dims[1].as_usize()?;
        let groups = 1 + self.r.below(n);
        let index = self.add(op::Iota { dims: dims[..2].to_vec(), axis: 1 }, &[], n as f64, 0.0)?;
        let m = self.b.scalar(Literal::from_i64(DType::I64, groups as i64)).ok()?;
        let plan = self.map_bin(BinOp::Mod, index, Info { v: m, mag: 0.0, err: 0.0 }, groups as f64, 0.0)?;
        if self.r.one_in(3) {
            // The other tensor has one row per group.
            let y = self.pick(|t, _| t.rank() >= 2 && t.dims[0] == dims[0] && t.dims[1].is(groups as i64))?;
            return self.moved_first(op::TokenUnmerge { batch: 0, axis: 1 }, &[y, plan]);
        }
        let size = self.moved(op::Map { body: Body::cast(DType::F32) }, &[index])?;
        let size = self.one_plus_abs(size)?;
        let (n, e) = (n as f64, eps(DType::F32));
        if self.r.one_in(2) {
            return self.add(
                op::TokenSize { tokens: groups.into() },
                &[plan, size],
                n * size.mag,
                n * (size.err + n * e * size.mag),
            );
        }
        // Shares of at most 1, whose sizes are at least 1.
        let share = 2.0 * n * (size.err + e * (1.0 + size.mag));
        self.add(op::TokenApply { tokens: groups.into() }, &[x, plan, size], x.mag, x.err + (share + 2.0 * n * e) * n * x.mag)
    }

    pub(super) fn conv(&mut self) -> Option<Info> {
        let x = self.pick(|t, _| t.rank() == 3 && t.dtype.is_float())?;
        let ty = self.b.ty(x.v).clone();
        let w = self.pick(|t, _| t.rank() == 3 && t.dtype == ty.dtype && t.dims[1] == ty.dims[1])?;
        let wd = self.b.ty(w.v).dims.clone();
        let kernel = wd[2].as_const()?;
        let (mag, err) = product(x, w, self.extent(&wd[1..]), eps(ty.dtype));
        let stride = 1 + self.r.below(2) as i64;
        let op = op::Conv { strides: vec![stride], dilations: vec![1], lo: vec![kernel - 1], hi: vec![kernel - 1], groups: 1 };
        self.add(op, &[x, w], mag, err)
    }
}

/// Magnitude and error of a sum of `k` products, in any order.
fn product(a: Info, b: Info, k: f64, e: f64) -> (f64, f64) {
    (k * a.mag * b.mag, k * (a.err * b.mag + b.err * a.mag + a.err * b.err) + k * e * k * a.mag * b.mag)
}
