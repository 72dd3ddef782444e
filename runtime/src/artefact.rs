//! The `.tsc` container: plan, kernels and weights in one file, checked and mapped.
//!
//! Little endian. Header: magic, format version `u32`, number of sections `u32`; then per section kind `u32`, CRC-32 `u32`, offset `u64`, length
//! `u64`; then the sections, each at a multiple of 64 bytes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::Error;

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"\x93TSC\r\n\x1a\n";
/// Version of the container.
const FORMAT: u32 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 24;
const ALIGN: usize = 64;
const MAX_SECTIONS: usize = 16;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Section {
    /// The encoded plan.
    Plan = 1,
    /// A shared object with the kernels.
    Kernels = 2,
    /// The packed weights.
    Weights = 3,
}

impl Section {
    const ALL: [Section; 3] = [Section::Plan, Section::Kernels, Section::Weights];

    fn name(self) -> &'static str {
        match self {
            Section::Plan => "plan",
            Section::Kernels => "kernels",
            Section::Weights => "weights",
        }
    }
}

/// Writes a container.
///
/// # Errors
/// As the writer's.
pub fn write(out: &mut dyn Write, sections: &[(Section, &[u8])]) -> io::Result<()> {
    let mut head = Vec::new();
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    let mut at = (HEADER + ENTRY * sections.len()).next_multiple_of(ALIGN);
    for (kind, data) in sections {
        head.extend_from_slice(&(*kind as u32).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
        head.extend_from_slice(&(at as u64).to_le_bytes());
        head.extend_from_slice(&(data.len() as u64).to_le_bytes());
        at = (at + data.len()).next_multiple_of(ALIGN);
    }
    head.resize(head.len().next_multiple_of(ALIGN), 0);
    out.write_all(&head)?;
    for (_, data) in sections {
        out.write_all(data)?;
        out.write_all(&[0; ALIGN][..data.len().next_multiple_of(ALIGN) - data.len()])?;
    }
    Ok(())
}

/// Where the sections of a container lie: kind, offset, length.
///
/// # Errors
/// Bytes that are not a whole, undamaged container of this version.
pub fn read(bytes: &[u8]) -> Result<Vec<(Section, usize, usize)>, Error> {
    let bad = |what: &str| Error::BadArtefact(what.into());
    let u32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if bytes.get(..8) != Some(&MAGIC[..]) {
        return Err(bad("the first bytes are not those of a .tsc file"));
    }
    let format = u32_at(8).ok_or_else(|| bad("it ends in the header"))?;
    if format != FORMAT {
        return Err(Error::Version { found: format, ours: FORMAT });
    }
    let count = u32_at(12).ok_or_else(|| bad("it ends in the header"))? as usize;
    if count > MAX_SECTIONS {
        return Err(bad("it names too many sections"));
    }
    let mut sections = Vec::new();
    let mut free_from = HEADER + ENTRY * count;
    for i in 0..count {
        let at = HEADER + ENTRY * i;
        let short = || bad("it ends in the section table");
        let kind = u32_at(at).ok_or_else(short)?;
        let crc = u32_at(at + 4).ok_or_else(short)?;
        let offset = usize::try_from(u64_at(at + 8).ok_or_else(short)?).map_err(|_| bad("a section is too large"))?;
        let len = usize::try_from(u64_at(at + 16).ok_or_else(short)?).map_err(|_| bad("a section is too large"))?;
        let kind = Section::ALL.into_iter().find(|s| *s as u32 == kind).ok_or_else(|| bad("it has a section of unknown kind"))?;
        let end = offset.checked_add(len).filter(|e| *e <= bytes.len());
        let end = end.ok_or_else(|| Error::BadArtefact(format!("section `{}` lies outside the file: it is cut", kind.name())))?;
        if offset < free_from || offset % ALIGN != 0 || sections.iter().any(|(k, _, _)| *k == kind) {
            return Err(bad("the section table contradicts itself"));
        }
        free_from = end;
        if crc32fast::hash(&bytes[offset..end]) != crc {
            return Err(Error::Checksum(kind.name().into()));
        }
        sections.push((kind, offset, len));
    }
    Ok(sections)
}

/// Writes a file so that it is there whole or not at all: a temporary file in the same folder, synced, renamed.
///
/// # Errors
/// If the target is a directory, or the system refuses; an existing file is untouched then.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let error = |e: io::Error| Error::Io { path: path.display().to_string(), message: e.to_string() };
    if path.is_dir() {
        return Err(Error::Io { path: path.display().to_string(), message: "is a directory".into() });
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
    write(file.as_file_mut()).map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    set_mode(file.as_file()).map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    Ok(())
}

/// Temporary files are private; the result is readable like any other file, and executable as libraries are.
fn set_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, &[(Section::Plan, b"plan"), (Section::Kernels, &[7; 100]), (Section::Weights, &[1; 65])]).expect("memory");
        bytes
    }

    #[test]
    fn sections_come_back_aligned() {
        let bytes = sample();
        let sections = read(&bytes).expect("whole");
        assert_eq!(sections.len(), 3);
        for (kind, at, len) in sections {
            assert_eq!(at % ALIGN, 0);
            if kind == Section::Plan {
                assert_eq!(&bytes[at..at + len], b"plan");
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_section_is_found() {
        let bytes = sample();
        for (_, at, len) in read(&bytes).expect("whole") {
            for i in [at, at + len / 2, at + len - 1] {
                let mut broken = bytes.clone();
                broken[i] ^= 4;
                assert!(matches!(read(&broken), Err(Error::Checksum(_))));
            }
        }
    }

    #[test]
    fn cut_files_are_refused() {
        let bytes = sample();
        let end = read(&bytes).expect("whole").iter().map(|(_, at, len)| at + len).max().unwrap_or(0);
        for cut in 0..end {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn overlapping_sections_and_newer_formats_are_refused() {
        let mut bytes = sample();
        let first = bytes[HEADER + 8..HEADER + 16].to_vec();
        bytes[HEADER + ENTRY + 8..HEADER + ENTRY + 16].copy_from_slice(&first);
        assert!(matches!(read(&bytes), Err(Error::BadArtefact(_))));
        let mut bytes = sample();
        bytes[8] = 9;
        assert!(matches!(read(&bytes), Err(Error::Version { .. })));
    }
}
