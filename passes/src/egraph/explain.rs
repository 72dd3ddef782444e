//! Why the result of saturation equals its input: the rule applications that led to it, each with both of its sides as a function, so that
//! they can be evaluated.
//!
//! egg keeps every e-node as it was added, with operands that were added before it: each id stands for one concrete expression over
//! the parameters. A step claims that the expression of its site equals that of its result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egg::{Id, Language};
use transc_ir::Loc;
use transc_ir::interp::{EvalCx, Tensor, eval_func};
use transc_ir::op::{Map, Op, TypeError};
use transc_ir::scalar::{Inst, Literal};
use transc_ir::tensor::{Builder, ConstData, ConstPool, Func, Value};
use transc_ir::types::{DType, Ranges, Symbol};

use super::extract::Choice;
use super::graph::Graph;
use super::language::Term;
use super::rules;
use super::saturate::{Report, Step};

/// Random inputs that are tried until both sides have a value.
const TRIES: u64 = 8;

/// Largest relative difference of a whole piece. Constants that a file rounds to `f32` differ by 1e-7 between spellings, which layers amplify;
/// a fault is of the order of the values.
const WHOLE: f64 = 1e-2;

/// An application of a rule.
#[derive(Clone, Debug)]
pub struct Link {
    /// The rule.
    pub rule: &'static str,
    /// Why both sides are equal.
    pub why: &'static str,
    /// The user's node.
    pub loc: Loc,
    /// The op that it took and those that it gave.
    pub text: String,
    bound: f64,
    sides: Func,
}

/// The chain of rules from a piece of a function to what it became.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The first of the user's nodes in it.
    pub loc: Loc,
    /// How many equal pieces became the same.
    pub copies: usize,
    /// The rules, in the order in which they fired.
    pub links: Vec<Link>,
    from: Func,
    to: Func,
    consts: Arc<ConstPool>,
    ranges: Ranges,
}

/// What evaluating both sides of a step gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The largest difference, relative to 1 + |value|, within the bounds of the rules up to it.
    Holds(f64),
    /// The first difference beyond these bounds.
    Fails(String),
    /// No random inputs give the left side a value.
    Unknown(String),
}

/// The chain that leads to `to`, the function of the chosen terms.
///
/// # Errors
/// A type error, which would be a bug.
pub fn proof(
    (g, given): (&Graph<'_>, usize),
    report: &Report,
    choice: &Choice,
    from: &Func,
    to: &Func,
    consts: &Arc<ConstPool>,
) -> Result<Proof, TypeError> {
    let mut pool = consts.clone();
    let mut links = Vec::new();
    let oldest = oldest(g);
    for i in needed(g, given, &report.steps, choice) {
        let s = &report.steps[i];
        let rule = rules::all().find(|r| r.name == s.rule);
        let gave: BTreeSet<&str> = s.added.iter().filter_map(|t| Some(t.as_op()?.0.mnemonic())).collect();
        let gave = if gave.is_empty() { "a part of it".into() } else { gave.into_iter().collect::<Vec<_>>().join(", ") };
        links.push(Link {
            rule: s.rule,
            why: rule.map_or("", |r| r.why),
            bound: rule.map_or(0.0, |r| r.bound),
            loc: s.loc.clone(),
            text: format!("{} -> {gave}", s.site.as_op().map_or("", |(op, _)| op.mnemonic())),
            sides: sides(g, &oldest, s, from, &mut pool)?,
        });
    }
    let loc = Loc::join(from.nodes().map(|(_, n)| &n.loc));
    Ok(Proof { loc, copies: 1, links, from: from.clone(), to: to.clone(), consts: pool, ranges: g.ranges.clone() })
}

/// The steps that the chosen terms come from, and those that made classes equal that these steps looked into.
fn needed(g: &Graph<'_>, given: usize, steps: &[Step], choice: &Choice) -> BTreeSet<usize> {
    let own: BTreeSet<Term> = g.terms()[..given].iter().map(|t| t.canonical(g)).collect();
    let gives = |s: &Step, id: Id, t: &Term| {
        s.added.iter().any(|a| a.canonical(g) == *t)
            || g.find(s.result) == id && g.terms()[usize::from(s.result)].canonical(g) == *t
    };
    let mut open: Vec<usize> = Vec::new();
    let (mut seen, mut stack) = (BTreeSet::new(), g.roots.iter().map(|r| g.find(*r)).collect::<Vec<Id>>());
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let term = &choice[&id];
        if !own.contains(term) {
            open.extend(steps.iter().position(|s| gives(s, id, term)));
        }
        stack.extend(term.children().iter().map(|c| g.find(*c)));
    }
    // Two of the function's own terms may have become one class, too.
    open.extend((0..steps.len()).filter(|i| steps[*i].added.is_empty() && seen.contains(&g.find(steps[*i].result))));
    let mut needed = BTreeSet::new();
    while let Some(i) = open.pop() {
        if needed.insert(i) {
            open.extend((0..i).filter(|a| steps[i].reads.contains(&g.find(steps[*a].result))));
        }
    }
    needed
}

/// The oldest id of the class of each id: as operands these make both sides of a step hold the same one of equal expressions.
fn oldest(g: &Graph<'_>) -> Vec<Id> {
    let mut oldest: BTreeMap<Id, Id> = BTreeMap::new();
    for i in (0..g.terms().len()).map(Id::from) {
        oldest.entry(g.find(i)).or_insert(i);
    }
    (0..g.terms().len()).map(|i| oldest[&g.find(Id::from(i))]).collect()
}

/// A function with two results: the expression of a step's site, and that of its result.
fn sides(g: &Graph<'_>, oldest: &[Id], s: &Step, like: &Func, consts: &mut Arc<ConstPool>) -> Result<Func, TypeError> {
    let mut out = Func::new(&like.name);
    let params: Vec<Value> = like.params().iter().map(|(name, v)| out.add_param(name, like.ty(*v).clone())).collect();
    let mut ids: BTreeSet<Id> = BTreeSet::from([s.result]);
    let term = |t: &Term| t.clone().map_children(|c| oldest[usize::from(c)]);
    let site = term(&s.site);
    let mut open: Vec<Id> = site.children().to_vec();
    open.push(s.result);
    while let Some(id) = open.pop() {
        if ids.insert(id) || id == s.result {
            open.extend(term(&g.terms()[usize::from(id)]).children().iter().filter(|c| !ids.contains(c)));
        }
    }
    let mut b = Builder::new(&mut out, consts);
    let mut values: BTreeMap<Id, Vec<Value>> = BTreeMap::new();
    let mut add = |values: &BTreeMap<Id, Vec<Value>>, term: &Term| match term {
        Term::Param(i) => Ok(vec![params[*i as usize]]),
        Term::Result(i, [of]) => Ok(vec![values[of][*i as usize]]),
        Term::Op(op, args) => {
            let args: Vec<Value> = args.iter().map(|a| values[a][0]).collect();
            b.add_multi((**op).clone(), &args)
        }
    };
    // Operands have smaller ids than what they are operands of.
    for id in ids {
        let new = add(&values, &term(&g.terms()[usize::from(id)]))?;
        values.insert(id, new);
    }
    let before = add(&values, &site)?[0];
    out.add_result("before", before);
    out.add_result("after", values[&s.result][0]);
    Ok(out)
}

impl Proof {
    /// Evaluates both sides of every link in `f64` on random inputs, and at last the whole piece before and after.
    pub fn check(&self) -> Vec<Outcome> {
        // What a rule looked into may be a form that an earlier one gave: their bounds add up.
        let mut bound = 0.0;
        let mut all = Vec::new();
        for l in &self.links {
            bound += l.bound;
            all.push(self.evaluate(bound, &[&l.sides]));
        }
        let exact = self.links.iter().all(|l| l.bound == 0.0);
        all.push(self.evaluate(if exact { 0.0 } else { WHOLE }, &[&self.from, &self.to]));
        all
    }

    /// Compares the results of two functions, or the two results of one.
    fn evaluate(&self, bound: f64, functions: &[&Func]) -> Outcome {
        let mut consts = self.consts.clone();
        let wide: Vec<Func> = functions.iter().map(|f| widened(f, &mut consts).unwrap_or_else(|_| (*f).clone())).collect();
        let mut why = String::new();
        for seed in 0..TRIES {
            let mut r = Random(seed);
            let symbols: BTreeMap<Symbol, i64> = self
                .ranges
                .iter()
                .map(|(s, range)| (s.clone(), range.min.max(1) + r.below(((range.max - range.min).min(3) + 1) as u64) as i64))
                .collect();
            let cx = EvalCx { consts: &consts, symbols: &|s| symbols.get(s).copied() };
            let inputs: Result<Vec<Tensor>, _> = wide[0]
                .params()
                .iter()
                .map(|(_, v)| {
                    let ty = wide[0].ty(*v);
                    let mut t = Tensor::zeros(ty.dtype, &cx.extents(&ty.dims)?)?;
                    (0..t.count()).for_each(|i| t.set(i, r.literal(ty.dtype)));
                    Ok::<_, transc_ir::interp::EvalError>(t)
                })
                .collect();
            let values = inputs.and_then(|inputs| {
                let inputs: Vec<&Tensor> = inputs.iter().collect();
                wide.iter().map(|f| eval_func(f, &inputs, &cx)).collect::<Result<Vec<_>, _>>()
            });
            match values {
                Ok(values) => {
                    let (before, after) = match values.as_slice() {
                        [before, after] => (before.as_slice(), after.as_slice()),
                        [both] => both.split_at(1),
                        _ => (&[][..], &[][..]),
                    };
                    return compare(before, after, bound);
                }
                Err(e) => why = e.to_string(),
            }
        }
        Outcome::Unknown(why)
    }
}

/// The largest difference. What is no number on the left side is not compared: a row of attention that sees no key.
fn compare(before: &[Tensor], after: &[Tensor], bound: f64) -> Outcome {
    let mut worst = 0.0f64;
    for (b, a) in before.iter().zip(after) {
        if (b.dtype, &b.dims) != (a.dtype, &a.dims) {
            return Outcome::Fails(format!("{} became {}", b.ty(), a.ty()));
        }
        for i in 0..b.count() {
            let (x, y) = (b.get_f64(i), a.get_f64(i));
            if x == y || x.is_nan() {
                continue;
            }
            let error = (x - y).abs() / (1.0 + x.abs());
            if error.is_nan() || error > bound {
                return Outcome::Fails(format!("element {i} of {} was {x:e}, is {y:e}", b.ty()));
            }
            worst = worst.max(error);
        }
    }
    Outcome::Holds(worst)
}

fn wide(d: DType) -> DType {
    if d.is_float() { DType::F64 } else { d }
}

/// A function with every float in `f64`.
fn widened(f: &Func, consts: &mut Arc<ConstPool>) -> Result<Func, TypeError> {
    let mut out = Func::new(&f.name);
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for (name, v) in f.params() {
        let mut ty = f.ty(*v).clone();
        ty.dtype = wide(ty.dtype);
        map.insert(*v, out.add_param(name, ty));
    }
    let mut b = Builder::new(&mut out, consts);
    for (_, n) in f.nodes() {
        let operands: Vec<Value> = n.operands.iter().map(|v| map[v]).collect();
        let data = match &n.op {
            Op::Constant(c) => b.consts.get(c.id).filter(|d| d.ty().dtype.is_float()).and_then(widened_constant),
            _ => None,
        };
        let results = match (&n.op, data) {
            (_, Some(data)) => vec![b.constant("", data)?],
            (Op::Map(m), _) => {
                let mut body = m.body.clone();
                for i in &mut body.insts {
                    match i {
                        Inst::Const(l) if l.dtype.is_float() => *l = Literal::from_f64(DType::F64, l.to_f64()),
                        Inst::Cast(to, _) => *to = wide(*to),
                        _ => {}
                    }
                }
                b.add_multi(Map { body }, &operands)?
            }
            (Op::Contract(c), _) => {
                let mut c = c.clone();
                c.out_dtype = wide(c.out_dtype);
                b.add_multi(c, &operands)?
            }
            (op, _) => b.add_multi(op.clone(), &operands)?,
        };
        map.extend(n.results.iter().copied().zip(results));
    }
    for (name, v) in f.results() {
        out.add_result(name, map[v]);
    }
    Ok(out)
}

fn widened_constant(d: &ConstData) -> Option<ConstData> {
    let t = Tensor::from_const(d);
    Tensor::from_f64(DType::F64, &t.dims, &t.to_f64()).ok()?.to_const()
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Of order one; integers are small indices.
    fn literal(&mut self, dtype: DType) -> Literal {
        match dtype {
            DType::Bool => Literal::bool(self.below(4) > 0),
            d if d.is_float() => Literal::from_f64(d, self.below(4096) as f64 / 1024.0 - 2.0),
            d => Literal::from_i64(d, self.below(4) as i64),
        }
    }
}
