//! `fold-linear`: constant factors and shifts around a product by a constant weight fold into the weight, and so do two such products in a row where one
//! is cheaper.
//!
//! * behind it: `s * (x w) + t` is `x (w diag(s)) + t`. Batch norm, layer scale and unified normalisation behind a layer.
//! * before it: `(s * x + t) w` is `x (diag(s) w) + t w`, if products are all that reads it. Unified normalisation before a layer (Yang et al. 2022).
//! * `((x u) s + t) w` is `x (u diag(s) w) + t w` where `u w` has fewer elements than `u` and `w`.
//!
//! Before a convolution nothing folds: a shift would not reach the padding.

use std::collections::BTreeMap;

use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Map, Op, TypeError};
use transc_ir::scalar::{BinOp, Body, Inst, Ref, UnOp};
use transc_ir::tensor::rewrite::{compact, rewrite};
use transc_ir::tensor::{Builder, ConstPool, Func, Loc, Node, NodeId};
use transc_ir::types::{DType, Dim};
use transc_ir::{Module, Value};

use super::sweep;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;
use crate::registry::Class;

/// Most multiplications that multiplying two weights may take.
const MAX_PRODUCT: usize = 1 << 28;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    if cx.numerics < Class::Reassoc {
        return Ok(());
    }
    let f = module.take_main();
    let folds = Search { f: &f, uses: Uses::of(&f), consts: &module.consts }.folds();
    let mut new: BTreeMap<Value, Value> = BTreeMap::new();
    let rewritten = rewrite(f, &mut module.consts, |b, id, node, operands| {
        new.extend(node.operands.iter().copied().zip(operands.iter().copied()));
        let Some(fold) = folds.get(&id) else { return Ok(None) };
        fold.fired.iter().for_each(|rule| cx.fired(rule));
        fold.build(b, new[&fold.x]).map(|v| Some(vec![v]))
    });
    module.main = compact(sweep::typed(cx, rewritten)?);
    Ok(())
}

/// `scale * v + shift` with an element of each for every channel.
#[derive(Clone)]
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl Affine {
    fn identity(n: usize) -> Self {
        Self { scale: vec![1.0; n], shift: vec![0.0; n] }
    }

    fn scales(&self) -> bool {
        self.scale.iter().any(|s| *s != 1.0)
    }
}

/// A matrix `[k, n]`, or the weight of a convolution as `[channels, rest]`.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn scale_columns(&mut self, by: &[f64]) {
        self.values.chunks_exact_mut(self.columns.max(1)).for_each(|row| row.iter_mut().zip(by).for_each(|(w, s)| *w *= s));
    }

    fn scale_rows(&mut self, by: &[f64]) {
        self.values.chunks_exact_mut(self.columns.max(1)).zip(by).for_each(|(row, s)| row.iter_mut().for_each(|w| *w *= s));
    }

    /// `row * self` for a vector.
    fn left(&self, row: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.columns];
        for (x, w) in row.iter().zip(self.values.chunks_exact(self.columns.max(1))) {
            out.iter_mut().zip(w).for_each(|(o, w)| *o += x * w);
        }
        out
    }

    fn times(&self, o: &Matrix) -> Matrix {
        let rows = self.values.chunks_exact(self.columns.max(1)).map(|row| o.left(row));
        Matrix { rows: self.rows, columns: o.columns, values: rows.flatten().collect() }
    }
}

/// A product that is replaced: `x` times a new weight, plus a shift.
struct Fold {
    x: Value,
    op: Op,
    /// Dims of the new weight.
    dims: Vec<usize>,
    weight: Vec<f64>,
    shift: Option<Vec<f64>>,
    /// Axes behind that of the channels in the result.
    behind: usize,
    name: String,
    loc: Loc,
    fired: Vec<&'static str>,
}

impl Fold {
    fn build(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, TypeError> {
        let constant = |b: &mut Builder<'_>, name: &str, dims: &[usize], values: &[f64]| {
            let data = Tensor::from_f64(DType::F32, dims, values).ok().and_then(|t| t.to_const());
            let data = data.ok_or_else(|| TypeError::dims("constant", format!("{name} does not fit {dims:?}")))?;
            b.constant(name, data)
        };
        b.loc = self.loc.clone();
        let w = constant(b, &self.name, &self.dims, &self.weight)?;
        let y = b.add(self.op.clone(), &[x, w])?;
        let Some(shift) = &self.shift else { return Ok(y) };
        let mut dims = vec![1; 1 + self.behind];
        dims[0] = shift.len();
        let t = constant(b, &format!("{}.shift", self.name), &dims, shift)?;
        b.add(Map { body: Body::bin(BinOp::Add) }, &[y, t])
    }
}

struct Search<'f> {
    f: &'f Func,
    uses: Uses,
    consts: &'f ConstPool,
}

impl Search<'_> {
    /// What to replace, by the node whose result it gives.
    fn folds(&self) -> BTreeMap<NodeId, Fold> {
        let mut all = BTreeMap::new();
        // A product that became part of a later one is not replaced itself.
        let mut taken = Vec::new();
        for (id, node) in self.f.nodes().rev() {
            if !taken.contains(&id)
                && let Some((last, fold, inner)) = self.fold(id, node)
            {
                taken.extend(inner);
                all.insert(last, fold);
            }
        }
        all
    }

    /// The fold around the product `id`, the node that it replaces, and the product that it swallows.
    fn fold(&self, id: NodeId, node: &Node) -> Option<(NodeId, Fold, Option<NodeId>)> {
        let w = *node.operands.get(1)?;
        // A weight that something else reads too would stand twice.
        self.uses.single(w)?;
        let conv = matches!(node.op, Op::Conv(_));
        let (rows, columns) = match &node.op {
            Op::Contract(c) => self.linear(node, c)?,
            Op::Conv(_) => self.channels(node)?,
            _ => return None,
        };
        let y = node.results[0];
        let rank = self.f.ty(y).rank();
        let (channel, n) = if conv { (1, rows) } else { (rank - 1, columns) };
        let (last, maps, behind) = self.behind(id, channel, n);
        let before = match &node.op {
            Op::Contract(c) if self.all_fold(node.operands[0]) => {
                let (x, before) = self.before(node.operands[0], c.lhs.len() - 1, rows);
                let first = self.one_product(x, c, (rows, columns));
                Some((x, before, first)).filter(|(x, _, first)| *x != node.operands[0] || first.is_some())
            }
            _ => None,
        };
        if before.is_none() && !behind.scales() && maps < 2 {
            return None;
        }
        let mut weight = self.matrix(node)?;
        let mut fired = Vec::new();
        let (mut x, mut shift, mut inner) = (node.operands[0], vec![0.0; n], None);
        if let Some((from, before, first)) = before {
            shift = weight.left(&before.shift);
            weight.scale_rows(&before.scale);
            if from != x {
                fired.push("before");
            }
            x = from;
            if let Some(first) = first {
                let node = self.f.node(first);
                (x, inner) = (node.operands[0], Some(first));
                weight = self.matrix(node)?.times(&weight);
                fired.push("two-products");
            }
        }
        if behind.scales() || maps > 1 || (maps > 0 && shift.iter().any(|t| *t != 0.0)) {
            fired.push("behind");
        }
        let last = if fired.contains(&"behind") { last } else { id };
        if last != id {
            if conv {
                weight.scale_rows(&behind.scale)
            } else {
                weight.scale_columns(&behind.scale)
            }
            shift = shift.iter().zip(&behind.scale).zip(&behind.shift).map(|((t, s), u)| t * s + u).collect();
        }
        let fits = |v: &f64| (*v as f32).is_finite();
        if !weight.values.iter().all(fits) || !shift.iter().all(fits) {
            return None;
        }
        let (op, dims) = match &node.op {
            // The weight stands as `[k, n]` now.
            Op::Contract(c) => {
                let (k, n) = (*c.lhs.last()?, *c.out.last()?);
                (Contract { rhs: vec![k, n], ..c.clone() }.into(), vec![weight.rows, weight.columns])
            }
            other => (other.clone(), self.f.ty(node.operands[1]).static_dims()?.iter().map(|d| *d as usize).collect()),
        };
        let name = self.name(node.operands[1]);
        let shift = shift.iter().any(|t| *t != 0.0).then_some(shift);
        Some((
            last,
            Fold { x, op, dims, weight: weight.values, shift, behind: rank - 1 - channel, name, loc: node.loc.clone(), fired },
            inner,
        ))
    }

    /// Rows and columns of the weight of a linear layer in `f32`: `[.., k] x [k, n]` in either order of its axes.
    fn linear(&self, node: &Node, c: &Contract) -> Option<(usize, usize)> {
        let (k, n) = (*c.lhs.last()?, *c.out.last()?);
        let rows = c.lhs.len() - 1;
        if c.rhs.len() != 2
            || c.out.len() != c.lhs.len()
            || c.lhs[..rows] != c.out[..rows]
            || !c.rhs.contains(&k)
            || !c.rhs.contains(&n)
        {
            return None;
        }
        let dims = self.weight(node)?;
        Some(if c.rhs[0] == k { (dims[0], dims[1]) } else { (dims[1], dims[0]) })
    }

    /// Channels of the result of a convolution in `f32`, and what the weight has for each.
    fn channels(&self, node: &Node) -> Option<(usize, usize)> {
        let dims = self.weight(node)?;
        Some((dims[0], dims[1..].iter().product()))
    }

    /// Dims of the constant weight of a product in `f32`.
    fn weight(&self, node: &Node) -> Option<Vec<usize>> {
        let w = *node.operands.get(1)?;
        let all_f32 = [node.operands[0], w, node.results[0]].iter().all(|v| self.f.ty(*v).dtype == DType::F32);
        let dims: Option<Vec<usize>> = self.f.ty(w).dims.iter().map(Dim::as_usize).collect();
        dims.filter(|_| all_f32 && self.f.constant(w).is_some())
    }

    /// The weight, as [`Search::linear`] and [`Search::channels`] say.
    fn matrix(&self, node: &Node) -> Option<Matrix> {
        let values = self.constant(node.operands[1])?.to_f64();
        let (rows, columns) = match &node.op {
            Op::Contract(c) => self.linear(node, c)?,
            _ => self.channels(node)?,
        };
        let by_column = matches!(&node.op, Op::Contract(c) if c.rhs.first() != c.lhs.last());
        let values =
            if by_column { (0..rows * columns).map(|i| values[i % columns * rows + i / columns]).collect() } else { values };
        Some(Matrix { rows, columns, values })
    }

    fn constant(&self, v: Value) -> Option<Tensor> {
        Some(Tensor::from_const(self.consts.get(self.f.constant(v)?)?))
    }

    fn name(&self, v: Value) -> String {
        self.f.constant(v).map_or_else(String::new, |c| self.consts.name(c).into())
    }

    /// The last of the affine maps that follow a node one after another, how many there are, and what they are together.
    fn behind(&self, id: NodeId, channel: usize, n: usize) -> (NodeId, usize, Affine) {
        let (mut last, mut maps, mut all) = (id, 0, Affine::identity(n));
        while let Some(next) = self.uses.single(self.f.node(last).results[0])
            && let Some((from, a)) = self.affine(next, channel, n)
            && from == self.f.node(last).results[0]
        {
            all.shift = all.shift.iter().zip(&a.scale).zip(&a.shift).map(|((t, s), u)| t * s + u).collect();
            all.scale.iter_mut().zip(&a.scale).for_each(|(s, r)| *s *= r);
            (last, maps) = (next, maps + 1);
        }
        (last, maps, all)
    }

    /// What the affine maps before a value start from, and what they are together; none of them needs to exist.
    fn before(&self, v: Value, channel: usize, n: usize) -> (Value, Affine) {
        let (mut x, mut all) = (v, Affine::identity(n));
        while (x == v || self.uses.single(x).is_some())
            && let Some(node) = self.f.def_id(x)
            && let Some((from, a)) = self.affine(node, channel, n)
        {
            all.shift = all.shift.iter().zip(&a.shift).zip(&all.scale).map(|((t, u), s)| t + s * u).collect();
            all.scale.iter_mut().zip(&a.scale).for_each(|(s, r)| *s *= r);
            x = from;
        }
        (x, all)
    }

    /// True if nothing but products by constant weights that are not shared reads `v`, along its last axis.
    fn all_fold(&self, v: Value) -> bool {
        let folds = |u: &NodeId| {
            let node = self.f.node(*u);
            let linear = matches!(&node.op, Op::Contract(c) if node.operands[0] == v && self.linear(node, c).is_some());
            linear && self.uses.single(node.operands[1]).is_some()
        };
        !self.uses.is_result(v) && self.uses.nodes(v).iter().all(folds)
    }

    /// The product that gives `x`, which `outer` alone reads, if both together are dearer than one.
    fn one_product(&self, x: Value, outer: &Contract, (k, n): (usize, usize)) -> Option<NodeId> {
        let id = self.f.def_id(x)?;
        let node = self.f.node(id);
        let Op::Contract(c) = &node.op else { return None };
        self.uses.single(x)?;
        self.uses.single(node.operands[1])?;
        let (rows, _) = self.linear(node, c).filter(|_| c.lhs.len() == outer.lhs.len())?;
        let product = rows.checked_mul(k)?.checked_mul(n)?;
        (rows * n < rows * k + k * n && product <= MAX_PRODUCT).then_some(id)
    }

    /// A map that is affine in one operand, with constants for the channels: that operand, and the constants.
    fn affine(&self, id: NodeId, channel: usize, n: usize) -> Option<(Value, Affine)> {
        let node = self.f.node(id);
        let Op::Map(m) = &node.op else { return None };
        let ty = self.f.ty(node.results[0]);
        if ty.dtype != DType::F32 {
            return None;
        }
        let mut from = None;
        let mut args = Vec::with_capacity(node.operands.len());
        for v in &node.operands {
            args.push(match self.per_channel(*v, channel, ty.rank(), n) {
                Some(values) => Term { scale: None, shift: values },
                None if from.is_none_or(|f| f == *v) && self.f.ty(*v) == ty => {
                    from = Some(*v);
                    Term { scale: Some(vec![1.0; n]), shift: vec![0.0; n] }
                }
                None => return None,
            });
        }
        let y = evaluate(&m.body, &args, n)?;
        Some((from?, Affine { scale: y.scale?, shift: y.shift }))
    }

    /// The elements of a constant for each of `n` channels, if it does not vary otherwise.
    fn per_channel(&self, v: Value, channel: usize, rank: usize, n: usize) -> Option<Vec<f64>> {
        let count = self.f.ty(v).count().as_usize().filter(|c| *c == 1 || *c == n)?;
        let t = self.constant(v)?;
        if count == 1 {
            return Some(vec![t.get_f64(0); n]);
        }
        let axis = channel.checked_sub(rank - t.dims.len())?;
        (t.dims.get(axis) == Some(&n)).then(|| t.to_f64())
    }
}

/// `scale * x + shift` for every channel, or `shift` alone.
#[derive(Clone)]
struct Term {
    scale: Option<Vec<f64>>,
    shift: Vec<f64>,
}

/// The body as an affine term; `None` if it is none.
fn evaluate(body: &Body, args: &[Term], n: usize) -> Option<Term> {
    let mut terms: Vec<Term> = Vec::with_capacity(body.insts.len());
    for inst in &body.insts {
        let at = |r: &Ref| match r {
            Ref::Arg(i) => &args[*i as usize],
            Ref::Inst(i) => &terms[*i as usize],
        };
        let term = match inst {
            Inst::Const(l) if l.dtype == DType::F32 => Term { scale: None, shift: vec![l.to_f64(); n] },
            Inst::Un(UnOp::Neg, a) => by_number(at(a), |v, _| -v, &vec![0.0; n]),
            Inst::Bin(op, a, b) => bin(*op, at(a), at(b))?,
            _ => return None,
        };
        terms.push(term);
    }
    match body.result {
        Ref::Arg(i) => args.get(i as usize).cloned(),
        Ref::Inst(i) => terms.get(i as usize).cloned(),
    }
}

/// Scale and shift of a term, each changed by a number of its channel.
fn by_number(x: &Term, f: impl Fn(f64, f64) -> f64, by: &[f64]) -> Term {
    let each = |v: &Vec<f64>| v.iter().zip(by).map(|(v, b)| f(*v, *b)).collect::<Vec<f64>>();
    Term { scale: x.scale.as_ref().map(each), shift: each(&x.shift) }
}

fn bin(op: BinOp, x: &Term, y: &Term) -> Option<Term> {
    let sum = |sign: f64| {
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + sign * b).collect::<Vec<f64>>();
        let scale = match (&x.scale, &y.scale) {
            (Some(a), Some(b)) => Some(add(a, b)),
            (Some(a), None) => Some(a.clone()),
            (None, Some(b)) => Some(b.iter().map(|b| sign * b).collect()),
            (None, None) => None,
        };
        Term { scale, shift: add(&x.shift, &y.shift) }
    };
    match op {
        BinOp::Add => Some(sum(1.0)),
        BinOp::Sub => Some(sum(-1.0)),
        BinOp::Mul if y.scale.is_none() => Some(by_number(x, |a, b| a * b, &y.shift)),
        BinOp::Mul if x.scale.is_none() => Some(by_number(y, |a, b| a * b, &x.shift)),
        BinOp::Div if y.scale.is_none() && y.shift.iter().all(|d| *d != 0.0) => Some(by_number(x, |a, b| a / b, &y.shift)),
        _ => None,
    }
}
