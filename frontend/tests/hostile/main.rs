//! Models that are damaged or built to do harm: each ends in an error of the right kind, never in a crash or a wrong model.

#[path = "../common/build.rs"]
mod build;
mod external;

use std::time::{Duration, Instant};

use build::*;
use transc_frontend::onnx::proto::tensor_proto::DataType;
use transc_frontend::onnx::proto::{ModelProto, NodeProto, SparseTensorProto, TensorProto};
use transc_frontend::onnx::{self, import_bytes, import_model};
use transc_frontend::{FrontendError, ImportOptions, Limits};
use transc_ir::Module;
use transc_ir::diag::Fault;

fn import(m: &ModelProto) -> Result<Module, FrontendError> {
    import_bytes(bytes(m), None, &ImportOptions::default())
}

/// Checks the fault of an error and that its text mentions something.
#[track_caller]
fn fails(r: Result<Module, FrontendError>, fault: Fault, gist: &str) {
    match r {
        Ok(_) => panic!("expected {fault:?} with {gist:?}, but the model was imported"),
        Err(e) => {
            assert_eq!(e.fault(), fault, "{e}");
            assert!(e.to_string().contains(gist), "{gist:?} is not in: {e}");
        }
    }
}

#[track_caller]
fn fails_as(m: &ModelProto, fault: Fault, gist: &str) {
    fails(import(m), fault, gist);
}

#[track_caller]
fn bytes_fail(b: Vec<u8>, fault: Fault, gist: &str) {
    fails(import_bytes(b, None, &ImportOptions::default()), fault, gist);
}

fn relu() -> ModelProto {
    chain(vec![node("Relu", &["x"], &["y"])], &["batch", "4"], vec![])
}

/// Numbers that look random, always the same.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..n).map(|_| next()).collect()
}

// Bytes that are not a model.

#[test]
fn empty() {
    bytes_fail(Vec::new(), Fault::Invalid, "empty");
}

#[test]
fn random_noise() {
    bytes_fail(noise(1 << 20), Fault::Invalid, "at byte");
}

#[test]
fn truncated_at_any_point() {
    let whole = bytes(&adds(floats("w", &[1], &[1.0])));
    for cut in 1..whole.len() {
        match import_bytes(whole[..cut].to_vec(), None, &ImportOptions::default()) {
            Err(e) => assert!(matches!(e.fault(), Fault::Invalid), "cut at {cut}: {e}"),
            // A cut behind a complete field leaves a smaller model, which lacks its graph or its opset.
            Ok(_) => panic!("a model cut at {cut} of {} was imported", whole.len()),
        }
    }
}

#[test]
fn other_kinds_of_files() {
    for (start, kind) in [
        (&b"\x89PNG\r\n\x1a\n...."[..], "PNG"),
        (b"PK\x03\x04......", "zip"),
        (b"\x80\x04\x95......", "pickle"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
    ] {
        bytes_fail(start.to_vec(), Fault::Invalid, kind);
    }
}

/// A message as a field of another.
fn field(tag: u8, body: Vec<u8>) -> Vec<u8> {
    let (mut m, mut len) = (vec![tag], body.len());
    while len >= 0x80 {
        m.push(len as u8 | 0x80);
        len >>= 7;
    }
    m.push(len as u8);
    m.extend(body);
    m
}

/// `n` messages of field `tag`, one inside the other.
fn nested(tag: u8, n: usize) -> Vec<u8> {
    (0..n).fold(Vec::new(), |b, _| field(tag, b))
}

#[test]
fn messages_nested_too_deep() {
    // graph (7) > node (1) > attribute (5) > graph (6), again and again.
    let graph = (0..200).fold(Vec::new(), |b, _| [6u8, 5, 1].into_iter().fold(b, |b, tag| field(tag << 3 | 2, b)));
    let m = field(7 << 3 | 2, graph);
    bytes_fail(m, Fault::Limit, "nested deeper than 100");
}

#[test]
fn groups_nested_too_deep() {
    bytes_fail(vec![15 << 3 | 3; 10_000], Fault::Limit, "nested deeper than 100");
}

#[test]
fn depth_of_unknown_fields_does_not_count() {
    // Field 15 of a model does not exist: its bytes are skipped, whatever they are.
    let mut b = nested(15 << 3 | 2, 5000);
    b.extend(bytes(&relu()));
    assert!(import_bytes(b, None, &ImportOptions::default()).is_ok());
}

#[test]
fn length_beyond_the_file() {
    let mut b = vec![7 << 3 | 2];
    b.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    bytes_fail(b, Fault::Invalid, "bytes long, but only");
    bytes_fail([&[7 << 3 | 2u8][..], &[0xff; 11]].concat(), Fault::Invalid, "at byte 0");
}

// Structure.

#[test]
fn graphs_nested_too_deep() {
    let mut g = graph(vec![node("Identity", &["x"], &["y"])], vec![], &["y"], vec![]);
    for _ in 0..70 {
        let n = with(
            with(node("If", &["c"], &["y"]), graph_attr("then_branch", g.clone())),
            graph_attr("else_branch", graph(vec![], vec![], &["x"], vec![])),
        );
        g = graph(vec![n], vec![], &["y"], vec![]);
    }
    g.input = vec![value("x", &["1"])];
    g.initializer = vec![raw("c", DataType::Bool, &[], vec![1])];
    let m = model(g);
    fails_as(&m, Fault::Limit, "nested deeper");
    fails(import_model(&m, None, &ImportOptions::default()), Fault::Limit, "nested deeper than 64");
}

#[test]
fn recursive_functions() {
    let call = |f: &str| in_domain(node(f, &["x"], &["y"]), "local");
    let m = chain(vec![call("A")], &["1"], vec![]);
    let m = with_functions(m, vec![function("A", vec![call("B")]), function("B", vec![call("A")])]);
    fails_as(&m, Fault::Invalid, "recursive function `A -> B -> A`");

    let branch = graph(vec![call("A")], vec![], &["y"], vec![]);
    let n = with(with(node("If", &["x"], &["z"]), graph_attr("then_branch", branch.clone())), graph_attr("else_branch", branch));
    let mut f = function("A", vec![n]);
    f.output = strings(&["z"]);
    let m = with_functions(chain(vec![call("A")], &["1"], vec![]), vec![f]);
    fails_as(&m, Fault::Invalid, "recursive function `A -> A`");
}

#[test]
fn functions_that_expand_without_end() {
    let call = |i: usize, x: &str, y: &str| in_domain(node(&format!("F{i}"), &[x], &[y]), "local");
    let mut functions = vec![function("F30", vec![node("Relu", &["x"], &["y"])])];
    functions.extend((0..30).map(|i| function(&format!("F{i}"), vec![call(i + 1, "x", "t"), call(i + 1, "t", "y")])));
    let m = with_functions(chain(vec![call(0, "x", "y")], &["1"], vec![]), functions);
    let limits = Limits { nodes: 50_000, ..Limits::default() };
    let start = Instant::now();
    fails(import_model(&m, None, &ImportOptions { limits, ..ImportOptions::default() }), Fault::Limit, "more than 50000 nodes");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn functions_are_inlined() {
    let call = |x: &str, y: &str| in_domain(node("F", &[x], &[y]), "local");
    let f = function("F", vec![node("Relu", &["x"], &["t"]), node("Neg", &["t"], &["y"])]);
    let m = with_functions(chain(vec![call("x", "t"), call("t", "y")], &["batch"], vec![]), vec![f]);
    assert_eq!(import(&m).map(|m| m.main.node_count()), Ok(4));
}

#[test]
fn cycle_of_nodes() {
    let nodes = vec![node("Relu", &["b"], &["a"]), node("Neg", &["a"], &["b"]), node("Add", &["x", "b"], &["y"])];
    fails_as(&chain(nodes, &["1"], vec![]), Fault::Invalid, "cycle through the nodes");
}

#[test]
fn nodes_out_of_order_are_sorted() {
    let nodes = vec![node("Neg", &["t"], &["y"]), node("Relu", &["x"], &["t"])];
    assert!(import(&chain(nodes, &["1"], vec![])).is_ok());
}

#[test]
fn value_defined_twice() {
    let nodes = vec![node("Relu", &["x"], &["y"]), node("Neg", &["x"], &["y"])];
    fails_as(&chain(nodes, &["1"], vec![]), Fault::Invalid, "`y` is defined twice");
}

#[test]
fn value_never_defined() {
    let m = chain(vec![node("Add", &["x", "nowhere"], &["y"]), node("Add", &["x", "neither"], &["z"])], &["1"], vec![]);
    fails_as(&m, Fault::Invalid, "`nowhere` is not defined");
    fails_as(&m, Fault::Invalid, "`neither` is not defined");
}

#[test]
fn output_never_defined() {
    let mut m = relu();
    m.graph.as_mut().unwrap().output.push(value("ghost", &[]));
    fails_as(&m, Fault::Invalid, "output `ghost` is not defined");
}

#[test]
fn no_opset() {
    let mut m = relu();
    m.opset_import.clear();
    fails_as(&m, Fault::Invalid, "default operator set");
}

#[test]
fn opset_of_the_future() {
    let mut m = relu();
    m.opset_import = vec![opset("", 9999)];
    fails_as(&m, Fault::Unsupported, "newer than the newest supported");
}

#[test]
fn unknown_operators_are_all_listed() {
    let nodes = vec![
        in_domain(node("Frobnicate", &["x"], &["a"]), "acme"),
        in_domain(node("Frobnicate", &["a"], &["b"]), "acme"),
        node("NoSuchOp", &["b"], &["y"]),
    ];
    let mut m = chain(nodes, &["1"], vec![]);
    m.opset_import.push(opset("acme", 3));
    let e = import(&m).unwrap_err();
    assert_eq!(e.fault(), Fault::Unsupported);
    assert_eq!(e.problems.len(), 2, "{e}");
    assert_eq!((e.problems[0].node.as_str(), e.problems[0].op.as_str()), ("a, b", "Frobnicate, opset 3"));
    assert!(e.to_string().contains("`acme.Frobnicate`") && e.to_string().contains("`NoSuchOp`"), "{e}");
}

// Tensors.

#[test]
fn unknown_element_types() {
    for number in [77, 0, -1] {
        let t = TensorProto { data_type: Some(number), ..floats("w", &[1], &[1.0]) };
        fails_as(&adds(t), Fault::Invalid, "unknown element type");
    }
}

#[test]
fn bad_dims() {
    fails_as(&adds(floats("w", &[-5], &[])), Fault::Invalid, "negative dimension -5");
    fails_as(&adds(floats("w", &[1 << 32, (1 << 32) + 1], &[])), Fault::Invalid, "overflows");
    fails_as(&adds(floats("w", &[0, 1 << 62, 1 << 62], &[])), Fault::Invalid, "overflows");
    fails_as(&adds(floats("w", &[1 << 40], &[])), Fault::Invalid, "needs 4398046511104 bytes, has 0");
    fails_as(&adds(floats("w", &[1; 17], &[1.0])), Fault::Limit, "17 axes");
}

#[test]
fn payloads_that_do_not_fit() {
    for n in [7, 9] {
        fails_as(&adds(raw("w", DataType::Float, &[2], vec![0; n])), Fault::Invalid, &format!("needs 8 bytes, has {n}"));
    }
    let two = TensorProto { float_data: vec![1.0], ..floats("w", &[1], &[1.0]) };
    fails_as(&adds(two), Fault::Invalid, "ambiguous");
    let other = TensorProto { raw_data: None, int64_data: vec![1], ..floats("w", &[1], &[1.0]) };
    fails_as(&adds(other), Fault::Invalid, "field of another type");
    for n in [1, 3] {
        fails_as(&adds(raw("w", DataType::Int4, &[3], vec![0; n])), Fault::Invalid, "needs 2 bytes");
    }
}

#[test]
fn quantised_layers_whose_parts_do_not_fit() {
    let bytes = |name: &str, dims: &[i64]| raw(name, DataType::Uint8, dims, vec![1; dims.iter().product::<i64>() as usize]);
    let nbits = |k: i64, block: i64, codes: &[i64], scales: &[i64], scale: f32| {
        let mut n = in_domain(node("MatMulNBits", &["x", "w", "s"], &["y"]), "com.microsoft");
        for (name, v) in [("K", k), ("N", 4), ("bits", 4), ("block_size", block)] {
            n = with(n, int(name, v));
        }
        let scales = floats("s", scales, &vec![scale; scales.iter().product::<i64>() as usize]);
        let mut m = chain(vec![n], &["2", "40"], vec![bytes("w", codes), scales]);
        m.opset_import.push(opset("com.microsoft", 1));
        m
    };
    assert!(import(&nbits(40, 32, &[4, 2, 16], &[4, 2], 0.5)).is_ok());
    fails_as(&nbits(40, 24, &[4, 2, 12], &[4, 2], 0.5), Fault::Invalid, "blocks of 24");
    fails_as(&nbits(40, 32, &[4, 2, 15], &[4, 2], 0.5), Fault::Invalid, "needs 128 bytes");
    fails_as(&nbits(40, 32, &[4, 2, 16], &[7], 0.5), Fault::Invalid, "scales");
    // The sign is that of the largest element of a block.
    assert!(import(&nbits(40, 32, &[4, 2, 16], &[4, 2], -0.5)).is_ok());
    fails_as(&nbits(40, 32, &[4, 2, 16], &[4, 2], f32::NAN), Fault::Invalid, "must be finite");

    let dequantise = |scale: TensorProto, zero: TensorProto, block: i64| {
        let n = with(with(node("DequantizeLinear", &["w", "s", "z"], &["y"]), int("block_size", block)), int("axis", 0));
        let mut m = chain(vec![n], &["2"], vec![bytes("w", &[4, 4]), scale, zero]);
        m.opset_import = vec![opset("", 21)];
        m
    };
    let ones = |dims: &[i64]| floats("s", dims, &vec![1.0; dims.iter().product::<i64>() as usize]);
    assert!(import(&dequantise(ones(&[2, 4]), bytes("z", &[2, 4]), 2)).is_ok());
    fails_as(&dequantise(ones(&[3, 4]), bytes("z", &[3, 4]), 3), Fault::Invalid, "blocks of 3");
    fails_as(&dequantise(ones(&[3]), bytes("z", &[3]), 0), Fault::Invalid, "3 parameters for an axis of 4");
    let signed = raw("z", DataType::Int8, &[2, 4], vec![0; 8]);
    fails_as(&dequantise(ones(&[2, 4]), signed, 2), Fault::Invalid, "zero point of u8");

    let mut integer = chain(vec![node("MatMulInteger", &["w", "v", "", "z"], &["y"])], &["2"], vec![]);
    integer.graph.as_mut().unwrap().initializer = vec![bytes("w", &[4, 4]), bytes("v", &[4, 4]), bytes("z", &[3])];
    fails_as(&integer, Fault::Invalid, "3 zero points");
}

/// Scales that are no scales, and zero points of another type or number than their codes, by node.
#[test]
fn scales_and_zero_points_that_cannot_be() {
    let byte = |name: &str, t: DataType, dims: &[i64]| {
        let size = if t == DataType::Float { 4 } else { 1 };
        raw(name, t, dims, vec![3; dims.iter().product::<i64>() as usize * size])
    };
    let named = |op: &str, inputs: &[&str]| {
        let mut n = node(op, inputs, &["y"]);
        n.name = Some("layer.3/quantiser".into());
        n
    };
    let all = |scale: TensorProto, zero: DataType, zeros: &[i64]| {
        let zero = |name: &str| byte(name, zero, zeros);
        let codes = byte("w", DataType::Uint8, &[4, 4]);
        let one = floats("one", &[], &[1.0]);
        let byte_zero = byte("zero", DataType::Uint8, &[]);
        [
            chain(vec![named("QuantizeLinear", &["x", "s", "z"])], &["2", "4"], vec![scale.clone(), zero("z")]),
            chain(vec![named("DequantizeLinear", &["w", "s", "z"])], &["2", "4"], vec![codes.clone(), scale.clone(), zero("z")]),
            chain(
                vec![named("QLinearMatMul", &["w", "s", "z", "w", "one", "zero", "one", "zero"])],
                &["2", "4"],
                vec![codes, scale, zero("z"), one, byte_zero],
            ),
        ]
    };
    let refused = |m: &ModelProto, gist: &str| {
        let e = import(m).expect_err(gist);
        assert_eq!(e.fault(), Fault::Invalid, "{e}");
        let text = e.to_string();
        assert!(text.contains("layer.3/quantiser") && text.contains(gist), "{gist:?}, or the node, is not in: {text}");
    };
    for good in all(floats("s", &[], &[0.5]), DataType::Uint8, &[]) {
        assert!(import(&good).is_ok());
    }
    for scale in [0.0, -0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        all(floats("s", &[], &[scale]), DataType::Uint8, &[]).iter().for_each(|m| refused(m, "finite and positive"));
        // One bad one among good ones.
        all(floats("s", &[4], &[1.0, 1.0, scale, 1.0]), DataType::Uint8, &[4])
            .iter()
            .for_each(|m| refused(m, "finite and positive"));
    }
    for (i, m) in all(floats("s", &[3], &[1.0; 3]), DataType::Uint8, &[3]).iter().enumerate() {
        refused(m, if i < 2 { "3 parameters for an axis of 4" } else { "" });
    }
    all(floats("s", &[], &[0.5]), DataType::Float, &[]).iter().for_each(|m| {
        let e = import(m).expect_err("a zero point in floats");
        assert!(matches!(e.fault(), Fault::Invalid | Fault::Unsupported) && e.to_string().contains("layer.3/quantiser"), "{e}");
    });
    let [_, dequantise, product] = all(floats("s", &[], &[0.5]), DataType::Int8, &[]);
    refused(&dequantise, "zero point of u8");
    refused(&product, "zero point");
}

#[test]
fn sparse_index_out_of_range() {
    let sparse = |index: i64| {
        let values = Some(floats("w", &[1], &[1.0]));
        let mut m = adds(floats("unused", &[1], &[1.0]));
        let s = SparseTensorProto { values, indices: Some(int64s("", &[1], &[index])), dims: vec![4] };
        m.graph.as_mut().unwrap().sparse_initializer.push(s);
        m
    };
    assert!(import(&sparse(3)).is_ok());
    for index in [4, -1, i64::MAX] {
        fails_as(&sparse(index), Fault::Invalid, "out of range");
    }
}

// Work without end.

#[test]
fn constants_that_explode() {
    let start = Instant::now();
    // Left unfolded: only the type is known.
    let huge = int64s("s", &[1], &[1 << 38]);
    let m = chain(
        vec![node("ConstantOfShape", &["s"], &["c"]), node("ReduceSum", &["c"], &["r"]), node("Add", &["x", "r"], &["y"])],
        &["1"],
        vec![huge.clone()],
    );
    assert!(import(&m).is_ok());
    // Needed as a shape: a limit.
    let zero = int64s("zero", &[1], &[0]);
    let nodes = vec![node("Expand", &["zero", "s"], &["c"]), node("Reshape", &["x", "c"], &["y"])];
    fails_as(&chain(nodes, &["1"], vec![huge.clone(), zero.clone()]), Fault::Limit, "axes");
    let nodes =
        vec![node("Tile", &["zero", "s"], &["c"]), node("ReduceMax", &["c"], &["m"]), node("Reshape", &["x", "m"], &["y"])];
    fails_as(&chain(nodes, &["1"], vec![huge, zero]), Fault::Limit, "folding limit");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn loops_without_end() {
    let body = graph(
        vec![node("Identity", &["c"], &["d"]), node("Neg", &["v"], &["w"])],
        vec![value("i", &[]), value("c", &[]), value("v", &["1"])],
        &["d", "w"],
        vec![],
    );
    let n = with(node("Loop", &["n", "t", "x"], &["y"]), graph_attr("body", body));
    let weights = vec![int64s("n", &[], &[i64::MAX]), raw("t", DataType::Bool, &[], vec![1])];
    fails_as(&chain(vec![n], &["1"], weights), Fault::Limit, "limit of unrolling");
}

#[test]
fn long_chains_need_no_stack() {
    let n = 100_000;
    let nodes: Vec<NodeProto> = (0..n).map(|i| node("Add", &[&format!("v{i}"), "x"], &[&format!("v{}", i + 1)])).collect();
    let mut g = graph(nodes, vec![value("x", &["1"]), value("v0", &["1"])], &[&format!("v{n}")], vec![]);
    assert_eq!(import(&model(g.clone())).map(|m| m.main.node_count()), Ok(n));
    // The same of constants, folded on demand.
    g.input = vec![value("x0", &["4"])];
    g.initializer = vec![int64s("x", &[], &[0]), int64s("v0", &[1], &[4])];
    g.node.push(node("Reshape", &["x0", &format!("v{n}")], &["y"]));
    g.output = vec![value("y", &[])];
    assert!(import(&model(g)).is_ok());
}

// Operators that ask for nonsense.

#[test]
fn nonsense_of_operators() {
    let shape = |v: &[i64]| chain(vec![node("Reshape", &["x", "s"], &["y"])], &["4"], vec![int64s("s", &[v.len() as i64], v)]);
    fails_as(&shape(&[-1, -1]), Fault::Invalid, "at most one");
    fails_as(&shape(&[3]), Fault::Invalid, "elements");
    fails_as(&shape(&[-2]), Fault::Invalid, "negative");
    fails_as(&shape(&vec![1; 1_000_000]), Fault::Limit, "limit is 16");

    let split = with(node("Split", &["x", "s"], &["y", "z"]), int("axis", 0));
    fails_as(&chain(vec![split], &["4"], vec![int64s("s", &[2], &[5, -1])]), Fault::Invalid, "negative size");

    let slice = |step: i64| {
        let w = vec![
            int64s("a", &[1], &[i64::MAX]),
            int64s("b", &[1], &[i64::MIN]),
            int64s("c", &[1], &[0]),
            int64s("d", &[1], &[step]),
        ];
        chain(vec![node("Slice", &["x", "a", "b", "c", "d"], &["y"])], &["4"], w)
    };
    fails_as(&slice(0), Fault::Invalid, "must not be 0");
    for (step, size) in [(i64::MIN, 1), (-1, 4), (1, 0), (i64::MAX, 0)] {
        let m = import(&slice(step)).unwrap();
        assert_eq!(m.main.ty(m.main.results()[0].1).static_dims(), Some(vec![size]), "step {step}");
    }

    let concat = with(node("Concat", &["x", "x"], &["y"]), int("axis", 3));
    fails_as(&chain(vec![concat], &["4"], vec![]), Fault::Invalid, "axis 3");
    fails_as(&chain(vec![node("Gemm", &["x", "x"], &["y"])], &["4"], vec![]), Fault::Invalid, "matrices");
    fails_as(&chain(vec![node("Conv", &["x", "x"], &["y"])], &["4", "4"], vec![]), Fault::Invalid, "images");
    let gather = chain(vec![node("Gather", &["x", "i"], &["y"])], &["4"], vec![int64s("i", &[], &[-5])]);
    fails_as(&gather, Fault::Invalid, "out of range");

    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let m = chain(vec![node("QuantizeLinear", &["x", "s"], &["y"])], &["4"], vec![floats("s", &[], &[bad])]);
        fails_as(&m, Fault::Invalid, "finite and positive");
    }

    let attention = |h: i64, g: i64| {
        let n = with(with(node("Attention", &["x", "x", "x"], &["y"]), int("q_num_heads", h)), int("kv_num_heads", g));
        let mut m = chain(vec![n], &["2", "3", "8"], vec![]);
        m.opset_import = vec![opset("", 23)];
        m
    };
    assert!(import(&attention(4, 4)).is_ok());
    for (h, g) in [(0, 0), (3, 3), (2, 4)] {
        fails_as(&attention(h, g), Fault::Invalid, "");
    }
}

#[test]
fn names_are_escaped_in_messages() {
    let evil = "a\x1b[31m\n\u{202e}b";
    let m = chain(vec![node("Add", &["x", evil], &["y"])], &["1"], vec![]);
    let text = import(&m).unwrap_err().to_string();
    assert!(!text.contains('\x1b') && !text.contains('\n') && !text.contains('\u{202e}'), "{text:?}");
    let long = "n".repeat(1 << 20);
    let text = import(&chain(vec![node("Add", &["x", &long], &["y"])], &["1"], vec![])).unwrap_err().to_string();
    assert!(text.len() < 1000);
}

#[test]
fn symbols_keep_apart() {
    let m = model(graph(
        vec![node("Relu", &["a"], &["y"]), node("Relu", &["b"], &["z"])],
        vec![value("a", &["n/2"]), value("b", &["n_2"])],
        &["y", "z"],
        vec![],
    ));
    let m = import(&m).unwrap();
    assert_eq!(m.symbols.len(), 2);
}

#[test]
fn tensor_files() {
    assert!(onnx::tensor_from_pb(prost::Message::encode_to_vec(&floats("x", &[2], &[1.0, 2.0]))).is_ok());
    assert_eq!(onnx::tensor_from_pb(noise(1000)).map_err(|p| p.fault), Err(Fault::Invalid));
}
