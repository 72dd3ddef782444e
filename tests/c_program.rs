//! The C program of `examples/c`: a compiled model and its header are all that it needs.

use std::process::Command;

use crate::kit;

/// What a compiled model may depend on: the C library, libm, libgcc_s, the loader.
const ALLOWED: &[&str] = &["linux-vdso.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

#[test]
fn a_c_program_links_the_model_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let example = kit::root().join("examples/digits-vit");
    let (model, so) = (example.join("model.onnx").display().to_string(), path("digits_vit.so"));
    let out = kit::transc(&["compile", &model, "-q", "-o", &so, "--dim", "batch=1"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let main = kit::root().join("examples/c/main.c").display().to_string();
    let args = ["-O2", "-Wall", "-Wextra", "-Werror", &main, "-o", &path("main"), "-I", &path(""), "-L", &path("")];
    let cc = Command::new("cc").args(args).args(["-l:digits_vit.so", "-Wl,-rpath,$ORIGIN"]).output().expect("a C compiler");
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));

    let arrays = kit::npz(&example.join("heldout.npz"));
    let pixels = &arrays.iter().find(|(n, _)| n == "pixel_values").expect("images").1;
    std::fs::write(path("images.f32"), &pixels.data).expect("a file");
    let run = Command::new(path("main")).arg(path("images.f32")).output().expect("the program runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));

    let golden = kit::npz(&example.join("golden.npz"));
    let logits = &golden.iter().find(|(n, _)| n == "logits").expect("golden logits").1;
    let want: Vec<String> = kit::argmax(logits).iter().enumerate().map(|(i, c)| format!("image {i}: {c}")).collect();
    let got = String::from_utf8(run.stdout).expect("utf-8");
    assert_eq!(got.lines().collect::<Vec<_>>(), want);

    let ldd = Command::new("ldd").arg(&so).output().expect("ldd");
    for line in String::from_utf8_lossy(&ldd.stdout).lines() {
        let library = line.split_whitespace().next().unwrap_or("").rsplit('/').next().unwrap_or("");
        assert!(ALLOWED.contains(&library), "the model depends on {library}");
    }
}
