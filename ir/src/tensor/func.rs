//! Functions: nodes in evaluation order.

use std::fmt;

use smallvec::SmallVec;

use super::{ConstId, Loc};
use crate::op::Op;
use crate::types::{DType, Dim, TensorType};

macro_rules! handle {
    ($(#[$m:meta])* $name:ident, $prefix:literal) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in its table.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

handle!(
    /// An SSA value: a parameter or a result of a node.
    Value,
    "%"
);
handle!(
    /// A node of a function.
    NodeId,
    "n"
);

/// Where a value is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueDef {
    /// Parameter number.
    Param(u32),
    /// Result number of a node.
    Result(NodeId, u32),
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operation with its attributes.
    pub op: Op,
    /// The operands.
    pub operands: SmallVec<[Value; 4]>,
    /// The results, in the order of the op.
    pub results: SmallVec<[Value; 1]>,
    /// Where it comes from.
    pub loc: Loc,
}

#[derive(Clone, Debug)]
pub(super) struct ValueData {
    pub(super) ty: TensorType,
    def: ValueDef,
}

impl ValueData {
    /// The type, of which only the dtype stays behind.
    pub(super) fn take_type(&mut self) -> TensorType {
        TensorType { dtype: self.ty.dtype, dims: std::mem::take(&mut self.ty.dims) }
    }
}

/// A function in SSA form. Nodes stand in evaluation order: operands precede users, so one sweep is enough for any analysis.
#[derive(Clone, Debug)]
pub struct Func {
    /// Name.
    pub name: String,
    pub(super) nodes: Vec<Node>,
    pub(super) values: Vec<ValueData>,
    pub(super) params: Vec<(String, Value)>,
    pub(super) results: Vec<(String, Value)>,
}

impl Func {
    /// A function with no parameters, nodes or results.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), nodes: Vec::new(), values: Vec::new(), params: Vec::new(), results: Vec::new() }
    }

    /// Adds a parameter.
    pub fn add_param(&mut self, name: &str, ty: TensorType) -> Value {
        let v = Value(self.values.len() as u32);
        self.values.push(ValueData { ty, def: ValueDef::Param(self.params.len() as u32) });
        self.params.push((name.into(), v));
        v
    }

    /// Appends a node whose result types are already known; [`super::Builder`] infers them.
    pub fn push_node(
        &mut self,
        op: Op,
        operands: &[Value],
        result_types: impl IntoIterator<Item = TensorType>,
        loc: Loc,
    ) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let results = result_types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                self.values.push(ValueData { ty, def: ValueDef::Result(id, i as u32) });
                Value((self.values.len() - 1) as u32)
            })
            .collect();
        self.nodes.push(Node { op, operands: operands.into(), results, loc });
        id
    }

    /// Adds a result of the function.
    pub fn add_result(&mut self, name: &str, value: Value) {
        self.results.push((name.into(), value));
    }

    /// Makes another value the result of the function at an index, under the same name.
    pub fn set_result(&mut self, index: usize, value: Value) {
        self.results[index].1 = value;
    }

    /// The nodes in evaluation order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of values, parameters included.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.values[v.index()].ty
    }

    /// Where a value is defined.
    pub fn def(&self, v: Value) -> ValueDef {
        self.values[v.index()].def
    }

    /// The handle of the node that defines a value, if it is not a parameter.
    pub fn def_id(&self, v: Value) -> Option<NodeId> {
        match self.def(v) {
            ValueDef::Param(_) => None,
            ValueDef::Result(n, _) => Some(n),
        }
    }

    /// The node that defines a value, if it is not a parameter.
    pub fn def_node(&self, v: Value) -> Option<&Node> {
        self.def_id(v).map(|n| self.node(n))
    }

    /// The constant that a value is, if it is one.
    pub fn constant(&self, v: Value) -> Option<ConstId> {
        match &self.def_node(v)?.op {
            Op::Constant(c) => Some(c.id),
            _ => None,
        }
    }

    /// The `f32` that a value is rounded to `bf16` from, otherwise the value: what a kernel reads that rounds as it reads.
    pub fn unrounded(&self, v: Value) -> Value {
        let from = self.def_node(v).filter(|n| n.op.casts_to(DType::Bf16)).map(|n| n.operands[0]);
        from.filter(|x| self.ty(*x).dtype == DType::F32).unwrap_or(v)
    }

    /// Names and values of the parameters.
    pub fn params(&self) -> &[(String, Value)] {
        &self.params
    }

    /// Names and values of the results.
    pub fn results(&self) -> &[(String, Value)] {
        &self.results
    }

    /// How often each value is used: by operands of nodes and by results of the function.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut n = vec![0; self.values.len()];
        for node in &self.nodes {
            for v in &node.operands {
                n[v.index()] += 1;
            }
        }
        for (_, v) in &self.results {
            n[v.index()] += 1;
        }
        n
    }

    /// Replaces the dims in all types and attributes.
    pub fn map_dims(&mut self, map: &dyn Fn(&Dim) -> Dim) {
        for v in &mut self.values {
            for d in &mut v.ty.dims {
                *d = map(d);
            }
        }
        for n in &mut self.nodes {
            n.op.map_dims(map);
        }
    }
}
