//! The same integers on every path: instructions for dot products, without them, Cranelift, the loops in their interpreter, and the reference.

use std::fmt::Write as _;

use transc::ir::Module;
use transc::ir::interp::{Tensor, eval_module};
use transc::ir::text::parse_module;
use transc::ir::types::DType;
use transc::{Compiler, Target};

use crate::kit;
use crate::ways::{Failure, ways};

/// Numbers that look random, always the same, with the extremes among them.
fn codes(n: usize, lo: i64, hi: i64, seed: u64) -> Vec<i64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as i64
    };
    (0..n)
        .map(|_| match next() % 8 {
            0 => lo,
            1 | 2 => hi,
            _ => lo + next() % (hi - lo + 1),
        })
        .collect()
}

fn list(values: &[i64]) -> String {
    values.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

fn bytes(dims: &[usize], values: &[i64]) -> Tensor {
    Tensor { dtype: transc::ir::DType::U8, dims: dims.to_vec(), data: values.iter().map(|v| *v as u8).collect() }
}

/// Runs a module in every way and for every target, and compares with the reference interpreter to the bit.
fn same_everywhere(name: &str, m: &Module, inputs: &[Tensor]) {
    let want = eval_module(m, inputs).expect("the reference");
    let check = |way: &str, got: &[Tensor]| {
        for (w, g) in want.iter().zip(got) {
            let at = w.data.iter().zip(&g.data).position(|(x, y)| x != y);
            assert!((w.dtype, &w.dims) == (g.dtype, &g.dims) && at.is_none(), "{name}, {way}: byte {at:?} differs");
        }
    };
    for way in ways(1) {
        match way.run(m, inputs) {
            Ok(got) => check(way.name, &got),
            Err(Failure::Refused(why)) => println!("{name}, {}: {why}", way.name),
            Err(Failure::Fault(why)) => panic!("{name}, {}: {why}", way.name),
        }
    }
    let arrays: Vec<(String, Tensor)> = m.main.params().iter().map(|(n, _)| n.clone()).zip(inputs.iter().cloned()).collect();
    for target in ["x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids"] {
        let t = Target::list(target).expect("a target").remove(0);
        let program = Compiler::new().target(t.clone()).lower(m).expect("it lowers").expanded().expect("it expands");
        check(&format!("loops for {target}"), &transc::simulate(&program, inputs).expect("they run"));
        let lacks: Vec<&str> = t.features().iter().copied().filter(|f| !transc::runtime::has_feature(f)).collect();
        if !lacks.is_empty() {
            println!("skipped code for {target}: no {}", lacks.join(", "));
            continue;
        }
        let session = Compiler::new().target(t).opt_level(1).compile(m).expect("it compiles").session(1).expect("a session");
        let got: Vec<Tensor> = kit::run(&session, &arrays).expect("it runs").into_iter().map(|(_, t)| t).collect();
        check(&format!("code for {target}"), &got);
    }
}

#[test]
fn products_of_bytes_are_the_same_everywhere() {
    for (m, n, k, zeros) in [(1, 1, 1, false), (3, 10, 5, false), (9, 50, 33, false), (70, 68, 131, false), (66, 68, 128, true)] {
        let mut w = codes(k * n, -128, 127, 3);
        // Blocks of four outputs of which few are left: the sparse kernel.
        let keep = codes(k * n.div_ceil(4), 0, 9, 5);
        w.iter_mut().enumerate().filter(|(i, _)| zeros && keep[i / n * n.div_ceil(4) + i % n / 4] > 0).for_each(|(_, v)| *v = 0);
        let text = format!(
            "module \"product\" {{\n  const @c0 \"w\": i8[{k},{n}] = [{}]\n  func @\"main\"(%0 \"x\": u8[{m},{k}]) {{\n    %1: i8[{k},{n}] = constant() {{id = @c0}}\n    %2: i32[{m},{n}] = contract(%0, %1) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = i32}}\n    return %2 \"y\"\n  }}\n}}\n",
            list(&w)
        );
        let module = parse_module(&text).expect("text");
        same_everywhere(&format!("{m}x{n}x{k}"), &module, &[bytes(&[m, k], &codes(m * k, 0, 255, 4))]);
    }
}

/// Codes, products, a rectifier, a residual sum and codes again, as quantisers write it. All scales are powers of two, so no real number is rounded before it
/// becomes a code, and there is one right answer.
#[test]
fn codes_of_a_whole_model_are_the_same_everywhere() {
    const WIDTH: usize = 36;
    let mut consts = String::new();
    let mut body = String::new();
    let mut id = 0;
    let mut values = 0;
    let mut constant = |ty: &str, numbers: &str| {
        let _ = writeln!(consts, "  const @c{id} \"\": {ty} = [{numbers}]");
        id += 1;
        format!("{ty} = constant() {{id = @c{}}}", id - 1)
    };
    let mut add = |text: String| {
        values += 1;
        let _ = writeln!(body, "    %{values}: {text}");
        format!("%{values}")
    };
    let row = format!("[3,7,{WIDTH}]");
    let code = |x: &str,
                scale: &str,
                zero: i64,
                constant: &mut dyn FnMut(&str, &str) -> String,
                add: &mut dyn FnMut(String) -> String| {
        let (s, z) = (add(constant("f32[]", scale)), add(constant("u8[]", &zero.to_string())));
        let q = add(format!("u8{row} = quantize({x}, {s}, {z}) {{to = u8}}"));
        let real = add(format!("f32{row} = dequantize({q}, {s}, {z})"));
        (q, real)
    };
    let (_, mut x) = code("%0", "0.03125", 117, &mut constant, &mut add);
    let mut last = String::new();
    for layer in 0..3 {
        let w = add(constant(&format!("i8[{WIDTH},{WIDTH}]"), &list(&codes(WIDTH * WIDTH, -127, 127, layer))));
        let scales: Vec<&str> = (0..WIDTH).map(|i| ["0.0009765625", "0.001953125"][i % 2]).collect();
        let s = add(constant(&format!("f32[1,{WIDTH}]"), &scales.join(", ")));
        let w = add(format!("f32[{WIDTH},{WIDTH}] = dequantize({w}, {s})"));
        let y = add(format!("f32{row} = contract({x}, {w}) {{lhs = [0,1,2], rhs = [2,3], out = [0,1,3], out_dtype = f32}}"));
        let zero = add("f32[] = map() {body = {0: i0 = const f32 0.0; i0}}".into());
        let y = add(format!("f32{row} = map({y}, {zero}) {{body = {{2: i0 = max a0 a1; i0}}}}"));
        let y = add(format!("f32{row} = map({y}, {x}) {{body = {{2: i0 = add a0 a1; i0}}}}"));
        (last, x) = code(&y, "0.0625", 100 + layer as i64, &mut constant, &mut add);
    }
    let text = format!(
        "module \"model\" {{\n{consts}  func @\"main\"(%0 \"x\": f32{row}) {{\n{body}    return {last} \"codes\", {x} \"y\"\n  }}\n}}\n"
    );
    let module = parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let program = Compiler::new().target(Target::X86_64_V4).lower(&module).expect("it lowers");
    assert_eq!(program.layers.iter().filter(|(_, l)| l.dtype == DType::I8).count(), 3, "all products are of integers");
    let input: Vec<f32> = codes(3 * 7 * WIDTH, -128, 127, 9).iter().map(|v| *v as f32 / 32.0).collect();
    same_everywhere("model", &module, &[Tensor::from_f32(&[3, 7, WIDTH], &input)]);
}
