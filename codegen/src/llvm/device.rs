//! Device kernels for LLVM's NVPTX target: the grid's entry point, its memory spaces, and PTX as text.
//!
//! An entry takes one pointer per buffer parameter, the scratch memory of all threads, the status word and the values of the symbols.
//! Shared memory is the block's dynamic one.

use std::borrow::Cow;
use std::fmt::Write as _;

use transc_ir::loops::{Access, Kernel, Space};
use transc_runtime::abi::Plan;
use transc_runtime::{Model, Weights};

use super::emit::Emitter;
use super::jit;
use crate::CodegenError;
use crate::backend::{Backend, Code, Job, Text};
use crate::scratch::{local_offsets, scratch_len};

/// The text of the entry point around an emitted body.
pub(super) fn entry(mut e: Emitter<'_>, body: &str) -> String {
    let k = e.k;
    let threads = k.block.unwrap_or(1);
    let mut out = String::new();
    let mut params: Vec<String> = k
        .bufs
        .iter()
        .enumerate()
        .map(|(i, b)| {
            format!("ptr addrspace(1) noalias {}align 64 %b{i}", if b.access == Access::Read { "readonly " } else { "" })
        })
        .collect();
    params.extend(["scratch", "status"].map(|n| format!("ptr addrspace(1) noalias align 64 %{n}")));
    params.extend((0..k.syms.len()).map(|i| format!("i64 %s{i}")));
    let mut pre = String::new();
    for (name, register) in [("lo", "ctaid"), ("thread", "tid")] {
        let _ = writeln!(pre, "  %{name}32 = call i32 @llvm.nvvm.read.ptx.sreg.{register}.x()");
        let _ = writeln!(pre, "  %{name} = zext i32 %{name}32 to i64");
        e.declare(format!("declare i32 @llvm.nvvm.read.ptx.sreg.{register}.x()"));
    }
    let _ = writeln!(pre, "  %hi = add i64 %lo, 1");
    let _ = writeln!(pre, "  %unit = mul i64 %lo, {threads}\n  %number = add i64 %unit, %thread");
    let mut locals = String::new();
    let own = e.dim(&scratch_len(k, Space::Thread));
    let _ = writeln!(locals, "  %mine = mul i64 %number, {own}");
    for (i, (offset, l)) in local_offsets(k).iter().zip(&k.locals).enumerate() {
        let offset = e.dim(offset);
        let _ = match l.space {
            Space::Thread => writeln!(
                locals,
                "  %o{i} = add i64 %mine, {offset}\n  %l{i} = getelementptr i8, ptr addrspace(1) %scratch, i64 %o{i}"
            ),
            Space::Shared => writeln!(locals, "  %l{i} = getelementptr i8, ptr addrspace(3) @{}, i64 {offset}", shared(k)),
        };
    }
    let _ = writeln!(out, "@{} = external addrspace(3) global [0 x i8], align 16\n", shared(k));
    let _ = writeln!(
        out,
        "define ptx_kernel void @{}({}) #0 {{\nentry:\n{pre}{}{locals}  br label %start\nstart:\n{body}  ret void\n}}\n",
        k.name,
        params.join(", "),
        e.entry_code(),
    );
    for d in e.declarations() {
        let _ = writeln!(out, "{d}");
    }
    // With a least number of blocks per processor the assembler takes the registers that a kernel needs, instead of spilling a few.
    let _ = writeln!(out, "attributes #0 = {{ nounwind \"nvvm.maxntid\"=\"{threads}\" \"nvvm.minctasm\"=\"1\" }}");
    for m in e.metadata() {
        let _ = writeln!(out, "{m}");
    }
    out
}

fn shared(k: &Kernel) -> String {
    format!("{}_shared", k.name)
}

/// The code of a device: PTX per kernel.
pub(super) struct Ptx {
    pub(super) parts: Vec<Vec<u8>>,
}

impl Code for Ptx {
    fn objects(&self) -> Result<Cow<'_, [Vec<u8>]>, CodegenError> {
        Err(CodegenError::NoForm { form: "object file", target: "devices" })
    }

    fn load(&self, plan: Plan, weights: Weights) -> Result<Model, CodegenError> {
        jit::device_model(plan, join(&self.parts), weights)
    }

    fn text(&self, job: &Job<'_>, form: Text) -> Result<String, CodegenError> {
        match form {
            Text::Ptx => Ok(join(&self.parts)),
            Text::LlvmIr => {
                let parts = super::per_kernel(job, super::module, super::Form::Ir)?;
                Ok(parts.iter().map(|b| String::from_utf8_lossy(b)).collect::<Vec<_>>().join("\n"))
            }
            Text::Asm => Err(CodegenError::NoForm { form: "assembly", target: job.target.name() }),
            Text::Clif => Err(form.refused(Backend::Llvm)),
        }
    }
}

/// One PTX program from those of single kernels: the head of the first stands for all.
fn join(parts: &[Vec<u8>]) -> String {
    let head = |l: &str| [".version", ".target", ".address_size"].iter().any(|h| l.starts_with(h));
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        for line in String::from_utf8_lossy(part).lines().filter(|l| i == 0 || !head(l)) {
            // The generator's banner says nothing about the program.
            if !line.starts_with("//") {
                out.push_str(line.trim_end());
                out.push('\n');
            }
        }
    }
    out
}
