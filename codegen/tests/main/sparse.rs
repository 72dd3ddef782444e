//! Products by weights with zeros: every kind of block and element, results that lie turned, and where each kernel is chosen.

use super::*;

/// A matrix `[k, n]` of which the given share of blocks of so many columns and rows is zero, in the text form.
pub(crate) fn weight(k: usize, n: usize, (columns, rows): (usize, usize), share: u64, int8: bool) -> String {
    let mut seed = 7;
    let mut values = vec![String::from("0"); k * n];
    for row in (0..k).step_by(rows) {
        for block in 0..n.div_ceil(columns) {
            // One block row stays empty, one full.
            let keep = block == 1 || block != 2 && random(&mut seed) % 100 >= share;
            for r in (row..k.min(row + rows)).filter(|_| keep) {
                for c in block * columns..n.min((block + 1) * columns) {
                    let x = random(&mut seed);
                    let extreme = [127, -128, 1][(x % 3) as usize];
                    let v = if x.is_multiple_of(4) { extreme } else { (x >> 32) as i64 % 128 };
                    values[r * n + c] = v.to_string();
                }
            }
        }
    }
    if !int8 {
        values.iter_mut().for_each(|v| v.push_str(".0"));
    }
    values.join(", ")
}

/// Element types of activation, weight and sums, and where the product takes the activation from.
fn types(dtype: &str) -> [&'static str; 3] {
    match dtype {
        "int8" => ["u8", "i8", "i32"],
        "bf16" => ["f32", "bf16", "f32"],
        _ => ["f32", "f32", "f32"],
    }
}

/// A rounding of `%0` to `bf16` where the product wants it, and the name of what it takes.
fn rounded(dtype: &str, dims: &str) -> (String, &'static str) {
    match dtype {
        "bf16" => (format!("%10: bf16[{dims}] = map(%0) {{body = {{1: i0 = cast bf16 a0; i0}}}}\n"), "%10"),
        _ => (String::new(), "%0"),
    }
}

/// The kernel that a module's only product gets on a target.
fn kernel(text: &str, target: &str) -> String {
    let target = Target::list(target).expect("a target").remove(0);
    lower::lower(&parse_module(text).expect("text"), &target).expect("lowers").kernels[0].name.clone()
}

/// `scale * (x @ w) + b + r`.
fn layer(dtype: &str, (n, k): (usize, usize), weight: &str) -> String {
    let [a, w, sum] = types(dtype);
    let scale = if dtype == "int8" { "i0 = cast f32 a0" } else { "i0 = add a0 a0" };
    let (round, left) = rounded(dtype, &format!("2,N,{k}"));
    format!(
        "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": {w}[{k},{n}] = [{weight}]\n const @c1 \"b\": f32[{n}] = random(4)\n func @\"main\"(%0 \"x\": {a}[2,N,{k}], %9 \"r\": f32[2,N,{n}]) {{\n%1: f32[2,N,{n}] = fused(%0, %9) {{body = func @\"r\"(%0 \"a\": {a}[2,N,{k}], %1 \"r\": f32[2,N,{n}]) {{\n%2: {w}[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{n}] = constant() {{id = @c1}}\n{round}%4: {sum}[2,N,{n}] = contract({left}, %2) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = {sum}}}\n%5: f32[2,N,{n}] = map(%4, %3, %1) {{body = {{3: {scale}; i1 = const f32 0.001; i2 = mul i0 i1; i3 = add i2 a1; i4 = add i3 a2; i4}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n"
    )
}

/// Processors for an element type, which have the instruction for its groups.
fn processors(dtype: &str) -> &'static str {
    if dtype == "bf16" { "znver4" } else { BYTES }
}

#[test]
fn weights_with_zeros() {
    // Rows of the activation, columns, length of the sums (the last ones are cut into pieces).
    let sizes = [(1, 64, 120), (64, 68, 128), (70, 130, 131), (33, 100, 67), (5, 90, 127), (3, 70, 501), (40, 36, 450)];
    // Columns and rows of a block with an instruction for groups, and without: pairs of 16-bit numbers, or no groups.
    let cases = [
        ("f32", (4, 1), "4x1", "4x1"),
        ("f32", (1, 1), "1x1", "1x1"),
        ("bf16", (4, 1), "4x1", "4x1"),
        ("bf16", (1, 1), "1x1", "1x1"),
        ("bf16", (1, 2), "1x2", "1x1"),
        ("int8", (4, 1), "4x1", "4x1"),
        ("int8", (1, 4), "1x4", "1x2"),
        ("int8", (4, 4), "4x4", "4x2"),
        ("int8", (1, 1), "1x1", "1x1"),
    ];
    for (i, (m, n, k)) in sizes.into_iter().enumerate() {
        for (dtype, block, with, without) in cases {
            // Where sums are short, filled groups cost as much as other blocks.
            if (dtype, block) == ("int8", (1, 1)) && k < 400 {
                continue;
            }
            let share = if dtype != "int8" && block == (1, 1) { 97 } else { 90 };
            let text = layer(dtype, (n, k), &weight(k, n, block, share, dtype == "int8"));
            for (target, block) in [("znver4", with), ("x86-64-v4", without)] {
                let kernel = kernel(&text, target);
                assert!(kernel.contains(&format!("spmm{block}_")), "{dtype} {block} for {target}: {kernel}");
            }
            // Some of the sizes on all processors: the simulator takes its time.
            let shapes: [&[usize]; 2] = [&[2, m, k], &[2, m, n]];
            if i % 2 == 0 { check_on(processors(dtype), &text, &shapes) } else { check(&text, &shapes) }
        }
    }
    // Pieces of panels of blocks of one column.
    for (dtype, block, k) in [("int8", (1, 4), 1601), ("bf16", (1, 2), 801), ("f32", (1, 1), 401)] {
        let text = layer(dtype, (9, k), &weight(k, 9, block, 96, dtype == "int8"));
        check_on(processors(dtype), &text, &[&[2, 20, k], &[2, 20, 9]]);
    }
}

#[test]
fn turned_weights_with_zeros() {
    for (m, n, k) in [(1, 64, 80), (64, 68, 64), (70, 130, 131), (200, 64, 70), (20, 70, 450)] {
        for (dtype, block) in [
            ("f32", (4, 1)),
            ("bf16", (4, 1)),
            ("bf16", (1, 2)),
            ("int8", (4, 1)),
            ("int8", (1, 4)),
            ("int8", (4, 4)),
            ("int8", (1, 1)),
        ] {
            let [a, w, sum] = types(dtype);
            let scale = if dtype == "int8" { "i0 = cast f32 a0" } else { "i0 = add a0 a0" };
            let (round, right) = rounded(dtype, &format!("{k},N"));
            let text = format!(
                "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": {w}[{k},{n}] = [{}]\n const @c1 \"b\": f32[{n},1] = random(4)\n func @\"main\"(%0 \"x\": {a}[{k},N]) {{\n%1: f32[{n},N] = fused(%0) {{body = func @\"r\"(%0 \"a\": {a}[{k},N]) {{\n%2: {w}[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{n},1] = constant() {{id = @c1}}\n{round}%4: {sum}[{n},N] = contract(%2, {right}) {{lhs = [1,0], rhs = [1,2], out = [0,2], out_dtype = {sum}}}\n%5: f32[{n},N] = map(%4, %3) {{body = {{2: {scale}; i1 = const f32 0.001; i2 = mul i0 i1; i3 = add i2 a1; i3}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n",
                weight(k, n, block, if block == (1, 1) { 97 } else { 90 }, dtype == "int8"),
            );
            for target in ["x86-64-v4", "znver4"] {
                let kernel = kernel(&text, target);
                assert!(kernel.contains("spmm") && kernel.ends_with('t'), "{kernel}");
            }
            check_on(processors(dtype), &text, &[&[k, m]]);
        }
    }
}

/// Results that are codes, signed or not, by rows and turned: where they saturate, where they are infinite, where they are no numbers.
#[test]
fn sums_become_codes() {
    let bodies = [
        "i1 = const f32 0.01; i2 = mul i0 i1; i3 = add i2 a1",
        "i1 = const f32 3.0e38; i2 = mul i0 i1; i3 = mul i2 i1",
        "i1 = const f32 3.0e38; i2 = mul i0 i1; i3 = sub i2 i2",
    ];
    let codes = [("u8", "0.0"), ("u8", "201.0"), ("i8", "-128.0"), ("i8", "5.0")];
    for (i, (m, n, k, block)) in
        [(70, 66, 80, (4, 1)), (64, 64, 64, (4, 4)), (5, 130, 91, (1, 4)), (20, 70, 450, (1, 1))].into_iter().enumerate()
    {
        let values = weight(k, n, block, if block.0 == 1 { 97 } else { 90 }, true);
        for (j, (to, zero)) in codes.into_iter().enumerate() {
            let body = bodies[(i + j) % 3];
            for (x, y, labels) in [
                (format!("N,{k}"), format!("N,{n}"), "lhs = [0,3], rhs = [3,2], out = [0,2]"),
                (format!("{k},N"), format!("{n},N"), "lhs = [3,0], rhs = [3,2], out = [2,0]"),
            ] {
                let bias = if y.starts_with('N') { format!("{n}") } else { format!("{n},1") };
                let text = format!(
                    "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": i8[{k},{n}] = [{values}]\n const @c1 \"b\": f32[{bias}] = random(4)\n func @\"main\"(%0 \"x\": u8[{x}]) {{\n%1: {to}[{y}] = fused(%0) {{body = func @\"r\"(%0 \"a\": u8[{x}]) {{\n%2: i8[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{bias}] = constant() {{id = @c1}}\n%4: i32[{y}] = contract(%0, %2) {{{labels}, out_dtype = i32}}\n%5: {to}[{y}] = map(%4, %3) {{body = {{2: i0 = cast f32 a0; {body}; i4 = round i3; i5 = const f32 {zero}; i6 = add i4 i5; i7 = cast {to} i6; i7}}}}\nreturn %5 \"y\"\n}}}}\nreturn %1 \"y\"\n}}\n}}\n"
                );
                let kernel = kernel(&text, "znver4");
                assert!(kernel.contains("spmm"), "{kernel}: {block:?}");
                let shape: &[usize] = if y.starts_with('N') { &[m, k] } else { &[k, m] };
                check_on(BYTES, &text, &[shape]);
            }
        }
    }
}

/// The first layer's result lies turned in memory, where only the second one looks.
#[test]
fn sparse_layers_hand_on_what_they_need_not_turn() {
    for (m, n, k) in [(1, 64, 80), (33, 68, 64), (100, 130, 131)] {
        let add = "i3 = add i2 a1; i4 = round i3; i5 = cast u8 i4; i5";
        let add_residual = "i3 = add i2 a1; i4 = add i3 a2; i5 = round i4; i6 = cast u8 i5; i6";
        // Bytes between the product and what follows: a table where bytes are looked up.
        let coded = "i3 = const f32 37.0; i4 = round i2; i5 = add i4 i3; i6 = cast u8 i5; i7 = cast f32 i6; i8 = sub i7 i3; i9 = add i8 a1; i10 = const f32 0.25; i11 = mul i9 i10; i12 = tanh i11; i13 = mul i12 i9; i14 = round i13; i15 = cast u8 i14; i15";
        for (residual, follows, names) in
            [(false, add, ["rt", "tr"]), (true, add_residual, ["rr", "rr"]), (false, coded, ["rt", "tr"])]
        {
            let up = weight(k, n, (4, 1), 90, true);
            let down = weight(n, k, (4, 1), 90, true);
            let (operands, n_args) = if residual { ("%4, %3, %1", 3) } else { ("%4, %3", 2) };
            let text = format!(
                "module \"t\" {{\n dim N in 1..4096\n const @c0 \"w\": i8[{k},{n}] = [{up}]\n const @c1 \"b\": f32[{n}] = random(4)\n const @c2 \"v\": i8[{n},{k}] = [{down}]\n func @\"main\"(%0 \"x\": u8[2,N,{k}], %9 \"r\": f32[2,N,{n}]) {{\n%1: u8[2,N,{n}] = fused(%0, %9) {{body = func @\"r\"(%0 \"a\": u8[2,N,{k}], %1 \"r\": f32[2,N,{n}]) {{\n%2: i8[{k},{n}] = constant() {{id = @c0}}\n%3: f32[{n}] = constant() {{id = @c1}}\n%4: i32[2,N,{n}] = contract(%0, %2) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = i32}}\n%5: u8[2,N,{n}] = map({operands}) {{body = {{{n_args}: i0 = cast f32 a0; i1 = const f32 0.01; i2 = mul i0 i1; {follows}}}}}\nreturn %5 \"y\"\n}}}}\n%2: f32[2,N,{k}] = fused(%1) {{body = func @\"s\"(%0 \"a\": u8[2,N,{n}]) {{\n%1: i8[{n},{k}] = constant() {{id = @c2}}\n%2: i32[2,N,{k}] = contract(%0, %1) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = i32}}\n%3: f32[2,N,{k}] = map(%2) {{body = {{1: i0 = cast f32 a0; i0}}}}\nreturn %3 \"y\"\n}}}}\nreturn %2 \"y\"\n}}\n}}\n"
            );
            let program = lower::lower(&parse_module(&text).expect("text"), &Target::X86_64_V4).expect("lowers");
            for (kernel, end) in program.kernels.iter().zip(names) {
                assert!(kernel.name.ends_with(end), "{}", kernel.name);
            }
            let shapes: [&[usize]; 2] = [&[2, m, k], &[2, m, n]];
            check(&text, &shapes);
            let (m, inputs, want) = case(&text, &shapes);
            on_processors(BYTES, &text, (&m, &inputs, &want));
            let znver4 = Target::list("znver4").expect("a target").remove(0);
            let program = lower::lower(&m, &znver4).expect("it lowers").to_string();
            assert_eq!(program.contains("vpermi2b"), follows == coded);
        }
    }
}
