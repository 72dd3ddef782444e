//! Operators over axes of symbolic extent: one import is right for every size, or says for which sizes it is made.

#[path = "common/build.rs"]
mod build;

use build::*;
use transc_frontend::onnx::import_bytes;
use transc_frontend::onnx::proto::attribute_proto::AttributeType;
use transc_frontend::onnx::proto::tensor_proto::DataType;
use transc_frontend::onnx::proto::{AttributeProto, ModelProto, ValueInfoProto, type_proto};
use transc_frontend::{Fixed, FrontendError, ImportOptions};
use transc_ir::Module;
use transc_ir::interp::{Tensor, eval_module};

fn import(m: &ModelProto) -> Result<Module, FrontendError> {
    import_bytes(bytes(m), None, &ImportOptions::default())
}

/// The result of a model with one input, `None` where it refuses the input's size.
fn run(m: &Module, dims: &[usize], x: &[f32]) -> Option<Vec<f64>> {
    Some(eval_module(m, &[Tensor::from_f32(dims, x)]).ok()?.remove(0).to_f64())
}

fn pool(kernel: i64, stride: i64) -> ModelProto {
    let pool = node("AveragePool", &["x"], &["y"]);
    let pool = with(with(with(pool, ints("kernel_shape", &[kernel])), ints("strides", &[stride])), int("ceil_mode", 1));
    chain(vec![pool], &["1", "1", "n"], vec![])
}

#[test]
fn the_last_window_of_a_pool_is_cut_short() {
    let m = import(&pool(2, 2)).expect("it is imported");
    assert_eq!(run(&m, &[1, 1, 4], &[1.0, 3.0, 5.0, 7.0]), Some(vec![2.0, 6.0]));
    assert_eq!(run(&m, &[1, 1, 5], &[1.0, 3.0, 5.0, 7.0, 9.0]), Some(vec![2.0, 6.0, 9.0]));
    let m = import(&pool(3, 2)).expect("it is imported");
    assert_eq!(run(&m, &[1, 1, 4], &[1.0, 3.0, 5.0, 7.0]), Some(vec![3.0, 6.0]));
    assert_eq!(run(&m, &[1, 1, 5], &[1.0, 3.0, 5.0, 7.0, 9.0]), Some(vec![3.0, 7.0]));
}

#[test]
fn windows_that_lie_apart_want_a_number() {
    let e = import(&pool(2, 3)).expect_err("a window may start behind the input or not");
    let [p] = e.problems.as_slice() else { panic!("{e}") };
    assert!(p.message.contains("windows lie apart") && p.help.contains("--dim"), "{e}");
}

/// Adds the sum of `table[start - n..]` to `x` of `n` elements.
fn from_the_middle(start: i64) -> ModelProto {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Sub", &["start", "n"], &["from"]),
        node("Slice", &["table", "from", "end"], &["rows"]),
        node("ReduceSum", &["rows"], &["sum"]),
        node("Add", &["x", "sum"], &["y"]),
    ];
    let weights = vec![
        int64s("start", &[1], &[start]),
        int64s("end", &[1], &[i64::MAX]),
        floats("table", &[4], &[1.0, 10.0, 100.0, 1000.0]),
    ];
    chain(nodes, &["n"], weights)
}

#[test]
fn a_slice_that_counts_down_from_the_length_is_refused_where_it_would_turn_negative() {
    let m = import(&from_the_middle(4)).expect("it is imported");
    assert_eq!(run(&m, &[1], &[0.0]), Some(vec![1000.0]));
    assert_eq!(run(&m, &[4], &[0.0; 4]), Some(vec![1111.0; 4]));
    // ONNX would count from the end here.
    assert_eq!(run(&m, &[5], &[0.0; 5]), None);
}

/// The sums of rows of four, of `x` padded to a multiple of four where that is asked for.
fn rows_of_four(padded: bool) -> ModelProto {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Neg", &["n"], &["minus"]),
        node("Mod", &["minus", "four"], &["pad"]),
        node("Concat", &["zero", "pad"], &["pads"]),
        node("Pad", &["x", "pads"], &["wide"]),
        node("Shape", &[if padded { "wide" } else { "x" }], &["length"]),
        node("Div", &["length", "four"], &["rows"]),
        node("Concat", &["rows", "four"], &["shape"]),
        node("Reshape", &[if padded { "wide" } else { "x" }, "shape"], &["blocks"]),
        node("ReduceSum", &["blocks", "one"], &["y"]),
    ];
    let nodes = nodes.into_iter().map(|n| match n.op_type() {
        "Concat" => with(n, int("axis", 0)),
        "ReduceSum" => with(n, int("keepdims", 0)),
        _ => n,
    });
    let weights = vec![int64s("zero", &[1], &[0]), int64s("one", &[1], &[1]), int64s("four", &[1], &[4])];
    chain(nodes.collect(), &["n"], weights)
}

#[test]
fn a_length_is_padded_to_a_multiple() {
    let m = import(&rows_of_four(true)).expect("it is imported");
    assert_eq!(run(&m, &[4], &[1.0; 4]), Some(vec![4.0]));
    assert_eq!(run(&m, &[6], &[1.0; 6]), Some(vec![4.0, 2.0]));
}

#[test]
fn a_length_that_must_be_a_multiple_is_one() {
    let m = import(&rows_of_four(false)).expect("it is imported");
    assert_eq!(run(&m, &[8], &[1.0; 8]), Some(vec![4.0, 4.0]));
    assert_eq!(run(&m, &[6], &[1.0; 6]), None);
}

/// As many texts for each image, as in detection of what a text names.
#[test]
fn a_batch_that_must_be_a_multiple_of_another_is_one() {
    let nodes = vec![
        node("Shape", &["x"], &["all"]),
        node("Shape", &["z"], &["images"]),
        node("Div", &["all", "images"], &["each"]),
        with(node("Concat", &["images", "each"], &["shape"]), int("axis", 0)),
        node("Reshape", &["x", "shape"], &["rows"]),
        with(with(node("ReduceSum", &["rows", "one"], &["sums"]), int("keepdims", 0)), int("noop_with_empty_axes", 0)),
        node("Add", &["sums", "z"], &["y"]),
    ];
    let inputs = vec![value("x", &["n"]), value("z", &["k"])];
    let m = import(&model(graph(nodes, inputs, &["y"], vec![int64s("one", &[1], &[1])]))).expect("it is imported");
    let add = |n: usize, k: usize| {
        let operands = [Tensor::from_f32(&[n], &vec![1.0; n]), Tensor::from_f32(&[k], &vec![0.5; k])];
        eval_module(&m, &operands).map(|mut r| r.remove(0).to_f64())
    };
    assert_eq!(add(6, 2).expect("three each"), [3.5, 3.5]);
    assert_eq!(add(3, 3).expect("one each"), [1.5; 3]);
    assert!(add(5, 2).is_err());
}

#[test]
fn sums_of_lengths_become_equal() {
    let join = |x: &str, y: &str| with(node("Concat", &[x, "w"], &[y]), int("axis", 0));
    let nodes = vec![join("x", "a"), join("z", "b"), node("Add", &["a", "b"], &["y"])];
    let inputs = vec![value("x", &["n"]), value("z", &["k"])];
    let m = import(&model(graph(nodes, inputs, &["y"], vec![floats("w", &[1], &[5.0])]))).expect("it is imported");
    let add = |n: usize| eval_module(&m, &[Tensor::from_f32(&[2], &[1.0; 2]), Tensor::from_f32(&[n], &vec![2.0; n])]);
    assert_eq!(add(2).expect("the lengths are equal").remove(0).to_f64(), [3.0, 3.0, 10.0]);
    assert!(add(3).is_err());
}

/// A table of four rows, cut to the length of `x`, which is added to it: exporters leave it to the reader that the table is long enough.
#[test]
fn a_table_that_is_cut_to_a_length_is_long_enough() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Slice", &["table", "zero", "n"], &["rows"]),
        node("Add", &["x", "rows"], &["y"]),
    ];
    let weights = vec![int64s("zero", &[1], &[0]), floats("table", &[4], &[1.0, 2.0, 3.0, 4.0])];
    let m = import(&chain(nodes, &["n"], weights)).expect("it is imported");
    assert_eq!(m.symbols[0].max, 4);
    assert_eq!(run(&m, &[2], &[1.0; 2]), Some(vec![2.0, 3.0]));
    assert_eq!(run(&m, &[4], &[0.0; 4]), Some(vec![1.0, 2.0, 3.0, 4.0]));
    assert_eq!(run(&m, &[5], &[0.0; 5]), None);
}

/// A mask takes its batch from the ids, which are another input.
#[test]
fn a_batch_that_another_input_has_is_the_same() {
    let nodes = vec![
        node("Shape", &["ids"], &["sizes"]),
        node("Slice", &["sizes", "zero", "one"], &["batch"]),
        with(node("Concat", &["batch", "rest"], &["shape"]), int("axis", 0)),
        node("Reshape", &["mask", "shape"], &["y"]),
    ];
    let weights = vec![int64s("zero", &[1], &[0]), int64s("one", &[1], &[1]), int64s("rest", &[1], &[-1])];
    let inputs = vec![value("ids", &["b", "s"]), value("mask", &["c", "t"])];
    let m = import(&model(graph(nodes, inputs, &["y"], weights))).expect("it is imported");
    let y = |c: usize| eval_module(&m, &[Tensor::from_f32(&[2, 1], &[0.0; 2]), Tensor::from_f32(&[c, 3], &vec![1.0; 3 * c])]);
    assert_eq!(y(2).expect("the batches are equal").remove(0).dims, [2, 3]);
    assert!(y(4).is_err());
}

#[test]
fn a_range_may_start_between_whole_numbers() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Squeeze", &["n"], &["count"]),
        with(node("Cast", &["count"], &["end"]), int("to", 1)),
        node("Range", &["start", "end", "step"], &["y"]),
    ];
    let m =
        import(&chain(nodes, &["n"], vec![floats("start", &[], &[0.5]), floats("step", &[], &[1.0])])).expect("it is imported");
    assert_eq!(run(&m, &[3], &[0.0; 3]), Some(vec![0.5, 1.5, 2.5]));
}

#[test]
fn an_element_of_a_shape_is_a_number_beside_symbols() {
    // The side of a square of 9 patches, of a batch of any size.
    let nodes = vec![
        node("Shape", &["x"], &["all"]),
        node("Gather", &["all", "one"], &["patches"]),
        with(node("Cast", &["patches"], &["real"]), int("to", 1)),
        node("Pow", &["real", "half"], &["root"]),
        with(node("Cast", &["root"], &["side"]), int("to", 7)),
        with(node("Concat", &["minus", "side", "side"], &["shape"]), int("axis", 0)),
        node("Reshape", &["x", "shape"], &["y"]),
    ];
    let weights = vec![int64s("one", &[1], &[1]), int64s("minus", &[1], &[-1]), floats("half", &[], &[0.5])];
    let m = import(&chain(nodes, &["b", "9"], weights)).expect("it is imported");
    let y = eval_module(&m, &[Tensor::from_f32(&[2, 9], &[1.0; 18])]).expect("it runs").remove(0);
    assert_eq!(y.dims, [2, 3, 3]);
}

fn resize(dims: &[&str], mode: &str, coordinates: &str, scales: bool) -> ModelProto {
    let text = |name: &str, v: &str| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String.into()),
        s: Some(v.as_bytes().to_vec().into()),
        ..AttributeProto::default()
    };
    let n = node("Resize", &["x", "", "scales", if scales { "" } else { "sizes" }], &["y"]);
    let mut n = with(with(n, text("mode", mode)), text("coordinate_transformation_mode", coordinates));
    if coordinates == "asymmetric" {
        n = with(n, text("nearest_mode", "floor"));
    }
    if !scales {
        n.input[2] = String::new();
    }
    let weights = vec![floats("scales", &[3], &[1.0, 1.0, 1.5]), int64s("sizes", &[3], &[1, 1, 7])];
    chain(vec![n], dims, weights)
}

#[test]
fn resampling_symbolic_axes_is_resampling_them() {
    let x: Vec<f32> = (0..10).map(|i| ((i * i) % 7) as f32 - 2.0).collect();
    for mode in ["nearest", "linear", "cubic"] {
        for coordinates in ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric"] {
            for (scales, n) in [(true, 10), (true, 4), (false, 5), (false, 10)] {
                let symbolic = import(&resize(&["1", "1", "n"], mode, coordinates, scales));
                if scales && matches!(coordinates, "align_corners" | "half_pixel_symmetric") {
                    assert!(symbolic.is_err_and(|e| e.to_string().contains("rounds the size")));
                    continue;
                }
                let known = import(&resize(&["1", "1", &n.to_string()], mode, coordinates, scales)).expect("it is imported");
                let got = run(&symbolic.expect("it is imported"), &[1, 1, n], &x[..n]).expect("it runs");
                let want = run(&known, &[1, 1, n], &x[..n]).expect("it runs");
                assert_eq!(got.len(), want.len());
                let far = got.iter().zip(&want).any(|(g, w)| (g - w).abs() > 1e-5);
                assert!(!far, "{mode} {coordinates} {scales} {n}: {got:?} for {want:?}");
            }
        }
    }
}

/// Half of what three less than the length is: a length below three has none.
#[test]
fn what_is_divided_is_a_size() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Sub", &["n", "three"], &["less"]),
        node("Div", &["less", "two"], &["half"]),
        node("Slice", &["x", "zero", "half"], &["y"]),
    ];
    let weights = [("zero", 0), ("two", 2), ("three", 3)].map(|(name, v)| int64s(name, &[1], &[v]));
    let m = import(&chain(nodes, &["n"], weights.to_vec())).expect("it is imported");
    assert_eq!(run(&m, &[8], &[1.0; 8]), Some(vec![1.0; 2]));
    assert_eq!(run(&m, &[2], &[1.0; 2]), None);
}

/// What was computed for earlier tokens may be nothing.
#[test]
fn a_cache_may_be_empty() {
    let join = with(node("Concat", &["past", "x"], &["all"]), int("axis", -2));
    let nodes = vec![join, node("ReduceSum", &["all", "axis"], &["y"])];
    let inputs = vec![value("past", &["p", "2"]), value("x", &["n", "2"])];
    let m = import(&model(graph(nodes, inputs, &["y"], vec![int64s("axis", &[1], &[0])]))).expect("it is imported");
    assert_eq!([m.symbols[0].min, m.symbols[1].min], [0, 0]);
    let y = |p: usize| eval_module(&m, &[Tensor::from_f32(&[p, 2], &vec![1.0; 2 * p]), Tensor::from_f32(&[1, 2], &[1.0; 2])]);
    assert_eq!(y(0).expect("it runs").remove(0).to_f64(), [1.0, 1.0]);
    assert_eq!(y(3).expect("it runs").remove(0).to_f64(), [4.0, 4.0]);
}

fn condition(name: &str) -> ValueInfoProto {
    let mut v = value(name, &[]);
    if let Some(type_proto::Value::TensorType(t)) = v.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = Some(DataType::Bool.into());
    }
    v
}

/// One file for the first step and for the others, as exporters of decoders merge them.
#[test]
fn an_input_that_chooses_a_branch_is_fixed() {
    let branch =
        |op: &str, operands: &[&str]| graph(vec![with(node(op, operands, &["z"]), int("axis", 0))], vec![], &["z"], vec![]);
    let choice = with(node("If", &["first"], &["y"]), graph_attr("then_branch", branch("Flatten", &["x"])));
    let choice = with(choice, graph_attr("else_branch", branch("Concat", &["x", "x"])));
    let file = model(graph(vec![choice], vec![condition("first"), value("x", &["1", "n"])], &["y"], vec![]));
    let e = import(&file).expect_err("the branches differ");
    assert_eq!(e.problems[0].code, "T0302");
    let rows = |number: f64| {
        let fixed_inputs = vec![("first".to_owned(), Fixed::Numbers(vec![number]))];
        let m = import_bytes(bytes(&file), None, &ImportOptions { fixed_inputs, ..ImportOptions::default() })
            .expect("it is imported");
        eval_module(&m, &[Tensor::from_f32(&[1, 3], &[1.0; 3])]).expect("it runs").remove(0).dims[0]
    };
    assert_eq!([rows(1.0), rows(0.0)], [1, 2]);
    for (name, numbers) in [("first", vec![1.0, 0.0]), ("second", vec![1.0]), ("x", vec![1.0])] {
        let fixed_inputs = vec![(name.to_owned(), Fixed::Numbers(numbers))];
        let e = import_bytes(bytes(&file), None, &ImportOptions { fixed_inputs, ..ImportOptions::default() })
            .expect_err("it does not fit");
        assert_eq!(e.problems[0].code, "T0116", "{e}");
    }
}

/// A transform of an axis is the same whether its extent is known or not.
#[test]
fn transforms_of_symbolic_axes() {
    let x: Vec<f32> = (0..24).map(|i| ((i * i) % 7) as f32 - 2.0).collect();
    for (inverse, onesided) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for (parts, n) in [(1, 6), (2, 6), (2, 5)] {
            if onesided == 1 && inverse + 1 != parts {
                continue;
            }
            let dft = |n: &str, parts: i64| {
                let t = with(with(node("DFT", &["x"], &["y"]), int("axis", 1)), int("inverse", inverse));
                import(&chain(vec![with(t, int("onesided", onesided))], &["2", n, &parts.to_string()], vec![]))
                    .expect("it is imported")
            };
            let dims = [2, n, parts as usize];
            let values = &x[..dims.iter().product()];
            let got = run(&dft("n", parts), &dims, values).expect("it runs");
            let want = run(&dft(&n.to_string(), parts), &dims, values).expect("it runs");
            assert_eq!(got.len(), want.len());
            let far = got.iter().zip(&want).any(|(g, w)| (g - w).abs() > 1e-5);
            assert!(!far, "{inverse} {onesided} {parts} {n}: {got:?} for {want:?}");
        }
    }
}

/// A filter says how many channels there are.
#[test]
fn channels_are_those_of_the_filter() {
    let weights = vec![floats("w", &[2, 1, 1], &[1.0, 10.0])];
    let m = import(&chain(vec![node("ConvTranspose", &["x", "w"], &["y"])], &["1", "c", "n"], weights)).expect("it is imported");
    assert_eq!(run(&m, &[1, 2, 2], &[1.0, 2.0, 3.0, 4.0]), Some(vec![31.0, 42.0]));
    assert_eq!(run(&m, &[1, 1, 2], &[1.0, 2.0]), None);
}

/// In the branch for the first step nothing reads the cache.
#[test]
fn a_cache_that_is_not_read_may_be_empty() {
    let branch = |of: &str| graph(vec![node("Neg", &[of], &["z"])], vec![], &["z"], vec![]);
    let choice = with(node("If", &["use_cache"], &["y"]), graph_attr("then_branch", branch("past")));
    let choice = with(choice, graph_attr("else_branch", branch("x")));
    let inputs = vec![condition("use_cache"), value("past", &["k", "b", "2"]), value("x", &["n", "b", "2"])];
    let file = model(graph(vec![choice], inputs, &["y"], vec![]));
    let fixed_inputs = vec![("use_cache".to_owned(), Fixed::Numbers(vec![0.0]))];
    let m =
        import_bytes(bytes(&file), None, &ImportOptions { fixed_inputs, ..ImportOptions::default() }).expect("it is imported");
    let smallest: Vec<i64> = m.symbols.values().map(|r| r.min).collect();
    assert_eq!(smallest, [0, 1, 1]);
}

/// Frames of four, the last one padded: how many there are is rounded in reals.
#[test]
fn a_size_that_is_rounded_up_in_reals() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        with(node("Cast", &["n"], &["length"]), int("to", 1)),
        node("Div", &["length", "four"], &["quotient"]),
        node("Ceil", &["quotient"], &["up"]),
        with(node("Cast", &["up"], &["frames"]), int("to", 7)),
        with(node("Concat", &["frames", "size"], &["shape"]), int("axis", 0)),
        node("Mul", &["frames", "size"], &["wide"]),
        node("Sub", &["wide", "n"], &["missing"]),
        with(node("Concat", &["zero", "missing"], &["pads"]), int("axis", 0)),
        node("Pad", &["x", "pads"], &["padded"]),
        node("Reshape", &["padded", "shape"], &["rows"]),
        with(node("ReduceSum", &["rows", "one"], &["y"]), int("keepdims", 0)),
    ];
    let weights = [("zero", 0), ("one", 1), ("size", 4)].map(|(name, v)| int64s(name, &[1], &[v])).to_vec();
    let m = import(&chain(nodes, &["n"], [weights, vec![floats("four", &[], &[4.0])]].concat())).expect("it is imported");
    assert_eq!(run(&m, &[6], &[1.0; 6]), Some(vec![4.0, 2.0]));
    assert_eq!(run(&m, &[8], &[1.0; 8]), Some(vec![4.0, 4.0]));
}

/// Rows of four and a last one that is shorter by a number that was fixed when the model was exported.
#[test]
fn chunks_of_a_length_and_a_rest() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Div", &["n", "four"], &["rows"]),
        node("Mul", &["rows", "four"], &["whole"]),
        node("Slice", &["x", "zero", "whole"], &["front"]),
        node("Slice", &["x", "minus", "end"], &["back"]),
        with(node("Concat", &["front", "back"], &["both"]), int("axis", 0)),
        with(node("Concat", &["n", "minus"], &["shape"]), int("axis", 0)),
        node("Reshape", &["both", "shape"], &["y"]),
    ];
    let weights = [("zero", 0), ("minus", -1), ("four", 4), ("end", i64::MAX)].map(|(name, v)| int64s(name, &[1], &[v]));
    let m = import(&chain(nodes, &["n"], weights.to_vec())).expect("it is imported");
    let x: Vec<f32> = (0..9).map(|i| i as f32).collect();
    assert_eq!(run(&m, &[9], &x), Some(x.iter().map(|v| f64::from(*v)).collect()));
    assert_eq!(run(&m, &[8], &x[..8]), None);
}

/// The dims of a mask are those of the ids, although only their product says so.
#[test]
fn axes_in_one_order_are_the_same() {
    let nodes = vec![
        node("Shape", &["ids"], &["sizes"]),
        node("Mul", &["sizes", "heads"], &["wide"]),
        node("Reshape", &["mask", "wide"], &["y"]),
    ];
    let inputs = vec![value("ids", &["b", "s"]), value("mask", &["c", "1", "2", "t"])];
    let m = import(&model(graph(nodes, inputs, &["y"], vec![int64s("heads", &[2], &[2, 1])]))).expect("it is imported");
    let y = |c: usize, t: usize| {
        eval_module(&m, &[Tensor::from_f32(&[2, 3], &[0.0; 6]), Tensor::from_f32(&[c, 1, 2, t], &vec![1.0; 2 * c * t])])
    };
    assert!(y(2, 3).is_ok() && y(3, 2).is_err());
}

/// What was padded is cut off: an axis that needed no padding would be cut to nothing.
#[test]
fn a_slice_that_counts_from_the_end() {
    let nodes = vec![
        node("Shape", &["x"], &["n"]),
        node("Neg", &["n"], &["minus"]),
        node("Mod", &["minus", "four"], &["pad"]),
        node("Neg", &["pad"], &["end"]),
        node("Slice", &["x", "zero", "end"], &["y"]),
    ];
    let m = import(&chain(nodes, &["n"], vec![int64s("zero", &[1], &[0]), int64s("four", &[1], &[4])])).expect("it is imported");
    assert_eq!(run(&m, &[7], &[1.0; 7]).map(|y| y.len()), Some(6));
    assert_eq!(run(&m, &[8], &[1.0; 8]), None);
}

/// The sum of ones is how many there are.
#[test]
fn ones_are_counted() {
    let nodes = vec![
        node("Shape", &["x"], &["sizes"]),
        node("ConstantOfShape", &["sizes"], &["zeros"]),
        node("Less", &["zeros", "half"], &["hits"]),
        with(node("Cast", &["hits"], &["ones"]), int("to", 7)),
        with(node("ReduceSum", &["ones"], &["count"]), int("keepdims", 0)),
        node("Unsqueeze", &["count", "zero"], &["shape"]),
        node("Reshape", &["x", "shape"], &["y"]),
    ];
    let weights = vec![floats("half", &[], &[0.5]), int64s("zero", &[1], &[0])];
    let m = import(&chain(nodes, &["n", "2"], weights)).expect("it is imported");
    assert_eq!(run(&m, &[2, 2], &[1.0, 2.0, 3.0, 4.0]), Some(vec![1.0, 2.0, 3.0, 4.0]));
}

/// Places of what is not zero, where all is or nothing.
#[test]
fn places_in_a_tensor_of_one_number() {
    let places = |compare: &str| {
        let nodes = vec![
            node("Shape", &["x"], &["sizes"]),
            node("ConstantOfShape", &["sizes"], &["zeros"]),
            node(compare, &["zeros", "half"], &["hits"]),
            node("NonZero", &["hits"], &["columns"]),
            node("Transpose", &["columns"], &["index"]),
            node("GatherND", &["x", "index"], &["picked"]),
            node("ScatterND", &["x", "index", "picked"], &["z"]),
            with(node("Concat", &["picked", "picked"], &["y"]), int("axis", 0)),
        ];
        import(&chain(nodes, &["n", "2"], vec![floats("half", &[], &[0.5])])).expect("it is imported")
    };
    let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    assert_eq!(run(&places("Greater"), &[3, 2], &x), Some(vec![]));
    assert_eq!(run(&places("Less"), &[3, 2], &x).map(|y| y[..6].to_vec()), Some(x.map(f64::from).to_vec()));
}
