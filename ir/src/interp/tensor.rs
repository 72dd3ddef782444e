//! Dense tensors of the interpreter.

use crate::types::DType;

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
