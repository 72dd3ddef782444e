//! What must hold of a model before any node is looked at: names, order, versions, tensors, calls.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use transc_ir::diag::Fault;

use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use super::{MAX_OPSET, MIN_OPSET, tensor};
use crate::Problem;
use crate::error::quote;
use crate::options::Limits;

/// Domain, name and overload of a local function.
pub(super) type FunctionKey<'a> = (&'a str, &'a str, &'a str);

/// The default domain has two spellings.
pub(super) fn domain(d: &str) -> &str {
    if d == "ai.onnx" { "" } else { d }
}

/// The key of the function that a node would call.
pub(super) fn callee(n: &NodeProto) -> FunctionKey<'_> {
    (domain(n.domain()), n.op_type(), n.overload())
}

/// The key of a function.
pub(super) fn function_key(f: &FunctionProto) -> FunctionKey<'_> {
    (domain(f.domain()), f.name(), f.overload())
}

/// What a node is called in messages: its name, or its first output.
pub(super) fn node_name(n: &NodeProto) -> &str {
    if n.name().is_empty() { n.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str) } else { n.name() }
}

/// The graphs in the attributes of a node.
pub(super) fn subgraphs(n: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Versions by domain.
///
/// # Errors
/// A domain twice, a version of the default domain outside the supported range.
pub(super) fn opsets(imports: &[OperatorSetIdProto]) -> Result<BTreeMap<String, i64>, Problem> {
    let mut out = BTreeMap::new();
    for o in imports {
        if out.insert(domain(o.domain()).to_owned(), o.version()).is_some_and(|v| v != o.version()) {
            return Err(Problem::invalid(
                "T0108",
                format!("two versions of the operator set {} are imported", quote(o.domain())),
            ));
        }
    }
    match out.get("") {
        None => Ok(out),
        Some(v) if *v < 1 => Err(Problem::invalid("T0108", format!("the operator set version {v} does not exist"))),
        Some(v) if *v > MAX_OPSET => {
            Err(Problem::new("T0109", Fault::Unsupported, format!("opset {v} is newer than the newest supported, {MAX_OPSET}"))
                .help("export the model with an older opset"))
        }
        Some(v) if *v < MIN_OPSET => {
            Err(Problem::new("T0109", Fault::Unsupported, format!("opset {v} is older than the oldest supported, {MIN_OPSET}"))
                .help("export the model with a newer opset, or run the ONNX version converter"))
        }
        Some(_) => Ok(out),
    }
}

/// Checks a whole model.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn check(model: &ModelProto, limits: &Limits) -> Result<(), Vec<Problem>> {
    let mut cx = Check { limits, problems: Vec::new() };
    if let Err(p) = opsets(&model.opset_import) {
        cx.problems.push(p);
    }
    match &model.graph {
        Some(g) => {
            let versioned = model.opset_import.iter().any(|o| domain(o.domain()).is_empty());
            if !versioned && g.node.iter().any(|n| domain(n.domain()).is_empty()) {
                cx.problems.push(Problem::invalid("T0108", "no version of the default operator set is imported"));
            }
            cx.graph(g, &mut Vec::new());
        }
        None => cx.problems.push(Problem::invalid("T0108", "the model has no graph")),
    }
    cx.functions(&model.functions);
    if cx.problems.is_empty() { Ok(()) } else { Err(cx.problems) }
}

struct Check<'l> {
    limits: &'l Limits,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn functions(&mut self, functions: &[FunctionProto]) {
        let mut table = BTreeMap::new();
        for f in functions {
            if table.insert(function_key(f), f).is_some() {
                self.problems.push(Problem::invalid("T0114", format!("the function {} is defined twice", quote(f.name()))));
            }
        }
        for f in functions {
            let names: HashSet<&str> = f.input.iter().map(String::as_str).collect();
            self.nodes(&f.node, names, f.output.iter().map(String::as_str), &mut Vec::new());
        }
        if let Some(path) = recursion(&table) {
            let path = path.iter().map(|k| k.1).collect::<Vec<_>>().join(" -> ");
            self.problems.push(Problem::invalid("T0114", format!("recursive function {}", quote(&path))));
        }
    }

    fn graph<'a>(&mut self, g: &'a GraphProto, outer: &mut Vec<HashSet<&'a str>>) {
        if outer.len() >= self.limits.depth {
            self.problems.push(Problem::limit("T0105", format!("graphs are nested deeper than {}", self.limits.depth)));
            return;
        }
        let mut names = HashSet::new();
        for i in &g.input {
            if !names.insert(i.name()) {
                self.problems.push(Problem::invalid("T0110", format!("the input {} is defined twice", quote(i.name()))));
            }
        }
        let mut weights = HashSet::new();
        let dense = g.initializer.iter().map(|t| (t, t.name()));
        let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| (v, v.name()));
        for (t, name) in dense.clone().chain(sparse) {
            if !weights.insert(name) {
                self.problems.push(Problem::invalid("T0110", format!("the initializer {} is defined twice", quote(name))));
            }
            names.insert(name);
            if t.name().is_empty() {
                self.problems.push(Problem::invalid("T0110", "an initializer has no name"));
            }
        }
        for (t, _) in dense {
            // Element types that exist, but are not supported, matter only where they are used.
            self.problems.extend(tensor::check(t, self.limits).err().filter(|p| p.fault != Fault::Unsupported));
        }
        self.nodes(&g.node, names, g.output.iter().map(|o| o.name()), outer);
    }

    fn nodes<'a>(
        &mut self,
        nodes: &'a [NodeProto],
        mut names: HashSet<&'a str>,
        outputs: impl Iterator<Item = &'a str>,
        outer: &mut Vec<HashSet<&'a str>>,
    ) {
        for n in nodes {
            for o in n.output.iter().filter(|o| !o.is_empty()) {
                if !names.insert(o) {
                    self.problems.push(
                        Problem::invalid("T0110", format!("the value {} is defined twice", quote(o)))
                            .at(node_name(n), n.op_type()),
                    );
                }
            }
            for t in n.attribute.iter().flat_map(|a| a.t.iter().chain(&a.tensors)) {
                let problem = tensor::check(t, self.limits).err().filter(|p| p.fault != Fault::Unsupported);
                self.problems.extend(problem.map(|p| p.at(node_name(n), n.op_type())));
            }
        }
        for n in nodes {
            for i in n.input.iter().filter(|i| !i.is_empty()) {
                if !names.contains(i.as_str()) && !outer.iter().any(|s| s.contains(i.as_str())) {
                    self.problems.push(
                        Problem::invalid("T0111", format!("the value {} is not defined", quote(i))).at(node_name(n), n.op_type()),
                    );
                }
            }
        }
        for o in outputs {
            if !names.contains(o) && !outer.iter().any(|s| s.contains(o)) {
                self.problems.push(Problem::invalid("T0112", format!("the output {} is not defined", quote(o))));
            }
        }
        if let Err(cycle) = order(nodes) {
            let path = cycle.iter().map(|i| quote(node_name(&nodes[*i]))).collect::<Vec<_>>().join(" -> ");
            self.problems.push(Problem::invalid("T0113", format!("the graph has a cycle through the nodes {path}")));
        }
        outer.push(names);
        for g in nodes.iter().flat_map(subgraphs) {
            self.graph(g, outer);
        }
        outer.pop();
    }
}

/// Names that a graph reads from outside, nested graphs included.
fn free_names<'a>(g: &'a GraphProto, out: &mut BTreeSet<&'a str>) {
    let mut inner = BTreeSet::new();
    for n in &g.node {
        inner.extend(n.input.iter().map(String::as_str));
        for s in subgraphs(n) {
            free_names(s, &mut inner);
        }
    }
    inner.extend(g.output.iter().map(|o| o.name()));
    let own: HashSet<&str> = (g.input.iter().map(|i| i.name()))
        .chain(g.initializer.iter().map(|t| t.name()))
        .chain(g.node.iter().flat_map(|n| n.output.iter().map(String::as_str)))
        .collect();
    out.extend(inner.into_iter().filter(|n| !own.contains(n)));
}

/// An evaluation order of nodes: the given one if it is one, else the one that keeps most of it.
///
/// # Errors
/// The nodes of a cycle, in order.
pub(super) fn order(nodes: &[NodeProto]) -> Result<Vec<usize>, Vec<usize>> {
    let producer: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), i)))
        .collect();
    let operands: Vec<Vec<usize>> = nodes
        .iter()
        .map(|n| {
            let mut free = BTreeSet::new();
            for g in subgraphs(n) {
                free_names(g, &mut free);
            }
            let mut d: Vec<usize> =
                n.input.iter().map(String::as_str).chain(free).filter_map(|i| producer.get(i).copied()).collect();
            d.sort_unstable();
            d.dedup();
            d
        })
        .collect();
    if operands.iter().enumerate().all(|(i, d)| d.iter().all(|o| *o < i)) {
        return Ok((0..nodes.len()).collect());
    }
    let mut users = vec![Vec::new(); nodes.len()];
    let mut missing: Vec<usize> = operands.iter().map(Vec::len).collect();
    for (i, d) in operands.iter().enumerate() {
        for o in d {
            users[*o].push(i);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|i| missing[*i] == 0).map(Reverse).collect();
    let mut out = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        out.push(i);
        for u in &users[i] {
            missing[*u] -= 1;
            if missing[*u] == 0 {
                ready.push(Reverse(*u));
            }
        }
    }
    if out.len() == nodes.len() {
        return Ok(out);
    }
    // Every node left over waits for another one: following those must come back.
    let mut at = missing.iter().position(|m| *m > 0).unwrap_or(0);
    let mut path: Vec<usize> = Vec::new();
    loop {
        if let Some(p) = path.iter().position(|x| *x == at) {
            let mut cycle = path.split_off(p);
            cycle.reverse();
            return Err(cycle);
        }
        path.push(at);
        match operands[at].iter().find(|o| missing[**o] > 0) {
            Some(o) => at = *o,
            None => return Err(path),
        }
    }
}

/// A cycle of calls, if there is one; the first function stands at both ends.
fn recursion<'a>(table: &BTreeMap<FunctionKey<'a>, &'a FunctionProto>) -> Option<Vec<FunctionKey<'a>>> {
    let mut calls = BTreeMap::new();
    for (key, f) in table {
        let mut called = Vec::new();
        let mut nodes: Vec<&NodeProto> = f.node.iter().collect();
        while let Some(n) = nodes.pop() {
            if table.contains_key(&callee(n)) {
                called.push(callee(n));
            }
            nodes.extend(subgraphs(n).flat_map(|g| &g.node));
        }
        calls.insert(*key, called);
    }
    let mut done = BTreeSet::new();
    for start in table.keys() {
        // A path of (function, number of its calls already followed).
        let mut path = vec![(*start, 0)];
        while let Some((key, next)) = path.last_mut() {
            let Some(call) = calls[key].get(*next).copied() else {
                done.insert(*key);
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(p) = path.iter().position(|(k, _)| *k == call) {
                return Some(path[p..].iter().map(|(k, _)| *k).chain([call]).collect());
            }
            if !done.contains(&call) {
                path.push((call, 0));
            }
        }
    }
    None
}
