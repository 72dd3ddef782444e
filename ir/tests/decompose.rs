//! The decomposition of a named op means the same as the op.

use std::sync::Arc;

use transc_ir::interp::{self, Tensor};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::text::parse_module;
use transc_ir::types::DType;

fn input(dims: &[usize], dtype: DType, salt: usize) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i * 7919 + salt * 104_729) % 2003) as f64 / 1001.5 - 1.0;
    match dtype {
        DType::Bool => Tensor { dtype, dims: dims.to_vec(), data: (0..n).map(|i| u8::from(value(i) > -0.5)).collect() },
        DType::U8 | DType::I8 => {
            Tensor { dtype, dims: dims.to_vec(), data: (0..n).map(|i| (value(i) * 100.0) as i64 as u8).collect() }
        }
        _ => Tensor::from_f64(dtype, dims, &(0..n).map(value).collect::<Vec<_>>()).expect("small"),
    }
}

fn check(params: &str, node: &str, shapes: &[&[usize]]) {
    let text = format!("module \"t\" {{\n func @\"main\"({params}) {{\n%9: {node}\nreturn %9 \"y\"\n}}\n}}\n");
    let m = parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs: Vec<Tensor> =
        m.main.params().iter().zip(shapes).enumerate().map(|(i, ((_, v), s))| input(s, m.main.ty(*v).dtype, i)).collect();
    let want = interp::eval_module(&m, &inputs).expect("the op evaluates");
    let mut simpler = m.clone();
    let mut consts = Arc::clone(&m.consts);
    simpler.main =
        rewrite(m.main.clone(), &mut consts, |b, _, n, x| n.op.decompose(b, x).transpose()).expect("the decomposition is typed");
    simpler.consts = consts;
    assert!(simpler.main.node_count() >= 1 && simpler.to_string() != m.to_string(), "nothing was decomposed");
    let got = interp::eval_module(&simpler, &inputs).expect("the decomposition evaluates");
    for i in 0..want[0].count() {
        let (w, g) = (want[0].get_f64(i), got[0].get_f64(i));
        let same = w.is_nan() && g.is_nan() || (w - g).abs() <= 1e-5 * (1.0 + w.abs());
        assert!(same, "element {i}: {w} against {g}\n{text}");
    }
}

#[test]
fn rope_in_both_layouts() {
    for (interleaved, rotary) in [(false, 8), (true, 8), (false, 4), (true, 6)] {
        let params = format!("%0 \"x\": f32[2,3,5,8], %1 \"c\": f32[5,{h}], %2 \"s\": f32[5,{h}]", h = rotary / 2);
        let node = format!("f32[2,3,5,8] = rope(%0, %1, %2) {{rotary = {rotary}, interleaved = {interleaved}}}");
        check(&params, &node, &[&[2, 3, 5, 8], &[5, rotary / 2], &[5, rotary / 2]]);
    }
}

#[test]
fn attention_with_groups_masks_and_causality() {
    for (causal, cap, mask, clear) in [("none", "0.0", "bool", true), ("-1", "2.0", "f32", true), ("-1", "0.0", "bool", false)] {
        let params = format!("%0 \"q\": f32[2,4,3,8], %1 \"k\": f32[2,2,6,8], %2 \"v\": f32[2,2,6,5], %3 \"m\": {mask}[2,1,1,6]");
        let attributes = format!("scale = 0.3, causal = {causal}, softcap = {cap}, clear = {clear}");
        let node = format!("f32[2,4,3,5] = attention(%0, %1, %2, %3) {{{attributes}}}");
        check(&params, &node, &[&[2, 4, 3, 8], &[2, 2, 6, 8], &[2, 2, 6, 5], &[2, 1, 1, 6]]);
    }
}

#[test]
fn quantisation_there_and_back() {
    let params = "%0 \"x\": f32[4,6], %1 \"s\": f32[6], %2 \"z\": u8[6]";
    // The scale must not be near zero.
    check(params, "u8[4,6] = quantize(%0, %1, %2) {to = u8}", &[&[4, 6], &[6], &[6]]);
    check("%0 \"x\": i8[4,6], %1 \"s\": f32[6], %2 \"z\": i8[6]", "f32[4,6] = dequantize(%0, %1, %2) {}", &[&[4, 6], &[6], &[6]]);
}

#[test]
fn token_plans_with_and_without_protected_tokens() {
    for (n, remove, protect) in
        [(9, 3, 1), (9, 3, 0), (10, 4, 2), (10, 2, 3), (8, 1, 5), (7, 3, 1), (6, 3, 0), (5, 0, 1), (5, 0, 0)]
    {
        let params = format!("%0 \"m\": f32[2,{n},5], %1 \"s\": f32[2,{n}]");
        let node = format!("i64[2,{n}] = token_plan(%0, %1) {{planner = tome, remove = {remove}, protect = {protect}}}");
        check(&params, &node, &[&[2, n, 5], &[2, n]]);
    }
}

#[test]
fn tokens_by_a_plan() {
    let plan = "%0 \"x\": f32[2,7,3], %1 \"m\": f32[2,7,5], %2 \"one\": f32[2,7]) {\n\
        %4: f32[2,7] = map(%2) {body = {1: i0 = mul a0 a0; i1 = const f32 1.0; i2 = add i0 i1; i2}}\n\
        %3: i64[2,7] = token_plan(%1, %4) {planner = tome, remove = 3, protect = 1}\n%5: f32[2,4] = token_size(%3, %4) {tokens = 4}\n\
        %6: f32[2,4,3] = token_apply(%0, %3, %4) {tokens = 4}\n%7: f32[2,7,3] = token_unmerge(%6, %3) {batch = 0, axis = 1}\n\
        %8: f32[2,3,4] = transpose(%6) {perm = [0,2,1]}\n%10: f32[4,2,3] = transpose(%6) {perm = [1,0,2]}";
    let shapes: [&[usize]; 3] = [&[2, 7, 3], &[2, 7, 5], &[2, 7]];
    let params = format!("{plan}\n//");
    for node in [
        "f32[2,7,3] = map(%7) {body = {1: a0}}",
        "f32[2,3,7] = token_unmerge(%8, %3) {batch = 0, axis = 2}",
        "f32[7,2,3] = token_unmerge(%10, %3) {batch = 1, axis = 0}",
        "f32[2,4] = map(%5) {body = {1: a0}}",
    ] {
        check(&params, node, &shapes);
    }
}

#[test]
fn softmax_and_norms() {
    for dtype in ["f32", "f64"] {
        for log in ["false", "true"] {
            let node = format!("{dtype}[3,7,2] = softmax(%0) {{axis = 1, log = {log}}}");
            check(&format!("%0 \"x\": {dtype}[3,7,2]"), &node, &[&[3, 7, 2]]);
        }
        let params = format!("%0 \"x\": {dtype}[3,4,5], %1 \"s\": {dtype}[4,5], %2 \"b\": {dtype}[5]");
        let shapes: &[&[usize]] = &[&[3, 4, 5], &[4, 5], &[5]];
        check(&params, &format!("{dtype}[3,4,5] = layer_norm(%0, %1, %2) {{axis = 1, epsilon = 0.001}}"), shapes);
        check(&params, &format!("{dtype}[3,4,5] = layer_norm(%0, %1) {{axis = 1, epsilon = 0.001}}"), shapes);
        check(&params, &format!("{dtype}[3,4,5] = rms_norm(%0, %1) {{axis = 1, epsilon = 0.001}}"), shapes);
        check(&params, &format!("{dtype}[3,4,5] = rms_norm(%0) {{axis = 2, epsilon = 0.001}}"), shapes);
    }
}
