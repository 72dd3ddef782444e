//! Rewriting functions: copy node by node with a value map, remove dead nodes, replace symbols.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Builder, ConstPool, Func, Module, Node, NodeId, Value};
use crate::op::TypeError;
use crate::types::{Dim, Symbol};

/// Rebuilds `func`, giving `f` each node with its operands already mapped. `f` returns the values that replace the node's results, or
/// `None` to keep the node as it is (its result types are inferred anew where an operand has another type now). Names, parameters and
/// provenance are kept.
///
/// # Errors
/// A type error of a new or kept node.
pub fn rewrite(
    func: Func,
    consts: &mut Arc<ConstPool>,
    mut f: impl FnMut(&mut Builder<'_>, NodeId, &Node, &[Value]) -> Result<Option<Vec<Value>>, TypeError>,
) -> Result<Func, TypeError> {
    let Func { name, nodes, mut values, params, results } = func;
    let mut out = Func::new(&name);
    // By old value: the new one, and whether it has the same type.
    let mut map: Vec<Option<(Value, bool)>> = vec![None; values.len()];
    for (name, v) in params {
        map[v.index()] = Some((out.add_param(&name, values[v.index()].take_type()), true));
    }
    let mut b = Builder::new(&mut out, consts);
    for (i, node) in nodes.into_iter().enumerate() {
        let mapped = node.operands.iter().filter_map(|v| map[v.index()]);
        let (operands, same): (SmallVec<[Value; 4]>, SmallVec<[bool; 4]>) = mapped.unzip();
        b.loc.clone_from(&node.loc);
        let new = match f(&mut b, NodeId(i as u32), &node, &operands)? {
            Some(new) => new,
            None if same.iter().all(|s| *s) => {
                let types = node.results.iter().map(|v| values[v.index()].take_type());
                let id = b.func.push_node(node.op, &operands, types, node.loc);
                for (old, new) in node.results.iter().zip(&b.func.node(id).results) {
                    map[old.index()] = Some((*new, true));
                }
                continue;
            }
            None => b.add_multi(node.op, &operands)?,
        };
        for (old, new) in node.results.iter().zip(new) {
            map[old.index()] = Some((new, values[old.index()].ty == *b.ty(new)));
        }
    }
    for (name, v) in results {
        if let Some((v, _)) = map[v.index()] {
            out.add_result(&name, v);
        }
    }
    Ok(out)
}

/// Which nodes the results depend on, by node.
pub fn live_nodes(func: &Func) -> Vec<bool> {
    let mut live = vec![false; func.node_count()];
    let mark = |v: Value, live: &mut Vec<bool>| {
        if let Some(n) = func.def_id(v) {
            live[n.index()] = true;
        }
    };
    for (_, v) in func.results() {
        mark(*v, &mut live);
    }
    for (id, node) in func.nodes().rev() {
        if live[id.index()] {
            for v in &node.operands {
                mark(*v, &mut live);
            }
        }
    }
    live
}

/// The function without the nodes that its results do not depend on; order is kept.
pub fn compact(func: Func) -> Func {
    let live = live_nodes(&func);
    if live.iter().all(|l| *l) {
        return func;
    }
    let Func { name, nodes, mut values, params, results } = func;
    let mut out = Func::new(&name);
    let mut map: Vec<Option<Value>> = vec![None; values.len()];
    for (name, v) in params {
        map[v.index()] = Some(out.add_param(&name, values[v.index()].take_type()));
    }
    for (node, _) in nodes.into_iter().zip(live).filter(|(_, live)| *live) {
        let operands: SmallVec<[Value; 4]> = node.operands.iter().filter_map(|v| map[v.index()]).collect();
        let types = node.results.iter().map(|v| values[v.index()].take_type());
        let id = out.push_node(node.op, &operands, types, node.loc);
        for (old, new) in node.results.iter().zip(&out.node(id).results) {
            map[old.index()] = Some(*new);
        }
    }
    for (name, v) in results {
        if let Some(v) = map[v.index()] {
            out.add_result(&name, v);
        }
    }
    out
}

/// Replaces symbols by dims everywhere in a module. Replaced symbols are no longer declared.
pub fn substitute_dims(module: &mut Module, map: &dyn Fn(&Symbol) -> Option<Dim>) {
    map_dims(module, &|d| d.subst(map));
    module.symbols.retain(|s, _| map(s).is_none());
}

/// Replaces dims everywhere in a module: types, attributes, constraints.
pub fn map_dims(module: &mut Module, map: &dyn Fn(&Dim) -> Dim) {
    module.main.map_dims(map);
    for (a, b, _) in &mut module.constraints {
        (*a, *b) = (map(a), map(b));
    }
    module.constraints.retain(|(a, b, _)| a != b);
}
