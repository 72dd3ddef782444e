//! The Cranelift backend: the same kernels without LLVM, compiled many times faster, in vectors of 128 bits.

mod cast;
mod emit;
mod lanes;
mod load;
mod ops;
mod parts;

use std::borrow::Cow;

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable as _};
use cranelift_codegen::{Context, FinalizedMachReloc, FinalizedRelocTarget, ir::ExternalName};
use object::write::{Object, Relocation, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
use transc_ir::loops::Kernel;
use transc_runtime::abi::Plan;
use transc_runtime::{Model, Weights};

use crate::CodegenError;
use crate::backend::{Backend, Code, Job, Text};

/// Version of Cranelift.
pub(crate) const VERSION: &str = cranelift_codegen::VERSION;

/// Alignment of functions.
const ALIGN: usize = 64;

/// The machine code of one kernel. Position independent: calls go through addresses beside the code.
struct Function {
    name: String,
    code: Vec<u8>,
    /// Functions of the C library that it calls.
    imports: Vec<String>,
    calls: Vec<Call>,
}

/// Four bytes of the code that hold the distance to the address of an import, plus `addend`.
struct Call {
    offset: u32,
    import: usize,
    addend: i64,
}

/// The machine code of all kernels.
struct Functions(Vec<Function>);

fn isa(job: &Job<'_>) -> Result<OwnedTargetIsa, CodegenError> {
    configure(job).map_err(|message| CodegenError::Backend { kernel: String::new(), message })
}

fn configure(job: &Job<'_>) -> Result<OwnedTargetIsa, String> {
    let mut flags = settings::builder();
    let effort = if job.options.opt_level == 0 { "none" } else { "speed" };
    let options = [
        ("is_pic", "true"),
        ("opt_level", effort),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
    ];
    for (name, value) in options {
        flags.set(name, value).map_err(|e| e.to_string())?;
    }
    let mut isa = cranelift_codegen::isa::lookup_by_name("x86_64-unknown-linux-gnu").map_err(|e| e.to_string())?;
    // Its presets leave AVX out, which the others need.
    for preset in [job.target.name(), "has_avx"] {
        isa.enable(preset).map_err(|e| e.to_string())?;
    }
    isa.finish(settings::Flags::new(flags)).map_err(|e| e.to_string())
}

/// Compiles the kernels.
pub(crate) fn compile(job: &Job<'_>) -> Result<Box<dyn Code>, CodegenError> {
    let isa = isa(job)?;
    Ok(Box::new(Functions(job.per_kernel(|k| compile_kernel(k, &isa))?)))
}

fn compile_kernel(k: &Kernel, isa: &OwnedTargetIsa) -> Result<Function, CodegenError> {
    let error = |message: String| CodegenError::Backend { kernel: k.name.clone(), message };
    let (function, imports) = emit::kernel(k, &**isa);
    let mut context = Context::for_function(function);
    let compiled = context.compile(&**isa, &mut ControlPlane::default()).map_err(|e| error(format!("{:?}", e.inner)))?;
    let (code, relocations) = (compiled.code_buffer().to_vec(), compiled.buffer.relocs().to_vec());
    let call = |r: FinalizedMachReloc| match (&r.target, r.kind) {
        // The name's number is the import's.
        (FinalizedRelocTarget::ExternalName(ExternalName::User(name)), Reloc::X86GOTPCRel4) => {
            let import = context.func.params.user_named_funcs()[*name].index as usize;
            Ok(Call { offset: r.offset, import, addend: r.addend })
        }
        other => Err(error(format!("a relocation that is not a call of an import: {other:?}"))),
    };
    let calls = relocations.into_iter().map(call).collect::<Result<_, _>>()?;
    Ok(Function { name: k.name.clone(), code, imports, calls })
}

impl Code for Functions {
    fn objects(&self) -> Result<Cow<'_, [Vec<u8>]>, CodegenError> {
        self.0.iter().map(|f| object(f).map_err(|e| CodegenError::Linker(e.to_string()))).collect()
    }

    fn load(&self, plan: Plan, weights: Weights) -> Result<Model, CodegenError> {
        load::model(plan, &self.0, weights)
    }

    fn text(&self, job: &Job<'_>, form: Text) -> Result<String, CodegenError> {
        let isa = isa(job)?;
        let text = |k: &Kernel| {
            let (function, _) = emit::kernel(k, &*isa);
            if form == Text::Clif {
                return Ok(format!("; {}\n{function}", k.name));
            }
            let mut context = Context::for_function(function);
            context.set_disasm(true);
            let compiled = context.compile(&*isa, &mut ControlPlane::default());
            let compiled =
                compiled.map_err(|e| CodegenError::Backend { kernel: k.name.clone(), message: format!("{:?}", e.inner) })?;
            Ok(format!("{}:\n{}", k.name, compiled.vcode.as_deref().unwrap_or("")))
        };
        match form {
            Text::Clif | Text::Asm => Ok(job.per_kernel(text)?.join("\n")),
            Text::LlvmIr | Text::Ptx => Err(form.refused(Backend::Clif)),
        }
    }
}

/// An ELF object with one function.
fn object(f: &Function) -> Result<Vec<u8>, object::write::Error> {
    let mut o = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = o.add_section(Vec::new(), format!(".text.{}", f.name).into_bytes(), SectionKind::Text);
    o.append_section_data(section, &f.code, ALIGN as u64);
    let symbol = |name: &str, section, scope, size| Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size,
        kind: SymbolKind::Text,
        scope,
        weak: false,
        section,
        flags: SymbolFlags::None,
    };
    o.add_symbol(symbol(&f.name, SymbolSection::Section(section), SymbolScope::Dynamic, f.code.len() as u64));
    let imports: Vec<_> =
        f.imports.iter().map(|n| o.add_symbol(symbol(n, SymbolSection::Undefined, SymbolScope::Unknown, 0))).collect();
    for c in &f.calls {
        let flags = RelocationFlags::Elf { r_type: object::elf::R_X86_64_GOTPCREL };
        o.add_relocation(section, Relocation { offset: c.offset.into(), symbol: imports[c.import], addend: c.addend, flags })?;
    }
    o.write()
}
