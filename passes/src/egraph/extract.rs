//! Extraction: the terms of least total time, a node that several terms read counted once.
//!
//! First greedy over sets of classes, after "faster-greedy-dag" of the extraction-gym benchmark: the cost of a term is the sum over
//! the set of classes that it needs. That looks at one class at a time: where two roots share work, a term that is cheap for one of
//! them may cost more in all. So single choices are then exchanged as long as the total falls. Should the greedy choices be cyclic,
//! the costs of trees decide instead, which cannot be.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use egg::{Id, Language};
use transc_ir::op::TypeError;
use transc_ir::tensor::{Builder, ConstPool, Func};
use transc_ir::{TensorType, Value};

use super::graph::Graph;
use super::language::Term;
use crate::analysis::estimate::CostTable;

/// Sweeps of exchanges at most.
const SWEEPS: usize = 4;
/// Highest price of a term.
const MAX_PRICE: f64 = 1e30;

/// The chosen term of each class.
pub type Choice = BTreeMap<Id, Term>;

/// Chooses a term for every class that has one.
pub fn choose(g: &Graph<'_>, costs: &CostTable) -> Choice {
    choose_by(g, &|term| cost(g, term, costs))
}

/// Chooses by any price of a term.
pub fn choose_by(g: &Graph<'_>, price: &dyn Fn(&Term) -> f64) -> Choice {
    let s = Space::new(g, price);
    let mut chosen = s.greedy(true);
    let mut total = s.total(&chosen);
    if total.is_infinite() {
        chosen = s.greedy(false);
        total = s.total(&chosen);
    }
    for _ in 0..SWEEPS {
        let before = total;
        s.exchange(&mut chosen, &mut total);
        if total >= before {
            break;
        }
    }
    let pick = |(i, c): (usize, &Option<usize>)| Some((s.ids[i], s.terms[i][(*c)?].term.clone()));
    chosen.iter().enumerate().filter_map(pick).collect()
}

/// Estimated time of one term.
pub fn cost(g: &Graph<'_>, term: &Term, costs: &CostTable) -> f64 {
    let Term::Op(op, args) = term else { return 0.0 };
    let operands: Vec<&TensorType> = args.iter().map(|a| g.ty(*a)).collect();
    match op.infer(&operands, g.consts()) {
        Ok(results) => {
            let constant = args.iter().all(|a| g.known(*a).constant) && results.iter().all(|t| t.static_dims().is_some());
            costs.nanoseconds(op, &operands, &results, constant && !args.is_empty(), g.ranges)
        }
        Err(_) => f64::INFINITY,
    }
}

/// A term with its price and the numbers of its operands' classes.
struct Priced {
    term: Term,
    price: f64,
    args: Vec<usize>,
}

/// All classes, numbered.
struct Space {
    ids: Vec<Id>,
    terms: Vec<Vec<Priced>>,
    users: Vec<Vec<usize>>,
    roots: Vec<usize>,
}

/// Number of the chosen term per class.
type Chosen = Vec<Option<usize>>;

impl Space {
    fn new(g: &Graph<'_>, price: &dyn Fn(&Term) -> f64) -> Self {
        let classes = g.classes();
        let number: BTreeMap<Id, usize> = classes.iter().enumerate().map(|(i, c)| (c.0, i)).collect();
        let priced = |t: &Term| {
            let term = t.canonical(g);
            // Finite, so that every class of the function has a choice.
            Priced { price: price(t).min(MAX_PRICE), args: term.children().iter().map(|c| number[c]).collect(), term }
        };
        let mut terms: Vec<Vec<Priced>> = classes.iter().map(|(_, terms)| terms.iter().map(priced).collect()).collect();
        let mut users = vec![Vec::new(); classes.len()];
        for (i, terms) in terms.iter_mut().enumerate() {
            terms.sort_by(|a, b| a.term.cmp(&b.term));
            for a in terms.iter().flat_map(|t| &t.args) {
                if users[*a].last() != Some(&i) {
                    users[*a].push(i);
                }
            }
        }
        let roots = g.roots.iter().map(|r| number[&g.find(*r)]).collect();
        Self { ids: classes.iter().map(|c| c.0).collect(), terms, users, roots }
    }

    /// Improves the choice of each class until none gets cheaper. With `shared` a class that two operands need counts once.
    fn greedy(&self, shared: bool) -> Chosen {
        let n = self.ids.len();
        let mut chosen: Chosen = vec![None; n];
        // What a class needs, itself included, as bits; empty where `shared` is off.
        let mut need: Vec<Vec<u64>> = vec![Vec::new(); n];
        let (mut least, mut price) = (vec![f64::INFINITY; n], vec![0.0; n]);
        let mut queue: VecDeque<usize> = (0..n).collect();
        let mut queued = vec![true; n];
        while let Some(i) = queue.pop_front() {
            queued[i] = false;
            let mut improved = false;
            for (k, t) in self.terms[i].iter().enumerate() {
                if t.args.iter().any(|a| chosen[*a].is_none()) {
                    continue;
                }
                let mut bits = vec![0u64; if shared { n.div_ceil(64) } else { 0 }];
                let total = if shared {
                    t.args.iter().for_each(|a| bits.iter_mut().zip(&need[*a]).for_each(|(x, y)| *x |= y));
                    if bits[i / 64] >> (i % 64) & 1 == 1 {
                        continue;
                    }
                    t.price + members(&bits).map(|j| price[j]).sum::<f64>()
                } else {
                    t.price + t.args.iter().map(|a| least[*a]).sum::<f64>()
                };
                // Strictly cheaper than ever before, so this ends; of equals the first in the order of terms stays.
                if total.total_cmp(&least[i]) == Ordering::Less {
                    if shared {
                        bits[i / 64] |= 1 << (i % 64);
                    }
                    (least[i], price[i], chosen[i], need[i], improved) = (total, t.price, Some(k), bits, true);
                }
            }
            if improved {
                for u in &self.users[i] {
                    if !std::mem::replace(&mut queued[*u], true) {
                        queue.push_back(*u);
                    }
                }
            }
        }
        chosen
    }

    /// The classes below the roots, operands before users; `None` if the choices are cyclic or lacking.
    fn order(&self, chosen: &Chosen) -> Option<Vec<usize>> {
        let mut state = vec![0u8; self.ids.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(usize, bool)> = self.roots.iter().map(|r| (*r, false)).collect();
        while let Some((i, leave)) = stack.pop() {
            match (leave, state[i]) {
                (true, _) => {
                    state[i] = 2;
                    order.push(i);
                }
                (false, 2) => {}
                // Entered and not left: it is on the path to here.
                (false, 1) => return None,
                (false, _) => {
                    state[i] = 1;
                    stack.push((i, true));
                    stack.extend(self.terms[i][chosen[i]?].args.iter().map(|a| (*a, false)));
                }
            }
        }
        Some(order)
    }

    fn total(&self, chosen: &Chosen) -> f64 {
        let price = |i: usize| chosen[i].map_or(f64::INFINITY, |k| self.terms[i][k].price);
        self.order(chosen).map_or(f64::INFINITY, |order| order.into_iter().map(price).sum())
    }

    /// Tries the other terms of every class in use, users first.
    fn exchange(&self, chosen: &mut Chosen, total: &mut f64) {
        for i in self.order(chosen).unwrap_or_default().into_iter().rev() {
            for k in 0..self.terms[i].len() {
                let Some(now) = chosen[i].filter(|now| *now != k) else { continue };
                chosen[i] = Some(k);
                let other = self.total(chosen);
                if other < *total {
                    *total = other;
                } else {
                    chosen[i] = Some(now);
                }
            }
        }
    }
}

/// Positions of the bits that are set.
fn members(bits: &[u64]) -> impl Iterator<Item = usize> {
    bits.iter().enumerate().flat_map(|(w, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let i = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                w * 64 + i
            })
        })
    })
}

/// The function of the chosen terms, with the names of `like`.
///
/// # Errors
/// A type error, which would be a bug.
pub fn emit(g: &Graph<'_>, choice: &Choice, like: &Func, consts: &mut Arc<ConstPool>) -> Result<Func, TypeError> {
    let mut out = Func::new(&like.name);
    let params: Vec<Value> = like.params().iter().map(|(name, v)| out.add_param(name, like.ty(*v).clone())).collect();
    let mut values: BTreeMap<Id, Vec<Value>> = BTreeMap::new();
    let mut b = Builder::new(&mut out, consts);
    let mut stack: Vec<Id> = g.roots.iter().rev().map(|r| g.find(*r)).collect();
    while let Some(id) = stack.last().copied() {
        if values.contains_key(&id) {
            stack.pop();
            continue;
        }
        let term = &choice[&id];
        let missing: Vec<Id> = term.children().iter().filter(|c| !values.contains_key(c)).copied().collect();
        if !missing.is_empty() {
            stack.extend(missing.iter().rev());
            continue;
        }
        stack.pop();
        let results = match term {
            Term::Param(i) => vec![params[*i as usize]],
            Term::Result(i, [of]) => vec![values[of][*i as usize]],
            Term::Op(op, args) => {
                b.loc = g.known(id).loc.clone();
                let args: Vec<Value> = args.iter().map(|a| values[a][0]).collect();
                b.add_multi((**op).clone(), &args)?
            }
        };
        values.insert(id, results);
    }
    for ((name, _), root) in like.results().iter().zip(&g.roots) {
        out.add_result(name, values[&g.find(*root)][0]);
    }
    Ok(out)
}
