//! The command line: what scripts rely on.

use crate::kit;

fn ok(args: &[&str]) -> String {
    let out = kit::transc(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("utf-8")
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(args)).expect("JSON on stdout")
}

fn digits() -> String {
    kit::root().join("examples/digits-vit/model.onnx").display().to_string()
}

#[test]
fn keys_that_scripts_rely_on() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let so = dir.path().join("digits.so").display().to_string();
    let compiled = json(&["compile", &digits(), "-q", "-o", &so, "--json"]);
    for key in ["schema_version", "phases_ms", "coverage", "macs_before", "macs_after", "artefact_bytes", "ledger"] {
        assert!(compiled.get(key).is_some(), "compile --json has no `{key}`");
    }
    assert!(dir.path().join("digits.h").exists(), "the C header stands beside the library");
    let inspected = json(&["inspect", &digits(), "--json"]);
    for key in ["schema_version", "inputs", "outputs", "dims", "ops", "unsupported", "params", "macs", "coverage", "ledger"] {
        assert!(inspected.get(key).is_some(), "inspect --json has no `{key}`");
    }
    let bench = json(&["bench", &so, "--iters", "3", "--warmup", "1", "--json"]);
    for key in ["schema_version", "p50_ms", "p90_ms", "p99_ms", "min_ms", "mean_ms", "iters", "threads", "dims"] {
        assert!(bench.get(key).is_some(), "bench --json has no `{key}`");
    }
}

#[test]
fn run_compares_and_exits_with_5() {
    let dir = kit::root().join("examples/digits-vit");
    let (inputs, golden) = (dir.join("heldout.npz").display().to_string(), dir.join("golden.npz").display().to_string());
    let text = ok(&["run", &digits(), "-q", "-i", &inputs, "--expect", &golden]);
    assert!(text.starts_with("ok   logits max abs"), "{text}");
    let out = kit::transc(&["run", &digits(), "-q", "-i", &inputs, "--expect", &golden, "--rtol", "0", "--atol", "0"]);
    assert_eq!(out.status.code(), Some(5));
}

#[test]
fn every_form_of_output_is_written() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let base = dir.path().join("m.so").display().to_string();
    ok(&["compile", &digits(), "-q", "-o", &base, "--emit", "so,tsc,obj,tir,loops,llvm-ir,asm,dot"]);
    for ext in ["so", "tsc", "o", "tir", "loops", "ll", "s", "dot"] {
        let file = dir.path().join(format!("m.{ext}"));
        assert!(std::fs::metadata(&file).is_ok_and(|m| m.len() > 0), "{}", file.display());
    }
    let tir = dir.path().join("m.tir");
    let text = std::fs::read_to_string(tir).expect("text");
    assert!(text.contains("fused"), "the last pass wraps everything into regions");
}

#[test]
fn usage_errors_are_2_and_codes_are_explained() {
    assert_eq!(kit::transc(&["compile"]).status.code(), Some(2));
    assert_eq!(kit::transc(&["run", "x.onnx", "--dim", "batch"]).status.code(), Some(2));
    assert!(ok(&["explain", "T0212"]).contains("T0212"));
    assert_eq!(kit::transc(&["explain", "T9999"]).status.code(), Some(4));
    assert_eq!(kit::transc(&["inspect", "no-such-file.onnx"]).status.code(), Some(7));
}

#[test]
fn the_passes_and_the_machine_are_listed() {
    assert!(ok(&["passes"]).contains("fuse"));
    assert!(ok(&["doctor"]).contains("target"));
    assert!(ok(&["completions", "bash"]).contains("transc"));
    assert!(ok(&["opt", &digits(), "--until", "fuse"]).contains("fused"));
}

#[test]
fn an_interrupted_command_says_so() {
    use std::process::{Command, Stdio};
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        // Long enough to be interrupted: a benchmark that would run for minutes.
        let mut child = Command::new(env!("CARGO_BIN_EXE_transc"))
            .args(["bench", &digits(), "--duration", "600s"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        // The first phase is over once its line is there, and signals are caught before any phase.
        let mut stderr = std::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stderr, &mut line).expect("a line");
        let kill = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        assert_eq!(child.wait().expect("it ends").code(), Some(code), "{signal} after `{line}`");
    }
}

#[test]
fn rewrites_are_explained_checked_and_bisected() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let stderr = |args: &[&str]| {
        let out = kit::transc(args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (_, text) = stderr(&["opt", &digits(), "--explain", "--check"]);
    assert!(text.contains("steps") && text.contains("attention at") && text.contains("hold in f64"), "{text}");
    // With no fuel nothing changes; more fuel changes more, and the same fuel does the same.
    let (none, text) = stderr(&["opt", &digits(), "--fuel", "0"]);
    assert!(text.contains("0 of 0 spent, nothing was changed"), "{text}");
    let (some, text) = stderr(&["opt", &digits(), "--fuel", "9"]);
    assert!(text.contains("9 of 9 spent, the last change was pass `saturate`, rule `"), "{text}");
    assert!(none != some && some == stderr(&["opt", &digits(), "--fuel", "9"]).0);
    let json_file = at("egraph.json");
    ok(&["opt", &digits(), "--until", "fuse", "--dump-after", "all", "--dump-dir", &at("dump"), "--egraph-json", &json_file]);
    let dumped = std::fs::read_dir(dir.path().join("dump")).expect("the folder").count();
    assert_eq!(dumped, transc::passes::pipeline::default().len());
    let graph: serde_json::Value = serde_json::from_slice(&std::fs::read(json_file).expect("a file")).expect("JSON");
    let nodes = graph["nodes"].as_object().expect("nodes");
    let children = nodes.values().flat_map(|n| n["children"].as_array().expect("children"));
    assert!(children.into_iter().all(|c| nodes.contains_key(c.as_str().expect("a name"))));
    let classes: Vec<_> = nodes.values().map(|n| &n["eclass"]).collect();
    let roots = graph["root_eclasses"].as_array().expect("roots");
    assert!(!roots.is_empty() && roots.iter().all(|r| classes.contains(&r)));
}
