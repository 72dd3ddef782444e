//! Attention of floats and of codes.

use super::{BF16, BYTES, case, check, check_on, module, on_hosts, on_processors, ways};

/// Keys of a window of an image: the axis of keys is made of two that a vector does not fill.
#[test]
fn a_mask_of_two_axes_of_keys() {
    for side in [3, 4, 7] {
        let n = side * side;
        let body = format!(
            "%4: f32[N,2,{n},{n}] = reshape(%3) {{dims = [N,2,{n},{n}]}}\n%5: f32[N,2,{n},8] = attention(%0, %1, %2, %4) {{scale = 0.3, causal = none, softcap = 0.0, clear = false}}\nreturn %5 \"y\""
        );
        let operand = format!("f32[N,2,{n},8]");
        let params = format!(
            "%0 \"q\": {operand}, %1 \"k\": {operand}, %2 \"v\": {operand}, %3 \"m\": f32[N,2,{side},{side},{side},{side}]"
        );
        check(&module(&params, &body), &[&[3, 2, n, 8], &[3, 2, n, 8], &[3, 2, n, 8], &[3, 2, side, side, side, side]]);
    }
}

#[test]
fn attention_with_masks_groups_and_causality() {
    // More rows than a unit has, and more keys than a block.
    for (sq, sk, d) in [(1, 1, 16), (5, 9, 8), (17, 50, 64), (31, 279, 20)] {
        for (causal, cap, clear) in [
            ("none", "0.0", true),
            (&*format!("{}", sk as i64 - sq as i64), "0.0", true),
            ("none", "5.0", true),
            ("-2", "0.0", false),
        ] {
            let body = format!(
                "%4: f32[2,4,N,{d}] = attention(%0, %1, %2, %3) {{scale = 0.25, causal = {causal}, softcap = {cap}, clear = {clear}}}\nreturn %4 \"y\""
            );
            let params =
                format!("%0 \"q\": f32[2,4,N,{d}], %1 \"k\": f32[2,2,M,{d}], %2 \"v\": f32[2,2,M,{d}], %3 \"m\": bool[2,1,1,M]");
            check(&module(&params, &body), &[&[2, 4, sq, d], &[2, 2, sk, d], &[2, 2, sk, d], &[2, 1, 1, sk]]);
        }
    }
}

#[test]
fn attention_of_16_bit_floats() {
    // Whole and broken squares and pairs of features, one block of keys and more.
    for (sq, sk, d, e) in [(5, 9, 8, 21), (17, 50, 64, 64), (31, 279, 37, 40), (2, 33, 80, 16)] {
        for (dtype, mask, causal) in [("bf16", "f32", "none"), ("f16", "f16", "none"), ("bf16", "bf16", "3")] {
            let heads_inside = format!(
                "%4: {dtype}[2,2,M,{d}] = transpose(%1) {{perm = [0,2,1,3]}}\n%5: {dtype}[2,4,N,{e}] = attention(%0, %4, %2, %3) {{scale = 0.3, causal = {causal}, softcap = 0.0, clear = true}}\nreturn %5 \"y\""
            );
            let params = format!(
                "%0 \"q\": {dtype}[2,4,N,{d}], %1 \"k\": {dtype}[2,M,2,{d}], %2 \"v\": {dtype}[2,2,M,{e}], %3 \"m\": {mask}[2,1,N,M]"
            );
            check_on(BF16, &module(&params, &heads_inside), &[&[2, 4, sq, d], &[2, sk, 2, d], &[2, 2, sk, e], &[2, 1, sq, sk]]);
        }
        // Rounded as they are read.
        let body = format!(
            "%3: bf16[1,2,N,{d}] = map(%0) {{body = {{1: i0 = cast bf16 a0; i0}}}}\n%4: bf16[1,2,M,{d}] = map(%1) {{body = {{1: i0 = cast bf16 a0; i0}}}}\n%5: bf16[1,2,M,{e}] = map(%2) {{body = {{1: i0 = cast bf16 a0; i0}}}}\n%6: bf16[1,2,N,{e}] = attention(%3, %4, %5) {{scale = 0.3, causal = none, softcap = 0.0, clear = false}}\nreturn %6 \"y\""
        );
        let params = format!("%0 \"q\": f32[1,2,N,{d}], %1 \"k\": f32[1,2,M,{d}], %2 \"v\": f32[1,2,M,{e}]");
        check_on(BF16, &module(&params, &body), &[&[1, 2, sq, d], &[1, 2, sk, d], &[1, 2, sk, e]]);
    }
}

/// Keys by row and by column, features that are no whole vectors, rows that see no key, more keys than a part has and parts of which a row sees none, and as
/// many queries as the other form takes.
#[test]
fn attention_of_a_few_queries() {
    let rows = "2,2,M,D";
    for ((sq, sk, d, e), keys, turn, (causal, cap, clear, dtype)) in [
        ((1, 1, 16, 16), rows, "[0,1,2,3]", ("none", "5.0", true, "f32")),
        ((1, 300, 64, 70), rows, "[0,1,2,3]", ("299", "0.0", true, "f32")),
        ((3, 37, 20, 21), "2,2,D,M", "[0,1,3,2]", ("34", "0.0", true, "f16")),
        ((4, 130, 8, 140), "2,M,2,D", "[0,2,1,3]", ("-2", "0.0", false, "f32")),
        ((2, 1000, 64, 70), rows, "[0,1,2,3]", ("500", "0.0", false, "bf16")),
        ((1, 2100, 16, 24), "2,2,D,M", "[0,1,3,2]", ("none", "0.0", true, "f32")),
        ((5, 37, 20, 21), "2,2,D,M", "[0,1,3,2]", ("-2", "0.0", true, "f32")),
    ] {
        let keys = keys.replace('D', &d.to_string());
        let body = format!(
            "%4: {dtype}[2,2,M,{d}] = transpose(%1) {{perm = {turn}}}\n%5: {dtype}[2,4,N,{e}] = attention(%0, %4, %2, %3) {{scale = 0.25, causal = {causal}, softcap = {cap}, clear = {clear}}}\nreturn %5 \"y\""
        );
        let params = format!(
            "%0 \"q\": {dtype}[2,4,N,{d}], %1 \"k\": {dtype}[{keys}], %2 \"v\": {dtype}[2,2,M,{e}], %3 \"m\": f32[2,1,N,M]"
        );
        let key_dims: Vec<usize> = keys.split(',').map(|n| n.parse().unwrap_or(sk)).collect();
        let shapes: [&[usize]; 4] = [&[2, 4, sq, d], &key_dims, &[2, 2, sk, e], &[2, 1, sq, sk]];
        check(&module(&params, &body), &shapes);
        // The number of queries is known.
        let known = |text: &str| text.replace('N', &sq.to_string());
        check(&module(&known(&params), &known(&body)), &shapes);
    }
}

/// Integers, so every way must give the same ones. Programs for devices have no such op: it is taken apart before.
#[test]
fn attention_of_codes() {
    // Whole and broken vectors, groups of four and units; more panels of keys than one.
    for (sq, sk, d, e) in [(1, 1, 16, 16), (5, 9, 8, 21), (17, 50, 64, 64), (31, 150, 37, 40), (2, 33, 68, 3)] {
        for (dtypes, zeros, logits, (weights, relative), (mask, causal, clear)) in [
            (["u8", "u8", "u8"], "[130,117,121]", "u8(90.7, 128)", ("u8(0.00413, 0)", false), ("bool[2,1,1,M]", "none", true)),
            (["i8", "i8", "i8"], "[0,0,0]", "none", ("i8(0.00811, 0)", false), ("f32[N,M]", "2", false)),
            (["u8", "i8", "u8"], "[3,-7,128]", "i8(77.3, 4)", ("i8(0.00397, -128)", false), ("f32[2,1,N,M]", "none", false)),
            (["u8", "u8", "u8"], "[130,117,121]", "none", ("u8(0.003921569, 0)", true), ("bool[2,1,1,M]", "none", true)),
            (["u8", "i8", "u8"], "[3,-7,128]", "none", ("u8(0.003921569, 0)", true), ("f32[N,M]", "-1", false)),
        ] {
            let sums = if relative { "f32" } else { "i32" };
            let [q, k, v] = dtypes;
            let params =
                format!("%0 \"q\": {q}[2,N,4,{d}], %1 \"k\": {k}[2,2,M,{d}], %2 \"v\": {v}[2,M,2,{e}], %3 \"m\": {mask}");
            let body = format!(
                "%4: {q}[2,4,N,{d}] = transpose(%0) {{perm = [0,2,1,3]}}\n%5: {v}[2,2,M,{e}] = transpose(%2) {{perm = [0,2,1,3]}}\n%6: {sums}[2,4,N,{e}] = int_attention(%4, %1, %5, %3) {{zeros = {zeros}, unit = 0.01, logits = {logits}, scale = 0.02, causal = {causal}, clear = {clear}, weights = {weights}, relative = {relative}}}\nreturn %6 \"y\""
            );
            let shape = match mask {
                "bool[2,1,1,M]" => vec![2, 1, 1, sk],
                "f32[N,M]" => vec![sq, sk],
                _ => vec![2, 1, sq, sk],
            };
            let text = module(&params, &body);
            let (m, inputs, want) = case(&text, &[&[2, sq, 4, d], &[2, 2, sk, d], &[2, sk, 2, e], &shape]);
            on_hosts(&text, (&m, &inputs, &want), ways());
            on_processors(BYTES, &text, (&m, &inputs, &want));
        }
    }
}
