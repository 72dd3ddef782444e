//! One region: its body, its anchor, and where its values come from.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use transc_ir::op::Op;
use transc_ir::tensor::strided::Strided as View;
use transc_ir::tensor::{ConstData, Func, Loc, Node};
use transc_ir::types::{Ranges, Symbol, TensorType};
use transc_ir::{Module, Value};

use super::layout::{self, Layouts, Order};
use crate::program::{LayerChoice, Tunable};

/// A region of the `fuse` pass, or a bare node as a region of one.
#[derive(Clone)]
pub(crate) struct Region {
    /// The body; its parameters are the operands.
    pub(crate) body: Func,
    /// The node that needs its own loops, if there is one.
    pub(crate) anchor: Option<Value>,
    /// The module's symbols in order.
    pub(crate) symbols: Vec<Symbol>,
    /// Their ranges.
    pub(crate) ranges: Ranges,
    /// The module's constants.
    pub(crate) consts: std::sync::Arc<transc_ir::tensor::ConstPool>,
    /// The orders in which operands and results lie that are not row-major, by position.
    pub(crate) orders: [HashMap<usize, Order>; 2],
    /// Provenance.
    pub(crate) loc: Loc,
    /// Set by lowering where the region is a product by a constant weight.
    pub(crate) layer: Cell<Option<LayerChoice>>,
    /// Set by lowering where the region's schedule can be tuned.
    pub(crate) tunable: RefCell<Option<Tunable>>,
    /// Set by lowering where the end of the epilogue became a table.
    pub(crate) table: RefCell<Option<ConstData>>,
    /// Set by lowering where the region becomes two kernels: the memory between them.
    pub(crate) between: RefCell<Option<TensorType>>,
}

impl Region {
    /// The region of a node of `main`.
    pub(crate) fn new(main: &Func, node: &Node, m: &Module) -> Self {
        let body = match &node.op {
            Op::Fused(f) => (*f.body.0).clone(),
            _ => bare(main, node),
        };
        let anchor = body.nodes().find(|(_, n)| is_anchor(&n.op)).map(|(_, n)| n.results[0]);
        Self {
            body,
            anchor,
            symbols: m.symbols.keys().cloned().collect(),
            ranges: m.symbols.clone(),
            consts: m.consts.clone(),
            orders: Default::default(),
            loc: node.loc.clone(),
            layer: Cell::default(),
            tunable: RefCell::default(),
            table: RefCell::default(),
            between: RefCell::default(),
        }
    }

    /// The region of a node of `main` whose values have these layouts.
    pub(crate) fn placed(main: &Func, node: &Node, m: &Module, layouts: &Layouts) -> Self {
        let orders =
            |values: &[Value]| values.iter().enumerate().filter_map(|(i, v)| Some((i, layouts.order(*v)?.clone()))).collect();
        Self { orders: [orders(&node.operands), orders(&node.results)], ..Self::new(main, node, m) }
    }

    /// The op of the anchor.
    pub(crate) fn anchor_op(&self) -> Option<&Op> {
        Some(&self.body.def_node(self.anchor?)?.op)
    }

    /// The order in which a parameter or a result lies; `None` for row-major.
    pub(crate) fn order(&self, v: Value) -> Option<&Order> {
        let at = |values: &[(String, Value)]| values.iter().position(|(_, w)| *w == v);
        match at(self.body.params()) {
            Some(i) => self.orders[0].get(&i),
            None => self.orders[1].get(&at(self.body.results())?),
        }
    }

    /// How a parameter, a constant or a result lies in memory.
    pub(crate) fn view(&self, v: Value) -> View {
        layout::view(&self.ty(v).dims, self.order(v))
    }

    /// The results.
    pub(crate) fn roots(&self) -> Vec<Value> {
        self.body.results().iter().map(|(_, v)| *v).collect()
    }

    /// The type of a value of the body.
    pub(crate) fn ty(&self, v: Value) -> &TensorType {
        self.body.ty(v)
    }
}

/// A function of one node.
fn bare(main: &Func, node: &Node) -> Func {
    let mut f = Func::new("region");
    let operands: Vec<Value> = node.operands.iter().map(|v| f.add_param("", main.ty(*v).clone())).collect();
    let types = node.results.iter().map(|v| main.ty(*v).clone());
    let id = f.push_node(node.op.clone(), &operands, types, node.loc.clone());
    for v in f.node(id).results.clone() {
        f.add_result("", v);
    }
    f
}

/// True for ops that need their own loops; all others are element functions.
pub(crate) fn is_anchor(op: &Op) -> bool {
    matches!(
        op,
        Op::Reduce(_)
            | Op::ArgReduce(_)
            | Op::Scan(_)
            | Op::TopK(_)
            | Op::Contract(_)
            | Op::Window(_)
            | Op::Conv(_)
            | Op::Softmax(_)
            | Op::LayerNorm(_)
            | Op::RmsNorm(_)
            | Op::Attention(_)
            | Op::IntAttention(_)
            | Op::ScatterElements(_)
            | Op::ScatterNd(_)
            | Op::TokenPlan(_)
            | Op::TokenApply(_)
    )
}
