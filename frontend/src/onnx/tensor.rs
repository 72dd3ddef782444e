//! Tensors of ONNX files as constants.

use std::sync::Arc;

use prost::bytes::Bytes;
use transc_ir::diag::Fault;
use transc_ir::tensor::ConstData;
use transc_ir::{DType, Dim, TensorType};

use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{SparseTensorProto, StringStringEntryProto, TensorProto};
use crate::Problem;
use crate::error::quote;
use crate::options::Limits;
use crate::weights::ModelDir;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    Plain(DType),
    /// Two elements per byte, the first in the low half; widened to the type.
    Nibbles(DType),
}

/// The name of an ONNX element type.
pub(super) fn type_name(number: i32) -> String {
    DataType::try_from(number).map_or_else(|_| number.to_string(), |t| t.as_str_name().to_lowercase())
}

/// The element type with an ONNX number.
///
/// # Errors
/// An unknown number (invalid), or a type that has no counterpart here (unsupported).
pub(super) fn dtype(number: i32, what: &str) -> Result<DType, Problem> {
    if let Some(d) = DType::from_onnx(number) {
        return Ok(d);
    }
    match DataType::try_from(number) {
        Ok(DataType::Undefined) | Err(_) => {
            Err(Problem::invalid("T0120", format!("{what} has the unknown element type {number}")))
        }
        Ok(t) => Err(Problem::new(
            "T0310",
            Fault::Unsupported,
            format!("{what} has the element type {}, which is not supported", t.as_str_name().to_lowercase()),
        )),
    }
}

fn storage(number: i32, what: &str) -> Result<Storage, Problem> {
    match DataType::try_from(number) {
        Ok(DataType::Int4) => Ok(Storage::Nibbles(DType::I8)),
        Ok(DataType::Uint4) => Ok(Storage::Nibbles(DType::U8)),
        _ => dtype(number, what).map(Storage::Plain),
    }
}

/// Reads the tensors of one model.
pub(super) struct TensorReader<'a> {
    pub(super) dir: Option<&'a mut ModelDir>,
    pub(super) limits: Limits,
}

/// A checked header of a tensor.
struct Header {
    name: String,
    storage: Storage,
    dims: Vec<usize>,
    count: usize,
    bytes: usize,
}

fn header(t: &TensorProto, dims: &[i64], limits: &Limits) -> Result<Header, Problem> {
    let name = if t.name().is_empty() { "a tensor".to_owned() } else { format!("tensor {}", quote(t.name())) };
    let storage = storage(t.data_type(), &name)?;
    if dims.len() > limits.rank {
        return Err(Problem::limit("T0107", format!("{name} has {} axes, the limit is {}", dims.len(), limits.rank)));
    }
    let mut out = Vec::with_capacity(dims.len());
    for d in dims {
        let d = usize::try_from(*d).map_err(|_| Problem::invalid("T0121", format!("{name} has the negative dimension {d}")))?;
        out.push(d);
    }
    let overflow = || Problem::invalid("T0121", format!("{name}: the element count of {dims:?} overflows"));
    // Checked without the zeros: `[0, 2^40, 2^40]` is refused too.
    out.iter().filter(|d| **d != 0).try_fold(8usize, |a, d| a.checked_mul(*d)).ok_or_else(overflow)?;
    let count = out.iter().product::<usize>();
    let bytes = match storage {
        Storage::Plain(d) => count * d.size_bytes(),
        Storage::Nibbles(_) => count.div_ceil(2),
    };
    Ok(Header { name, storage, dims: out, count, bytes })
}

/// Checks a tensor's header and the length of its embedded payload, without copying anything.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(t: &TensorProto, limits: &Limits) -> Result<(), Problem> {
    let h = header(t, &t.dims, limits)?;
    if is_external(t) { External::parse(t).map(|_| ()) } else { payload(t, &h).map(|_| ()) }
}

fn is_external(t: &TensorProto) -> bool {
    t.data_location() == DataLocation::External
}

enum Payload<'a> {
    Raw(&'a Bytes),
    F32(&'a [f32]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F64(&'a [f64]),
    U64(&'a [u64]),
    Empty,
}

/// The one payload of a tensor, its length checked.
fn payload<'a>(t: &'a TensorProto, h: &Header) -> Result<Payload<'a>, Problem> {
    if t.segment.is_some() {
        return Err(Problem::new(
            "T0310",
            Fault::Unsupported,
            format!("{} is stored in segments, which is not supported", h.name),
        ));
    }
    let mut all = Vec::new();
    let raw = t.raw_data.as_ref().filter(|r| !r.is_empty());
    all.extend(raw.map(Payload::Raw));
    if !t.float_data.is_empty() {
        all.push(Payload::F32(&t.float_data));
    }
    if !t.int32_data.is_empty() {
        all.push(Payload::I32(&t.int32_data));
    }
    if !t.int64_data.is_empty() {
        all.push(Payload::I64(&t.int64_data));
    }
    if !t.double_data.is_empty() {
        all.push(Payload::F64(&t.double_data));
    }
    if !t.uint64_data.is_empty() {
        all.push(Payload::U64(&t.uint64_data));
    }
    if !t.external_data.is_empty() {
        return Err(Problem::invalid(
            "T0122",
            format!("{} has external data entries, but says that its data is embedded", h.name),
        ));
    }
    if all.len() > 1 {
        return Err(Problem::invalid(
            "T0122",
            format!("{} has an ambiguous payload: data stands in {} fields", h.name, all.len()),
        ));
    }
    let payload = all.pop().unwrap_or(Payload::Empty);
    let wide = matches!(h.storage, Storage::Nibbles(_));
    let (want, got, unit) = match &payload {
        Payload::Raw(r) => (h.bytes, r.len(), "bytes"),
        Payload::F32(v) => (h.count, v.len(), "values"),
        Payload::I32(v) => (if wide { h.bytes } else { h.count }, v.len(), "values"),
        Payload::I64(v) => (h.count, v.len(), "values"),
        Payload::F64(v) => (h.count, v.len(), "values"),
        Payload::U64(v) => (h.count, v.len(), "values"),
        Payload::Empty => (h.bytes, 0, "bytes"),
    };
    if want != got {
        return Err(Problem::invalid("T0122", format!("{} of dims {:?} needs {want} {unit}, has {got}", h.name, h.dims)));
    }
    let fits = match (&payload, h.storage) {
        (Payload::Raw(_) | Payload::Empty, _) | (Payload::I32(_), Storage::Nibbles(_)) => true,
        (Payload::F32(_), Storage::Plain(d)) => d == DType::F32,
        (Payload::I64(_), Storage::Plain(d)) => d == DType::I64,
        (Payload::F64(_), Storage::Plain(d)) => d == DType::F64,
        (Payload::U64(_), Storage::Plain(d)) => matches!(d, DType::U32 | DType::U64),
        (Payload::I32(_), Storage::Plain(d)) => d.size_bytes() < 4 || d == DType::I32,
        _ => false,
    };
    if !fits {
        return Err(Problem::invalid(
            "T0122",
            format!("{} of type {} has its data in a field of another type", h.name, type_name(t.data_type())),
        ));
    }
    Ok(payload)
}

impl TensorReader<'_> {
    /// A tensor as a constant. Raw bytes are shared with the file.
    ///
    /// # Errors
    /// A header, payload or external file that is not right.
    pub(super) fn read(&mut self, t: &TensorProto) -> Result<ConstData, Problem> {
        let h = header(t, &t.dims, &self.limits)?;
        if is_external(t) {
            return self.external(t, &h);
        }
        let bytes = match payload(t, &h)? {
            Payload::Raw(raw) => {
                return finish(&h, raw.clone());
            }
            Payload::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::I32(v) => {
                let n = if let Storage::Plain(d) = h.storage { d.size_bytes() } else { 1 };
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(n)).collect()
            }
            Payload::U64(v) => {
                let n = if let Storage::Plain(d) = h.storage { d.size_bytes() } else { 1 };
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(n)).collect()
            }
            Payload::Empty => Vec::new(),
        };
        finish(&h, Bytes::from(bytes))
    }

    fn external(&mut self, t: &TensorProto, h: &Header) -> Result<ConstData, Problem> {
        let e = External::parse(t)?;
        let Some(dir) = self.dir.as_deref_mut() else {
            return Err(Problem::new(
                "T0100",
                Fault::Environment,
                format!("{} lies in another file, but the model has no directory", h.name),
            ));
        };
        let file = dir.read(&e.location)?;
        let len = e.length.unwrap_or(h.bytes as u64);
        let end = e.offset.checked_add(len).filter(|end| *end <= file.len() as u64);
        let (Some(_), Ok(start)) = (end, usize::try_from(e.offset)) else {
            return Err(Problem::invalid(
                "T0134",
                format!("{}: bytes {}..+{len} lie outside the {} bytes of {}", h.name, e.offset, file.len(), quote(&e.location)),
            ));
        };
        if len != h.bytes as u64 {
            return Err(Problem::invalid("T0122", format!("{} of dims {:?} needs {} bytes, has {len}", h.name, h.dims, h.bytes)));
        }
        if let Storage::Plain(d) = h.storage
            && d != DType::Bool
        {
            return ConstData::mapped(ty(h, d), file, start, h.bytes).ok_or_else(|| internal(h));
        }
        finish(h, Bytes::copy_from_slice(&file[start..start + h.bytes]))
    }

    /// A sparse tensor as a dense constant.
    ///
    /// # Errors
    /// An index outside the dims, parts that do not fit each other, or a dense form above the limit.
    pub(super) fn read_sparse(&mut self, s: &SparseTensorProto) -> Result<ConstData, Problem> {
        let (Some(values), Some(indices)) = (&s.values, &s.indices) else {
            return Err(Problem::invalid("T0123", "a sparse tensor lacks its values or indices"));
        };
        let h = header(values, &s.dims, &self.limits)?;
        let (v, ix) = (self.read(values)?, self.read(indices)?);
        let bad = |what: String| Problem::invalid("T0123", format!("sparse {}: {what}", h.name));
        if h.count > self.limits.fold_elements {
            return Err(Problem::limit(
                "T0107",
                format!("sparse {} has {} elements, the limit is {}", h.name, h.count, self.limits.fold_elements),
            ));
        }
        let (nnz, rank) = (v.dims(), h.dims.len());
        let (&[n], true) = (nnz.as_slice(), ix.ty().dtype == DType::I64) else {
            return Err(bad("values must have one axis, indices must be int64".into()));
        };
        let coords = ix.dims() == [n, rank];
        if !coords && ix.dims() != [n] {
            return Err(bad(format!("indices of dims {:?} do not fit {n} values of {rank} axes", ix.dims())));
        }
        let indices: Vec<i64> = ix.bytes().as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c)).collect();
        let size = v.ty().dtype.size_bytes();
        let mut dense = vec![0u8; h.count * size];
        for i in 0..n {
            let at = if coords {
                indices[i * rank..(i + 1) * rank]
                    .iter()
                    .zip(&h.dims)
                    .try_fold(0usize, |a, (x, d)| usize::try_from(*x).ok().filter(|x| x < d).map(|x| a * d + x))
            } else {
                usize::try_from(indices[i]).ok().filter(|x| *x < h.count)
            };
            let at = at.ok_or_else(|| bad(format!("index number {i} is out of range for dims {:?}", h.dims)))?;
            dense[at * size..(at + 1) * size].copy_from_slice(&v.bytes()[i * size..(i + 1) * size]);
        }
        ConstData::new(ty(&h, v.ty().dtype), dense).ok_or_else(|| internal(&h))
    }
}

fn ty(h: &Header, d: DType) -> TensorType {
    TensorType::new(d, h.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())
}

fn internal(h: &Header) -> Problem {
    Problem::new("T0199", Fault::Bug, format!("{}: a checked payload does not fit its type", h.name))
}

/// A constant from checked bytes: nibbles are widened, truth values become 0 or 1.
fn finish(h: &Header, bytes: Bytes) -> Result<ConstData, Problem> {
    let (d, bytes) = match h.storage {
        Storage::Plain(DType::Bool) if bytes.iter().any(|b| *b > 1) => {
            (DType::Bool, bytes.iter().map(|b| u8::from(*b != 0)).collect())
        }
        Storage::Plain(d) => (d, bytes),
        Storage::Nibbles(d) => {
            let nibble = |i: usize| (bytes[i / 2] >> (4 * (i % 2))) & 0xf;
            let widen = |n: u8| if d == DType::I8 && n >= 8 { n | 0xf0 } else { n };
            (d, (0..h.count).map(|i| widen(nibble(i))).collect())
        }
    };
    let len = bytes.len();
    ConstData::mapped(ty(h, d), Arc::new(bytes), 0, len).ok_or_else(|| internal(h))
}

/// Where an external payload lies.
struct External {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl External {
    fn parse(t: &TensorProto) -> Result<External, Problem> {
        let bad =
            |what: String| Problem::invalid("T0130", format!("tensor {} has a bad external data entry: {what}", quote(t.name())));
        let embedded = t.raw_data.as_ref().is_some_and(|r| !r.is_empty())
            || !(t.float_data.is_empty()
                && t.int32_data.is_empty()
                && t.int64_data.is_empty()
                && t.double_data.is_empty()
                && t.uint64_data.is_empty());
        if embedded {
            return Err(Problem::invalid(
                "T0122",
                format!("tensor {} has an ambiguous payload: embedded and external", quote(t.name())),
            ));
        }
        let (mut location, mut offset, mut length) = (None, None, None);
        for StringStringEntryProto { key, value } in &t.external_data {
            let (key, value) = (key.as_deref().unwrap_or(""), value.as_deref().unwrap_or(""));
            let number = || value.parse::<u64>().map_err(|_| bad(format!("{} is not a number of bytes", quote(value))));
            let twice = match key {
                "location" => location.replace(value.to_owned()).is_some(),
                "offset" => offset.replace(number()?).is_some(),
                "length" => length.replace(number()?).is_some(),
                "checksum" => false,
                _ => return Err(bad(format!("unknown key {}", quote(key)))),
            };
            if twice {
                return Err(bad(format!("{} is given twice", quote(key))));
            }
        }
        let location = location.ok_or_else(|| bad("no location".into()))?;
        Ok(External { location, offset: offset.unwrap_or(0), length })
    }
}
