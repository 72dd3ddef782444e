//! The importer: walks the nodes of a graph in order and builds IR for each.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use transc_ir::diag::Fault;
use transc_ir::interp::Tensor;
use transc_ir::scalar::{Body, Inst};
use transc_ir::tensor::ConstData;
use transc_ir::tensor::rewrite::compact;
use transc_ir::{Builder, DType, Dim, Loc, Module, TensorType, Value, op};

use super::check::{self, FunctionKey};
use super::cx::{Attrs, OpCx};
use super::error::OpError;
use super::facts::Facts;
use super::ops::{self, OpRow};
use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use super::tensor::TensorReader;
use super::{MAX_OPSET, inputs};
use crate::Problem;
use crate::error::quote;
use crate::options::ImportOptions;
use crate::weights::ModelDir;

/// Most minima that one node decides.
const MAX_DECISIONS: usize = 16;

/// What a name of the file stands for.
#[derive(Clone, Copy)]
pub(super) enum Binding<'a> {
    /// A value of the IR.
    Value(Value),
    /// A weight that is not read yet.
    Tensor(&'a TensorProto),
    /// A sparse weight that is not read yet.
    Sparse(&'a SparseTensorProto),
    /// The result of a node that could not be imported; what depends on it is left out without further words.
    Poison,
    /// A result that the builder of its node does not give.
    Missing,
}

/// The names of one graph or function body.
pub(super) struct Scope<'a> {
    /// The graph around this one, whose names are visible here.
    pub(super) parent: Option<usize>,
    pub(super) names: HashMap<&'a str, Binding<'a>>,
    /// Versions of the operator sets.
    pub(super) opsets: Rc<BTreeMap<String, i64>>,
    /// What the attributes of the enclosing function are bound to.
    pub(super) attrs: Rc<Attrs<'a>>,
    /// Path of the call, ending in `/`, or empty.
    pub(super) path: Rc<str>,
    pub(super) depth: usize,
}

/// The state of one import.
pub(super) struct Importer<'a> {
    pub(super) options: &'a ImportOptions,
    pub(super) module: Module,
    pub(super) facts: Facts,
    pub(super) problems: Vec<Problem>,
    pub(super) scopes: Vec<Scope<'a>>,
    /// The tensors of each sequence, by the value that stands for it, which no operator on tensors takes.
    pub(super) sequences: BTreeMap<Value, Vec<Value>>,
    functions: BTreeMap<FunctionKey<'a>, &'a FunctionProto>,
    dir: Option<ModelDir>,
    built: usize,
    exhausted: bool,
}

/// Imports a checked model.
///
/// # Errors
/// Every problem that was found.
pub(super) fn import(model: &ModelProto, dir: Option<ModelDir>, options: &ImportOptions) -> Result<Module, Vec<Problem>> {
    let graph = model.graph.as_ref().ok_or_else(|| vec![Problem::invalid("T0108", "the model has no graph")])?;
    let opsets = check::opsets(&model.opset_import).map_err(|p| vec![p])?;
    let name = if graph.name().is_empty() { "model" } else { graph.name() };
    let mut imp = Importer {
        options,
        module: Module::new(name),
        facts: Facts::default(),
        problems: Vec::new(),
        scopes: Vec::new(),
        sequences: BTreeMap::new(),
        functions: model.functions.iter().map(|f| (check::function_key(f), f)).collect(),
        dir,
        built: 0,
        exhausted: false,
    };
    imp.scopes.push(Scope {
        parent: None,
        names: HashMap::new(),
        opsets: Rc::new(opsets),
        attrs: Rc::default(),
        path: "".into(),
        depth: 0,
    });
    imp.weights(0, graph);
    inputs::declare(&mut imp, graph);
    imp.nodes(0, &graph.node);
    imp.outputs(graph);
    if !imp.problems.is_empty() {
        return Err(imp.problems);
    }
    // Shape arithmetic has become dims: what computed it is no longer used.
    imp.module.main = compact(imp.module.take_main());
    inputs::release_unread(&mut imp.module, options);
    Ok(imp.module)
}

impl<'a> Importer<'a> {
    fn reader(&mut self) -> TensorReader<'_> {
        TensorReader { dir: self.dir.as_mut(), limits: self.options.limits }
    }

    /// Declares the weights of a graph.
    pub(super) fn weights(&mut self, scope: usize, g: &'a GraphProto) {
        let names = &mut self.scopes[scope].names;
        names.extend(g.initializer.iter().map(|t| (t.name(), Binding::Tensor(t))));
        names.extend(g.sparse_initializer.iter().filter_map(|s| Some((s.values.as_ref()?.name(), Binding::Sparse(s)))));
    }

    fn outputs(&mut self, g: &'a GraphProto) {
        for o in &g.output {
            match self.lookup(0, o.name()) {
                Some(Binding::Value(v)) if self.sequences.contains_key(&v) => {
                    let message = format!("the output {} is a sequence; only tensors are supported", quote(o.name()));
                    self.problems.push(Problem::new("T0310", Fault::Unsupported, message));
                }
                Some(Binding::Value(v)) => self.module.main.add_result(o.name(), v),
                Some(Binding::Missing) => self.problems.push(missing(o.name())),
                Some(_) => {}
                None => self.problems.push(Problem::invalid("T0112", format!("the output {} is not defined", quote(o.name())))),
            }
        }
    }

    /// What a name stands for; a weight is read at its first use. `None` if it is not defined.
    pub(super) fn lookup(&mut self, scope: usize, name: &str) -> Option<Binding<'a>> {
        let mut at = scope;
        let found = loop {
            match (self.scopes[at].names.get(name), self.scopes[at].parent) {
                (Some(b), _) => break *b,
                (None, Some(parent)) => at = parent,
                (None, None) => return None,
            }
        };
        let read = match found {
            Binding::Value(_) | Binding::Poison | Binding::Missing => return Some(found),
            Binding::Tensor(t) => self.reader().read(t),
            Binding::Sparse(s) => self.reader().read_sparse(s),
        };
        let bound = match read.map_err(OpError::from).and_then(|data| self.constant(name, data)) {
            Ok(v) => Binding::Value(v),
            Err(e) => {
                self.report(e, name, "");
                Binding::Poison
            }
        };
        if let Some(slot) = self.scopes[at].names.get_mut(name) {
            *slot = bound;
        }
        Some(bound)
    }

    /// Adds a constant of the module.
    pub(super) fn constant(&mut self, name: &str, data: ConstData) -> super::error::Result<Value> {
        Ok(self.builder(Loc::unknown()).constant(name, data)?)
    }

    /// Adds a tensor as a constant of the module.
    pub(super) fn tensor(&mut self, name: &str, t: Tensor) -> super::error::Result<Value> {
        let ty = TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>());
        match ConstData::new(ty, t.data) {
            Some(data) => self.constant(name, data),
            None => Err(Problem::invalid("T0122", format!("the data of {} does not fit its dims", quote(name))).into()),
        }
    }

    /// A builder at the end of the entry function.
    pub(super) fn builder(&mut self, loc: Loc) -> Builder<'_> {
        let mut b = Builder::new(&mut self.module.main, &mut self.module.consts);
        b.loc = loc;
        b
    }

    /// Reads a tensor attribute.
    pub(super) fn read_tensor(&mut self, t: &TensorProto) -> Result<ConstData, Problem> {
        self.reader().read(t)
    }

    /// Reads a sparse tensor attribute.
    pub(super) fn read_sparse(&mut self, t: &SparseTensorProto) -> Result<ConstData, Problem> {
        self.reader().read_sparse(t)
    }

    fn report(&mut self, e: OpError, node: &str, op: &str) {
        let problem = match e {
            OpError::Type(t) => Problem::invalid(t.code, t.message),
            OpError::Other(p) => *p,
            OpError::Retry => Problem::new("T0399", Fault::Bug, "a symbolic dim is replaced again and again"),
        };
        let keep = if problem.node.is_empty() { problem.at(node, op) } else { problem };
        self.problems.push(keep);
    }

    /// Builds nodes in an order in which operands come first.
    pub(super) fn nodes(&mut self, scope: usize, nodes: &'a [NodeProto]) {
        let Ok(order) = check::order(nodes) else { return };
        for i in order {
            if self.exhausted {
                return;
            }
            self.node(scope, &nodes[i]);
        }
    }

    fn node(&mut self, scope: usize, n: &'a NodeProto) {
        self.built += 1;
        if self.built > self.options.limits.nodes {
            self.exhausted = true;
            let max = self.options.limits.nodes;
            self.problems.push(
                Problem::limit("T0115", format!("the model expands to more than {max} nodes"))
                    .at(check::node_name(n), n.op_type()),
            );
            return;
        }
        let path = format!("{}{}", self.scopes[scope].path, check::node_name(n));
        let domain = check::domain(n.domain());
        let version = self.scopes[scope].opsets.get(domain).copied();
        let label = match version {
            Some(v) => format!("{}, opset {v}", n.op_type()),
            None => n.op_type().to_owned(),
        };
        let built = self.build(scope, n, domain, version, &path).unwrap_or_else(|e| {
            self.report(e, &path, &label);
            Vec::new()
        });
        let rest = if built.is_empty() { Binding::Poison } else { Binding::Missing };
        let mut outputs = built.into_iter().map(|v| v.map_or(Binding::Poison, Binding::Value));
        for o in &n.output {
            let b = outputs.next().unwrap_or(rest);
            if !o.is_empty() {
                self.scopes[scope].names.insert(o, b);
            }
        }
    }

    /// The results of a node; `None` for one that depends on a node that failed.
    fn build(
        &mut self,
        scope: usize,
        n: &'a NodeProto,
        domain: &str,
        version: Option<i64>,
        path: &str,
    ) -> super::error::Result<Vec<Option<Value>>> {
        let mut attrs = Attrs::new();
        for a in &n.attribute {
            let bound =
                if a.ref_attr_name().is_empty() { Some(a) } else { self.scopes[scope].attrs.get(a.ref_attr_name()).copied() };
            attrs.extend(bound.map(|b| (a.name(), b)));
        }
        let function = self.functions.get(&check::callee(n)).copied();
        let row = if function.is_some() { None } else { Some(find_row(n, domain, version)?) };
        let mut operands = Vec::with_capacity(n.input.len());
        for i in &n.input {
            operands.push(match self.lookup(scope, i) {
                _ if i.is_empty() => None,
                Some(Binding::Value(v)) => Some(v),
                Some(Binding::Missing) => return Err(missing(i).into()),
                Some(_) => return Ok(Vec::new()),
                None => return Err(Problem::invalid("T0111", format!("the value {} is not defined", quote(i))).into()),
            });
        }
        if let Some(f) = function {
            return self.call(scope, n, f, attrs, &operands, path);
        }
        let Some(OpRow { build, sequences, .. }) = row else { return Ok(Vec::new()) };
        if !sequences && operands.iter().flatten().any(|v| self.sequences.contains_key(v)) {
            return super::error::invalid("takes tensors, but is given a sequence");
        }
        let version = version.unwrap_or(1);
        // A retry removes a symbol or decides a minimum, so there are few.
        for _ in 0..=self.module.symbols.len() + MAX_DECISIONS {
            self.facts.propagate(&self.module);
            let mut cx =
                OpCx { imp: self, scope, node: n, attrs: &attrs, operands: &operands, opset: version, loc: Loc::new(path) };
            match build(&mut cx) {
                Err(OpError::Retry) => {}
                done => {
                    let values = done?;
                    self.facts.propagate(&self.module);
                    return values.into_iter().map(|v| self.as_dim(v, path).map(Some)).collect();
                }
            }
        }
        Err(OpError::Retry)
    }

    /// One integer that is a dim in disguise, such as an element of a shape, as that dim.
    fn as_dim(&mut self, v: Value, path: &str) -> super::error::Result<Value> {
        let ty = self.module.main.ty(v).clone();
        let Some([d]) = self.facts.symbolic(v) else { return Ok(v) };
        let sources = self.module.main.def_node(v).is_none_or(|n| n.operands.is_empty());
        if sources || d.as_const().is_some() || !ty.dtype.is_int() {
            return Ok(v);
        }
        let mut body = Body::builder(0);
        let n = body.push(Inst::Dim(d.clone()));
        let n = if ty.dtype == DType::I64 { n } else { body.cast(ty.dtype, n) };
        let mut b = self.builder(Loc::new(path));
        let scalar = b.add(op::Map { body: body.finish(n) }, &[])?;
        Ok(b.reshape(scalar, ty.dims)?)
    }

    /// Builds the body of a local function in place of its call.
    fn call(
        &mut self,
        scope: usize,
        n: &'a NodeProto,
        f: &'a FunctionProto,
        given: Attrs<'a>,
        operands: &[Option<Value>],
        path: &str,
    ) -> super::error::Result<Vec<Option<Value>>> {
        let depth = self.enter(scope)?;
        let mut attrs: Attrs<'a> = f.attribute_proto.iter().map(|a| (a.name(), a)).collect();
        attrs.extend(given);
        if operands.len() > f.input.len() {
            return super::error::invalid(format!(
                "the function {} takes {} inputs, {} are given",
                quote(f.name()),
                f.input.len(),
                operands.len()
            ));
        }
        let opsets: BTreeMap<String, i64> =
            f.opset_import.iter().map(|o| (check::domain(o.domain()).to_owned(), o.version())).collect();
        let names = f.input.iter().zip(operands).filter_map(|(name, v)| Some((name.as_str(), Binding::Value((*v)?)))).collect();
        let path = format!("{path}/").into();
        self.scopes.push(Scope { parent: None, names, opsets: Rc::new(opsets), attrs: Rc::new(attrs), path, depth });
        let inner = self.scopes.len() - 1;
        self.nodes(inner, &f.node);
        let mut out = Vec::new();
        for o in f.output.iter().take(n.output.len()) {
            out.push(match self.lookup(inner, o) {
                Some(Binding::Value(v)) => Some(v),
                _ => None,
            });
        }
        self.scopes.truncate(inner);
        Ok(out)
    }

    /// The depth of a scope inside `scope`.
    pub(super) fn enter(&self, scope: usize) -> super::error::Result<usize> {
        let depth = self.scopes[scope].depth + 1;
        if depth > self.options.limits.depth {
            return super::error::limit(format!("graphs and calls are nested deeper than {}", self.options.limits.depth));
        }
        Ok(depth)
    }

    /// Builds a nested graph whose inputs are `operands`; `None` if one of its results is not known.
    pub(super) fn subgraph(
        &mut self,
        scope: usize,
        g: &'a GraphProto,
        operands: &[Value],
        path: &str,
    ) -> super::error::Result<Option<Vec<Value>>> {
        let depth = self.enter(scope)?;
        let outer = &self.scopes[scope];
        let inner = Scope {
            parent: Some(scope),
            names: g.input.iter().map(|i| i.name()).zip(operands.iter().map(|v| Binding::Value(*v))).collect(),
            opsets: Rc::clone(&outer.opsets),
            attrs: Rc::clone(&outer.attrs),
            path: format!("{path}/").into(),
            depth,
        };
        self.scopes.push(inner);
        let inner = self.scopes.len() - 1;
        self.weights(inner, g);
        self.nodes(inner, &g.node);
        let mut out = Some(Vec::new());
        for o in &g.output {
            match (self.lookup(inner, o.name()), &mut out) {
                (Some(Binding::Value(v)), Some(list)) => list.push(v),
                _ => out = None,
            }
        }
        self.scopes.truncate(inner);
        Ok(out)
    }
}

/// The problem of a result that is asked for, but not given.
fn missing(name: &str) -> Problem {
    Problem::new("T0302", Fault::Unsupported, format!("the result {} of its operator is not supported", quote(name)))
}

/// The row of the operator of a node.
fn find_row(n: &NodeProto, domain: &str, version: Option<i64>) -> Result<&'static OpRow, Problem> {
    let full = if domain.is_empty() { n.op_type().to_owned() } else { format!("{domain}.{}", n.op_type()) };
    let gap =
        |why: String| Problem::new("T0301", Fault::Unsupported, format!("the operator {} is not supported{why}", quote(&full)));
    let mut rows = ops::rows(domain, n.op_type()).peekable();
    if rows.peek().is_none() {
        return Err(gap(String::new()));
    }
    let Some(v) = version else {
        return Err(Problem::invalid("T0108", format!("no version of the operator set {} is imported", quote(domain))));
    };
    if domain.is_empty() && v > MAX_OPSET {
        return Err(gap(format!(" in opset {v}")));
    }
    rows.find(|r| r.since.contains(&v)).ok_or_else(|| gap(format!(" in opset {v}")))
}
