//! `rope`: rotary position embedding.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor, broadcast_strides, flat, for_each_index};
use crate::scalar::{BinOp, Body, Ref};
use crate::tensor::ConstPool;
use crate::tensor::{Builder, Value};
use crate::types::{Dim, TensorType};

tensor_op! {
    /// Operands `x[.., D]` and `cos`, `sin` that broadcast to `x.dims[..-1] + [R/2]`. Rotates the first `R = rotary` features of the
    /// last axis in pairs (Su et al. 2021): pair `i` is `(i, i + R/2)`, or `(2i, 2i + 1)` if interleaved; the other features pass.
    /// `(a, b) -> (a cos - b sin, a sin + b cos)`.
    Rope = "rope" {
        /// Number of rotated features, even.
        rotary: usize,
        /// Pairs of neighbours instead of halves.
        interleaved: bool,
    }
}

impl OpSpec for Rope {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 3..=3)?;
        let x = operands[0];
        rules::float(Self::MNEMONIC, x)?;
        if !x.dims.last().and_then(Dim::as_usize).is_some_and(|d| d >= self.rotary && self.rotary.is_multiple_of(2)) {
            return Err(TypeError::dims(Self::MNEMONIC, format!("cannot rotate {} features of {x}", self.rotary)));
        }
        let mut half = x.dims.clone();
        if let Some(last) = half.last_mut() {
            *last = Dim::from(self.rotary / 2);
        }
        for t in &operands[1..] {
            if t.dtype != x.dtype || broadcast_dims(&t.dims, &half).as_ref() != Some(&half) {
                return Err(TypeError::broadcast(Self::MNEMONIC, x, t));
            }
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let t = operands[0];
        let (rank, half) = (t.dims.len(), self.rotary / 2);
        let width = t.dims[rank - 1];
        let mut x = t.to_f64();
        let (sc, ss) = (broadcast_strides(&operands[1].dims, rank), broadcast_strides(&operands[2].dims, rank));
        let mut row = 0;
        for_each_index(&t.dims[..rank - 1], |idx| {
            let mut full = idx.to_vec();
            full.push(0);
            for i in 0..half {
                full[rank - 1] = i;
                let (c, s) = (operands[1].get_f64(flat(&full, &sc)), operands[2].get_f64(flat(&full, &ss)));
                let (p, q) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (a, b) = (x[row + p], x[row + q]);
                x[row + p] = a * c - b * s;
                x[row + q] = a * s + b * c;
            }
            row += width;
            Ok(())
        })?;
        Ok(vec![Tensor::from_f64(t.dtype, &t.dims, &x)?])
    }

    fn decompose(&self, b: &mut Builder<'_>, x: &[Value]) -> Option<Result<Vec<Value>, TypeError>> {
        Some(self.rotate(b, x).map(|v| vec![v]))
    }
}

impl Rope {
    /// Slices, two rotations and a concatenation.
    fn rotate(&self, b: &mut Builder<'_>, x: &[Value]) -> Result<Value, TypeError> {
        let dims = b.ty(x[0]).dims.clone();
        let (last, half) = (dims.len() - 1, self.rotary / 2);
        let lead = &dims[..last];
        let with = |tail: &[usize]| lead.iter().cloned().chain(tail.iter().map(|n| Dim::from(*n))).collect::<Vec<Dim>>();
        // A box of the last axis or, for interleaved pairs, of the axis behind it.
        let part = |b: &mut Builder<'_>, v: Value, start: usize, size: usize| {
            let mut sizes = b.ty(v).dims.clone();
            let rank = sizes.len();
            let mut starts = vec![Dim::from(0); rank];
            starts[rank - 1] = start.into();
            sizes[rank - 1] = size.into();
            b.add(super::Slice { starts, sizes, steps: vec![1; rank] }, &[v])
        };
        let rotated = if self.rotary == dims[last].as_usize().unwrap_or(0) { x[0] } else { part(b, x[0], 0, self.rotary)? };
        let (first, second) = if self.interleaved {
            let pairs = b.reshape(rotated, with(&[half, 2]))?;
            let (p, q) = (part(b, pairs, 0, 1)?, part(b, pairs, 1, 1)?);
            (b.reshape(p, with(&[half]))?, b.reshape(q, with(&[half]))?)
        } else {
            (part(b, rotated, 0, half)?, part(b, rotated, half, half)?)
        };
        let turn = |b: &mut Builder<'_>, p: Value, q: Value, op: BinOp| {
            let mut f = Body::builder(4);
            let (u, v) = (f.bin(BinOp::Mul, Ref::Arg(0), Ref::Arg(2)), f.bin(BinOp::Mul, Ref::Arg(1), Ref::Arg(3)));
            let r = f.bin(op, u, v);
            b.add(super::Map { body: f.finish(r) }, &[p, q, x[1], x[2]])
        };
        let new_first = turn(b, first, second, BinOp::Sub)?;
        // `a sin + b cos` is the same form with the parts exchanged.
        let new_second = turn(b, second, first, BinOp::Add)?;
        let joined = if self.interleaved {
            let (p, q) = (b.reshape(new_first, with(&[half, 1]))?, b.reshape(new_second, with(&[half, 1]))?);
            let pairs = b.add(super::Concat { axis: last + 1 }, &[p, q])?;
            b.reshape(pairs, with(&[self.rotary]))?
        } else {
            b.add(super::Concat { axis: last }, &[new_first, new_second])?
        };
        if rotated == x[0] {
            return Ok(joined);
        }
        let width = dims[last].as_usize().unwrap_or(self.rotary);
        let rest = part(b, x[0], self.rotary, width - self.rotary)?;
        b.add(super::Concat { axis: last }, &[joined, rest])
    }
}
