//! The check between passes: SSA order, types, and what each stage admits.

use transc_ir::op::Op;
use transc_ir::tensor::{ConstPool, Func, ValueDef};
use transc_ir::{Loc, Module};

use crate::error::{PassError, VerifyProblem};
use crate::exact::fuse::check_region;
use crate::registry::Stage;

/// Checks a module of a stage; `when` says at which point, for the error.
///
/// # Errors
/// Everything that is wrong with it.
pub fn verify(module: &Module, stage: Stage, when: &str) -> Result<(), PassError> {
    let mut problems = Vec::new();
    check_func(&module.main, &module.consts, &mut problems);
    for (_, node) in module.main.nodes() {
        let mut problem = |message: String| problems.push(VerifyProblem { message, loc: node.loc.clone() });
        match (&node.op, stage) {
            (Op::Fused(_), Stage::Tensor) => problem("`fused` does not belong to stage tensor".into()),
            (Op::Fused(region), Stage::Fused) => {
                if let Err(what) = check_region(&region.body) {
                    problem(format!("region `{}` {what}", region.body.name));
                }
            }
            (op, Stage::Fused) => problem(format!("`{}` stands outside a region", op.mnemonic())),
            _ => {}
        }
    }
    if stage == Stage::Fused {
        check_results(&module.main, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(PassError::Verify { when: when.into(), problems }) }
}

/// Operands are defined before their users, and result types are those that the ops infer.
fn check_func(f: &Func, consts: &ConstPool, problems: &mut Vec<VerifyProblem>) {
    for (id, node) in f.nodes() {
        let mut problem = |message: String| problems.push(VerifyProblem { message, loc: node.loc.clone() });
        let defined = |v: &transc_ir::Value| v.index() < f.value_count() && !matches!(f.def(*v), ValueDef::Result(n, _) if n >= id);
        if let Some(v) = node.operands.iter().find(|v| !defined(v)) {
            problem(format!("{id} `{}` uses {v} before it is defined", node.op.mnemonic()));
            continue;
        }
        let operands: Vec<_> = node.operands.iter().map(|v| f.ty(*v)).collect();
        match node.op.infer(&operands, consts) {
            Err(e) => problem(format!("{id} {e}")),
            Ok(types) if !types.iter().eq(node.results.iter().map(|v| f.ty(*v))) => {
                problem(format!("{id} `{}` has results of another type than its op gives", node.op.mnemonic()));
            }
            Ok(_) => {}
        }
        if let Op::Fused(region) = &node.op {
            check_func(&region.body, consts, problems);
        }
    }
}

/// Results of the entry function are results of regions, each once.
fn check_results(f: &Func, problems: &mut Vec<VerifyProblem>) {
    for (i, (name, v)) in f.results().iter().enumerate() {
        let message = if f.def_node(*v).is_none() {
            format!("output `{name}` is an input")
        } else if f.results()[..i].iter().any(|(_, w)| w == v) {
            format!("output `{name}` is another output too")
        } else {
            continue;
        };
        problems.push(VerifyProblem { message, loc: Loc::unknown() });
    }
}
