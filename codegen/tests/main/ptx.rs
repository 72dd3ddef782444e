//! PTX: the assembler accepts it, and what matters about the speed of a kernel stands in it.

use std::fmt::Write as _;

use super::*;

fn text(program: &Program, target: &Target) -> String {
    let code = compile(program, target, &EmitOptions::default()).unwrap_or_else(|e| panic!("{e}\n{program}"));
    code.text(Text::Ptx).expect("a device has PTX")
}

/// Emits PTX and, where there is an assembler, assembles it.
pub fn check(program: &Program, target: &Target) {
    ptxas::assemble(&text(program, target), target.processor());
}

/// The accesses to memory, barriers and products of a kernel in their order, repetitions as a count. Registers and addresses are LLVM's.
fn skeleton(params: &str, body: &str) -> String {
    let m = parse_module(&module(params, body)).unwrap_or_else(|e| panic!("{e}"));
    let target = Target::CUDA_SM_80;
    let ptx = text(&lower::lower(&m, &target).expect("it lowers"), &target);
    let shown = |op: &&str| ["ld.global", "ld.shared", "st.", "bar.", "fma.", "atom."].iter().any(|p| op.starts_with(p));
    let ops = ptx.lines().filter_map(|l| l.split_whitespace().find(|w| !w.starts_with('@'))).filter(shown);
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for op in ops {
        match runs.last_mut().filter(|(last, _)| *last == op) {
            Some((_, n)) => *n += 1,
            None => runs.push((op, 1)),
        }
    }
    runs.iter().fold(String::new(), |mut out, (op, n)| {
        let _ = if *n == 1 { writeln!(out, "{op}") } else { writeln!(out, "{op} x{n}") };
        out
    })
}

/// One load through the read-only path and one store, and nothing waits.
#[test]
fn a_map_reads_and_writes_once() {
    let body = "%1: f32[N] = map(%0) {body = {1: i0 = mul a0 a0; i0}}\nreturn %1 \"y\"";
    insta::assert_snapshot!(skeleton("%0 \"x\": f32[N]", body), @r"
    ld.global.nc.b32
    st.global.b32
    ");
}

/// Two bytes come and go; the arithmetic between is in f32.
#[test]
fn half_precision_is_half_the_traffic() {
    let body = "%2: f16[N] = map(%0, %1) {body = {2: i0 = mul a0 a1; i0}}\nreturn %2 \"y\"";
    insta::assert_snapshot!(skeleton("%0 \"x\": f16[N], %1 \"z\": f16[N]", body), @r"
    ld.global.nc.b16 x2
    st.global.b16
    ");
}

/// A thread adds its part of the row; then the block halves its sums in shared memory, a barrier before each step.
#[test]
fn a_fold_meets_in_shared_memory() {
    let body = "%1: f32[N] = reduce(%0) {kind = sum, axes = [1], keep = false}\nreturn %1 \"y\"";
    insta::assert_snapshot!(skeleton("%0 \"x\": f32[N,M]", body), @r"
    ld.global.nc.b32
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32 x2
    st.shared.b32
    bar.sync
    ld.shared.b32
    bar.sync
    st.global.b32
    ");
}

/// An index outside its tensor ends in the status word of the launch, without an access.
#[test]
fn an_index_is_checked_before_it_is_used() {
    let body = "%2: f32[2,4,M] = gather(%0, %1) {axis = 0}\nreturn %2 \"y\"";
    insta::assert_snapshot!(skeleton("%0 \"x\": f32[N,M], %1 \"i\": i64[2,4]", body), @r"
    ld.global.nc.b64
    atom.global.max.u32
    ld.global.nc.b32
    st.global.b32
    ");
}

/// Of a tile each thread has 4x4 sums: in each of 16 steps between two barriers, 16 products for 5 loads from shared memory.
#[test]
fn a_product_reuses_what_it_loads() {
    let body = "%2: f32[N,64] = contract(%0, %1) {lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}\nreturn %2 \"y\"";
    let ops = skeleton("%0 \"a\": f32[N,64], %1 \"b\": f32[64,64]", body);
    let count = |op: &str| -> usize {
        let runs = ops.lines().filter(|l| l.starts_with(op));
        runs.map(|l| l.split_once(" x").map_or(1, |(_, n)| n.parse().expect("a number"))).sum()
    };
    let counts = ["fma.rn.f32", "ld.shared", "bar.sync"].map(|op| format!("{op}: {}", count(op)));
    insta::assert_snapshot!(counts.join("\n"), @r"
    fma.rn.f32: 256
    ld.shared: 81
    bar.sync: 3
    ");
}
