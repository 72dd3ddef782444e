//! `compress-weights`: weights lose their smallest elements, and weights and activations become 8-bit codes, where asked for.
//!
//! Each step is `decode(encode(w))` and nothing more: zeros stand in the weight (Han et al. 2015), codes stand between `quantize` and
//! `dequantize`. That the zeros are skipped and the codes multiplied as integers is found by what comes after, as in a model that
//! arrives so. Activations of `dynamic` get a scale per row (the vector-wise scales of Dettmers et al. 2022), so that no row depends on its neighbours.

mod spec;

use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Dequantize, Op, Quantize, Reduce, ReduceKind, TypeError};
use transc_ir::scalar::{BinOp, Body, Literal, Ref, UnOp};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, Func, Node, NodeId};
use transc_ir::types::{DType, Dim};
use transc_ir::{Module, Value};

pub use spec::{Int8, Observer, Prune, Range, WeightError, WeightSpec};

use super::LedgerEntry;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// Weights with fewer elements stay.
const MIN_ELEMENTS: usize = 1024;
/// The largest signed code; -128 is not used, so that codes are symmetric.
const MAX_CODE: f32 = 127.0;

/// A layer: a product of an activation by a constant matrix, both `f32`.
#[derive(Clone, Debug)]
pub struct Site {
    /// The product.
    pub node: NodeId,
    /// The activation.
    pub activation: Value,
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
    let constant = |v: Value| f.def_node(v).is_some_and(|n| matches!(n.op, Op::Constant(_)));
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
    let fits = f.ty(w).dtype == DType::F32 && f.ty(x).dtype == DType::F32 && c.out_dtype == DType::F32;
    (large && single && fits).then_some(Site { node: id, activation: x, weight, column })
}

/// Runs the pass.
///
/// # Errors
/// Nothing to compress, static codes without ranges, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let spec = cx.weights.clone();
    if spec.is_empty() {
        return Ok(());
    }
    let sites = sites(&module.main);
    if sites.is_empty() {
        return Err(WeightError::NoSite.into());
    }
    if matches!(spec.int8, Some(Int8::Static(_))) && spec.ranges.len() != sites.len() {
        return Err(WeightError::NoCalibration.into());
    }
    let mut next = sites.iter().enumerate().peekable();
    let rewritten = rewrite(sweep::taken(module), &mut module.consts, |b, id, node, operands| {
        let Some((i, site)) = next.next_if(|(_, s)| s.node == id) else { return Ok(None) };
        let Op::Contract(c) = &node.op else { return Ok(None) };
        let (y, entries) = compress(b, c, site, operands, &spec, spec.ranges.get(i).copied())?;
        for (codec, parameters) in entries {
            cx.fired(codec);
            cx.ledger.push(LedgerEntry { site: node.loc.path().into(), codec, parameters });
        }
        Ok(Some(vec![y]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The layer with its weight pruned, and then coded with its activation.
fn compress(
    b: &mut Builder<'_>,
    c: &Contract,
    site: &Site,
    operands: &[Value],
    spec: &WeightSpec,
    range: Option<Range>,
) -> Result<(Value, Vec<(&'static str, String)>), TypeError> {
    let (x, w) = (operands[1 - site.weight], operands[site.weight]);
    let mut entries = Vec::new();
    let Some(Op::Constant(id)) = b.func.def_node(w).map(|n| n.op.clone()) else { return Ok((w, entries)) };
    let name = b.consts.name(id.id).to_string();
    let Some(data) = b.consts.get(id.id) else { return Ok((w, entries)) };
    let mut values: Vec<f32> = data.bytes().chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect();
    let dims = data.dims();
    let matrix = Matrix { inputs: dims[1 - site.column], outputs: dims[site.column], column: site.column };
    if let Some(p) = spec.prune {
        let before = values.clone();
        let (codec, how) = prune(&mut values, matrix, p);
        entries.push((codec, format!("{how}, weight error {:.2e}", relative_error(&before, &values))));
    }
    let replaced = |x: Value, w: Value| if site.weight == 0 { [w, x] } else { [x, w] };
    let Some(int8) = spec.int8 else {
        let w = constant(b, &name, Tensor::from_f32(&dims, &values))?;
        return Ok((b.add(c.clone(), &replaced(x, w))?, entries));
    };
    let (codes, scales) = codes(&values, matrix);
    let coded: Vec<f32> = codes.iter().enumerate().map(|(i, q)| f32::from(*q) * scales[matrix.output(i)]).collect();
    let error = relative_error(&values, &coded);
    let w = Tensor { dtype: DType::I8, dims: dims.clone(), data: codes.iter().map(|q| *q as u8).collect() };
    let w = constant(b, &name, w)?;
    let mut shape = vec![1; 2];
    shape[site.column] = matrix.outputs;
    let scale = constant(b, &name, Tensor::from_f32(&shape, &scales))?;
    let w = b.add(Dequantize {}, &[w, scale])?;
    let (x, how) = match (int8, range) {
        (Int8::Static(_), Some(r)) => {
            let (scale, zero) = r.code();
            let s = b.scalar(Literal::from_f64(DType::F32, scale.into()))?;
            let z = b.scalar(Literal::from_i64(DType::U8, zero.into()))?;
            let q = b.add(Quantize { to: DType::U8 }, &[x, s, z])?;
            (b.add(Dequantize {}, &[q, s, z])?, format!("static, activation {:.4}..{:.4}", r.lo, r.hi))
        }
        _ => (dynamic(b, c, site, x)?, "dynamic per row".to_string()),
    };
    entries.push(("int8", format!("{how}, weight error {error:.2e}")));
    Ok((b.add(c.clone(), &replaced(x, w))?, entries))
}

/// The activation through signed codes whose scale follows each row's largest magnitude.
fn dynamic(b: &mut Builder<'_>, c: &Contract, site: &Site, x: Value) -> Result<Value, TypeError> {
    let labels = if site.weight == 0 { &c.rhs } else { &c.lhs };
    let axes: Vec<usize> = (0..labels.len()).filter(|i| !c.out.contains(&labels[*i])).collect();
    let magnitude = b.un(UnOp::Abs, x)?;
    let largest = b.add(Reduce { kind: ReduceKind::Max, axes, keep: true }, &[magnitude])?;
    let mut f = Body::builder(1);
    let (steps, zero, one) = (f.num(DType::F32, MAX_CODE.into()), f.num(DType::F32, 0.0), f.num(DType::F32, 1.0));
    let s = f.bin(BinOp::Div, Ref::Arg(0), steps);
    // A row of zeros: any scale will do.
    let empty = f.bin(BinOp::Eq, s, zero);
    let s = f.select(empty, one, s);
    let scale = b.add(transc_ir::op::Map { body: f.finish(s) }, &[largest])?;
    let q = b.add(Quantize { to: DType::I8 }, &[x, scale])?;
    b.add(Dequantize {}, &[q, scale])
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
    fn at(self, input: usize, output: usize) -> usize {
        if self.column == 1 { input * self.outputs + output } else { output * self.inputs + input }
    }

    fn output(self, i: usize) -> usize {
        if self.column == 1 { i % self.outputs } else { i / self.inputs }
    }
}

/// Sets elements to zero by their magnitude; of equals the first ones go.
fn prune(w: &mut [f32], m: Matrix, p: Prune) -> (&'static str, String) {
    let smallest = |scores: Vec<f32>, count: usize| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        order.truncate(count);
        order
    };
    match p {
        Prune::Blocks(share) => {
            let blocks = m.outputs.div_ceil(4);
            let columns = |i: usize| i % blocks * 4..m.outputs.min(i % blocks * 4 + 4);
            let scores: Vec<f32> =
                (0..m.inputs * blocks).map(|i| columns(i).map(|o| w[m.at(i / blocks, o)].abs()).sum()).collect();
            let count = (share * scores.len() as f64).round() as usize;
            for i in smallest(scores, count) {
                columns(i).for_each(|o| w[m.at(i / blocks, o)] = 0.0);
            }
            ("prune-4x1", format!("{:.0} % of the blocks", share * 100.0))
        }
        Prune::TwoOfFour => {
            for output in 0..m.outputs {
                for start in (0..m.inputs).step_by(4) {
                    let group: Vec<usize> = (start..m.inputs.min(start + 4)).map(|k| m.at(k, output)).collect();
                    let drop = smallest(group.iter().map(|i| w[*i].abs()).collect(), group.len() / 2);
                    drop.into_iter().for_each(|i| w[group[i]] = 0.0);
                }
            }
            ("prune-2:4", "two of four inputs".into())
        }
        Prune::Unstructured(share) => {
            let count = (share * w.len() as f64).round() as usize;
            for i in smallest(w.iter().map(|v| v.abs()).collect(), count) {
                w[i] = 0.0;
            }
            ("prune-unstructured", format!("{:.0} % of the weights", share * 100.0))
        }
    }
}

/// Symmetric codes with a scale per output.
fn codes(w: &[f32], m: Matrix) -> (Vec<i8>, Vec<f32>) {
    let mut scales = vec![0.0f32; m.outputs];
    for (i, v) in w.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let s = &mut scales[m.output(i)];
        *s = s.max(v.abs() / MAX_CODE);
    }
    scales.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = 1.0);
    let code = |(i, v): (usize, &f32)| (v / scales[m.output(i)]).round_ties_even().clamp(-MAX_CODE, MAX_CODE) as i8;
    (w.iter().enumerate().map(code).collect(), scales)
}

/// `|a - b| / |a|` in the mean square.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v).powi(2);
    let (difference, size): (f64, f64) = a.iter().zip(b).fold((0.0, 0.0), |(d, s), (x, y)| (d + square(x - y), s + square(*x)));
    if size > 0.0 { (difference / size).sqrt() } else { 0.0 }
}

fn constant(b: &mut Builder<'_>, name: &str, t: Tensor) -> Result<Value, TypeError> {
    let ty: Vec<Dim> = t.dims.iter().map(|d| Dim::from(*d)).collect();
    let data = t.to_const().ok_or_else(|| TypeError::dims("constant", format!("{ty:?} does not fit its elements")))?;
    b.constant(name, data)
}
