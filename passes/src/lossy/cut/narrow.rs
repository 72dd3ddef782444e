//! Tensors with fewer elements along their axes: of what a cut no longer reads, nothing is computed.
//!
//! From the results backwards, each value gets the indices that somebody reads along each axis. An op passes them on as far as it keeps its axes
//! apart, and reads all where it does not. Then every node is built anew for these indices, and constants lose the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use transc_ir::Value;
use transc_ir::interp::Tensor;
use transc_ir::op::{Gather, Op, Slice, TypeError};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstId, ConstPool, Func, Node, NodeId};
use transc_ir::types::{DType, Dim};

use super::hidden::Hidden;
use super::reads::{Keep, Reads, reads};

/// What a product keeps of the axis that it sums over.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cut {
    /// The axis in each operand.
    pub(super) axes: [usize; 2],
    /// Its extent.
    pub(super) inputs: usize,
    /// Indices that stay, ascending.
    pub(super) keep: Vec<usize>,
    /// What the kept rows of the weight are multiplied by; empty for nothing.
    pub(super) scale: Vec<f32>,
    /// Which operand the weight is.
    pub(super) weight: usize,
}

/// Changes of a function.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// By product.
    pub(super) cuts: BTreeMap<NodeId, Cut>,
    /// Residual sums, the operand that stays as it is, and what the other one is multiplied by; with 0 it goes.
    pub(super) blocks: BTreeMap<NodeId, (Value, f32)>,
    /// Hidden dims of the residual stream.
    pub(super) hidden: Option<Hidden>,
}

impl Changes {
    /// What a node's result is instead.
    fn bypassed(&self, id: NodeId) -> Option<Value> {
        self.blocks.get(&id).filter(|(_, by)| *by == 0.0).map(|(v, _)| *v)
    }

    /// The axis that a norm or a sum goes over, and the hidden dims on it that stay.
    pub(super) fn inside(&self, id: NodeId) -> Option<(usize, &Keep)> {
        let hidden = self.hidden.as_ref()?;
        Some((hidden.inside(id)?, &hidden.keep))
    }
}

/// The function with these changes.
///
/// # Errors
/// A bug in the pass.
pub(super) fn narrow(f: Func, consts: &mut Arc<ConstPool>, changes: &Changes) -> Result<Func, TypeError> {
    let old = f.clone();
    let mut held: Vec<Vec<Keep>> = vec![Vec::new(); old.value_count()];
    for (_, v) in old.params() {
        held[v.index()] = vec![None; old.ty(*v).rank()];
    }
    let wanted = wanted(&old, changes);
    let mut n = Narrow { old: &old, wanted, changes, held, narrowed: BTreeMap::new(), filled: BTreeMap::new() };
    let mut out = rewrite(f, consts, |b, id, node, operands| n.node(b, id, node, operands))?;
    for (i, (_, v)) in old.results().iter().enumerate() {
        if let Some(filled) = n.filled.get(v) {
            out.set_result(i, *filled);
        }
    }
    Ok(compact(out))
}

struct Narrow<'a> {
    old: &'a Func,
    wanted: Vec<Option<Vec<Keep>>>,
    changes: &'a Changes,
    /// By value: the indices that it has now.
    held: Vec<Vec<Keep>>,
    narrowed: Narrowed,
    /// Results of the function, with all places that they had.
    filled: BTreeMap<Value, Value>,
}

impl Narrow<'_> {
    /// What a node's results are instead, if they change.
    fn node(
        &mut self,
        b: &mut Builder<'_>,
        id: NodeId,
        node: &Node,
        operands: &[Value],
    ) -> Result<Option<Vec<Value>>, TypeError> {
        let whole = |v: &Value| vec![None; self.old.ty(*v).rank()];
        if let Some(i) = self.changes.bypassed(id).and_then(|v| node.operands.iter().position(|o| *o == v)) {
            self.held[node.results[0].index()] = self.held[node.operands[i].index()].clone();
            return self.handed_on(b, node, operands[i]).map(Some);
        }
        if node.results.iter().all(|r| self.wanted[r.index()].is_none()) {
            // Nobody reads it: it vanishes with what it was computed from.
            for r in &node.results {
                self.held[r.index()] = whole(r);
            }
            let nothing = b.scalar(Literal::from_f64(DType::F32, 0.0))?;
            return Ok(Some(vec![nothing; node.results.len()]));
        }
        let first = node.results.first().map_or(&[][..], |r| self.wanted[r.index()].as_deref().unwrap_or(&[]));
        let Reads { operands: reads, given } = reads(self.old, id, node, first, self.changes);
        for r in &node.results {
            self.held[r.index()] = if node.results.len() == 1 { given.clone() } else { whole(r) };
        }
        let (cut, block) = (self.changes.cuts.get(&id), self.changes.blocks.get(&id));
        let same = |(v, r): (&Value, &Vec<Keep>)| self.held[v.index()] == *r;
        let plain = cut.is_none() && block.is_none() && !self.changes.hidden.as_ref().is_some_and(|h| h.scales(node.results[0]));
        if plain && given.iter().all(Option::is_none) && node.operands.iter().zip(&reads).all(same) {
            return Ok(None);
        }
        let mut new = Vec::with_capacity(operands.len());
        for (i, v) in operands.iter().enumerate() {
            let mut v = *v;
            for (axis, (have, want)) in self.held[node.operands[i].index()].iter().zip(&reads[i]).enumerate() {
                v = select(b, &mut self.narrowed, v, axis, have, want)?;
            }
            new.push(v);
        }
        if let Some(c) = cut.filter(|c| !c.scale.is_empty()) {
            new[c.weight] = scaled(b, new[c.weight], c.axes[c.weight], &c.scale)?;
        }
        if let Some((stays, by)) = block {
            let branch = usize::from(node.operands[0] == *stays);
            let by = b.scalar(Literal::f32(*by))?;
            let by = b.cast(b.ty(new[branch]).dtype, by)?;
            new[branch] = b.bin(BinOp::Mul, new[branch], by)?;
        }
        let op = rebuilt(&node.op, &given);
        // What a slice took is all that is left.
        let all = matches!(&op, Op::Slice(s) if s.sizes == b.ty(new[0]).dims && s.starts.iter().all(|d| d.is(0)));
        let inside = self.changes.hidden.as_ref().and_then(|h| Some((h, h.inside(id)?)));
        let v = match inside {
            _ if all => new[0],
            Some((h, axis)) => h.norm(b, op, &new, axis)?,
            None => b.add(op, &new)?,
        };
        self.handed_on(b, node, v).map(Some)
    }

    /// A new value in the place of a node's result: scaled where the embeddings end, filled where the function ends.
    fn handed_on(&mut self, b: &mut Builder<'_>, node: &Node, v: Value) -> Result<Vec<Value>, TypeError> {
        let Some(h) = &self.changes.hidden else { return Ok(vec![v]) };
        let old = node.results[0];
        let v = h.scale(b, old, v)?;
        if let Some(filled) = h.filled(b, old, v)? {
            self.filled.insert(old, filled);
        }
        Ok(vec![v])
    }
}

/// By value: the indices that somebody reads along each axis; `None` for a value that nobody reads.
fn wanted(f: &Func, changes: &Changes) -> Vec<Option<Vec<Keep>>> {
    let mut wanted: Vec<Option<Vec<Keep>>> = vec![None; f.value_count()];
    let read = |wanted: &mut Vec<Option<Vec<Keep>>>, v: Value, keeps: Vec<Keep>| {
        let all = &mut wanted[v.index()];
        *all = Some(match all.take() {
            None => keeps,
            Some(known) => known.into_iter().zip(keeps).enumerate().map(|(a, (x, y))| union(x, y, &f.ty(v).dims[a])).collect(),
        });
    };
    for (_, v) in f.results() {
        let rank = f.ty(*v).rank();
        let keeps = changes.hidden.as_ref().map_or_else(|| vec![None; rank], |h| h.read_of_result(*v, rank));
        read(&mut wanted, *v, keeps);
    }
    for (id, node) in f.nodes().rev() {
        if node.results.iter().all(|r| wanted[r.index()].is_none()) {
            continue;
        }
        let out = node.results.first().and_then(|r| wanted[r.index()].clone()).unwrap_or_default();
        if let Some(v) = changes.bypassed(id) {
            read(&mut wanted, v, out);
            continue;
        }
        for (v, keeps) in node.operands.iter().zip(reads(f, id, node, &out, changes).operands) {
            read(&mut wanted, *v, keeps);
        }
    }
    // Constants stay whole: each reader takes its own part.
    for (_, node) in f.nodes().filter(|(_, n)| matches!(n.op, Op::Constant(_))) {
        if let Some(all) = &mut wanted[node.results[0].index()] {
            all.iter_mut().for_each(|k| *k = None);
        }
    }
    wanted
}

fn union(x: Keep, y: Keep, extent: &Dim) -> Keep {
    let (mut x, y) = (x?, y?);
    x.extend(y);
    x.sort_unstable();
    x.dedup();
    (!extent.is(x.len() as i64)).then_some(x)
}

/// An op for the indices that its result has.
fn rebuilt(op: &Op, given: &[Keep]) -> Op {
    let sized = |dims: &[Dim]| {
        let size = |(d, k): (&Dim, &Keep)| k.as_ref().map_or_else(|| d.clone(), |k| Dim::from(k.len()));
        dims.iter().zip(given).map(size).collect::<Vec<_>>()
    };
    let mut op = op.clone();
    match &mut op {
        Op::Reshape(r) => r.dims = sized(&r.dims),
        Op::Broadcast(r) => r.dims = sized(&r.dims),
        Op::Slice(s) => {
            s.sizes = sized(&s.sizes);
            for (a, _) in given.iter().enumerate().filter(|(_, k)| k.is_some()) {
                s.starts[a] = Dim::from(0);
                s.steps[a] = 1;
            }
        }
        _ => {}
    }
    op
}

type Narrowed = BTreeMap<(ConstId, usize, Vec<usize>), Value>;

/// The wanted of the indices that a value has along an axis. Constants are cut here.
fn select(
    b: &mut Builder<'_>,
    known: &mut Narrowed,
    v: Value,
    axis: usize,
    have: &Keep,
    want: &Keep,
) -> Result<Value, TypeError> {
    let Some(want) = want.as_ref().filter(|w| have.as_ref() != Some(w)) else { return Ok(v) };
    let at: Vec<usize> = match have {
        None => want.clone(),
        Some(have) => want.iter().filter_map(|w| have.binary_search(w).ok()).collect(),
    };
    if let Some(Op::Constant(c)) = b.func.def_node(v).map(|n| n.op.clone()) {
        let key = (c.id, axis, at);
        if let Some(v) = known.get(&key) {
            return Ok(*v);
        }
        let v = selected(b, c.id, axis, &key.2)?;
        known.insert(key, v);
        return Ok(v);
    }
    let dims = b.ty(v).dims.clone();
    let first = at.first().copied().unwrap_or(0);
    if at.iter().enumerate().all(|(i, k)| *k == first + i) {
        let mut starts = vec![Dim::from(0); dims.len()];
        starts[axis] = Dim::from(first);
        let (mut sizes, steps) = (dims.clone(), vec![1; dims.len()]);
        sizes[axis] = Dim::from(at.len());
        return b.add(Slice { starts, sizes, steps }, &[v]);
    }
    let index: Vec<i64> = at.iter().map(|i| *i as i64).collect();
    let index = constant(b, "", Tensor::from_i64(&[index.len()], &index))?;
    b.add(Gather { axis }, &[v, index])
}

/// A constant with these indices of an axis.
fn selected(b: &mut Builder<'_>, id: ConstId, axis: usize, at: &[usize]) -> Result<Value, TypeError> {
    let unknown = || TypeError::dims("constant", "it is not in the pool");
    let name = b.consts.name(id).to_string();
    let t = Tensor::from_const(b.consts.get(id).ok_or_else(unknown)?);
    let row = t.dims[axis + 1..].iter().product::<usize>() * t.dtype.size_bytes();
    let outer: usize = t.dims[..axis].iter().product();
    let mut data = Vec::with_capacity(outer * at.len() * row);
    for o in 0..outer {
        for i in at {
            let from = (o * t.dims[axis] + i) * row;
            data.extend_from_slice(&t.data[from..from + row]);
        }
    }
    let mut dims = t.dims.clone();
    dims[axis] = at.len();
    constant(b, &name, Tensor { dtype: t.dtype, dims, data })
}

/// A weight, or another value, with the rows along an axis multiplied.
pub(super) fn scaled(b: &mut Builder<'_>, w: Value, axis: usize, by: &[f32]) -> Result<Value, TypeError> {
    let (rank, dtype) = (b.ty(w).rank(), b.ty(w).dtype);
    let constant_f32 = b.func.def_node(w).and_then(|n| match &n.op {
        Op::Constant(c) if dtype == DType::F32 => Some(c.id),
        _ => None,
    });
    if let Some((name, data)) = constant_f32.and_then(|id| Some((b.consts.name(id).to_string(), b.consts.get(id)?.clone()))) {
        let dims = data.dims();
        let inner: usize = dims[axis + 1..].iter().product();
        let scale = |(i, v): (usize, f64)| v as f32 * by[i / inner % dims[axis]];
        let values: Vec<f32> = Tensor::from_const(&data).to_f64().into_iter().enumerate().map(scale).collect();
        return constant(b, &name, Tensor::from_f32(&dims, &values));
    }
    let v = constant(b, "", Tensor::from_f32(&[by.len()], by))?;
    let v = b.cast(dtype, v)?;
    let dims: Vec<Dim> = std::iter::once(Dim::from(by.len())).chain((axis + 1..rank).map(|_| Dim::from(1))).collect();
    let v = b.reshape(v, dims)?;
    b.bin(BinOp::Mul, w, v)
}

pub(super) fn constant(b: &mut Builder<'_>, name: &str, t: Tensor) -> Result<Value, TypeError> {
    let data = t.to_const().ok_or_else(|| TypeError::dims("constant", "a length that does not fit its dims"))?;
    b.constant(name, data)
}
