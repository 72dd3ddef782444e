//! Makes the regions of a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use transc_ir::Module;
use transc_ir::interp::{EvalCx, eval_func};
use transc_ir::op::{Constant, Fused, Map, Op, Shared, TypeError};
use transc_ir::scalar::Body;
use transc_ir::tensor::{Builder, ConstId, ConstPool, Func, Loc, Node, NodeId, Value};

use super::class::{Role, role};
use super::plan::Plan;

/// Largest constant that replaces a region which reads nothing, in bytes.
const MAX_FOLDED_BYTES: usize = 16 << 20;

/// Where the value of a stored result is after this pass.
#[derive(Clone, Copy)]
enum Place {
    /// In memory.
    Value(Value),
    /// In the pool.
    Const(ConstId),
}

/// Replaces the entry function by one of regions.
///
/// # Errors
/// A type error: the plan broke the contract.
pub fn regions(module: &mut Module, plan: &Plan) -> Result<(), TypeError> {
    let f = module.take_main();
    let mut out = Func::new(&f.name);
    let mut places: BTreeMap<Value, Place> = BTreeMap::new();
    for (name, v) in f.params() {
        places.insert(*v, Place::Value(out.add_param(name, f.ty(*v).clone())));
    }
    let mut b = Builder::new(&mut out, &mut module.consts);
    for (id, node) in f.nodes().filter(|(id, _)| plan.is_root(*id)) {
        let region = Region::new(&f, plan, &places, id);
        b.loc = region.loc();
        let operands = region.operands();
        let body = region.body(node);
        match constant(&body, b.consts) {
            Some(c) if operands.is_empty() => {
                places.insert(node.results[0], Place::Const(Arc::make_mut(b.consts).add(&body.name, c)));
            }
            _ => {
                let results = b.add_multi(Fused { body: Shared(Arc::new(body)) }, &operands)?;
                places.extend(node.results.iter().copied().zip(results.into_iter().map(Place::Value)));
            }
        }
    }
    let mut taken = BTreeSet::new();
    for (name, v) in f.results() {
        let place = places.get(v).copied().or_else(|| f.constant(*v).map(Place::Const));
        let value = match place {
            Some(Place::Value(v)) if out.def_node(v).is_some() && taken.insert(v) => Some(v),
            Some(place) => Some(copy(place, &mut Builder::new(&mut out, &mut module.consts))?),
            None => None,
        };
        if let Some(v) = value {
            out.add_result(name, v);
        }
    }
    module.main = out;
    Ok(())
}

/// The value of a region that reads nothing and has constant dims.
fn constant(body: &Func, consts: &ConstPool) -> Option<transc_ir::tensor::ConstData> {
    let [(_, result)] = body.results() else { return None };
    let ty = body.ty(*result);
    let bytes = ty.static_dims()?.iter().try_fold(ty.dtype.size_bytes() as i64, |n, d| n.checked_mul(*d))?;
    if !body.params().is_empty() || usize::try_from(bytes).ok()? > MAX_FOLDED_BYTES {
        return None;
    }
    let cx = EvalCx { consts, symbols: &|_| None };
    eval_func(body, &[], &cx).ok()?.first()?.to_const()
}

/// A region that copies an input, a constant, or what is an output already.
fn copy(place: Place, b: &mut Builder<'_>) -> Result<Value, TypeError> {
    let mut body = Func::new("copy");
    let mut operands = Vec::new();
    let result = match place {
        Place::Value(v) => {
            let ty = b.ty(v).clone();
            operands.push(v);
            let x = body.add_param("in0", ty.clone());
            body.push_node(Map { body: Body::identity() }.into(), &[x], [ty], Loc::unknown())
        }
        Place::Const(id) => {
            let ty = Op::from(Constant { id }).infer(&[], b.consts)?.remove(0);
            body.push_node(Constant { id }.into(), &[], [ty], Loc::unknown())
        }
    };
    let result = body.node(result).results[0];
    body.add_result("out", result);
    b.loc = Loc::unknown();
    b.add(Fused { body: Shared(Arc::new(body)) }, &operands)
}

/// The nodes between stored values and one root.
struct Region<'a> {
    f: &'a Func,
    /// In order, the root last.
    members: Vec<NodeId>,
    /// Values in memory that members read, in order of first use.
    reads: Vec<(Value, Value)>,
    /// Constants that stored values have become.
    consts: BTreeMap<Value, ConstId>,
}

impl<'a> Region<'a> {
    fn new(f: &'a Func, plan: &Plan, places: &BTreeMap<Value, Place>, root: NodeId) -> Self {
        let mut members = BTreeSet::from([root]);
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            for v in &f.node(id).operands {
                if let Some(n) = f.def_id(*v)
                    && !plan.is_root(n)
                    && members.insert(n)
                {
                    open.push(n);
                }
            }
        }
        let (mut reads, mut consts): (Vec<(Value, Value)>, _) = (Vec::new(), BTreeMap::new());
        for v in members.iter().flat_map(|n| &f.node(*n).operands) {
            match places.get(v) {
                Some(Place::Value(new)) if reads.iter().all(|r| r.0 != *v) => reads.push((*v, *new)),
                Some(Place::Const(id)) => {
                    consts.insert(*v, *id);
                }
                _ => {}
            }
        }
        Self { f, members: members.into_iter().collect(), reads, consts }
    }

    fn nodes(&self) -> impl DoubleEndedIterator<Item = &'a Node> {
        self.members.iter().map(|n| self.f.node(*n))
    }

    /// The anchor, else the root.
    fn head(&self) -> Option<&'a Node> {
        self.nodes().find(|n| role(&n.op) != Role::Pointwise).or_else(|| self.nodes().next_back())
    }

    /// The user's node: that of the head, else the last known one.
    fn loc(&self) -> Loc {
        Loc::join(self.head().into_iter().chain(self.nodes().rev()).map(|n| &n.loc))
    }

    fn operands(&self) -> Vec<Value> {
        self.reads.iter().map(|r| r.1).collect()
    }

    /// The region as a function whose results are those of `root`.
    fn body(&self, root: &Node) -> Func {
        let mut body = Func::new(self.head().map_or("copy", |n| n.op.mnemonic()));
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for (i, (old, _)) in self.reads.iter().enumerate() {
            map.insert(*old, body.add_param(&format!("in{i}"), self.f.ty(*old).clone()));
        }
        for (old, id) in &self.consts {
            let node = body.push_node(Constant { id: *id }.into(), &[], [self.f.ty(*old).clone()], Loc::unknown());
            map.insert(*old, body.node(node).results[0]);
        }
        for node in self.nodes() {
            let operands: Vec<Value> = node.operands.iter().filter_map(|v| map.get(v).copied()).collect();
            let types = node.results.iter().map(|v| self.f.ty(*v).clone());
            let new = body.push_node(node.op.clone(), &operands, types, node.loc.clone());
            map.extend(node.results.iter().copied().zip(body.node(new).results.iter().copied()));
        }
        for (i, v) in root.results.iter().enumerate() {
            let name = if i == 0 { "out".into() } else { format!("out{i}") };
            if let Some(v) = map.get(v) {
                body.add_result(&name, *v);
            }
        }
        body
    }
}
