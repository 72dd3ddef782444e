//! Operators that tools put in place of several: the result is that of the several.

#[path = "common/build.rs"]
mod build;

use build::*;
use transc_frontend::ImportOptions;
use transc_frontend::onnx::import_bytes;
use transc_frontend::onnx::proto::attribute_proto::AttributeType;
use transc_frontend::onnx::proto::tensor_proto::DataType;
use transc_frontend::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use transc_ir::interp::{Tensor, eval_module};

fn text(name: &str, v: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String.into()),
        s: Some(v.as_bytes().to_vec().into()),
        ..AttributeProto::default()
    }
}

fn fused(op: &str, inputs: &[&str]) -> NodeProto {
    in_domain(node(op, inputs, &["y"]), "com.microsoft")
}

/// The result of a chain from an input of some dims that counts up in eighths from -1.
fn result(nodes: Vec<NodeProto>, dims: &[&str], weights: Vec<TensorProto>) -> Vec<f64> {
    let mut m = chain(nodes, dims, weights);
    m.opset_import.push(opset("com.microsoft", 1));
    let m = import_bytes(bytes(&m), None, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let dims: Vec<usize> = dims.iter().map(|d| d.parse().expect("the dims are numbers")).collect();
    let x: Vec<f32> = (0..dims.iter().product::<usize>()).map(|i| i as f32 / 8.0 - 1.0).collect();
    eval_module(&m, &[Tensor::from_f32(&dims, &x)]).expect("it runs").remove(0).to_f64()
}

fn ramp(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>();
    floats(name, dims, &(0..n).map(|i| ((i * 5) % 11) as f32 / 4.0 - 1.0).collect::<Vec<_>>())
}

fn codes(name: &str, dims: &[i64]) -> TensorProto {
    raw(name, DataType::Uint8, dims, (0..dims.iter().product::<i64>()).map(|i| (i * 37 % 251) as u8).collect())
}

fn byte(name: &str, v: u8) -> TensorProto {
    raw(name, DataType::Uint8, &[], vec![v])
}

#[test]
fn products_and_convolutions_end_in_an_activation() {
    let w = || vec![ramp("w", &[4, 3]), ramp("b", &[3])];
    let one = result(vec![with(fused("FusedGemm", &["x", "w", "b"]), text("activation", "Tanh"))], &["2", "4"], w());
    let two = result(vec![node("Gemm", &["x", "w", "b"], &["t"]), node("Tanh", &["t"], &["y"])], &["2", "4"], w());
    assert_eq!(one, two);

    let w = || vec![ramp("w", &[3, 2, 3, 3]), ramp("b", &[3]), ramp("z", &[1, 3, 2, 2])];
    let one =
        result(vec![with(fused("FusedConv", &["x", "w", "b", "z"]), text("activation", "Relu"))], &["1", "2", "4", "4"], w());
    let conv = node("Conv", &["x", "w", "b"], &["c"]);
    let two = result(vec![conv, node("Add", &["c", "z"], &["t"]), node("Relu", &["t"], &["y"])], &["1", "2", "4", "4"], w());
    assert_eq!(one, two);
}

/// Tiles of a transposed convolution that lie side by side are rows of a product; with a padded result it is a convolution, of which the tiles are a
/// part.
#[test]
fn tiles_side_by_side() {
    let w = || vec![ramp("w", &[2, 3, 2, 3]), ramp("b", &[3])];
    let transposed = |y: &str| with(node("ConvTranspose", &["x", "w", "b"], &[y]), ints("strides", &[2, 3]));
    let tiles = result(vec![transposed("y")], &["2", "2", "3", "2"], w());
    let padded = with(transposed("t"), ints("output_padding", &[1, 0]));
    let cut = node("Slice", &["t", "zero", "end", "axis"], &["y"]);
    let more = [int64s("zero", &[1], &[0]), int64s("end", &[1], &[6]), int64s("axis", &[1], &[2])];
    let whole = result(vec![padded, cut], &["2", "2", "3", "2"], w().into_iter().chain(more).collect());
    assert_eq!(tiles.len(), 2 * 3 * 6 * 6);
    assert_eq!(tiles, whole);
}

#[test]
fn an_unknown_activation_is_not_supported() {
    let mut m =
        chain(vec![with(fused("FusedGemm", &["x", "w"]), text("activation", "Square"))], &["2", "4"], vec![ramp("w", &[4, 3])]);
    m.opset_import.push(opset("com.microsoft", 1));
    let e = import_bytes(bytes(&m), None, &ImportOptions::default()).expect_err("there is no such activation");
    assert!(e.to_string().contains("`Square`"), "{e}");
}

/// Operators on codes between a quantisation and its inverse.
#[test]
fn codes_stand_for_reals() {
    let weights = || vec![floats("s", &[], &[0.05]), byte("z", 120), floats("t", &[], &[0.02]), byte("o", 10)];
    let around = |inner: Vec<NodeProto>| {
        let mut nodes = vec![node("QuantizeLinear", &["x", "s", "z"], &["q"])];
        nodes.extend(inner);
        nodes.push(node("DequantizeLinear", &["r", "t", "o"], &["y"]));
        result(nodes, &["1", "2", "4", "4"], weights())
    };
    let renamed = |mut n: NodeProto| {
        n.output = strings(&["r"]);
        n
    };
    let decode = || node("DequantizeLinear", &["q", "s", "z"], &["d"]);
    let encode = || node("QuantizeLinear", &["e", "t", "o"], &["r"]);
    let operands = ["q", "s", "z", "t", "o"];
    let cases: Vec<(&str, Vec<AttributeProto>, Vec<NodeProto>)> = vec![
        ("QLinearSigmoid", vec![], vec![node("Sigmoid", &["d"], &["e"])]),
        ("QLinearLeakyRelu", vec![], vec![node("LeakyRelu", &["d"], &["e"])]),
        ("QLinearGlobalAveragePool", vec![], vec![node("GlobalAveragePool", &["d"], &["e"])]),
        (
            "QLinearAveragePool",
            vec![ints("kernel_shape", &[2, 2])],
            vec![with(node("AveragePool", &["d"], &["e"]), ints("kernel_shape", &[2, 2]))],
        ),
        ("QLinearSoftmax", vec![int("axis", 3)], vec![with(node("Softmax", &["d"], &["e"]), int("axis", 3))]),
    ];
    for (op, attributes, plain) in cases {
        let n = attributes.into_iter().fold(fused(op, &operands), with);
        let want = around([vec![decode()], plain, vec![encode()]].concat());
        assert_eq!(around(vec![renamed(n)]), want, "{op}");
    }
    let n = with(fused("QLinearConcat", &["t", "o", "q", "s", "z", "q", "s", "z"]), int("axis", 1));
    let want = around(vec![decode(), with(node("Concat", &["d", "d"], &["e"]), int("axis", 1)), encode()]);
    assert_eq!(around(vec![renamed(n)]), want);
}

#[test]
fn a_dynamically_quantised_product() {
    let weights =
        || vec![codes("w", &[4, 3]), floats("s", &[3], &[0.1, 0.2, 0.3]), raw("z", DataType::Uint8, &[3], vec![7, 120, 200])];
    let one = result(vec![fused("DynamicQuantizeMatMul", &["x", "w", "s", "z"])], &["2", "4"], weights());
    let nodes = vec![
        node("DynamicQuantizeLinear", &["x"], &["q", "qs", "qz"]),
        node("MatMulInteger", &["q", "w", "qz", "z"], &["i"]),
        with(node("Cast", &["i"], &["f"]), int("to", 1)),
        node("Mul", &["qs", "s"], &["scale"]),
        node("Mul", &["f", "scale"], &["y"]),
    ];
    assert_eq!(one, result(nodes, &["2", "4"], weights()));
}

#[test]
fn rows_of_packed_codes() {
    let table = raw("w", DataType::Uint8, &[3, 8], (0..24).map(|i| i * 11 % 251).collect());
    let index = int64s("i", &[2], &[2, 0]);
    let scales = floats("s", &[3, 1], &[1.0, 2.0, 4.0]);
    let n = ["gather_axis", "bits"]
        .into_iter()
        .zip([0, 4])
        .fold(fused("GatherBlockQuantized", &["w", "i", "s"]), |n, (a, v)| with(n, int(a, v)));
    let n = with(with(n, int("quantize_axis", 1)), int("block_size", 16));
    let mut n = vec![n, node("Add", &["t", "x"], &["y"])];
    n[0].output = strings(&["t"]);
    let got = result(n, &["1"], vec![table, index, scales]);
    let code = |row: i64, i: i64| f64::from((((row * 8 + i / 2) as u8 * 11 % 251) >> (i % 2 * 4)) & 15) - 8.0;
    let want: Vec<f64> = [(2, 4.0), (0, 1.0)].iter().flat_map(|(r, s)| (0..16).map(move |i| code(*r, i) * s - 1.0)).collect();
    assert_eq!(got, want);
}

/// Bytes are codes of 8 bits where it says so; without zero points the middle one stands for 0.
#[test]
fn rows_of_bytes() {
    let table = raw("w", DataType::Uint8, &[2, 16], (0..32).map(|i| i * 7).collect());
    let attributes = [("gather_axis", 0), ("bits", 8), ("quantize_axis", 1), ("block_size", 16)];
    let n = attributes.into_iter().fold(fused("GatherBlockQuantized", &["w", "i", "s"]), |n, (a, v)| with(n, int(a, v)));
    let mut nodes = vec![n, node("Add", &["t", "x"], &["y"])];
    nodes[0].output = strings(&["t"]);
    let got = result(nodes, &["1"], vec![table, int64s("i", &[1], &[1]), floats("s", &[2, 1], &[1.0, 0.5])]);
    let want: Vec<f64> = (16..32).map(|i| (f64::from(i * 7) - 128.0) * 0.5 - 1.0).collect();
    assert_eq!(got, want);
}

/// Keys that are seen, as a table or as the place where they end and the one where they start.
#[test]
fn masks_of_keys() {
    let attend = |mask: TensorProto| {
        let n = with(fused("Attention", &["x", "w", "b", "m"]), int("num_heads", 2));
        result(vec![n], &["2", "5", "4"], vec![ramp("w", &[4, 12]), ramp("b", &[12]), mask])
    };
    let table = attend(int64s("m", &[2, 5], &[0, 1, 1, 1, 0, 0, 0, 1, 1, 1]));
    assert_eq!(attend(int64s("m", &[4], &[4, 5, 1, 2])), table);
    let table = attend(int64s("m", &[2, 5], &[1, 1, 1, 1, 0, 1, 1, 1, 0, 0]));
    assert_eq!(attend(int64s("m", &[2], &[4, 3])), table);
}

/// How many bounds of keys there are may be seen only when the model runs.
#[test]
fn bounds_of_keys_of_any_number() {
    let n = with(fused("Attention", &["x", "w", "b", "m"]), int("num_heads", 2));
    let inputs = vec![value("x", &["b", "5", "4"]), value("m", &["n"])];
    let mut m = model(graph(vec![n], inputs, &["y"], vec![ramp("w", &[4, 12]), ramp("b", &[12])]));
    m.opset_import.push(opset("com.microsoft", 1));
    let m = import_bytes(bytes(&m), None, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let x: Vec<f32> = (0..40).map(|i| i as f32 / 8.0 - 1.0).collect();
    let attend = |bounds: &[f32]| {
        let operands = [Tensor::from_f32(&[2, 5, 4], &x), Tensor::from_f32(&[bounds.len()], bounds)];
        eval_module(&m, &operands).map(|mut r| r.remove(0).to_f64())
    };
    let table = |mask: &[i64]| {
        let n = with(fused("Attention", &["x", "w", "b", "m"]), int("num_heads", 2));
        result(vec![n], &["2", "5", "4"], vec![ramp("w", &[4, 12]), ramp("b", &[12]), int64s("m", &[2, 5], mask)])
    };
    assert_eq!(attend(&[4.0, 3.0]).expect("ends"), table(&[1, 1, 1, 1, 0, 1, 1, 1, 0, 0]));
    assert_eq!(attend(&[4.0, 5.0, 1.0, 2.0]).expect("ends and starts"), table(&[0, 1, 1, 1, 0, 0, 0, 1, 1, 1]));
    let sums = [4.0, 3.0, 0.0, 5.0, 10.0, 0.0, 4.0, 7.0];
    assert_eq!(attend(&sums).expect("ends and sums"), table(&[1, 1, 1, 1, 0, 1, 1, 1, 0, 0]));
    assert!(attend(&[4.0]).is_err());
}

/// The rows of a mask for more tokens than there are.
#[test]
fn a_mask_for_the_longest_sequence() {
    let attend = |mask: TensorProto| {
        let n = with(fused("Attention", &["x", "w", "", "m"]), int("num_heads", 2));
        result(vec![n], &["1", "3", "4"], vec![ramp("w", &[4, 12]), mask])
    };
    let wide: Vec<i64> = (0..16).map(|i| i64::from(i % 4 <= i / 4)).collect();
    assert_eq!(attend(int64s("m", &[1, 1, 4, 4], &wide)), attend(int64s("m", &[1, 3, 3], &[1, 0, 0, 1, 1, 0, 1, 1, 1])));
}

/// The first axis stands behind those of the batch, and the last two are swapped after that.
#[test]
fn products_of_operands_with_their_batch_behind() {
    let w = || vec![ramp("w", &[3, 2, 4])];
    let n = with(with(fused("FusedMatMul", &["x", "w"]), int("transBatchA", 1)), int("transBatchB", 1));
    let one = result(vec![with(n, int("transB", 1))], &["5", "2", "4"], w());
    let nodes = vec![
        with(node("Transpose", &["x"], &["a"]), ints("perm", &[1, 0, 2])),
        with(node("Transpose", &["w"], &["b"]), ints("perm", &[1, 2, 0])),
        node("MatMul", &["a", "b"], &["y"]),
    ];
    assert_eq!(one, result(nodes, &["5", "2", "4"], w()));
}

/// A row of which all is hidden still has weights: the same is added to all of its logits.
#[test]
fn hidden_keys_are_lowered() {
    let attention = |mask: &[i32], attrs: Vec<AttributeProto>| {
        let n = fused("Attention", &["x", "w", "", "m"]);
        let n = attrs.into_iter().fold(with(n, int("num_heads", 2)), with);
        let mask = raw("m", DataType::Int32, &[1, 3], mask.iter().flat_map(|m| m.to_le_bytes()).collect());
        result(vec![n], &["1", "3", "4"], vec![ramp("w", &[4, 12]), mask])
    };
    let all = attention(&[1, 1, 1], vec![]);
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-2);
    assert!(near(&attention(&[0, 0, 0], vec![]), &all));
    let some = attention(&[1, 0, 1], vec![]);
    let by_nothing = AttributeProto {
        name: Some("mask_filter_value".into()),
        r#type: Some(AttributeType::Float.into()),
        f: Some(0.0),
        ..AttributeProto::default()
    };
    let none = attention(&[1, 0, 1], vec![by_nothing]);
    assert!(none == all && some != all);
}

/// A past with room behind its tokens: the new token comes right after them, and is rotated for that place.
#[test]
fn a_past_that_is_not_full() {
    let step = |room: i64| {
        let past = |name: &str, first: f32| {
            let rows = (0..2 * (3 + room)).map(|r| if r % (3 + room) < 3 { first + (r % (3 + room)) as f32 } else { 99.0 });
            floats(name, &[1, 2, 3 + room, 4], &rows.flat_map(|r| [r, 0.5, -r, 0.25]).collect::<Vec<_>>())
        };
        let n = fused("GroupQueryAttention", &["x", "k", "v", "pk", "pv", "seen", "all", "cos", "sin"]);
        let attrs = [("num_heads", 4), ("kv_num_heads", 2), ("do_rotary", 1), ("local_window_size", 3)];
        let n = attrs.into_iter().fold(n, |n, (a, v)| with(n, int(a, v)));
        let number = |name: &str, v: i32| raw(name, DataType::Int32, &[1], v.to_le_bytes().to_vec());
        let weights = vec![
            ramp("k", &[1, 1, 8]),
            ramp("v", &[1, 1, 8]),
            past("pk", 0.5),
            past("pv", 1.0),
            number("seen", 3),
            number("all", 4),
            ramp("cos", &[9, 2]),
            ramp("sin", &[9, 2]),
        ];
        result(vec![n], &["1", "1", "16"], weights)
    };
    assert_eq!(step(2), step(0));
}

/// Each row of the softmax has one more term in its denominator: of logit 0, or of a number for the head.
#[test]
fn sinks_of_attention() {
    let attend = |past: bool, sink: bool, attrs: &[(&str, i64)]| {
        let operands = ["x", "k", "v", "pk", "pv", "seen", "all", "", "", "", "", if sink { "sink" } else { "" }];
        let mut n = fused("GroupQueryAttention", &operands);
        if !past {
            n.input[3] = String::new();
            n.input[4] = String::new();
        }
        let n = [("num_heads", 2), ("kv_num_heads", 1)].iter().chain(attrs).fold(n, |n, (a, v)| with(n, int(a, *v)));
        let number = |name: &str, v: i32| raw(name, DataType::Int32, &[1], v.to_le_bytes().to_vec());
        let (old, all) = if past { (2, 4) } else { (0, 2) };
        let mut weights = vec![ramp("k", &[1, 2, 4]), ramp("v", &[1, 2, 4]), number("seen", all - 1), number("all", all)];
        weights.extend([ramp("pk", &[1, 1, i64::from(old), 4]), ramp("pv", &[1, 1, i64::from(old), 4])]);
        weights.push(floats("sink", &[2], &[0.5, -1.0]));
        result(vec![n], &["1", "2", "8"], weights)
    };
    // The same by hand.
    let by_hand = |past: bool, sinks: Option<[f64; 2]>| {
        let table = |n: i64| -> Vec<f64> { (0..n).map(|i| ((i * 5) % 11) as f64 / 4.0 - 1.0).collect() };
        let old = if past { table(8) } else { vec![] };
        let rows = [old.clone(), table(8)].concat();
        let x: Vec<f64> = (0..16).map(|i| f64::from(i) / 8.0 - 1.0).collect();
        let mut out = Vec::new();
        for (q, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let query = &x[q * 8 + head * 4..][..4];
            let seen = old.len() / 4 + q + 1;
            let weights: Vec<f64> =
                (0..seen).map(|j| (query.iter().zip(&rows[j * 4..]).map(|(a, b)| a * b).sum::<f64>() / 2.0).exp()).collect();
            let sum = weights.iter().sum::<f64>() + sinks.map_or(0.0, |s| s[head].exp());
            out.extend((0..4).map(|c| (0..seen).map(|j| weights[j] * rows[j * 4 + c]).sum::<f64>() / sum));
        }
        out
    };
    let near = |a: Vec<f64>, b: Vec<f64>| a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5);
    for past in [false, true] {
        assert!(near(attend(past, false, &[]), by_hand(past, None)));
        assert!(near(attend(past, false, &[("smooth_softmax", -1)]), by_hand(past, None)));
        assert!(near(attend(past, false, &[("smooth_softmax", 1)]), by_hand(past, Some([0.0, 0.0]))));
        assert!(near(attend(past, true, &[]), by_hand(past, Some([0.5, -1.0]))));
    }
}

/// A result for which there is nothing here is refused, not left out.
#[test]
fn results_that_are_not_given() {
    let mut n = with(fused("BiasGelu", &["x", "b"]), int("axis", 0));
    n.output.push("more".into());
    let mut m = chain(vec![n, node("Neg", &["more"], &["z"])], &["2"], vec![ramp("b", &[2])]);
    m.opset_import.push(opset("com.microsoft", 1));
    let import = |m: &_| import_bytes(bytes(m), None, &ImportOptions::default());
    assert!(import(&m).expect_err("there is one result").to_string().contains("`more`"));
    if let Some(g) = &mut m.graph {
        g.node.pop();
    }
    import(&m).expect("nothing asks for it");
}

/// Queries, keys and values in one operand, or in three.
#[test]
fn packed_heads() {
    let part = |name: &str, start: i64| {
        vec![int64s(&format!("{name}s"), &[1], &[start]), int64s(&format!("{name}e"), &[1], &[start + 1])]
    };
    let mut weights: Vec<TensorProto> = ["q", "k", "v"].into_iter().zip(0..).flat_map(|(n, i)| part(n, i)).collect();
    weights.extend([int64s("three", &[1], &[3]), int64s("flat", &[3], &[1, 5, 8])]);
    let mut nodes = Vec::new();
    for n in ["q", "k", "v"] {
        let (s, e, cut) = (format!("{n}s"), format!("{n}e"), format!("{n}c"));
        nodes.push(node("Slice", &["x", &s, &e, "three"], &[&cut]));
        nodes.push(node("Reshape", &[&cut, "flat"], &[n]));
    }
    nodes.push(with(fused("MultiHeadAttention", &["q", "k", "v"]), int("num_heads", 2)));
    let three = result(nodes, &["1", "5", "2", "3", "4"], weights);
    let one = result(vec![with(fused("MultiHeadAttention", &["x"]), int("num_heads", 2))], &["1", "5", "2", "3", "4"], vec![]);
    assert_eq!(one, three);
}

/// The experts of a token one by one.
#[test]
fn mixtures_of_experts() {
    let (e, h, f) = (3usize, 4usize, 2usize);
    let value = |i: usize| ((i * 5) % 11) as f64 / 4.0 - 1.0;
    let logits = [0.1f32, 0.9, 0.4, 2.0, -1.0, 1.0];
    let mix = |op: &str, inputs: &[&str], attrs: &[(&str, i64)], activation: &str, weights: Vec<TensorProto>| {
        let n = with(fused(op, inputs), text("activation_type", activation));
        let n = attrs.iter().fold(n, |n, (a, v)| with(n, int(a, *v)));
        result(vec![n], &["1", "2", "4"], [weights, vec![floats("r", &[2, 3], &logits)]].concat())
    };
    // Weights as functions of their place, so that codes may stand for them.
    let by_hand = |gated: bool, normal: bool, first: &dyn Fn(usize) -> f64, second: &dyn Fn(usize) -> f64| {
        let rows = if gated { 2 * f } else { f };
        let mut out = Vec::new();
        for t in 0..2 {
            let x: Vec<f64> = (0..h).map(|i| (t * h + i) as f64 / 8.0 - 1.0).collect();
            let shares: Vec<f64> = (0..e).map(|i| f64::from(logits[t * e + i]).exp()).collect();
            let sum: f64 = shares.iter().sum();
            let mut order: Vec<usize> = (0..e).collect();
            order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
            let kept: f64 = if normal { order[..2].iter().map(|i| shares[*i]).sum() } else { sum };
            let mut y = vec![0.0; h];
            for i in &order[..2] {
                let row = |r: usize| (0..h).map(|c| first((i * rows + r) * h + c) * x[c]).sum::<f64>() + value(i * rows + r);
                let hidden = |u: usize| {
                    if gated {
                        let g = row(2 * u);
                        g / (1.0 + (-g).exp()) * row(2 * u + 1)
                    } else {
                        row(u).max(0.0)
                    }
                };
                for (c, y) in y.iter_mut().enumerate() {
                    let sum_of = (0..f).map(|u| second((i * h + c) * f + u) * hidden(u)).sum::<f64>() + value(i * h + c);
                    *y += shares[*i] / kept * sum_of;
                }
            }
            out.extend(y);
        }
        out
    };
    let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let plain = vec![ramp("w", &[3, 2, 4]), ramp("b", &[3, 2]), ramp("v", &[3, 4, 2]), ramp("c", &[3, 4])];
    let got = mix("MoE", &["x", "r", "w", "b", "v", "c"], &[("k", 2)], "relu", plain);
    assert!(near(&got, &by_hand(false, false, &value, &value)), "{got:?}");
    let gated = vec![ramp("w", &[3, 4, 4]), ramp("b", &[3, 4]), ramp("v", &[3, 4, 2]), ramp("c", &[3, 4])];
    let attrs = [("k", 2), ("normalize_routing_weights", 1), ("swiglu_fusion", 1)];
    let got = mix("MoE", &["x", "r", "w", "b", "v", "c"], &attrs, "swiglu", gated);
    assert!(near(&got, &by_hand(true, true, &value, &value)), "{got:?}");
    // Codes of 4 bits around 8, with a scale for each row.
    let nibble = |i: usize| (i * 37 % 251) as u8 >> 4;
    let packed = |name: &str, dims: &[i64]| {
        let n = 2 * dims.iter().product::<i64>() as usize;
        raw(name, DataType::Uint8, dims, (0..n / 2).map(|i| nibble(2 * i) | nibble(2 * i + 1) << 4).collect())
    };
    let scales = |name: &str, dims: &[i64]| floats(name, dims, &vec![0.25; dims.iter().product::<i64>() as usize]);
    let coded = |i: usize| (f64::from(nibble(i)) - 8.0) * 0.25;
    let mut weights = vec![packed("w", &[3, 2, 2]), scales("s", &[3, 2]), ramp("b", &[3, 2])];
    weights.extend([packed("v", &[3, 4, 1]), scales("t", &[3, 4]), ramp("c", &[3, 4])]);
    let got = mix("QMoE", &["x", "r", "w", "s", "b", "v", "t", "c"], &[("k", 2)], "relu", weights);
    assert!(near(&got, &by_hand(false, false, &coded, &coded)), "{got:?}");
}
