//! Values that lie otherwise than row-major between kernels: results of attention in the order in which they are read, and whole layers of a
//! transformer whose tokens lie beside each other.

use super::sparse::weight;
use super::*;

/// A module, node by node.
#[derive(Default)]
struct Layers {
    /// The share of zeros of weights is 90 %, unless they are to be dense.
    dense: bool,
    /// Features of operands before those that products multiply.
    skipped: usize,
    consts: String,
    nodes: String,
    count: usize,
    regions: usize,
}

/// A value and its type.
type Named = (String, String);

impl Layers {
    fn constant(&mut self, ty: &str, values: &str) -> String {
        let id = format!("@c{}", self.count);
        self.count += 1;
        self.consts += &format!(" const {id} \"c\": {ty} = {values}\n");
        id
    }

    /// A region of a body, whose parameters are `%0`, `%1`.. and whose result is `%y`.
    fn region(&mut self, ty: &str, operands: &[&Named], body: &str) -> Named {
        let names: Vec<&str> = operands.iter().map(|(name, _)| name.as_str()).collect();
        let params: Vec<String> = operands.iter().enumerate().map(|(i, (_, ty))| format!("%{i} \"a\": {ty}")).collect();
        let id = format!("%{}", 100 + self.regions);
        self.regions += 1;
        self.nodes += &format!(
            "{id}: {ty} = fused({}) {{body = func @\"r\"({}) {{\n{}\nreturn %99 \"y\"\n}}}}\n",
            names.join(", "),
            params.join(", "),
            body.replace("%y", "%99"),
        );
        (id, ty.into())
    }

    /// A product by a weight with zeros, and `a0 * scale + bias`, to which a residual is added; `u8` or `f32` as the activation.
    fn product(&mut self, x: &Named, (k, n): (usize, usize), residual: Option<&Named>, to: &str) -> Named {
        let int8 = !x.1.starts_with("f32");
        let (w, sum) = if int8 { ("i8", "i32") } else { ("f32", "f32") };
        let values = format!("[{}]", weight(k, n, (4, 1), if self.dense { 0 } else { 90 }, int8));
        let (w_id, b_id) = (self.constant(&format!("{w}[{k},{n}]"), &values), self.constant(&format!("f32[{n}]"), "random(4)"));
        let scale = if int8 { "0.0003" } else { "0.001" };
        let mut f = format!("i0 = cast f32 a0; i1 = const f32 {scale}; i2 = mul i0 i1; i3 = add i2 a1;");
        let mut last = 3;
        // `$` is the instruction before.
        let mut push = |text: &str| {
            last += 1;
            f += &format!(" i{last} = {};", text.replace('$', &format!("i{}", last - 1)));
            last
        };
        if residual.is_some() {
            push("cast f32 a2");
            push("add $ i3");
        }
        if !to.starts_with("f32") {
            // Codes around 100, or around 0.
            push("const f32 50.0");
            let before = if residual.is_some() { "i5" } else { "i3" };
            push(&format!("mul {before} $"));
            let code = push("round $");
            push(&format!("const f32 {}", if to == "u8" { "100.0" } else { "-3.0" }));
            push(&format!("add $ i{code}"));
            push(&format!("cast {to} $"));
        }
        let n_args = if residual.is_some() { 3 } else { 2 };
        let (maps, operands) = if let Some(r) = residual { ("%4, %3, %1", vec![x, r]) } else { ("%4, %3", vec![x]) };
        let (taken, view) = match self.skipped {
            0 => ("%0", String::new()),
            first => {
                let ty = format!("{}[2,N,{k}]", x.1.split('[').next().unwrap_or(""));
                ("%6", format!("%6: {ty} = slice(%0) {{starts = [0,0,{first}], sizes = [2,N,{k}], steps = [1,1,1]}}\n"))
            }
        };
        self.region(
            &format!("{to}[2,N,{n}]"),
            &operands,
            &format!(
                "{view}%2: {w}[{k},{n}] = constant() {{id = {w_id}}}\n%3: f32[{n}] = constant() {{id = {b_id}}}\n%4: {sum}[2,N,{n}] = contract({taken}, %2) {{lhs = [0,3,1], rhs = [1,2], out = [0,3,2], out_dtype = {sum}}}\n%y: {to}[2,N,{n}] = map({maps}) {{body = {{{n_args}: {f} i{last}}}}}"
            ),
        )
    }

    /// A norm of `f32`, with codes behind it or not. Codes are coarse: their rounding shall not depend on the order of sums in `f32`.
    fn norm(&mut self, x: &Named, n: usize, kind: &str, codes: bool) -> Named {
        let [scale, shift] = ["random(5)", "random(6)"].map(|v| self.constant(&format!("f32[{n}]"), v));
        let (to, operands) = (if codes { "u8" } else { "f32" }, if kind == "layer_norm" { "%5, %2, %3" } else { "%5, %2" });
        let attributes = if kind == "layer_norm" { "axis = 2, epsilon = 0.00001" } else { "axis = 2, epsilon = 0.001" };
        let behind = if codes {
            "i0 = const f32 3.0; i1 = mul a0 i0; i2 = round i1; i3 = const f32 120.0; i4 = add i2 i3; i5 = cast u8 i4; i5"
        } else {
            "i0 = add a0 a0; i0"
        };
        self.region(
            &format!("{to}[2,N,{n}]"),
            &[x],
            &format!(
                "%2: f32[{n}] = constant() {{id = {scale}}}\n%3: f32[{n}] = constant() {{id = {shift}}}\n%5: f32[2,N,{n}] = map(%0) {{body = {{1: i0 = cast f32 a0; i0}}}}\n%4: f32[2,N,{n}] = {kind}({operands}) {{{attributes}}}\n%y: {to}[2,N,{n}] = map(%4) {{body = {{1: {behind}}}}}"
            ),
        )
    }

    /// Heads of `[2, N, heads * d]`, and attention.
    fn heads(&mut self, [q, k, v]: [&Named; 3], mask: Option<&Named>, (d, e, to): (usize, usize, &str), op: &str) -> Named {
        let views = |i: usize, ty: &str, n: usize, d: usize| {
            let dtype = ty.split('[').next().unwrap_or(ty);
            format!(
                "%{}: {dtype}[2,N,{n},{d}] = reshape(%{i}) {{dims = [2,N,{n},{d}]}}\n%{}: {dtype}[2,{n},N,{d}] = transpose(%{}) {{perm = [0,2,1,3]}}\n",
                10 + i,
                20 + i,
                10 + i
            )
        };
        let views = views(0, &q.1, 4, d) + &views(1, &k.1, 2, d) + &views(2, &v.1, 2, e);
        let operands: Vec<&Named> = [q, k, v].into_iter().chain(mask).collect();
        let taken = if mask.is_some() { "%20, %21, %22, %3" } else { "%20, %21, %22" };
        let body = format!("{views}{}", op.replace("OPERANDS", taken).replace("DIMS", &format!("[2,4,N,{e}]")));
        self.region(&format!("{to}[2,4,N,{e}]"), &operands, &body)
    }

    /// The same, and its result as `[2, N, 4 * e]`.
    fn attention(&mut self, x: [&Named; 3], mask: Option<&Named>, (d, e, to): (usize, usize, &str), op: &str) -> Named {
        let result = self.heads(x, mask, (d, e, to), op);
        self.region(
            &format!("{to}[2,N,{}]", 4 * e),
            &[&result],
            &format!(
                "%1: {to}[2,N,4,{e}] = transpose(%0) {{perm = [0,2,1,3]}}\n%y: {to}[2,N,{}] = reshape(%1) {{dims = [2,N,{}]}}",
                4 * e,
                4 * e
            ),
        )
    }

    fn text(&self, params: &[&Named], result: &Named) -> String {
        let params: Vec<String> =
            params.iter().map(|(name, ty)| format!("{name} \"{}\": {ty}", name.replace('%', "x"))).collect();
        format!(
            "module \"t\" {{\n dim N in 1..4096\n{} func @\"main\"({}) {{\n{}return {} \"y\"\n}}\n}}\n",
            self.consts,
            params.join(", "),
            self.nodes,
            result.0
        )
    }
}

fn named(name: &str, ty: &str) -> Named {
    (name.into(), ty.into())
}

/// The same module for so many tokens.
fn fixed(text: &str, tokens: usize) -> String {
    text.replace(" dim N in 1..4096\n", "").replace("N,", &format!("{tokens},")).replace(",N]", &format!(",{tokens}]"))
}

/// What kernels say of how they read and leave values: the letters behind the last number of their names.
fn ends(text: &str, target: &Target) -> Vec<String> {
    let end = |name: &String| name.rsplit(|c: char| c.is_ascii_digit()).next().unwrap_or("").to_string();
    kernels(text, target).iter().map(end).collect()
}

/// Kernels of a module for a target, without their numbers.
fn kernels(text: &str, target: &Target) -> Vec<String> {
    let program = lower::lower(&parse_module(text).unwrap_or_else(|e| panic!("{e}\n{text}")), target).expect("it lowers");
    let name = |l: &transc_codegen::Launch| program.kernels[l.kernel].name.split_once('_').map(|n| n.1.to_string());
    program.launches.iter().filter_map(name).collect()
}

/// Batches are no multiples of a tile, so that its tokens are of several.
const TOKENS: [usize; 4] = [1, 16, 33, 70];

/// A layer of an encoder: norms that read rows and leave them, residuals, a region of its own between two products.
#[test]
fn layers_whose_tokens_lie_beside_each_other() {
    for (dtype, norm, features) in
        [("f32", "layer_norm", 160), ("f32", "rms_norm", 165), ("u8", "layer_norm", 165), ("u8", "rms_norm", 160)]
    {
        let mut t = Layers::default();
        let x = named("%0", &format!("f32[2,N,{features}]"));
        let codes = dtype == "u8";
        let first = t.norm(&x, features, norm, codes);
        let [q, k, v] = [4 * 12, 2 * 12, 2 * 20].map(|n| t.product(&first, (features, n), None, dtype));
        let op = if codes {
            "%23: i32DIMS = int_attention(OPERANDS) {zeros = [100,110,120], unit = 0.001, logits = u8(0.07, 118), scale = 0.3, causal = none, clear = true, weights = u8(0.02, 0), relative = false}\n%y: u8DIMS = map(%23) {body = {1: i0 = cast f32 a0; i1 = const f32 0.02; i2 = mul i0 i1; i3 = round i2; i4 = const f32 90.0; i5 = add i3 i4; i6 = cast u8 i5; i6}}"
        } else {
            "%y: f32DIMS = attention(OPERANDS) {scale = 0.3, causal = none, softcap = 0.0, clear = true}"
        };
        let mixed = t.attention([&q, &k, &v], None, (12, 20, dtype), op);
        let added = t.product(&mixed, (80, features), Some(&first), "f32");
        let second = t.norm(&added, features, norm, codes);
        let up = t.product(&second, (features, 130), None, dtype);
        let factors = t.constant("f32[130]", "random(9)");
        let back = if codes { "i3 = round i2; i4 = cast u8 i3; i4" } else { "i3 = add i2 a1; i3" };
        let between = t.region(
            &format!("{dtype}[2,N,130]"),
            &[&up],
            &format!("%1: f32[130] = constant() {{id = {factors}}}\n%y: {dtype}[2,N,130] = map(%0, %1) {{body = {{2: i0 = cast f32 a0; i1 = const f32 0.8; i2 = mul i0 i1; {back}}}}}"),
        );
        let down = t.product(&between, (130, features), Some(&second), "f32");
        let last = t.norm(&down, features, norm, false);
        let text = t.text(&[&x], &last);
        assert_eq!(ends(&text, &Target::X86_64_V4), ["rt", "tt", "tt", "tt", "t", "tt", "tt", "tt", "t", "tt", "tr"]);
        let in_blocks = ["rb", "bb", "bb", "bb", "t", "bb", "bb", "bb", "t", "bb", "br"];
        assert_eq!(ends(&fixed(&text, 128), &Target::X86_64_V4), in_blocks);
        assert_eq!(ends(&fixed(&text, 96), &Target::X86_64_V3), in_blocks);
        assert_eq!(ends(&fixed(&text, 96), &Target::X86_64_V4)[1], "tt");
        let any = TOKENS.map(|n| (n, text.clone()));
        for (n, text) in any.into_iter().chain([96, 128].map(|n| (n, fixed(&text, n)))) {
            let (m, inputs, want) = case(&text, &[&[2, n, features]]);
            on_hosts(&text, (&m, &inputs, &want), ways());
            on_processors("znver4,cascadelake,alderlake", &text, (&m, &inputs, &want));
        }
        // Two sequences among the tokens: blocks of 64 would be of both, for attention.
        let heads = fixed(&text, 96);
        let together =
            [features, 48, 24, 40, 80, 130].iter().fold(heads, |t, n| t.replace(&format!("[2,96,{n}]"), &format!("[1,192,{n}]")));
        assert_eq!(ends(&together, &Target::X86_64_V4)[..2], ["rb", "bt"]);
        assert_eq!(ends(&together, &Target::X86_64_V3)[1], "bb");
        let (m, inputs, want) = case(&together, &[&[1, 192, features]]);
        on_hosts(&together, (&m, &inputs, &want), ways());
        on_processors("znver4", &together, (&m, &inputs, &want));
    }
}

/// A product that multiplies some features of a value that lies turned.
#[test]
fn layers_that_read_parts_of_turned_values() {
    for dtype in ["f32", "u8"] {
        let mut t = Layers::default();
        let x = named("%0", &format!("{dtype}[2,N,160]"));
        let up = t.product(&x, (160, 260), None, dtype);
        t.skipped = 97;
        let down = t.product(&up, (130, 160), None, "f32");
        let text = t.text(&[&x], &down);
        assert_eq!(ends(&text, &Target::X86_64_V4), ["rt", "tr"]);
        assert_eq!(ends(&fixed(&text, 128), &Target::X86_64_V4), ["rb", "br"]);
        // Blocks are whole whatever the batch.
        let batches = fixed(&text, 128).replace("[2,", "[B,").replacen('{', "{\n dim B in 1..64", 1);
        assert_eq!(ends(&batches, &Target::X86_64_V4), ["rb", "br"]);
        for (n, text) in [(33, text.clone()), (128, fixed(&text, 128)), (128, batches)] {
            let (m, inputs, want) = case(&text, &[&[2, n, 160]]);
            on_hosts(&text, (&m, &inputs, &want), ways());
            on_processors(BYTES, &text, (&m, &inputs, &want));
        }
    }
}

/// A dense product reads and leaves rows, and so does what is added to its result.
#[test]
fn dense_layers_among_sparse_ones() {
    for dtype in ["f32", "u8"] {
        let mut t = Layers::default();
        let x = named("%0", "f32[2,N,160]");
        let first = t.norm(&x, 160, "layer_norm", dtype == "u8");
        let up = t.product(&first, (160, 130), None, dtype);
        t.dense = true;
        let down = t.product(&up, (130, 160), Some(&first), "f32");
        t.dense = false;
        let second = t.norm(&down, 160, "layer_norm", dtype == "u8");
        let [more, again] = [130, 160].map(|n| (t.product(&second, (160, n), None, dtype), n));
        let last = t.product(&more.0, (more.1, 160), Some(&again.0), "f32");
        let out = t.norm(&last, 160, "rms_norm", false);
        let text = t.text(&[&x], &out);
        let names = kernels(&text, &Target::X86_64_V4);
        let ends = |i: usize, end: &str| names[i].ends_with(end);
        assert!(ends(0, "x16") && ends(1, "n16rr") && names[2].starts_with("matmul") && ends(3, "x16"), "{names:?}");
        assert!(ends(4, "n16rt") && ends(5, "n16rt") && ends(6, "n16tt") && ends(7, "x16tr"), "{names:?}");
        for n in TOKENS {
            check(&text, &[&[2, n, 160]]);
        }
    }
}

/// Attention whose operands lie turned: all signs of codes, masks of every kind, blocks of keys, features that are no whole vectors.
#[test]
fn attention_whose_tokens_lie_beside_each_other() {
    for (n, (d, e)) in [(1, (16, 16)), (9, (12, 21)), (70, (20, 64)), (130, (37, 24)), (33, (68, 24)), (128, (36, 21))] {
        for (dtypes, op, mask) in [
            (
                ["f32"; 3],
                "%y: f32DIMS = attention(OPERANDS) {scale = 0.4, causal = none, softcap = 0.0, clear = true}",
                "bool[2,1,1,N]",
            ),
            (
                ["f32"; 3],
                "%y: f32DIMS = attention(OPERANDS) {scale = 0.4, causal = none, softcap = 3.0, clear = false}",
                "f32[N,N]",
            ),
            (
                ["u8"; 3],
                "%23: i32DIMS = int_attention(OPERANDS) {zeros = [100,117,121], unit = 0.001, logits = u8(0.3, 128), scale = 0.2, causal = none, clear = true, weights = u8(0.00413, 0), relative = false}",
                "bool[2,1,1,N]",
            ),
            (
                ["u8", "i8", "i8"],
                "%23: i32DIMS = int_attention(OPERANDS) {zeros = [103,-7,2], unit = 0.001, logits = none, scale = 0.2, causal = none, clear = false, weights = i8(0.00397, -128), relative = false}",
                "f32[N,N]",
            ),
            (
                ["i8", "u8", "u8"],
                "%23: f32DIMS = int_attention(OPERANDS) {zeros = [3,90,101], unit = 0.001, logits = none, scale = 0.2, causal = none, clear = true, weights = u8(0.003921569, 0), relative = true}",
                "f32[2,1,N,N]",
            ),
        ] {
            let mut t = Layers::default();
            let codes = dtypes[0] != "f32";
            let (x, mask) = (named("%0", if codes { "u8[2,N,240]" } else { "f32[2,N,240]" }), named("%1", mask));
            let [q, k, v] =
                [(4 * d, dtypes[0]), (2 * d, dtypes[1]), (2 * e, dtypes[2])].map(|(n, to)| t.product(&x, (240, n), None, to));
            let (to, behind) = if codes {
                let map = "%y: u8DIMS = map(%23) {body = {1: i0 = cast f32 a0; i1 = const f32 0.01; i2 = mul i0 i1; i3 = round i2; i4 = const f32 120.0; i5 = add i3 i4; i6 = cast u8 i5; i6}}";
                ("u8", format!("{op}\n{map}"))
            } else {
                ("f32", op.into())
            };
            let given = mask.clone();
            let mask = if mask.1.starts_with("f32[2,1") {
                mask
            } else {
                // Made by a kernel, which stores queries beside each other if there are any.
                let body = if mask.1.starts_with("bool") { "i0 = not a0; i0" } else { "i0 = neg a0; i0" };
                t.region(&mask.1, &[&mask], &format!("%y: {} = map(%0) {{body = {{1: {body}}}}}", mask.1))
            };
            let mixed = t.attention([&q, &k, &v], Some(&mask), (d, e, to), &behind);
            let out = t.product(&mixed, (4 * e, 64), None, to);
            let text = t.text(&[&x, &given], &out);
            let names = kernels(&text, &Target::X86_64_V4);
            let attention = names.iter().find(|n| n.starts_with("attention")).map(|n| n.trim_end_matches(['m', 'n']));
            assert!(attention.is_some_and(|n| n.ends_with('t')), "{names:?}");
            let shape = match mask.1.as_str() {
                "bool[2,1,1,N]" => vec![2, 1, 1, n],
                "f32[N,N]" => vec![n, n],
                _ => vec![2, 1, n, n],
            };
            // Whole blocks are known if the number of tokens is.
            let text = if n % 64 == 0 { fixed(&text, n) } else { text };
            let (m, inputs, want) = case(&text, &[&[2, n, 240], &shape]);
            on_hosts(&text, (&m, &inputs, &want), ways());
            on_processors("znver4,alderlake", &text, (&m, &inputs, &want));
        }
    }
}

/// The transposition behind an attention is where the attention stores its result.
#[test]
fn results_of_attention_lie_as_they_are_read() {
    let mut t = Layers::default();
    let [q, k, v] = [("%0", 64), ("%1", 32), ("%2", 32)].map(|(name, n)| named(name, &format!("f32[2,N,{n}]")));
    let op = "%y: f32DIMS = attention(OPERANDS) {scale = 0.4, causal = 0, softcap = 0.0, clear = true}";
    let mixed = t.attention([&q, &k, &v], None, (16, 16, "f32"), op);
    let out = t.region(&mixed.1, &[&mixed], &format!("%y: {} = map(%0) {{body = {{1: i0 = add a0 a0; i0}}}}", mixed.1));
    let text = t.text(&[&q, &k, &v], &out);
    assert_eq!(kernels(&text, &Target::X86_64_V3).len(), 2);
    for n in TOKENS {
        check(&text, &[&[2, n, 64], &[2, n, 32], &[2, n, 32]]);
    }
    // As a result of the model it has to be copied.
    let mut t = Layers::default();
    let mixed = t.attention([&q, &k, &v], None, (16, 16, "f32"), op);
    let text = t.text(&[&q, &k, &v], &mixed);
    assert_eq!(kernels(&text, &Target::X86_64_V3).len(), 2);
    check(&text, &[&[2, 5, 64], &[2, 5, 32], &[2, 5, 32]]);
    // And where what reads it has the features apart.
    let mut t = Layers::default();
    let result = t.heads([&q, &k, &v], None, (16, 16, "f32"), op);
    let apart = "%1: f32[2,4,16,N] = transpose(%0) {perm = [0,1,3,2]}\n%y: f32[2,64,N] = reshape(%1) {dims = [2,64,N]}";
    let apart = t.region("f32[2,64,N]", &[&result], apart);
    let out = t.region(&apart.1, &[&apart], &format!("%y: {} = map(%0) {{body = {{1: i0 = add a0 a0; i0}}}}", apart.1));
    check(&t.text(&[&q, &k, &v], &out), &[&[2, 5, 64], &[2, 5, 32], &[2, 5, 32]]);
}
