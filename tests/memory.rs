//! What a run keeps resident: the packed weights, and what the memory plan says.

use std::process::Command;
use std::sync::Arc;

use transc::runtime::{DType, Model, Session, SessionOptions, Tensor};

/// Rows of the input, each of [`WIDTH`] floats.
const ROWS: usize = 4096;
const WIDTH: usize = 1024;

/// In the environment of [`child`]: the artefact, and how many sessions run it.
const ARTEFACT: &str = "TRANSC_MEMORY_ARTEFACT";
const SESSIONS: &str = "TRANSC_MEMORY_SESSIONS";

/// Two products with a function between them; the result is small, so nearly all memory is weights and plan.
fn model() -> String {
    format!(
        "module \"wide\" {{\n dim N in 1..8192\n const @c0 \"v\": f32[{WIDTH},{WIDTH}] = random(3)\n const @c1 \"w\": f32[{WIDTH},{WIDTH}] = random(4)\n func @\"main\"(%0 \"x\": f32[N,{WIDTH}]) {{\n%1: f32[{WIDTH},{WIDTH}] = constant() {{id = @c0}}\n%2: f32[{WIDTH},{WIDTH}] = constant() {{id = @c1}}\n%3: f32[N,{WIDTH}] = contract(%0, %1) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}}\n%4: f32[N,{WIDTH}] = map(%3) {{body = {{1: i0 = tanh a0; i0}}}}\n%5: f32[N,{WIDTH}] = contract(%4, %2) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}}\n%6: f32[{WIDTH}] = reduce(%5) {{kind = max, axes = [0], keep = false}}\nreturn %6 \"y\"\n}}\n}}\n"
    )
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("it is there on Linux");
    let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("the line is there");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

/// Not a test by itself: the process whose memory is measured.
#[test]
fn child() {
    let Some(artefact) = std::env::var_os(ARTEFACT) else { return };
    let sessions: usize = std::env::var(SESSIONS).expect("a number").parse().expect("a number");
    let bytes: Vec<u8> = (0..ROWS * WIDTH).flat_map(|i| ((i % 13) as f32 - 6.0).to_le_bytes()).collect();
    let x = Tensor::from_bytes(DType::F32, &[ROWS, WIDTH], &bytes).expect("whole");
    drop(bytes);
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is set back");
    let before = status("VmRSS");
    let model = Arc::new(Model::open(artefact).expect("it opens"));
    let options = SessionOptions { threads: 1, ..Default::default() };
    let sessions: Vec<Session> = (0..sessions).map(|_| Session::new(Arc::clone(&model), options).expect("a session")).collect();
    for session in &sessions {
        session.run(&[("x", x.view())]).expect("it runs");
    }
    let sizes = sessions[0].bind(&[("N", ROWS as i64)]).expect("a size");
    let weights: u64 = model.plan().consts.iter().map(|c| c.len_bytes).sum();
    println!("memory: {} {weights} {}", status("VmHWM").saturating_sub(before), sizes.plan_bytes + sizes.scratch_bytes);
}

/// Peak beyond what the process had before, weights, and memory of the plan with scratch, of that many sessions of the model.
fn measured(artefact: &std::path::Path, sessions: usize) -> [usize; 3] {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["memory::child", "--exact", "--nocapture"]).env(ARTEFACT, artefact).env(SESSIONS, sessions.to_string());
    let out = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let (_, numbers) = text.split_once("memory: ").unwrap_or_else(|| panic!("{text}"));
    let mut numbers = numbers.split_whitespace().map(|n| n.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().expect("three numbers"))
}

#[test]
fn a_run_needs_its_weights_and_its_plan() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (source, artefact) = (dir.path().join("wide.tir"), dir.path().join("wide.tsc"));
    std::fs::write(&source, model()).expect("written");
    let paths = [&source, &artefact].map(|p| p.to_str().expect("utf-8"));
    let run = crate::kit::transc(&["compile", paths[0], "-q", "-o", paths[1]]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let allowed = |weights: usize, plan: usize| weights + plan + plan / 5;
    let [peak, weights, plan] = measured(&artefact, 1);
    assert!(weights >= 2 * WIDTH * WIDTH * 4 && plan >= 2 * ROWS * WIDTH * 4, "{weights} and {plan} bytes");
    assert!(peak <= allowed(weights, plan), "{peak} bytes at the peak, {weights} of weights, {plan} of the plan");
    // Nothing that is there twice would go unnoticed.
    let [peak, weights, plan] = measured(&artefact, 2);
    assert!(peak > allowed(weights, plan), "{peak} bytes at the peak of two sessions, {weights} of weights, {plan} of the plan");
}
