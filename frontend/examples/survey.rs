//! Imports every `model.onnx` below some folders and says why those that fail do, most frequent reason first.
//!
//! `cargo run --example survey -- FOLDER.. [--only TEXT] [--list]`
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use transc_frontend::{ImportOptions, load};

fn models(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    entries.sort();
    for e in entries {
        if e.is_dir() {
            models(&e, out);
        } else if e.file_name().is_some_and(|n| n == "model.onnx") {
            out.push(e);
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let only = args.iter().position(|a| a == "--only").and_then(|i| args.get(i + 1)).cloned();
    let list = args.iter().any(|a| a == "--list");
    let mut paths = Vec::new();
    for a in args.iter().filter(|a| !a.starts_with("--") && Some(*a) != only.as_ref()) {
        models(Path::new(a), &mut paths);
    }
    let (mut good, mut reasons) = (0, BTreeMap::<String, Vec<String>>::new());
    for p in &paths {
        let name = p.parent().and_then(Path::file_name).map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        match load(p, &ImportOptions::default()) {
            Ok(m) => {
                good += 1;
                if list {
                    println!("{name}: {} nodes, {} symbols", m.main.node_count(), m.symbols.len());
                }
            }
            Err(e) => {
                for p in &e.problems {
                    if list {
                        println!("{name}: {p}");
                    }
                }
                let first = &e.problems[0];
                reasons.entry(format!("{} {} [{}]", first.code, first.message, first.op)).or_default().push(name);
            }
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, v)| std::cmp::Reverse(v.len()));
    println!("{good} of {} models are imported", paths.len());
    for (why, names) in reasons {
        println!("{:5} {why}  ({})", names.len(), names[..names.len().min(3)].join(", "));
    }
}
