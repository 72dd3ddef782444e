//! NumPy's `.npz` archives: a zip of `.npy` arrays, one per name.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use transc_ir::interp::Tensor;

use crate::Problem;
use crate::error::quote;
use crate::{npy, weights};

/// Bounds of what an archive may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NpzLimits {
    /// Arrays.
    pub entries: usize,
    /// Bytes of all arrays together.
    pub bytes: u64,
    /// Unpacked by packed bytes of one entry; deflate itself ends near 1032.
    pub ratio: u64,
}

impl Default for NpzLimits {
    fn default() -> Self {
        Self { entries: 4096, bytes: 1 << 36, ratio: 500 }
    }
}

/// Entries smaller than this may have any ratio.
const SMALL: u64 = 1 << 24;

fn broken(e: impl std::fmt::Display) -> Problem {
    Problem::invalid("T0140", format!("not a readable .npz archive: {e}"))
}

/// Reads all arrays of a file, in its order. Names lose the ending `.npy`.
///
/// # Errors
/// As [`read`]; a file that cannot be read.
pub fn read_file(path: &Path, limits: &NpzLimits) -> Result<Vec<(String, Tensor)>, Problem> {
    read(&weights::read_file(path, limits.bytes)?, limits)
}

/// Reads all arrays of an archive, in its order. Names lose the ending `.npy`.
///
/// # Errors
/// Bytes that are not a zip archive, a name twice or with a path, an array that [`npy::read`] refuses, sizes above the limits.
pub fn read(bytes: &[u8], limits: &NpzLimits) -> Result<Vec<(String, Tensor)>, Problem> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if zip.len() > limits.entries {
        return Err(Problem::limit("T0141", format!("the archive has {} entries, the limit is {}", zip.len(), limits.entries)));
    }
    let mut out: Vec<(String, Tensor)> = Vec::new();
    let mut left = limits.bytes;
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(broken)?;
        let name = entry.name().to_owned();
        // Names of tensors may begin with a slash; nothing is unpacked to a file.
        if name.split(['/', '\\']).any(|part| part == "..") || name.contains('\0') {
            return Err(broken(format!("the entry {} is a path outside the archive", quote(&name))));
        }
        // Sizes in the archive may lie: what counts is what comes out, up to one byte too many.
        let allowed = left.min(SMALL.max(entry.compressed_size().saturating_mul(limits.ratio)));
        let mut data = Vec::new();
        entry.by_ref().take(allowed.saturating_add(1)).read_to_end(&mut data).map_err(broken)?;
        if data.len() as u64 > allowed {
            return Err(Problem::limit("T0141", format!("the entry {} unpacks to more than {allowed} bytes", quote(&name))));
        }
        left -= data.len() as u64;
        let short = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        if out.iter().any(|(n, _)| *n == short) {
            return Err(broken(format!("the array {} is there twice", quote(&short))));
        }
        let array = npy::read(&short, &data)?;
        out.push((short, array));
    }
    Ok(out)
}

/// Writes arrays as an archive without compression, in the order given; equal arrays give equal bytes.
///
/// # Errors
/// Names that a zip archive cannot hold.
pub fn write<'a>(arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<u8>, Problem> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
    for (name, t) in arrays {
        zip.start_file(format!("{name}.npy"), options).map_err(broken)?;
        zip.write_all(&npy::write(t)).map_err(broken)?;
    }
    Ok(zip.finish().map_err(broken)?.into_inner())
}

#[cfg(test)]
mod tests {
    use transc_ir::diag::Fault;

    use super::*;

    fn packed(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, data) in entries {
            zip.start_file(*name, options).unwrap();
            zip.write_all(data).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn what_is_written_is_read() {
        let (a, b) = (Tensor::from_f32(&[2], &[1.0, 2.0]), Tensor::from_i64(&[], &[7]));
        let bytes = write([("a", &a), ("b.c", &b)]).unwrap();
        assert_eq!(read(&bytes, &NpzLimits::default()), Ok(vec![("a".to_owned(), a.clone()), ("b.c".to_owned(), b.clone())]));
        assert_eq!(write([("a", &a), ("b.c", &b)]).unwrap(), bytes);
    }

    #[test]
    fn bombs_are_limits() {
        let zeros = npy::write(&Tensor { dtype: transc_ir::DType::U8, dims: vec![1 << 25], data: vec![0; 1 << 25] });
        let bytes = packed(&[("a.npy", &zeros)]);
        assert_eq!(read(&bytes, &NpzLimits::default()).map_err(|p| p.fault), Err(Fault::Limit));
        let small = npy::write(&Tensor::from_f32(&[1], &[0.0]));
        let many = packed(&[("a.npy", &small), ("b.npy", &small)]);
        assert_eq!(read(&many, &NpzLimits { entries: 1, ..NpzLimits::default() }).map_err(|p| p.fault), Err(Fault::Limit));
        assert_eq!(read(&many, &NpzLimits { bytes: 100, ..NpzLimits::default() }).map_err(|p| p.fault), Err(Fault::Limit));
    }

    #[test]
    fn odd_archives_are_refused() {
        let small = npy::write(&Tensor::from_f32(&[1], &[0.0]));
        for bytes in
            [b"".to_vec(), b"PK\x03\x04 and no more".to_vec(), packed(&[("../a.npy", &small)]), packed(&[("a.npy", b"text")])]
        {
            assert_eq!(read(&bytes, &NpzLimits::default()).map_err(|p| p.fault), Err(Fault::Invalid));
        }
    }
}
