//! The order of the passes, and the runner.

use std::time::Instant;

use transc_ir::op::Op;
use transc_ir::{Func, Module};

use crate::context::{Current, PassCx, PassStats};
use crate::error::PassError;
use crate::registry;
use crate::stage::Stage;

/// The default pipeline.
const DEFAULT: &[&str] = &[
    // Sizes become dims and constants, so that later passes see static structure.
    "simplify-shapes",
    // Lossy, where asked for: what is cut has no codes.
    "cut-layers",
    "compress-weights",
    // While scales and zero points still stand beside their codes.
    "int-matmul",
    "fold-constants",
    "algebra",
    "cse",
    "dce",
    "saturate",
    // Lossy steps, where asked for.
    "merge-tokens",
    "code-attention",
    // Formulas have been found by now, which casts would hide.
    "widen-halves",
    // Pointwise named ops open up before views move past them.
    "decompose",
    "patches",
    "cse",
    "move-views",
    // Views that met have composed; what they hid folds now.
    "simplify-shapes",
    "fold-constants",
    "algebra",
    "fold-linear",
    "cse",
    "dce",
    "merge-matmuls",
    // Lossy, where asked for.
    "round-products",
    "round-early",
    "fuse",
];

/// Names of the passes of the default pipeline, in order.
pub fn default() -> Vec<&'static str> {
    DEFAULT.to_vec()
}

/// The default pipeline up to the last run of a pass; empty if it does not contain the pass.
pub fn until(name: &str) -> Vec<&'static str> {
    let end = DEFAULT.iter().rposition(|p| *p == name).map_or(0, |i| i + 1);
    DEFAULT[..end].to_vec()
}

/// Runs the default pipeline.
///
/// # Errors
/// As [`run`].
pub fn optimise(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    run(module, DEFAULT, cx)
}

/// Runs passes by name, verifying before the first, wherever the stage changes and after the last; with [`PassCx::verify_each`] after
/// every pass. Ends early when [`PassCx::fuel`] is spent.
///
/// # Errors
/// An unknown pass, a pass for another stage than the module's, or a bug: a pass that made an invalid module. The module is then in
/// an unspecified state.
pub fn run(module: &mut Module, names: &[&str], cx: &mut PassCx) -> Result<(), PassError> {
    let passes = names.iter().map(|n| registry::find(n)).collect::<Result<Vec<_>, _>>()?;
    let mut stage = Stage::of(module);
    stage.verify(module, "as it was given")?;
    for (i, pass) in passes.iter().enumerate() {
        if pass.stage_in != stage {
            return Err(PassError::Stage { pass: pass.name, want: pass.stage_in.name(), got: stage.name() });
        }
        if cx.fuel == Some(0) {
            return stage.verify(module, "when the fuel was spent");
        }
        let (nodes_before, start) = (node_count(module), Instant::now());
        cx.current = Current { pass: pass.name, ..Current::default() };
        (pass.run)(module, cx)?;
        let Current { fired, stop, last, .. } = std::mem::take(&mut cx.current);
        if !fired.is_empty() {
            // Equality saturation has paid for each of its rules.
            if stop.is_none() {
                cx.fuel = cx.fuel.map(|f| f - 1);
            }
            cx.last = Some(last.map_or_else(|| format!("pass `{}`", pass.name), |l| format!("pass `{}`, {l}", pass.name)));
        }
        let (nodes_after, time) = (node_count(module), start.elapsed());
        cx.stats.push(PassStats { pass: pass.name, nodes_before, nodes_after, fired, stop, time });
        if cx.verify_each || stage != pass.stage_out || i + 1 == passes.len() {
            pass.stage_out.verify(module, &format!("after pass `{}`", pass.name))?;
        }
        stage = pass.stage_out;
    }
    Ok(())
}

/// Nodes that compute: those of the entry function, a region counting as what it contains.
fn node_count(module: &Module) -> usize {
    fn count(f: &Func) -> usize {
        f.nodes().map(|(_, n)| if let Op::Fused(r) = &n.op { count(&r.body) } else { 1 }).sum()
    }
    count(&module.main)
}
