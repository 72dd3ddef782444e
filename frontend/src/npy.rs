//! NumPy's `.npy` arrays, versions 1 to 3.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use transc_ir::DType;
use transc_ir::diag::Fault;
use transc_ir::interp::Tensor;

use crate::Problem;
use crate::error::quote;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is read.
const MAX_HEADER: usize = 1 << 16;
/// Most axes.
const MAX_RANK: usize = 16;

/// An array header.
struct Header {
    dtype: DType,
    big_endian: bool,
    fortran: bool,
    dims: Vec<usize>,
}

fn invalid(name: &str, what: impl std::fmt::Display) -> Problem {
    Problem::invalid("T0140", format!("the array {} {what}", quote(name)))
}

/// Reads an array; `name` is for messages. Big-endian and Fortran-ordered arrays are converted.
///
/// # Errors
/// Bytes that are not an array, an element type that has no counterpart here, or data of another length than the header says.
pub fn read(name: &str, bytes: &[u8]) -> Result<Tensor, Problem> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| invalid(name, "is not in the .npy format"))?;
    let [major, _minor, rest @ ..] = rest else { return Err(invalid(name, "ends inside its header")) };
    let (len, rest) = match (major, rest) {
        (1, [a, b, rest @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        (2 | 3, [a, b, c, d, rest @ ..]) => (usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX), rest),
        (1..=3, _) => return Err(invalid(name, "ends inside its header")),
        (v, _) => return Err(invalid(name, format!("has the unknown version {v}"))),
    };
    if len > MAX_HEADER {
        return Err(Problem::limit(
            "T0141",
            format!("the array {} has a header of {len} bytes, the limit is {MAX_HEADER}", quote(name)),
        ));
    }
    let (Some(text), Some(data)) = (rest.get(..len), rest.get(len..)) else {
        return Err(invalid(name, "ends inside its header"));
    };
    let text = std::str::from_utf8(text).map_err(|_| invalid(name, "has a header that is not text"))?;
    let h = parse(name, text)?;
    let size = h.dtype.size_bytes();
    let want = h.dims.iter().try_fold(size, |n, d| n.checked_mul(*d));
    if want != Some(data.len()) {
        let what = format!("of type {} and dims {:?} does not fit its {} bytes of data", h.dtype, h.dims, data.len());
        return Err(invalid(name, what));
    }
    let mut data = data.to_vec();
    if h.big_endian {
        data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    if h.dtype == DType::Bool {
        data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    if h.fortran && h.dims.len() > 1 {
        data = row_major(&data, &h.dims, size);
    }
    Ok(Tensor { dtype: h.dtype, dims: h.dims, data })
}

/// Reorders column-major elements.
fn row_major(data: &[u8], dims: &[usize], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; dims.len()];
    for _ in 0..data.len() / size.max(1) {
        let at = index.iter().zip(dims).rev().fold(0, |at, (i, d)| at * d + i) * size;
        out.extend_from_slice(&data[at..at + size]);
        for (i, d) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Parses the dictionary `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse(name: &str, text: &str) -> Result<Header, Problem> {
    let bad = || invalid(name, format!("has the malformed header {}", quote(text.trim())));
    let value = |key: &str| -> Result<&str, Problem> {
        let (_, rest) = text.split_once(&format!("'{key}'")).ok_or_else(bad)?;
        Ok(rest.trim_start().strip_prefix(':').ok_or_else(bad)?.trim_start())
    };
    let descr = value("descr")?;
    let Some(descr) = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map(|d| d.0) else {
        return Err(Problem::new(
            "T0140",
            Fault::Unsupported,
            format!("the array {} has records, which are not supported", quote(name)),
        ));
    };
    let (order, kind) = match descr.split_at_checked(1) {
        Some((o @ ("<" | ">" | "|" | "="), kind)) => (o, kind),
        _ => ("=", descr),
    };
    let dtype = match kind {
        "f4" => DType::F32,
        "f8" => DType::F64,
        "f2" => DType::F16,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "b1" | "?" => DType::Bool,
        // How NumPy stores bfloat16, for which it has no name.
        "V2" => DType::Bf16,
        "O" | "O8" => return Err(invalid(name, "holds pickled objects, which are refused")),
        other => {
            let what = format!("the array {} has the element type {}, which is not supported", quote(name), quote(other));
            return Err(Problem::new("T0140", Fault::Unsupported, what));
        }
    };
    let fortran = match value("fortran_order")? {
        v if v.starts_with("True") => true,
        v if v.starts_with("False") => false,
        _ => return Err(bad()),
    };
    let shape = value("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).map(|s| s.0).ok_or_else(bad)?;
    let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
    let dims = dims.map(|d| d.parse::<usize>().map_err(|_| bad())).collect::<Result<Vec<_>, _>>()?;
    if dims.len() > MAX_RANK {
        return Err(Problem::limit(
            "T0141",
            format!("the array {} has {} axes, the limit is {MAX_RANK}", quote(name), dims.len()),
        ));
    }
    Ok(Header { dtype, big_endian: order == ">", fortran, dims })
}

/// Writes an array, version 1, little endian.
pub fn write(t: &Tensor) -> Vec<u8> {
    let kind = match t.dtype {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::Bf16 => "<V2",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
    };
    let dims: String = t.dims.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    // Data starts at a multiple of 64 bytes; the header ends in a newline.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend(u16::try_from(header.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(&t.data);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend((header.len() as u16).to_le_bytes());
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    #[test]
    fn what_is_written_is_read() {
        for dtype in DType::ALL {
            let t = Tensor { dtype, dims: vec![2, 1, 3], data: (0..6 * dtype.size_bytes()).map(|i| (i % 2) as u8).collect() };
            assert_eq!(read("x", &write(&t)), Ok(t));
        }
        let scalar = Tensor { dtype: DType::F32, dims: vec![], data: vec![0; 4] };
        assert_eq!(read("x", &write(&scalar)), Ok(scalar));
    }

    #[test]
    fn big_endian_and_fortran_order_are_converted() {
        let t = read("x", &array("'>i2'", "False", "(2,)", &[0, 1, 0, 2])).map(|t| t.data);
        assert_eq!(t, Ok(vec![1, 0, 2, 0]));
        let t = read("x", &array("'|u1'", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6])).map(|t| t.data);
        assert_eq!(t, Ok(vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_is_not_an_array_is_refused() {
        let fault = |b: &[u8]| read("x", b).map_err(|p| p.fault).err();
        assert_eq!(fault(b""), Some(Fault::Invalid));
        assert_eq!(fault(&array("'|O'", "False", "(1,)", &[0; 8])), Some(Fault::Invalid));
        assert_eq!(fault(&array("'<f4'", "False", "(3,)", &[0; 8])), Some(Fault::Invalid));
        assert_eq!(fault(&array("'<f4'", "False", "(4611686018427387904, 4)", &[0; 8])), Some(Fault::Invalid));
        assert_eq!(fault(&array("'<f4'", "False", "(-1,)", &[])), Some(Fault::Invalid));
        assert_eq!(fault(&array("'<c8'", "False", "(1,)", &[0; 8])), Some(Fault::Unsupported));
        assert_eq!(fault(&array("[('a', '<f4')]", "False", "(1,)", &[0; 4])), Some(Fault::Unsupported));
        assert_eq!(fault(b"\x93NUMPY\x09\x00\x00\x00"), Some(Fault::Invalid));
        assert_eq!(fault(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"), Some(Fault::Limit));
    }
}
