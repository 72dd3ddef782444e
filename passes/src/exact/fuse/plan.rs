//! Which values are stored, and which are computed where they are read.

use std::collections::BTreeSet;

use transc_ir::op::Op;
use transc_ir::tensor::strided::Strided;
use transc_ir::tensor::{Func, Node, NodeId, Value};
use transc_ir::types::{DType, Dim, Ranges};

use super::class::{Role, has_epilogue, is_dense, role, unrounded};
use crate::analysis::cost;
use crate::analysis::uses::Uses;

/// Most nodes of a region, constants apart.
const MAX_NODES: usize = 64;
/// How often a region may spell out one value: lowering evaluates an expression where it stands.
const MAX_OCCURRENCES: u32 = 16;
/// How deep `concat` and `pad`, which branch, may nest.
const MAX_BRANCH_DEPTH: u32 = 3;

/// The decision for a function.
pub struct Plan {
    roots: Vec<bool>,
}

impl Plan {
    /// Decides for `f`.
    pub fn of(f: &Func, ranges: &Ranges) -> Self {
        let mut p = Planner {
            f,
            ranges,
            uses: Uses::of(f),
            views: views(f),
            chain: vec![None; f.node_count()],
            stored: vec![false; f.node_count()],
        };
        p.claim_epilogues();
        p.require_bases();
        Plan { roots: p.decide() }
    }

    /// True if the results of a node are stored: a region ends there.
    pub fn is_root(&self, id: NodeId) -> bool {
        self.roots[id.index()]
    }
}

/// What a value is a strided view of.
struct View {
    base: Value,
    strided: Strided,
}

/// Every value as a view of the nearest value that is not one.
fn views(f: &Func) -> Vec<View> {
    let whole = |v: Value| View { base: v, strided: Strided::contiguous(&f.ty(v).dims) };
    let mut views: Vec<View> = Vec::with_capacity(f.value_count());
    for i in 0..f.value_count() {
        let v = Value(i as u32);
        let through = f.def_node(v).and_then(|n| {
            let x = n.operands.first().filter(|x| x.index() < i)?;
            let from = &views[x.index()];
            let strided = match &n.op {
                Op::Map(m) => cost::lossless_cast(&m.body, f.ty(*x).dtype).map(|_| from.strided.clone()),
                op => from.strided.apply(op),
            };
            Some(View { base: from.base, strided: strided? })
        });
        views.push(through.unwrap_or_else(|| whole(v)));
    }
    views
}

struct Planner<'a> {
    f: &'a Func,
    ranges: &'a Ranges,
    uses: Uses,
    views: Vec<View>,
    /// The last node of the region of each anchor, and the anchor of each node of an epilogue.
    chain: Vec<Option<Chain>>,
    /// Nodes whose results must be stored.
    stored: Vec<bool>,
}

#[derive(Clone, Copy)]
enum Chain {
    /// An anchor whose region ends at this node.
    EndsAt(NodeId),
    /// A node of the epilogue of this anchor.
    Follows(NodeId),
}

impl Planner<'_> {
    /// Gives each anchor the maps behind it. Dense anchors choose first, later ones before earlier ones, since what
    /// joins two anchors can only follow one.
    fn claim_epilogues(&mut self) {
        let f = self.f;
        for dense in [true, false] {
            for (id, node) in f.nodes().rev() {
                if role(&node.op) != Role::Pointwise && is_dense(&node.op) == dense {
                    self.claim(id, node);
                }
            }
        }
    }

    fn claim(&mut self, anchor: NodeId, node: &Node) {
        let mut end = anchor;
        if has_epilogue(&node.op) {
            let mut value = node.results[0];
            while let Some(next) = self.uses.single(value).filter(|n| self.chain[n.index()].is_none()) {
                let user = self.f.node(next);
                let follows = matches!(user.op, Op::Map(_)) && self.f.ty(user.results[0]).dims == self.f.ty(value).dims;
                if !follows {
                    break;
                }
                self.chain[next.index()] = Some(Chain::Follows(anchor));
                (end, value) = (next, user.results[0]);
            }
        }
        self.chain[anchor.index()] = Some(Chain::EndsAt(end));
    }

    /// True if operand `v` of a node has to be a strided view.
    fn is_strict_operand(&self, id: NodeId, v: Value) -> bool {
        let anchor = match self.chain[id.index()] {
            None => return false,
            Some(Chain::EndsAt(_)) => id,
            Some(Chain::Follows(anchor)) if !self.in_chain(v, anchor) => anchor,
            Some(Chain::Follows(_)) => return false,
        };
        role(&self.f.node(anchor).op) == Role::StrictAnchor
    }

    /// True if `v` is the value of an anchor or of a node of its epilogue.
    fn in_chain(&self, v: Value, anchor: NodeId) -> bool {
        let Some(n) = self.f.def_id(v) else { return false };
        n == anchor || matches!(self.chain[n.index()], Some(Chain::Follows(a)) if a == anchor)
    }

    /// Stores what strict operands are views of, the ends of epilogues, and the results of the function.
    fn require_bases(&mut self) {
        for (id, node) in self.f.nodes() {
            if let Some(Chain::EndsAt(end)) = self.chain[id.index()] {
                self.stored[end.index()] = true;
            }
            for v in &node.operands {
                if !self.is_strict_operand(id, *v) {
                    continue;
                }
                let v = unrounded(self.f, &node.op, *v);
                let view = &self.views[v.index()];
                // Attention works on whole rows of its operands.
                let rows_lie_apart = matches!(node.op, Op::Attention(_) | Op::IntAttention(_))
                    && view.strided.axes.last().is_some_and(|a| !a.stride.is(1) && !a.stride.is(0));
                self.store(if rows_lie_apart { v } else { view.base });
            }
        }
        for (_, v) in self.f.results() {
            self.store(*v);
        }
    }

    fn store(&mut self, v: Value) {
        if let Some(n) = self.f.def_id(v)
            && self.chain[n.index()].is_none()
            && !matches!(self.f.node(n).op, Op::Constant(_))
        {
            self.stored[n.index()] = true;
        }
    }

    /// Walks from users to operands and weighs, for every pointwise value, its evaluation at each read against storing it.
    fn decide(self) -> Vec<bool> {
        let f = self.f;
        let mut reads: Vec<Reads> = (0..f.value_count()).map(|_| Reads::default()).collect();
        let mut size = vec![0usize; f.node_count()];
        let mut roots = vec![false; f.node_count()];
        for (id, node) in f.nodes().rev() {
            let i = id.index();
            let count = self.count(&f.ty(node.results[0]).count());
            let here = match self.chain[i] {
                Some(Chain::EndsAt(end)) => Reads::root(end, count),
                Some(Chain::Follows(anchor)) => match self.chain[anchor.index()] {
                    Some(Chain::EndsAt(end)) => Reads::root(end, count),
                    _ => Reads::root(id, count),
                },
                None => {
                    let r = std::mem::take(&mut reads[node.results[0].index()]);
                    if self.stored[i] || !self.inlines(node, count, &r, &size) { Reads::root(id, count) } else { r }
                }
            };
            roots[i] = self.stored[i] || self.chain[i].is_none() && here.regions.iter().eq([&id]);
            if !matches!(node.op, Op::Constant(_)) {
                for r in &here.regions {
                    size[r.index()] += 1;
                }
            }
            for v in &node.operands {
                let evaluations = here.evaluations * self.share(id, node, *v, count);
                reads[v.index()].add(&here, evaluations, matches!(node.op, Op::Concat(_) | Op::Pad(_)));
            }
        }
        roots
    }

    /// True if a pointwise value is computed where it is read.
    fn inlines(&self, node: &Node, count: f64, reads: &Reads, size: &[usize]) -> bool {
        if matches!(node.op, Op::Constant(_)) {
            return true;
        }
        let full = reads.regions.iter().any(|r| size[r.index()] >= MAX_NODES);
        if full || reads.occurrences > MAX_OCCURRENCES || reads.depth > MAX_BRANCH_DEPTH {
            return false;
        }
        let types: Vec<DType> = node.operands.iter().map(|v| self.f.ty(*v).dtype).collect();
        cost::inlining_pays(cost::op(&node.op, &types), node.operands.len(), count, reads.evaluations)
    }

    /// How many evaluations of an operand one evaluation of a node takes.
    fn share(&self, id: NodeId, node: &Node, v: Value, count: f64) -> f64 {
        let per = |d: &Dim| self.count(d) / count.max(1.0);
        let operand = self.f.ty(v).count();
        match &node.op {
            Op::Concat(_) | Op::Pad(_) => per(&operand).min(1.0),
            Op::Window(w) => w.kernel.iter().product::<i64>() as f64,
            op if role(op) != Role::Pointwise || self.is_strict_operand(id, v) => per(&operand),
            _ => 1.0,
        }
    }

    fn count(&self, d: &Dim) -> f64 {
        cost::nominal(d, self.ranges)
    }
}

/// How a value is read by the regions that would compute it.
#[derive(Default)]
struct Reads {
    /// Ends of these regions.
    regions: BTreeSet<NodeId>,
    /// Evaluations of the value in all of them.
    evaluations: f64,
    /// How often the expression of the value is spelled out.
    occurrences: u32,
    /// Branching ops above it.
    depth: u32,
}

impl Reads {
    fn root(end: NodeId, count: f64) -> Self {
        Self { regions: BTreeSet::from([end]), evaluations: count, occurrences: 1, depth: 0 }
    }

    fn add(&mut self, user: &Reads, evaluations: f64, branches: bool) {
        self.regions.extend(&user.regions);
        self.evaluations += evaluations;
        self.occurrences = self.occurrences.saturating_add(user.occurrences);
        self.depth = self.depth.max(user.depth + u32::from(branches));
    }
}
