//! The `.tsc` container: plan, kernels and weights in one file, checked and mapped.
//!
//! Little endian. Header: magic (8 bytes), format version `u32`, number of sections `u32`; then per section kind `u32`, CRC-32 `u32`, offset
//! `u64`, length in bytes `u64`; zeros up to a multiple of 64; then the sections in the order of the table, each followed by zeros up to a
//! multiple of 64. The layout follows from the lengths, so every byte of a file is checked.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::mem::ALIGN;

/// First bytes of the file. Not text, and damaged by programs that rewrite line ends.
pub const MAGIC: [u8; 8] = *b"\x93TSC\r\n\x1a\n";
/// Version of the container.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Section {
    /// The encoded plan.
    Plan = 1,
    /// A shared object with the kernels; its descriptor has neither plan nor weights.
    Kernels = 2,
    /// The packed weights.
    Weights = 3,
}

impl Section {
    /// All sections, in the order of the file.
    pub const ALL: [Section; 3] = [Section::Plan, Section::Kernels, Section::Weights];

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Section::Plan => "plan",
            Section::Kernels => "kernels",
            Section::Weights => "weights",
        }
    }
}

/// Writes a container of all sections, in the order of [`Section::ALL`]. The same sections give the same bytes.
///
/// # Errors
/// Those of the writer, and other sections than these.
pub fn write(out: &mut dyn Write, sections: &[(Section, &[u8])]) -> io::Result<()> {
    if !sections.iter().map(|(kind, _)| *kind).eq(Section::ALL) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an artefact has one section of each kind, in order"));
    }
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    let mut at = (HEADER_BYTES + ENTRY_BYTES * sections.len()).next_multiple_of(ALIGN);
    for (kind, data) in sections {
        head.extend_from_slice(&(*kind as u32).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
        head.extend_from_slice(&(at as u64).to_le_bytes());
        head.extend_from_slice(&(data.len() as u64).to_le_bytes());
        at += data.len().next_multiple_of(ALIGN);
    }
    for data in [head.as_slice()].into_iter().chain(sections.iter().map(|(_, data)| *data)) {
        out.write_all(data)?;
        out.write_all(&[0; ALIGN][..data.len().next_multiple_of(ALIGN) - data.len()])?;
    }
    Ok(())
}

/// Where the sections of a container lie, in bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sections {
    /// The encoded plan.
    pub plan: Range<usize>,
    /// A shared object.
    pub kernels: Range<usize>,
    /// The packed weights.
    pub weights: Range<usize>,
}

impl Sections {
    /// Reads the table of a container and verifies the checksums, that of the weights only if asked to.
    ///
    /// # Errors
    /// Bytes that are not a whole, undamaged container of this version.
    pub fn read(bytes: &[u8], verify_weights: bool) -> Result<Self, Error> {
        let damaged = |what: &str| Error::Damaged(what.into());
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(Error::NotArtefact("the first bytes are not those of a .tsc file".into()));
        }
        let cut = || damaged("it ends in the section table");
        let u32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or_else(cut);
        let u64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(cut);
        let format = u32_at(8)?;
        if format != FORMAT {
            return Err(Error::Version { what: "container", found: format, ours: FORMAT });
        }
        if u32_at(12)? as usize != Section::ALL.len() {
            return Err(damaged("the number of sections is wrong"));
        }
        let mut end = HEADER_BYTES + ENTRY_BYTES * Section::ALL.len();
        let mut ranges = [const { 0..0 }; Section::ALL.len()];
        for (i, kind) in Section::ALL.into_iter().enumerate() {
            let at = HEADER_BYTES + ENTRY_BYTES * i;
            let start = padded(bytes, end)?;
            if u32_at(at)? != kind as u32 || u64_at(at + 8)? != start as u64 {
                return Err(damaged("the section table contradicts itself"));
            }
            let stop =
                usize::try_from(u64_at(at + 16)?).ok().and_then(|len| start.checked_add(len)).filter(|stop| *stop <= bytes.len());
            end = stop.ok_or_else(|| Error::Damaged(format!("section `{}` reaches beyond the end of the file", kind.name())))?;
            let verify = verify_weights || kind != Section::Weights;
            if verify && crc32fast::hash(&bytes[start..end]) != u32_at(at + 4)? {
                return Err(Error::Checksum(kind.name()));
            }
            ranges[i] = start..end;
        }
        if padded(bytes, end)? != bytes.len() {
            return Err(damaged("more follows the last section"));
        }
        let [plan, kernels, weights] = ranges;
        Ok(Self { plan, kernels, weights })
    }
}

/// The end of the zeros that pad the file from `end`.
fn padded(bytes: &[u8], end: usize) -> Result<usize, Error> {
    let next = end.checked_next_multiple_of(ALIGN);
    let zeros =
        next.and_then(|next| bytes.get(end..next)).ok_or_else(|| Error::Damaged("it ends between two sections".into()))?;
    if zeros.iter().all(|b| *b == 0) {
        Ok(end + zeros.len())
    } else {
        Err(Error::Damaged("there are bytes between its sections".into()))
    }
}

/// Writes a file so that it is there whole or not at all: a temporary file in the same folder, synced, renamed.
///
/// A device or pipe is written directly, a link is replaced by the file.
///
/// # Errors
/// If the target is a directory, or the system refuses; an existing file is untouched then.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let error = |e: io::Error| Error::Io { path: path.display().to_string(), message: e.to_string() };
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => return Err(error(io::ErrorKind::IsADirectory.into())),
        Ok(m) if !m.is_file() => return OpenOptions::new().write(true).open(path).and_then(|mut f| write(&mut f)).map_err(error),
        _ => {}
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (temporary, mut file) = Temporary::create(dir, path).map_err(error)?;
    write(&mut file).map_err(error)?;
    file.sync_all().map_err(error)?;
    fs::rename(&temporary.0, path).map_err(error)?;
    // The name is in place now. Where folders cannot be synced, the system still writes it soon.
    let _ = File::open(dir).and_then(|d| d.sync_all());
    Ok(())
}

/// Temporary files that exist now.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of all [`write_atomic`] calls in progress, which then fail: for a program that is about to end.
pub fn discard_temporaries() {
    for path in live().iter() {
        let _ = fs::remove_file(path);
    }
}

/// A file that is removed when dropped; after a rename there is nothing left to remove.
struct Temporary(PathBuf);

impl Temporary {
    fn create(dir: &Path, target: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        // Long names are cut: the limit is 255 bytes.
        let name: String = name.chars().take(40).collect();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".{name}.{}-{count}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                // Left by a process with the same number that was killed.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(file) => {
                    live().insert(path.clone());
                    return Ok((Self(path), file));
                }
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        live().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, &[(Section::Plan, b"plan"), (Section::Kernels, &[7; 100]), (Section::Weights, &[1; 65])])
            .expect("memory");
        bytes
    }

    #[test]
    fn sections_come_back_aligned() {
        let bytes = sample();
        let s = Sections::read(&bytes, true).expect("whole");
        assert_eq!(&bytes[s.plan.clone()], b"plan");
        assert_eq!((s.kernels.len(), s.weights.len()), (100, 65));
        assert!([s.plan, s.kernels, s.weights].iter().all(|r| r.start.is_multiple_of(ALIGN)));
        let mut empty = Vec::new();
        write(&mut empty, &Section::ALL.map(|s| (s, &[][..]))).expect("memory");
        assert!(Sections::read(&empty, true).expect("whole").weights.is_empty());
        assert!(write(&mut Vec::new(), &[(Section::Plan, b"")]).is_err());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = sample();
        let sections = Sections::read(&bytes, true).expect("whole");
        for i in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[i / 8] ^= 1 << (i % 8);
            let e = Sections::read(&broken, true).expect_err("a flipped bit");
            for (range, name) in [(&sections.plan, "plan"), (&sections.kernels, "kernels"), (&sections.weights, "weights")] {
                assert!(!range.contains(&(i / 8)) || matches!(e, Error::Checksum(s) if s == name), "bit {i}: {e}");
            }
        }
        let mut broken = bytes.clone();
        broken[sections.weights.start] ^= 1;
        Sections::read(&broken, false).expect("the weights are not looked at");
        broken[sections.plan.start] ^= 1;
        assert!(matches!(Sections::read(&broken, false), Err(Error::Checksum("plan"))));
    }

    #[test]
    fn cut_and_longer_files_are_refused() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert!(
                matches!(Sections::read(&bytes[..cut], true), Err(Error::NotArtefact(_) | Error::Damaged(_))),
                "cut at {cut}"
            );
        }
        let mut longer = bytes;
        longer.resize(longer.len() + ALIGN, 0);
        assert!(matches!(Sections::read(&longer, true), Err(Error::Damaged(_))));
    }

    #[test]
    fn overlapping_sections_huge_lengths_and_newer_formats_are_refused() {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = sample();
            bytes[at..at + value.len()].copy_from_slice(value);
            Sections::read(&bytes, true).expect_err("a bad table")
        };
        let first = sample()[HEADER_BYTES + 8..HEADER_BYTES + 16].to_vec();
        assert!(matches!(with(HEADER_BYTES + ENTRY_BYTES + 8, &first), Error::Damaged(_)));
        for len in [u64::MAX, u64::MAX - 200, 1 << 40] {
            assert!(matches!(with(HEADER_BYTES + 16, &len.to_le_bytes()), Error::Damaged(_)));
        }
        let newer = with(8, &(FORMAT + 1).to_le_bytes());
        assert!(matches!(newer, Error::Version { .. }) && newer.help().contains("newer"));
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.tsc");
        let files = || fs::read_dir(dir.path()).expect("a folder").count();
        write_atomic(&path, |f| f.write_all(b"old")).expect("written");
        let failed = write_atomic(&path, |f| f.write_all(b"new").and(Err(io::ErrorKind::StorageFull.into())));
        assert!(matches!(failed, Err(Error::Io { .. })));
        assert_eq!((fs::read(&path).expect("there"), files()), (b"old".to_vec(), 1));
        write_atomic(&path, |f| f.write_all(b"new")).expect("written");
        assert_eq!((fs::read(&path).expect("there"), files()), (b"new".to_vec(), 1));
        assert!(matches!(write_atomic(dir.path(), |_| Ok(())), Err(Error::Io { .. })));
        assert!(matches!(write_atomic(&dir.path().join("no/such"), |_| Ok(())), Err(Error::Io { .. })));
        write_atomic(Path::new("/dev/null"), |f| f.write_all(b"gone")).expect("written");
        assert!(!fs::metadata("/dev/null").expect("still there").is_file());
    }
}
