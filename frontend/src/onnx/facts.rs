//! What is known of values while a model is imported: shape arithmetic as expressions, and constants.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use transc_ir::interp::{EvalCx, SymTensor, Tensor, sym_eval};
use transc_ir::op::ReduceKind;
use transc_ir::scalar::Literal;
use transc_ir::tensor::{Node, NodeId};
use transc_ir::{Dim, Module, Op, TensorType, Value};

use super::error::{Result, invalid, limit};
use super::fractions::{self, Fraction};

/// Most elements of a tensor of whole numbers that is evaluated without being asked for.
const FEW_INTS: usize = 64;
/// Most operations between a number and the value that is full of it.
const MAX_STEPS: usize = 16;

/// Knowledge about the values of one function. It grows with the function; see [`Facts::propagate`].
#[derive(Default)]
pub(super) struct Facts {
    known: Vec<Option<SymTensor>>,
    /// Single reals that are quotients of dims.
    fractions: Vec<Option<Fraction>>,
    /// Which values depend on nothing but constants.
    constant: Vec<bool>,
    folded: BTreeMap<Value, Rc<Tensor>>,
    done: usize,
}

impl Facts {
    /// Takes in the nodes that were added since the last call.
    pub(super) fn propagate(&mut self, m: &Module) {
        let f = &m.main;
        self.known.resize(f.value_count(), None);
        self.fractions.resize(f.value_count(), None);
        self.constant.resize(f.value_count(), false);
        for i in self.done..f.node_count() {
            let node = f.node(NodeId(i as u32));
            let operands: Vec<Option<&SymTensor>> = node.operands.iter().map(|v| self.known[v.index()].as_ref()).collect();
            let types: Vec<&TensorType> = node.operands.iter().map(|v| f.ty(*v)).collect();
            let results: Vec<TensorType> = node.results.iter().map(|v| f.ty(*v).clone()).collect();
            if let Some(values) = sym_eval(&node.op, &operands, &types, &results, &m.consts, &m.symbols) {
                for (v, t) in node.results.iter().zip(values) {
                    self.known[v.index()] = Some(t);
                }
            } else if let ([v], [ty]) = (node.results.as_slice(), results.as_slice()) {
                self.fraction(m, node, *v, ty);
            }
            let constant = node.operands.iter().all(|v| self.constant[v.index()])
                && results.iter().all(|t| t.static_dims().is_some())
                && !mentions_symbols(node);
            for (v, ty) in node.results.iter().zip(&results) {
                // An element of a shape may be a number although the shape is not.
                let number = self.known[v.index()].as_ref().is_some_and(|t| t.as_ints().is_some());
                self.constant[v.index()] = constant || number;
                // Whole numbers that were computed in reals, such as the side of a square of patches.
                if constant && ty.dtype.is_int() && self.known[v.index()].is_none() {
                    self.known[v.index()] = self.few_ints(m, *v, ty);
                }
            }
        }
        self.done = f.node_count();
    }

    /// Takes in a single number that reals are on the way to.
    fn fraction(&mut self, m: &Module, node: &Node, v: Value, ty: &TensorType) {
        if !ty.dims.iter().all(|d| d.is(1)) {
            return;
        }
        if let Some(n) = self.counted(m, node).filter(|_| ty.dtype.is_int()) {
            self.known[v.index()] = Some(SymTensor { dims: vec![1; ty.rank()], values: vec![n] });
            return;
        }
        let of = |v: &Value| match self.known[v.index()].as_ref().map(|t| t.values.as_slice()) {
            Some([d]) => Some(Fraction::whole(d.clone())),
            _ => self.fractions[v.index()].clone(),
        };
        let operands: Vec<Option<Fraction>> = node.operands.iter().map(of).collect();
        let Some(f) = fractions::eval(m, node, &operands) else { return };
        if f.bottom == 1 && !node.operands.is_empty() {
            self.known[v.index()] = Some(SymTensor { dims: vec![1; ty.rank()], values: vec![f.top] });
        } else {
            self.fractions[v.index()] = Some(f);
        }
    }

    /// The sum of a tensor full of one number.
    fn counted(&self, m: &Module, node: &Node) -> Option<Dim> {
        let Op::Reduce(r) = &node.op else { return None };
        let x = *node.operands.first().filter(|_| r.kind == ReduceKind::Sum)?;
        let number = self.uniform(m, x)?.to_i64();
        let dims = &m.main.ty(x).dims;
        Some(r.axes.iter().fold(Dim::from(number), |n, a| &n * &dims[*a]))
    }

    /// The number that all elements of a value are.
    pub(super) fn uniform(&self, m: &Module, v: Value) -> Option<Literal> {
        self.uniform_within(m, v, MAX_STEPS)
    }

    fn uniform_within(&self, m: &Module, v: Value, steps: usize) -> Option<Literal> {
        let node = m.main.def_node(v)?;
        let steps = steps.checked_sub(1)?;
        match &node.op {
            Op::Constant(c) => {
                let data = m.consts.get(c.id)?;
                let mut all = data.bytes().chunks_exact(data.ty().dtype.size_bytes());
                let first = all.next()?;
                let mut bits = [0u8; 8];
                bits[..first.len()].copy_from_slice(first);
                all.all(|e| e == first).then_some(Literal { dtype: data.ty().dtype, bits: u64::from_le_bytes(bits) })
            }
            Op::Broadcast(_) | Op::Reshape(_) | Op::Slice(_) | Op::Transpose(_) => {
                self.uniform_within(m, *node.operands.first()?, steps)
            }
            Op::Map(_) => {
                let one = |v: &Value| {
                    self.uniform_within(m, *v, steps).map(|l| {
                        let mut t = Tensor { dtype: l.dtype, dims: Vec::new(), data: vec![0; l.dtype.size_bytes()] };
                        t.set(0, l);
                        t
                    })
                };
                let operands: Vec<Tensor> = node.operands.iter().map(one).collect::<Option<_>>()?;
                let refs: Vec<&Tensor> = operands.iter().collect();
                let cx = EvalCx { consts: &m.consts, symbols: &|_| None };
                let result = node.op.eval(&refs, &cx).ok()?;
                Some(result.first()?.get(0))
            }
            _ => None,
        }
    }

    /// The elements of a constant with few of them, where all that it is computed from is small too.
    fn few_ints(&mut self, m: &Module, v: Value, ty: &TensorType) -> Option<SymTensor> {
        let dims: Vec<usize> = ty.dims.iter().map(Dim::as_usize).collect::<Option<_>>()?;
        let few = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).is_some_and(|n| n <= FEW_INTS);
        let t = if few { self.constant(m, v, FEW_INTS).ok()?? } else { return None };
        Some(SymTensor { dims, values: (0..t.count()).map(|i| Dim::from(t.get_i64(i))).collect() })
    }

    /// Forgets what was derived, since symbols were replaced: more may be known now.
    pub(super) fn reset(&mut self) {
        self.known.clear();
        self.fractions.clear();
        self.constant.clear();
        self.done = 0;
    }

    /// The elements of a small tensor of whole numbers as dims, if they are known.
    pub(super) fn symbolic(&self, v: Value) -> Option<&[Dim]> {
        self.known.get(v.index())?.as_ref().map(|t| t.values.as_slice())
    }

    /// The elements of an integer tensor as dims, if they are known.
    ///
    /// # Errors
    /// As [`Facts::constant`].
    pub(super) fn dims(&mut self, m: &Module, v: Value, max: usize) -> Result<Option<Vec<Dim>>> {
        if m.main.ty(v).dtype.is_float() {
            return invalid(format!("needs integers, got {}", m.main.ty(v)));
        }
        if let Some(values) = self.symbolic(v) {
            return Ok(Some(values.to_vec()));
        }
        Ok(self.constant(m, v, max)?.map(|t| (0..t.count()).map(|i| Dim::from(t.get_i64(i))).collect()))
    }

    /// A small tensor whose elements are all known as numbers.
    fn numbers(&self, m: &Module, v: Value) -> Option<Tensor> {
        let t = self.known.get(v.index())?.as_ref()?;
        let values = t.as_ints()?;
        let dtype = m.main.ty(v).dtype;
        let mut out = Tensor { dtype, dims: t.dims.clone(), data: vec![0; values.len() * dtype.size_bytes()] };
        for (i, x) in values.into_iter().enumerate() {
            out.set(i, transc_ir::scalar::Literal::from_i64(dtype, x));
        }
        Some(out)
    }

    /// The value of a tensor that depends on constants only.
    ///
    /// # Errors
    /// A tensor on the way that has more than `max` elements, or an evaluation that fails.
    pub(super) fn constant(&mut self, m: &Module, v: Value, max: usize) -> Result<Option<Tensor>> {
        if let Some(t) = self.numbers(m, v) {
            return Ok(Some(t));
        }
        if !self.constant.get(v.index()).is_some_and(|c| *c) {
            return Ok(None);
        }
        // Operands first, without recursion: chains may be long.
        let mut stack = vec![v];
        while let Some(top) = stack.last().copied() {
            let Some(node) = m.main.def_node(top).filter(|_| !self.folded.contains_key(&top)) else {
                stack.pop();
                continue;
            };
            if let Some(t) = self.numbers(m, top) {
                self.folded.insert(top, Rc::new(t));
                stack.pop();
                continue;
            }
            let missing: Vec<Value> = node.operands.iter().copied().filter(|o| !self.folded.contains_key(o)).collect();
            if missing.is_empty() {
                self.fold(m, node, max)?;
                stack.pop();
            } else {
                stack.extend(missing);
            }
        }
        Ok(self.folded.get(&v).map(|t| (**t).clone()))
    }

    fn fold(&mut self, m: &Module, node: &Node, max: usize) -> Result<()> {
        for r in &node.results {
            let count = m.main.ty(*r).static_dims().and_then(|d| d.iter().try_fold(1i64, |n, d| n.checked_mul(*d)));
            // A weight is already there; what is computed from it is bounded.
            if !matches!(node.op, Op::Constant(_)) && count.is_none_or(|n| n as u64 > max as u64) {
                return limit(format!(
                    "a constant of type {} would be computed; the folding limit is {max} elements",
                    m.main.ty(*r)
                ));
            }
        }
        let operands: Vec<Rc<Tensor>> = node.operands.iter().filter_map(|o| self.folded.get(o).cloned()).collect();
        let refs: Vec<&Tensor> = operands.iter().map(Rc::as_ref).collect();
        let cx = EvalCx { consts: &m.consts, symbols: &|_| None };
        match node.op.eval(&refs, &cx) {
            Ok(results) => {
                self.folded.extend(node.results.iter().copied().zip(results.into_iter().map(Rc::new)));
                Ok(())
            }
            Err(e) => invalid(format!("a constant has no value: {e}")),
        }
    }
}

fn mentions_symbols(node: &Node) -> bool {
    let seen = Cell::new(false);
    let mut op = node.op.clone();
    op.map_dims(&|d| {
        seen.set(seen.get() || d.as_const().is_none());
        d.clone()
    });
    seen.get()
}
