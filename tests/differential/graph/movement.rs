//! Steps that move elements.

use transc_ir::interp::Tensor;
use transc_ir::op::{self, PadMode, ScatterKind};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::ConstData;
use transc_ir::{DType, Dim, TensorType};

use super::{Gen, Info};

impl Gen<'_, '_> {
    pub(super) fn movement(&mut self) -> Option<Info> {
        let a = self.any();
        let dims = self.b.ty(a.v).dims.clone();
        match self.r.below(4) {
            0 => {
                let mut perm: Vec<usize> = (0..dims.len()).collect();
                for i in (1..perm.len()).rev() {
                    perm.swap(i, self.r.below(i + 1));
                }
                self.moved(op::Transpose { perm }, &[a])
            }
            1 => {
                let new = match self.r.below(3) {
                    0 => vec![dims.iter().product::<Dim>()],
                    1 => [vec![Dim::from(1)], dims].concat(),
                    _ if dims.len() > 1 => [vec![&dims[0] * &dims[1]], dims[2..].to_vec()].concat(),
                    _ => [dims, vec![Dim::from(1)]].concat(),
                };
                self.moved(op::Reshape { dims: new }, &[a])
            }
            2 => {
                let to = self.dims();
                self.moved(op::Broadcast { dims: to }, &[a])
            }
            _ => {
                let (mut starts, mut sizes, mut steps) = (Vec::new(), Vec::new(), Vec::new());
                for d in &dims {
                    match d.as_const() {
                        Some(n) if n > 1 && self.r.one_in(2) => {
                            let step = *self.r.pick(&[1i64, 1, 2, -1]);
                            let start = self.r.below(n as usize) as i64;
                            let left = if step > 0 { (n - start + step - 1) / step } else { start + 1 };
                            starts.push(start.into());
                            sizes.push((1 + self.r.below(left as usize) as i64).into());
                            steps.push(step);
                        }
                        _ => {
                            starts.push(Dim::from(0));
                            sizes.push(d.clone());
                            steps.push(1);
                        }
                    }
                }
                self.moved(op::Slice { starts, sizes, steps }, &[a])
            }
        }
    }

    pub(super) fn concat(&mut self) -> Option<Info> {
        let a = self.any();
        let ty = self.b.ty(a.v).clone();
        let axis = self.r.below(ty.rank().max(1));
        let fits = |t: &TensorType, _: &Info| {
            t.dtype == ty.dtype && t.rank() == ty.rank() && (0..ty.rank()).all(|i| i == axis || t.dims[i] == ty.dims[i])
        };
        let b = self.pick(fits)?;
        self.moved(op::Concat { axis }, &[a, b])
    }

    pub(super) fn pad(&mut self) -> Option<Info> {
        let a = self.any();
        let ty = self.b.ty(a.v).clone();
        let mode = *self.r.pick(&[PadMode::Constant, PadMode::Constant, PadMode::Edge]);
        let mut some = |_| Dim::from(self.r.below(3) as i64);
        let (lo, hi) = (ty.dims.iter().map(&mut some).collect(), ty.dims.iter().map(&mut some).collect());
        let op = op::Pad { lo, hi, mode };
        if mode != PadMode::Constant {
            return self.moved(op, &[a]);
        }
        let v = self.b.scalar(Literal::from_i64(ty.dtype, 1)).ok()?;
        self.moved(op, &[a, Info { v, mag: 1.0, err: 0.0 }])
    }

    /// A constant; its magnitude is that of the random scalars.
    pub(super) fn constant(&mut self, t: Tensor) -> Option<Info> {
        let data = ConstData::new(t.ty(), t.data)?;
        let new = Info { v: self.b.constant("c", data).ok()?, mag: 4.0, err: 0.0 };
        self.all.push(new);
        Some(new)
    }

    /// Integers that fit an axis of constant extent, negative ones now and then.
    fn index_into(&mut self, extent: &Dim, index: Info) -> Option<Info> {
        let d = self.dtype(index);
        let n = extent.as_const().filter(|n| *n > 0)?;
        let divisor = self.b.scalar(Literal::from_i64(d, n)).ok()?;
        // The remainder has the sign of the dividend or of the divisor: both are indices.
        let op = *self.r.pick(&[BinOp::Mod, BinOp::Rem]);
        self.map_bin(op, index, Info { v: divisor, mag: 0.0, err: 0.0 }, n as f64, 0.0)
    }

    pub(super) fn indexed(&mut self) -> Option<Info> {
        let data = self.pick(|t, _| t.rank() >= 1)?;
        let ty = self.b.ty(data.v).clone();
        let axis = self.r.below(ty.rank());
        let way = self.r.below(5);
        let fits = |t: &TensorType| match way {
            1 | 2 => t.rank() == ty.rank() && (0..ty.rank()).all(|i| i == axis || t.dims[i] == ty.dims[i]),
            _ => true,
        };
        let index = self.pick(|t, _| matches!(t.dtype, DType::I64 | DType::I32) && fits(t))?;
        let lead = self.b.ty(index.v).dims.clone();
        // Several updates of one element: only folds that do not depend on their order.
        let kind = *self.r.pick(&[ScatterKind::Min, ScatterKind::Max]);
        let updates = |g: &mut Self, dims: Vec<Dim>| {
            let update = g.pick(|t, _| t.dtype == ty.dtype)?;
            g.moved(op::Broadcast { dims }, &[update])
        };
        match way {
            0 => {
                let index = self.index_into(&ty.dims[axis], index)?;
                self.moved_first(op::Gather { axis }, &[data, index])
            }
            1 => {
                let index = self.index_into(&ty.dims[axis], index)?;
                self.moved_first(op::GatherElements { axis }, &[data, index])
            }
            2 => {
                let index = self.index_into(&ty.dims[axis], index)?;
                let update = updates(self, lead)?;
                self.moved(op::ScatterElements { axis, kind }, &[data, index, update])
            }
            3 => {
                let index = self.index_into(&ty.dims[0], index)?;
                let index = self.moved(op::Reshape { dims: [lead, vec![Dim::from(1)]].concat() }, &[index])?;
                self.moved_first(op::GatherNd { batch_dims: 0 }, &[data, index])
            }
            _ => {
                let index = self.index_into(&ty.dims[0], index)?;
                let update = updates(self, [&lead, &ty.dims[1..]].concat())?;
                let index = self.moved(op::Reshape { dims: [lead, vec![Dim::from(1)]].concat() }, &[index])?;
                self.moved(op::ScatterNd { kind }, &[data, index, update])
            }
        }
    }

    pub(super) fn top_k(&mut self) -> Option<Vec<Info>> {
        let a = self.pick(|t, i| t.rank() >= 1 && i.err == 0.0 && t.dtype != DType::Bool)?;
        let ty = self.b.ty(a.v).clone();
        let axis = self.r.below(ty.rank());
        let n = ty.dims[axis].as_const()?;
        let k = Dim::from(1 + self.r.below(n as usize) as i64);
        let results = self.b.add_multi(op::TopK { k, axis, largest: self.r.one_in(2) }, &[a.v]).ok()?;
        Some(vec![Info { v: results[0], ..a }, Info { v: results[1], mag: 36.0, err: 0.0 }])
    }
}
