//! The rules of the house that no compiler checks: crate edges, file lengths, where unsafe code may stand.

use std::path::{Path, PathBuf};

use crate::kit;

/// Which crates of the workspace each crate may depend on.
const EDGES: &[(&str, &[&str])] =
    &[("ir", &[]), ("passes", &["ir"]), ("frontend", &["ir"]), ("codegen", &["ir", "runtime"]), ("runtime", &[])];

/// Where unsafe code may stand. Everything else forbids it.
const UNSAFE: &[&str] = &[
    "codegen/src/clif/load.rs",
    "codegen/src/llvm/jit.rs",
    "codegen/src/mlir/translate.rs",
    "runtime/src/abi",
    "runtime/src/capi",
    "runtime/src/cuda",
    "runtime/src/exec",
    "runtime/src/load",
    "runtime/src/mem",
];

/// No file of code is longer.
const MAX_LINES: usize = 1000;

/// Generated code, exempt from the length.
const GENERATED: &[&str] = &["frontend/src/onnx/proto.rs"];

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for top in ["src", "ir", "passes", "codegen", "frontend", "runtime", "tests", "examples"] {
        walk(&kit::root().join(top), &mut files);
    }
    files.sort();
    files
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                walk(&path, out);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(kit::root()).unwrap_or(path).display().to_string()
}

#[test]
fn crate_edges_are_those_of_the_architecture() {
    for (name, allowed) in EDGES {
        let manifest = std::fs::read_to_string(kit::root().join(name).join("Cargo.toml")).expect("a manifest");
        let normal = manifest.split("[dev-dependencies]").next().unwrap_or("");
        for other in ["ir", "passes", "frontend", "codegen", "runtime"] {
            let depends = normal.lines().any(|l| l.trim_start().starts_with(&format!("transc-{other}")));
            assert!(!depends || allowed.contains(&other), "`{name}` must not depend on `{other}`");
        }
    }
    let runtime = std::fs::read_to_string(kit::root().join("runtime/Cargo.toml")).expect("a manifest");
    for heavy in ["inkwell", "llvm-sys", "cranelift", "prost", "egg"] {
        assert!(!runtime.contains(heavy), "the runtime must build without {heavy}");
    }
}

#[test]
fn no_file_is_too_long() {
    for file in sources() {
        let name = relative(&file);
        let lines = std::fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= MAX_LINES || GENERATED.contains(&name.as_str()), "{name} has {lines} lines");
    }
}

#[test]
fn unsafe_code_stands_only_where_it_may() {
    let word = ["un", "safe"].concat();
    for file in sources() {
        let name = relative(&file);
        if UNSAFE.iter().any(|p| name.starts_with(p)) || name.contains("/tests/") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source file");
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let block = code.contains(&format!("{word} {{"))
                || code.contains(&format!("{word} fn"))
                || code.contains(&format!("{word} impl"));
            assert!(!block, "{name}:{} has unsafe code", i + 1);
        }
    }
    for name in ["ir", "passes", "frontend"] {
        let text = std::fs::read_to_string(kit::root().join(name).join("src/lib.rs")).expect("a crate root");
        assert!(text.contains(&format!("#![forbid({word}_code)]")), "`{name}` must forbid it");
    }
}

#[test]
fn every_error_code_is_explained() {
    let table = std::fs::read_to_string(kit::root().join("src/cli/explain.rs")).expect("the table");
    for file in sources() {
        let name = relative(&file);
        if name.contains("tests/") || name.ends_with("explain.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source file");
        for piece in text.split('"') {
            let code = piece.len() == 5 && piece.starts_with(['T', 'R']) && piece[1..].bytes().all(|b| b.is_ascii_digit());
            let explained = table.matches(&format!("\"{piece}\"")).count();
            assert!(!code || explained == 1, "{name}: {piece} has {explained} explanations");
        }
    }
}

/// Code that a page of the docs quotes under a comment with its file stands in that file.
#[test]
fn quoted_code_is_in_the_tree() {
    let mut quotes = 0;
    for page in ["docs/writing-a-pass.md", "docs/writing-a-rule.md"] {
        let text = std::fs::read_to_string(kit::root().join(page)).expect("a page");
        for block in text.split("```").skip(1).step_by(2) {
            let mut lines = block.lines().skip(1);
            let Some(file) = lines.next().and_then(|l| l.strip_prefix("// ")) else { continue };
            let source = std::fs::read_to_string(kit::root().join(file)).unwrap_or_else(|_| panic!("{page} quotes {file}"));
            let quote = lines.collect::<Vec<_>>().join("\n");
            assert!(!quote.is_empty() && source.contains(&quote), "{page} quotes code that {file} lacks:\n{quote}");
            quotes += 1;
        }
    }
    assert!(quotes > 0);
}
