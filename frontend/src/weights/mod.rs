//! Files beside a model: what a model names is read only inside its own directory, or inside the blobs of a hub cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use transc_ir::diag::Fault;

use crate::Problem;
use crate::error::quote;

/// The directory of a model, with the files that were read from it. Each file is read once.
pub struct ModelDir {
    dir: PathBuf,
    limit: u64,
    files: BTreeMap<PathBuf, Arc<Vec<u8>>>,
}

impl ModelDir {
    /// The directory `dir`, from which files of at most `limit` bytes are read.
    pub fn new(dir: &Path, limit: u64) -> Self {
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_path_buf() };
        Self { dir, limit, files: BTreeMap::new() }
    }

    /// The bytes of the file that the model calls `location`.
    ///
    /// # Errors
    /// A location that is not a plain relative path (T0131) or leaves the directory (T0132), something other than a regular file
    /// (T0133), a file that is missing or cannot be read (T0100), that is too large (T0106), or that changes meanwhile (T0135).
    pub fn read(&mut self, location: &str) -> Result<Arc<Vec<u8>>, Problem> {
        let path = self.resolve(location)?;
        if let Some(bytes) = self.files.get(&path) {
            return Ok(Arc::clone(bytes));
        }
        let bytes = Arc::new(read_file(&path, self.limit)?);
        self.files.insert(path, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// The canonical path of a location, proven to lie where it may.
    fn resolve(&self, location: &str) -> Result<PathBuf, Problem> {
        let relative = check_location(location)?;
        let io = |e: std::io::Error| environment(&self.dir.join(&relative), &e);
        let root = self.dir.canonicalize().map_err(io)?;
        let path = self.dir.join(&relative).canonicalize().map_err(io)?;
        let inside = path.starts_with(&root) || self.hub_blobs().is_some_and(|blobs| path.starts_with(blobs));
        if !inside {
            return Err(Problem::invalid(
                "T0132",
                format!("the path {} resolves outside the model's directory", quote(location)),
            )
            .help("put the file beside the model"));
        }
        Ok(path)
    }

    /// The blobs of the hub cache that the directory is a snapshot of: in `models--x/snapshots/REVISION/..` files are links into
    /// `models--x/blobs`.
    fn hub_blobs(&self) -> Option<PathBuf> {
        let dir = std::path::absolute(&self.dir).ok()?;
        let snapshots = dir.ancestors().find(|a| a.file_name().is_some_and(|n| n == "snapshots"))?;
        let blobs = snapshots.parent()?.join("blobs");
        let real = blobs.canonicalize().ok()?;
        // A link from `blobs` to elsewhere would widen what a model may read.
        (real.file_name()? == "blobs" && std::fs::symlink_metadata(&blobs).ok()?.is_dir()).then_some(real)
    }
}

/// Checks that a location is a relative path that stays below its start by its text alone.
fn check_location(location: &str) -> Result<PathBuf, Problem> {
    let refused = |why: &str| Problem::invalid("T0131", format!("the path {} of external data {why}", quote(location)));
    if location.is_empty() || location.contains('\0') || location.contains('*') || location.contains('\\') {
        return Err(refused("is not a path"));
    }
    let leaves = |p: &str| Path::new(p).components().any(|c| matches!(c, Component::ParentDir));
    if leaves(location) || leaves(&percent_decoded(location).replace('\\', "/")) {
        return Err(refused("leaves the model's directory"));
    }
    let path = Path::new(location);
    if path.components().any(|c| matches!(c, Component::RootDir | Component::Prefix(_))) || location.get(1..2) == Some(":") {
        return Err(refused("must be relative"));
    }
    Ok(path.to_path_buf())
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = text.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn environment(path: &Path, e: &std::io::Error) -> Problem {
    Problem::new("T0100", Fault::Environment, format!("cannot read {}: {e}", quote(&path.display().to_string())))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`ModelDir::read`].
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let io = |e: std::io::Error| environment(path, &e);
    // Asked before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Problem::invalid("T0133", format!("{} is not a regular file", quote(&path.display().to_string()))));
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    if len > limit {
        return Err(Problem::limit(
            "T0106",
            format!("{} has {len} bytes, the limit is {limit}", quote(&path.display().to_string())),
        ));
    }
    read_exactly(file, len).map_err(|e| match e {
        ReadError::Io(e) => environment(path, &e),
        ReadError::Changed(got) => Problem::new(
            "T0135",
            Fault::Environment,
            format!("{} changed while it was read: {len} bytes became {got}", quote(&path.display().to_string())),
        ),
    })
}

#[derive(Debug)]
enum ReadError {
    Io(std::io::Error),
    Changed(u64),
}

fn read_exactly(file: impl Read, len: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX)).map_err(|e| ReadError::Io(std::io::Error::other(e)))?;
    let got = file.take(len.saturating_add(1)).read_to_end(&mut bytes).map_err(ReadError::Io)? as u64;
    if got == len { Ok(bytes) } else { Err(ReadError::Changed(got)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_or_grows_while_read_is_an_error() {
        assert!(matches!(read_exactly(&b"abc"[..], 5), Err(ReadError::Changed(3))));
        assert!(matches!(read_exactly(&b"abc"[..], 2), Err(ReadError::Changed(3))));
        assert_eq!(read_exactly(&b"abc"[..], 3).ok(), Some(b"abc".to_vec()));
    }

    #[test]
    fn locations_are_judged_by_their_text_first() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "%2e%2e/x", "..%2fx", "a\\..\\x", "a\0b", "C:x", "*/_MEM_ADDR_/*"] {
            assert!(check_location(bad).is_err(), "{bad:?}");
        }
        for good in ["model.data", "sub/w.bin", "100%.bin", "é.bin"] {
            assert!(check_location(good).is_ok(), "{good:?}");
        }
    }
}
