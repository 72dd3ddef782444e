//! Models and artefacts as the commands see them.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value as Json, json};
use transc::ir::diag::Fault;
use transc::ir::op::Op;
use transc::ir::types::Dim;
use transc::ir::{Func, Module};
use transc::passes::PassCx;
use transc::{DimOption, ImportOptions, Model, Session, SessionOptions};

use super::Failure;
use super::args::{DimArg, ModelArgs, TargetArgs};
use super::compile::compiler;
use super::report::{Progress, clean};

/// Reads a model with the dims of the command line.
pub fn load_module(m: &ModelArgs) -> Result<Module, Failure> {
    let option = |d: &DimArg| if d.min == d.max { DimOption::Fixed(d.min) } else { DimOption::Range(d.min, d.max) };
    let options =
        ImportOptions { dims: m.dims.iter().map(|d| (d.name.clone(), option(d))).collect(), ..ImportOptions::default() };
    transc::load_with(&m.model, &options).map_err(|e| Failure::from(e).in_file(&m.model))
}

/// True for a compiled `.so` or `.tsc`, by content.
pub fn is_artefact(path: &Path) -> bool {
    let mut head = [0u8; 4];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head));
    read.is_ok() && (head == *b"\x7fELF" || head == transc::runtime::artefact::MAGIC[..4])
}

/// A session for a model or an artefact.
pub fn open_session(m: &ModelArgs, t: &TargetArgs, threads: usize, progress: &mut Progress) -> Result<Session, Failure> {
    if is_artefact(&m.model) {
        progress.phase("load");
        let model = Model::open(&m.model).map_err(|e| Failure::from(transc::Error::from(e)).in_file(&m.model))?;
        let session =
            Session::new(model, SessionOptions { threads, ..SessionOptions::default() }).map_err(transc::Error::from)?;
        progress.end();
        return Ok(session);
    }
    progress.phase("import");
    let module = load_module(m)?;
    let compiled = compiler(t)?.compile_with(&module, &mut pass_context(), &mut |phase| progress.phase(phase))?;
    progress.phase("load");
    let session = compiled.session(threads)?;
    progress.end();
    Ok(session)
}

/// A pass context that collects remarks.
pub fn pass_context() -> PassCx {
    PassCx::default()
}

/// Prints the remarks of one pass, or of all if `pass` is empty.
pub fn print_remarks(cx: &PassCx, pass: &str) {
    for r in cx.remarks.iter().filter(|r| pass.is_empty() || r.pass == pass) {
        eprintln!("remark[{}]: {}\n  --> node \"{}\"", r.pass, clean(&r.message), clean(r.loc.path()));
    }
}

/// Prints JSON on stdout.
pub fn print_json(v: &Json) {
    print_text(&format!("{v:#}\n"));
}

/// Prints the result of a command on stdout; a closed pipe is not an error.
pub fn print_text(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Multiply-accumulates of one run, symbolic; `None` if there are none.
pub fn macs(m: &Module) -> Option<Dim> {
    let mut sum = Dim::from(0);
    visit(&m.main, &mut |f, n| {
        let ty = |i: usize| f.ty(n.operands[i]);
        match &n.op {
            Op::Contract(c) => {
                let contracted = c.lhs.iter().enumerate().filter(|(_, l)| !c.out.contains(l));
                let k = contracted.fold(Dim::from(1), |a, (i, _)| &a * &ty(0).dims[i]);
                sum = &sum + &(&k * &f.ty(n.results[0]).count());
            }
            Op::Conv(_) => {
                let w = ty(1);
                let k = w.dims[1..].iter().fold(Dim::from(1), |a, d| &a * d);
                sum = &sum + &(&k * &f.ty(n.results[0]).count());
            }
            Op::Attention(_) => {
                let (q, k, v) = (ty(0), ty(1), ty(2));
                let logits = &(&(&q.dims[0] * &q.dims[1]) * &q.dims[2]) * &k.dims[2];
                sum = &sum + &(&logits * &(&q.dims[3] + &v.dims[3]));
            }
            _ => {}
        }
    });
    (!sum.is(0)).then_some(sum)
}

/// How often each named op stands in the module: what arrived fused, and what was found.
pub fn coverage(m: &Module) -> Json {
    let mut map = serde_json::Map::new();
    for (name, n) in op_counts(m) {
        if matches!(name, "attention" | "layer_norm" | "rms_norm" | "softmax" | "rope") {
            map.insert(name.into(), json!({ "fused": n, "found": n }));
        }
    }
    Json::Object(map)
}

/// Number of nodes per op, nested functions included, by name.
pub fn op_counts(m: &Module) -> std::collections::BTreeMap<&'static str, usize> {
    let mut counts = std::collections::BTreeMap::new();
    visit(&m.main, &mut |_, n| *counts.entry(n.op.mnemonic()).or_insert(0) += 1);
    counts
}

fn visit(f: &Func, each: &mut dyn FnMut(&Func, &transc::ir::Node)) {
    for (_, n) in f.nodes() {
        match &n.op {
            Op::Fused(inner) => visit(&inner.body, each),
            _ => each(f, n),
        }
    }
}

/// An input or output for people: `name: f32[batch,seq]`.
pub fn spec(name: &str, ty: &impl std::fmt::Display) -> String {
    format!("{}: {ty}", clean(name))
}

/// A failure of the command line's own.
pub fn missing(what: &str) -> Failure {
    Failure::one("T0904", Fault::Invalid, what.to_string(), "")
}
