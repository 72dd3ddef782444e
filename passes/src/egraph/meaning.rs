//! The meaning of element-wise terms over the reals: polynomials in leaves and functions of polynomials.
//!
//! Exporters spell one formula in many ways; expanded, `0.5 * x * (1 + erf(x / 1.4142))` and `(erf(x * 0.7071) * 0.5 + 0.5) * x` are
//! the same polynomial. Rules compare these, so that a row holds for every spelling. Maps and broadcasts are read through; everything
//! else is a leaf.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use transc_ir::interp::Tensor;
use transc_ir::op::{Map, Op, Real};
use transc_ir::scalar::{BinOp, Body, BodyBuilder, Inst, Ref, UnOp};
use transc_ir::types::DType;

use super::graph::Graph;

/// Most terms of a polynomial; what would have more is a leaf.
const MAX_TERMS: usize = 24;
/// Largest multiple of a sum that is multiplied out.
const MAX_MULTIPLE: f64 = 1e3;
/// How many maps deep terms are read.
const MAX_DEPTH: u32 = 14;
/// Largest constant that is looked at for being one number.
const MAX_SPLAT: usize = 64;

/// A factor that is not a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// A class that is not read any further.
    Leaf(Id),
    /// A function of a polynomial.
    Un(UnOp, Poly),
    /// A sum that stands in a denominator, or of which a large multiple is taken.
    Sum(Poly),
    /// The second where the class holds, else the third.
    Choose(Id, Poly, Poly),
}

/// A product of powers.
pub type Monomial = BTreeMap<Atom, i32>;

/// A sum of products with their coefficients.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Poly(BTreeMap<Monomial, Coefficient>);

/// An `f64` in the order of `total_cmp`.
type Coefficient = Real;

impl Poly {
    /// A number.
    pub fn number(v: f64) -> Self {
        if v == 0.0 { Self::default() } else { Self(BTreeMap::from([(Monomial::new(), Real(v))])) }
    }

    /// One atom.
    pub fn atom(a: Atom) -> Self {
        Self(BTreeMap::from([(BTreeMap::from([(a, 1)]), Real(1.0))]))
    }

    /// One class.
    pub fn leaf(id: Id) -> Self {
        Self::atom(Atom::Leaf(id))
    }

    /// A function of a polynomial.
    pub fn un(op: UnOp, p: Poly) -> Self {
        Self::atom(Atom::Un(op, p))
    }

    /// The terms.
    pub fn terms(&self) -> impl Iterator<Item = (&Monomial, f64)> {
        self.0.iter().map(|(m, c)| (m, c.0))
    }

    /// The number, if it is one.
    pub fn as_number(&self) -> Option<f64> {
        match self.0.len() {
            0 => Some(0.0),
            1 => self.0.get(&Monomial::new()).map(|c| c.0),
            _ => None,
        }
    }

    /// True for the number 0.
    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The one term, if there is one.
    pub fn as_term(&self) -> Option<(&Monomial, f64)> {
        self.terms().next().filter(|_| self.0.len() == 1)
    }

    /// The one atom, if that is all.
    pub fn as_atom(&self) -> Option<&Atom> {
        let (m, c) = self.as_term()?;
        let (atom, power) = m.iter().next()?;
        (c == 1.0 && m.len() == 1 && *power == 1).then_some(atom)
    }

    /// The class, if it is one.
    pub fn as_leaf(&self) -> Option<Id> {
        match self.as_atom()? {
            Atom::Leaf(id) => Some(*id),
            _ => None,
        }
    }

    /// `k` times this.
    pub fn times(&self, k: f64) -> Self {
        Self(self.0.iter().filter(|_| k != 0.0).map(|(m, c)| (m.clone(), Real(c.0 * k))).collect())
    }

    /// The sum.
    pub fn plus(&self, o: &Poly) -> Self {
        let mut sum = self.clone();
        for (m, c) in &o.0 {
            let total = sum.0.get(m).map_or(0.0, |x| x.0) + c.0;
            if total == 0.0 {
                sum.0.remove(m);
            } else {
                sum.0.insert(m.clone(), Real(total));
            }
        }
        sum
    }

    /// The difference.
    pub fn minus(&self, o: &Poly) -> Self {
        self.plus(&o.times(-1.0))
    }

    /// The product; `None` if it has too many terms. A large multiple of a sum is not multiplied out: what is added to its terms one by
    /// one would lose the digits that it keeps where they cancel, as in `x - 1e6 (1 - mask)`.
    pub fn by(&self, o: &Poly) -> Option<Self> {
        for (factor, sum) in [(self, o), (o, self)] {
            if sum.0.len() > 1 && factor.as_term().is_some_and(|(_, c)| c.abs() > MAX_MULTIPLE) {
                return factor.by(&Poly::atom(Atom::Sum(sum.clone())));
            }
        }
        let mut product = Poly::default();
        if self.0.len() * o.0.len() > MAX_TERMS {
            return None;
        }
        for (a, x) in self.terms() {
            for (b, y) in o.terms() {
                let mut m = a.clone();
                for (atom, power) in b {
                    let sum = m.get(atom).copied().unwrap_or(0) + power;
                    if sum == 0 {
                        m.remove(atom);
                    } else {
                        m.insert(atom.clone(), sum);
                    }
                }
                product = product.plus(&Poly(BTreeMap::from([(m, Real(x * y))])));
            }
        }
        Some(product)
    }

    /// One over this.
    pub fn inverse(&self) -> Option<Self> {
        match self.as_term() {
            Some((_, 0.0)) | None if self.0.is_empty() => None,
            Some((m, c)) => {
                let m = m.iter().map(|(a, p)| (a.clone(), -p)).collect();
                Some(Self(BTreeMap::from([(m, Real(1.0 / c))])))
            }
            None => Some(Self(BTreeMap::from([(BTreeMap::from([(Atom::Sum(self.clone()), -1)]), Real(1.0))]))),
        }
    }

    fn power(&self, exponent: f64) -> Option<Self> {
        let whole = exponent.abs();
        let base = if exponent < 0.0 { self.inverse()? } else { self.clone() };
        if whole == 0.5 {
            let root = Self::un(UnOp::Sqrt, self.clone());
            return if exponent < 0.0 { root.inverse() } else { Some(root) };
        }
        (whole.fract() == 0.0 && (1.0..=4.0).contains(&whole))
            .then(|| (1..whole as u32).try_fold(base.clone(), |p, _| p.by(&base)))
            .flatten()
    }

    /// The terms that hold an atom, and the others.
    pub fn split(&self, holds: impl Fn(&Monomial) -> bool) -> (Poly, Poly) {
        let (with, without) = self.0.iter().map(|(m, c)| (m.clone(), *c)).partition(|(m, _)| holds(m));
        (Poly(with), Poly(without))
    }

    /// This without one power of an atom in every term; `None` if a term lacks it.
    pub fn without(&self, atom: &Atom, power: i32) -> Option<Poly> {
        let mut out = BTreeMap::new();
        for (m, c) in &self.0 {
            let mut m = m.clone();
            if m.remove(atom)? != power {
                return None;
            }
            out.insert(m, *c);
        }
        Some(Poly(out))
    }

    /// All classes in it, those inside functions included.
    pub fn leaves(&self) -> BTreeSet<Id> {
        let mut all = BTreeSet::new();
        for atom in self.0.keys().flat_map(|m| m.keys()) {
            match atom {
                Atom::Leaf(id) => {
                    all.insert(*id);
                }
                Atom::Un(_, p) | Atom::Sum(p) => all.extend(p.leaves()),
                Atom::Choose(c, a, b) => {
                    all.insert(*c);
                    all.extend(a.leaves());
                    all.extend(b.leaves());
                }
            }
        }
        all
    }

    /// Equal up to the rounding of coefficients.
    pub fn close(&self, o: &Poly) -> bool {
        self.0.len() == o.0.len() && self.0.iter().zip(&o.0).all(|((m, c), (n, d))| near(c.0, d.0) && monomials_close(m, n))
    }
}

/// Equal up to rounding of a number that a file holds as `f32`.
pub fn near(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-5 * a.abs().max(b.abs())
}

fn monomials_close(a: &Monomial, b: &Monomial) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((x, p), (y, q))| p == q && atoms_close(x, y))
}

fn atoms_close(a: &Atom, b: &Atom) -> bool {
    match (a, b) {
        (Atom::Un(o, p), Atom::Un(r, q)) => o == r && p.close(q),
        (Atom::Sum(p), Atom::Sum(q)) => p.close(q),
        _ => a == b,
    }
}

/// The meaning of a class, with the classes in `stop` as leaves.
pub fn read(g: &Graph<'_>, id: Id, stop: &[Id]) -> Poly {
    let stop: BTreeSet<Id> = stop.iter().map(|s| g.find(*s)).collect();
    Reader { g, stop }.class(id, MAX_DEPTH)
}

/// The classes that [`read`] goes through from `id`, itself first, nearest first.
pub fn inside(g: &Graph<'_>, id: Id) -> Vec<Id> {
    let mut all = vec![g.find(id)];
    let mut next = 0;
    while next < all.len() && all.len() < 24 {
        let args = g.first(all[next], |(op, args)| matches!(op, Op::Map(_) | Op::Broadcast(_)).then(|| args.to_vec()));
        for a in args.unwrap_or_default() {
            let a = g.find(a);
            if !all.contains(&a) {
                all.push(a);
            }
        }
        next += 1;
    }
    all
}

struct Reader<'a, 'g> {
    g: &'a Graph<'g>,
    stop: BTreeSet<Id>,
}

impl Reader<'_, '_> {
    fn class(&self, id: Id, depth: u32) -> Poly {
        let id = self.g.find(id);
        if depth == 0 || self.stop.contains(&id) || !self.g.ty(id).dtype.is_float() {
            return Poly::leaf(id);
        }
        if let Some(v) = number(self.g, id) {
            return Poly::number(v);
        }
        let read = self.g.first(id, |(op, args)| match op {
            Op::Map(m) => self.body(&m.body, args, depth - 1),
            Op::Broadcast(_) => Some(self.class(args[0], depth - 1)),
            _ => None,
        });
        read.unwrap_or_else(|| Poly::leaf(id))
    }

    fn body(&self, b: &Body, args: &[Id], depth: u32) -> Option<Poly> {
        let mut values: Vec<Option<Poly>> = Vec::with_capacity(b.insts.len());
        for inst in &b.insts {
            let value = |r: Ref| match r {
                Ref::Arg(a) => Some(self.class(args[a as usize], depth)),
                Ref::Inst(i) => values[i as usize].clone(),
            };
            values.push(match inst {
                Inst::Const(l) => {
                    l.dtype.is_float().then(|| Poly::number(l.to_f64())).filter(|p| p.as_number().is_some_and(|v| !v.is_nan()))
                }
                Inst::Dim(d) => d.as_const().map(|c| Poly::number(c as f64)),
                Inst::Cast(to, a) if to.is_float() => value(*a).filter(|p| p.as_number().is_some()),
                Inst::Un(op, a) => value(*a).and_then(|p| un(*op, p)),
                Inst::Bin(op, a, b) => value(*a).zip(value(*b)).and_then(|(x, y)| bin(*op, &x, &y)),
                Inst::Select(c, x, y) => value(*x).zip(value(*y)).and_then(|(x, y)| self.choose(b, args, *c, x, y)),
                Inst::Cast(..) => None,
            });
        }
        match b.result {
            Ref::Arg(a) => Some(self.class(args[a as usize], depth)),
            Ref::Inst(i) => values[i as usize].clone(),
        }
    }

    /// A selection whose condition is an operand or its negation.
    fn choose(&self, b: &Body, args: &[Id], c: Ref, x: Poly, y: Poly) -> Option<Poly> {
        match c {
            Ref::Arg(a) => Some(Poly::atom(Atom::Choose(self.g.find(args[a as usize]), x, y))),
            Ref::Inst(i) => match b.insts[i as usize] {
                Inst::Un(UnOp::Not, c) => self.choose(b, args, c, y, x),
                _ => None,
            },
        }
    }
}

/// The number that a class of floats is, if it is one everywhere.
pub fn number(g: &Graph<'_>, id: Id) -> Option<f64> {
    g.first(id, |(op, args)| match op {
        Op::Map(m) if args.is_empty() => match (m.body.insts.as_slice(), m.body.result) {
            ([Inst::Const(l)], Ref::Inst(0)) if l.dtype.is_float() => Some(l.to_f64()),
            _ => None,
        },
        Op::Constant(c) => {
            let data = g
                .consts()
                .get(c.id)
                .filter(|d| d.ty().dtype.is_float() && d.bytes().len() <= MAX_SPLAT * d.ty().dtype.size_bytes())?;
            let t = Tensor::from_const(data);
            let first = (t.count() > 0).then(|| t.get_f64(0))?;
            (0..t.count()).all(|i| t.get_f64(i) == first).then_some(first)
        }
        _ => None,
    })
}

fn un(op: UnOp, p: Poly) -> Option<Poly> {
    match op {
        UnOp::Neg => Some(p.times(-1.0)),
        UnOp::Recip => p.inverse(),
        UnOp::Sqrt if p.as_number().is_some() => Some(Poly::number(p.as_number()?.sqrt())),
        UnOp::Sqrt | UnOp::Exp | UnOp::Log | UnOp::Erf | UnOp::Tanh | UnOp::Sigmoid => Some(Poly::un(op, p)),
        _ => None,
    }
}

fn bin(op: BinOp, x: &Poly, y: &Poly) -> Option<Poly> {
    match op {
        BinOp::Add => Some(x.plus(y)),
        BinOp::Sub => Some(x.minus(y)),
        BinOp::Mul => x.by(y),
        BinOp::Div => x.by(&y.inverse()?),
        BinOp::Pow => x.power(y.as_number()?),
        _ => None,
    }
    .filter(|p| p.0.len() <= MAX_TERMS)
}

/// A map that computes a polynomial of its leaves; a leaf itself if it is one.
pub fn write(g: &mut Graph<'_>, p: &Poly, dtype: DType) -> Option<Id> {
    if let Some(id) = p.as_leaf() {
        return Some(id);
    }
    let leaves: Vec<Id> = p.leaves().into_iter().collect();
    let mut b = Body::builder(leaves.len() as u32);
    let result = Writer { leaves: &leaves, dtype }.poly(&mut b, p)?;
    g.add(Map { body: b.finish(result) }, &leaves)
}

struct Writer<'a> {
    leaves: &'a [Id],
    dtype: DType,
}

impl Writer<'_> {
    fn poly(&self, b: &mut BodyBuilder, p: &Poly) -> Option<Ref> {
        let mut sum = None;
        for (m, c) in p.terms() {
            let term = self.term(b, m, c)?;
            sum = Some(sum.map_or(term, |s| b.bin(BinOp::Add, s, term)));
        }
        Some(sum.unwrap_or_else(|| b.num(self.dtype, 0.0)))
    }

    fn term(&self, b: &mut BodyBuilder, m: &Monomial, c: f64) -> Option<Ref> {
        let mut product = (c != 1.0 || m.values().all(|p| *p < 0)).then(|| b.num(self.dtype, c));
        for (atom, power) in m {
            let x = match atom {
                Atom::Leaf(id) => self.arg(*id)?,
                Atom::Un(op, p) => {
                    let p = self.poly(b, p)?;
                    b.un(*op, p)
                }
                Atom::Sum(p) => self.poly(b, p)?,
                Atom::Choose(c, x, y) => {
                    let (x, y) = (self.poly(b, x)?, self.poly(b, y)?);
                    b.select(self.arg(*c)?, x, y)
                }
            };
            for _ in 0..power.unsigned_abs() {
                let op = if *power > 0 { BinOp::Mul } else { BinOp::Div };
                product = Some(product.map_or(x, |p| b.bin(op, p, x)));
            }
        }
        product
    }

    fn arg(&self, id: Id) -> Option<Ref> {
        self.leaves.iter().position(|l| *l == id).map(|i| Ref::Arg(i as u32))
    }
}
