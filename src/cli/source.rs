//! Models and artefacts as the commands see them.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value as Json, json};
use transc::ir::diag::Fault;
use transc::ir::interp::Tensor as Plain;
use transc::ir::op::Op;
use transc::ir::types::{DType, Dim};
use transc::ir::{Func, Loc, Module};
use transc::passes::{Codes, Coverage, CutError, CutSpec, Masks, MergeSpec, PassCx, Precision, WeightError, WeightSpec};
use transc::runtime::Plan;
use transc::runtime::abi::LedgerEntry;
use transc::runtime::artefact::write_atomic;
use transc::{DimOption, Fixed, ImportOptions, Model, Session, SessionOptions};
use transc_codegen::{LayerChoice, Program};

use super::Failure;
use super::args::{DimArg, LossyArgs, ModelArgs, TargetArgs};
use super::compile::compiler;
use super::report::{Progress, clean};

/// Reads a model with the dims and fixed inputs of the command line.
pub fn load_module(m: &ModelArgs) -> Result<Module, Failure> {
    let option = |d: &DimArg| if d.min == d.max { DimOption::Fixed(d.min) } else { DimOption::Range(d.min, d.max) };
    let options = ImportOptions {
        dims: m.dims.iter().map(|d| (d.name.clone(), option(d))).collect(),
        fixed_inputs: m.set.iter().map(|s| (s.name.clone(), Fixed::Numbers(s.values.clone()))).collect(),
        ..ImportOptions::default()
    };
    transc::load_with(&m.model, &options).map_err(|e| Failure::from(e).in_file(&m.model))
}

/// True for a compiled `.so` or `.tsc`, by content.
pub fn is_artefact(path: &Path) -> bool {
    let mut head = [0u8; 4];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head));
    read.is_ok() && (head == *b"\x7fELF" || head == transc::runtime::artefact::MAGIC[..4])
}

/// A session for a model or an artefact.
pub fn open_session(
    m: &ModelArgs,
    t: &TargetArgs,
    device: Option<u32>,
    threads: usize,
    progress: &mut Progress,
) -> Result<Session, Failure> {
    let options = SessionOptions { threads, device, ..SessionOptions::default() };
    if is_artefact(&m.model) {
        if !t.lossy.is_empty() {
            let help = "give lossy options to `transc compile`, or a model here";
            return Err(Failure::one("T0511", Fault::Invalid, "an artefact is compiled already and cannot be changed", help));
        }
        progress.phase("load");
        let model = Model::open(&m.model).map_err(|e| Failure::from(transc::Error::from(e)).in_file(&m.model))?;
        let session = Session::new(model, options).map_err(transc::Error::from)?;
        progress.end();
        return Ok(session);
    }
    // Before any work: the device may not be there.
    let compiler = compiler(t, device)?;
    progress.phase("import");
    let module = load_module(m)?;
    let compiled = compiler.compile_with(&module, &mut pass_context(), &mut |phase| progress.phase(phase))?;
    progress.phase("load");
    let session = compiled.session_with(options)?;
    progress.end();
    Ok(session)
}

/// Writes arrays to an npz file.
pub fn write_npz(path: &Path, arrays: &[(String, Plain)]) -> Result<(), Failure> {
    let bytes = transc_frontend::npz::write(arrays.iter().map(|(n, t)| (n.as_str(), t)))
        .map_err(|p| Failure::from(transc_frontend::FrontendError::one(path, p)))?;
    Ok(write_atomic(path, |file| file.write_all(&bytes)).map_err(transc::Error::from)?)
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
    Some(transc::passes::macs_of(&m.main)).filter(|d| !d.is(0))
}

/// What `--merge` asks for.
pub fn merge_spec(a: &LossyArgs) -> Result<Option<MergeSpec>, Failure> {
    let spec = a.merge.as_deref().map(str::parse).transpose();
    Ok(spec.map_err(|e: transc::passes::MergeError| transc::Error::from(transc::passes::PassError::from(e)))?)
}

/// What the options for layers ask for.
pub fn cut_spec(a: &LossyArgs) -> Result<CutSpec, Failure> {
    let refused = |e: CutError| Failure::from(transc::Error::from(transc::passes::PassError::from(e)));
    let nested = a.mat.as_deref().map(str::parse).transpose().map_err(refused)?;
    let (mut shares, mut masks) = (None, None);
    match a.prune_structured.as_deref().map(|t| t.strip_prefix("mask=").ok_or(t)) {
        Some(Ok(file)) => {
            let file = Path::new(file);
            let problem = |p| Failure::from(transc_frontend::FrontendError::one(file, p));
            let (header, tensors) = transc_frontend::masks::read_file(file).map_err(problem)?;
            masks = Some(Masks::new(&header, &tensors).map_err(|e| refused(e).in_file(file))?);
        }
        Some(Err(text)) => shares = Some(text.parse().map_err(refused)?),
        None => {}
    }
    Ok(CutSpec { nested, shares, masks, ..CutSpec::default() })
}

/// What `--dtype` asks for.
pub fn precision(a: &LossyArgs) -> Result<Precision, Failure> {
    let precision = a.dtype.as_deref().map_or(Ok(Precision::Model), str::parse);
    Ok(precision.map_err(|e: transc::passes::PrecisionError| transc::Error::from(transc::passes::PassError::from(e)))?)
}

/// What the options for weights ask for.
pub fn weight_spec(a: &LossyArgs) -> Result<WeightSpec, Failure> {
    let codes = match (&a.int8, &a.llm_int8, &a.w4, &a.factorize) {
        (Some(way), ..) => Some(Codes::int8(way)),
        (_, Some(magnitude), ..) => Some(Codes::outliers(magnitude)),
        (.., Some(group), _) => Some(Codes::weights4(group)),
        (.., Some(factors)) => Some(factors.parse().map(Codes::Factored)),
        _ => a.w8.then_some(Ok(Codes::Weights8)),
    };
    let prune = a.sparse.as_deref().map(str::parse).transpose().map_err(refused)?;
    Ok(WeightSpec { prune, codes: codes.transpose().map_err(refused)?, ..WeightSpec::default() })
}

/// What `--budget` allows.
pub fn budget(a: &LossyArgs) -> Result<Option<f64>, Failure> {
    a.budget.as_deref().map(transc::passes::parse_budget).transpose().map_err(refused)
}

fn refused(e: WeightError) -> Failure {
    transc::Error::from(transc::passes::PassError::from(e)).into()
}

/// The lossy steps of a plan.
pub fn ledger(p: &Plan) -> Vec<Json> {
    let entry = |l: &LedgerEntry| json!({"site": l.site, "codec": l.codec, "parameters": l.parameters, "error": l.error});
    p.ledger.iter().map(entry).collect()
}

/// The lossy steps of a plan for people; nothing if there are none.
pub fn ledger_text(p: &Plan) -> String {
    let mut text = String::new();
    for l in &p.ledger {
        text.push_str(&format!("lossy: {} {} at \"{}\"\n", clean(&l.codec), clean(&l.parameters), clean(&l.site)));
    }
    if let Some(error) = p.ledger.iter().find_map(|l| l.error) {
        text.push_str(&format!("relative error of the outputs on the calibration inputs: {error:.2e}\n"));
    }
    text
}

/// One line of what was found and fused, for people: `coverage: attention 12/12, gelu 12/12`; nothing if nothing was found.
pub fn coverage_text(coverage: &Coverage) -> String {
    let text = transc::passes::coverage_text(coverage);
    if text.is_empty() { text } else { format!("coverage: {text}\n") }
}

/// Zeros worth a remark: a weight with fewer is dense.
const MANY_ZEROS: f64 = 0.25;

/// What was found and fused, for scripts; with a program also how many layers with zeros run sparse, and how many layers multiply
/// 8-bit codes.
pub fn coverage_json(coverage: &Coverage, p: Option<&Program>) -> Json {
    let count =
        |(name, (found, fused)): (&&str, &(usize, usize))| ((*name).to_string(), json!({ "fused": fused, "found": found }));
    let mut all: Json = coverage.iter().map(count).collect();
    let Some(p) = p else { return all };
    let count = |f: &dyn Fn(&LayerChoice) -> bool| p.layers.iter().filter(|(_, l)| f(l)).count();
    let (zeros, sparse) = (count(&|l| l.zeros > MANY_ZEROS), count(&|l| l.sparse.is_some()));
    all["sparse"] = json!({ "fused": sparse, "found": zeros });
    all["int8"] = json!({ "fused": count(&is_int8), "found": count(&|_| true) });
    all
}

fn is_int8(l: &LayerChoice) -> bool {
    l.dtype == DType::I8
}

/// How each layer with a constant weight is computed.
pub fn layers(p: &Program) -> Vec<Json> {
    let layer = |(loc, l): &(Loc, LayerChoice)| {
        let cost = l.sparse_cost.is_finite().then_some(l.sparse_cost);
        let block = l.sparse.map(|b| b.to_string());
        json!({ "node": loc.path(), "int8": is_int8(l), "bits": l.bits, "block": block, "zeros": l.zeros, "sparse_cost": cost })
    };
    p.layers.iter().map(layer).collect()
}

/// Says which weights with zeros stay dense, and why.
pub fn print_layer_remarks(p: &Program, pass: &str) {
    let dense = p.layers.iter().filter(|(_, l)| l.zeros > MANY_ZEROS && l.sparse.is_none());
    for (loc, l) in dense.filter(|_| pass.is_empty() || pass == "lower") {
        let (zeros, cost) = (l.zeros * 100.0, l.sparse_cost);
        eprintln!(
            "remark[lower]: {zeros:.0} % of the weight are zero, but the sparse kernel would take {cost:.2} times as long as the dense one\n  --> node \"{}\"",
            clean(loc.path())
        );
    }
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
