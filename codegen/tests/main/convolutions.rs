//! Convolutions and windows against the interpreter, in all ways.

use super::*;

#[test]
fn windows_and_convolutions() {
    let body = "%1: f32[N,2,5,6] = window(%0) {kind = max, kernel = [3,2], strides = [2,1], dilations = [1,2], lo = [1,0], hi = [1,1], _}\nreturn %1 \"y\"";
    let body = body.replace(", _", "");
    check(&module("%0 \"x\": f32[N,2,9,7]", &body), &[&[2, 2, 9, 7]]);
    for groups in [1, 2] {
        let body = format!(
            "%2: f32[N,6,5,4] = conv(%0, %1) {{strides = [2,2], dilations = [1,1], lo = [1,0], hi = [1,1], groups = {groups}}}\nreturn %2 \"y\""
        );
        check(
            &module(&format!("%0 \"x\": f32[N,4,9,8], %1 \"w\": f32[6,{},3,3]", 4 / groups), &body),
            &[&[2, 4, 9, 8], &[6, 4 / groups, 3, 3]],
        );
    }
}

/// The positions of a signal that lies in the first of two axes.
#[test]
fn convolutions_of_columns_with_epilogues() {
    for (batch, rows) in [("N", "9"), ("3", "N")] {
        let text = format!(
            "module \"t\" {{\n dim N in 3..64\n const @c0 \"w\": f32[6,4,3,1] = random(3)\n func @\"main\"(%0 \"x\": f32[{batch},4,{rows},1], %1 \"b\": f32[{batch},6,{rows},1]) {{\n%2: f32[{batch},6,{rows},1] = fused(%0, %1) {{body = func @\"r\"(%0 \"x\": f32[{batch},4,{rows},1], %1 \"b\": f32[{batch},6,{rows},1]) {{\n%2: f32[6,4,3,1] = constant() {{id = @c0}}\n%3: f32[{batch},6,{rows},1] = conv(%0, %2) {{strides = [1,1], dilations = [1,1], lo = [1,0], hi = [1,0], groups = 1}}\n%4: f32[{batch},6,{rows},1] = map(%3, %1) {{body = {{2: i0 = add a0 a1; i0}}}}\nreturn %4 \"y\"\n}}}}\nreturn %2 \"y\"\n}}\n}}\n"
        );
        check(&text, &[&[3, 4, 9, 1], &[3, 6, 9, 1]]);
    }
}

#[test]
fn convolutions_with_epilogues() {
    // Per-channel and full operands take the flat form of the epilogue, one that varies along x only does not.
    for other in ["6,1,1", "N,6,5,4", "1,1,1,4"] {
        for (kernel, lo, channels) in [("3,3", "[1,0]", 4), ("2,2", "[0,0]", 40)] {
            let (h, w) = if kernel == "3,3" { (9, 8) } else { (10, 8) };
            let hi = if kernel == "3,3" { "[1,1]" } else { "[0,0]" };
            let text = format!(
                "module \"t\" {{\n dim N in 1..64\n const @c0 \"w\": f32[6,{channels},{kernel}] = random(3)\n func @\"main\"(%0 \"x\": f32[N,{channels},{h},{w}], %1 \"b\": f32[{other}]) {{\n%2: f32[N,6,5,4] = fused(%0, %1) {{body = func @\"r\"(%0 \"x\": f32[N,{channels},{h},{w}], %1 \"b\": f32[{other}]) {{\n%2: f32[6,{channels},{kernel}] = constant() {{id = @c0}}\n%3: f32[N,6,5,4] = conv(%0, %2) {{strides = [2,2], dilations = [1,1], lo = {lo}, hi = {hi}, groups = 1}}\n%4: f32[N,6,5,4] = map(%3, %1) {{body = {{2: i0 = add a0 a1; i1 = tanh i0; i1}}}}\nreturn %4 \"y\"\n}}}}\nreturn %2 \"y\"\n}}\n}}\n"
            );
            let dims: Vec<usize> = other.split(',').map(|d| d.parse().unwrap_or(3)).collect();
            check(&text, &[&[3, channels, h, w], &dims]);
        }
    }
    let body = "%2: f32[N,4,6] = conv(%0, %1) {strides = [1], dilations = [2], lo = [2], hi = [2], groups = 4}\nreturn %2 \"y\"";
    check(&module("%0 \"x\": f32[N,4,6], %1 \"w\": f32[4,1,3]", body), &[&[2, 4, 6], &[4, 1, 3]]);
}

/// A convolution with its operands and an epilogue: `x` and `w` are parameters, `b` is added if it has dims.
fn convolution(
    x: &[usize],
    w: &[usize],
    [strides, dilations, lo, hi]: [&[usize]; 4],
    groups: usize,
    b: Option<&str>,
) -> (String, Vec<usize>) {
    let text = |v: &[usize]| v.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut out = vec![x[0], w[0]];
    for a in 0..strides.len() {
        out.push((x[2 + a] + lo[a] + hi[a] - dilations[a] * (w[2 + a] - 1) - 1) / strides[a] + 1);
    }
    // The batch is symbolic.
    let batch = |v: &[usize]| format!("N,{}", text(&v[1..]));
    let conv = format!(
        "conv(%0, %1) {{strides = [{}], dilations = [{}], lo = [{}], hi = [{}], groups = {groups}}}",
        text(strides),
        text(dilations),
        text(lo),
        text(hi)
    );
    let (params, y) = (format!("%0 \"x\": f32[{}], %1 \"w\": f32[{}]", batch(x), text(w)), batch(&out));
    let Some(b) = b else { return (module(&params, &format!("%2: f32[{y}] = {conv}\nreturn %2 \"y\"")), out) };
    let params = format!("{params}, %2 \"b\": f32[{b}]");
    let body = format!(
        "%3: f32[{y}] = {conv}\n%4: f32[{y}] = map(%3, %2) {{body = {{2: i0 = add a0 a1; i1 = tanh i0; i1}}}}\nreturn %4 \"y\""
    );
    (
        module(
            &params,
            &format!("%3: f32[{y}] = fused(%0, %1, %2) {{body = func @\"r\"({params}) {{\n{body}\n}}}}\nreturn %3 \"y\""),
        ),
        out,
    )
}

/// A window per channel: rows and vectors that fill no tile, steps and gaps, padding on one side, one, two and three axes.
#[test]
fn convolutions_of_planes() {
    type Case<'a> = (&'a [usize], &'a [usize], [&'a [usize]; 4]);
    let cases: [Case<'_>; 11] = [
        (&[2, 3, 7, 7], &[3, 1, 7, 7], [&[1, 1], &[1, 1], &[3, 3], &[3, 3]]),
        (&[1, 2, 14, 14], &[2, 1, 3, 3], [&[1, 1], &[1, 1], &[1, 1], &[1, 1]]),
        (&[2, 2, 9, 33], &[2, 1, 3, 5], [&[1, 1], &[1, 1], &[1, 0], &[1, 4]]),
        (&[1, 2, 13, 37], &[4, 1, 5, 3], [&[2, 2], &[1, 1], &[2, 1], &[2, 0]]),
        (&[1, 2, 11, 29], &[2, 1, 3, 3], [&[1, 3], &[2, 2], &[0, 2], &[3, 1]]),
        (&[1, 3, 4, 70], &[3, 1, 1, 2], [&[1, 4], &[1, 1], &[0, 0], &[0, 0]]),
        (&[2, 3, 40], &[3, 1, 9], [&[1], &[1], &[8], &[0]]),
        (&[1, 2, 150], &[6, 1, 4], [&[2], &[3], &[0], &[5]]),
        (&[1, 2, 3, 5, 18], &[2, 1, 2, 3, 3], [&[1, 2, 1], &[1, 1, 1], &[0, 1, 1], &[1, 1, 1]]),
        // More padding than there is input, and more taps than are unrolled.
        (&[1, 2, 2, 3], &[2, 1, 3, 3], [&[1, 1], &[1, 1], &[4, 6], &[5, 4]]),
        (&[1, 2, 90], &[2, 1, 70], [&[1], &[1], &[3], &[4]]),
    ];
    for (x, w, how) in cases {
        let (text, out) = convolution(x, w, how, x[1], None);
        check(&text, &[x, w]);
        let program = lower::lower(&case(&text, &[x, w]).0, &Target::list("x86-64-v3").expect("a target")[0])
            .expect("it lowers")
            .to_string();
        assert_eq!(program.contains("depthwise"), w[w.len() - 1] <= 64, "{program}");
        for whole in [true, false] {
            // Along the last axis alone, or element by element.
            let b: Vec<usize> = (0..out.len()).map(|a| if whole || a + 1 == out.len() { out[a] } else { 1 }).collect();
            let dims = b.iter().enumerate().map(|(a, d)| if a == 0 && whole { "N".to_string() } else { d.to_string() });
            let (text, _) = convolution(x, w, how, x[1], Some(&dims.collect::<Vec<_>>().join(",")));
            check(&text, &[x, w, &b]);
        }
    }
}

/// Patches are gathered row by row of positions: rows longer and shorter than a panel, steps, gaps, and padding that leaves nothing of a row.
#[test]
fn convolutions_of_rows_of_positions() {
    type Case<'a> = (&'a [usize], &'a [usize], [&'a [usize]; 4], usize);
    let cases: [Case<'_>; 9] = [
        (&[2, 3, 6, 60], &[5, 3, 3, 3], [&[1, 1], &[1, 1], &[1, 1], &[1, 1]], 1),
        (&[1, 4, 14, 14], &[6, 2, 3, 3], [&[1, 1], &[1, 1], &[1, 1], &[1, 1]], 2),
        (&[1, 2, 7, 5], &[9, 2, 3, 3], [&[1, 1], &[2, 2], &[2, 2], &[2, 2]], 1),
        (&[1, 3, 23, 31], &[4, 3, 7, 7], [&[4, 4], &[1, 1], &[3, 3], &[3, 3]], 1),
        (&[1, 2, 3, 3], &[4, 2, 2, 3], [&[1, 2], &[1, 1], &[5, 7], &[4, 9]], 1),
        (&[2, 5, 61], &[7, 5, 4], [&[3], &[2], &[0], &[5]], 1),
        (&[1, 2, 3, 4, 9], &[3, 2, 2, 2, 3], [&[1, 1, 2], &[1, 2, 1], &[1, 0, 1], &[0, 1, 1]], 1),
        // Windows of one element: whole, with steps, and padded.
        (&[2, 5, 6, 11], &[9, 5, 1, 1], [&[1, 1], &[1, 1], &[0, 0], &[0, 0]], 1),
        (&[1, 4, 6, 11], &[6, 2, 1, 1], [&[2, 2], &[1, 1], &[0, 1], &[1, 0]], 2),
    ];
    for (x, w, how, groups) in cases {
        check(&convolution(x, w, how, groups, None).0, &[x, w]);
        let channels: Vec<usize> = [w[0]].into_iter().chain(how[0].iter().map(|_| 1)).collect();
        let dims = channels.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        check(&convolution(x, w, how, groups, Some(&dims)).0, &[x, w, &channels]);
    }
}

/// Few positions and many channels change places: one group and several, chunks of rows that end inside, batches, and an epilogue of vectors or of
/// elements.
#[test]
fn convolutions_of_few_positions() {
    for (x, w, [stride, pad], groups) in [
        ([2, 5, 7, 7], [70, 5, 3, 3], [1, 1], 1),
        ([1, 4, 13, 13], [48, 4, 3, 3], [1, 1], 1),
        ([2, 12, 10, 5], [48, 12, 1, 1], [1, 0], 1),
        ([2, 6, 9, 9], [96, 2, 3, 3], [2, 1], 3),
        ([1, 8, 1, 33], [60, 4, 1, 1], [1, 0], 2),
    ] {
        let out = |a: usize| (x[a] + 2 * pad - w[a]) / stride + 1;
        let (batch, text) = (x[0], |v: &[usize]| v.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
        let y = format!("N,{}", text(&[w[0], out(2), out(3)]));
        for b in [vec![w[0], 1, 1], vec![batch, w[0], out(2), out(3)], vec![1, 1, 1, out(3)]] {
            let dims = if b[0] == batch && b.len() == 4 && b[1] > 1 { y.clone() } else { text(&b) };
            let params = format!("%0 \"x\": f32[N,{}], %1 \"b\": f32[{dims}]", text(&x[1..]));
            let body = format!(
                "%2: f32[{}] = constant() {{id = @c0}}\n%3: f32[{y}] = conv(%0, %2) {{strides = [{stride},{stride}], dilations = [1,1], lo = [{pad},{pad}], hi = [{pad},{pad}], groups = {groups}}}\n%4: f32[{y}] = map(%3, %1) {{body = {{2: i0 = add a0 a1; i1 = tanh i0; i1}}}}\nreturn %4 \"y\"",
                text(&w)
            );
            let text = format!(
                "module \"t\" {{\n dim N in 1..64\n const @c0 \"w\": f32[{}] = random(3)\n func @\"main\"({params}) {{\n%2: f32[{y}] = fused(%0, %1) {{body = func @\"r\"({params}) {{\n{body}\n}}}}\nreturn %2 \"y\"\n}}\n}}\n",
                text(&w)
            );
            check(&text, &[&x, &b]);
            let program =
                lower::lower(&case(&text, &[&x, &b]).0, &Target::list("x86-64-v3").expect("a target")[0]).expect("it lowers");
            assert!(program.to_string().contains("conv_turned"), "{program}");
        }
    }
}
