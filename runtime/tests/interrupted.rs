//! A program that ends in the middle of a write. In a process of its own: it discards the temporary files of all writers.

use std::io::Write as _;

use transc_runtime::Error;
use transc_runtime::artefact::{discard_temporaries, write_atomic};

#[test]
fn an_unfinished_file_goes_and_the_old_one_stays() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.tsc");
    write_atomic(&path, |f| f.write_all(b"old")).expect("written");
    let discarded = write_atomic(&path, |f| f.write_all(b"new").map(|()| discard_temporaries()));
    assert!(matches!(discarded, Err(Error::Io { .. })));
    assert_eq!(std::fs::read(&path).expect("there"), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
}
