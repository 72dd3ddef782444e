//! Models from files: `.tsc` artefacts and libraries, whole and damaged.

use std::path::Path;

use transc_runtime::artefact::{Section, write, write_atomic};
use transc_runtime::{Error, Fault, Model, OpenOptions, Session, SessionOptions};

use crate::kit;

fn kernels(dir: &Path, bias: &str) -> Vec<u8> {
    let so = dir.join("kernels.so");
    kit::compile_model(&so, bias, &["-shared", "-nostdlib"]);
    std::fs::read(so).expect("compiled")
}

fn write_tsc(path: &Path, plan: &[u8], kernels: &[u8]) {
    let weights = kit::weights();
    let sections = [(Section::Plan, plan), (Section::Kernels, kernels), (Section::Weights, weights.as_slice())];
    write_atomic(path, |file| write(file, &sections)).expect("written");
}

fn plan() -> Vec<u8> {
    kit::plan().encode().expect("encodes")
}

fn session(model: Model) -> Session {
    Session::new(model, SessionOptions { threads: 2, ..SessionOptions::default() }).expect("a session")
}

#[test]
fn artefacts_run_and_several_are_kept_apart() {
    if !kit::have_cc() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let sessions: Vec<(Session, f32)> = ["1", "2", "3"]
        .into_iter()
        .map(|bias| {
            let path = dir.path().join(format!("{bias}.tsc"));
            write_tsc(&path, &plan(), &kernels(dir.path(), bias));
            (session(Model::open(&path).expect("opens")), bias.parse().expect("a number"))
        })
        .collect();
    for (session, bias) in &sessions {
        kit::check(session, 77, *bias);
    }
}

#[test]
fn damaged_artefacts_are_refused() {
    if !kit::have_cc() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.tsc");
    write_tsc(&path, &plan(), &kernels(dir.path(), "1"));
    let whole = std::fs::read(&path).expect("written");
    let open = |bytes: &[u8], options| {
        std::fs::write(&path, bytes).expect("written");
        Model::open_with(&path, options)
    };
    for i in 0..200 {
        let mut broken = whole.clone();
        broken[i * (whole.len() / 200)] ^= 1 << (i % 8);
        let e = open(&broken, OpenOptions::default()).err().unwrap_or_else(|| panic!("flip {i} is not found"));
        assert_eq!(e.fault(), Fault::Invalid, "{e}");
        let cut = open(&whole[..i * (whole.len() / 200)], OpenOptions::default()).expect_err("cut");
        assert!(matches!(cut, Error::NotArtefact(_) | Error::Damaged(_)), "{cut}");
    }
    let mut broken = whole;
    let last_weight = broken.len() - 1;
    broken[last_weight] ^= 1;
    assert!(matches!(open(&broken, OpenOptions::default()), Err(Error::Checksum("weights"))));
    kit::check(&session(open(&broken, OpenOptions { verify_weights: false }).expect("opens")), 9, 1.0);
}

#[test]
fn right_checksums_do_not_make_wrong_parts_right() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.tsc");
    let plan = plan();
    let me = std::fs::read(std::env::current_exe().expect("a path")).expect("this test");
    for (plan, kernels) in [(&plan[..], &b"not code"[..]), (&plan, &[]), (&plan, &me), (b"no plan", &[]), (&[], &[])] {
        write_tsc(&path, plan, kernels);
        let e = Model::open(&path).expect_err("refused");
        assert_eq!(e.fault(), Fault::Invalid, "{e}");
    }
}

#[test]
fn libraries_open_by_content_and_cut_ones_are_refused() {
    if !kit::have_cc() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (data, so) = (dir.path().join("data.h"), dir.path().join("model.bin"));
    kit::write_model_data(&data);
    kit::compile_model(&so, "1", &["-shared", "-nostdlib", &format!("-DMODEL_DATA=\"{}\"", data.display())]);
    kit::check(&session(Model::open(&so).expect("opens")), 33, 1.0);
    let whole = std::fs::read(&so).expect("compiled");
    let other = dir.path().join("cut.so");
    for i in 0..60 {
        std::fs::write(&other, &whole[..whole.len() * i / 100]).expect("written");
        let e = Model::open(&other).expect_err("refused");
        assert_eq!(e.fault(), Fault::Invalid, "{i}: {e}");
    }
    std::fs::write(&other, kernels(dir.path(), "1")).expect("written");
    let e = Model::open(&other).expect_err("kernels alone are no model");
    assert!(e.to_string().contains("no model"), "{e}");
}

#[test]
fn other_files_are_named_as_what_they_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x");
    assert_eq!(Model::open(&path).expect_err("not there").fault(), Fault::Environment);
    for bytes in [&b""[..], b"\x7fEL", b"\x7fELF", b"\x93TSC\r\n\x1a", b"\x93TSC\n\x1a\n00000", b"PK\x03\x04aaaaaaaa"] {
        std::fs::write(&path, bytes).expect("written");
        assert_eq!(Model::open(&path).expect_err("no artefact").fault(), Fault::Invalid);
    }
    assert_eq!(Model::open(dir.path()).expect_err("a folder").fault(), Fault::Invalid);
    assert_eq!(Model::open("/dev/null").expect_err("a device").fault(), Fault::Invalid);
}
