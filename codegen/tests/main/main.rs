//! Compiled kernels against the reference interpreter, region by region. One binary: LLVM is linked once.

use transc_codegen::{Backend, CodegenError, EmitOptions, Program, Target, Text, compile, lower, simulate};
use transc_ir::Module;
use transc_ir::interp::{self, Tensor};
use transc_ir::scalar::Literal;
use transc_ir::text::parse_module;
use transc_ir::types::DType;
use transc_runtime::{self as runtime, Session, SessionOptions};

mod attention;
mod bf16;
mod convolutions;
mod device;
mod kernels;
mod layouts;
mod ptx;
mod ptxas;
mod sparse;

/// SplitMix64: the same inputs in every run.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn input(dtype: DType, dims: &[usize], seed: &mut u64) -> Tensor {
    let mut t = Tensor::zeros(dtype, dims).expect("small");
    for i in 0..t.count() {
        let r = random(seed);
        let v = if dtype.is_float() {
            Literal::from_f64(dtype, (r >> 40) as f64 / f64::from(1 << 23) - 1.0)
        } else if dtype == DType::Bool {
            Literal::bool(r & 1 == 1)
        } else if matches!(dtype, DType::U8 | DType::I8) {
            // Codes of all sizes, the extremes among them often.
            Literal { dtype, bits: [r >> 8 & 255, 0, 127, 128, 255][(r % 5) as usize] }
        } else {
            // Small and non-negative: valid as indices into every axis of the cases.
            Literal::from_i64(dtype, (r % 3) as i64)
        };
        t.set(i, v);
    }
    t
}

/// The backends of this build with the targets that this machine has.
fn ways() -> Vec<(Backend, Target)> {
    let mut targets = vec![Target::X86_64_V3];
    if Target::host().lanes() == 16 {
        targets.push(Target::X86_64_V4);
    } else {
        println!("skipped: x86-64-v4 (no avx512f)");
    }
    let of = |b: Backend| {
        let narrow = b.target(&Target::X86_64_V3);
        let mut all = targets.clone();
        if !all.contains(&narrow) {
            all.push(narrow);
        }
        all.into_iter().map(move |t| (b, t))
    };
    Backend::built().flat_map(of).collect()
}

/// Runs a module on random inputs of the given shapes through the interpreter and compiled code, in every way that there is.
fn check(text: &str, shapes: &[&[usize]]) {
    let (m, inputs, want) = case(text, shapes);
    on_device(&m, text, &inputs, &want);
    on_hosts(text, (&m, &inputs, &want), ways());
}

/// A module, random inputs of the given shapes, and what the interpreter gives.
fn case(text: &str, shapes: &[&[usize]]) -> (Module, Vec<Tensor>, Vec<Tensor>) {
    let m = parse_module(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut seed = 1;
    let inputs: Vec<Tensor> =
        m.main.params().iter().zip(shapes).map(|((_, v), s)| input(m.main.ty(*v).dtype, s, &mut seed)).collect();
    let want = interp::eval_module(&m, &inputs).unwrap_or_else(|e| panic!("{e}\n{text}"));
    (m, inputs, want)
}

/// Compiled and simulated in these ways.
fn on_hosts(text: &str, (m, inputs, want): (&Module, &[Tensor], &[Tensor]), ways: Vec<(Backend, Target)>) {
    for (backend, target) in ways {
        let program = lower::lower(m, &target).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let code = compile(&program, &target, &EmitOptions { backend, ..EmitOptions::default() })
            .unwrap_or_else(|e| panic!("{e}\n{program}"));
        let simulated = simulated(&program, inputs);
        let session =
            Session::new(code.jit().expect("code loads"), SessionOptions { threads: 2, ..Default::default() }).expect("threads");
        let given: Vec<runtime::Tensor> = inputs
            .iter()
            .map(|t| {
                let dtype = runtime::DType::from_number(t.dtype.onnx_number()).expect("same numbers");
                runtime::Tensor::from_bytes(dtype, &t.dims, &t.data).expect("whole")
            })
            .collect();
        let views: Vec<_> = m.main.params().iter().zip(&given).map(|((n, _), t)| (n.as_str(), t.view())).collect();
        let got = session.run(&views).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for (((name, g), s), w) in got.iter().zip(&simulated).zip(want) {
            let g = Tensor { dtype: w.dtype, dims: g.shape().to_vec(), data: g.bytes().to_vec() };
            for (way, t) in [("compiled", &g), ("simulated", s)] {
                let what = difference(t, w);
                assert!(what.is_none(), "{backend} {} {way} {name} {what:?}\n{text}\n{program}", target.name());
            }
        }
    }
}

/// Processors with dot products of bytes: with matrix registers, with look-up of bytes, without either, and with shorter vectors.
const BYTES: &str = "sapphirerapids,znver4,cascadelake,alderlake";
/// Processors with products of `bf16`: with matrix registers, without.
const BF16: &str = "sapphirerapids,znver4";

/// Simulated for some processors, and compiled where this machine has what they have.
fn on_processors(names: &str, text: &str, (m, inputs, want): (&Module, &[Tensor], &[Tensor])) {
    for target in Target::list(names).expect("targets") {
        let program = lower::lower(m, &target).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for (s, w) in simulated(&program, inputs).iter().zip(want) {
            let what = difference(s, w);
            assert!(what.is_none(), "{} simulated {what:?}\n{text}\n{program}", target.name());
        }
        let lacks: Vec<&str> = target.features().into_iter().filter(|f| !runtime::has_feature(f)).collect();
        if lacks.is_empty() {
            on_hosts(text, (m, inputs, want), vec![(Backend::default(), target)]);
        } else {
            println!("skipped code for {}: no {}", target.name(), lacks.join(", "));
        }
    }
}

/// [`check`], then on some processors.
fn check_on(names: &str, text: &str, shapes: &[&[usize]]) {
    check(text, shapes);
    let (m, inputs, want) = case(text, shapes);
    on_processors(names, text, (&m, &inputs, &want));
}

/// Simulates the device code of a module, and has LLVM and the PTX assembler accept it.
fn on_device(m: &Module, text: &str, inputs: &[Tensor], want: &[Tensor]) {
    let target = Target::CUDA_SM_80;
    let program = lower::lower(m, &target).unwrap_or_else(|e| panic!("{e}\n{text}"));
    if text.contains("f64") && matches!(program.expanded(), Err(CodegenError::NoFunction { .. })) {
        return;
    }
    for ((name, _), (w, g)) in m.main.results().iter().zip(want.iter().zip(&simulated(&program, inputs))) {
        let what = difference(g, w);
        assert!(what.is_none(), "device {name} {what:?}\n{text}\n{program}");
    }
    ptx::check(&program, &target);
}

/// Runs a program in the loop-IR interpreter.
fn simulated(program: &Program, inputs: &[Tensor]) -> Vec<Tensor> {
    let program = program.expanded().unwrap_or_else(|e| panic!("{e}\n{program}"));
    simulate::run(&program, inputs).unwrap_or_else(|e| panic!("{e}\n{program}"))
}

/// The first element that is not the reference's within a bound on the rounding of these small cases.
fn difference(got: &Tensor, want: &Tensor) -> Option<String> {
    if (got.dtype, &got.dims) != (want.dtype, &want.dims) {
        return Some(format!("is {}, not {}", got.ty(), want.ty()));
    }
    let half = if want.dtype.size_bytes() == 2 { 500.0 } else { 1.0 };
    (0..want.count()).find_map(|i| {
        let (x, y) = (got.get_f64(i), want.get_f64(i));
        let tolerance = if want.dtype.is_float() { 2e-5 * (1.0 + y.abs()) * half } else { 0.0 };
        let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance;
        (!same).then(|| format!("[{i}]: {x}, the reference {y}"))
    })
}

/// A module of one function with dims `N` and `M`, where its parameters have them.
fn module(params: &str, body: &str) -> String {
    let dims: String = ["N", "M"].iter().filter(|d| params.contains(**d)).map(|d| format!(" dim {d} in 1..4096\n")).collect();
    format!("module \"t\" {{\n{dims} func @\"main\"({params}) {{\n{body}\n}}\n}}\n")
}
