//! `contract`: sums of products over shared axes (matmul, batched matmul, einsum of two operands).

use super::{OpSpec, TypeError, rules};
use crate::interp::{EvalCx, EvalError, Tensor, flat, for_each_index, strides};
use crate::scalar::Literal;
use crate::tensor::ConstPool;
use crate::types::{DType, Dim, TensorType};

tensor_op! {
    /// A two-operand einsum without repeated labels inside one operand. Axes are named by small numbers; a label in both operands and
    /// in the result is a batch axis, in both operands only a contracted axis, in one operand and the result a free axis. Every label of
    /// the result occurs in an operand; a label of one operand only that is not in the result is not allowed (reduce first).
    /// Extents of equal labels are equal (no broadcasting).
    ///
    /// Floats accumulate in at least f32 and round once to `out_dtype`; integers are converted to `out_dtype` first and wrap.
    Contract = "contract" {
        /// Labels of the axes of the first operand.
        lhs: Vec<u8>,
        /// Labels of the axes of the second operand.
        rhs: Vec<u8>,
        /// Labels of the axes of the result.
        out: Vec<u8>,
        /// Element type of the result: the operands' float type, or a wider integer.
        out_dtype: DType,
    }
}

impl Contract {
    /// The labels of batched matmul `[batch.., m, k] x [batch.., k, n]` with `batch` leading axes in both.
    pub fn matmul(batch: usize, out_dtype: DType) -> Self {
        let lead: Vec<u8> = (0..batch as u8).collect();
        let (m, k, n) = (batch as u8, batch as u8 + 1, batch as u8 + 2);
        let with = |tail: [u8; 2]| lead.iter().copied().chain(tail).collect::<Vec<u8>>();
        Self { lhs: with([m, k]), rhs: with([k, n]), out: with([m, n]), out_dtype }
    }

    /// The labels of a linear layer `[.., k] x [k, n]` where the first operand has `rank` axes.
    pub fn linear(rank: usize, out_dtype: DType) -> Self {
        let lhs: Vec<u8> = (0..rank as u8).collect();
        let (k, n) = (rank as u8 - 1, rank as u8);
        let mut out = lhs.clone();
        out[rank - 1] = n;
        Self { lhs, rhs: vec![k, n], out, out_dtype }
    }
}

impl OpSpec for Contract {
    fn infer(&self, operands: &[&TensorType], _: &ConstPool) -> Result<Vec<TensorType>, TypeError> {
        rules::arity(Self::MNEMONIC, operands, 2..=2)?;
        let (a, b) = (operands[0], operands[1]);
        let bad = |what: &str| {
            TypeError::dims(Self::MNEMONIC, format!("{what}: {a} {:?}, {b} {:?} -> {:?}", self.lhs, self.rhs, self.out))
        };
        if a.dtype != b.dtype && (a.dtype.is_float() || b.dtype.is_float()) || a.dtype == DType::Bool {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot multiply {a} by {b}")));
        }
        if a.dtype.is_float() && self.out_dtype != a.dtype && self.out_dtype != DType::F32
            || a.dtype.is_float() != self.out_dtype.is_float()
        {
            return Err(TypeError::dtype(Self::MNEMONIC, format!("cannot give {} from {a} and {b}", self.out_dtype)));
        }
        if self.lhs.len() != a.rank() || self.rhs.len() != b.rank() {
            return Err(bad("has another number of labels than axes"));
        }
        for labels in [&self.lhs, &self.rhs, &self.out] {
            if labels.iter().enumerate().any(|(i, l)| labels[..i].contains(l)) {
                return Err(bad("repeats a label"));
            }
        }
        let extent = |l: &u8| -> Option<Dim> {
            let x = self.lhs.iter().position(|m| m == l).map(|i| a.dims[i].clone());
            let y = self.rhs.iter().position(|m| m == l).map(|i| b.dims[i].clone());
            match (x, y) {
                (Some(x), Some(y)) => (x == y).then_some(x),
                (x, y) => x.or(y).filter(|_| self.out.contains(l)),
            }
        };
        for l in self.lhs.iter().chain(&self.rhs).chain(&self.out) {
            if extent(l).is_none() {
                return Err(bad("has axes that do not fit"));
            }
        }
        Ok(vec![TensorType::new(self.out_dtype, self.out.iter().filter_map(extent).collect::<Vec<_>>())])
    }

    fn eval(&self, operands: &[&Tensor], cx: &EvalCx<'_>) -> Result<Vec<Tensor>, EvalError> {
        let _ = cx;
        let (a, b) = (operands[0], operands[1]);
        let extent = |l: &u8| {
            let x = self.lhs.iter().position(|m| m == l).map(|i| a.dims[i]);
            x.or_else(|| self.rhs.iter().position(|m| m == l).map(|i| b.dims[i])).unwrap_or(1)
        };
        let inner: Vec<u8> = self.lhs.iter().filter(|l| !self.out.contains(l)).copied().collect();
        let stride_of =
            |labels: &[u8], dims: &[usize], l: &u8| labels.iter().position(|m| m == l).map_or(0, |i| strides(dims)[i]);
        let table =
            |order: &[u8], labels: &[u8], dims: &[usize]| order.iter().map(|l| stride_of(labels, dims, l)).collect::<Vec<_>>();
        let out_dims: Vec<usize> = self.out.iter().map(extent).collect();
        let inner_dims: Vec<usize> = inner.iter().map(extent).collect();
        let (ao, bo) = (table(&self.out, &self.lhs, &a.dims), table(&self.out, &self.rhs, &b.dims));
        let (ai, bi) = (table(&inner, &self.lhs, &a.dims), table(&inner, &self.rhs, &b.dims));
        let mut steps = Vec::new();
        for_each_index(&inner_dims, |idx| {
            steps.push((flat(idx, &ai), flat(idx, &bi)));
            Ok(())
        })?;
        let mut out = Tensor::zeros(self.out_dtype, &out_dims)?;
        let mut to = 0;
        if a.dtype.is_float() {
            let (x, y) = (a.to_f64(), b.to_f64());
            for_each_index(&out_dims, |idx| {
                let (p, q) = (flat(idx, &ao), flat(idx, &bo));
                let sum: f64 = steps.iter().map(|(i, j)| x[p + i] * y[q + j]).sum();
                out.set(to, Literal::from_f64(self.out_dtype, sum));
                to += 1;
                Ok(())
            })?;
        } else {
            for_each_index(&out_dims, |idx| {
                let (p, q) = (flat(idx, &ao), flat(idx, &bo));
                let product = |(i, j): &(usize, usize)| a.get_i64(p + i).wrapping_mul(b.get_i64(q + j));
                let sum = steps.iter().map(product).fold(0i64, i64::wrapping_add);
                out.set(to, Literal::from_i64(self.out_dtype, sum));
                to += 1;
                Ok(())
            })?;
        }
        Ok(vec![out])
    }
}
