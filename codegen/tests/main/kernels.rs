//! Kernels of every op against the interpreter, in all ways.

use super::*;

#[test]
fn element_wise_with_tails_and_broadcasting() {
    for n in [1, 7, 16, 33, 100] {
        let text = module(
            "%0 \"x\": f32[N,M], %1 \"b\": f32[M]",
            "%2: f32[N,M] = map(%0, %1) {body = {2: i0 = mul a0 a1; i1 = const f32 0.5; i2 = add i0 i1; i3 = erf i2; i4 = tanh i3; i5 = exp i4; i6 = sigmoid i5; i7 = mul i6 a0; i7}}\nreturn %2 \"y\"",
        );
        check(&text, &[&[3, n], &[n]]);
    }
}

#[test]
fn every_unary_operation_on_floats() {
    for op in transc_ir::scalar::UnOp::ALL {
        use transc_ir::scalar::UnOp as U;
        if matches!(op, U::Not) {
            continue;
        }
        let out = if matches!(op, U::IsNan | U::IsInf) { "bool" } else { "f32" };
        for d in ["f32", "f64", "f16", "bf16"] {
            let out = if out == "bool" { "bool" } else { d };
            let text = module(
                &format!("%0 \"x\": {d}[N]"),
                &format!("%1: {out}[N] = map(%0) {{body = {{1: i0 = {} a0; i0}}}}\nreturn %1 \"y\"", op.name()),
            );
            check(&text, &[&[37]]);
        }
    }
}

#[test]
fn every_binary_operation_on_integers_and_floats() {
    for op in transc_ir::scalar::BinOp::ALL {
        use transc_ir::scalar::BinOp as B;
        for d in ["f32", "i32", "i64", "u8", "i8", "u64"] {
            let bits = matches!(op, B::And | B::Or | B::Xor | B::Shl | B::Shr);
            if d == "f32" && bits || d != "f32" && *op == B::Atan2 {
                continue;
            }
            let out = if op.is_compare() { "bool" } else { d };
            // Divisors are made odd, so that none is zero.
            let fix = if d != "f32" {
                format!("i0 = const {d} 1; i1 = or a1 i0; ")
            } else {
                "i0 = const f32 0.0; i1 = add a1 i0; ".into()
            };
            let text = module(
                &format!("%0 \"x\": {d}[N], %1 \"z\": {d}[N]"),
                &format!("%2: {out}[N] = map(%0, %1) {{body = {{2: {fix}i2 = {} a0 i1; i2}}}}\nreturn %2 \"y\"", op.name()),
            );
            check(&text, &[&[35], &[35]]);
        }
    }
}

#[test]
fn every_conversion() {
    for from in DType::ALL {
        for to in DType::ALL {
            let text = module(
                &format!("%0 \"x\": {from}[N]"),
                &format!("%1: {to}[N] = map(%0) {{body = {{1: i0 = cast {to} a0; i0}}}}\nreturn %1 \"y\""),
            );
            check(&text, &[&[19]]);
        }
    }
}

#[test]
fn views_and_data_movement() {
    let cases = [
        ("%1: f32[M,N] = transpose(%0) {perm = [1,0]}", 5, 18),
        ("%1: f32[N*M] = reshape(%0) {dims = [N*M]}", 5, 18),
        ("%1: f32[N,M+3] = concat(%0, %2) {axis = 1}", 5, 18),
        ("%1: f32[N,8] = slice(%0) {starts = [0,2], sizes = [N,8], steps = [1,1]}", 5, 18),
        ("%1: f32[N,8] = slice(%0) {starts = [0,15], sizes = [N,8], steps = [1,-2]}", 5, 18),
        ("%1: f32[4,N,M] = broadcast(%0) {dims = [4,N,M]}", 5, 18),
    ];
    for (line, n, m) in cases {
        let ty = line.split(": ").nth(1).and_then(|t| t.split(" =").next()).expect("a type");
        let text = module(
            "%0 \"x\": f32[N,M], %2 \"z\": f32[N,3]",
            &format!("{}\n%3: {ty} = map(%1) {{body = {{1: i0 = neg a0; i0}}}}\nreturn %3 \"y\", %2 \"z2\"", line),
        );
        // A result that is an input needs a copy, which the passes make; here it is dropped.
        check(&text.replace(", %2 \"z2\"", ""), &[&[n, m], &[n, 3]]);
    }
}

#[test]
fn padding_modes() {
    for mode in ["edge", "reflect", "wrap"] {
        let body = format!("%1: f32[N+5,M+1] = pad(%0) {{lo = [2,1], hi = [3,0], mode = {mode}}}\nreturn %1 \"y\"");
        check(&module("%0 \"x\": f32[N,M]", &body), &[&[6, 17]]);
    }
    let body = "%2: f32[N+5,M+1] = pad(%0, %1) {lo = [2,1], hi = [3,0], mode = constant}\nreturn %2 \"y\"";
    check(&module("%0 \"x\": f32[N,M], %1 \"v\": f32[]", body), &[&[6, 17], &[]]);
}

#[test]
fn indexed_access() {
    let params = "%0 \"x\": f32[N,M], %1 \"i\": i64[2,4]";
    check(&module(params, "%2: f32[2,4,M] = gather(%0, %1) {axis = 0}\nreturn %2 \"y\""), &[&[3, 20], &[2, 4]]);
    check(&module(params, "%2: f32[N,2,4] = gather(%0, %1) {axis = 1}\nreturn %2 \"y\""), &[&[3, 20], &[2, 4]]);
    check(&module(params, "%2: f32[2,4] = gather_elements(%0, %1) {axis = 1}\nreturn %2 \"y\""), &[&[3, 20], &[2, 4]]);
    let params = "%0 \"x\": f32[N,M], %1 \"i\": i64[5,1], %2 \"u\": f32[5,M]";
    check(&module(params, "%3: f32[5,M] = gather_nd(%0, %1) {batch_dims = 0}\nreturn %3 \"y\""), &[&[4, 9], &[5, 1], &[5, 9]]);
    check(&module(params, "%3: f32[N,M] = scatter_nd(%0, %1, %2) {kind = add}\nreturn %3 \"y\""), &[&[4, 9], &[5, 1], &[5, 9]]);
    let params = "%0 \"x\": f32[N,M], %1 \"i\": i64[2,4], %2 \"u\": f32[2,4]";
    check(
        &module(params, "%3: f32[N,M] = scatter_elements(%0, %1, %2) {axis = 1, kind = max}\nreturn %3 \"y\""),
        &[&[3, 9], &[2, 4], &[2, 4]],
    );
}

#[test]
fn tokens_by_a_plan() {
    for (n, remove, protect) in [(9, 3, 1), (9, 3, 0), (10, 4, 2), (8, 1, 5), (7, 3, 1), (2, 1, 0), (65, 32, 1), (197, 13, 1)] {
        let groups = n - remove;
        for (d, c) in [(2usize, 3usize), (16, 64), (7, 100)] {
            let params = format!("%0 \"m\": f32[N,{n},{d}], %1 \"w\": f32[N,{n}], %2 \"x\": f32[N,{n},{c}]");
            let body = format!(
                "%3: f32[N,{n}] = map(%1) {{body = {{1: i0 = const f32 2.0; i1 = add a0 i0; i1}}}}\n\
                 %4: i64[N,{n}] = token_plan(%0, %3) {{planner = tome, remove = {remove}, protect = {protect}}}\n\
                 %5: f32[N,{groups},{c}] = token_apply(%2, %4, %3) {{tokens = {groups}}}\n\
                 return %4 \"plan\", %5 \"y\""
            );
            check(&module(&params, &body), &[&[3, n, d], &[3, n], &[3, n, c]]);
        }
    }
}

#[test]
fn folds_along_every_axis() {
    for kind in ["sum", "prod", "max", "min"] {
        for (axes, ty) in [("0", "[M,5]"), ("1", "[N,5]"), ("2", "[N,M]"), ("1,2", "[N]"), ("0,1,2", "[]")] {
            for d in ["f32", "i32"] {
                let body = format!("%1: {d}{ty} = reduce(%0) {{kind = {kind}, axes = [{axes}], keep = false}}\nreturn %1 \"y\"");
                check(&module(&format!("%0 \"x\": {d}[N,M,5]"), &body), &[&[3, 4, 5]]);
            }
        }
    }
    for n in [15, 16, 17, 200] {
        check(
            &module("%0 \"x\": f32[N,M]", "%1: f32[N] = reduce(%0) {kind = sum, axes = [1], keep = false}\nreturn %1 \"y\""),
            &[&[3, n]],
        );
    }
    check(
        &module(
            "%0 \"x\": f32[N,M]",
            "%1: i64[N] = arg_reduce(%0) {max = true, axis = 1, keep = false, last = false}\nreturn %1 \"y\"",
        ),
        &[&[3, 40]],
    );
    check(
        &module(
            "%0 \"x\": i32[N,M]",
            "%1: i64[1,M] = arg_reduce(%0) {max = false, axis = 0, keep = true, last = true}\nreturn %1 \"y\"",
        ),
        &[&[7, 4]],
    );
    check(
        &module(
            "%0 \"x\": f32[N,M]",
            "%1: f32[N,M] = scan(%0) {kind = sum, axis = 1, exclusive = true, reverse = true}\nreturn %1 \"y\"",
        ),
        &[&[3, 10]],
    );
    check(
        &module(
            "%0 \"x\": f32[N,M]",
            "%1: f32[N,3], %2: i64[N,3] = top_k(%0) {k = 3, axis = 1, largest = true}\nreturn %1 \"v\", %2 \"i\"",
        ),
        &[&[3, 10]],
    );
}

#[test]
fn rows() {
    for n in [1, 8, 15, 16, 31, 130] {
        for body in [
            "%1: f32[N,M] = softmax(%0) {axis = 1, log = false}\nreturn %1 \"y\"",
            "%1: f32[N,M] = softmax(%0) {axis = 0, log = false}\nreturn %1 \"y\"",
            "%1: f32[N,M] = softmax(%0) {axis = 1, log = true}\nreturn %1 \"y\"",
            "%1: f32[N,M] = layer_norm(%0) {axis = 1, epsilon = 1e-5}\nreturn %1 \"y\"",
            "%1: f32[N,M] = layer_norm(%0) {axis = 0, epsilon = 1e-5}\nreturn %1 \"y\"",
            "%1: f32[N,M] = rms_norm(%0) {axis = 1, epsilon = 1e-5}\nreturn %1 \"y\"",
        ] {
            check(&module("%0 \"x\": f32[N,M]", body), &[&[3, n]]);
        }
    }
}

#[test]
fn products() {
    for (m, n, k) in [(1, 1, 1), (3, 10, 5), (8, 48, 64), (9, 50, 33), (130, 17, 20), (5, 30, 1300)] {
        let body = format!(
            "%2: f32[{m},{n}] = contract(%0, %1) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}}\nreturn %2 \"y\""
        );
        check(&module(&format!("%0 \"a\": f32[{m},{k}], %1 \"b\": f32[{k},{n}]"), &body), &[&[m, k], &[k, n]]);
        // Symbolic rows, transposed right operand, batch axes.
        let body =
            "%2: f32[2,N,M] = contract(%0, %1) {lhs = [0,1,3], rhs = [0,2,3], out = [0,1,2], out_dtype = f32}\nreturn %2 \"y\"";
        check(&module("%0 \"a\": f32[2,N,7], %1 \"b\": f32[2,M,7]", body), &[&[2, m, 7], &[2, n, 7]]);
    }
    let body = "%2: i32[N,4] = contract(%0, %1) {lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = i32}\nreturn %2 \"y\"";
    check(&module("%0 \"a\": u8[N,M], %1 \"b\": i8[M,4]", body), &[&[5, 6], &[6, 4]]);
}

#[test]
fn packed_weights_with_an_epilogue() {
    for (rhs, dims) in [("[1,2]", "[20,50]"), ("[2,1]", "[50,20]")] {
        let text = format!(
            "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": f32{dims} = random(3)\n const @c1 \"b\": f32[50] = random(4)\n func @\"main\"(%0 \"x\": f32[2,N,20], %9 \"r\": f32[2,N,50]) {{\n%1: f32[2,N,50] = fused(%0, %9) {{body = func @\"r\"(%0 \"a\": f32[2,N,20], %1 \"r\": f32[2,N,50]) {{\n%2: f32{dims} = constant() {{id = @c0}}\n%3: f32[50] = constant() {{id = @c1}}\n%4: f32[2,N,50] = contract(%0, %2) {{lhs = [0,3,1], rhs = {rhs}, out = [0,3,2], out_dtype = f32}}\n%5: f32[2,N,50] = map(%4, %3, %1) {{body = {{3: i0 = add a0 a1; i1 = erf i0; i2 = add i1 a2; i2}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n"
        );
        check(&text, &[&[2, 13, 20], &[2, 13, 50]]);
    }
}

#[test]
fn integer_weights_with_an_epilogue() {
    for (m, n, k) in [(1, 1, 1), (3, 10, 5), (8, 48, 64), (9, 50, 33), (130, 17, 20)] {
        for (rhs, dims) in [("[1,2]", format!("[{k},{n}]")), ("[2,1]", format!("[{n},{k}]"))] {
            let text = format!(
                "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": i8{dims} = random(3)\n const @c1 \"b\": f32[{n}] = random(4)\n func @\"main\"(%0 \"x\": u8[2,N,{k}]) {{\n%1: u8[2,N,{n}] = fused(%0) {{body = func @\"r\"(%0 \"a\": u8[2,N,{k}]) {{\n%1: i8{dims} = constant() {{id = @c0}}\n%2: f32[{n}] = constant() {{id = @c1}}\n%3: i32[2,N,{n}] = contract(%0, %1) {{lhs = [0,3,1], rhs = {rhs}, out = [0,3,2], out_dtype = i32}}\n%4: u8[2,N,{n}] = map(%3, %2) {{body = {{2: i0 = cast f32 a0; i1 = const f32 0.01; i2 = mul i0 i1; i3 = add i2 a1; i4 = round i3; i5 = cast u8 i4; i5}}}}\nreturn %4 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n"
            );
            check_on(BYTES, &text, &[&[2, m, k]]);
        }
    }
}

/// A matrix `[k, n]` of codes up to `top`, decoded with a scale and zero point per column and group of rows, in the text form.
fn decoded(k: usize, n: usize, group: usize, top: i64) -> String {
    let mut seed = 11;
    let value = |i: usize| {
        let (row, c) = (i / n, i % n);
        let scale = 0.002 + ((row / group) * 31 + c * 7 % 13) as f32 * 0.000_37;
        let code = if row % group == 0 { top } else { (random(&mut seed) >> 32) as i64 % (top + 1) };
        format!("{:?}", (code - top / 3) as f32 * scale)
    };
    (0..k * n).map(value).collect::<Vec<_>>().join(", ")
}

#[test]
fn weights_in_few_bits() {
    // Rows of the activation, columns, length of the sums, inputs of a group, largest code.
    for (m, n, k, group, top) in
        [(1, 64, 64, 32, 15), (2, 50, 99, 99, 15), (9, 70, 80, 16, 15), (1, 49, 90, 90, 255), (35, 24, 256, 64, 255)]
    {
        let bits = if top > 15 { 8 } else { 4 };
        // More rows than a few, and any number of them.
        let (dim, fixed) = if m == 9 { ("", "9") } else { (" dim N in 1..4096\n", "N") };
        let text = format!(
            "module \"t\" {{\n{dim} const @c0 \"w\": f32[{k},{n}] = [{}]\n const @c1 \"b\": f32[{n}] = random(4)\n func @\"main\"(%0 \"x\": f32[1,{fixed},{k}]) {{\n%1: f32[1,{fixed},{n}] = fused(%0) {{body = func @\"r\"(%0 \"a\": f32[1,{fixed},{k}]) {{\n%2: f32[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{n}] = constant() {{id = @c1}}\n%4: f32[1,{fixed},{n}] = contract(%0, %2) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = f32}}\n%5: f32[1,{fixed},{n}] = map(%4, %3) {{body = {{2: i0 = add a0 a1; i0}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n",
            decoded(k, n, group, top),
        );
        let program = lower::lower(&parse_module(&text).expect("text"), &Target::X86_64_V3).expect("lowers");
        let kernel = &program.kernels[0].name;
        assert!(kernel.contains(&format!("matmul_w{bits}g{group}_")), "{kernel}");
        let bytes: usize = program.consts.iter().map(transc_codegen::PackedConst::len_bytes).sum();
        assert!(bytes < k * n * 4 * 3 / 4, "{bytes} bytes for {k}x{n}");
        check(&text, &[&[1, m, k]]);
    }
}

/// What a dense product's bytes become is looked up by column, where processors do: in squares, and one by one for a few rows.
#[test]
fn dense_layers_look_bytes_up() {
    let coded = "i3 = const f32 37.0; i4 = round i2; i5 = add i4 i3; i6 = cast CODE i5; i7 = cast f32 i6; i8 = sub i7 i3; i9 = add i8 a1; i10 = const f32 0.25; i11 = mul i9 i10; i12 = tanh i11; i13 = mul i12 i9; i14 = round i13; i15 = cast CODE i14; i15";
    for (m, n, k, code) in [(1, 64, 80, "u8"), (11, 48, 33, "i8"), (33, 68, 64, "u8"), (71, 130, 131, "i8"), (150, 5, 20, "u8")] {
        let (weight, coded) = (crate::sparse::weight(k, n, (1, 1), 0, true), coded.replace("CODE", code));
        let text = format!(
            "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": i8[{k},{n}] = [{weight}]\n const @c1 \"b\": f32[{n}] = random(4)\n func @\"main\"(%0 \"x\": u8[2,N,{k}]) {{\n%1: {code}[2,N,{n}] = fused(%0) {{body = func @\"r\"(%0 \"a\": u8[2,N,{k}]) {{\n%2: i8[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{n}] = constant() {{id = @c1}}\n%4: i32[2,N,{n}] = contract(%0, %2) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = i32}}\n%5: {code}[2,N,{n}] = map(%4, %3) {{body = {{2: i0 = cast f32 a0; i1 = const f32 0.01; i2 = mul i0 i1; {coded}}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n"
        );
        let shapes: [&[usize]; 1] = [&[2, m, k]];
        check(&text, &shapes);
        let (m, inputs, want) = case(&text, &shapes);
        on_processors(BYTES, &text, (&m, &inputs, &want));
        for (target, looks_up) in [("znver4", true), ("graniterapids", true), ("x86-64-v4", false)] {
            let target = Target::list(target).expect("a target").remove(0);
            let program = lower::lower(&m, &target).expect("it lowers").to_string();
            assert!(!program.contains("spmm"), "{program}");
            assert_eq!(program.contains("vpermi2b"), looks_up);
        }
    }
}

/// Codes and what they decode to, bit by bit as the interpreter has them: ties, both ends, and what is no number.
#[test]
fn codes_are_those_of_the_interpreter() {
    let n = 4096;
    let mut x = Tensor::zeros(DType::F32, &[n]).expect("small");
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e30, -1e30, 1e-40];
    for i in 0..n {
        // Halves of a step of 2^-5, then of the odd one.
        let v = (i as f64 - 2048.0) / if i % 2 == 0 { 64.0 } else { 54.054 };
        x.set(i, Literal::from_f64(DType::F32, special.get(i).copied().unwrap_or(v)));
    }
    for (to, zero) in [("u8", 0), ("u8", 13), ("u8", 255), ("i8", 0), ("i8", -128), ("i8", 7)] {
        for (step, minus) in [("0.03125", zero), ("0.037", zero), ("0.037", 3)] {
            let code = format!(
                "i0 = const f32 {step}; i1 = div a0 i0; i2 = round i1; i3 = const f32 {zero}.0; i4 = add i2 i3; i5 = cast {to} i4"
            );
            let text = module(
                &format!("%0 \"x\": f32[{n}]"),
                &format!(
                    "%1: {to}[{n}] = map(%0) {{body = {{1: {code}; i5}}}}\n%2: f32[{n}] = map(%0) {{body = {{1: {code}; i6 = cast i32 i5; i7 = const i32 {minus}; i8 = sub i6 i7; i9 = cast f32 i8; i10 = mul i9 i0; i10}}}}\nreturn %1 \"y\", %2 \"z\""
                ),
            );
            let m = parse_module(&text).expect("valid");
            let want = interp::eval_module(&m, std::slice::from_ref(&x)).expect("evaluates");
            for backend in Backend::built() {
                let target = backend.target(&Target::host());
                let program = lower::lower(&m, &target).expect("lowers");
                let options = EmitOptions { backend, ..EmitOptions::default() };
                let code = compile(&program, &target, &options).expect("compiles");
                let session = Session::new(code.jit().expect("loads"), SessionOptions::default()).expect("threads");
                let given = runtime::Tensor::from_bytes(runtime::DType::F32, &[n], &x.data).expect("whole");
                let got = session.run(&[("x", given.view())]).expect("runs");
                for ((name, got), want) in got.iter().zip(&want) {
                    assert!(got.bytes() == want.data, "{name}: {to} {zero} {step} {minus} by {backend}");
                }
            }
        }
    }
}

#[test]
fn polynomials_keep_their_bounds() {
    // (operation, range, relative bound in units of the last place, absolute bound)
    let cases = [
        ("exp a0", -87.0, 88.0, 4.0, 0.0),
        ("tanh a0", -12.0, 12.0, 4.0, 0.0),
        ("erf a0", -5.0, 5.0, 8.0, 0.0),
        ("sigmoid a0", -80.0, 80.0, 4.0, 0.0),
        ("log a0", 1e-3, 1e3, 4.0, 1e-9),
    ];
    for (op, lo, hi, ulp, absolute) in cases {
        let text = module(
            "%0 \"x\": f32[100003]",
            &format!("%1: f32[100003] = map(%0) {{body = {{1: i0 = {op}; i0}}}}\nreturn %1 \"y\""),
        );
        let m = parse_module(&text).expect("valid");
        let n = 100_003;
        let mut x = Tensor::zeros(DType::F32, &[n]).expect("small");
        for i in 0..n {
            x.set(i, Literal::from_f64(DType::F32, lo + (hi - lo) * i as f64 / (n - 1) as f64));
        }
        let wide = parse_module(&text.replace("f32", "f64")).expect("valid");
        let mut x64 = Tensor::zeros(DType::F64, &[n]).expect("small");
        for i in 0..n {
            x64.set(i, Literal::from_f64(DType::F64, x.get_f64(i)));
        }
        let want = interp::eval_module(&wide, &[x64]).expect("evaluates").remove(0);
        let target = Target::host();
        let program = lower::lower(&m, &target).expect("lowers");
        let code = compile(&program, &target, &EmitOptions::default()).expect("compiles");
        let session = Session::new(code.jit().expect("loads"), SessionOptions::default()).expect("threads");
        let given = runtime::Tensor::from_bytes(runtime::DType::F32, &[n], &x.data).expect("whole");
        let got = session.run(&[("x", given.view())]).expect("runs").remove(0).1;
        for i in 0..n {
            let y = f32::from_le_bytes(std::array::from_fn(|b| got.bytes()[4 * i + b]));
            let w = want.get_f64(i);
            let bound = ulp * f64::from((w as f32).abs().next_up() - (w as f32).abs()) + absolute;
            assert!((f64::from(y) - w).abs() <= bound, "{op} at {}: {y}, exactly {w}", x.get_f64(i));
        }
    }
}
