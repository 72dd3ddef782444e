//! Layouts: in which order the axes of a value lie in memory between kernels.
//!
//! Values are row-major unless that costs a copy or a transposition that another order does not. There are three of these:
//!
//! * A region of views alone whose result is an attention's with its axes in another order. The attention stores its result in that order, and the
//!   region needs no kernel.
//! * Sparse products multiply blocks of weights by vectors of tokens. They turn an activation `[tokens, features]` and turn their sums back, unless these
//!   lie *turned*, the tokens beside each other, as Shen et al. 2023 keep them between all layers ("An Efficient Sparse Inference Software Accelerator
//!   for Transformer-based Language Models on CPUs"). What adds a residual wants it to lie as its result does, and so does attention with its operands;
//!   such values are a *group*, which lies turned if that saves more than it costs where norms go from one order to the other. Where the tokens are whole
//!   tiles of a product, they lie in blocks of one, `[blocks, features, tokens of a block]`: what a product reads is one piece of memory, and what one
//!   thread leaves shares no cache line with what another does. Else it is `[features, tokens]`.
//! * Attention that lies turned adds its mask to vectors of queries. Where a kernel makes a matrix of queries by keys for such attention alone, the
//!   queries are neighbours.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use transc_ir::op::Op;
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Blocks, Strided as View, groups};
use transc_ir::types::{DType, Dim};
use transc_ir::{Module, TensorType, Value};

use super::region::Region;
use super::strided::whole;
use super::{attention, norm, weights};
use crate::Target;
use crate::template::lies::Lies;
use crate::template::spmm;

/// In which order the axes of a value lie in memory.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The axes, outermost first.
    pub(crate) axes: Vec<usize>,
    /// An axis that lies in blocks: between two of its blocks lie the axes that follow it.
    pub(crate) blocks: Option<Blocks>,
}

/// Nanoseconds per element of a norm that reads rows and leaves them turned, or the other way round.
const TURNING_NORM_NS: f64 = 0.2;
/// The same of a region of pointwise ops that cannot work on vectors of tokens.
const ONE_BY_ONE_NS: f64 = 1.5;

/// The whole of a tensor that lies in an order, row-major if there is none.
pub(crate) fn view(dims: &[Dim], order: Option<&Order>) -> View {
    let mut view = View::contiguous(dims);
    let Some(Order { axes, blocks }) = order else { return view };
    let mut stride = blocks.map_or(1.into(), |b| Dim::from(b.len));
    for axis in axes.iter().rev() {
        if let Some(b) = blocks.filter(|b| b.axis == *axis) {
            stride = stride.floor_div(&b.len.into());
        }
        view.axes[*axis].stride.clone_from(&stride);
        stride = &stride * &dims[*axis];
    }
    view.blocks = *blocks;
    view
}

/// How a matrix `[tokens.., features]` in an order lies.
pub(super) fn lies(order: Option<&Order>) -> Lies {
    match order {
        None => Lies::Rows,
        Some(Order { blocks: None, .. }) => Lies::Turned,
        Some(_) => Lies::Blocks,
    }
}

/// The order of a tensor `[tokens.., features]` that lies turned; `tokens` are those axes in their order, `features` what follows.
fn turned_axes(tokens: &[usize], features: &[usize], len: Option<i64>) -> Order {
    match (len, tokens.last()) {
        (Some(len), Some(axis)) => Order { axes: [tokens, features].concat(), blocks: Some(Blocks { axis: *axis, len }) },
        _ => Order { axes: [features, tokens].concat(), blocks: None },
    }
}

/// The order of a tensor `[tokens.., features]` that lies turned, in blocks of so many tokens or not.
pub(super) fn turned(rank: usize, len: Option<i64>) -> Order {
    let axes: Vec<usize> = (0..rank).collect();
    let (tokens, features) = axes.split_at(rank.saturating_sub(1));
    turned_axes(tokens, features, len)
}

/// The layouts of the values of a module.
#[derive(Default)]
pub(crate) struct Layouts {
    orders: HashMap<Value, Order>,
    same: HashMap<Value, Value>,
}

impl Layouts {
    /// The order of a value that is not row-major.
    pub(crate) fn order(&self, v: Value) -> Option<&Order> {
        self.orders.get(&v)
    }

    /// What lies in memory just as a value would: the value's region has nothing to do.
    pub(crate) fn same_as(&self, v: Value) -> Option<Value> {
        self.same.get(&v).copied()
    }

    /// Chooses the layouts for a target.
    pub(crate) fn choose(m: &Module, target: &Target) -> Self {
        let uses = m.main.use_counts();
        let copies: Vec<Copied> = m.main.nodes().filter_map(|(_, n)| Copied::find(m, n, &uses)).collect();
        let turned = Groups::find(m, target, &copies).turned();
        let len = spmm::tile_rows(target.lanes());
        let mut out = Self::place(m, &copies, &turned, |_| Some(len));
        let broken = out.broken(m, &copies, &turned, target);
        out = Self::place(m, &copies, &turned, |group| (!broken.contains(&group)).then_some(len));
        let masks = masks(m, &uses, &out);
        out.orders.extend(masks);
        out
    }

    /// The orders of results of attention, and of values that lie turned, by their groups: `len` gives the blocks of a group.
    fn place(m: &Module, copies: &[Copied], turned_ones: &BTreeMap<Value, Value>, len: impl Fn(Value) -> Option<i64>) -> Self {
        let mut out = Self::default();
        for c in copies {
            let order = match turned_ones.get(&c.result) {
                Some(group) => turned_axes(&c.tokens, &c.features, len(*group)),
                None => Order { axes: [c.tokens.as_slice(), &c.features].concat(), blocks: None },
            };
            out.same.insert(c.result, c.from);
            out.orders.insert(c.from, order);
        }
        out.orders.extend(turned_ones.iter().map(|(v, group)| (*v, turned(m.main.ty(*v).rank(), len(*group)))));
        out
    }

    /// The groups that cannot lie in blocks: their tokens are not whole blocks, or not where a region looks at them.
    fn broken(&self, m: &Module, copies: &[Copied], turned_ones: &BTreeMap<Value, Value>, target: &Target) -> BTreeSet<Value> {
        let seen: HashMap<Value, Value> = copies.iter().map(|c| (c.from, c.result)).collect();
        let group = |v: &Value| turned_ones.get(seen.get(v).unwrap_or(v)).copied();
        let mut broken = BTreeSet::new();
        for (_, node) in m.main.nodes() {
            let touched: Vec<Value> = node.operands.iter().chain(&node.results).filter_map(group).collect();
            if !touched.is_empty() && !keeps_blocks(&Region::placed(&m.main, node, m, self), target) {
                broken.extend(touched);
            }
        }
        broken
    }
}

/// True if what lies in blocks is made of whole ones, and the kernels of a region find them.
fn keeps_blocks(r: &Region, target: &Target) -> bool {
    let mut values = r.body.params().iter().chain(r.body.results()).map(|(_, v)| *v);
    let whole = |v: Value| match r.order(v).and_then(|o| o.blocks) {
        Some(b) => r.ty(v).dims[b.axis].modulo(&b.len.into()).is(0),
        None => true,
    };
    let finds = match r.anchor_op() {
        Some(Op::Contract(_)) => weights::finds_layer(r),
        Some(Op::Attention(_) | Op::IntAttention(_)) => attention::lies_turned(r, target),
        _ => true,
    };
    finds && values.all(whole)
}

/// Matrices of queries by keys that kernels of their own make, and only attention reads that lies turned: its vectors run along the queries.
fn masks(m: &Module, uses: &[u32], layouts: &Layouts) -> Vec<(Value, Order)> {
    let f = &m.main;
    let mut readers: BTreeMap<Value, u32> = BTreeMap::new();
    for (_, node) in f.nodes().filter(|(_, n)| layouts.order(n.results[0]).is_some()) {
        let region = Region::placed(f, node, m, layouts);
        let Some(attention) = region.anchor.and_then(|v| region.body.def_node(v)) else { continue };
        let is_attention = matches!(attention.op, Op::Attention(_) | Op::IntAttention(_));
        let lies_turned = is_attention && whole(&region, region.roots()[0]).beside(2);
        let mask = attention.operands.get(3).filter(|_| lies_turned);
        let given = region.body.params().iter().zip(&node.operands).find(|((_, v), _)| Some(v) == mask);
        if let Some((_, given)) = given {
            *readers.entry(*given).or_default() += 1;
        }
    }
    let made = |n: &Node| matches!(n.op, Op::Fused(_)) && n.results.len() == 1 && Region::new(f, n, m).anchor.is_none();
    let kept = |v: Value| f.results().iter().any(|(_, w)| *w == v);
    let order = |v: Value| {
        let mut axes: Vec<usize> = (0..f.ty(v).rank()).collect();
        let keys = axes.pop()?;
        let queries = axes.pop()?;
        let matrix = [keys, queries].iter().all(|a| !f.ty(v).dims[*a].is(1));
        axes.extend([keys, queries]);
        matrix.then_some((v, Order { axes, blocks: None }))
    };
    let free = |v: &Value, n: &u32| uses[v.index()] == *n && !kept(*v) && f.def_node(*v).is_some_and(made);
    readers.into_iter().filter(|(v, n)| free(v, n)).filter_map(|(v, _)| order(v)).collect()
}

/// The result of a region of views alone of the result of an attention.
struct Copied {
    from: Value,
    result: Value,
    /// The axes of the attention's result that are those of this but for the last, and those that are the last, in their order.
    tokens: Vec<usize>,
    features: Vec<usize>,
}

impl Copied {
    fn find(m: &Module, node: &Node, uses: &[u32]) -> Option<Self> {
        let f = &m.main;
        let ([from], [result]) = (node.operands.as_slice(), node.results.as_slice()) else { return None };
        let kept = f.results().iter().any(|(_, v)| v == from || v == result);
        let attention = |n: &Node| matches!(Region::new(f, n, m).anchor_op(), Some(Op::Attention(_) | Op::IntAttention(_)));
        if uses[from.index()] != 1 || kept || !f.def_node(*from).is_some_and(attention) {
            return None;
        }
        let region = Region::new(f, node, m);
        let views: Vec<&Op> = region.body.nodes().map(|(_, n)| &n.op).collect();
        let [Op::Transpose(t), Op::Reshape(r)] = views.as_slice() else { return None };
        // An attention stores vectors of features.
        if t.perm.last() != Some(&t.perm.len().checked_sub(1)?) {
            return None;
        }
        let moved: Vec<Dim> = t.perm.iter().map(|p| f.ty(*from).dims[*p].clone()).collect();
        // The features are what the last axis is made of.
        let last = r.dims.len().checked_sub(1)?;
        let (features, _) = groups(&moved, &r.dims)?.into_iter().find(|(_, to)| *to == [last])?;
        let (tokens, features) = t.perm.split_at(*features.first()?);
        Some(Self { from: *from, result: *result, tokens: tokens.into(), features: features.into() })
    }
}

/// Values that can lie turned, by what has to lie alike.
#[derive(Default)]
struct Groups {
    /// Where the group of a value stands, step by step.
    parent: HashMap<Value, Value>,
    /// Values that have to be row-major.
    rows: HashSet<Value>,
    /// What is saved if a value lies turned, per token.
    gain: Vec<(Value, f64)>,
    /// What it costs if two values lie in different orders; without a second one, if the first lies turned.
    apart: Vec<(Value, Option<Value>, f64)>,
    values: BTreeSet<Value>,
}

impl Groups {
    fn find(m: &Module, target: &Target, copies: &[Copied]) -> Self {
        let f = &m.main;
        let mut g = Self::default();
        g.rows.extend(f.params().iter().chain(f.results()).map(|(_, v)| *v));
        // The result of an attention is what those who read it see.
        let seen: HashMap<Value, Value> = copies.iter().map(|c| (c.from, c.result)).collect();
        let copied: HashSet<Value> = copies.iter().map(|c| c.result).collect();
        for (_, node) in f.nodes().filter(|(_, n)| !copied.contains(&n.results[0])) {
            if let Op::Constant(_) = node.op {
                // It is read from where it lies.
                g.rows.extend(&node.results);
                continue;
            }
            let ability = Ability::of(&Region::new(f, node, m), target);
            let result = *seen.get(&node.results[0]).unwrap_or(&node.results[0]);
            match ability.result {
                Some(gain) => {
                    g.values.insert(result);
                    g.gain.push((result, gain));
                }
                None => g.rows.extend(node.results.iter().chain([&result])),
            }
            for (i, v) in node.operands.iter().enumerate() {
                match ability.operands.get(i) {
                    Some(Operand::Alike) => g.join(*v, result),
                    Some(Operand::Either(gain)) => g.gain.push((*v, *gain)),
                    Some(Operand::Norm(cost)) => g.apart.push((*v, Some(result), *cost)),
                    Some(Operand::Unused) => {}
                    Some(Operand::Rows) | None => _ = g.rows.insert(*v),
                }
            }
            g.apart.extend(ability.one_by_one.map(|cost| (result, None, cost)));
        }
        g
    }

    fn group(&self, v: Value) -> Value {
        let mut v = v;
        while let Some(p) = self.parent.get(&v) {
            v = *p;
        }
        v
    }

    fn join(&mut self, a: Value, b: Value) {
        let (a, b) = (self.group(a), self.group(b));
        if a != b {
            self.parent.insert(a.max(b), a.min(b));
        }
    }

    /// The values of the groups that are worth it, and their groups.
    fn turned(&self) -> BTreeMap<Value, Value> {
        let rows: HashSet<Value> = self.rows.iter().map(|v| self.group(*v)).collect();
        let mut turned: BTreeSet<Value> = self.values.iter().map(|v| self.group(*v)).filter(|g| !rows.contains(g)).collect();
        loop {
            let lies = |v: Value| turned.contains(&self.group(v));
            let worth = |g: &Value| {
                let gain: f64 = self.gain.iter().filter(|(v, _)| self.group(*v) == *g).map(|(_, gain)| gain).sum();
                let ends = |(a, b, cost): &(Value, Option<Value>, f64)| {
                    let of_group = self.group(*a) == *g || b.is_some_and(|b| self.group(b) == *g);
                    let differ = lies(*a) != b.is_some_and(lies);
                    if of_group && differ { *cost } else { 0.0 }
                };
                gain > self.apart.iter().map(ends).sum()
            };
            let next: BTreeSet<Value> = turned.iter().copied().filter(worth).collect();
            if next == turned {
                return self.values.iter().copied().filter(|v| lies(*v)).map(|v| (v, self.group(v))).collect();
            }
            turned = next;
        }
    }
}

/// How an operand of a region may lie.
#[derive(Clone, Copy, PartialEq)]
enum Operand {
    /// Row-major.
    Rows,
    /// As the result.
    Alike,
    /// Turned or not; what it saves if it is.
    Either(f64),
    /// Turned or not; what it costs if the result lies otherwise.
    Norm(f64),
    /// Of no interest: a column of numbers for all tokens.
    Unused,
}

/// What the kernels of a region can do about layouts. Costs are nanoseconds per token.
struct Ability {
    operands: Vec<Operand>,
    /// What it saves if the result lies turned; `None` if it cannot.
    result: Option<f64>,
    /// What it costs besides.
    one_by_one: Option<f64>,
}

impl Ability {
    fn of(r: &Region, target: &Target) -> Self {
        let none = Self { operands: Vec::new(), result: None, one_by_one: None };
        let [root] = r.roots()[..] else { return none };
        let ty = r.ty(root);
        let Some(features) = ty.dims.last().and_then(Dim::as_const).filter(|_| ty.rank() > 1) else { return none };
        match r.anchor_op() {
            Some(Op::Contract(_)) => Self::sparse(r, target).unwrap_or(none),
            Some(Op::LayerNorm(_) | Op::RmsNorm(_)) => Self::norm(r, ty, features).unwrap_or(none),
            Some(Op::Attention(_) | Op::IntAttention(_)) => Self::attention(r, target).unwrap_or(none),
            None => Self::pointwise(r, ty, features),
            _ => none,
        }
    }

    /// The operands of a region that reads some of them element by element.
    fn by_element(r: &Region, elements: &[Value], operand: Operand) -> Vec<Operand> {
        let uses = r.body.use_counts();
        let of = |v: Value| match uses[v.index()] {
            0 => Operand::Unused,
            _ if elements.contains(&v) => operand,
            _ if is_column(r.ty(v)) => Operand::Unused,
            _ => Operand::Rows,
        };
        r.body.params().iter().map(|(_, v)| of(*v)).collect()
    }

    fn sparse(r: &Region, target: &Target) -> Option<Self> {
        let [saved_in, saved_out] = weights::saved_by_turning(r, target)?;
        let anchor = r.anchor?;
        let elements = elements_behind(r, Some(anchor));
        let mut operands = Self::by_element(r, elements.as_deref().unwrap_or(&[]), Operand::Alike);
        for (i, (_, v)) in r.body.params().iter().enumerate() {
            if operands[i] == Operand::Rows && weights::takes_turned(r, i) && only_read_by(r, *v, anchor) {
                operands[i] = Operand::Either(saved_in);
            }
        }
        Some(Self { operands, result: elements.map(|_| saved_out), one_by_one: None })
    }

    fn norm(r: &Region, ty: &TensorType, features: i64) -> Option<Self> {
        let anchor = r.anchor?;
        let node = r.body.def_node(anchor)?;
        let axis = match &node.op {
            Op::LayerNorm(n) => n.axis,
            Op::RmsNorm(n) => n.axis,
            _ => return None,
        };
        if axis + 1 != ty.rank() || r.ty(anchor).dtype != DType::F32 || !elements_behind(r, Some(anchor))?.is_empty() {
            return None;
        }
        let turning = TURNING_NORM_NS * features as f64;
        let (operands, one_by_one) = match norm::taken(r) {
            Some(v) => (Self::by_element(r, &[v], Operand::Norm(turning)), None),
            None => (vec![Operand::Rows; r.body.params().len()], Some(turning)),
        };
        Some(Self { operands, result: Some(0.0), one_by_one })
    }

    fn attention(r: &Region, target: &Target) -> Option<Self> {
        let taken = attention::taken_turned(r, target)?;
        if !elements_behind(r, r.anchor)?.is_empty() {
            return None;
        }
        let of = |v: &Value| if taken.contains(v) { Operand::Alike } else { Operand::Rows };
        Some(Self { operands: r.body.params().iter().map(|(_, v)| of(v)).collect(), result: Some(0.0), one_by_one: None })
    }

    fn pointwise(r: &Region, ty: &TensorType, features: i64) -> Self {
        match elements_behind(r, None) {
            Some(elements) if !elements.is_empty() => {
                Self { operands: Self::by_element(r, &elements, Operand::Alike), result: Some(0.0), one_by_one: None }
            }
            _ => {
                let elements = ty.dims.iter().all(|d| !d.is(0)).then_some(features as f64);
                let operands = vec![Operand::Rows; r.body.params().len()];
                Self { operands, result: Some(0.0), one_by_one: elements.map(|n| n * ONE_BY_ONE_NS) }
            }
        }
    }
}

/// True for what has one number per feature, the same for all tokens.
fn is_column(ty: &TensorType) -> bool {
    ty.dims.split_last().is_none_or(|(_, rows)| rows.iter().all(|d| d.is(1)))
}

/// The parameters that what follows an anchor, or all of a region, reads element by element, at the index of its result. `None` if it reads anything
/// else but columns.
pub(super) fn elements_behind(r: &Region, anchor: Option<Value>) -> Option<Vec<Value>> {
    let dims = &r.ty(r.roots()[0]).dims;
    let mut elements = BTreeSet::new();
    for (_, node) in r.body.nodes() {
        let result = node.results[0];
        if anchor.is_some_and(|a| result <= a) || is_column(r.ty(result)) {
            continue;
        }
        if !matches!(node.op, Op::Map(_) | Op::Quantize(_) | Op::Dequantize(_) | Op::LayerNorm(_) | Op::RmsNorm(_)) {
            return None;
        }
        for v in node.operands.iter().filter(|v| !is_column(r.ty(**v))) {
            let param = r.body.params().iter().any(|(_, p)| p == v);
            if r.ty(*v).dims != *dims || !param && anchor.is_some_and(|a| *v < a) {
                return None;
            }
            elements.extend(param.then_some(*v));
        }
    }
    Some(elements.into_iter().collect())
}

/// True if a value is read by the anchor and nothing else, through views.
fn only_read_by(r: &Region, v: Value, anchor: Value) -> bool {
    let uses = r.body.use_counts();
    let mut v = v;
    while uses[v.index()] == 1 && v != anchor {
        let Some((_, user)) = r.body.nodes().find(|(_, n)| n.operands.contains(&v)) else { return false };
        v = user.results[0];
    }
    v == anchor
}
