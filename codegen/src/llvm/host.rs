//! Host kernels: an outer function with the runtime's signature, which loads the buffer pointers and calls an inner one with `noalias`
//! parameters. Where that uses matrix registers, it is called between their configuration and their release.

use std::fmt::Write as _;

use transc_ir::loops::MatrixInst;

use super::emit::Emitter;
use crate::Target;
use crate::scratch::local_offsets;

/// The text of both functions around an emitted body.
pub(super) fn functions(mut e: Emitter<'_>, body: &str, target: &Target) -> String {
    let k = e.k;
    let mut out = String::new();
    let mut params: Vec<String> = (0..k.bufs.len()).map(|i| format!("ptr noalias %b{i}")).collect();
    params.extend((0..k.locals.len()).map(|i| format!("ptr noalias align 64 %l{i}")));
    params.extend(["ptr noalias readonly %syms", "i64 %lo", "i64 %hi"].map(String::from));
    let _ = writeln!(
        out,
        "define internal i32 @body({}) #0 {{\nentry:\n{}  br label %start\nstart:\n{body}  ret i32 0\n}}\n",
        params.join(", "),
        e.entry_code(),
    );
    // The outer function: pointers from the array, scratch blocks one after another.
    let mut outer = Emitter::new(k);
    let mut code = String::new();
    let mut args = Vec::new();
    for i in 0..k.bufs.len() {
        let _ = writeln!(code, "  %p{i} = getelementptr inbounds ptr, ptr %bufs, i64 {i}\n  %b{i} = load ptr, ptr %p{i}");
        args.push(format!("ptr %b{i}"));
    }
    for (i, offset) in local_offsets(k).iter().enumerate() {
        let offset = outer.dim(offset);
        let _ = writeln!(code, "  %l{i} = getelementptr i8, ptr %scratch, i64 {offset}");
        args.push(format!("ptr %l{i}"));
    }
    args.extend(["ptr %syms", "i64 %lo", "i64 %hi"].map(String::from));
    let (mut before, mut after) = ("", "");
    if k.matrices > 0 {
        let _ = writeln!(out, "@matrices = private unnamed_addr constant [64 x i8] c\"{}\", align 64", configuration(k.matrices));
        outer.declare("declare void @llvm.x86.ldtilecfg(ptr)".into());
        outer.declare("declare void @llvm.x86.tilerelease()".into());
        before = "  call void @llvm.x86.ldtilecfg(ptr @matrices)\n";
        after = "  call void @llvm.x86.tilerelease()\n";
    }
    let _ = writeln!(
        out,
        "define i32 @{}(ptr %bufs, ptr %syms, ptr %scratch, i64 %lo, i64 %hi) #0 {{\nentry:\n{}{code}{before}  %status = call i32 @body({})\n{after}  ret i32 %status\n}}\n",
        k.name,
        outer.entry_code(),
        args.join(", ")
    );
    for d in outer.declarations() {
        e.declare(d.clone());
    }
    for d in e.declarations() {
        let _ = writeln!(out, "{d}");
    }
    let width = target.lanes() * 32;
    let tune = target.scheduled_for().map_or_else(String::new, |cpu| format!(" \"tune-cpu\"=\"{cpu}\""));
    let _ = writeln!(
        out,
        "attributes #0 = {{ nounwind \"prefer-vector-width\"=\"{width}\" \"min-legal-vector-width\"=\"{width}\"{tune} }}"
    );
    for m in e.metadata() {
        let _ = writeln!(out, "{m}");
    }
    out
}

/// What `ldtilecfg` reads, as a string of LLVM: palette 1, then from byte 16 the bytes of a row of each register in 16 bits, and from byte 48 the number
/// of its rows in 8.
fn configuration(registers: u32) -> String {
    let mut bytes = [0u8; 64];
    bytes[0] = 1;
    for i in 0..registers as usize {
        bytes[16 + 2 * i] = MatrixInst::ROW_BYTES as u8;
        bytes[48 + i] = MatrixInst::ROWS as u8;
    }
    bytes.iter().map(|b| format!("\\{b:02X}")).collect()
}
