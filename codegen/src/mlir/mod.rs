//! MLIR, at two levels: the tensor IR as `func`, `linalg`, `tensor`, `arith`, `math` and `scf` (with `cf.assert` for what a model relies
//! on), and the loop IR as `memref`, `scf`, `vector`, `arith` and `math`.
//!
//! Both are written as text, in MLIR's own syntax, so that every build can export them and this code needs no bindings; MLIR's parser
//! and verifier check it. Names and orders depend on the model alone: same model, same bytes.

#[cfg(feature = "mlir-out")]
mod backend;
mod folds;
mod func;
mod indexed;
mod kernel;
mod scalar;
mod text;
#[cfg(feature = "mlir-out")]
mod translate;
mod views;

#[cfg(feature = "mlir-out")]
pub(crate) use backend::module;

use std::io::{self, Write};

use transc_ir::Module;
use transc_ir::tensor::ConstData;

use crate::{Backend, CodegenError, Program};

/// A model in MLIR: the text, and the constants that stand behind it as resources.
pub struct TensorMlir {
    code: String,
    resources: Vec<(String, ConstData)>,
}

/// The tensor IR in MLIR. Regions are written in place, named ops by their decomposition. With the feature `mlir-out`, MLIR's verifier has
/// accepted what is returned.
///
/// # Errors
/// Every node that has no form in MLIR.
pub fn tensors(module: &Module) -> Result<TensorMlir, CodegenError> {
    let mut e = func::Emitter::new(module);
    let main = e.main();
    if !e.problems.is_empty() {
        return Err(CodegenError::NoMlir(e.problems));
    }
    let code = format!("module @{} {{\n{main}}}\n", text::quoted(&module.name));
    #[cfg(feature = "mlir-out")]
    backend::verify(&code).map_err(|message| CodegenError::Backend { kernel: module.name.clone(), message })?;
    let resources = e.used.into_iter().filter_map(|(id, key)| Some((key, module.consts.get(id)?.clone()))).collect();
    Ok(TensorMlir { code, resources })
}

/// The kernels of a program in MLIR: loops on memrefs.
///
/// # Errors
/// Kernels for a device, whose threads and barriers these loops do not have.
pub fn loops(program: &Program) -> Result<String, CodegenError> {
    if program.kernels.iter().any(|k| k.block.is_some()) {
        return Err(CodegenError::NotOffered { backend: Backend::Mlir.name(), what: "code for devices" });
    }
    let kernels: String = program.kernels.iter().map(|k| kernel::kernel(k, &k.name, "")).collect();
    Ok(format!("module @{} {{\n{kernels}}}\n", text::quoted(&program.name)))
}

impl TensorMlir {
    /// The module without the contents of its resources: complete for the verifier, and for readers.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Writes the whole file: code, then the constants in hexadecimal, aligned to 64 bytes.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut to = io::BufWriter::with_capacity(1 << 16, to);
        to.write_all(self.code.as_bytes())?;
        if self.resources.is_empty() {
            return to.flush();
        }
        to.write_all(b"\n{-#\n  dialect_resources: {\n    builtin: {\n")?;
        for (i, (key, data)) in self.resources.iter().enumerate() {
            write!(to, "      {key}: \"0x40000000")?;
            for chunk in data.bytes().chunks(4096) {
                let hex: Vec<u8> =
                    chunk.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| b"0123456789ABCDEF"[usize::from(n)]).collect();
                to.write_all(&hex)?;
            }
            to.write_all(if i + 1 < self.resources.len() { b"\",\n" } else { b"\"\n" })?;
        }
        to.write_all(b"    }\n  }\n#-}\n")?;
        to.flush()
    }
}
