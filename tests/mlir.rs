//! Exported MLIR: MLIR's own tools accept it and give it back unchanged.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use transc::passes::{self, PassCx};
use transc::{Compiler, Target};

use crate::kit;

/// Where the distribution's packages put MLIR's tools.
const MLIR_OPT: &str = "/usr/lib/llvm-22/bin/mlir-opt";

/// Runs `mlir-opt` on a text; its output, or what it says against the text.
fn mlir_opt(text: &Path, args: &[&str]) -> Result<String, String> {
    let out = Command::new(MLIR_OPT).args(args).arg(text).stderr(Stdio::piped()).output().map_err(|e| e.to_string())?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&out.stderr);
        Err(said.lines().find(|l| l.contains("error")).unwrap_or("").chars().take(300).collect())
    }
}

/// MLIR's tools print what they have read; what they print must read the same.
fn round_trips(code: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (first, second) = (dir.path().join("a.mlir"), dir.path().join("b.mlir"));
    std::fs::write(&first, code).map_err(|e| e.to_string())?;
    let printed = mlir_opt(&first, &[])?;
    std::fs::write(&second, &printed).map_err(|e| e.to_string())?;
    let again = mlir_opt(&second, &[])?;
    if printed == again { Ok(()) } else { Err("the second print differs from the first".into()) }
}

/// The zoo as far as it is at hand, and the example.
fn models() -> Vec<(String, PathBuf)> {
    let of_zoo = kit::zoo().into_iter().map(|dir| {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        (name, kit::model_in(&dir))
    });
    of_zoo.chain([("digits-vit".into(), kit::root().join("examples/digits-vit/model.onnx"))]).collect()
}

/// The kernels of a model for a machine with wide vectors.
fn loops(mut module: transc::ir::Module) -> Result<String, String> {
    passes::optimise(&mut module, &mut PassCx::default()).map_err(|e| e.to_string())?;
    let program = transc_codegen::lower::lower(&module, &Target::X86_64_V4).map_err(|e| e.to_string())?;
    transc_codegen::mlir::loops(&program).map_err(|e| e.to_string())
}

#[test]
fn every_model_that_imports_is_accepted() {
    if !Path::new(MLIR_OPT).exists() {
        println!("skipped: {MLIR_OPT} is not here (apt-get install mlir-22-tools)");
        return;
    }
    let (mut accepted, mut imported, mut wrong) = (0, 0, Vec::new());
    let models = models();
    for (name, path) in &models {
        let Ok(module) = transc::load(path) else { continue };
        imported += 1;
        let exported = Compiler::new().to_mlir(&module, &mut PassCx::default()).map_err(|e| e.to_string());
        let kernels = loops(module);
        match exported.and_then(|m| round_trips(m.code())).and_then(|()| round_trips(&kernels?)) {
            Ok(()) => accepted += 1,
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    println!("mlir-opt accepts {accepted} of {imported} models that import ({} in all), and their kernels", models.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(imported * 2 > models.len(), "most models import");
}

#[test]
fn the_whole_file_is_deterministic_and_accepted() {
    let module = transc::load(kit::root().join("examples/digits-vit/model.onnx")).expect("the model");
    let write = || {
        let mut bytes = Vec::new();
        let text = Compiler::new().to_mlir(&module, &mut PassCx::default()).expect("MLIR");
        text.write(&mut bytes).expect("memory");
        bytes
    };
    let bytes = write();
    assert!(bytes == write(), "two exports differ");
    if !Path::new(MLIR_OPT).exists() {
        println!("skipped: {MLIR_OPT} is not here (apt-get install mlir-22-tools)");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("model.mlir");
    std::fs::write(&file, bytes).expect("written");
    let printed = mlir_opt(&file, &["--mlir-elide-resource-strings-if-larger=8"]).expect("mlir-opt accepts it");
    assert!(printed.contains("linalg.generic"));
}
