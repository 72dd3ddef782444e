//! What only device code has: functions spelled out in arithmetic, blocks, refusals.

use super::*;
use transc_ir::interp::scalar;
use transc_ir::scalar::{BinOp, UnOp};

/// Values of every size and sign, and the special ones.
fn points() -> Vec<f32> {
    let mut all = vec![0.0, 1.0, 0.5, 2.0, 1e-30, 1e-40, 1e10, 1e13, 88.0, 104.0, 3.0, 0.999_999_9, 1.000_000_1, f32::MAX];
    all.extend((1..200).map(|i| (i as f32 * 0.37).exp2() * 1e-12));
    all.extend((1..100).map(|i| i as f32 * 0.0731));
    all.extend([f32::INFINITY, f32::NAN]);
    let minus: Vec<f32> = all.iter().map(|v| -v).collect();
    all.extend(minus);
    all
}

fn run(text: &str, inputs: &[Tensor]) -> Tensor {
    let m = parse_module(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let program = lower::lower(&m, &Target::CUDA_SM_80).unwrap_or_else(|e| panic!("{e}\n{text}"));
    simulated(&program, inputs).remove(0)
}

/// Equal, both NaN, or this many units in the last place apart.
fn close(got: f64, want: f64, ulps: f64) -> bool {
    let ulp = f64::from(f32::EPSILON) * want.abs().max(f64::from(f32::MIN_POSITIVE));
    got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= ulps * ulp
}

#[test]
fn functions_without_a_library_have_their_bounds() {
    let points = points();
    let x = Tensor::from_f32(&[points.len()], &points);
    for op in UnOp::ALL.iter().filter(|op| !matches!(op, UnOp::Not | UnOp::IsNan | UnOp::IsInf)) {
        let got = run(
            &module(
                "%0 \"x\": f32[N]",
                &format!("%1: f32[N] = map(%0) {{body = {{1: i0 = {} a0; i0}}}}\nreturn %1 \"y\"", op.name()),
            ),
            std::slice::from_ref(&x),
        );
        for (i, p) in points.iter().enumerate() {
            let turns = matches!(op, UnOp::Sin | UnOp::Cos | UnOp::Tan);
            let want = if turns && p.abs() > (1i64 << 45) as f32 { f64::NAN } else { scalar::un(*op, Literal::f32(*p)).to_f64() };
            let ulps = match op {
                UnOp::Exp | UnOp::Tanh | UnOp::Log => 4.0,
                // Their bounds are absolute, or end where the exponential underflows.
                UnOp::Erf | UnOp::Sigmoid => 2.5e-7 / f64::from(f32::EPSILON) / want.abs().max(1e-30),
                _ => 1.0,
            };
            assert!(close(got.get_f64(i), want, ulps), "{} {p}: {}, the reference {want}", op.name(), got.get_f64(i));
        }
    }
}

#[test]
fn functions_of_two_operands_have_their_bounds() {
    let points = points();
    let pairs: Vec<(f32, f32)> = points.iter().flat_map(|a| points.iter().step_by(7).map(|b| (*a, *b))).collect();
    let of = |f: fn(&(f32, f32)) -> f32| Tensor::from_f32(&[pairs.len()], &pairs.iter().map(f).collect::<Vec<_>>());
    let inputs = [of(|p| p.0), of(|p| p.1)];
    for op in [BinOp::Pow, BinOp::Atan2, BinOp::Rem, BinOp::Mod] {
        let body = format!("%2: f32[N] = map(%0, %1) {{body = {{2: i0 = {} a0 a1; i0}}}}\nreturn %2 \"y\"", op.name());
        let got = run(&module("%0 \"x\": f32[N], %1 \"z\": f32[N]", &body).replace("1..4096", "1..1000000"), &inputs);
        for (i, (a, b)) in pairs.iter().enumerate() {
            let want = scalar::bin(op, Literal::f32(*a), Literal::f32(*b)).expect("floats divide").to_f64();
            assert!(close(got.get_f64(i), want, 1.0), "{} {a} {b}: {}, the reference {want}", op.name(), got.get_f64(i));
        }
    }
}

#[test]
fn long_folds_and_rows_use_a_block_each() {
    for n in [32, 100, 129, 9000] {
        for body in [
            "%1: f32[N] = reduce(%0) {kind = sum, axes = [1], keep = false}\nreturn %1 \"y\"",
            "%1: f32[N,1] = reduce(%0) {kind = max, axes = [1], keep = true}\nreturn %1 \"y\"",
            "%1: f32[N,M] = softmax(%0) {axis = 1, log = false}\nreturn %1 \"y\"",
            "%1: f32[N,M] = layer_norm(%0) {axis = 1, epsilon = 1e-5}\nreturn %1 \"y\"",
        ] {
            let text = module("%0 \"x\": f32[N,M]", body).replace("M in 1..4096", "M in 1..10000");
            let m = parse_module(&text).expect("it parses");
            let mut seed = 7;
            let x = input(DType::F32, &[2, n], &mut seed);
            let want = interp::eval_module(&m, std::slice::from_ref(&x)).expect("it evaluates").remove(0);
            assert_eq!(difference(&run(&text, &[x]), &want), None, "{n} {body}");
        }
    }
}

#[test]
fn what_a_device_cannot_do_is_refused() {
    let m = parse_module(&module("%0 \"x\": f64[N]", "%1: f64[N] = map(%0) {body = {1: i0 = erf a0; i0}}\nreturn %1 \"y\""))
        .expect("it parses");
    let program = lower::lower(&m, &Target::CUDA_SM_80).expect("it lowers");
    assert!(matches!(compile(&program, &Target::CUDA_SM_80, &EmitOptions::default()), Err(CodegenError::NoFunction { .. })));
    let m = parse_module(&module("%0 \"x\": f32[N]", "%1: f32[N] = map(%0) {body = {1: i0 = neg a0; i0}}\nreturn %1 \"y\""))
        .expect("it parses");
    for (target, device) in [(Target::CUDA_SM_80, true), (Target::X86_64_V3, false)] {
        let code =
            compile(&lower::lower(&m, &target).expect("it lowers"), &target, &EmitOptions::default()).expect("it compiles");
        assert_eq!(code.text(Text::Ptx).is_ok(), device);
        assert_eq!(code.text(Text::Asm).is_ok(), !device);
        assert_eq!(code.object().is_ok(), !device);
    }
}
