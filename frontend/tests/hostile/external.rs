//! Data in files of their own: what a model may name, and what it gets to see.

use std::path::Path;

use transc_frontend::onnx::import_model;
use transc_frontend::{FrontendError, ImportOptions};
use transc_ir::Module;
use transc_ir::diag::Fault;

use crate::build::*;
use crate::fails;

fn load_with(dir: &Path, entries: &[(&str, &str)]) -> Result<Module, FrontendError> {
    import_model(&adds(external("w", &[2], entries)), Some(dir), &ImportOptions::default())
}

/// A folder with `model/w.bin` (16 bytes) and `secret.bin` beside the model's folder.
fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("w.bin"), [1u8; 16]).unwrap();
    std::fs::write(root.path().join("secret.bin"), [2u8; 16]).unwrap();
    (root, dir)
}

#[test]
fn inside_of_the_folder() {
    let (_root, dir) = folder();
    let m = load_with(&dir, &[("location", "w.bin"), ("offset", "8"), ("length", "8")]).unwrap();
    assert!(m.consts.iter().any(|(_, name, data)| name == "w" && data.bytes() == [1; 8]));
    assert!(load_with(&dir, &[("location", "./w.bin"), ("length", "8"), ("checksum", "x")]).is_ok());
}

#[test]
fn paths_that_leave_the_folder() {
    let (root, dir) = folder();
    let absolute = root.path().join("secret.bin");
    fails(load_with(&dir, &[("location", absolute.to_str().unwrap())]), Fault::Invalid, "must be relative");
    for (location, gist) in [
        ("../secret.bin", "leaves"),
        ("x/../../secret.bin", "leaves"),
        ("%2e%2e/secret.bin", "leaves"),
        ("..\\secret.bin", "not a path"),
        ("w.bin\0.txt", "not a path"),
        ("*/_ORT_MEM_ADDR_/*", "not a path"),
        ("", "not a path"),
    ] {
        fails(load_with(&dir, &[("location", location)]), Fault::Invalid, gist);
    }
    fails(load_with(&dir, &[("location", "missing.bin")]), Fault::Environment, "cannot read");
    fails(
        import_model(&adds(external("w", &[2], &[("location", "w.bin")])), None, &ImportOptions::default()),
        Fault::Environment,
        "no directory",
    );
}

#[cfg(unix)]
#[test]
fn links() {
    let (root, dir) = folder();
    std::os::unix::fs::symlink(root.path().join("secret.bin"), dir.join("link.bin")).unwrap();
    fails(load_with(&dir, &[("location", "link.bin"), ("length", "8")]), Fault::Invalid, "outside");
    std::fs::hard_link(dir.join("w.bin"), dir.join("hard.bin")).unwrap();
    assert!(load_with(&dir, &[("location", "hard.bin"), ("length", "8")]).is_ok());
    fails(load_with(&dir, &[("location", ".")]), Fault::Invalid, "not a regular file");
    let pipe = std::process::Command::new("mkfifo").arg(dir.join("pipe")).status();
    if pipe.is_ok_and(|s| s.success()) {
        fails(load_with(&dir, &[("location", "pipe")]), Fault::Invalid, "not a regular file");
    }
}

#[cfg(unix)]
#[test]
fn in_a_hub_cache() {
    let root = tempfile::tempdir().unwrap();
    let repo = root.path().join("models--org--name");
    let (blobs, snapshot) = (repo.join("blobs"), repo.join("snapshots").join("0123abcd").join("onnx"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(blobs.join("beef"), [3u8; 8]).unwrap();
    std::fs::write(root.path().join("secret.bin"), [2u8; 8]).unwrap();
    std::os::unix::fs::symlink("../../../blobs/beef", snapshot.join("w.bin")).unwrap();
    std::os::unix::fs::symlink("../../../../secret.bin", snapshot.join("bad.bin")).unwrap();
    assert!(load_with(&snapshot, &[("location", "w.bin")]).is_ok());
    fails(load_with(&snapshot, &[("location", "bad.bin")]), Fault::Invalid, "outside");
}

#[test]
fn ranges() {
    let (_root, dir) = folder();
    for (offset, length) in
        [("18446744073709551615", "8"), ("9", "8"), ("16", "8"), ("0", "4611686018427387904"), ("8", "18446744073709551615")]
    {
        fails(
            load_with(&dir, &[("location", "w.bin"), ("offset", offset), ("length", length)]),
            Fault::Invalid,
            "outside the 16 bytes",
        );
    }
    fails(load_with(&dir, &[("location", "w.bin"), ("length", "4")]), Fault::Invalid, "needs 8 bytes, has 4");
}

#[test]
fn tensors_may_share_bytes() {
    let (_root, dir) = folder();
    let mut m = adds(external("w", &[2], &[("location", "w.bin"), ("length", "8")]));
    let g = m.graph.as_mut().unwrap();
    g.initializer.push(external("v", &[2], &[("location", "w.bin"), ("offset", "4"), ("length", "8")]));
    g.node.push(node("Add", &["y", "v"], &["z"]));
    g.output = vec![value("z", &[])];
    let m = import_model(&m, Some(&dir), &ImportOptions::default()).unwrap();
    assert_eq!(m.consts.len(), 2);
}

#[test]
fn entries() {
    let (_root, dir) = folder();
    for entries in [
        &[("location", "w.bin"), ("colour", "red")][..],
        &[("location", "w.bin"), ("location", "w.bin")],
        &[("location", "w.bin"), ("offset", "-1")],
        &[("location", "w.bin"), ("length", "eight")],
        &[("offset", "0")],
    ] {
        fails(load_with(&dir, entries), Fault::Invalid, "bad external data entry");
    }
}
