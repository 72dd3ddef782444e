//! Operators over axes of symbolic extent: one import is right for every size, or says for which sizes it is made.

#[path = "common/build.rs"]
mod build;

use build::*;
use transc_frontend::onnx::import_bytes;
use transc_frontend::onnx::proto::ModelProto;
use transc_frontend::{FrontendError, ImportOptions};
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
