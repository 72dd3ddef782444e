//! The verifier: finds everything that is wrong with a module, for a stage of the pipeline.

use std::collections::BTreeSet;

use crate::Module;
use crate::op::Op;
use crate::tensor::{ConstPool, Func, Loc};
use crate::types::{Ranges, Symbol, TensorType};

/// What a module of a stage looks like, beyond what every module does.
pub struct StageSpec {
    /// Name in messages.
    pub name: &'static str,
    /// Which ops the entry function may hold.
    pub admits: fn(&Op) -> bool,
    /// Checks the body of a `fused` region; the error is the end of a sentence that starts with the region.
    pub region: fn(&Func) -> Result<(), String>,
    /// True if results of the entry function are results of nodes, each of another one.
    pub stored_results: bool,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyProblem {
    /// What is wrong.
    pub message: String,
    /// The user's node.
    pub loc: Loc,
}

/// Checks SSA order, types, names, symbols, and what the stage asks for.
///
/// # Errors
/// Everything that is wrong, in order of the nodes.
pub fn verify(module: &Module, stage: &StageSpec) -> Result<(), Vec<VerifyProblem>> {
    let mut v = Verifier { consts: &module.consts, symbols: &module.symbols, problems: Vec::new() };
    v.names(&module.main);
    v.func(&module.main);
    for (_, node) in module.main.nodes() {
        if !(stage.admits)(&node.op) {
            v.problem(&node.loc, format!("`{}` does not belong to stage {}", node.op.mnemonic(), stage.name));
        } else if let Op::Fused(region) = &node.op
            && let Err(what) = (stage.region)(&region.body)
        {
            v.problem(&node.loc, format!("region `{}` {what}", region.body.name));
        }
    }
    if stage.stored_results {
        v.stored_results(&module.main);
    }
    if v.problems.is_empty() { Ok(()) } else { Err(v.problems) }
}

struct Verifier<'a> {
    consts: &'a ConstPool,
    symbols: &'a Ranges,
    problems: Vec<VerifyProblem>,
}

impl Verifier<'_> {
    fn problem(&mut self, loc: &Loc, message: String) {
        self.problems.push(VerifyProblem { message, loc: loc.clone() });
    }

    /// Inputs and outputs are told apart by their names.
    fn names(&mut self, f: &Func) {
        for (what, list) in [("input", f.params()), ("output", f.results())] {
            let mut seen = BTreeSet::new();
            for (name, _) in list {
                if !seen.insert(name) {
                    self.problem(&Loc::unknown(), format!("two {what}s are called `{name}`"));
                }
            }
        }
    }

    /// Operands are defined before their users, result types are those that the ops infer, and symbols have a range.
    fn func(&mut self, f: &Func) {
        for (name, v) in f.params() {
            self.symbols(f.ty(*v), &Loc::unknown(), &format!("input `{name}`"));
        }
        for (id, node) in f.nodes() {
            let defined = |v: &crate::Value| v.index() < f.value_count() && f.def_id(*v).is_none_or(|n| n < id);
            if let Some(v) = node.operands.iter().find(|v| !defined(v)) {
                self.problem(&node.loc, format!("{id} `{}` uses {v} before it is defined", node.op.mnemonic()));
                continue;
            }
            let operands: Vec<&TensorType> = node.operands.iter().map(|v| f.ty(*v)).collect();
            match node.op.infer(&operands, self.consts) {
                Err(e) => self.problem(&node.loc, format!("{id} {e}")),
                Ok(types) if !types.iter().eq(node.results.iter().map(|v| f.ty(*v))) => {
                    self.problem(
                        &node.loc,
                        format!("{id} `{}` has results of another type than its op gives", node.op.mnemonic()),
                    );
                }
                Ok(types) => types.iter().for_each(|t| self.symbols(t, &node.loc, &format!("{id} `{}`", node.op.mnemonic()))),
            }
            if let Op::Fused(region) = &node.op {
                self.func(&region.body);
            }
        }
        if let Some((name, v)) = f.results().iter().find(|(_, v)| v.index() >= f.value_count()) {
            self.problem(&Loc::unknown(), format!("output `{name}` is {v}, which does not exist"));
        }
    }

    fn symbols(&mut self, t: &TensorType, loc: &Loc, what: &str) {
        let mut all = Vec::new();
        t.dims.iter().for_each(|d| d.symbols(&mut all));
        let missing: BTreeSet<Symbol> = all.into_iter().filter(|s| !self.symbols.contains_key(s)).collect();
        for s in missing {
            self.problem(loc, format!("{what} has the dim `{}`, which the module does not declare", s.name()));
        }
    }

    fn stored_results(&mut self, f: &Func) {
        for (i, (name, v)) in f.results().iter().enumerate() {
            if f.def_node(*v).is_none() {
                self.problem(&Loc::unknown(), format!("output `{name}` is an input"));
            } else if f.results()[..i].iter().any(|(_, w)| w == v) {
                self.problem(&Loc::unknown(), format!("output `{name}` is another output too"));
            }
        }
    }
}
