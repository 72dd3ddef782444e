//! Who uses a value.

use smallvec::SmallVec;
use transc_ir::tensor::{Func, NodeId, Value};

/// Users of every value of a function.
pub struct Uses {
    users: Vec<SmallVec<[NodeId; 2]>>,
    results: Vec<u32>,
}

impl Uses {
    /// The users in `f`.
    pub fn of(f: &Func) -> Self {
        let mut users: Vec<SmallVec<[NodeId; 2]>> = vec![SmallVec::new(); f.value_count()];
        for (id, n) in f.nodes() {
            for v in &n.operands {
                let users = &mut users[v.index()];
                if users.last() != Some(&id) {
                    users.push(id);
                }
            }
        }
        let mut results = vec![0; f.value_count()];
        for (_, v) in f.results() {
            results[v.index()] += 1;
        }
        Self { users, results }
    }

    /// The nodes that use `v`, in order, each once.
    pub fn nodes(&self, v: Value) -> &[NodeId] {
        &self.users[v.index()]
    }

    /// True if `v` is a result of the function.
    pub fn is_result(&self, v: Value) -> bool {
        self.results[v.index()] > 0
    }

    /// The node that is the only user of `v`.
    pub fn single(&self, v: Value) -> Option<NodeId> {
        match self.nodes(v) {
            [n] if !self.is_result(v) => Some(*n),
            _ => None,
        }
    }
}
