//! Tensors of the interface.

use crate::abi::DType;
use crate::mem::AlignedBytes;
use crate::Error;

/// An owned dense tensor, row-major, 64-byte aligned.
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: AlignedBytes,
}

/// A borrowed dense tensor.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [usize],
    data: &'a [u8],
}

/// Element types of Rust that tensors hold.
pub trait Element: Copy {
    /// The type's number.
    const DTYPE: DType;
    /// Appends the little-endian bytes.
    fn put(self, out: &mut [u8]);
    /// Reads the little-endian bytes.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t {
        const DTYPE: DType = DType::$d;
        fn put(self, out: &mut [u8]) { out.copy_from_slice(&self.to_le_bytes()); }
        fn get(bytes: &[u8]) -> Self { let mut b = [0; size_of::<$t>()]; b.copy_from_slice(bytes); Self::from_le_bytes(b) }
    })* };
}
element!(f32 => F32, f64 => F64, u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64);

fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, Error> {
    shape
        .iter()
        .try_fold(dtype.size_bytes(), |a, d| a.checked_mul(*d))
        .ok_or_else(|| Error::BadTensor(format!("a tensor of shape {shape:?} is too large")))
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// If the memory is not to be had.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, Error> {
        Ok(Self { dtype, shape: shape.to_vec(), data: AlignedBytes::zeroed(byte_len(dtype, shape)?)? })
    }

    /// A copy of row-major little-endian bytes.
    ///
    /// # Errors
    /// If their number does not fit the shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self, Error> {
        let mut t = Self::zeros(dtype, shape)?;
        if bytes.len() != t.data.len() {
            return Err(Error::BadTensor(format!("a tensor of shape {shape:?} needs {} bytes, got {}", t.data.len(), bytes.len())));
        }
        t.data.as_mut_slice().copy_from_slice(bytes);
        Ok(t)
    }

    /// A copy of row-major elements.
    ///
    /// # Errors
    /// If their number does not fit the shape.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Result<Self, Error> {
        let mut t = Self::zeros(T::DTYPE, shape)?;
        let size = size_of::<T>();
        if values.len() * size != t.data.len() {
            return Err(Error::BadTensor(format!("a tensor of shape {shape:?} cannot hold {} elements", values.len())));
        }
        for (v, b) in values.iter().zip(t.data.as_mut_slice().chunks_exact_mut(size)) {
            v.put(b);
        }
        Ok(t)
    }

    /// The elements.
    ///
    /// # Errors
    /// If the tensor holds another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, Error> {
        if self.dtype != T::DTYPE {
            return Err(Error::BadTensor(format!("the tensor holds {}, not {}", self.dtype.name(), T::DTYPE.name())));
        }
        Ok(self.bytes().chunks_exact(size_of::<T>()).map(T::get).collect())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.as_mut_slice()
    }

    /// A borrow.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, data: self.bytes() }
    }
}

impl<'a> TensorView<'a> {
    /// A view of row-major little-endian bytes.
    ///
    /// # Errors
    /// If their number does not fit the shape.
    pub fn new(dtype: DType, shape: &'a [usize], data: &'a [u8]) -> Result<Self, Error> {
        let want = byte_len(dtype, shape)?;
        if data.len() == want {
            Ok(Self { dtype, shape, data })
        } else {
            Err(Error::BadTensor(format!("a tensor of shape {shape:?} needs {want} bytes, got {}", data.len())))
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.data
    }
}
