//! `transc bench`: its files, its figures, and the engines that it is compared with.

use std::path::{Path, PathBuf};

use crate::kit;

fn digits() -> (String, PathBuf) {
    let dir = kit::root().join("examples/digits-vit");
    (dir.join("model.onnx").display().to_string(), dir)
}

fn bench(more: &[&str]) -> std::process::Output {
    let (model, _) = digits();
    kit::transc(&[&["bench", &model, "-q", "-O0", "--iters", "5", "--warmup", "1"], more].concat())
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn profile_trace_and_report_show_every_launch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (trace, report) = (at("trace.json"), at("report.html"));
    let out = bench(&["--json", "--profile", "--trace", &trace, "--report", &report]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures = json(&out.stdout);
    let launches = figures["profile"].as_array().expect("rows");
    let macs: u64 = launches.iter().filter_map(|r| r["macs"].as_u64()).sum();
    let mut module = transc::load(digits().0).expect("the example imports");
    transc::passes::optimise(&mut module, &mut Default::default()).expect("it is optimised");
    let whole = transc::passes::macs_of(&module.main).eval(&|_| Some(1)).ok();
    assert_eq!(whole, Some(macs as i64), "nothing is lost between model and launches");
    let p50 = figures["p50_ms"].as_f64().expect("a time");
    let gflops = figures["gflops"].as_f64().expect("a rate");
    assert!((gflops * p50 / (2.0 * macs as f64 / 1e6) - 1.0).abs() < 1e-9);
    assert!(
        figures["peak_share"].as_f64().is_some_and(|s| s > 0.0)
            && figures["peak_gflops"]["f32"]["one_thread"].as_f64() > Some(0.0)
    );
    let trace = json(&std::fs::read(trace).expect("the trace"));
    assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(launches.len() + 1));
    let page = std::fs::read_to_string(report).expect("the page");
    for part in ["Latency", "Launches", "Roofline", "Memory plan", "Fusion coverage", "<td>attention</td>", "node_conv2d"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="), "the page stands alone");
}

#[test]
fn what_cannot_be_done_is_said_before_any_work() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = dir.path().display().to_string();
    let refused = |more: &[&str], code: i32, what: &str| {
        let out = bench(more);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && text.contains(what), "{more:?}: {:?} {text}", out.status.code());
    };
    refused(&["--report", &folder], 7, "T0924");
    refused(&["--trace", "/no/such/folder/trace.json"], 7, "T0924");
    refused(&["--against", "ort", "--python", "/no/such/python"], 7, "T0920");
    refused(&["--against", "ort", "--peer-model", "model.so"], 4, "T0923");
    refused(&["--against", "tvm"], 2, "tvm");
}

/// An interpreter that answers as the worker does, with a file as its outputs.
fn engine(dir: &Path, outputs: &Path, answer: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let script = format!(
        "#!/bin/sh\nout=$(printf '%s' \"$3\" | sed 's/.*\"outputs\":\"\\([^\"]*\\)\".*/\\1/')\ncp {} \"$out\"\necho '{{\"version\":\"9.1\"}}'\n\
         while read line; do echo '{answer}'; done\n",
        outputs.display()
    );
    let path = dir.join("python");
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

#[test]
fn engines_take_turns_and_their_outputs_are_compared() {
    let (dir, example) = (tempfile::tempdir().expect("a temporary folder"), digits().1);
    let (inputs, golden) = (example.join("heldout.npz"), example.join("golden.npz"));
    let given = inputs.display().to_string();
    let same = engine(dir.path(), &golden, r#"{"ns":2000000}"#);
    let out = bench(&["-i", &given, "--against", "ort,openvino", "--python", &same, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures = json(&out.stdout);
    for name in ["ort", "openvino"] {
        let peer = &figures["peers"][name];
        assert!(peer["p50_ms"].as_f64() == Some(2.0) && peer["version"] == "9.1", "{peer}");
        assert!(peer["max_rel_diff"].as_f64().is_some_and(|d| d < 1e-3), "{peer}");
    }
    let ratio = figures["ratio"].as_f64().expect("a ratio") * figures["p50_ms"].as_f64().expect("a time");
    assert!((ratio - 2.0).abs() < 1e-9);
    // Outputs of other names are other outputs.
    let other = engine(dir.path(), &inputs, r#"{"ns":2000000}"#);
    let out = bench(&["-i", &given, "--against", "ort", "--python", &other]);
    assert_eq!(out.status.code(), Some(5), "{}", String::from_utf8_lossy(&out.stderr));
    let broken = engine(dir.path(), &golden, r#"{"error":"out of luck"}"#);
    let out = bench(&["-i", &given, "--against", "ort", "--python", &broken]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(7) && text.contains("T0921") && text.contains("out of luck"), "{text}");
}

#[test]
fn the_machine_is_measured() {
    let out = kit::transc(&["doctor", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let d = json(&out.stdout);
    for kind in ["f32", "bf16", "int8"] {
        assert!(d["peak_gflops"][kind]["all_threads"].as_f64() > Some(0.0), "{kind}");
    }
    assert!(d["memory_gbytes"].as_f64() > Some(0.0) && d["handover_us"].is_number());
}
