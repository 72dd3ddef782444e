//! Why the result of saturation equals its input: the rule applications that led to it, each with both of its sides as a function, so that
//! they can be evaluated.
//!
//! egg keeps every e-node as it was added, with operands that were added before it: each id stands for one concrete expression over
//! the parameters. A step claims that the expression of its site equals that of its result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egg::{Id, Language};
use transc_ir::Loc;
use transc_ir::interp::{EvalCx, EvalError, Tensor, eval_func};
use transc_ir::op::{Map, Op, TypeError};
use transc_ir::scalar::{BinOp, Inst, Literal};
use transc_ir::tensor::{Builder, ConstData, ConstPool, Func, Value};
use transc_ir::types::{DType, Ranges, Symbol};

use super::extract::Choice;
use super::graph::Graph;
use super::language::Term;
use super::saturate::{Report, Step};

/// Random inputs that are tried until both sides have a value.
const TRIES: u64 = 8;

/// A whole piece may differ by this many times what it changes by if each of its values is off by the error of a step.
const AMPLIFIED: f64 = 8.0;

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
    /// Two results for each link: the expression of its site, and that of what it made equal.
    sides: Func,
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
    let steps: Vec<&Step> = needed(g, given, &report.steps, choice).into_iter().map(|i| &report.steps[i]).collect();
    let links = steps.iter().map(|s| {
        let gave: BTreeSet<&str> = s.added.iter().filter_map(|t| Some(t.as_op()?.0.mnemonic())).collect();
        let gave = if gave.is_empty() { "a part of it".into() } else { gave.into_iter().collect::<Vec<_>>().join(", ") };
        Link {
            rule: s.rule.name,
            why: s.rule.why,
            bound: s.rule.bound,
            loc: s.loc.clone(),
            text: format!("{} -> {gave}", s.site.as_op().map_or("", |(op, _)| op.mnemonic())),
        }
    });
    let links = links.collect();
    let sides = sides(g, &steps, from, &mut pool)?;
    let loc = Loc::join(from.nodes().map(|(_, n)| &n.loc));
    Ok(Proof { loc, copies: 1, links, sides, from: from.clone(), to: to.clone(), consts: pool, ranges: g.ranges.clone() })
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

/// A function with two results for each step: the expression of its site, and that of what it made equal.
fn sides(g: &Graph<'_>, steps: &[&Step], like: &Func, consts: &mut Arc<ConstPool>) -> Result<Func, TypeError> {
    let oldest = oldest(g);
    let plain = |t: &Term| t.clone().map_children(|c| oldest[usize::from(c)]);
    let term = |id: Id| plain(&g.terms()[usize::from(id)]);
    let sites: Vec<Term> = steps.iter().map(|s| plain(&s.site)).collect();
    let mut ids: BTreeSet<Id> = BTreeSet::new();
    let mut open: Vec<Id> = sites.iter().flat_map(|t| t.children().to_vec()).chain(steps.iter().map(|s| s.result)).collect();
    while let Some(id) = open.pop() {
        if ids.insert(id) {
            open.extend(term(id).children());
        }
    }
    let mut out = Func::new(&like.name);
    let params: Vec<Value> = like.params().iter().map(|(name, v)| out.add_param(name, like.ty(*v).clone())).collect();
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
        let new = add(&values, &term(id))?;
        values.insert(id, new);
    }
    let before = sites.iter().map(|site| Ok(add(&values, site)?[0])).collect::<Result<Vec<Value>, TypeError>>()?;
    for (before, s) in before.into_iter().zip(steps) {
        out.add_result("before", before);
        out.add_result("after", values[&s.result][0]);
    }
    Ok(out)
}

impl Proof {
    /// Evaluates both sides of every link in `f64` on random inputs, and at last the whole piece before and after.
    ///
    /// Each link holds to the bounds of the rules up to it: what a rule looked into may be a form that an earlier one gave. Through a
    /// piece even errors of rounding can grow, such as those of logits in the thousands below a softmax. How much they may is seen
    /// by disturbing every value of the piece as much as its worst link is off (Monte Carlo arithmetic, Parker 1997).
    pub fn check(&self) -> Vec<Outcome> {
        let mut bound = 0.0;
        let mut bounds = Vec::new();
        for l in &self.links {
            bound += l.bound;
            bounds.push(bound);
        }
        let mut all = self.check_links(&bounds);
        let error = |o: &Outcome| if let Outcome::Holds(error) = o { *error } else { 0.0 };
        let step = all.iter().map(error).fold(0.0, f64::max);
        all.push(self.check_whole(bound, step));
        all
    }

    fn check_links(&self, bounds: &[f64]) -> Vec<Outcome> {
        let mut consts = self.consts.clone();
        let sides = widened(&self.sides, &mut consts, None).unwrap_or_else(|_| self.sides.clone());
        let mut outcomes = vec![Outcome::Unknown(String::new()); bounds.len()];
        for seed in 0..TRIES {
            let evaluate = |inputs: &[&Tensor], cx: &EvalCx<'_>| Ok(each_result(&sides, inputs, cx));
            let values = match self.with_inputs(&sides, &consts, seed, evaluate) {
                Ok(values) => values,
                Err(e) => vec![Err(e.to_string()); 2 * bounds.len()],
            };
            for ((outcome, bound), pair) in outcomes.iter_mut().zip(bounds).zip(values.chunks(2)) {
                if matches!(outcome, Outcome::Unknown(_)) {
                    *outcome = match pair {
                        [Ok(before), Ok(after)] => compare([(before, after)], *bound),
                        [Err(e), _] | [_, Err(e)] => Outcome::Unknown(e.clone()),
                        _ => Outcome::Unknown(String::new()),
                    };
                }
            }
            if !outcomes.iter().any(|o| matches!(o, Outcome::Unknown(_))) {
                break;
            }
        }
        outcomes
    }

    fn check_whole(&self, bound: f64, step: f64) -> Outcome {
        let mut consts = self.consts.clone();
        let mut wide = |f: &Func, disturbed: Option<f64>| widened(f, &mut consts, disturbed).unwrap_or_else(|_| f.clone());
        let (from, to, disturbed) = (wide(&self.from, None), wide(&self.to, None), wide(&self.from, Some(step)));
        let mut why = String::new();
        for seed in 0..TRIES {
            let outcome = self.with_inputs(&from, &consts, seed, |inputs, cx| {
                let before = eval_func(&from, inputs, cx)?;
                let outcome = compare(before.iter().zip(&eval_func(&to, inputs, cx)?), bound);
                if step == 0.0 || !matches!(outcome, Outcome::Fails(_)) {
                    return Ok(outcome);
                }
                let grown = match compare(before.iter().zip(&eval_func(&disturbed, inputs, cx)?), f64::INFINITY) {
                    Outcome::Holds(change) => bound.max(AMPLIFIED * change),
                    _ => bound,
                };
                Ok(compare(before.iter().zip(&eval_func(&to, inputs, cx)?), grown))
            });
            match outcome {
                Ok(outcome) => return outcome,
                Err(e) => why = e.to_string(),
            }
        }
        Outcome::Unknown(why)
    }

    /// Draws sizes, and inputs for the parameters of a function.
    fn with_inputs<T>(
        &self,
        f: &Func,
        consts: &Arc<ConstPool>,
        seed: u64,
        run: impl FnOnce(&[&Tensor], &EvalCx<'_>) -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        let mut r = Random(seed);
        let symbols: BTreeMap<Symbol, i64> = self
            .ranges
            .iter()
            .map(|(s, range)| (s.clone(), range.min.max(1) + r.below(((range.max - range.min).min(3) + 1) as u64) as i64))
            .collect();
        let cx = EvalCx { consts, symbols: &|s| symbols.get(s).copied() };
        let mut inputs = Vec::new();
        for (_, v) in f.params() {
            let ty = f.ty(*v);
            let mut t = Tensor::zeros(ty.dtype, &cx.extents(&ty.dims)?)?;
            (0..t.count()).for_each(|i| t.set(i, r.literal(ty.dtype)));
            inputs.push(t);
        }
        run(&inputs.iter().collect::<Vec<_>>(), &cx)
    }
}

/// Evaluates a function; a result that depends on a node without a value has none, the others do.
fn each_result(f: &Func, inputs: &[&Tensor], cx: &EvalCx<'_>) -> Vec<Result<Tensor, String>> {
    let mut uses = f.use_counts();
    let mut values: Vec<Option<Result<Tensor, String>>> = vec![None; f.value_count()];
    for ((_, v), t) in f.params().iter().zip(inputs) {
        values[v.index()] = Some(Ok((*t).clone()));
    }
    let unknown = || "it has no value".to_string();
    for (_, n) in f.nodes() {
        let of = |v: &Value| values[v.index()].as_ref().ok_or_else(unknown)?.as_ref().map_err(String::clone);
        let operands = n.operands.iter().map(of).collect::<Result<Vec<&Tensor>, String>>();
        let results = operands.and_then(|o| n.op.eval(&o, cx).map_err(|e| e.to_string()));
        for v in &n.operands {
            uses[v.index()] -= 1;
            if uses[v.index()] == 0 {
                values[v.index()] = None;
            }
        }
        for (i, v) in n.results.iter().enumerate() {
            values[v.index()] = Some(results.as_ref().map_err(String::clone).map(|r| r[i].clone()));
        }
    }
    f.results().iter().map(|(_, v)| values[v.index()].clone().unwrap_or_else(|| Err(unknown()))).collect()
}

/// The largest difference. What is no number on the left side is not compared: a row of attention that sees no key.
fn compare<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>, bound: f64) -> Outcome {
    let mut worst = 0.0f64;
    for (b, a) in pairs {
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

/// A function with every float in `f64`; `disturbed` by a relative error that each value has, either way.
fn widened(f: &Func, consts: &mut Arc<ConstPool>, disturbed: Option<f64>) -> Result<Func, TypeError> {
    let mut out = Func::new(&f.name);
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for (name, v) in f.params() {
        let mut ty = f.ty(*v).clone();
        ty.dtype = wide(ty.dtype);
        map.insert(*v, out.add_param(name, ty));
    }
    let mut b = Builder::new(&mut out, consts);
    let mut r = Random(0);
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
        let mut disturb = |v: Value| match disturbed {
            Some(error) if b.ty(v).dtype == DType::F64 => {
                let sign = if r.below(2) == 0 { 1.0 } else { -1.0 };
                let factor = b.scalar(Literal::from_f64(DType::F64, 1.0 + sign * error))?;
                b.bin(BinOp::Mul, v, factor)
            }
            _ => Ok(v),
        };
        let results = results.into_iter().map(&mut disturb).collect::<Result<Vec<Value>, TypeError>>()?;
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
