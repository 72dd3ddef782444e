//! The e-node: an op of the tensor IR with its operands, and what the e-graph knows of a class.

use std::sync::Arc;

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use transc_ir::op::Op;
use transc_ir::tensor::ConstPool;
use transc_ir::{Loc, TensorType};

/// Operands of an e-node.
pub type Args = Vec<Id>;

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// A parameter of the function, by number. Its type is [`Facts::params`]'s.
    Param(u32),
    /// An op. Shared, since egg copies e-nodes freely.
    Op(Arc<Op>, Args),
    /// A result of an op with several, by number: such an op is a class of its own, of which only this reads.
    Result(u32, [Id; 1]),
}

/// What two e-nodes have in common if they differ in operands only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// See [`Term::Param`].
    Param(u32),
    /// See [`Term::Op`].
    Op(&'static str),
    /// See [`Term::Result`].
    Result(u32),
}

impl Term {
    /// The op and its operands.
    pub fn as_op(&self) -> Option<(&Arc<Op>, &[Id])> {
        match self {
            Term::Op(op, args) => Some((op, args)),
            _ => None,
        }
    }
}

impl Language for Term {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        match self {
            Term::Param(i) => Head::Param(*i),
            Term::Op(op, _) => Head::Op(op.mnemonic()),
            Term::Result(i, _) => Head::Result(*i),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Term::Param(a), Term::Param(b)) => a == b,
            (Term::Op(a, x), Term::Op(b, y)) => x.len() == y.len() && a == b,
            (Term::Result(a, _), Term::Result(b, _)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Param(_) => &[],
            Term::Op(_, args) => args,
            Term::Result(_, of) => of,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Param(_) => &mut [],
            Term::Op(_, args) => args,
            Term::Result(_, of) => of,
        }
    }
}

/// What is known of every e-node of a class.
#[derive(Clone, Debug)]
pub struct Known {
    /// Types of the results. Equal for all nodes of a class: [`super::Graph::unite`] refuses anything else.
    pub types: Vec<TensorType>,
    /// True if the value depends on constants of the model alone: it is computed when the model is compiled.
    pub constant: bool,
    /// The user's node.
    pub loc: Loc,
}

/// The analysis, with what it reads.
pub struct Facts {
    /// The constants of the module.
    pub consts: Arc<ConstPool>,
    /// Types of the parameters, and whether they stand for constants.
    pub params: Vec<(TensorType, bool)>,
    /// Provenance of the e-nodes that are added from now on.
    pub loc: Loc,
}

impl Analysis<Term> for Facts {
    type Data = Known;

    fn make(g: &mut EGraph<Term, Self>, term: &Term, _: Id) -> Known {
        let constant = |args: &[Id]| args.iter().all(|a| g[*a].data.constant);
        let (types, constant) = match term {
            Term::Param(i) => {
                let (ty, constant) = &g.analysis.params[*i as usize];
                (vec![ty.clone()], *constant)
            }
            Term::Op(op, args) => {
                let operands: Vec<&TensorType> = args.iter().map(|a| &g[*a].data.types[0]).collect();
                // The graph has inferred them before it added the term.
                let types = op.infer(&operands, &g.analysis.consts).unwrap_or_default();
                let dims_known = types.iter().all(|t| t.static_dims().is_some());
                (types, dims_known && constant(args) && !matches!(**op, Op::Dims(_) | Op::Iota(_)))
            }
            Term::Result(i, of) => {
                let all = &g[of[0]].data;
                (all.types.get(*i as usize).cloned().into_iter().collect(), all.constant)
            }
        };
        Known { types, constant, loc: g.analysis.loc.clone() }
    }

    fn merge(&mut self, a: &mut Known, b: Known) -> DidMerge {
        let became = !a.constant && b.constant;
        let other = a.constant && !b.constant;
        a.constant |= b.constant;
        if a.loc.path().is_empty() {
            a.loc = b.loc;
        }
        DidMerge(became, other)
    }
}
