//! The e-graph of a function, as rules see it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egg::{EGraph, Id, Language};
use transc_ir::interp::Tensor;
use transc_ir::op::{Broadcast, Map, Op, Reshape, Transpose};
use transc_ir::scalar::{Body, Inst, Literal, Ref};
use transc_ir::tensor::{ConstPool, Func, ValueDef};
use transc_ir::types::{DType, Dim, Ranges};
use transc_ir::{Loc, TensorType, Value};

use super::language::{Facts, Known, Term};

/// The e-graph of a function.
pub struct Graph<'a> {
    egraph: EGraph<Term, Facts>,
    /// The classes of the results of the function.
    pub roots: Vec<Id>,
    /// The symbolic dims.
    pub ranges: &'a Ranges,
    /// Classes that were looked into since they were last taken, if that is recorded.
    reads: Option<RefCell<BTreeSet<Id>>>,
}

impl<'a> Graph<'a> {
    /// The e-graph of `f`. `constant` tells which parameters stand for constants.
    pub fn new(f: &Func, constant: &[bool], consts: Arc<ConstPool>, ranges: &'a Ranges) -> Self {
        let params = f.params().iter().enumerate();
        let params = params.map(|(i, (_, v))| (f.ty(*v).clone(), constant.get(i).copied().unwrap_or(false))).collect();
        let egraph = EGraph::new(Facts { consts, params, loc: Loc::unknown() });
        let mut g = Graph { egraph, roots: Vec::new(), ranges, reads: None };
        let mut ids: BTreeMap<Value, Id> = BTreeMap::new();
        for (i, (_, v)) in f.params().iter().enumerate() {
            ids.insert(*v, g.egraph.add(Term::Param(i as u32)));
        }
        for (_, node) in f.nodes() {
            g.egraph.analysis.loc = node.loc.clone();
            let args = node.operands.iter().map(|v| ids[v]).collect();
            let id = g.egraph.add(Term::Op(Arc::new(node.op.clone()), args));
            match node.results.as_slice() {
                [v] => {
                    ids.insert(*v, id);
                }
                several => {
                    for (i, v) in several.iter().enumerate() {
                        ids.insert(*v, g.egraph.add(Term::Result(i as u32, [id])));
                    }
                }
            }
        }
        debug_assert!(
            f.results().iter().all(|(_, v)| !matches!(f.def(*v), ValueDef::Param(p) if p as usize >= f.params().len()))
        );
        g.roots = f.results().iter().map(|(_, v)| ids[v]).collect();
        g.egraph.rebuild();
        g
    }

    /// The representative of a class.
    pub fn find(&self, id: Id) -> Id {
        self.egraph.find(id)
    }

    /// What is known of a class.
    pub fn known(&self, id: Id) -> &Known {
        &self.egraph[id].data
    }

    /// The type of a class of values.
    pub fn ty(&self, id: Id) -> &TensorType {
        &self.known(id).types[0]
    }

    /// The dims of a class of values.
    pub fn dims(&self, id: Id) -> &[Dim] {
        &self.ty(id).dims
    }

    /// The ops that compute a class, with their operands.
    pub fn ops(&self, id: Id) -> impl Iterator<Item = (&Op, &[Id])> {
        if let Some(reads) = &self.reads {
            reads.borrow_mut().insert(self.find(id));
        }
        self.egraph[id].nodes.iter().filter_map(|t| t.as_op().map(|(op, args)| (&**op, args)))
    }

    /// The first op of a class of which `f` gives something.
    pub fn first<T>(&self, id: Id, f: impl FnMut((&Op, &[Id])) -> Option<T>) -> Option<T> {
        self.ops(id).find_map(f)
    }

    /// Classes that have an e-node with an operand in this class, each once, in order.
    pub fn users(&self, id: Id) -> Vec<Id> {
        let mut users: Vec<Id> = self.egraph[id].parents().map(|p| self.find(p)).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// All classes with their e-nodes, in order.
    pub fn classes(&self) -> Vec<(Id, &[Term])> {
        let mut all: Vec<(Id, &[Term])> = self.egraph.classes().map(|c| (c.id, c.nodes.as_slice())).collect();
        all.sort_unstable_by_key(|c| c.0);
        all
    }

    /// Number of e-nodes.
    pub fn size(&self) -> usize {
        self.egraph.total_number_of_nodes()
    }

    /// The constants.
    pub fn consts(&self) -> &ConstPool {
        &self.egraph.analysis.consts
    }

    /// Adds a term with one result; `None` if the op does not take such operands.
    pub fn add(&mut self, op: impl Into<Op>, args: &[Id]) -> Option<Id> {
        let op = Arc::new(op.into());
        let term = Term::Op(op.clone(), args.iter().map(|a| self.find(*a)).collect());
        if let Some(id) = self.egraph.lookup(term.clone()) {
            return Some(id);
        }
        let operands: Vec<&TensorType> = args.iter().map(|a| self.ty(*a)).collect();
        let results = op.infer(&operands, &self.egraph.analysis.consts).ok()?;
        (results.len() == 1).then(|| self.egraph.add(term))
    }

    /// A result of an op with several.
    pub fn add_result(&mut self, op: impl Into<Op>, args: &[Id], result: u32) -> Option<Id> {
        let op = op.into();
        let operands: Vec<&TensorType> = args.iter().map(|a| self.ty(*a)).collect();
        let results = op.infer(&operands, &self.egraph.analysis.consts).ok()?;
        (results.len() > result as usize).then(|| {
            let of = self.egraph.add(Term::Op(Arc::new(op), args.to_vec()));
            self.egraph.add(Term::Result(result, [of]))
        })
    }

    /// Gives the terms that are added from now on the provenance of a class, if it has one. A rule starts with its site's.
    pub fn place_like(&mut self, id: Id) {
        let loc = self.known(id).loc.clone();
        if !loc.path().is_empty() {
            self.set_loc(&loc);
        }
    }

    /// As [`Graph::add`], with the provenance of another class.
    pub fn add_at(&mut self, like: Id, op: impl Into<Op>, args: &[Id]) -> Option<Id> {
        let here = self.egraph.analysis.loc.clone();
        self.place_like(like);
        let id = self.add(op, args);
        self.set_loc(&here);
        id
    }

    /// Sets the provenance of the terms that are added from now on.
    pub(super) fn set_loc(&mut self, loc: &Loc) {
        self.egraph.analysis.loc = loc.clone();
    }

    /// Makes two classes one; false if they were, or if their types differ.
    pub(super) fn unite(&mut self, a: Id, b: Id) -> bool {
        let same = self.known(a).types == self.known(b).types;
        same && self.egraph.union(a, b)
    }

    /// The number of terms added so far, for [`Graph::added_since`].
    pub(super) fn mark(&self) -> usize {
        self.egraph.nodes().len()
    }

    /// Records from now on which classes are looked into.
    pub(super) fn record_reads(&mut self) {
        self.reads = Some(RefCell::default());
    }

    /// The classes that were looked into since the last call.
    pub(super) fn take_reads(&self) -> BTreeSet<Id> {
        self.reads.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// Every term as it was added, by id; operands come before what they are operands of.
    pub(super) fn terms(&self) -> &[Term] {
        self.egraph.nodes()
    }

    /// The terms added since.
    pub(super) fn added_since(&self, mark: usize) -> Vec<Term> {
        self.egraph.nodes()[mark..].to_vec()
    }

    /// Restores congruence after unions.
    pub(super) fn rebuild(&mut self) {
        self.egraph.rebuild();
    }

    /// The value of a class of one integer that is known now.
    pub fn integer(&self, id: Id) -> Option<i64> {
        if self.ty(id).dtype.is_float() || !self.dims(id).iter().all(|d| d.is(1)) {
            return None;
        }
        self.first(id, |(op, args)| match op {
            Op::Constant(c) => Some(Tensor::from_const(self.consts().get(c.id)?).get_i64(0)),
            Op::Map(m) => match (m.body.insts.as_slice(), m.body.result) {
                ([Inst::Const(l)], Ref::Inst(0)) => Some(l.to_i64()),
                _ => None,
            },
            Op::Reshape(_) | Op::Broadcast(_) => self.integer(args[0]),
            _ => None,
        })
    }

    /// A rank-0 literal.
    pub fn scalar(&mut self, dtype: DType, v: f64) -> Option<Id> {
        self.add(Map { body: Body::constant(Literal::from_f64(dtype, v)) }, &[])
    }

    /// A reshape; the class itself if the dims are right already.
    pub fn reshape(&mut self, x: Id, dims: impl Into<Vec<Dim>>) -> Option<Id> {
        let dims = dims.into();
        if self.dims(x) == dims {
            return Some(x);
        }
        let inner = self.first(x, |(op, args)| matches!(op, Op::Reshape(_)).then(|| args[0])).unwrap_or(x);
        if self.dims(inner) == dims { Some(inner) } else { self.add(Reshape { dims }, &[inner]) }
    }

    /// A transposition, composed with one that the class already is; the class itself if nothing moves.
    pub fn transpose(&mut self, x: Id, perm: &[usize]) -> Option<Id> {
        let inner = self.first(x, |(op, args)| match op {
            Op::Transpose(t) => Some((args[0], perm.iter().map(|p| t.perm[*p]).collect::<Vec<_>>())),
            _ => None,
        });
        let (x, perm) = inner.unwrap_or_else(|| (x, perm.to_vec()));
        if perm.iter().copied().eq(0..perm.len()) { Some(x) } else { self.add(Transpose { perm }, &[x]) }
    }

    /// A broadcast; the class itself if the dims are right already.
    pub fn broadcast(&mut self, x: Id, dims: impl Into<Vec<Dim>>) -> Option<Id> {
        let dims = dims.into();
        if self.dims(x) == dims { Some(x) } else { self.add(Broadcast { dims }, &[x]) }
    }
}

impl Term {
    /// The term with its operands replaced by the representatives of their classes.
    pub fn canonical(&self, g: &Graph<'_>) -> Term {
        self.clone().map_children(|c| g.find(c))
    }
}
