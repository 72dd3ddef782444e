//! The cases of rules, which are modules in text.

use std::path::{Path, PathBuf};

use transc_ir::Module;
use transc_ir::text::parse_module;

/// The modules in a folder and in the folders inside it, in the order of their paths; none if there is no such folder.
pub fn of(folder: &Path) -> Vec<(PathBuf, Module)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path()).collect();
    paths.sort();
    let parse = |path: PathBuf| {
        if path.is_dir() {
            return of(&path);
        }
        let text = std::fs::read_to_string(&path).expect("a case");
        let module = parse_module(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        vec![(path, module)]
    };
    paths.into_iter().flat_map(parse).collect()
}
