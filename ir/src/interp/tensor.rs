//! Dense tensors of the interpreter.

use super::EvalError;
use crate::scalar::Literal;
use crate::tensor::ConstData;
use crate::types::{DType, Dim, TensorType};

/// A dense row-major tensor with constant dims. Bytes are little endian.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub dims: Vec<usize>,
    /// `product(dims) * dtype.size_bytes()` bytes.
    pub data: Vec<u8>,
}

/// Largest tensor that the interpreter makes, in bytes.
const MAX_BYTES: usize = 1 << 36;

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// If it is too large.
    pub fn zeros(dtype: DType, dims: &[usize]) -> Result<Self, EvalError> {
        let bytes = dims.iter().try_fold(dtype.size_bytes(), |a, d| a.checked_mul(*d)).filter(|b| *b <= MAX_BYTES);
        let bytes = bytes.ok_or_else(|| EvalError::Shape(format!("a tensor of shape {dims:?} is too large")))?;
        Ok(Self { dtype, dims: dims.to_vec(), data: vec![0; bytes] })
    }

    /// A tensor from `f32` values; their number must be the product of the dims.
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Self {
        Self { dtype: DType::F32, dims: dims.to_vec(), data: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// A tensor from `i64` values; their number must be the product of the dims.
    pub fn from_i64(dims: &[usize], values: &[i64]) -> Self {
        Self { dtype: DType::I64, dims: dims.to_vec(), data: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// A copy of a constant.
    pub fn from_const(c: &ConstData) -> Self {
        Self { dtype: c.ty().dtype, dims: c.dims(), data: c.bytes().to_vec() }
    }

    /// The same as a constant of a module.
    pub fn to_const(&self) -> Option<ConstData> {
        ConstData::new(self.ty(), self.data.clone())
    }

    /// The type.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, self.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Element `i` in row-major order.
    pub fn get(&self, i: usize) -> Literal {
        let n = self.dtype.size_bytes();
        let mut b = [0u8; 8];
        b[..n].copy_from_slice(&self.data[i * n..(i + 1) * n]);
        Literal { dtype: self.dtype, bits: u64::from_le_bytes(b) }
    }

    /// Sets element `i`; the literal must be of this dtype.
    pub fn set(&mut self, i: usize, v: Literal) {
        let n = self.dtype.size_bytes();
        self.data[i * n..(i + 1) * n].copy_from_slice(&v.bits.to_le_bytes()[..n]);
    }

    /// Element `i` as `f64`.
    pub fn get_f64(&self, i: usize) -> f64 {
        self.get(i).to_f64()
    }

    /// Element `i` as `i64`.
    pub fn get_i64(&self, i: usize) -> i64 {
        self.get(i).to_i64()
    }

    /// All elements as `f64`.
    pub fn to_f64(&self) -> Vec<f64> {
        if self.dtype == DType::F32 {
            return self.data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
        }
        (0..self.count()).map(|i| self.get_f64(i)).collect()
    }

    /// A tensor of a float type from `f64` values, each rounded once.
    ///
    /// # Errors
    /// If it is too large.
    pub fn from_f64(dtype: DType, dims: &[usize], values: &[f64]) -> Result<Self, EvalError> {
        let mut t = Self::zeros(dtype, dims)?;
        for (i, v) in values.iter().enumerate().take(t.count()) {
            t.set(i, Literal::from_f64(dtype, *v));
        }
        Ok(t)
    }

    /// The tensor of `dims` whose element at each index is the element of `self` at the flat position that `f` gives.
    ///
    /// # Errors
    /// As `f`'s, or if the result is too large.
    pub fn pick(&self, dims: &[usize], mut f: impl FnMut(&[usize]) -> Result<usize, EvalError>) -> Result<Self, EvalError> {
        let mut out = Self::zeros(self.dtype, dims)?;
        let n = self.dtype.size_bytes();
        let mut to = 0;
        for_each_index(dims, |idx| {
            let from = f(idx)? * n;
            let piece = self.data.get(from..from + n);
            let piece = piece.ok_or_else(|| EvalError::Shape("an element outside its tensor".into()))?;
            out.data[to..to + n].copy_from_slice(piece);
            to += n;
            Ok(())
        })?;
        Ok(out)
    }
}

/// Row-major strides in elements.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut s = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        s[i - 1] = s[i] * dims[i];
    }
    s
}

/// Strides of an operand under NumPy broadcasting to `rank` axes: 0 where it has extent 1.
pub fn broadcast_strides(dims: &[usize], rank: usize) -> Vec<usize> {
    let mut out = vec![0; rank];
    for (i, s) in strides(dims).into_iter().enumerate() {
        if dims[i] != 1 {
            out[rank - dims.len() + i] = s;
        }
    }
    out
}

/// The flat position of an index.
pub fn flat(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum()
}

/// Calls `f` with every index in row-major order.
///
/// # Errors
/// As `f`'s.
pub fn for_each_index(dims: &[usize], mut f: impl FnMut(&[usize]) -> Result<(), EvalError>) -> Result<(), EvalError> {
    if dims.contains(&0) {
        return Ok(());
    }
    let mut idx = vec![0; dims.len()];
    loop {
        f(&idx)?;
        let mut axis = dims.len();
        loop {
            if axis == 0 {
                return Ok(());
            }
            axis -= 1;
            idx[axis] += 1;
            if idx[axis] < dims[axis] {
                break;
            }
            idx[axis] = 0;
        }
    }
}
