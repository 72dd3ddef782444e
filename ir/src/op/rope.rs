//! `rope`: rotary position embedding.

use super::{OpSpec, TypeError, broadcast_dims, rules};
use crate::interp::{EvalCx, EvalError, Tensor, for_each_index, broadcast_strides, flat};
use crate::tensor::ConstPool;
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
        let Some(d) = x.dims.last().and_then(Dim::as_usize).filter(|d| *d >= self.rotary && self.rotary % 2 == 0) else {
            return Err(TypeError::dims(Self::MNEMONIC, format!("cannot rotate {} features of {x}", self.rotary)));
        };
        let _ = d;
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
}
