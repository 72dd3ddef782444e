//! Which operators of a model are not supported.

use std::collections::BTreeMap;
use std::path::Path;

use transc_ir::diag::Fault;

use super::check;
use crate::error::quote;
use crate::{FrontendError, ImportOptions, Problem};

/// An operator that a model uses and that cannot be imported, or not in the form in which it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedOp {
    /// Operator and version, such as `NonMaxSuppression, opset 17`.
    pub op: String,
    /// Why.
    pub reason: String,
    /// Paths of the nodes.
    pub nodes: Vec<String>,
}

/// How much of a model can be imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SupportReport {
    /// Nodes by operator (`domain.Op`), functions and nested graphs included, each counted once.
    pub ops: BTreeMap<String, usize>,
    /// Everything that is not supported.
    pub unsupported: Vec<UnsupportedOp>,
}

/// Says what of a model file is not supported.
///
/// # Errors
/// A file that is not a valid model, whatever is supported.
pub fn support(path: &Path, options: &ImportOptions) -> Result<SupportReport, FrontendError> {
    let model = super::read_model(path, options)?;
    let mut report = SupportReport::default();
    let graphs = model.graph.iter().flat_map(|g| &g.node).chain(model.functions.iter().flat_map(|f| &f.node));
    let mut rest: Vec<_> = graphs.collect();
    while let Some(n) = rest.pop() {
        let domain = check::domain(n.domain());
        let name = if domain.is_empty() { n.op_type().to_owned() } else { format!("{domain}.{}", n.op_type()) };
        *report.ops.entry(name).or_default() += 1;
        rest.extend(check::subgraphs(n).flat_map(|g| &g.node));
    }
    if let Err(e) = super::load(path, options) {
        let (gaps, faults): (Vec<_>, Vec<_>) = e.problems.into_iter().partition(|p| p.fault == Fault::Unsupported);
        if !faults.is_empty() {
            return Err(FrontendError { file: e.file, problems: faults });
        }
        for p in gaps {
            let nodes = if p.node.is_empty() { Vec::new() } else { p.node.split(", ").map(str::to_owned).collect() };
            report.unsupported.push(UnsupportedOp { op: p.op, reason: p.message, nodes });
        }
    }
    Ok(report)
}

/// Problems with one message and operator become one that names all nodes.
pub(super) fn grouped(problems: Vec<Problem>) -> Vec<Problem> {
    const SHOWN: usize = 8;
    let mut out: Vec<(Problem, Vec<String>)> = Vec::new();
    let mut at: BTreeMap<(&'static str, String, String), usize> = BTreeMap::new();
    for p in problems {
        let key = (p.code, p.op.clone(), p.message.clone());
        match at.get(&key) {
            Some(i) if p.fault == Fault::Unsupported => out[*i].1.push(p.node),
            _ => {
                at.insert(key, out.len());
                let node = p.node.clone();
                out.push((p, vec![node]));
            }
        }
    }
    out.into_iter()
        .map(|(mut p, nodes)| {
            p.node = nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            if nodes.len() > SHOWN {
                p.message = format!("{} ({} nodes, such as {})", p.message, nodes.len(), quote(&nodes[0]));
            }
            p
        })
        .collect()
}
