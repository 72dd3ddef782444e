//! Structural sharing: equal layers are saturated once, and the result is replayed with the weights of each.
//!
//! A function is cut where its sequence of nodes repeats, at the phase that the fewest values cross. A piece becomes a function of its
//! own whose large constants are parameters; two pieces that are equal as functions share one saturation. The last repetition stays
//! with what follows, so that rows which the outputs do not read are dead there too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use smallvec::SmallVec;
use transc_ir::op::Op;
use transc_ir::tensor::{ConstPool, Func, Node, NodeId, Value};
use transc_ir::{Loc, TensorType};

use crate::analysis::uses::Uses;

/// Fewest nodes of a repeated piece.
const MIN_PERIOD: usize = 6;
/// Constants of more elements are parameters of a piece: nothing looks at their values.
const MAX_INSIDE: i64 = 64;

/// A piece of a function.
pub struct Piece {
    /// The piece as a function.
    pub func: Func,
    /// Which parameters stand for constants.
    pub constant: Vec<bool>,
    /// What the parameters are, and what the results stand for, in the whole function.
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

/// Cuts a function; the pieces in order.
pub fn pieces(f: &Func, consts: &ConstPool) -> Vec<Piece> {
    let ambient = ambient(f, consts);
    let real: Vec<NodeId> =
        f.nodes().filter(|(id, n)| !n.operands.is_empty() && !ambient[id.index()]).map(|(id, _)| id).collect();
    let uses = Uses::of(f);
    cuts(f, &real).into_iter().map(|range| Piece::new(f, consts, &uses, &ambient, &real[range])).collect()
}

/// True for a constant that a piece holds itself.
fn stays_inside(ty: &TensorType) -> bool {
    ty.count().as_const().is_some_and(|n| n <= MAX_INSIDE)
}

/// Nodes that are cheap and depend on sizes, small constants and inputs alone, such as masks: each piece that reads one holds it, so
/// that its rules see what it is.
fn ambient(f: &Func, consts: &ConstPool) -> Vec<bool> {
    let mut ambient = vec![false; f.node_count()];
    for (id, n) in f.nodes() {
        let alone = match &n.op {
            Op::Constant(c) => consts.get(c.id).is_some_and(|d| stays_inside(d.ty()) || !d.ty().dtype.is_float()),
            Op::Iota(_) | Op::Dims(_) | Op::Map(_) | Op::Broadcast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => true,
            Op::Concat(_) | Op::Gather(_) | Op::Scan(_) => true,
            _ => false,
        };
        let below = |v: &Value| f.def_id(*v).map_or(!f.ty(*v).dtype.is_float(), |d| ambient[d.index()]);
        ambient[id.index()] = alone && n.operands.iter().all(below);
    }
    ambient
}

/// Where the sequence of nodes is cut.
fn cuts(f: &Func, real: &[NodeId]) -> Vec<Range<usize>> {
    let mut numbers: HashMap<(&Op, Vec<&TensorType>), u32> = HashMap::new();
    let labels: Vec<u32> = real
        .iter()
        .map(|id| {
            let n = f.node(*id);
            let types = n.operands.iter().chain(&n.results).map(|v| f.ty(*v)).collect();
            let next = numbers.len() as u32;
            *numbers.entry((&n.op, types)).or_insert(next)
        })
        .collect();
    let whole = 0..real.len();
    let Some((run, period)) = repetition(&labels) else { return vec![whole] };
    let position: BTreeMap<NodeId, usize> = real.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let mut last_use: Vec<usize> = (0..real.len()).collect();
    for (i, id) in real.iter().enumerate() {
        for v in &f.node(*id).operands {
            if let Some(d) = f.def_id(*v)
                && let Some(at) = position.get(&d)
            {
                last_use[*at] = i;
            }
        }
    }
    let crossing = |cut: usize| (run.start..cut).filter(|i| last_use[*i] >= cut).count();
    let phase = (0..period).min_by_key(|o| crossing(run.start + period + o)).unwrap_or(0);
    let mut starts: Vec<usize> = (run.start + phase..run.end).step_by(period).filter(|s| s + period <= run.end).collect();
    // The last repetition stays with what follows.
    starts.truncate(starts.len().saturating_sub(1).max(1) + 1);
    let bounds: Vec<usize> = std::iter::once(0).chain(starts).chain([real.len()]).collect();
    bounds.windows(2).map(|w| w[0]..w[1]).filter(|r| !r.is_empty()).collect()
}

/// The longest stretch of labels that repeats with some period, and the period: the smallest of those that cover as much.
fn repetition(labels: &[u32]) -> Option<(Range<usize>, usize)> {
    let mut best: Option<(Range<usize>, usize)> = None;
    for period in MIN_PERIOD..=labels.len() / 2 {
        // A longer run than the best one covers the middle whatever its ends are.
        let longer = best.as_ref().map_or(0, |(b, _)| b.len()) + 1;
        let middle = labels.len().checked_sub(longer).map(|first| first..longer.saturating_sub(period));
        if middle.is_none_or(|mut m| m.any(|i| labels[i] != labels[i + period])) {
            continue;
        }
        let mut start = 0;
        for i in 0..=labels.len() - period {
            let same = i + period < labels.len() && labels[i] == labels[i + period];
            if same {
                continue;
            }
            let run = start..i + period;
            if run.len() >= 2 * period && best.as_ref().is_none_or(|(b, _)| run.len() > b.len()) {
                best = Some((run, period));
            }
            start = i + 1;
        }
    }
    best
}

impl Piece {
    fn new(f: &Func, consts: &ConstPool, uses: &Uses, ambient: &[bool], real: &[NodeId]) -> Self {
        let inside: BTreeSet<NodeId> = real.iter().copied().collect();
        // Ambient nodes and small constants that the piece reads, directly or not.
        let mut held: BTreeSet<NodeId> = BTreeSet::new();
        let mut open: Vec<NodeId> = real.to_vec();
        while let Some(id) = open.pop() {
            for v in &f.node(id).operands {
                if let Some(d) = f.def_id(*v)
                    && (ambient[d.index()] || f.node(d).operands.is_empty() && !is_weight(f, consts, d))
                    && held.insert(d)
                {
                    open.push(d);
                }
            }
        }
        let members: BTreeSet<NodeId> = held.union(&inside).copied().collect();
        let mut piece = Piece { func: Func::new(&f.name), constant: Vec::new(), inputs: Vec::new(), outputs: Vec::new() };
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        let outside = |v: &Value| f.def_id(*v).is_none_or(|d| !members.contains(&d));
        for v in members.iter().flat_map(|id| &f.node(*id).operands).filter(|v| outside(v)) {
            if !map.contains_key(v) {
                map.insert(*v, piece.func.add_param("", f.ty(*v).clone()));
                piece.constant.push(f.constant(*v).is_some());
                piece.inputs.push(*v);
            }
        }
        for id in &members {
            let n = f.node(*id);
            let operands: Vec<Value> = n.operands.iter().map(|v| map[v]).collect();
            let new = copied(&mut piece.func, f, n, &operands, n.loc.clone());
            map.extend(n.results.iter().copied().zip(new));
        }
        let read_outside = |v: &Value| uses.is_result(*v) || uses.nodes(*v).iter().any(|u| !members.contains(u));
        for v in real.iter().flat_map(|id| &f.node(*id).results).filter(|v| read_outside(v)) {
            piece.func.add_result("", map[v]);
            piece.outputs.push(*v);
        }
        piece
    }

    /// For each place of this piece that of the same node of an equal piece.
    pub fn places_in<'a>(&'a self, other: &'a Piece) -> HashMap<&'a str, &'a Loc> {
        let pairs = self.func.nodes().zip(other.func.nodes());
        pairs.map(|((_, a), (_, b))| (a.loc.path(), &b.loc)).collect()
    }
}

fn is_weight(f: &Func, consts: &ConstPool, id: NodeId) -> bool {
    matches!(&f.node(id).op, Op::Constant(c) if consts.get(c.id).is_none_or(|d| !stays_inside(d.ty())))
}

/// Builds the whole function from its pieces, each replaced by a function with the same parameters and results.
pub struct Assembly<'a> {
    f: &'a Func,
    out: Func,
    /// By value of `f`.
    map: Vec<Option<Value>>,
}

impl<'a> Assembly<'a> {
    /// The parameters of `f`, nothing else yet.
    pub fn new(f: &'a Func) -> Self {
        let mut out = Func::new(&f.name);
        let mut map = vec![None; f.value_count()];
        for (name, v) in f.params() {
            map[v.index()] = Some(out.add_param(name, f.ty(*v).clone()));
        }
        Self { f, out, map }
    }

    /// A value of `f` in the new function: nodes that no piece replaces are copied when they are first read.
    fn value(&mut self, v: Value) -> Value {
        let mut open = vec![v];
        loop {
            let next = open[open.len() - 1];
            let missing = |v: &Value| self.map[v.index()].is_none();
            if let Some(n) = self.f.def_node(next).filter(|_| missing(&next)) {
                let before = open.len();
                open.extend(n.operands.iter().copied().filter(missing));
                if open.len() > before {
                    continue;
                }
                let operands: Vec<Value> = n.operands.iter().filter_map(|v| self.map[v.index()]).collect();
                let new = copied(&mut self.out, self.f, n, &operands, n.loc.clone());
                for (old, new) in n.results.iter().zip(new) {
                    self.map[old.index()] = Some(new);
                }
            }
            open.pop();
            if let (true, Some(new)) = (open.is_empty(), self.map[v.index()]) {
                return new;
            }
        }
    }

    /// Adds what replaces a piece; `place` translates provenance.
    pub fn add(&mut self, piece: &Piece, by: &Func, place: &dyn Fn(&Loc) -> Loc) {
        let mut map: Vec<Value> = (0..by.value_count() as u32).map(Value).collect();
        for ((_, p), v) in by.params().iter().zip(&piece.inputs) {
            map[p.index()] = self.value(*v);
        }
        for (_, n) in by.nodes() {
            let operands: SmallVec<[Value; 4]> = n.operands.iter().map(|v| map[v.index()]).collect();
            for (old, new) in n.results.iter().zip(copied(&mut self.out, by, n, &operands, place(&n.loc))) {
                map[old.index()] = new;
            }
        }
        for (old, (_, v)) in piece.outputs.iter().zip(by.results()) {
            self.map[old.index()] = Some(map[v.index()]);
        }
    }

    /// The function, with the results of `f`.
    pub fn finish(mut self) -> Func {
        for (name, v) in self.f.results() {
            let v = self.value(*v);
            self.out.add_result(name, v);
        }
        self.out
    }
}

/// Copies a node of `from`, whose operands have the same types in `out`; its results there.
fn copied(out: &mut Func, from: &Func, n: &Node, operands: &[Value], loc: Loc) -> SmallVec<[Value; 1]> {
    let types = n.results.iter().map(|v| from.ty(*v).clone());
    let id = out.push_node(n.op.clone(), operands, types, loc);
    out.node(id).results.clone()
}
