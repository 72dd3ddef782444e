//! Rewriting functions: copy node by node with a value map, remove dead nodes, replace symbols.

use std::sync::Arc;

use super::{Builder, ConstPool, Func, Module, Node, NodeId, Value, ValueDef};
use crate::op::TypeError;
use crate::types::{Dim, Symbol};

/// Copies `func`, giving `f` each node with its operands already mapped. `f` returns the values that replace the node's results, or
/// `None` to copy the node as it is (result types are inferred anew). Names, parameters and provenance are kept.
///
/// # Errors
/// A type error of a new or copied node.
pub fn rewrite(
    func: &Func,
    consts: &mut Arc<ConstPool>,
    mut f: impl FnMut(&mut Builder<'_>, NodeId, &Node, &[Value]) -> Result<Option<Vec<Value>>, TypeError>,
) -> Result<Func, TypeError> {
    let mut out = Func::new(&func.name);
    let mut map: Vec<Option<Value>> = vec![None; func.value_count()];
    for (name, v) in func.params() {
        map[v.index()] = Some(out.add_param(name, func.ty(*v).clone()));
    }
    let mut b = Builder::new(&mut out, consts);
    for (id, node) in func.nodes() {
        let operands: Vec<Value> = node.operands.iter().filter_map(|v| map[v.index()]).collect();
        b.loc = node.loc.clone();
        let results = match f(&mut b, id, node, &operands)? {
            Some(r) => r,
            None => b.add_multi(node.op.clone(), &operands)?,
        };
        for (old, new) in node.results.iter().zip(results) {
            map[old.index()] = Some(new);
        }
    }
    for (name, v) in func.results() {
        if let Some(v) = map[v.index()] {
            out.add_result(name, v);
        }
    }
    Ok(out)
}

/// Which nodes the results depend on, by node.
pub fn live_nodes(func: &Func) -> Vec<bool> {
    let mut live = vec![false; func.node_count()];
    let mark = |v: Value, live: &mut Vec<bool>| {
        if let ValueDef::Result(n, _) = func.def(v) {
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
pub fn compact(func: &Func) -> Func {
    let live = live_nodes(func);
    let mut out = Func::new(&func.name);
    let mut map: Vec<Option<Value>> = vec![None; func.value_count()];
    for (name, v) in func.params() {
        map[v.index()] = Some(out.add_param(name, func.ty(*v).clone()));
    }
    for (id, node) in func.nodes() {
        if live[id.index()] {
            let operands: Vec<Value> = node.operands.iter().filter_map(|v| map[v.index()]).collect();
            let types = node.results.iter().map(|v| func.ty(*v).clone()).collect();
            let new = out.push_node(node.op.clone(), &operands, types, node.loc.clone());
            for (old, new) in node.results.iter().zip(&out.node(new).results) {
                map[old.index()] = Some(*new);
            }
        }
    }
    for (name, v) in func.results() {
        if let Some(v) = map[v.index()] {
            out.add_result(name, v);
        }
    }
    out
}

/// Replaces symbols by dims everywhere in a module: types, attributes, constraints. Replaced symbols are no longer declared.
pub fn substitute_dims(module: &mut Module, map: &dyn Fn(&Symbol) -> Option<Dim>) {
    module.main.map_dims(map);
    for (a, b, _) in &mut module.constraints {
        *a = a.subst(map);
        *b = b.subst(map);
    }
    module.constraints.retain(|(a, b, _)| a != b);
    module.symbols.retain(|s, _| map(s).is_none());
}
