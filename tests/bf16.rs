//! `--dtype bf16`: what it costs in accuracy, and what the command line says of it.

use transc::Compiler;
use transc::ir::interp::{self, Tensor as Plain};
use transc::passes::Precision;

use crate::{kit, ways};

/// Relative error in the mean square and cosine of two tensors.
fn apart(got: &Plain, want: &Plain) -> (f64, f64) {
    let (mut aa, mut bb, mut ab, mut d) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..want.count() {
        let (a, b) = (want.get_f64(i), got.get_f64(i));
        // Masked places are -inf in both.
        if a == b && !a.is_finite() {
            continue;
        }
        (aa, bb, ab, d) = (aa + a * a, bb + b * b, ab + a * b, d + (a - b) * (a - b));
    }
    if aa == 0.0 { (bb.sqrt(), 1.0) } else { ((d / aa).sqrt(), ab / (aa * bb).sqrt()) }
}

/// What takes an output further is the rounding that was asked for: the reference interpreter, which sees all of it but that of the weights inside
/// attention, is as far away.
fn rounding_alone(lossy: &transc::Compiled, inputs: &[(String, Plain)], name: &str, (got, exact): (&Plain, &Plain)) {
    let values = interp::eval_module(&lossy.module, &ways::inputs(&lossy.module, inputs)).expect("it is evaluated");
    let (_, rounded) = lossy.module.main.results().iter().zip(&values).find(|((n, _), _)| n == name).expect("an output");
    let [error, asked_for] = [got, rounded].map(|x| apart(x, exact).0);
    println!("{name}: the interpreter gives {asked_for:.2e}");
    assert!(error <= 1.25 * asked_for, "{name}: {error:e}, the interpreter {asked_for:e}");
}

#[test]
fn models_of_the_zoo_stay_close() {
    let (mut rounded, mut further) = (0, Vec::new());
    for dir in kit::zoo_in(&["tests/data/zoo"]) {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        // What is refused is no matter of element types.
        let Ok(module) = transc::load(kit::model_in(&dir)) else { continue };
        let inputs = kit::npz(&dir.join("inputs.npz"));
        let (mut cx, exact) =
            (transc::passes::PassCx::default(), Compiler::new().opt_level(0).compile(&module).expect("it compiles"));
        let compiler = Compiler::new().opt_level(0).precision(Precision::Bf16);
        let lossy = compiler.compile_with(&module, &mut cx, &mut |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(cx.ledger.len(), lossy.code().plan().ledger.len(), "{name}: the ledger travels");
        if cx.ledger.is_empty() {
            continue;
        }
        rounded += 1;
        let outputs = |c: &transc::Compiled| kit::run(&c.session(2).expect("a session"), &inputs).expect("it runs");
        for ((name_of, got), (_, want)) in outputs(&lossy).iter().zip(&outputs(&exact)) {
            if want.dtype.is_float() {
                let (error, cosine) = apart(got, want);
                println!("{name} {name_of}: relative error {error:.2e}, cosine {cosine:.6}");
                if error > 1e-2 || cosine < 0.9999 {
                    // Classes of tiny models, whose few numbers nearly cancel, and experts that are chosen by a hair.
                    further.push(format!("{name} {name_of}"));
                    rounding_alone(&lossy, &inputs, name_of, (got, want));
                }
            }
        }
    }
    assert!(rounded >= 10, "only {rounded} models have something to round");
    assert!(further.len() * 10 <= rounded, "{further:?} are further away than 1e-2");
}

#[test]
fn the_command_line_rounds_where_it_is_asked_to() {
    let dir = kit::root().join("examples/digits-vit");
    let at = |name: &str| dir.join(name).display().to_string();
    let (model, inputs) = (at("model.onnx"), at("heldout.npz"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let so = file("digits.so");
    let out = kit::transc(&["compile", &model, "-q", "-o", &so, "--json", "--dtype", "bf16"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let ledger = summary["ledger"].as_array().expect("a ledger");
    assert!(!ledger.is_empty() && ledger.iter().all(|l| l["codec"] == "bf16"), "{ledger:?}");
    // The interpreter takes the same steps.
    let golden = file("interpreted.npz");
    let run = |args: &[&str]| {
        let out = kit::transc(args);
        assert!(
            out.status.success(),
            "{args:?}: {} {}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    };
    let few = file("few.npz");
    let arrays = kit::rows(&kit::npz(&dir.join("heldout.npz")), 0..4);
    let bytes = transc_frontend::npz::write(arrays.iter().map(|(n, t)| (n.as_str(), t))).expect("arrays");
    std::fs::write(&few, bytes).expect("inputs");
    run(&["run", &model, "-q", "-i", &few, "--dtype", "bf16", "--interpret", "--output-npz", &golden]);
    run(&["run", &so, "-q", "-i", &few, "--expect", &golden, "--rtol", "1e-2", "--atol", "2e-2"]);
    run(&["run", &model, "-q", "-i", &few, "--dtype", "f32"]);
    let refused = |args: &[&str], code: &str| {
        let out = kit::transc(args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(4) && text.contains(code), "{args:?}: {text}");
    };
    for codes in [&["--int8", "dynamic"][..], &["--llm-int8", "6.0"], &["--w8"], &["--w4", "g32"]] {
        refused(&[&["compile", &model, "-q", "-o", &so, "--dtype", "bf16"][..], codes].concat(), "T0529");
    }
    refused(&["compile", &model, "-q", "-o", &so, "--dtype", "f16"], "T0528");
    refused(&["run", &so, "-q", "-i", &inputs, "--dtype", "bf16"], "T0511");
}
