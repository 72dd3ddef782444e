//! Files that are something else.

use crate::Problem;

/// Checks that bytes may be a protobuf at all.
///
/// # Errors
/// An empty file, or one whose first bytes are those of another format.
pub(super) fn check(bytes: &[u8]) -> Result<(), Problem> {
    if bytes.is_empty() {
        return Err(Problem::invalid("T0101", "the file is empty, not an ONNX model"));
    }
    match kind(bytes) {
        Some(kind) => Err(Problem::invalid("T0102", format!("the file looks like {kind}, expected ONNX"))),
        None => Ok(()),
    }
}

fn kind(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.iter().position(|b| !b.is_ascii_whitespace()).map_or(&[][..], |i| &bytes[i..]);
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let starts_text = |magic: &str| text.get(..magic.len()).is_some_and(|t| t.eq_ignore_ascii_case(magic.as_bytes()));
    Some(if starts(b"\x89PNG\r\n\x1a\n") {
        "a PNG image"
    } else if starts(b"\xff\xd8\xff") {
        "a JPEG image"
    } else if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        "a zip archive (PyTorch checkpoints are such archives)"
    } else if starts(b"GGUF") {
        "a GGUF model"
    } else if starts(b"\x80\x02") || starts(b"\x80\x03") || starts(b"\x80\x04") || starts(b"\x80\x05") {
        "a Python pickle"
    } else if starts(b"\x1f\x8b") {
        "a gzip archive"
    } else if starts(b"%PDF") {
        "a PDF document"
    } else if starts(b"\x7fELF") {
        "an ELF program"
    } else if starts(b"\x93NUMPY") {
        "a NumPy array"
    } else if starts(b"\x89HDF\r\n\x1a\n") {
        "an HDF5 file"
    } else if bytes.get(4..8) == Some(b"TFL3") {
        "a TensorFlow Lite model"
    } else if bytes.get(8..10) == Some(b"{\"") {
        "a safetensors file"
    } else if starts_text("<!doctype html") || starts_text("<html") {
        "an HTML page (was a login or error page downloaded?)"
    } else if starts(b"version https://git-lfs") {
        "a Git LFS pointer (run `git lfs pull`)"
    } else {
        return None;
    })
}
