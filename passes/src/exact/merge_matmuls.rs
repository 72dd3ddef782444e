//! `merge-matmuls`: products of one activation by constant weights, whose results meet in one attention, become one product by the weights side by side:
//! one kernel for queries, keys and values, which reads the activation once.
//!
//! Each column is the same sum in the same order, so every bit stays. The element-wise work behind the products (bias, scales, quantisation) has to be
//! alike but for its constants, which are laid side by side too; where it is not, the products stay apart, since merged they would leave their
//! epilogues behind.

use std::collections::{BTreeMap, BTreeSet};

use transc_ir::op::{Contract, Map, Op, Slice, TypeError};
use transc_ir::scalar::{Body, Inst, Literal, Ref};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstData, ConstId, Func, Loc, Node, NodeId};
use transc_ir::types::{DType, Dim};
use transc_ir::{Module, TensorType, Value};

use super::sweep;
use crate::analysis::estimate::MANY_ZEROS;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let f = module.take_main();
    let groups = groups(&f, module);
    let last: BTreeMap<NodeId, (usize, usize)> = groups
        .iter()
        .enumerate()
        .flat_map(|(g, members)| members.iter().enumerate().map(move |(m, p)| (p.last, (g, m))))
        .collect();
    let mut made: Vec<Vec<Value>> = vec![Vec::new(); groups.len()];
    let mut new: BTreeMap<Value, Value> = BTreeMap::new();
    let rewritten = rewrite(f, &mut module.consts, |b, id, node, operands| {
        new.extend(node.operands.iter().copied().zip(operands.iter().copied()));
        let Some((group, member)) = last.get(&id) else { return Ok(None) };
        if made[*group].is_empty() {
            cx.fired("merge-matmuls");
            made[*group] = merged(b, &groups[*group], &new)?;
        }
        Ok(Some(vec![made[*group][*member]]))
    });
    module.main = compact(sweep::typed(cx, rewritten)?);
    Ok(())
}

/// A product by a constant weight, with the maps that follow it and belong to it alone.
struct Product {
    contract: Contract,
    x: Value,
    weight: ConstId,
    /// Number of columns.
    columns: i64,
    epilogue: Vec<Step>,
    /// The node of the last map, or of the product.
    last: NodeId,
    loc: Loc,
}

/// One map of an epilogue.
#[derive(Clone)]
struct Step {
    body: Body,
    args: Vec<Arg>,
}

/// An operand of a map of an epilogue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Arg {
    /// What the product or the map before gives.
    Chain,
    /// A value that all products share.
    Shared(Value),
    /// A constant for each column.
    PerColumn(ConstId),
}

/// What products that can be merged have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    x: Value,
    attention: NodeId,
    contract: Contract,
    dtype: DType,
    /// Bodies without their literals, and of a constant for each column its type.
    epilogue: Vec<(Body, Vec<Result<Arg, DType>>)>,
}

/// The products to merge, in the order of their last nodes.
fn groups(f: &Func, module: &Module) -> Vec<Vec<Product>> {
    let uses = Uses::of(f);
    let mut kinds: BTreeMap<Kind, Vec<Product>> = BTreeMap::new();
    for (id, node) in f.nodes() {
        let found = product(f, &uses, id, node).and_then(|p| Some((attention(f, &uses, p.last)?, p)));
        if let Some((attention, p)) = found {
            kinds.entry(p.kind(attention, module)).or_default().push(p);
        }
    }
    // Weights that may get a sparse kernel of their own stay apart from the others. Zeros are counted only where it matters.
    let sparse = |p: &Product| module.consts.get(p.weight).is_some_and(|d| zeros(d) >= MANY_ZEROS);
    let split = kinds.into_values().filter(|members| members.len() > 1).flat_map(|members| {
        let (sparse, dense): (Vec<Product>, Vec<Product>) = members.into_iter().partition(sparse);
        [sparse, dense]
    });
    split.filter(|members| members.len() > 1).collect()
}

fn product(f: &Func, uses: &Uses, id: NodeId, node: &Node) -> Option<Product> {
    let Op::Contract(contract) = &node.op else { return None };
    let [x, w] = node.operands[..] else { return None };
    let weight = f.constant(w)?;
    let column = *contract.out.last()?;
    let axis = contract.rhs.iter().position(|l| *l == column)?;
    if contract.rhs.len() != 2 || contract.lhs.contains(&column) {
        return None;
    }
    let columns = f.ty(w).dims[axis].as_const()?;
    let mut p = Product { contract: contract.clone(), x, weight, columns, epilogue: Vec::new(), last: id, loc: node.loc.clone() };
    loop {
        let v = f.node(p.last).results[0];
        let maps = uses.nodes(v).iter().filter(|u| matches!(f.node(**u).op, Op::Map(_))).count();
        if maps == 0 {
            return Some(p);
        }
        let next = uses.single(v)?;
        let Op::Map(m) = &f.node(next).op else { return None };
        if f.ty(f.node(next).results[0]).dims != f.ty(v).dims {
            return None;
        }
        let arg = |a: &Value| match f.constant(*a) {
            _ if *a == v => Some(Arg::Chain),
            Some(c) if is_row(f.ty(*a), columns) => Some(Arg::PerColumn(c)),
            _ => f.ty(*a).dims.last().is_none_or(|d| d.is(1)).then_some(Arg::Shared(*a)),
        };
        let args = f.node(next).operands.iter().map(arg).collect::<Option<Vec<_>>>()?;
        p.epilogue.push(Step { body: m.body.clone(), args });
        p.last = next;
    }
}

impl Product {
    fn kind(&self, attention: NodeId, module: &Module) -> Kind {
        let dtype = |c: ConstId| module.consts.get(c).map_or(DType::F32, |d| d.ty().dtype);
        let arg = |a: &Arg| if let Arg::PerColumn(c) = a { Err(dtype(*c)) } else { Ok(*a) };
        let blank = |s: &Step| (without_literals(&s.body), s.args.iter().map(arg).collect());
        Kind {
            x: self.x,
            attention,
            contract: self.contract.clone(),
            dtype: dtype(self.weight),
            epilogue: self.epilogue.iter().map(blank).collect(),
        }
    }
}

/// Share of the elements that are zero.
fn zeros(data: &ConstData) -> f64 {
    let size = data.ty().dtype.size_bytes();
    let all = data.bytes().chunks_exact(size);
    let n = all.len().max(1);
    all.filter(|e| e.iter().all(|b| *b == 0)).count() as f64 / n as f64
}

/// The body with zeros for literals.
fn without_literals(body: &Body) -> Body {
    let blank = |i: &Inst| if let Inst::Const(l) = i { Inst::Const(Literal { bits: 0, ..*l }) } else { i.clone() };
    Body { insts: body.insts.iter().map(blank).collect(), ..body.clone() }
}

/// The one attention that everything computed from a node's result goes to before any other product; it may be a result of the function too.
fn attention(f: &Func, uses: &Uses, from: NodeId) -> Option<NodeId> {
    let (mut found, mut seen, mut stack) = (BTreeSet::new(), BTreeSet::new(), vec![from]);
    while let Some(id) = stack.pop() {
        for u in f.node(id).results.iter().flat_map(|v| uses.nodes(*v)) {
            match f.node(*u).op {
                Op::Attention(_) => {
                    found.insert(*u);
                }
                Op::Contract(_) | Op::Conv(_) => return None,
                _ if seen.insert(*u) => stack.push(*u),
                _ => {}
            }
        }
    }
    found.pop_first().filter(|_| found.is_empty())
}

/// True if a type has one element for each column and does not vary otherwise.
fn is_row(t: &TensorType, columns: i64) -> bool {
    t.dims.last().is_some_and(|d| d.is(columns)) && t.count().is(columns)
}

/// The merged product with its epilogue, and of it the columns of each product.
fn merged(b: &mut Builder<'_>, products: &[Product], new: &BTreeMap<Value, Value>) -> Result<Vec<Value>, TypeError> {
    let first = &products[0];
    b.loc = Loc::join(products.iter().map(|p| &p.loc));
    let weights: Vec<ConstId> = products.iter().map(|p| p.weight).collect();
    let axis = first.contract.rhs.iter().position(|l| first.contract.out.last() == Some(l)).unwrap_or_default();
    let weight = beside(b, &weights, axis)?;
    let mut y = b.add(first.contract.clone(), &[new[&first.x], weight])?;
    for at in 0..first.epilogue.len() {
        let steps: Vec<(&Step, i64)> = products.iter().map(|p| (&p.epilogue[at], p.columns)).collect();
        y = merged_step(b, &steps, y, new)?;
    }
    let dims = b.ty(y).dims.clone();
    let last = dims.len() - 1;
    let mut at = 0;
    let columns = |p: &Product| {
        let mut box_ = Slice { starts: vec![0.into(); dims.len()], sizes: dims.clone(), steps: vec![1; dims.len()] };
        (box_.starts[last], box_.sizes[last]) = (at.into(), p.columns.into());
        at += p.columns;
        b.loc = p.loc.clone();
        b.add(box_, &[y])
    };
    products.iter().map(columns).collect()
}

/// One map of the epilogue; literals that differ become constants for each column.
fn merged_step(b: &mut Builder<'_>, steps: &[(&Step, i64)], y: Value, new: &BTreeMap<Value, Value>) -> Result<Value, TypeError> {
    let (first, _) = steps[0];
    let mut args = Vec::with_capacity(first.args.len());
    for (i, arg) in first.args.iter().enumerate() {
        args.push(match arg {
            Arg::Chain => y,
            Arg::Shared(v) => new[v],
            Arg::PerColumn(_) => {
                let rows = steps.iter().filter_map(|(s, _)| match s.args[i] {
                    Arg::PerColumn(c) => Some(c),
                    _ => None,
                });
                let rows: Vec<ConstId> = rows.collect();
                beside(b, &rows, usize::MAX)?
            }
        });
    }
    let literals = |at: usize| -> Vec<(Literal, i64)> {
        let literal = |s: &Step| if let Inst::Const(l) = s.body.insts[at] { Some(l) } else { None };
        steps.iter().filter_map(|(s, n)| Some((literal(s)?, *n))).collect()
    };
    let mut replaced = BTreeMap::new();
    for at in 0..first.body.insts.len() {
        let all = literals(at);
        if all.iter().any(|(l, _)| *l != all[0].0) {
            replaced.insert(at, Ref::Arg(args.len() as u32));
            args.push(repeated(b, &all)?);
        }
    }
    let mut body = Body::builder(args.len() as u32);
    let mut refs: Vec<Ref> = Vec::with_capacity(first.body.insts.len());
    let now = |r: Ref, refs: &[Ref]| if let Ref::Inst(i) = r { refs[i as usize] } else { r };
    for (at, inst) in first.body.insts.iter().enumerate() {
        refs.push(replaced.get(&at).copied().unwrap_or_else(|| body.push(inst.map_refs(|r| now(r, &refs)))));
    }
    let result = now(first.body.result, &refs);
    b.add(Map { body: body.finish(result) }, &args)
}

/// A constant of each literal as often as said.
fn repeated(b: &mut Builder<'_>, all: &[(Literal, i64)]) -> Result<Value, TypeError> {
    let dtype = all[0].0.dtype;
    let bytes = |(l, n): &(Literal, i64)| l.bits.to_le_bytes()[..dtype.size_bytes()].repeat(*n as usize);
    let columns: i64 = all.iter().map(|(_, n)| n).sum();
    constant_of(b, "columns", dtype, &[columns], all.iter().flat_map(bytes).collect())
}

/// Constants side by side along an axis of the matrices that they are; along the only one of rows, whatever axes of extent 1 these have.
fn beside(b: &mut Builder<'_>, parts: &[ConstId], axis: usize) -> Result<Value, TypeError> {
    let data: Vec<&ConstData> = parts.iter().filter_map(|c| b.consts.get(*c)).collect();
    let dtype = data[0].ty().dtype;
    let count = |d: &ConstData| d.dims().iter().product::<usize>();
    let (rows, dims) = if axis == 1 {
        let k = data[0].dims()[0];
        (k, vec![k as i64, data.iter().map(|d| (count(d) / k.max(1)) as i64).sum()])
    } else {
        let inner = if axis == 0 { data[0].dims()[1..].to_vec() } else { Vec::new() };
        let each: usize = inner.iter().product();
        let n: usize = data.iter().map(|d| count(d) / each.max(1)).sum();
        (1, std::iter::once(n).chain(inner).map(|d| d as i64).collect())
    };
    let mut bytes = Vec::with_capacity(data.iter().map(|d| d.bytes().len()).sum());
    for row in 0..rows {
        for d in &data {
            let len = d.bytes().len() / rows;
            bytes.extend_from_slice(&d.bytes()[row * len..][..len]);
        }
    }
    let names: Vec<&str> = parts.iter().map(|c| b.consts.name(*c)).collect();
    let name = names.join("|");
    constant_of(b, &name, dtype, &dims, bytes)
}

fn constant_of(b: &mut Builder<'_>, name: &str, dtype: DType, dims: &[i64], bytes: Vec<u8>) -> Result<Value, TypeError> {
    let ty = TensorType::new(dtype, dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>());
    let data = ConstData::new(ty, bytes).ok_or_else(|| TypeError::dims("constant", format!("{name} does not fit {dims:?}")))?;
    b.constant(name, data)
}
