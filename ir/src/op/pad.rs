//! `pad`: grow a tensor at both ends of its axes.

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, for_each_index, strides};
use crate::scalar::named_enum;
use crate::tensor::ConstPool;
use crate::types::{Dim, TensorType};

named_enum! {
    /// What stands in the padding.
    PadMode {
        /// The second operand, a scalar.
        Constant = "constant",
        /// The nearest element.
        Edge = "edge",
        /// Mirrored without repeating the edge.
        Reflect = "reflect",
        /// Periodic continuation.
        Wrap = "wrap",
    }
}

impl PadMode {
    /// The element of an axis of extent `n` that stands at position `i`, which may lie outside; `None` for the constant.
    pub fn source(self, i: i64, n: i64) -> Option<usize> {
        let at = match self {
            _ if (0..n).contains(&i) => i,
            PadMode::Constant => return None,
            PadMode::Edge => i.clamp(0, (n - 1).max(0)),
            PadMode::Wrap if n > 0 => i.rem_euclid(n),
            // Period 2(n-1): up and down again without repeating the ends.
            PadMode::Reflect if n > 1 => {
                let r = i.rem_euclid(2 * (n - 1));
                r.min(2 * (n - 1) - r)
            }
            _ => 0,
        };
        usize::try_from(at).ok()
    }
}

tensor_op! {
    /// Operands: a tensor, and for mode `constant` a scalar of its dtype. `lo` and `hi` are not negative (cropping is a slice).
    Pad = "pad" {
        /// Elements added before, per axis.
        lo: Vec<Dim>,
        /// Elements added after, per axis.
        hi: Vec<Dim>,
        /// What stands in the padding.
        mode: PadMode,
    }
}

impl OpSpec for Pad {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        let n = if self.mode == PadMode::Constant { 2 } else { 1 };
        rules::arity(Self::MNEMONIC, operands, n..=n)?;
        let t = operands[0];
        if self.lo.len() != t.rank() || self.hi.len() != t.rank() {
            return Err(TypeError::rank(Self::MNEMONIC, format!("needs two amounts per axis of {t}")));
        }
        if let Some(v) = operands.get(1)
            && (v.rank() != 0 || v.dtype != t.dtype)
        {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("pads {t} with {v}, needs a scalar of its dtype")));
        }
        if self.lo.iter().chain(&self.hi).any(|d| d.as_const().is_some_and(|c| c < 0)) {
            return Err(TypeError::dims(Self::MNEMONIC, "has a negative amount"));
        }
        let dims = t.dims.iter().zip(self.lo.iter().zip(&self.hi)).map(|(d, (l, h))| &(d + l) + h);
        Ok(vec![TensorType::new(t.dtype, dims.collect::<Vec<_>>())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let (lo, hi, t) = (cx.extents(&self.lo)?, cx.extents(&self.hi)?, operands[0]);
        let dims: Vec<usize> = (0..t.dims.len()).map(|a| lo[a] + t.dims[a] + hi[a]).collect();
        let s = strides(&t.dims);
        let mut out = Tensor::zeros(t.dtype, &dims)?;
        let mut to = 0;
        for_each_index(&dims, |idx| {
            let mut at = Some(0);
            for (a, i) in idx.iter().enumerate() {
                let source = self.mode.source(*i as i64 - lo[a] as i64, t.dims[a] as i64);
                at = at.zip(source).map(|(at, i)| at + i * s[a]);
            }
            match at {
                Some(i) if i < t.count() => out.set(to, t.get(i)),
                _ => {
                    if let Some(v) = operands.get(1) {
                        out.set(to, v.get(0));
                    }
                }
            }
            to += 1;
            Ok(())
        })?;
        Ok(vec![out])
    }
}
