//! How much of what a model contains has become one op.
//!
//! What it contains is counted in the model as it was imported, by the traces that every spelling leaves: a softmax between two products, a
//! root behind a mean of squares, an error function, halves that change places. This looks at far less than the rules do, so that a
//! formula which they miss is still counted.

use std::collections::{BTreeMap, BTreeSet};

use transc_ir::Module;
use transc_ir::interp::{EvalCx, Tensor, scalar::eval_body};
use transc_ir::op::{Contract, Map, Op, ReduceKind};
use transc_ir::scalar::{BinOp, Inst, Literal, UnOp};
use transc_ir::tensor::rewrite::compact;
use transc_ir::tensor::{ConstPool, Func, Node, NodeId, Value};
use transc_ir::types::DType;

use super::uses::Uses;

/// How often each formula was found, and how often it became one op, by name.
pub type Coverage = BTreeMap<&'static str, (usize, usize)>;

/// Counts by name.
pub type Counts = BTreeMap<&'static str, usize>;

/// How many nodes a search goes through.
const REACH: usize = 64;

/// Compares what a module was imported as with the counts that `fused` gives later.
pub fn coverage(imported: &Module, fused: &Counts) -> Coverage {
    let fused = |name: &str| fused.get(name).copied().unwrap_or(0);
    found(imported).into_iter().map(|(name, n)| (name, (n, fused(name)))).collect()
}

/// One line for people: `attention 12/12, gelu 12/12`; empty if nothing was found.
pub fn coverage_text(coverage: &Coverage) -> String {
    let all: Vec<String> = coverage.iter().map(|(name, (found, fused))| format!("{name} {fused}/{found}")).collect();
    all.join(", ")
}

/// Formulas that are one op each. A softmax inside an attention counts too. What was cut into several ops of one place of the model, such
/// as rows that are read apart, counts once.
pub fn fused(f: &Func) -> Counts {
    let (mut out, mut seen) = (Counts::new(), BTreeSet::new());
    for (_, n) in f.nodes() {
        for name in names(&n.op) {
            let place = n.loc.path();
            if place.is_empty() || seen.insert((name, place)) {
                *out.entry(name).or_default() += 1;
            }
        }
    }
    out
}

/// What an op is, by itself.
fn names(op: &Op) -> &'static [&'static str] {
    match op {
        Op::Attention(_) | Op::IntAttention(_) => &["attention", "softmax"],
        Op::LayerNorm(_) => &["layer_norm"],
        Op::RmsNorm(_) => &["rms_norm"],
        Op::Rope(_) => &["rope"],
        Op::Softmax(s) if !s.log => &["softmax"],
        Op::Map(m) => activation(m),
        _ => &[],
    }
}

/// The activation that a map of one argument is, judged by its values.
fn activation(m: &Map) -> &'static [&'static str] {
    let transcendental = |i: &Inst| matches!(i, Inst::Un(UnOp::Erf | UnOp::Tanh | UnOp::Sigmoid | UnOp::Exp, _));
    if m.body.n_args != 1 || !m.body.insts.iter().any(transcendental) {
        return &[];
    }
    let consts = Default::default();
    let cx = EvalCx { consts: &consts, symbols: &|_| None };
    let at =
        |x: f64| eval_body(&m.body, &[Literal::from_f64(DType::F32, x)], &cx, &mut Vec::new()).map_or(f64::NAN, |l| l.to_f64());
    let is = |f: &dyn Fn(f64) -> f64| [-3.0, -1.0, -0.4, 0.3, 0.9, 2.5].iter().all(|x| (at(*x) - f(*x)).abs() < 1e-5);
    let swish = |c: f64| move |x: f64| x / (1.0 + (-c * x).exp());
    let erf = |x: f64| transc_ir::interp::scalar::un(UnOp::Erf, Literal::from_f64(DType::F64, x)).to_f64();
    let tanh = |x: f64| ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh();
    if is(&swish(1.0)) {
        &["silu"]
    } else if is(&|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))) || is(&|x| 0.5 * x * (1.0 + tanh(x))) || is(&swish(1.702)) {
        &["gelu"]
    } else {
        &[]
    }
}

/// How often each formula stands in a module, in whatever spelling.
fn found(m: &Module) -> Counts {
    let f = &compact(m.main.clone());
    let traces = Traces { f, consts: &m.consts, uses: Uses::of(f), weight: weights(f) };
    let mut out = Counts::new();
    for (id, n) in f.nodes() {
        let whole = names(&n.op);
        let name = traces.name(id, n).filter(|name| !whole.contains(name));
        for name in whole.iter().copied().chain(name) {
            *out.entry(name).or_default() += 1;
        }
        // An exponential over its sum is a softmax; attention with a softmax of its own counts when it is met.
        if traces.spelt_softmax(n) {
            *out.entry("softmax").or_default() += 1;
        }
    }
    out
}

/// Constants, and what is element by element or a view of them.
fn weights(f: &Func) -> Vec<bool> {
    let mut weight = vec![false; f.node_count()];
    for (id, n) in f.nodes() {
        let known = |v: &Value| f.def_id(*v).is_some_and(|d| weight[d.index()]);
        weight[id.index()] = matches!(n.op, Op::Constant(_)) || is_elementwise(&n.op) && n.operands.iter().all(known);
    }
    weight
}

struct Traces<'a> {
    f: &'a Func,
    consts: &'a ConstPool,
    uses: Uses,
    weight: Vec<bool>,
}

impl Traces<'_> {
    /// What a node is the last trace of.
    fn name(&self, id: NodeId, n: &Node) -> Option<&'static str> {
        match &n.op {
            Op::Softmax(s) if !s.log => self.between_products(id, n).then_some("attention"),
            Op::Map(_) if self.spelt_softmax(n) => self.between_products(id, n).then_some("attention"),
            Op::Map(_) if has(n, |i| matches!(i, Inst::Un(UnOp::Erf, _))) => Some("gelu"),
            Op::Map(_) if has(n, |i| matches!(i, Inst::Un(UnOp::Tanh, _))) => self.holds(n, 0.044_715).then_some("gelu"),
            Op::Map(_) if has(n, |i| matches!(i, Inst::Un(UnOp::Sigmoid, _))) => {
                if self.holds(n, 1.702) {
                    Some("gelu")
                } else {
                    self.gates_itself(n).then_some("silu")
                }
            }
            Op::Map(_) if self.is_root(n) => self.norm(n),
            Op::Concat(_) => self.rotates(n).then_some("rope"),
            _ => None,
        }
    }

    /// The nodes above `n` that only ops which `through` admits lead to, nearest first.
    fn above(&self, n: &Node, through: impl Fn(&Op) -> bool) -> Vec<NodeId> {
        let mut open: Vec<Value> = n.operands.to_vec();
        let (mut seen, mut next): (Vec<NodeId>, _) = (Vec::new(), 0);
        while next < open.len() && seen.len() < REACH {
            if let Some(d) = self.f.def_id(open[next])
                && !seen.contains(&d)
                && !self.weight[d.index()]
            {
                seen.push(d);
                if through(&self.f.node(d).op) {
                    open.extend(&self.f.node(d).operands);
                }
            }
            next += 1;
        }
        seen
    }

    /// True for a map that divides an exponential by a sum of exponentials.
    fn spelt_softmax(&self, n: &Node) -> bool {
        let divides = |i: &Inst| matches!(i, Inst::Bin(BinOp::Div, ..) | Inst::Un(UnOp::Recip, _));
        let exp = |d: &NodeId| has(self.f.node(*d), |i| matches!(i, Inst::Un(UnOp::Exp, _)));
        let sum = |d: &NodeId| {
            let n = self.f.node(*d);
            matches!(&n.op, Op::Reduce(r) if r.kind == ReduceKind::Sum) && self.f.def_id(n.operands[0]).as_ref().is_some_and(exp)
        };
        has(n, divides) && {
            let near = self.above(n, |op| matches!(op, Op::Broadcast(_) | Op::Reshape(_)));
            near.iter().any(sum) && near.iter().any(exp)
        }
    }

    /// True if shares that depend on a product of two computed tensors weigh another one.
    fn between_products(&self, id: NodeId, n: &Node) -> bool {
        let computed = |d: &NodeId| {
            let n = self.f.node(*d);
            let weight = |v: &Value| self.f.def_id(*v).is_some_and(|d| self.weight[d.index()]);
            matches!(n.op, Op::Contract(_)) && !n.operands.iter().any(weight)
        };
        // The maximum that a softmax subtracts stands between, too.
        let through = |op: &Op| {
            is_elementwise(op) || is_code(op) || matches!(op, Op::Reduce(_) | Op::Concat(_) | Op::Gather(_) | Op::Pad(_))
        };
        self.above(n, through).iter().any(computed) && self.weighs(id)
    }

    /// True if a product sums over an axis of what a node gives.
    fn weighs(&self, id: NodeId) -> bool {
        let (mut open, mut next) = (vec![id], 0);
        while next < open.len() && open.len() < REACH {
            for v in &self.f.node(open[next]).results {
                for u in self.uses.nodes(*v) {
                    let n = self.f.node(*u);
                    match &n.op {
                        Op::Contract(c) if sums(c, n, *v) => return true,
                        op if (is_elementwise(op) || is_code(op)) && !open.contains(u) => open.push(*u),
                        _ => {}
                    }
                }
            }
            next += 1;
        }
        false
    }

    /// The name of the norm whose root stands in this map.
    fn norm(&self, n: &Node) -> Option<&'static str> {
        let fold = |d: &NodeId| matches!(&self.f.node(*d).op, Op::Reduce(r) if r.kind == ReduceKind::Sum);
        let near = self.above(n, is_elementwise);
        let at = near.iter().position(fold)?;
        let sum = self.f.node(near[at]);
        // A mean, and something that keeps the root from zero: a length has neither.
        let shares = |n: &Node| has(n, |i| matches!(i, Inst::Bin(BinOp::Div | BinOp::Mul, ..)));
        let shifts = |n: &Node| has(n, |i| matches!(i, Inst::Bin(BinOp::Add | BinOp::Max, ..)));
        let between: Vec<&Node> = std::iter::once(n).chain(near[..at].iter().map(|d| self.f.node(*d))).collect();
        let squares = self.f.def_node(sum.operands[0])?;
        let square = |i: &Inst| matches!(i, Inst::Bin(BinOp::Mul, a, b) if a == b) || matches!(i, Inst::Bin(BinOp::Pow, ..));
        let squared = has(squares, square) || squares.operands.len() == 2 && squares.operands[0] == squares.operands[1];
        if !squared || !between.iter().any(|n| shares(n)) || !between.iter().any(|n| shifts(n)) {
            return None;
        }
        // Centred values are less than a map away from their mean.
        let centred = self.f.def_node(squares.operands[0]).is_some_and(|d| {
            has(d, |i| matches!(i, Inst::Bin(BinOp::Sub, ..))) && self.above(d, is_elementwise).iter().take(8).any(fold)
        });
        Some(if centred { "layer_norm" } else { "rms_norm" })
    }

    /// True if a number stands in a node or near above it.
    fn holds(&self, n: &Node, number: f64) -> bool {
        let holds = |n: &Node| match &n.op {
            Op::Map(m) => {
                m.body.insts.iter().any(|i| matches!(i, Inst::Const(l) if l.dtype.is_float() && close(l.to_f64(), number)))
            }
            Op::Constant(c) => {
                let one =
                    self.consts.get(c.id).filter(|d| d.ty().dtype.is_float() && d.bytes().len() == d.ty().dtype.size_bytes());
                one.is_some_and(|d| close(Tensor::from_const(d).get_f64(0), number))
            }
            _ => false,
        };
        holds(n) || self.above_all(n).into_iter().any(|d| holds(self.f.node(d)))
    }

    /// True for a square root in some spelling.
    fn is_root(&self, n: &Node) -> bool {
        let power = |i: &Inst| matches!(i, Inst::Bin(BinOp::Pow, ..));
        has(n, |i| matches!(i, Inst::Un(UnOp::Sqrt, _))) || has(n, power) && (self.holds(n, 0.5) || self.holds(n, -0.5))
    }

    /// A few nodes above, constants included.
    fn above_all(&self, n: &Node) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = n.operands.iter().filter_map(|v| self.f.def_id(*v)).collect();
        let mut next = 0;
        while next < all.len() && all.len() < 16 {
            let n = self.f.node(all[next]);
            if is_elementwise(&n.op) {
                all.extend(n.operands.iter().filter_map(|v| self.f.def_id(*v)));
            }
            next += 1;
        }
        all
    }

    /// True if a sigmoid is multiplied by what it is a sigmoid of.
    fn gates_itself(&self, n: &Node) -> bool {
        let [x] = n.operands[..] else { return false };
        let product = |n: &Node| has(n, |i| matches!(i, Inst::Bin(BinOp::Mul, ..)));
        product(n)
            || n.results
                .iter()
                .flat_map(|v| self.uses.nodes(*v))
                .map(|u| self.f.node(*u))
                .any(|u| product(u) && u.operands.contains(&x))
    }

    /// True for a concatenation of parts of one tensor that have changed places, one of them negated or subtracted from.
    fn rotates(&self, n: &Node) -> bool {
        let [a, b] = n.operands[..] else { return false };
        let part = |v: Value| {
            let mut all = vec![v];
            let mut next = 0;
            let mut turned = false;
            let mut sources: Vec<(Value, bool)> = Vec::new();
            while next < all.len() && all.len() < 16 {
                if let Some(d) = self.f.def_id(all[next]) {
                    let n = self.f.node(d);
                    match &n.op {
                        Op::Slice(s) => sources.push((n.operands[0], s.starts.iter().any(|d| !d.is(0)))),
                        Op::Map(_) | Op::Reshape(_) => {
                            turned |= has(n, |i| matches!(i, Inst::Un(UnOp::Neg, _) | Inst::Bin(BinOp::Sub, ..)));
                            all.extend(&n.operands);
                        }
                        _ => {}
                    }
                }
                next += 1;
            }
            (sources, turned)
        };
        let ((first, turned), (second, plain)) = (part(a), part(b));
        let crossed = first.iter().any(|(x, later)| *later && second.iter().any(|(y, later)| x == y && !later));
        turned && !plain && crossed
    }
}

fn has(n: &Node, what: impl Fn(&Inst) -> bool) -> bool {
    matches!(&n.op, Op::Map(m) if m.body.insts.iter().any(what))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-5
}

/// Element-wise ops and views.
fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Map(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_))
}

/// Conversions to codes and back.
fn is_code(op: &Op) -> bool {
    matches!(op, Op::Quantize(_) | Op::Dequantize(_))
}

/// True if a product sums over an axis of an operand.
fn sums(c: &Contract, n: &Node, v: Value) -> bool {
    let sides = [(0, &c.lhs), (1, &c.rhs)];
    sides.into_iter().any(|(i, labels)| n.operands[i] == v && labels.iter().any(|l| !c.out.contains(l)))
}
