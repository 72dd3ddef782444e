//! `compress-weights`: weights lose their smallest elements, and weights and activations become codes, where asked for.
//!
//! Each step is `decode(encode(w))` and nothing more: zeros stand in the weight (Han et al. 2015), 8-bit codes stand between `quantize` and
//! `dequantize`. That the zeros are skipped and the codes multiplied as integers is found by what comes after, as in a model that
//! arrives so. Activations of `dynamic` get a scale per row (the vector-wise scales of Dettmers et al. 2022), so that no row depends on its
//! neighbours. Codes of weights alone are decoded here: they change what the model computes, not how. A factorised layer becomes two products.

mod codes;
mod error;
mod factor;
mod facts;
mod prune;
mod spec;

use std::sync::Arc;

use transc_ir::interp::Tensor;
use transc_ir::op::{Op, TypeError};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, ConstData, ConstPool, Func, Node, NodeId};
use transc_ir::types::{DType, Dim};
use transc_ir::{Module, Value};

pub(super) use codes::unsigned;
pub use error::WeightError;
pub use factor::{Factor, Rank};
pub use facts::{Facts, Observed, facts, root_mean_squares};
pub(super) use spec::MAX_BYTE;
pub use spec::{Codes, Observer, Prune, Range, WeightSpec, parse_budget};

use super::LedgerEntry;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// Weights with fewer elements stay.
const MIN_ELEMENTS: usize = 1024;

/// A layer: a product of an activation by a constant matrix, both `f32`.
#[derive(Clone, Debug)]
pub struct Site {
    /// The product.
    pub node: NodeId,
    /// The activation.
    pub activation: Value,
    /// The axis of the activation that is summed over.
    pub input: usize,
    /// Which operand the weight is.
    weight: usize,
    /// Axis of the outputs in the weight.
    column: usize,
}

/// The layers of a function that can be compressed, in order.
pub fn sites(f: &Func) -> Vec<Site> {
    f.nodes().filter_map(|(id, n)| site(f, id, n)).collect()
}

fn site(f: &Func, id: NodeId, node: &Node) -> Option<Site> {
    let Op::Contract(c) = &node.op else { return None };
    let constant = |v: Value| f.constant(v).is_some();
    let weight = match node.operands.iter().map(|v| constant(*v)).collect::<Vec<_>>().as_slice() {
        [true, false] => 0,
        [false, true] => 1,
        _ => return None,
    };
    let (w, x) = (node.operands[weight], node.operands[1 - weight]);
    let (labels, other) = if weight == 0 { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
    let [a, b] = labels.as_slice() else { return None };
    let column = match (c.out.contains(a), c.out.contains(b)) {
        (true, false) => 0,
        (false, true) => 1,
        _ => return None,
    };
    let large = f.ty(w).static_dims()?.iter().product::<i64>() >= MIN_ELEMENTS as i64;
    let single = !other.contains(&labels[column]);
    let input = other.iter().position(|l| *l == labels[1 - column])?;
    let fits = f.ty(w).dtype == DType::F32 && f.ty(x).dtype == DType::F32 && c.out_dtype == DType::F32;
    (large && single && fits).then_some(Site { node: id, activation: x, input, weight, column })
}

/// Runs the pass.
///
/// # Errors
/// Nothing to compress, codes that need observed activations without these, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let spec = cx.weights.clone();
    if spec.is_empty() {
        return Ok(());
    }
    let sites = checked_sites(module, &spec)?;
    let mut next = sites.iter().enumerate().peekable();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, id, node, operands| {
        let Some((i, site)) = next.next_if(|(_, s)| s.node == id) else { return Ok(None) };
        let error = spec.errors.get(i).map_or_else(String::new, |(_, e)| format!(", error of the layer {e:.2e}"));
        if spec.keep.contains(&i) {
            cx.remark(&node.loc, format!("stays in f32{error}"));
            return Ok(None);
        }
        let (y, entries) = match compress(b, node, site, operands, &spec, spec.facts.get(i))? {
            Ok(compressed) => compressed,
            Err(why) => {
                cx.remark(&node.loc, format!("stays as it is: {why}"));
                return Ok(None);
            }
        };
        for (codec, parameters) in entries {
            cx.fired(codec);
            cx.ledger.push(LedgerEntry { site: node.loc.path().into(), codec, parameters: parameters + &error });
        }
        Ok(Some(vec![y]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// Puts the compressed form of each layer beside it. Of the results, the first two per site are the layer's and that of its compressed form, on
/// the same activation; nothing else changes. Gives the user's node of each site.
///
/// # Errors
/// As the pass.
pub fn probe(module: &mut Module, spec: &WeightSpec) -> Result<Vec<String>, PassError> {
    let sites = checked_sites(module, spec)?;
    let names = sites.iter().map(|s| module.main.node(s.node).loc.path().to_string()).collect();
    let mut next = sites.iter().enumerate().peekable();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, id, node, operands| {
        let Some((i, site)) = next.next_if(|(_, s)| s.node == id) else { return Ok(None) };
        let exact = b.add(node.op.clone(), operands)?;
        let lossy = compress(b, node, site, operands, spec, spec.facts.get(i))?.map_or(exact, |(y, _)| y);
        b.func.add_result(&format!("exact {i}"), exact);
        b.func.add_result(&format!("lossy {i}"), lossy);
        Ok(Some(vec![exact]))
    });
    module.main = rewritten.map_err(|source| PassError::Type { pass: "compress-weights", source })?;
    Ok(names)
}

fn checked_sites(module: &Module, spec: &WeightSpec) -> Result<Vec<Site>, WeightError> {
    let sites = sites(&module.main);
    if sites.is_empty() {
        return Err(WeightError::NoSite);
    }
    match spec.lacks_facts() {
        Some(what) => Err(WeightError::NoCalibration(what)),
        None => Ok(sites),
    }
}

/// The weight of a site: its name and data.
fn weight_of<'a>(f: &Func, consts: &'a Arc<ConstPool>, site: &Site) -> Option<(&'a str, &'a ConstData)> {
    let w = *f.node(site.node).operands.get(site.weight)?;
    let id = f.constant(w)?;
    Some((consts.name(id), consts.get(id)?))
}

pub(super) fn floats(data: &ConstData) -> Vec<f32> {
    data.bytes().chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect()
}

/// A result with what was done for it, codec by codec.
type Compressed = (Value, Vec<(&'static str, String)>);

/// The layer with its weight pruned, and then coded or factorised; or why it stays as it is.
fn compress(
    b: &mut Builder<'_>,
    node: &Node,
    site: &Site,
    operands: &[Value],
    spec: &WeightSpec,
    facts: Option<&Facts>,
) -> Result<Result<Compressed, String>, TypeError> {
    let (x, w) = (operands[1 - site.weight], operands[site.weight]);
    let (Op::Contract(contract), Some(id)) = (&node.op, b.func.constant(w)) else {
        return Ok(Err("its weight is no constant".into()));
    };
    let name = b.consts.name(id).to_string();
    let Some(data) = b.consts.get(id).cloned() else { return Ok(Err("its weight is missing".into())) };
    let (dims, mut values) = (data.dims(), floats(&data));
    if !values.iter().all(|v| v.is_finite()) {
        return Ok(Err("its weight holds numbers that are not finite".into()));
    }
    let layer = codes::Layer { contract, site, name: &name, dims: &dims, matrix: Matrix::of(&dims, site) };
    let mut entries = Vec::new();
    if let Some(p) = spec.prune {
        let before = values.clone();
        let (codec, how) = prune::prune(&mut values, layer.matrix, p);
        entries.push((codec, format!("{how}, weight error {:.2e}", relative_error(&before, &values))));
    }
    let y = match spec.codes {
        Some(Codes::Factored(how)) => match layer.factored(b, x, &values, how, facts)? {
            Ok((y, codec, how)) => {
                entries.push((codec, how));
                y
            }
            Err(why) => return Ok(Err(why)),
        },
        Some(codes) => {
            let (y, codec, how) = layer.coded(b, x, &values, codes, facts)?;
            entries.push((codec, how));
            y
        }
        None => {
            let w = constant(b, &name, Tensor::from_f32(&dims, &values))?;
            layer.product(b, x, w)?
        }
    };
    Ok(Ok((y, entries)))
}

/// How the elements of a weight lie.
#[derive(Clone, Copy)]
struct Matrix {
    inputs: usize,
    outputs: usize,
    /// Axis of the outputs.
    column: usize,
}

impl Matrix {
    fn of(dims: &[usize], site: &Site) -> Self {
        Self { inputs: dims[1 - site.column], outputs: dims[site.column], column: site.column }
    }

    fn at(self, input: usize, output: usize) -> usize {
        if self.column == 1 { input * self.outputs + output } else { output * self.inputs + input }
    }

    fn output(self, i: usize) -> usize {
        if self.column == 1 { i % self.outputs } else { i / self.inputs }
    }

    fn input(self, i: usize) -> usize {
        if self.column == 1 { i / self.outputs } else { i % self.inputs }
    }
}

/// `|a - b| / |a|` in the mean square over pairs `(a, b)`; `None` if every `a` is 0.
pub fn relative_error_of<'a>(pairs: impl IntoIterator<Item = (&'a [f32], &'a [f32])>) -> Option<f64> {
    let (mut size, mut difference) = (0.0, 0.0);
    for (a, b) in pairs {
        size += a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        difference += a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
    }
    (size > 0.0).then(|| (difference / size).sqrt())
}

/// The same for one pair; 0 where there is nothing to lose.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    relative_error_of([(a, b)]).unwrap_or(0.0)
}

fn constant(b: &mut Builder<'_>, name: &str, t: Tensor) -> Result<Value, TypeError> {
    let ty: Vec<Dim> = t.dims.iter().map(|d| Dim::from(*d)).collect();
    let data = t.to_const().ok_or_else(|| TypeError::dims("constant", format!("{ty:?} does not fit its elements")))?;
    b.constant(name, data)
}
