//! `cut-layers`: units of layers go, where asked for, and with them the rows and columns of the weights that make and read them.
//!
//! A nested sub-model has the first hidden units of each feed-forward layer (Devvrit et al. 2023, "MatFormer"): nothing is scaled, and the bias of
//! the result stays. Structured pruning drops hidden units, heads and whole blocks, those whose weights count least or those that a
//! learnt mask names (Dutta et al. 2024, "VTrans"); what a mask multiplies a unit by goes into the weight that reads it. A mask of the hidden
//! dims narrows the residual stream ([`stream`]).
//!
//! Layers are found by what they compute. The step itself drops inputs of one product; that nothing else is computed for them is carried backwards
//! op by op ([`narrow`]), through gates, fused gate and up projections, views, masks and heads.

mod error;
mod find;
mod hidden;
mod mask;
mod narrow;
mod reads;
mod spec;
mod stream;

use transc_ir::interp::{EvalCx, Tensor, strides};
use transc_ir::tensor::Func;
use transc_ir::{Module, Value};

pub use error::CutError;
pub use find::{Kind, Layer, layers};
pub use mask::Masks;
pub use spec::{CutSpec, Nested, Shares};

use super::LedgerEntry;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;
use hidden::Hidden;
use narrow::{Changes, Cut};
use spec::Size;

/// Hidden units that stay are a multiple of this where all of them are: kernels work on so many at once.
const TILE: usize = 16;

/// What becomes of a layer.
struct Plan {
    /// By unit: what it is multiplied by; 0 drops it. Empty for no change.
    units: Vec<f32>,
    /// What the block is multiplied by.
    block: f32,
    codec: &'static str,
}

/// Runs the pass; with nothing asked for it does nothing.
///
/// # Errors
/// A cut that cannot be done, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let spec = cx.cuts.clone();
    if spec.is_empty() {
        return Ok(());
    }
    let f = &module.main;
    let layers = layers(f);
    let plans = plans(module, &layers, &spec)?;
    let (mut changes, mut ledger) = (Changes::default(), Vec::new());
    for (layer, plan) in layers.iter().zip(&plans) {
        let site = f.node(layer.node).loc.path().to_string();
        let kept = plan.units.iter().filter(|m| **m != 0.0).count();
        let parameters = if plan.block == 0.0 {
            "the block is removed".to_string()
        } else if kept < plan.units.len() {
            let what = if layer.kind == Kind::Attention { "heads" } else { "hidden units" };
            format!("{kept} of {} {what}", layer.units)
        } else if plan.units.iter().any(|m| *m != 1.0) || plan.block != 1.0 {
            "units are scaled".into()
        } else {
            continue;
        };
        if plan.block != 1.0 {
            let why = || format!("`{site}` stands in no residual sum: the block cannot be removed");
            let (sum, other) = layer.residual.ok_or_else(|| CutError::Size { site: site.clone(), why: why() })?;
            changes.blocks.insert(sum, (other, plan.block));
        }
        if plan.block != 0.0 && !plan.units.is_empty() {
            changes.cuts.insert(layer.node, cut(layer, &plan.units));
        }
        cx.fired(plan.codec);
        ledger.push(LedgerEntry { site, codec: plan.codec, parameters });
    }
    if let Some(mask) = spec.masks.as_ref().and_then(|m| m.hidden.as_ref()).filter(|m| m.iter().any(|v| *v != 1.0)) {
        let dense_zeros = spec.masks.as_ref().is_some_and(|m| m.dense_zeros);
        ledger.push(drop_hidden(f, &layers, mask, dense_zeros, &mut changes)?);
        cx.fired("vtrans");
    }
    if ledger.is_empty() {
        return Ok(());
    }
    let narrowed = narrow::narrow(module.take_main(), &mut module.consts, &changes);
    module.main = sweep::typed(cx, narrowed)?;
    cx.ledger.extend(ledger);
    Ok(())
}

/// The hidden dims that stay, and what is multiplied.
fn drop_hidden(
    f: &Func,
    layers: &[Layer],
    mask: &[f32],
    dense_zeros: bool,
    changes: &mut Changes,
) -> Result<LedgerEntry, CutError> {
    let wrong = |why: &str| CutError::Mask { name: "hidden".into(), why: why.into() };
    let kept = mask.iter().filter(|m| **m != 0.0).count();
    if kept == 0 {
        return Err(wrong("drops all hidden dims"));
    }
    let stream = stream::stream(f, layers, mask.len())?;
    if stream.embeddings.is_empty() && mask.iter().any(|m| *m != 0.0 && *m != 1.0) {
        return Err(wrong("has multipliers, and the model begins with no table of embeddings that they could go into"));
    }
    let hidden = Hidden::new(&stream, mask, dense_zeros);
    changes.cuts.extend(hidden.cuts(&stream));
    changes.hidden = Some(hidden);
    let first = layers.iter().find_map(|l| l.residual).map(|(sum, _)| f.node(sum).loc.path().to_string());
    let parameters = match kept == mask.len() {
        true => "hidden dims are scaled".into(),
        false => format!("{kept} of {} hidden dims", mask.len()),
    };
    Ok(LedgerEntry { site: first.unwrap_or_default(), codec: "vtrans", parameters })
}

/// The kept inputs of a layer. One unit stays where none would: multiplied by 0, so that a product remains.
fn cut(layer: &Layer, units: &[f32]) -> Cut {
    let kept: Vec<usize> = (0..units.len()).filter(|i| units[*i] != 0.0).collect();
    let kept = if kept.is_empty() { vec![0] } else { kept };
    let inputs = || kept.iter().flat_map(|u| u * layer.width..(u + 1) * layer.width);
    let plain = kept.iter().all(|u| units[*u] == 1.0);
    let scale = if plain { Vec::new() } else { inputs().map(|i| units[i / layer.width]).collect() };
    Cut { axes: layer.axes, inputs: layer.units * layer.width, keep: inputs().collect(), scale, weight: layer.weight }
}

/// What is asked of each layer.
fn plans(module: &Module, layers: &[Layer], spec: &CutSpec) -> Result<Vec<Plan>, CutError> {
    let mut plans: Vec<Plan> = layers.iter().map(|_| Plan { units: Vec::new(), block: 1.0, codec: "vtrans" }).collect();
    let of = |kind: Kind| (0..layers.len()).filter(move |i| layers[*i].kind == kind).collect::<Vec<_>>();
    let (ffn, attention) = (of(Kind::FeedForward), of(Kind::Attention));
    if let Some(nested) = &spec.nested {
        nest(&module.main, layers, &ffn, nested, &mut plans)?;
    }
    if let Some(shares) = &spec.shares {
        prune(module, layers, [&ffn, &attention], shares, &spec.seen, &mut plans)?;
    }
    if let Some(masks) = &spec.masks {
        let groups = [("ffn", &masks.ffn, &ffn, true), ("attn", &masks.attention, &attention, true)];
        let units = [("ffn_units", &masks.ffn_units, &ffn, false), ("heads", &masks.heads, &attention, false)];
        for (kind, masks, members, whole) in groups.into_iter().chain(units) {
            for (l, mask) in masks {
                let wrong = |why: String| CutError::Mask { name: format!("layer.{l}.{kind}"), why };
                let at =
                    *members.get(*l).ok_or_else(|| wrong(format!("is of a layer that there is not: {} are", members.len())))?;
                let n = if whole { 1 } else { layers[at].units };
                if mask.len() != n {
                    return Err(wrong(format!("has {} numbers for {n} units", mask.len())));
                }
                if whole {
                    plans[at].block = mask[0];
                } else {
                    plans[at].multiply(mask);
                }
            }
        }
    }
    // Without heads, a block is off, bias and all.
    for i in attention {
        if !plans[i].units.is_empty() && plans[i].units.iter().all(|m| *m == 0.0) {
            plans[i].block = 0.0;
        }
    }
    Ok(plans)
}

impl Plan {
    fn multiply(&mut self, by: &[f32]) {
        if self.units.is_empty() {
            self.units = by.to_vec();
        } else {
            self.units.iter_mut().zip(by).for_each(|(m, b)| *m *= b);
        }
    }
}

/// The first units of feed-forward layers.
fn nest(f: &Func, layers: &[Layer], ffn: &[usize], nested: &Nested, plans: &mut [Plan]) -> Result<(), CutError> {
    if ffn.is_empty() {
        return Err(CutError::NoLayer("feed-forward layer"));
    }
    let names: Vec<&str> = ffn.iter().map(|i| f.node(layers[*i].node).loc.path()).collect();
    for (which, size) in &nested.0 {
        let mut found = false;
        for (l, i) in ffn.iter().enumerate().filter(|(l, _)| which.matches(*l, names[*l])) {
            found = true;
            let n = layers[*i].units;
            let kept = match size {
                Size::Units(m) => *m,
                Size::Fraction(p, q) if (n * p).is_multiple_of(*q) => n * p / q,
                Size::Fraction(p, q) => {
                    let why = format!("{p}/{q} of the {n} hidden units of `{}` is no whole number", names[l]);
                    return Err(CutError::Size { site: names[l].into(), why });
                }
            };
            if kept > n {
                let why = format!("`{}` has {n} hidden units, not {kept}", names[l]);
                return Err(CutError::Size { site: names[l].into(), why });
            }
            plans[*i] = Plan { units: (0..n).map(|u| f32::from(u < kept)).collect(), block: 1.0, codec: "matformer" };
        }
        if !found {
            let known = names.iter().map(|n| (*n).to_string()).collect();
            return Err(CutError::Unknown { name: format!("{which}"), known });
        }
    }
    Ok(())
}

/// The units that count most, and the blocks.
fn prune(
    module: &Module,
    layers: &[Layer],
    [ffn, attention]: [&[usize]; 2],
    shares: &Shares,
    seen: &[Vec<f32>],
    plans: &mut [Plan],
) -> Result<(), CutError> {
    for (members, share, what) in [(ffn, shares.ffn, "feed-forward layer"), (attention, shares.heads, "attention")] {
        if share > 0.0 && members.is_empty() {
            return Err(CutError::NoLayer(what));
        }
        for i in members.iter().filter(|_| share > 0.0) {
            let scores = scores(module, &layers[*i], seen.get(*i));
            let n = scores.len();
            let whole = layers[*i].kind == Kind::FeedForward && n.is_multiple_of(TILE);
            let tile = if whole { TILE } else { 1 };
            let kept = (n - (share * n as f64).floor() as usize).next_multiple_of(tile);
            let mut mask = vec![0.0; n];
            largest(&scores, kept).into_iter().for_each(|u| mask[u] = 1.0);
            plans[*i].multiply(&mask);
        }
    }
    if shares.layers > 0.0 {
        let blocks: Vec<usize> = (0..layers.len()).filter(|i| layers[*i].residual.is_some()).collect();
        if blocks.is_empty() {
            return Err(CutError::NoLayer("block with a residual sum"));
        }
        let total = |i: &usize| scores(module, &layers[*i], seen.get(*i)).iter().sum();
        let scores: Vec<f64> = blocks.iter().map(total).collect();
        let kept = largest(&scores, blocks.len() - (shares.layers * blocks.len() as f64).floor() as usize);
        for at in (0..blocks.len()).filter(|at| !kept.contains(at)) {
            plans[blocks[at]].block = 0.0;
        }
    }
    Ok(())
}

/// The largest, of equals the first; in any order.
fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count);
    order
}

/// How much each unit contributes: the square sum of the weights that read it, times the mean square of its values where these are known.
fn scores(module: &Module, layer: &Layer, seen: Option<&Vec<f32>>) -> Vec<f64> {
    let mut scores = vec![0.0; layer.units];
    let weight = module.main.node(layer.node).operands[layer.weight];
    let Some(w) = known(module, weight) else { return scores };
    let (axis, values) = (layer.axes[layer.weight], w.to_f64());
    let stride = strides(&w.dims)[axis];
    for (i, v) in values.iter().enumerate() {
        let input = i / stride % w.dims[axis];
        let size = seen.and_then(|s| s.get(input)).map_or(1.0, |s| f64::from(*s).powi(2));
        scores[input / layer.width] += v * v * size;
    }
    scores
}

/// A value that depends on constants alone.
fn known(module: &Module, v: Value) -> Option<Tensor> {
    let node = module.main.def_node(v)?;
    let operands = node.operands.iter().map(|o| known(module, *o)).collect::<Option<Vec<_>>>()?;
    let cx = EvalCx { consts: &module.consts, symbols: &|_| None };
    node.op.eval(&operands.iter().collect::<Vec<_>>(), &cx).ok()?.into_iter().next()
}
