//! Chains of maps become one map.

use std::collections::BTreeMap;

use indexmap::IndexSet;
use transc_ir::Module;
use transc_ir::op::{Map, Op};
use transc_ir::scalar::{Body, Ref};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Func, NodeId, Value};
use transc_ir::types::{DType, Ranges};

use crate::analysis::cost;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// Largest merged body, in instructions.
const MAX_INSTS: usize = 160;
/// Most operands of a merged map.
const MAX_OPERANDS: usize = 12;

/// Merges a map into its users where all of these end up in one map, and a map without operands into all of its users.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let f = module.take_main();
    let mut merges = merges(&f, &module.symbols);
    let mut renamed: Vec<Value> = (0..f.value_count() as u32).map(Value).collect();
    let rewritten = rewrite(f, &mut module.consts, |b, id, node, operands| {
        node.operands.iter().zip(operands).for_each(|(old, new)| renamed[old.index()] = *new);
        let Some((body, operands)) = merges[id.index()].take() else { return Ok(None) };
        cx.fired("merge-maps");
        let operands: Vec<Value> = operands.iter().map(|v| renamed[v.index()]).collect();
        Ok(Some(vec![b.add(Map { body }, &operands)?]))
    });
    module.main = compact(sweep::typed(cx, rewritten)?);
    Ok(())
}

/// The body of a value that needs no operands.
fn literal(f: &Func, v: Value) -> Option<&Body> {
    match &f.def_node(v)?.op {
        Op::Map(m) if m.body.n_args == 0 => Some(&m.body),
        _ => None,
    }
}

/// For every map that takes up others or literals: the body and the operands of what they are together. A map that another one takes up
/// has none and is dead.
fn merges(f: &Func, ranges: &Ranges) -> Vec<Option<(Body, IndexSet<Value>)>> {
    let alone = |group: &[NodeId]| group.len() == 1 && !f.node(group[0]).operands.iter().any(|v| literal(f, *v).is_some());
    groups(f, ranges).iter().map(|g| (!g.is_empty() && !alone(g)).then(|| merged(f, g))).collect()
}

/// For every map that is not merged into another one: the maps that it absorbs and itself, in order. Empty for other nodes.
fn groups(f: &Func, ranges: &Ranges) -> Vec<Vec<NodeId>> {
    let uses = Uses::of(f);
    let mut root_of: Vec<Option<NodeId>> = vec![None; f.node_count()];
    let mut members: Vec<Vec<NodeId>> = vec![Vec::new(); f.node_count()];
    for (id, node) in f.nodes().rev() {
        let Op::Map(m) = &node.op else { continue };
        let v = node.results[0];
        let mut roots = uses.nodes(v).iter().map(|u| root_of[u.index()]);
        let common = roots.next().flatten().filter(|g| !uses.is_result(v) && roots.all(|r| r == Some(*g)));
        let absorber = common.filter(|g| {
            let args: Vec<DType> = node.operands.iter().map(|v| f.ty(*v).dtype).collect();
            let (ty, root) = (f.ty(v), f.ty(f.node(*g).results[0]));
            let (count, evaluations) = (cost::nominal(&ty.count(), ranges), cost::nominal(&root.count(), ranges));
            let pays =
                ty.dims == root.dims || cost::inlining_pays(cost::body(&m.body, &args), node.operands.len(), count, evaluations);
            pays && fits(f, &members[g.index()], id)
        });
        let g = absorber.unwrap_or(id);
        root_of[id.index()] = Some(g);
        members[g.index()].push(id);
    }
    for m in &mut members {
        m.reverse();
    }
    members
}

/// True if a group with one more member stays within the limits.
fn fits(f: &Func, group: &[NodeId], more: NodeId) -> bool {
    let all = || group.iter().chain(std::iter::once(&more)).map(|n| f.node(*n));
    let insts: usize = all().map(|n| if let Op::Map(m) = &n.op { m.body.insts.len() } else { 0 }).sum();
    let inner: Vec<Value> = all().map(|n| n.results[0]).collect();
    let outer: IndexSet<Value> = all().flat_map(|n| n.operands.iter().copied()).filter(|v| !inner.contains(v)).collect();
    insts <= MAX_INSTS && outer.len() <= MAX_OPERANDS
}

/// The body of a group of maps and its operands.
fn merged(f: &Func, members: &[NodeId]) -> (Body, IndexSet<Value>) {
    let inner: Vec<Value> = members.iter().map(|n| f.node(*n).results[0]).collect();
    let outside = |v: &Value| !inner.contains(v) && literal(f, *v).is_none();
    let operands: IndexSet<Value> =
        members.iter().flat_map(|n| f.node(*n).operands.iter().copied()).filter(|v| outside(v)).collect();
    let mut b = Body::builder(operands.len() as u32);
    let mut refs: BTreeMap<Value, Ref> = operands.iter().enumerate().map(|(i, v)| (*v, Ref::Arg(i as u32))).collect();
    let mut last = Ref::Arg(0);
    for n in members {
        let node = f.node(*n);
        let Op::Map(m) = &node.op else { continue };
        let mut args = Vec::with_capacity(node.operands.len());
        for v in &node.operands {
            let known = refs.get(v).copied();
            args.push(match (known, literal(f, *v)) {
                (Some(r), _) => r,
                (None, Some(body)) => b.inline(body, &[]),
                // Every operand is a member before this one, a literal, or outside.
                (None, None) => continue,
            });
        }
        last = b.inline(&m.body, &args);
        refs.insert(node.results[0], last);
    }
    (b.finish(last), operands)
}
