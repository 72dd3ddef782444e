//! Products of `bf16` by a constant: right in all ways, and the same sums on every target.

use super::*;

/// `x[N,k] * w[k,n]`, the activation rounded where it is read or in memory, with a bias and a square behind it.
fn product(k: usize, n: usize, rounded_before: bool) -> String {
    let (given, cast) = if rounded_before {
        ("bf16", String::new())
    } else {
        ("f32", format!("%4: bf16[N,{k}] = map(%0) {{body = {{1: i0 = cast bf16 a0; i0}}}}\n"))
    };
    let left = if rounded_before { 0 } else { 4 };
    format!(
        "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": bf16[{k},{n}] = random(1)\n func @\"main\"(%0 \"x\": {given}[N,{k}], %1 \"b\": f32[{n}]) {{\n\
         %2: f32[N,{n}] = fused(%0, %1) {{body = func @\"contract\"(%0 \"in0\": {given}[N,{k}], %1 \"in1\": f32[{n}]) {{\n\
         %2: bf16[{k},{n}] = constant() {{id = @c0}}\n{cast}\
         %5: f32[N,{n}] = contract(%{left}, %2) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}}\n\
         %6: f32[N,{n}] = map(%5, %1) {{body = {{2: i0 = add a0 a1; i1 = mul i0 i0; i1}}}}\n\
         return %6 \"out\"\n}}}}\nreturn %2 \"y\"\n}}\n}}\n"
    )
}

#[test]
fn products_by_constants_with_tails() {
    for (k, n) in [(1, 1), (2, 7), (3, 24), (16, 25), (33, 100), (64, 48), (129, 5)] {
        for m in [1, 3, 19] {
            for rounded_before in [false, true] {
                check_on(BF16, &product(k, n, rounded_before), &[&[m, k], &[n]]);
            }
        }
    }
    // More rows than a chunk, cut anywhere by threads.
    for m in [127, 128, 130, 300] {
        check_on(BF16, &product(35, 50, false), &[&[m, 35], &[50]]);
    }
}

#[test]
fn other_places_of_rows_sums_and_results() {
    let module = |params: &str, constant: &str, body: &str| {
        format!(
            "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": {constant} = random(1)\n func @\"main\"({params}) {{\n%1: {constant} = constant() {{id = @c0}}\n{body}\n}}\n}}\n"
        )
    };
    for k in [5, 16, 34] {
        // Sums along the rows of the activation; the weight as its transpose; a batch of weights; a result in bf16.
        let turned = "%2: f32[N,40] = contract(%0, %1) {lhs = [1,0], rhs = [1,2], out = [0,2], out_dtype = f32}\nreturn %2 \"y\"";
        check_on(BF16, &module(&format!("%0 \"x\": bf16[{k},N]"), &format!("bf16[{k},40]"), turned), &[&[k, 21]]);
        let transposed =
            "%2: f32[N,40] = contract(%0, %1) {lhs = [0,1], rhs = [2,1], out = [0,2], out_dtype = f32}\nreturn %2 \"y\"";
        check_on(BF16, &module(&format!("%0 \"x\": bf16[N,{k}]"), &format!("bf16[40,{k}]"), transposed), &[&[21, k]]);
        let batched =
            "%2: f32[3,N,40] = contract(%0, %1) {lhs = [0,1,2], rhs = [0,2,3], out = [0,1,3], out_dtype = f32}\nreturn %2 \"y\"";
        check_on(BF16, &module(&format!("%0 \"x\": bf16[3,N,{k}]"), &format!("bf16[3,{k},40]"), batched), &[&[3, 21, k]]);
        let narrow =
            "%2: bf16[N,40] = contract(%0, %1) {lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = bf16}\nreturn %2 \"y\"";
        check_on(BF16, &module(&format!("%0 \"x\": bf16[N,{k}]"), &format!("bf16[{k},40]"), narrow), &[&[21, k]]);
    }
}

/// Processors with products of pairs, ones without them, and their widths: what the simulated code gives is equal to the bit.
#[test]
fn sums_are_the_same_on_every_target() {
    for (m, k, n) in [(1, 40, 33), (3, 9, 24), (13, 64, 70), (140, 6, 48)] {
        let text = product(k, n, false);
        let module = parse_module(&text).expect("it parses");
        let mut seed = 3;
        let inputs = [input(DType::F32, &[m, k], &mut seed), input(DType::F32, &[n], &mut seed)];
        let of = |name: &str| {
            let target: Target = name.parse().expect("a target");
            simulated(&lower::lower(&module, &target).expect("it lowers"), &inputs).remove(0)
        };
        let with = of("znver4");
        for name in ["x86-64-v3", "x86-64-v4", "cascadelake", "znver4"] {
            assert!(of(name).data == with.data, "{name}: {m} x {k} x {n}");
        }
        let narrow = lower::lower(&module, &Target::X86_64_V3_128).expect("it lowers");
        assert!(simulated(&narrow, &inputs)[0].data == with.data, "vectors of 128 bits");
        for (backend, target) in ways() {
            let program = lower::lower(&module, &target).expect("it lowers");
            let code = compile(&program, &target, &EmitOptions { backend, ..EmitOptions::default() }).expect("it compiles");
            let session = Session::new(code.jit().expect("it loads"), SessionOptions::default()).expect("threads");
            let given: Vec<runtime::Tensor> = inputs
                .iter()
                .map(|t| runtime::Tensor::from_bytes(runtime::DType::F32, &t.dims, &t.data).expect("whole"))
                .collect();
            let got = session.run(&[("x", given[0].view()), ("b", given[1].view())]).expect("it runs");
            assert!(got[0].1.bytes() == &with.data[..], "{backend} {}", target.name());
        }
    }
}

/// The other order of sums, that of matrix registers: code gives what their stated meaning gives, to the bit.
#[test]
fn matrix_registers_sum_as_stated() {
    let target: Target = "sapphirerapids".parse().expect("a target");
    let lacks: Vec<&str> = target.features().into_iter().filter(|f| !runtime::has_feature(f)).collect();
    if !lacks.is_empty() || !Backend::built().any(|b| b == Backend::Llvm) {
        return println!("skipped: no {}", lacks.join(", "));
    }
    for (m, k, n) in [(1, 40, 33), (3, 9, 24), (13, 64, 70), (140, 96, 48)] {
        let module = parse_module(&product(k, n, false)).expect("it parses");
        let mut seed = 3;
        let inputs = [input(DType::F32, &[m, k], &mut seed), input(DType::F32, &[n], &mut seed)];
        let program = lower::lower(&module, &target).expect("it lowers");
        let want = simulated(&program, &inputs).remove(0);
        let code = compile(&program, &target, &EmitOptions { backend: Backend::Llvm, ..EmitOptions::default() });
        let session = Session::new(code.and_then(|c| c.jit()).expect("code"), SessionOptions::default()).expect("threads");
        let given = inputs.each_ref().map(|t| runtime::Tensor::from_bytes(runtime::DType::F32, &t.dims, &t.data).expect("whole"));
        let got = session.run(&[("x", given[0].view()), ("b", given[1].view())]).expect("it runs");
        let differs = got[0].1.bytes().iter().zip(&want.data).position(|(x, y)| x != y);
        assert_eq!(differs, None, "{m} x {k} x {n}, byte");
    }
}

/// The instruction is used where the processor has it, in whole registers, and no accumulator leaves them.
#[test]
fn code_for_processors_with_the_instruction_uses_it() {
    if !Backend::built().any(|b| b == Backend::Llvm) {
        return;
    }
    let module = parse_module(&product(768, 768, true)).expect("it parses");
    let assembly = |name: &str| {
        let target: Target = name.parse().expect("a target");
        let program = lower::lower(&module, &target).expect("it lowers");
        let code =
            compile(&program, &target, &EmitOptions { backend: Backend::Llvm, ..EmitOptions::default() }).expect("it compiles");
        code.text(Text::Asm).expect("assembly")
    };
    let text = assembly("znver4");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let dots: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].starts_with("vdpbf16ps")).collect();
    assert!(dots.len() >= 24 + 12 + 6 + 3, "{}", dots.len());
    assert!(dots.iter().all(|i| lines[*i].contains("zmm")), "whole registers");
    // The loop of the whole tile: from a label to a jump back, with the most products.
    let mut best: &[&str] = &[];
    let mut from = 0;
    for (i, l) in lines.iter().enumerate() {
        if l.ends_with(':') {
            from = i;
        } else if l.starts_with('j') {
            let count = |part: &[&str]| part.iter().filter(|l| l.starts_with("vdpbf16ps")).count();
            if count(&lines[from..i]) > count(best) {
                best = &lines[from..i];
            }
        }
    }
    assert!(!best.iter().any(|l| l.contains("(%rsp)") && l.contains("zmm")), "an accumulator is spilled:\n{}", best.join("\n"));
    assert!(!assembly("x86-64-v4").contains("vdpbf16ps"), "not every processor of the level has it");
    // Four sums of two by two, between configuration and release.
    let text = assembly("sapphirerapids");
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}"));
    assert!(place("ldtilecfg") < place("tdpbf16ps") && place("tdpbf16ps") < place("tilerelease"));
    for sums in 0..4 {
        place(&format!("tdpbf16ps\t%tmm{}, %tmm{}, %tmm{sums}", 6 + sums % 2, 4 + sums / 2));
    }
}
