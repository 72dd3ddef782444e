//! Shared libraries: kernels, plan, weights and the runtime, linked by the system's compiler driver.

use std::path::Path;
use std::process::Command;

use object::write::{Object, Relocation, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationEncoding, RelocationFlags, RelocationKind, SectionKind, SymbolFlags,
    SymbolKind, SymbolScope,
};
use transc_runtime::abi::{ABI_VERSION, DESCRIPTOR_MAGIC, DESCRIPTOR_SYMBOL};

use crate::CodegenError;

/// The runtime as a static library, made by the build script.
static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libtransc_runtime.a"));

/// What goes into a library.
pub(crate) struct Parts<'a> {
    /// Objects of the kernels.
    pub(crate) objects: &'a [Vec<u8>],
    /// Symbols of the kernels, in the order of the kernel table.
    pub(crate) names: &'a [String],
    /// The encoded plan; without it the library holds kernels only.
    pub(crate) plan: Option<&'a [u8]>,
    /// The packed weights.
    pub(crate) weights: &'a [u8],
}

fn error(e: impl std::fmt::Display) -> CodegenError {
    CodegenError::Linker(e.to_string())
}

/// Links a library. The same parts give the same bytes: file names inside the link are fixed, and no build id is written. Without a
/// SONAME, programs that link the library look for it under the file name that they were given.
pub(crate) fn shared_object(parts: &Parts<'_>) -> Result<Vec<u8>, CodegenError> {
    let dir = tempfile::tempdir().map_err(error)?;
    let mut args = vec!["-shared".to_string(), "-nostartfiles".into(), "-o".into(), "model.so".into()];
    for (i, object) in parts.objects.iter().enumerate() {
        let name = format!("kernel{i}.o");
        std::fs::write(dir.path().join(&name), object).map_err(error)?;
        args.push(name);
    }
    std::fs::write(dir.path().join("data.o"), data_object(parts)?).map_err(error)?;
    std::fs::write(dir.path().join("exports"), "{ global: transc_*; local: *; };\n").map_err(error)?;
    args.push("data.o".into());
    if parts.plan.is_some() {
        std::fs::write(dir.path().join("libtransc_runtime.a"), RUNTIME).map_err(error)?;
        args.extend(["-Wl,--undefined=transc_open".into(), "libtransc_runtime.a".into(), "-lgcc_s".into()]);
    }
    args.extend(
        [
            "-lm",
            "-lc",
            "-Wl,--version-script=exports",
            "-Wl,--gc-sections",
            "-Wl,-Bsymbolic",
            "-Wl,--build-id=none",
            "-Wl,-z,noexecstack",
            "-Wl,-s",
        ]
        .map(String::from),
    );
    run(dir.path(), &args)?;
    std::fs::read(dir.path().join("model.so")).map_err(error)
}

/// Joins objects to one.
pub(crate) fn relocatable(objects: &[Vec<u8>]) -> Result<Vec<u8>, CodegenError> {
    let dir = tempfile::tempdir().map_err(error)?;
    let mut args = vec!["-r".to_string(), "-nostdlib".into(), "-o".into(), "all.o".into()];
    for (i, object) in objects.iter().enumerate() {
        let name = format!("kernel{i}.o");
        std::fs::write(dir.path().join(&name), object).map_err(error)?;
        args.push(name);
    }
    run(dir.path(), &args)?;
    std::fs::read(dir.path().join("all.o")).map_err(error)
}

fn run(dir: &Path, args: &[String]) -> Result<(), CodegenError> {
    let out = Command::new("cc").current_dir(dir).args(args).output().map_err(error)?;
    if out.status.success() { Ok(()) } else { Err(CodegenError::Linker(String::from_utf8_lossy(&out.stderr).into_owned())) }
}

/// The object with descriptor, kernel table, plan and weights.
fn data_object(parts: &Parts<'_>) -> Result<Vec<u8>, CodegenError> {
    let mut o = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let blob = |o: &mut Object<'_>, name: &str, bytes: &[u8]| {
        let section = o.add_section(Vec::new(), format!(".rodata.{name}").into_bytes(), SectionKind::ReadOnlyData);
        o.append_section_data(section, bytes, 64);
        o.section_symbol(section)
    };
    let plan = parts.plan.map(|p| (blob(&mut o, "plan", p), p.len()));
    let weights = (!parts.weights.is_empty()).then(|| blob(&mut o, "weights", parts.weights));
    let pointers = |o: &mut Object<'static>,
                    name: &str,
                    bytes: &[u8],
                    targets: &[(u64, object::write::SymbolId)]|
     -> Result<_, CodegenError> {
        let section = o.add_section(Vec::new(), format!(".data.rel.ro.{name}").into_bytes(), SectionKind::ReadOnlyDataWithRel);
        o.append_section_data(section, bytes, 8);
        for (offset, symbol) in targets {
            let flags =
                RelocationFlags::Generic { kind: RelocationKind::Absolute, encoding: RelocationEncoding::Generic, size: 64 };
            o.add_relocation(section, Relocation { offset: *offset, symbol: *symbol, addend: 0, flags }).map_err(error)?;
        }
        Ok(section)
    };
    let kernels: Vec<_> = parts
        .names
        .iter()
        .map(|n| {
            o.add_symbol(Symbol {
                name: n.clone().into_bytes(),
                value: 0,
                size: 0,
                kind: SymbolKind::Text,
                scope: SymbolScope::Unknown,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            })
        })
        .collect();
    let entries: Vec<_> = kernels.iter().enumerate().map(|(i, s)| (i as u64 * 8, *s)).collect();
    let table = pointers(&mut o, "kernels", &vec![0; parts.names.len().max(1) * 8], &entries)?;
    let table = o.section_symbol(table);
    // The layout of `ModelDescriptor`.
    let mut d = Vec::new();
    d.extend_from_slice(&DESCRIPTOR_MAGIC.to_le_bytes());
    d.extend_from_slice(&ABI_VERSION.to_le_bytes());
    d.extend_from_slice(&(parts.names.len() as u32).to_le_bytes());
    let mut targets = vec![(d.len() as u64, table)];
    d.extend_from_slice(&[0; 8]);
    for (blob, len) in [(plan.map(|p| p.0), plan.map_or(0, |p| p.1)), (weights, parts.weights.len())] {
        targets.extend(blob.map(|s| (d.len() as u64, s)));
        d.extend_from_slice(&[0; 8]);
        d.extend_from_slice(&(len as u64).to_le_bytes());
    }
    let section = pointers(&mut o, "descriptor", &d, &targets)?;
    o.add_symbol(Symbol {
        name: DESCRIPTOR_SYMBOL.as_bytes().to_vec(),
        value: 0,
        size: d.len() as u64,
        kind: SymbolKind::Data,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    o.write().map_err(error)
}
