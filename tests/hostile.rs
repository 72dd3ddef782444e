//! Bad input through the command line: the exit class, never a panic, and nothing lost.

use std::path::Path;

use crate::kit;

fn exit_code(args: &[&str]) -> (i32, String) {
    let out = kit::transc(args);
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn digits() -> std::path::PathBuf {
    kit::root().join("examples/digits-vit/model.onnx")
}

fn text(p: &Path) -> &str {
    p.to_str().expect("utf-8")
}

#[test]
fn broken_files_are_invalid() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let whole = std::fs::read(digits()).expect("the example");
    let noise: Vec<u8> = (0u32..1 << 16).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut cases = vec![
        ("empty".to_string(), Vec::new()),
        ("noise".to_string(), noise),
        ("png".to_string(), b"\x89PNG\r\n\x1a\n0000".to_vec()),
        ("zip".to_string(), b"PK\x03\x04xxxxxxxx".to_vec()),
        ("pickle".to_string(), b"\x80\x04\x95xxxxxxx".to_vec()),
        ("gguf".to_string(), b"GGUF\x03\0\0\0".to_vec()),
        ("html".to_string(), b"<!DOCTYPE html><html></html>".to_vec()),
    ];
    for i in 1..20 {
        cases.push((format!("cut{i}"), whole[..whole.len() * i / 20].to_vec()));
    }
    for (name, bytes) in cases {
        let file = dir.path().join(format!("{name}.onnx"));
        std::fs::write(&file, bytes).expect("a file");
        let (code, message) = exit_code(&["inspect", text(&file)]);
        assert_eq!(code, 4, "{name}: {message}");
        assert!(message.contains("error["), "{name}: {message}");
        assert!(!message.contains("panicked"), "{name}: {message}");
    }
}

#[test]
fn a_failed_compile_leaves_the_old_output() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bad = dir.path().join("bad.onnx");
    std::fs::write(&bad, b"not a model").expect("a file");
    let out = dir.path().join("old.so");
    std::fs::write(&out, b"precious").expect("a file");
    let (code, _) = exit_code(&["compile", text(&bad), "-o", text(&out)]);
    assert_eq!(code, 4);
    assert_eq!(std::fs::read(&out).expect("still there"), b"precious");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 2, "no temporary file stays");
}

#[test]
fn an_output_may_not_replace_the_model_or_a_folder() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = dir.path().join("model.onnx");
    std::fs::copy(digits(), &model).expect("a copy");
    let link = dir.path().join("link.so");
    std::os::unix::fs::symlink(&model, &link).expect("a link");
    for out in [&model, &link, &dir.path().to_path_buf()] {
        let (code, message) = exit_code(&["compile", text(&model), "--emit", "so", "-o", text(out)]);
        assert_eq!(code, 7, "{}: {message}", out.display());
    }
    assert_eq!(std::fs::read(&model).expect("there"), std::fs::read(digits()).expect("there"));
}

#[test]
fn wrong_inputs_are_named() {
    use transc::runtime::{DType, Tensor};
    let session = kit::jit(&digits(), 1).expect("the example compiles");
    let wrong = [
        Tensor::zeros(DType::F32, &[1, 1, 32]).expect("memory"),
        Tensor::zeros(DType::F32, &[1, 1, 32, 31]).expect("memory"),
        Tensor::zeros(DType::I64, &[1, 1, 32, 32]).expect("memory"),
    ];
    for t in &wrong {
        let e = session.run(&[("pixel_values", t.view())]).expect_err("the wrong type").to_string();
        assert!(e.contains("pixel_values") && e.contains("f32[batch,1,32,32]"), "{e}");
    }
    let right = Tensor::zeros(DType::F32, &[1, 1, 32, 32]).expect("memory");
    assert!(session.run(&[("pixels", right.view())]).expect_err("no such input").to_string().contains("pixel_values"));
    assert!(session.run(&[]).expect_err("no input").to_string().contains("missing"));
    let misaligned: Vec<u8> = vec![0; 32 * 32 * 4 + 1];
    let view = transc::TensorView::new(DType::F32, &[1, 1, 32, 32], &misaligned[1..]).expect("the right length");
    let a = session.run(&[("pixel_values", view)]).expect("a misaligned input is copied");
    let b = session.run(&[("pixel_values", right.view())]).expect("it runs");
    assert_eq!(a[0].1.bytes(), b[0].1.bytes());
}

#[test]
fn damaged_artefacts_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tsc = dir.path().join("m.tsc");
    let (code, message) = exit_code(&["compile", text(&digits()), "-q", "-o", text(&tsc)]);
    assert_eq!(code, 0, "{message}");
    let whole = std::fs::read(&tsc).expect("an artefact");
    let inputs = kit::root().join("examples/digits-vit/heldout.npz");
    for at in [9, 200, whole.len() / 2, whole.len() - 100] {
        let mut broken = whole.clone();
        broken[at] ^= 1;
        std::fs::write(&tsc, &broken).expect("a file");
        let (code, message) = exit_code(&["run", text(&tsc), "-q", "-i", text(&inputs)]);
        assert_eq!(code, 4, "byte {at}: {message}");
    }
}
