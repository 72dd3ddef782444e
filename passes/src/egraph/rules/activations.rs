//! Activations spelled out: one map with the fewest instructions, in the model's own constants.

use egg::Id;
use transc_ir::op::Map;
use transc_ir::scalar::{BinOp, Body, BodyBuilder, Ref, UnOp};
use transc_ir::types::DType;

use super::{Miss, OrMiss, Outcome, Rule, Site};
use crate::egraph::graph::Graph;
use crate::egraph::meaning::{Atom, Monomial, Poly, inside, near, read};
use crate::registry::Class;

/// The rules of this topic.
pub const RULES: &[Rule] = &[
    Rule {
        name: "gelu",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "all spellings of x/2 (1 + erf(x/sqrt 2)), of its tanh form and of x sigmoid(1.702 x) are one polynomial",
        at: &["map"],
        apply: gelu,
    },
    Rule {
        name: "silu",
        class: Class::Reassoc,
        bound: 1e-5,
        why: "x / (1 + exp(-x)) is x sigmoid(x)",
        at: &["map"],
        apply: silu,
    },
];

/// The map of one argument that `form` recognises in what the site computes of some class inside it.
fn unary(g: &mut Graph<'_>, site: &Site<'_>, form: impl Fn(&Poly, &Poly, &mut BodyBuilder, DType) -> Option<Ref>) -> Outcome {
    let dtype = g.ty(site.id).dtype;
    // Only something that is not read through can be the argument, if nothing nearer is.
    for x in inside(g, site.id).into_iter().skip(1) {
        let p = read(g, site.id, &[x]);
        if g.ty(x) != g.ty(site.id) || !p.leaves().iter().eq([&x]) {
            continue;
        }
        let mut b = Body::builder(1);
        if let Some(result) = form(&p, &Poly::leaf(x), &mut b, dtype) {
            return g.add(Map { body: b.finish(result) }, &[x]).or_other();
        }
    }
    Err(Miss::Other)
}

/// The functions `op` of a polynomial that `p` contains, with their arguments.
fn functions(p: &Poly, op: UnOp) -> Vec<&Poly> {
    fn argument(atom: &Atom, op: UnOp) -> Option<&Poly> {
        match atom {
            Atom::Un(o, arg) if *o == op => Some(arg),
            _ => None,
        }
    }
    p.terms().flat_map(|(m, _)| m.keys()).filter_map(|a| argument(a, op)).collect()
}

/// The coefficients of `x` and `x^3` if that is all.
fn odd_cubic(p: &Poly, x: Id) -> Option<(f64, f64)> {
    let (mut linear, mut cubic) = (0.0, 0.0);
    for (m, c) in p.terms() {
        match m.iter().next()? {
            (Atom::Leaf(id), 1) if *id == x && m.len() == 1 => linear = c,
            (Atom::Leaf(id), 3) if *id == x && m.len() == 1 => cubic = c,
            _ => return None,
        }
    }
    Some((linear, cubic))
}

fn gelu(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    unary(g, site, |p, x, b, dtype| {
        let leaf = x.as_leaf()?;
        // x/2 + x/2 f(u).
        for op in [UnOp::Erf, UnOp::Tanh] {
            let [u] = functions(p, op)[..] else { continue };
            let half = x.times(0.5);
            if !half.plus(&half.by(&Poly::un(op, u.clone()))?).close(p) {
                continue;
            }
            let (linear, cubic) = odd_cubic(u, leaf)?;
            let exact = op == UnOp::Erf && cubic == 0.0 && near(linear, std::f64::consts::FRAC_1_SQRT_2);
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = op == UnOp::Tanh && near(linear, root) && near(cubic, 0.044_715 * root);
            if !exact && !tanh {
                return None;
            }
            let x = Ref::Arg(0);
            let mut factor = b.num(dtype, linear);
            if tanh {
                let (square, cubic) = (b.bin(BinOp::Mul, x, x), b.num(dtype, cubic));
                let scaled = b.bin(BinOp::Mul, square, cubic);
                factor = b.bin(BinOp::Add, scaled, factor);
            }
            let u = b.bin(BinOp::Mul, x, factor);
            let f = b.un(op, u);
            let half = b.num(dtype, 0.5);
            let half = b.bin(BinOp::Mul, x, half);
            let product = b.bin(BinOp::Mul, half, f);
            return Some(b.bin(BinOp::Add, product, half));
        }
        let c = sigmoid(p, x)?;
        near(c, 1.702).then(|| swish(b, dtype, c))
    })
}

fn silu(g: &mut Graph<'_>, site: &Site<'_>) -> Outcome {
    unary(g, site, |p, x, b, dtype| {
        let c = sigmoid(p, x)?;
        near(c, 1.0).then(|| swish(b, dtype, c))
    })
}

/// `c` if `p` is `x sigmoid(c x)`, in either spelling.
fn sigmoid(p: &Poly, x: &Poly) -> Option<f64> {
    let leaf = Atom::Leaf(x.as_leaf()?);
    let (m, k) = p.as_term()?;
    let factor = m.iter().find(|(a, _)| **a != leaf)?;
    let argument = match factor {
        (Atom::Un(UnOp::Sigmoid, u), 1) => u.clone(),
        (Atom::Sum(s), -1) => {
            let [u] = functions(s, UnOp::Exp)[..] else { return None };
            let whole = Poly::number(1.0).plus(&Poly::un(UnOp::Exp, u.clone()));
            whole.close(s).then(|| u.times(-1.0))?
        }
        _ => return None,
    };
    let (only_x, c) = argument.as_term()?;
    let is_x = |m: &Monomial| m.len() == 1 && m.get(&leaf) == Some(&1);
    (k == 1.0 && m.len() == 2 && m.get(&leaf) == Some(&1) && is_x(only_x)).then_some(c)
}

/// `x sigmoid(c x)`.
fn swish(b: &mut BodyBuilder, dtype: DType, c: f64) -> Ref {
    let x = Ref::Arg(0);
    let mut u = x;
    if c != 1.0 {
        let c = b.num(dtype, c);
        u = b.bin(BinOp::Mul, x, c);
    }
    let s = b.un(UnOp::Sigmoid, u);
    b.bin(BinOp::Mul, x, s)
}
