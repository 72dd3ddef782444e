//! Constants: bytes that stay where the model file is mapped, identified by content.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::types::TensorType;

/// A constant of a module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstId(pub u32);

impl fmt::Display for ConstId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@c{}", self.0)
    }
}

impl fmt::Debug for ConstId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type and bytes of one constant, row-major little endian. Cloning shares the bytes.
#[derive(Clone)]
pub struct ConstData {
    ty: TensorType,
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    len: usize,
    hash: Arc<OnceLock<[u8; 32]>>,
}

impl ConstData {
    /// A constant that owns its bytes. `None` if the type has symbolic dims or the length does not fit it.
    pub fn new(ty: TensorType, bytes: Vec<u8>) -> Option<Self> {
        let len = bytes.len();
        Self::mapped(ty, Arc::new(bytes), 0, len)
    }

    /// A constant inside a larger buffer (a mapped file). `None` if the type has symbolic dims, or the range does not lie
    /// in the buffer or does not have the length of the type.
    pub fn mapped(ty: TensorType, owner: Arc<dyn AsRef<[u8]> + Send + Sync>, start: usize, len: usize) -> Option<Self> {
        let want = ty.static_dims()?.iter().try_fold(ty.dtype.size_bytes(), |a, d| a.checked_mul(usize::try_from(*d).ok()?))?;
        let end = start.checked_add(len)?;
        (want == len && end <= (*owner).as_ref().len()).then(|| Self { ty, owner, start, len, hash: Arc::default() })
    }

    /// The type; all dims are constant.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// The dims.
    pub fn dims(&self) -> Vec<usize> {
        self.ty.dims.iter().filter_map(crate::Dim::as_usize).collect()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }

    /// BLAKE3 of type and bytes, computed once.
    pub fn hash(&self) -> [u8; 32] {
        *self.hash.get_or_init(|| {
            let mut h = blake3::Hasher::new();
            h.update(self.ty.to_string().as_bytes());
            h.update(self.bytes());
            *h.finalize().as_bytes()
        })
    }
}

impl PartialEq for ConstData {
    fn eq(&self, o: &Self) -> bool {
        self.ty == o.ty && self.bytes() == o.bytes()
    }
}

impl fmt::Debug for ConstData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.ty, self.len)
    }
}

/// The constants of a module, by [`ConstId`]. Each has a name for people (often the initializer's); names need not be unique.
#[derive(Clone, Debug, Default)]
pub struct ConstPool {
    items: Vec<(String, ConstData)>,
}

impl ConstPool {
    /// Adds a constant.
    pub fn add(&mut self, name: &str, data: ConstData) -> ConstId {
        self.items.push((name.into(), data));
        ConstId((self.items.len() - 1) as u32)
    }

    /// A constant, if the id is of this pool.
    pub fn get(&self, id: ConstId) -> Option<&ConstData> {
        self.items.get(id.0 as usize).map(|(_, d)| d)
    }

    /// The name of a constant; empty for an unknown id.
    pub fn name(&self, id: ConstId) -> &str {
        self.items.get(id.0 as usize).map_or("", |(n, _)| n)
    }

    /// All constants in order.
    pub fn iter(&self) -> impl Iterator<Item = (ConstId, &str, &ConstData)> {
        self.items.iter().enumerate().map(|(i, (n, d))| (ConstId(i as u32), n.as_str(), d))
    }

    /// Number of constants.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}
