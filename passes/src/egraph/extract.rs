//! Extraction: the cheapest term of each class, a node that several terms read counted once.
//!
//! Greedy over sets of classes, after "faster-greedy-dag" of the extraction-gym benchmark: the cost of a term is the sum over the
//! set of classes that it needs. Where the choices made so would be cyclic, the cost of trees decides instead, which cannot be.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use egg::{Id, Language};
use transc_ir::op::TypeError;
use transc_ir::tensor::{Builder, ConstPool, Func};
use transc_ir::{TensorType, Value};

use super::graph::Graph;
use super::language::Term;
use crate::analysis::estimate::CostTable;

/// The chosen term of each class.
pub type Choice = BTreeMap<Id, Term>;

/// Classes that a term needs, as bits.
#[derive(Clone)]
struct Need {
    bits: Vec<u64>,
    cost: f64,
    term: Term,
}

/// Chooses a term for every class that has one.
pub fn choose(g: &Graph<'_>, costs: &CostTable) -> Choice {
    let classes = g.classes();
    let index: BTreeMap<Id, usize> = classes.iter().enumerate().map(|(i, c)| (c.0, i)).collect();
    let own: Vec<Vec<(f64, Term)>> =
        classes.iter().map(|(_, terms)| terms.iter().map(|t| (cost(g, t, costs), t.canonical(g))).collect()).collect();
    let dag = greedy(&classes, &own, &index, true);
    if acyclic(&dag, &g.roots.iter().map(|r| g.find(*r)).collect::<Vec<_>>()) {
        return dag;
    }
    greedy(&classes, &own, &index, false)
}

/// Estimated time of one term.
fn cost(g: &Graph<'_>, term: &Term, costs: &CostTable) -> f64 {
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

/// Improves choices until none gets cheaper. With `shared` a class that two operands need counts once.
fn greedy(classes: &[(Id, &[Term])], own: &[Vec<(f64, Term)>], index: &BTreeMap<Id, usize>, shared: bool) -> Choice {
    let words = classes.len().div_ceil(64);
    let mut least = vec![f64::MAX; classes.len()];
    let mut users: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); classes.len()];
    for (i, terms) in own.iter().enumerate() {
        for (_, t) in terms {
            t.for_each(|c| {
                users[index[&c]].insert(i);
            });
        }
    }
    let mut need: Vec<Option<Need>> = vec![None; classes.len()];
    let mut queue: VecDeque<usize> = (0..classes.len()).collect();
    let mut queued = vec![true; classes.len()];
    // The cost of one class alone, as chosen at the time; what others need of it is summed with these.
    let mut price = vec![0.0; classes.len()];
    while let Some(i) = queue.pop_front() {
        queued[i] = false;
        let mut best: Option<Need> = None;
        'terms: for (cost, term) in &own[i] {
            let mut bits = vec![0u64; words];
            let mut total = *cost;
            for c in term.children() {
                let Some(n) = &need[index[c]] else { continue 'terms };
                if shared {
                    bits.iter_mut().zip(&n.bits).for_each(|(a, b)| *a |= b);
                } else {
                    total += n.cost;
                }
            }
            if bits[i / 64] >> (i % 64) & 1 == 1 {
                continue;
            }
            if shared {
                total += bits.iter().enumerate().map(|(w, b)| ones(*b).map(|j| price[w * 64 + j]).sum::<f64>()).sum::<f64>();
                bits[i / 64] |= 1 << (i % 64);
            }
            let better = best.as_ref().is_none_or(|b| total.total_cmp(&b.cost).then_with(|| term.cmp(&b.term)) == Ordering::Less);
            if total.is_finite() && better {
                best = Some(Need { bits, cost: total, term: term.clone() });
                price[i] = *cost;
            }
        }
        let Some(best) = best else { continue };
        // Strictly cheaper than ever before, so this ends.
        if best.cost < least[i] {
            least[i] = best.cost;
            need[i] = Some(best);
            for u in &users[i] {
                if !std::mem::replace(&mut queued[*u], true) {
                    queue.push_back(*u);
                }
            }
        } else if let Some(n) = &need[i] {
            price[i] = own[i].iter().find(|(_, t)| *t == n.term).map_or(0.0, |(c, _)| *c);
        }
    }
    classes.iter().zip(need).filter_map(|(c, n)| Some((c.0, n?.term))).collect()
}

fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            i
        })
    })
}

/// True if the choices below the roots form a graph without cycles.
fn acyclic(choice: &Choice, roots: &[Id]) -> bool {
    let mut done: BTreeMap<Id, bool> = BTreeMap::new();
    let mut stack: Vec<(Id, bool)> = roots.iter().map(|r| (*r, false)).collect();
    while let Some((id, leave)) = stack.pop() {
        if leave {
            done.insert(id, true);
            continue;
        }
        match done.get(&id) {
            Some(true) => continue,
            Some(false) => return false,
            None => {}
        }
        let Some(term) = choice.get(&id) else { return false };
        done.insert(id, false);
        stack.push((id, true));
        // A child that is open is on the path to here: pending siblings are not marked before they are entered.
        stack.extend(term.children().iter().filter(|c| done.get(c) != Some(&true)).map(|c| (*c, false)));
    }
    true
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
