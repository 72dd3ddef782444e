//! `transc opt` and `transc passes`.

use std::fmt::Write as _;

use serde_json::json;
use transc::ir::diag::Fault;
use transc::passes::{self, PASSES};
use transc::runtime::artefact::write_atomic;

use super::Failure;
use super::args::OptArgs;
use super::source;

/// Runs `transc opt`.
pub fn run(a: &OptArgs) -> Result<(), Failure> {
    let mut module = source::load_module(&a.model)?;
    let imported = module.clone();
    let mut cx = source::pass_context();
    cx.merge = source::merge_spec(&a.lossy)?;
    cx.weights = source::weight_spec(&a.lossy)?;
    match (&a.passes, &a.until) {
        (Some(names), _) => {
            for n in names {
                known(n)?;
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            passes::run(&mut module, &names, &mut cx).map_err(transc::Error::from)?;
        }
        (None, Some(name)) => {
            known(name)?;
            passes::run(&mut module, &passes::pipeline::until(name), &mut cx).map_err(transc::Error::from)?;
        }
        (None, None) => passes::optimise(&mut module, &mut cx).map_err(transc::Error::from)?,
    }
    if let Some(pass) = &a.remarks {
        source::print_remarks(&cx, pass);
    }
    if a.time_passes {
        for s in &cx.stats {
            eprintln!(
                "{:>24}  {:>9.3} ms  {:>5} -> {:<5} nodes",
                s.pass,
                s.time.as_secs_f64() * 1e3,
                s.nodes_before,
                s.nodes_after
            );
        }
    }
    eprint!("{}", source::coverage_text(&passes::coverage(&imported, &cx.fused)));
    let text = module.to_string();
    match &a.output {
        Some(path) => Ok(write_atomic(path, |f| std::io::Write::write_all(f, text.as_bytes())).map_err(transc::Error::from)?),
        None => {
            source::print_text(&text);
            Ok(())
        }
    }
}

fn known(name: &str) -> Result<(), Failure> {
    if PASSES.iter().any(|p| p.name == name) {
        return Ok(());
    }
    Err(Failure::one("T0905", Fault::Invalid, format!("there is no pass `{name}`"), "`transc passes` lists them"))
}

/// Runs `transc passes`.
pub fn list_passes(as_json: bool) -> Result<(), Failure> {
    if as_json {
        let rows: Vec<_> =
            PASSES.iter().map(|p| json!({"name": p.name, "class": p.class.name(), "summary": p.summary})).collect();
        source::print_json(&json!({"schema_version": 1, "passes": rows, "pipeline": passes::pipeline::default()}));
        return Ok(());
    }
    let mut text = String::new();
    for p in PASSES {
        let _ = writeln!(text, "{:<20} {:<8} {}", p.name, p.class.name(), p.summary);
    }
    let _ = writeln!(text, "\npipeline: {}", passes::pipeline::default().join(", "));
    source::print_text(&text);
    Ok(())
}
