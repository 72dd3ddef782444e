//! Sequences of tensors, whose length is known when a model is imported.

#[path = "common/build.rs"]
mod build;

use build::*;
use transc_frontend::ImportOptions;
use transc_frontend::onnx::import_bytes;
use transc_frontend::onnx::proto::tensor_proto::DataType;
use transc_frontend::onnx::proto::{NodeProto, TensorProto};
use transc_ir::interp::{Tensor, eval_module};

fn number(name: &str, v: i64) -> TensorProto {
    int64s(name, &[], &[v])
}

/// The result of a chain of nodes from `0, 1, ..` of some dims, or the first problem.
fn result(nodes: Vec<NodeProto>, dims: &[&str], x: &[usize], weights: Vec<TensorProto>) -> Result<Tensor, String> {
    let m = import_bytes(bytes(&chain(nodes, dims, weights)), None, &ImportOptions::default())
        .map_err(|e| e.problems[0].message.clone())?;
    let values: Vec<f32> = (0..x.iter().product::<usize>()).map(|i| i as f32).collect();
    Ok(eval_module(&m, &[Tensor::from_f32(x, &values)]).map_err(|e| e.to_string())?.remove(0))
}

#[test]
fn parts_of_a_tensor() {
    let take = |i: i64, split: &[&str], weights: Vec<TensorProto>| {
        let split = with(node("SplitToSequence", split, &["s"]), int("axis", 1));
        let nodes = vec![with(split, int("keepdims", 0)), node("SequenceAt", &["s", "i"], &["y"])];
        result(nodes, &["b", "5"], &[1, 5], [weights, vec![number("i", i)]].concat()).map(|t| (t.dims.clone(), t.to_f64()))
    };
    assert_eq!(take(-2, &["x"], vec![]), Ok((vec![1], vec![3.0])));
    assert_eq!(take(2, &["x", "n"], vec![number("n", 2)]), Ok((vec![1, 1], vec![4.0])));
    assert_eq!(take(1, &["x", "n"], vec![int64s("n", &[2], &[1, 4])]), Ok((vec![1, 4], vec![1.0, 2.0, 3.0, 4.0])));
    assert_eq!(take(5, &["x"], vec![]), Err("has place 5 of a sequence of 5".into()));
}

#[test]
fn a_sequence_grows_and_shrinks() {
    let nodes = vec![
        node("SequenceEmpty", &[], &["none"]),
        node("SequenceInsert", &["none", "x"], &["one"]),
        node("Neg", &["x"], &["n"]),
        node("SequenceInsert", &["one", "n", "front"], &["two"]),
        node("SequenceConstruct", &["x", "n", "x"], &["three"]),
        node("SequenceErase", &["three", "front"], &["rest"]),
        with(with(node("ConcatFromSequence", &["two"], &["a"]), int("axis", 0)), int("new_axis", 1)),
        with(with(node("ConcatFromSequence", &["rest"], &["b"]), int("axis", -1)), int("new_axis", 1)),
        with(node("Transpose", &["b"], &["c"]), ints("perm", &[1, 0])),
        node("SequenceLength", &["rest"], &["length"]),
        with(node("Cast", &["length"], &["real"]), int("to", 1)),
        with(node("Concat", &["a", "c"], &["all"]), int("axis", 0)),
        node("Mul", &["all", "real"], &["y"]),
    ];
    let y = result(nodes, &["n"], &[2], vec![number("front", 0)]).expect("it is imported");
    assert_eq!((y.dims.clone(), y.to_f64()), (vec![4, 2], [0.0, -2.0, 0.0, 2.0, 0.0, -2.0, 0.0, 2.0].to_vec()));
}

/// A list that a loop fills.
#[test]
fn a_loop_carries_a_sequence() {
    let body = graph(
        vec![
            with(node("Cast", &["i"], &["real"]), int("to", 1)),
            node("Add", &["x", "real"], &["sum"]),
            node("SequenceInsert", &["s", "sum"], &["longer"]),
            node("Identity", &["go"], &["on"]),
        ],
        vec![value("i", &[]), value("go", &[]), value("s", &[])],
        &["on", "longer"],
        vec![],
    );
    let nodes = vec![
        node("SequenceEmpty", &[], &["none"]),
        with(node("Loop", &["trips", "yes", "none"], &["all"]), graph_attr("body", body)),
        with(node("ConcatFromSequence", &["all"], &["y"]), int("axis", 0)),
    ];
    let yes = raw("yes", DataType::Bool, &[], vec![1]);
    let y = result(nodes, &["1"], &[1], vec![number("trips", 3), yes]).expect("it is imported");
    assert_eq!(y.to_f64(), [0.0, 1.0, 2.0]);
}

#[test]
fn what_is_no_tensor_is_not_taken_for_one() {
    let made = || node("SequenceConstruct", &["x", "x"], &["s"]);
    let e = |nodes: Vec<NodeProto>| result(nodes, &["n"], &[2], vec![number("i", 0)]).expect_err("it is refused");
    assert_eq!(e(vec![made(), node("Neg", &["s"], &["y"])]), "takes tensors, but is given a sequence");
    assert_eq!(e(vec![node("SequenceAt", &["x", "i"], &["y"])]), "takes a sequence, but is given a tensor");
    assert_eq!(
        e(vec![node("SequenceConstruct", &["x", "x"], &["y"])]),
        "the output `y` is a sequence; only tensors are supported"
    );
    let parts = e(vec![node("SplitToSequence", &["x"], &["s"]), node("SequenceAt", &["s", "i"], &["y"])]);
    assert!(parts.contains("whose number is not known"), "{parts}");
}
