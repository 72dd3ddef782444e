//! `transc opt` and `transc passes`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value as Json, json};
use transc::ir::Module;
use transc::ir::diag::Fault;
use transc::passes::egraph::{ENode, Outcome, Proof};
use transc::passes::{self, PASSES, PassCx};
use transc::runtime::artefact::write_atomic;

use super::Failure;
use super::args::OptArgs;
use super::report::clean;
use super::source;

/// Runs `transc opt`.
pub fn run(a: &OptArgs) -> Result<(), Failure> {
    let mut module = source::load_module(&a.model)?;
    let imported = module.clone();
    let mut cx = source::pass_context();
    cx.merge = source::merge_spec(&a.lossy)?;
    cx.cuts = source::cut_spec(&a.lossy)?;
    cx.weights = source::weight_spec(&a.lossy)?;
    cx.precision = source::precision(&a.lossy)?;
    cx.explain = a.explain || a.check;
    cx.egraph = a.egraph_json.as_ref().map(|_| Vec::new());
    cx.fuel = a.fuel;
    let names = names(a)?;
    match &a.dump_after {
        Some(after) => run_and_dump(&mut module, &names, &mut cx, after, &a.dump_dir)?,
        None => passes::run(&mut module, &names, &mut cx).map_err(transc::Error::from)?,
    }
    if let (Some(n), Some(left)) = (a.fuel, cx.fuel) {
        let last = cx.last.as_ref().map_or_else(|| "nothing was changed".into(), |l| format!("the last change was {}", clean(l)));
        eprintln!("fuel: {} of {n} spent, {last}", n - left);
    }
    if let (Some(path), Some(nodes)) = (&a.egraph_json, &cx.egraph) {
        let text = format!("{:#}\n", egraph_json(nodes));
        write_atomic(path, |f| std::io::Write::write_all(f, text.as_bytes())).map_err(transc::Error::from)?;
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
    if cx.explain {
        explain(&cx.proofs, a.explain, a.check)?;
    }
    let text = module.to_string();
    match &a.output {
        Some(path) => Ok(write_atomic(path, |f| std::io::Write::write_all(f, text.as_bytes())).map_err(transc::Error::from)?),
        None => {
            source::print_text(&text);
            Ok(())
        }
    }
}

/// The passes that were asked for.
fn names(a: &OptArgs) -> Result<Vec<&str>, Failure> {
    Ok(match (&a.passes, &a.until) {
        (Some(names), _) => {
            names.iter().try_for_each(|n| known(n))?;
            names.iter().map(String::as_str).collect()
        }
        (None, Some(name)) => {
            known(name)?;
            passes::pipeline::until(name)
        }
        (None, None) => passes::pipeline::default(),
    })
}

/// Runs passes one by one and writes the IR after those that are asked for.
fn run_and_dump(module: &mut Module, names: &[&str], cx: &mut PassCx, after: &str, dir: &Path) -> Result<(), Failure> {
    if after != "all" {
        known(after)?;
    }
    let refused = |e: std::io::Error| transc::runtime::Error::Io { path: dir.display().to_string(), message: e.to_string() };
    std::fs::create_dir_all(dir).map_err(|e| transc::Error::from(refused(e)))?;
    for (i, name) in names.iter().enumerate() {
        passes::run(module, &[name], cx).map_err(transc::Error::from)?;
        if after == "all" || after == *name {
            let text = module.to_string();
            let path = dir.join(format!("{i:02}-{name}.tir"));
            write_atomic(&path, |f| std::io::Write::write_all(f, text.as_bytes())).map_err(transc::Error::from)?;
        }
    }
    Ok(())
}

/// Prints the chains of rules, with what replaying them gave.
fn explain(proofs: &[Proof], print: bool, check: bool) -> Result<(), Failure> {
    let (mut steps, mut unknown, mut worst, mut failed) = (0, 0, 0.0f64, Vec::new());
    for p in proofs {
        let outcomes = if check { p.check() } else { Vec::new() };
        if print {
            let copies = if p.copies > 1 { format!(", {} equal pieces", p.copies) } else { String::new() };
            eprintln!("from node \"{}\" on: {} steps{copies}", clean(p.loc.path()), p.links.len());
        }
        for (i, l) in p.links.iter().enumerate() {
            let outcome = match outcomes.get(i) {
                Some(Outcome::Holds(error)) => format!("  [holds, {error:.1e}]"),
                Some(Outcome::Fails(why)) => format!("  [FAILS: {why}]"),
                Some(Outcome::Unknown(why)) => format!("  [not evaluated: {why}]"),
                None => String::new(),
            };
            if print {
                eprintln!("  {:>3}. {} at \"{}\": {}{}", i + 1, l.rule, clean(l.loc.path()), l.text, clean(&outcome));
                eprintln!("       {}", l.why);
            }
        }
        for (i, outcome) in outcomes.iter().enumerate() {
            steps += 1;
            match outcome {
                Outcome::Holds(error) => worst = worst.max(*error),
                Outcome::Unknown(_) => unknown += 1,
                Outcome::Fails(why) => {
                    let step = p.links.get(i).map_or("the whole piece", |l| l.rule);
                    failed.push(format!("{step} at \"{}\": {why}", p.links.get(i).map_or(&p.loc, |l| &l.loc).path()));
                }
            }
        }
    }
    if check {
        eprintln!(
            "check: {} of {steps} steps hold in f64, worst relative error {worst:.1e}, {unknown} have no value on random inputs",
            steps - unknown - failed.len()
        );
    }
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("both sides of a step differ: {}", failed.join("; "));
    Err(Failure::one("T0907", Fault::Verify, message, "a rule of transc is wrong: please report it with the model"))
}

/// E-graphs in the form of egraph-serialize.
fn egraph_json(nodes: &[ENode]) -> Json {
    let node = |n: &ENode| (n.id.clone(), json!({"op": n.op, "children": n.children, "eclass": n.eclass, "cost": n.cost}));
    let class = |n: &ENode| (n.eclass.clone(), json!({"type": n.ty}));
    let roots: BTreeSet<&str> = nodes.iter().filter(|n| n.root).map(|n| n.eclass.as_str()).collect();
    json!({
        "nodes": nodes.iter().map(node).collect::<Json>(),
        "root_eclasses": roots,
        "class_data": nodes.iter().map(class).collect::<Json>(),
    })
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
