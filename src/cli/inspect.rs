//! `transc inspect`: what a model or an artefact is.

use std::fmt::Write as _;

use serde_json::json;
use transc::Model;
use transc::ir::diag::Fault;
use transc::runtime::{Plan, Sizes};

use super::Failure;
use super::args::InspectArgs;
use super::report::clean;
use super::source;

/// Runs the command.
pub fn run(a: &InspectArgs) -> Result<(), Failure> {
    if source::is_artefact(&a.model.model) {
        return artefact(a);
    }
    if a.support {
        return support(a);
    }
    let m = source::load_module(&a.model)?;
    let f = &m.main;
    let inputs: Vec<String> = f.params().iter().map(|(n, v)| source::spec(n, f.ty(*v))).collect();
    let outputs: Vec<String> = f.results().iter().map(|(n, v)| source::spec(n, f.ty(*v))).collect();
    let params: usize = m.consts.iter().map(|(_, _, d)| d.dims().iter().product::<usize>()).sum();
    let ops = source::op_counts(&m);
    let macs = source::macs(&m).map(|d| d.to_string());
    let mut cx = source::pass_context();
    let until = transc::passes::pipeline::until("saturate");
    transc::passes::run(&mut m.clone(), &until, &mut cx).map_err(transc::Error::from)?;
    let coverage = transc::passes::coverage(&m, &cx.fused);
    if a.json {
        let dims: serde_json::Map<_, _> =
            m.symbols.iter().map(|(s, r)| (s.name().to_string(), json!({"min": r.min, "max": r.max}))).collect();
        source::print_json(&json!({
            "schema_version": 1, "inputs": inputs, "outputs": outputs, "dims": dims, "ops": ops, "unsupported": [],
            "params": params, "macs": macs, "coverage": source::coverage_json(&coverage, None), "ledger": [],
        }));
        return Ok(());
    }
    let mut text = format!("model {}\n", clean(&m.name));
    for (title, list) in [("inputs", &inputs), ("outputs", &outputs)] {
        let _ = writeln!(text, "{title}");
        for line in list {
            let _ = writeln!(text, "  {line}");
        }
    }
    let _ = writeln!(text, "dims");
    for (s, r) in &m.symbols {
        let _ = writeln!(text, "  {} in {}..{}", clean(s.name()), r.min, r.max);
    }
    let _ = writeln!(text, "parameters {params}\nmultiply-adds {}", macs.unwrap_or_else(|| "0".into()));
    text.push_str(&source::coverage_text(&coverage));
    let _ = writeln!(text, "ops");
    for (name, n) in ops {
        let _ = writeln!(text, "  {n:>5} {name}");
    }
    source::print_text(&text);
    Ok(())
}

fn support(a: &InspectArgs) -> Result<(), Failure> {
    let unsupported: Vec<(String, String, Vec<String>)> = if a.model.model.is_dir() {
        // A folder is supported as a whole or not at all; its error says why not.
        source::load_module(&a.model).map(|_| Vec::new())?
    } else {
        let report =
            transc_frontend::onnx::support(&a.model.model, &transc::ImportOptions::default()).map_err(transc::Error::from)?;
        report.unsupported.into_iter().map(|u| (u.op, u.reason, u.nodes)).collect()
    };
    if a.json {
        let rows: Vec<_> = unsupported.iter().map(|(op, why, nodes)| json!({"op": op, "reason": why, "nodes": nodes})).collect();
        source::print_json(&json!({"schema_version": 1, "unsupported": rows}));
    } else if unsupported.is_empty() {
        source::print_text("everything is supported\n");
    } else {
        for (op, why, nodes) in &unsupported {
            source::print_text(&format!("{}: {}\n  {}\n", clean(op), clean(why), clean(&nodes.join(", "))));
        }
    }
    if unsupported.is_empty() { Ok(()) } else { Err(Failure::silent(Fault::Unsupported)) }
}

fn artefact(a: &InspectArgs) -> Result<(), Failure> {
    let model = Model::open(&a.model.model).map_err(|e| Failure::from(transc::Error::from(e)).in_file(&a.model.model))?;
    let p = model.plan();
    let spec = |s| source::spec(&transc::runtime::TensorSpec::clone(s).name, &p.type_text(s));
    let (inputs, outputs): (Vec<String>, Vec<String>) =
        (p.inputs.iter().map(spec).collect(), p.outputs.iter().map(spec).collect());
    let dims: Vec<(&str, i64)> = a.model.dims.iter().map(|d| (d.name.as_str(), d.max)).collect();
    let plan_bytes = if a.memory { Some(Sizes::of(p, &dims).map_err(transc::Error::from)?.plan_bytes) } else { None };
    if a.json {
        source::print_json(&json!({
            "schema_version": 1, "inputs": inputs, "outputs": outputs, "launches": p.launches.len(), "facts": p.facts,
            "features": p.features, "plan_bytes": plan_bytes, "device": p.device.as_ref().map(|d| &d.arch), "device_launches": device_launches(p), "ledger": source::ledger(p), "unsupported": [],
        }));
        return Ok(());
    }
    let backend = p.facts.get("backend").map_or_else(String::new, |b| format!(", backend {}", clean(b)));
    let mut text = format!("artefact {}, made by transc {}{backend}\n", clean(&p.name), clean(&p.producer));
    for line in inputs.iter().map(|i| format!("input  {i}")).chain(outputs.iter().map(|o| format!("output {o}"))) {
        let _ = writeln!(text, "{line}");
    }
    for s in &p.symbols {
        let _ = writeln!(text, "dim    {} in {}..{}", clean(&s.name), s.min, s.max);
    }
    let _ = writeln!(text, "launches {}\nneeds {}", p.launches.len(), p.features.join(" "));
    for (what, fact) in [("targets", "targets"), ("tuned", "tuning")] {
        if let Some(value) = p.facts.get(fact) {
            let _ = writeln!(text, "{what} {}", clean(value));
        }
    }
    for line in device_launches(p) {
        let _ = writeln!(text, "{line}");
    }
    if let Some(bytes) = plan_bytes {
        let _ = writeln!(text, "memory between launches: {bytes} bytes");
    }
    if a.ledger {
        text.push_str(&source::ledger_text(p));
    }
    source::print_text(&text);
    Ok(())
}

/// Kernel, grid, block and shared memory of each launch on a device; nothing for the host.
fn device_launches(p: &Plan) -> Vec<String> {
    let Some(device) = &p.device else { return Vec::new() };
    let name = |i: u32| p.symbols.get(i as usize).map_or_else(String::new, |s| clean(&s.name));
    let line = |l: &transc::runtime::abi::Launch| {
        let kernel = p.kernels.get(l.kernel as usize).map_or("", String::as_str);
        let (grid, shared) = (l.extent.display(&name), l.shared_bytes.display(&name));
        format!(
            "{}: {} grid {grid} block {} shared {shared} bytes, for \"{}\"",
            clean(&device.arch),
            clean(kernel),
            l.block,
            clean(&l.node)
        )
    };
    p.launches.iter().map(line).collect()
}
