//! `transc compile`.

use std::path::{Path, PathBuf};

use serde_json::json;
use transc::ir::diag::Fault;
use transc::runtime::artefact::write_atomic;
use transc::{Compiler, Target};
use transc_codegen::Text;

use super::Failure;
use super::args::{CompileArgs, Emit, TargetArgs};
use super::report::{self, Progress};
use super::{source, tensors, tune};

/// Runs the command.
pub fn run(a: &CompileArgs, quiet: bool) -> Result<(), Failure> {
    let outputs = outputs(a)?;
    for (_, path) in &outputs {
        refuse_source(&a.model.model, path)?;
    }
    let mut progress = Progress::new(quiet);
    progress.phase("import");
    let module = source::load_module(&a.model)?;
    let macs = source::macs(&module);
    let compiler = compiler(&a.target, None)?.threads(a.threads).calibration(calibration(a.calib.as_deref(), &module)?);
    let mut cx = source::pass_context();
    let (exported, outputs): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|(emit, _)| *emit == Emit::Mlir);
    for (_, path) in &exported {
        progress.phase("mlir");
        let text = compiler.to_mlir(&module, &mut source::pass_context())?;
        write_atomic(path, |file| text.write(file)).map_err(transc::Error::from)?;
        if !quiet {
            progress.end();
            wrote(path);
        }
    }
    if outputs.is_empty() {
        return Ok(());
    }
    let compiled = compiler.compile_with(&module, &mut cx, &mut |phase| progress.phase(phase))?;
    if let Some(pass) = &a.remarks {
        source::print_remarks(&cx, pass);
        source::print_layer_remarks(&compiled.program, pass);
    }
    let coverage = transc::passes::coverage(&module, &cx.fused);
    progress.phase("write");
    for (emit, path) in &outputs {
        write(&compiled, *emit, path)?;
    }
    progress.end();
    if a.json {
        let phases: serde_json::Map<_, _> =
            progress.phases.iter().map(|(n, d)| (n.clone(), json!(d.as_secs_f64() * 1e3))).collect();
        let bytes = outputs.first().and_then(|(_, p)| std::fs::metadata(p).ok()).map_or(0, |m| m.len());
        let summary = json!({
            "schema_version": 1,
            "backend": compiled.code().backend().name(),
            "phases_ms": phases,
            "coverage": source::coverage_json(&coverage, Some(&compiled.program)),
            "layers": source::layers(&compiled.program),
            "macs_before": macs.map(|d| d.to_string()),
            "macs_after": source::macs(&compiled.module).map(|d| d.to_string()),
            "artefact_bytes": bytes,
            "kernels": compiled.program.kernels.len(),
            "launches": compiled.program.launches.len(),
            "ledger": source::ledger(compiled.code().plan()),
        });
        source::print_json(&summary);
    } else if !quiet {
        outputs.iter().for_each(|(_, path)| wrote(path));
        eprintln!(
            "{} kernels, {} launches, backend {}",
            compiled.program.kernels.len(),
            compiled.program.launches.len(),
            compiled.code().backend()
        );
        eprint!("{}", source::coverage_text(&coverage));
        eprint!("{}", source::ledger_text(compiled.code().plan()));
    }
    Ok(())
}

/// The inputs of `--calib` that the model has.
pub fn calibration(file: Option<&Path>, module: &transc::ir::Module) -> Result<Vec<(String, transc::Tensor)>, Failure> {
    let Some(file) = file else { return Ok(Vec::new()) };
    tensors::known_inputs(&tensors::read_npz(file)?, module)
}

fn wrote(path: &Path) {
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    eprintln!("wrote {} ({:.1} MB)", report::clean(&path.display().to_string()), size as f64 / 1e6);
}

/// The compiler for target options, or for the device that the code will run on.
pub fn compiler(t: &TargetArgs, device: Option<u32>) -> Result<Compiler, Failure> {
    let targets = match (&t.target, device) {
        (Some(names), _) => Target::list(names)?,
        (None, None) => vec![Target::host()],
        (None, Some(ordinal)) => {
            let capability = transc::runtime::cuda::capability(ordinal).map_err(transc::Error::from)?;
            vec![Target::cuda(capability).ok_or_else(|| {
                let message = format!("cuda:{ordinal} is a device of compute capability {}.{}", capability.0, capability.1);
                Failure::one("T0602", Fault::Environment, message, "devices from 8.0 on are supported")
            })?]
        }
    };
    let targets = match &t.tuning {
        Some(file) => tune::read(file, targets)?,
        None => targets,
    };
    let mut compiler = Compiler::new()
        .targets(targets)
        .backend(t.backend.unwrap_or_default())
        .opt_level(t.opt_level)
        .cuts(source::cut_spec(&t.lossy)?)
        .weights(source::weight_spec(&t.lossy)?)
        .precision(source::precision(&t.lossy)?);
    if let Some(spec) = source::merge_spec(&t.lossy)? {
        compiler = compiler.merge(spec);
    }
    if let Some(error) = source::budget(&t.lossy)? {
        compiler = compiler.budget(error);
    }
    Ok(compiler)
}

/// What to write where: from `--emit`, else from the output's extension, else a `.so` beside the working directory.
fn outputs(a: &CompileArgs) -> Result<Vec<(Emit, PathBuf)>, Failure> {
    let stem = a.model.model.file_stem().map_or_else(|| "model".into(), |s| s.to_os_string());
    let output = a.output.clone().unwrap_or_else(|| PathBuf::from(stem).with_extension("so"));
    let extension = output.extension().and_then(|e| e.to_str()).unwrap_or("");
    match a.emit.as_slice() {
        [] => {
            let emit = Emit::from_extension(extension).ok_or_else(|| {
                let message = format!("the extension of `{}` is not a form of output", output.display());
                Failure::one(
                    "T0902",
                    Fault::Invalid,
                    message,
                    "use .so, .tsc, .o, .tir, .loops, .mlir, .ll, .clif, .s, .ptx or .dot, or --emit",
                )
            })?;
            Ok(vec![(emit, output)])
        }
        [one] => Ok(vec![(*one, if a.output.is_some() { output } else { output.with_extension(one.extension()) })]),
        several => Ok(several.iter().map(|e| (*e, output.with_extension(e.extension()))).collect()),
    }
}

/// An output may not replace the model or a directory.
fn refuse_source(model: &Path, output: &Path) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let message = format!("`{}` {what}", output.display());
        Err(Failure::one("T0903", Fault::Environment, message, "choose another output with -o"))
    };
    if output.is_dir() {
        return refuse("is a directory");
    }
    match (model.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => refuse("is the model itself and would be overwritten"),
        _ => Ok(()),
    }
}

fn write(compiled: &transc::Compiled, emit: Emit, path: &Path) -> Result<(), Failure> {
    let text = match emit {
        // Written before code is generated.
        Emit::Mlir => return Ok(()),
        Emit::So => return Ok(compiled.write_so(path)?),
        Emit::Tsc => return Ok(compiled.write_tsc(path)?),
        Emit::Obj => compiled.code().object()?,
        Emit::Tir => compiled.module.to_string().into_bytes(),
        Emit::MlirLoops => transc_codegen::mlir::loops(&compiled.program)?.into_bytes(),
        Emit::Loops => compiled.program.to_string().into_bytes(),
        Emit::LlvmIr => compiled.code().text(Text::LlvmIr)?.into_bytes(),
        Emit::Clif => compiled.code().text(Text::Clif)?.into_bytes(),
        Emit::Asm => compiled.code().text(Text::Asm)?.into_bytes(),
        Emit::Ptx => compiled.code().text(Text::Ptx)?.into_bytes(),
        Emit::Dot => transc::passes::dot::render(&compiled.module).into_bytes(),
    };
    write_atomic(path, |file| std::io::Write::write_all(file, &text)).map_err(|e| transc::Error::from(e).into())
}
