//! `merge-tokens`: where the user asks for it, tokens of vision transformers that resemble each other become one.
//!
//! At each site `x` becomes `token_unmerge(token_apply(x, plan), plan)`, which is the lossy step, and the un-merge is carried to the read-out by
//! the exact rules of [`carry_unmerge`]. Sites are done one after the other: the second plans on the tokens that the first has left. A site is
//! legal if the un-merge passes every attention behind it; other sites are left alone with a remark.

mod error;
mod insert;
mod site;
mod spec;

use std::collections::BTreeSet;
use std::sync::Arc;

use transc_ir::op::{Op, TokenPlan};
use transc_ir::tensor::{Func, NodeId};
use transc_ir::{Loc, Module};

pub use error::MergeError;
pub use spec::MergeSpec;

use super::LedgerEntry;
use crate::analysis::uses::Uses;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::{carry_unmerge, sweep};

/// Runs the pass; without [`PassCx::merge`] it does nothing.
///
/// # Errors
/// A merge that was asked for and is possible nowhere, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let Some(spec) = cx.merge.clone() else { return Ok(()) };
    let blocks = site::attentions(&module.main).len();
    let schedule = spec.schedule(blocks);
    let (mut reasons, mut merges) = (Vec::new(), 0);
    for (block, remove) in schedule.into_iter().enumerate().filter(|(_, r)| *r > 0) {
        match at_block(module, cx, &spec, block, remove)? {
            Ok(entry) => {
                cx.fired("merge");
                cx.ledger.push(entry);
                merges += 1;
            }
            Err((loc, why)) => {
                cx.remark(&loc, format!("no tokens are merged: {why}"));
                reasons.push((loc, why));
            }
        }
    }
    if merges == 0 && spec.remove > 0 {
        return Err(MergeError::NoSite { reasons }.into());
    }
    Ok(())
}

/// Merges behind one attention; why not, if the place is not legal.
fn at_block(
    module: &mut Module,
    cx: &mut PassCx,
    spec: &MergeSpec,
    block: usize,
    remove: usize,
) -> Result<Result<LedgerEntry, (Loc, String)>, PassError> {
    let f = module.main.clone();
    let uses = Uses::of(&f);
    let attentions = site::attentions(&f);
    let Some(attention) = attentions.get(block) else { return Ok(Err((Loc::unknown(), "the attention has gone".into()))) };
    let at = f.node(attention.node).loc.clone();
    let site = match site::residual(&f, &uses, attention) {
        Ok(site) => site,
        Err(why) => return Ok(Err((at, why))),
    };
    let at = f.node(site).loc.clone();
    let tokens = f.ty(f.node(site).results[0]).dims[1].as_usize().unwrap_or(0);
    if cx.ledger.is_empty() && remove >= tokens {
        return Err(MergeError::TooMany { remove, tokens, site: at }.into());
    }
    let mut best: Option<Attempt> = None;
    for protect in protections(&f, tokens) {
        let remove = remove.min(TokenPlan::limit(tokens, protect));
        if remove == 0 {
            continue;
        }
        let merge = insert::Merge { attention, site, planner: spec.planner, remove, protect };
        let mut consts = Arc::clone(&module.consts);
        let (func, fired) = sweep::typed(cx, insert::insert(&f, &mut consts, &merge))?;
        let barriers = carry_unmerge::barriers(&func, &consts);
        if best.as_ref().is_none_or(|b| barriers.len() < b.barriers.len()) {
            best = Some(Attempt { remove, protect, fired, barriers, func });
        }
    }
    let Some(best) = best else { return Ok(Err((at, format!("{tokens} tokens are too few")))) };
    if let Some((_, loc, why)) = best.blocking() {
        return Ok(Err((at, format!("at `{}`, {why}", loc.path()))));
    }
    if transc_ir::tensor::macs_of(&best.func) == transc_ir::tensor::macs_of(&f) {
        return Ok(Err((at, "no product has fewer rows for it".into())));
    }
    for rule in best.fired {
        cx.fired(rule);
    }
    module.main = best.func;
    let (remove, protect) = (best.remove, best.protect);
    let parameters = format!("r={remove} protect={protect} tokens {tokens} -> {}", tokens - remove);
    Ok(Ok(LedgerEntry { site: at.path().into(), codec: spec.planner.name(), parameters }))
}

/// An insertion on trial.
struct Attempt {
    remove: usize,
    protect: usize,
    fired: Vec<&'static str>,
    barriers: Vec<(NodeId, Loc, String)>,
    func: Func,
}

impl Attempt {
    /// A barrier with an attention behind it, which would see all tokens again.
    fn blocking(&self) -> Option<&(NodeId, Loc, String)> {
        let attentions: BTreeSet<NodeId> = site::attentions(&self.func).iter().map(|a| a.node).collect();
        self.barriers.iter().find(|(id, ..)| !carry_unmerge::downstream(&self.func, [*id]).is_disjoint(&attentions))
    }
}

/// How many leading tokens may have to stay: none, or all up to an end of rows that the model reads.
fn protections(f: &Func, tokens: usize) -> BTreeSet<usize> {
    let mut ends = BTreeSet::from([0]);
    for (_, n) in f.nodes() {
        let Op::Slice(s) = &n.op else { continue };
        for (axis, d) in f.ty(n.operands[0]).dims.iter().enumerate() {
            if let (true, Some(start), Some(size)) = (d.is(tokens as i64), s.starts[axis].as_usize(), s.sizes[axis].as_usize()) {
                ends.extend([start, start + size]);
            }
        }
    }
    ends.into_iter().filter(|e| *e < tokens).collect()
}
