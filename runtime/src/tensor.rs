//! Tensors of the interface: dense, row-major, little endian.

use std::fmt;

use crate::Error;
use crate::abi::DType;
use crate::mem::{self, AlignedBytes};

/// An owned tensor, 64-byte aligned.
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: AlignedBytes,
}

/// A borrowed tensor.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [usize],
    data: &'a [u8],
}

/// A borrowed tensor to write.
pub struct TensorViewMut<'a> {
    dtype: DType,
    shape: &'a [usize],
    data: &'a mut [u8],
}

mod sealed {
    pub trait Sealed {}
}

/// Numbers of Rust that tensors hold. For the other types, and for `bool`, use the bytes.
pub trait Element: sealed::Sealed + Copy {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(
        impl sealed::Sealed for $t {}
        impl Element for $t { const DTYPE: DType = DType::$d; }
    )* };
}
elements!(f32 => F32, f64 => F64, u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64);

fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, Error> {
    shape
        .iter()
        .try_fold(dtype.size_bytes(), |a, d| a.checked_mul(*d))
        .ok_or_else(|| Error::BadTensor(format!("a tensor of shape {shape:?} is too large")))
}

fn checked_len(dtype: DType, shape: &[usize], got: usize) -> Result<(), Error> {
    match byte_len(dtype, shape)? {
        want if want == got => Ok(()),
        want => Err(Error::BadTensor(format!("a {} tensor of shape {shape:?} needs {want} bytes, got {got}", dtype.name()))),
    }
}

/// `f32[2,3]`.
pub(crate) fn type_text(dtype: DType, shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("{}[{}]", dtype.name(), dims.join(","))
}

/// Type and shape, without the values.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&type_text(self.dtype, &self.shape))
    }
}

/// Type and shape, without the values.
impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&type_text(self.dtype, self.shape))
    }
}

/// Type and shape, without the values.
impl fmt::Debug for TensorViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&type_text(self.dtype, self.shape))
    }
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// If the shape is too large or the memory not to be had.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, Error> {
        Ok(Self { dtype, shape: shape.to_vec(), data: AlignedBytes::zeroed(byte_len(dtype, shape)?)? })
    }

    /// A copy of row-major little-endian bytes.
    ///
    /// # Errors
    /// If their number does not fit the shape, or the memory is not to be had.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self, Error> {
        checked_len(dtype, shape, bytes.len())?;
        Ok(Self { dtype, shape: shape.to_vec(), data: AlignedBytes::copied(bytes)? })
    }

    /// A copy of row-major elements.
    ///
    /// # Errors
    /// As [`Tensor::from_bytes`].
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Result<Self, Error> {
        Self::from_bytes(T::DTYPE, shape, mem::bytes_of(values))
    }

    /// The elements.
    ///
    /// # Errors
    /// If the tensor holds another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], Error> {
        self.view().as_slice()
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// If the tensor holds another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, Error> {
        Ok(self.as_slice()?.to_vec())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents in elements, outermost first.
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
        TensorView { dtype: self.dtype, shape: &self.shape, data: self.data.as_slice() }
    }

    /// A borrow to write.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { dtype: self.dtype, shape: &self.shape, data: self.data.as_mut_slice() }
    }
}

impl<'a> TensorView<'a> {
    /// A view of row-major little-endian bytes, of any alignment.
    ///
    /// # Errors
    /// If their number does not fit the shape.
    pub fn new(dtype: DType, shape: &'a [usize], data: &'a [u8]) -> Result<Self, Error> {
        checked_len(dtype, shape, data.len())?;
        Ok(Self { dtype, shape, data })
    }

    /// A view of row-major elements.
    ///
    /// # Errors
    /// If their number does not fit the shape.
    pub fn from_slice<T: Element>(shape: &'a [usize], values: &'a [T]) -> Result<Self, Error> {
        Self::new(T::DTYPE, shape, mem::bytes_of(values))
    }

    /// The elements.
    ///
    /// # Errors
    /// If the tensor holds another type, or its bytes are not aligned for it.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], Error> {
        if self.dtype != T::DTYPE {
            return Err(Error::BadTensor(format!("the tensor holds {}, not {}", self.dtype.name(), T::DTYPE.name())));
        }
        mem::elements(self.data).ok_or_else(|| Error::BadTensor(format!("the bytes are not aligned for {}", T::DTYPE.name())))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents in elements, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.data
    }
}

impl<'a> TensorViewMut<'a> {
    /// A view of row-major little-endian bytes, aligned to their element size.
    ///
    /// # Errors
    /// If their number does not fit the shape, or they are misaligned.
    pub fn new(dtype: DType, shape: &'a [usize], data: &'a mut [u8]) -> Result<Self, Error> {
        checked_len(dtype, shape, data.len())?;
        if !data.as_ptr().addr().is_multiple_of(dtype.size_bytes()) {
            return Err(Error::BadTensor(format!(
                "an output buffer of {} must be aligned to {} bytes",
                dtype.name(),
                dtype.size_bytes()
            )));
        }
        Ok(Self { dtype, shape, data })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents in elements, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_lengths_are_checked() {
        let t = Tensor::from_slice(&[2, 2], &[1i64, -2, 3, 4]).expect("fits");
        assert_eq!(t.as_slice::<i64>().expect("its type"), [1, -2, 3, 4]);
        assert!(matches!(t.as_slice::<f64>(), Err(Error::BadTensor(_))));
        assert!(Tensor::from_slice(&[3], &[1.0f32]).is_err());
        assert!(Tensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
        assert!(TensorView::new(DType::F32, &[1], &[0; 5]).is_err());
        let scalar = Tensor::from_slice(&[], &[2.5f32]).expect("rank 0");
        assert_eq!(scalar.to_vec::<f32>().expect("its type"), [2.5]);
        let mut bytes = Tensor::zeros(DType::U8, &[5]).expect("memory");
        assert!(TensorViewMut::new(DType::F32, &[1], &mut bytes.bytes_mut()[1..]).is_err());
    }
}
