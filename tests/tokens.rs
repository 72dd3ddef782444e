//! Token merging from end to end.

use transc::ir::diag::Diagnose as _;
use transc::ir::interp::{self, Tensor as Plain};
use transc::passes::{MergeSpec, PassCx, pipeline, run};
use transc::{Compiler, Tensor};

use crate::kit;

fn spec(text: &str) -> MergeSpec {
    text.parse().expect("a codec")
}

fn digits() -> transc::ir::Module {
    transc::load(kit::root().join("examples/digits-vit/model.onnx")).expect("the example")
}

fn heldout() -> (Tensor, Vec<i64>) {
    let file = kit::root().join("examples/digits-vit/heldout.npz");
    let all = kit::npz(&file);
    let find = |name: &str| &all.iter().find(|(n, _)| n == name).expect("an array").1;
    let (x, labels) = (find("pixel_values"), find("labels"));
    let x = Tensor::from_bytes(transc::runtime::DType::F32, &x.dims, &x.data).expect("f32");
    (x, (0..labels.count()).map(|i| labels.get_i64(i)).collect())
}

/// Images that are read right, of the 400.
fn right(session: &transc::Session, x: &Tensor, labels: &[i64]) -> usize {
    let out = session.run(&[("pixel_values", x.view())]).expect("runs");
    let logits = out[0].1.as_slice::<f32>().expect("f32");
    let best = |row: &[f32]| (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as i64;
    logits.chunks(10).zip(labels).filter(|(row, label)| best(row) == **label).count()
}

#[test]
fn digits_are_still_read_on_fewer_tokens() {
    let (module, (x, labels)) = (digits(), heldout());
    let macs = |m: &transc::ir::Module| transc::passes::macs_of(&m.main).eval(&|_| Some(1)).expect("a number") as f64;
    let dense = Compiler::new().compile(&module).expect("compiles");
    let (all, before) = (right(&dense.session(2).expect("loads"), &x, &labels), macs(&dense.module));
    for (r, most_macs) in [(2, 0.93), (4, 0.84), (8, 0.67)] {
        let merged = Compiler::new().merge(spec(&format!("tome:r={r}"))).compile(&module).expect("compiles");
        let share = macs(&merged.module) / before;
        assert!(share < most_macs, "r={r} leaves {share:.3} of the multiply-accumulates");
        let text = merged.module.to_string();
        assert!(!text.contains("token_unmerge"), "no un-merge is left");
        let sessions = [1, 2].map(|t| merged.session(t).expect("loads"));
        let got = right(&sessions[0], &x, &labels);
        assert!(got + 2 >= all, "r={r}: {got} of 400 are right, {all} without merging");
        let outputs = sessions.each_ref().map(|s| s.run(&[("pixel_values", x.view())]).expect("runs"));
        assert_eq!(outputs[0][0].1.bytes(), outputs[1][0].1.bytes(), "r={r}: the same bits for any number of threads");
    }
}

#[test]
fn nothing_to_merge_changes_no_byte() {
    let (module, dir) = (digits(), tempfile::tempdir().expect("a folder"));
    let bytes = |compiler: Compiler, name: &str| {
        let path = dir.path().join(name);
        compiler.compile(&module).expect("compiles").write_tsc(&path).expect("writes");
        std::fs::read(path).expect("the artefact")
    };
    assert_eq!(bytes(Compiler::new(), "a.tsc"), bytes(Compiler::new().merge(spec("tome:r=0")), "b.tsc"));
}

/// The module after `merge-tokens`.
fn merged(module: &transc::ir::Module, text: &str) -> transc::ir::Module {
    let (mut m, mut cx) = (module.clone(), PassCx::default());
    cx.merge = Some(spec(text));
    cx.verify_each = true;
    run(&mut m, &pipeline::until("merge-tokens"), &mut cx).expect("merges");
    m
}

/// Tokens that are equal lose nothing by becoming one: attention weighs a group by its size.
#[test]
fn equal_tokens_merge_without_loss() {
    let text = std::fs::read_to_string(kit::root().join("tests/passes/merge-tokens/class-token.tir")).expect("a case");
    let module = transc::ir::text::parse_module(&text).expect("parses");
    let value = |i: usize| (((i * 7919 + 13) % 2003) as f64 / 1001.5 - 1.0) as f32;
    // Token 0 is the class token; 1 = 2, 3 = 4, 5 = 6 = 7.
    let kinds = [0usize, 1, 1, 2, 2, 3, 3, 3];
    let x: Vec<f32> = kinds.iter().flat_map(|k| (0..4).map(move |c| value((k + 2) * (k + c * c + 1)))).collect();
    let x = [Plain::from_f32(&[1, 8, 4], &x)];
    let want = interp::eval_module(&module, &x).expect("evaluates")[0].to_f64();
    let difference = |text: &str| {
        let got = interp::eval_module(&merged(&module, text), &x).expect("evaluates")[0].to_f64();
        want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d.is_nan() { d } else { m.max(d) })
    };
    assert!(difference("tome:r=3") < 1e-5, "three pairs of equal tokens: {}", difference("tome:r=3"));
    // Tokens that differ do lose something.
    let mut other = x[0].to_f64();
    other[4] -= 3.0;
    let other = [Plain::from_f64(x[0].dtype, &x[0].dims, &other).expect("small")];
    let [a, b] = [&module, &merged(&module, "tome:r=3")].map(|m| interp::eval_module(m, &other).expect("evaluates")[0].to_f64());
    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off > 1e-4, "tokens that differ merge with a loss, here {off}");
}

#[test]
fn the_ledger_says_what_was_done_and_how_far_it_is_off() {
    let (x, _) = heldout();
    let compiler = Compiler::new().merge(spec("tome:r=4")).calibration(vec![("pixel_values".into(), x)]);
    let compiled = compiler.compile(&digits()).expect("compiles");
    let ledger = &compiled.code().plan().ledger;
    assert!(ledger.len() >= 5, "a line per block");
    assert_eq!((ledger[0].codec.as_str(), ledger[0].parameters.as_str()), ("tome", "r=4 protect=1 tokens 65 -> 61"));
    assert!(ledger.iter().all(|l| l.error.is_some_and(|e| e > 0.0 && e < 0.05)), "{ledger:?}");
}

fn refused(module: &transc::ir::Module, text: &str) -> &'static str {
    match Compiler::new().merge(spec(text)).compile(module) {
        Ok(_) => "nothing",
        Err(e) => {
            let all = e.diagnostics();
            assert!(!all[0].help.is_empty(), "{e} has help");
            all[0].code
        }
    }
}

#[test]
fn merges_that_cannot_be_done_are_refused_with_a_reason() {
    assert_eq!(refused(&digits(), "tome:r=65"), "T0512");
    assert_eq!(refused(&digits(), "tome:r=1000000"), "T0512");
    let case = |name: &str| {
        let text = std::fs::read_to_string(kit::root().join(name)).expect("a case");
        transc::ir::text::parse_module(&text).expect("parses")
    };
    assert_eq!(refused(&case("tests/passes/fuse/linear-gelu-residual.tir"), "tome:r=2"), "T0513");
    assert_eq!(refused(&case("tests/passes/fuse/attention-views.tir"), "tome:r=2"), "T0513");
    let model = kit::root().join("examples/digits-vit/model.onnx").display().to_string();
    for bad in ["tomato:r=2", "tome", "tome:r=x", "tome:r=65"] {
        let out = kit::transc(&["compile", &model, "-q", "-o", "/dev/null/x.so", "--merge", bad]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(4), "{bad}: {text}");
        assert!(text.contains("T051") && text.contains("help"), "{text}");
    }
}
