//! Delta debugging: the smallest part of a module on which two ways still differ (Zeller and Hildebrandt 2002).

use transc::ir::interp::{Tensor, eval_module};
use transc::ir::tensor::Value;
use transc::ir::{Func, Module};

/// A module with inputs and the allowed absolute error of each value, by its number.
#[derive(Clone)]
pub struct Case {
    pub module: Module,
    pub inputs: Vec<Tensor>,
    pub bounds: Vec<f64>,
}

/// The smallest case found on which `fails` still holds: one result, and values of the interpreter instead of every node that may go.
pub fn shrink(case: &Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    let mut best = case.clone();
    // The first value that differs on its own.
    let values = case.module.main.nodes().flat_map(|(_, n)| n.results.to_vec());
    if let Some(first) = values.map(|v| with_result(case, v)).find(|c| fails(c)) {
        best = first;
    }
    let mut at = 0;
    while at < best.module.main.node_count() {
        match without_node(&best, at).filter(|c| fails(c)) {
            Some(smaller) => best = smaller,
            None => at += 1,
        }
    }
    best
}

/// A copy under construction: which new value stands for which old one.
struct Copy<'a> {
    old: &'a Case,
    new: Case,
    map: Vec<Option<Value>>,
}

impl<'a> Copy<'a> {
    fn new(old: &'a Case) -> Self {
        let module = Module { main: Func::new("main"), ..old.module.clone() };
        let new = Case { module, inputs: Vec::new(), bounds: Vec::new() };
        Self { old, new, map: vec![None; old.module.main.value_count()] }
    }

    fn stands_for(&mut self, old: Value, new: Value) {
        self.map[old.index()] = Some(new);
        self.new.bounds.resize(new.index() + 1, 0.0);
        self.new.bounds[new.index()] = self.old.bounds[old.index()];
    }

    fn param(&mut self, name: &str, old: Value, input: Tensor) {
        let v = self.new.module.main.add_param(name, self.old.module.main.ty(old).clone());
        self.new.inputs.push(input);
        self.stands_for(old, v);
    }

    fn params(&mut self, needed: &[bool]) {
        for ((name, v), input) in self.old.module.main.params().iter().zip(&self.old.inputs) {
            // Parameters bind the symbols, so that only those of constant dims may go.
            if needed[v.index()] || self.old.module.main.ty(*v).static_dims().is_none() {
                self.param(name, *v, input.clone());
            }
        }
    }

    fn node(&mut self, at: usize) -> Option<()> {
        let main = &self.old.module.main;
        let (_, n) = main.nodes().nth(at)?;
        let operands: Option<Vec<Value>> = n.operands.iter().map(|v| self.map[v.index()]).collect();
        let types = n.results.iter().map(|v| main.ty(*v).clone());
        let id = self.new.module.main.push_node(n.op.clone(), &operands?, types, n.loc.clone());
        let results = self.new.module.main.node(id).results.to_vec();
        n.results.iter().zip(results).for_each(|(old, new)| self.stands_for(*old, new));
        Some(())
    }
}

/// The part of a case that one value needs, with that value as its only result.
fn with_result(case: &Case, result: Value) -> Case {
    let main = &case.module.main;
    let mut needed = vec![false; main.value_count()];
    needed[result.index()] = true;
    for (_, n) in main.nodes().rev() {
        if n.results.iter().any(|v| needed[v.index()]) {
            n.operands.iter().for_each(|v| needed[v.index()] = true);
        }
    }
    let mut copy = Copy::new(case);
    copy.params(&needed);
    for (i, (_, n)) in main.nodes().enumerate() {
        if n.results.iter().any(|v| needed[v.index()]) {
            copy.node(i).expect("operands come before");
        }
    }
    let v = copy.map[result.index()].expect("it was copied");
    copy.new.module.main.add_result("y", v);
    copy.new
}

/// A case whose node `at` is replaced by inputs with the values that the interpreter gives it, and what only it needed left out.
fn without_node(case: &Case, at: usize) -> Option<Case> {
    let main = &case.module.main;
    let (_, gone) = main.nodes().nth(at)?;
    if main.results().iter().any(|(_, v)| gone.results.contains(v)) {
        return None;
    }
    let mut all = case.module.clone();
    gone.results.iter().enumerate().for_each(|(i, v)| all.main.add_result(&format!("cut{i}"), *v));
    let values = eval_module(&all, &case.inputs).ok()?.split_off(main.results().len());
    let mut copy = Copy::new(case);
    copy.params(&vec![true; main.value_count()]);
    for (i, (v, t)) in gone.results.iter().zip(values).enumerate() {
        copy.param(&format!("cut{at}_{i}"), *v, t);
    }
    for i in (0..main.node_count()).filter(|i| *i != at) {
        copy.node(i)?;
    }
    let (_, result) = main.results().first()?;
    let v = copy.map[result.index()]?;
    copy.new.module.main.add_result("y", v);
    Some(with_result(&copy.new, v))
}
