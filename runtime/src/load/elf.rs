//! A look at a shared object before the system's loader gets it: the loader trusts what it maps, and a file that was cut would kill the
//! process with a signal.

use crate::Error;
use crate::abi::DESCRIPTOR_SYMBOL;

/// First bytes of a shared object.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: u64 = 56;
const DYNAMIC_BYTES: usize = 16;

const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;

/// Checks that `image` is a whole x86-64 shared object that names the model descriptor among its symbols.
///
/// # Errors
/// [`Error::NotArtefact`] or [`Error::Damaged`].
pub(super) fn check(image: &[u8]) -> Result<(), Error> {
    if image.get(..4) != Some(&MAGIC[..]) {
        return Err(Error::NotArtefact("it is no shared object".into()));
    }
    let cut = || Error::Damaged("the shared object was cut, or its tables are wrong".into());
    let head = image.get(..HEADER_BYTES).ok_or_else(cut)?;
    // 64 bits, little endian.
    if head[4] != 2 || head[5] != 1 || u16_at(head, 16) != Some(ET_DYN) || u16_at(head, 18) != Some(EM_X86_64) {
        return Err(Error::NotArtefact("it is no shared object for x86-64".into()));
    }
    let segments = segments(image).ok_or_else(cut)?;
    let names = dynamic_strings(image, &segments).ok_or_else(cut)?;
    if names.split(|b| *b == 0).any(|name| name == DESCRIPTOR_SYMBOL.as_bytes()) {
        Ok(())
    } else {
        Err(Error::NotArtefact(format!("the shared object has no `{DESCRIPTOR_SYMBOL}`")))
    }
}

/// A part of the file and the address that it is loaded at.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
}

/// The segments, all inside the file.
fn segments(image: &[u8]) -> Option<Vec<Segment>> {
    let (table, entry, count) = (u64_at(image, 32)?, u16_at(image, 54)?, u16_at(image, 56)?);
    if u64::from(entry) != SEGMENT_BYTES {
        return None;
    }
    (0..u64::from(count))
        .map(|i| {
            let header = part(image, table.checked_add(i * SEGMENT_BYTES)?, SEGMENT_BYTES)?;
            let s = Segment {
                kind: u32_at(header, 0)?,
                offset: u64_at(header, 8)?,
                address: u64_at(header, 16)?,
                file_bytes: u64_at(header, 32)?,
            };
            part(image, s.offset, s.file_bytes)?;
            Some(s)
        })
        .collect()
}

/// The names of the dynamic symbols, separated by zeros.
fn dynamic_strings<'a>(image: &'a [u8], segments: &[Segment]) -> Option<&'a [u8]> {
    let dynamic = segments.iter().find(|s| s.kind == PT_DYNAMIC)?;
    let entries = part(image, dynamic.offset, dynamic.file_bytes)?;
    let value = |tag: u64| entries.chunks_exact(DYNAMIC_BYTES).find(|e| u64_at(e, 0) == Some(tag)).and_then(|e| u64_at(e, 8));
    let (address, len) = (value(DT_STRTAB)?, value(DT_STRSZ)?);
    let home = segments
        .iter()
        .filter(|s| s.kind == PT_LOAD)
        .find(|s| address.checked_sub(s.address).is_some_and(|at| at < s.file_bytes))?;
    part(image, home.offset.checked_add(address - home.address)?, len)
}

fn part(image: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    image.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_noise_are_refused() {
        let me = std::fs::read(std::env::current_exe().expect("a path")).expect("the test itself");
        // A test binary is position independent, hence a shared object by its header; it names no descriptor.
        assert!(matches!(check(&me), Err(Error::NotArtefact(_))));
        for cut in (0..4096).chain([me.len() / 4, me.len() / 2]) {
            assert!(check(&me[..cut]).is_err(), "cut at {cut}");
        }
        let mut noise: Vec<u8> = (0u32..5000).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        noise[..4].copy_from_slice(&MAGIC);
        assert!(check(&noise).is_err());
        noise[4..20].copy_from_slice(&me[4..20]);
        assert!(matches!(check(&noise), Err(Error::Damaged(_))));
    }
}
