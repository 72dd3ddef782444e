//! Graphs of modules in the DOT language, for `dot` and its viewers.

use petgraph::dot::{Config, Dot};
use petgraph::graph::DiGraph;
use transc_ir::Module;
use transc_ir::op::Op;
use transc_ir::tensor::{Node, ValueDef};

/// The entry function as a graph: one node per node or region, one edge per value read, labelled with its type.
pub fn render(module: &Module) -> String {
    let f = &module.main;
    let mut graph: DiGraph<String, String> = DiGraph::new();
    let params: Vec<_> = f.params().iter().map(|(name, _)| graph.add_node(format!("input {name}"))).collect();
    let nodes: Vec<_> = f.nodes().map(|(_, n)| graph.add_node(label(n))).collect();
    let source = |v| match f.def(v) {
        ValueDef::Param(i) => params[i as usize],
        ValueDef::Result(n, _) => nodes[n.index()],
    };
    for (id, node) in f.nodes() {
        for v in &node.operands {
            graph.add_edge(source(*v), nodes[id.index()], f.ty(*v).to_string());
        }
    }
    for (name, v) in f.results() {
        let out = graph.add_node(format!("output {name}"));
        graph.add_edge(source(*v), out, f.ty(*v).to_string());
    }
    let none = |_: &DiGraph<String, String>, _: petgraph::graph::EdgeReference<'_, String>| String::new();
    let boxes = |_: &DiGraph<String, String>, _: (petgraph::graph::NodeIndex, &String)| "shape=box".to_string();
    format!("{}", Dot::with_attr_getters(&graph, &[Config::GraphContentOnly], &none, &boxes))
        .lines()
        .fold(format!("digraph {:?} {{\n", module.name), |text, line| text + line + "\n")
        + "}\n"
}

/// Ops of a node, and the user's node.
fn label(node: &Node) -> String {
    let ops = match &node.op {
        Op::Fused(region) => {
            let ops = region.body.nodes().map(|(_, n)| n.op.mnemonic()).filter(|m| *m != "constant");
            ops.collect::<Vec<_>>().join(" + ")
        }
        op => op.mnemonic().to_string(),
    };
    let loc = node.loc.path();
    if loc.is_empty() { ops } else { format!("{ops}\n{loc}") }
}
