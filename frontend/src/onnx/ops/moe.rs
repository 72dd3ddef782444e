//! Mixtures of experts (domain `com.microsoft`). Every expert sees every token; those that a token is not sent to count with weight 0.

use transc_ir::op::{self, Contract, ReduceKind, ScatterKind};
use transc_ir::scalar::{BinOp, BodyBuilder, Ref};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::contrib::refuse_operands;
use super::{OpRow, contrib, nbits, quant};
use crate::activations::{gelu_tanh, scaled_silu};

pub(super) static ROWS: &[OpRow] = &[contrib("MoE", moe), contrib("QMoE", q_moe)];

/// One layer of all experts: weights `[E, N, K]` and a bias `[E, N]`.
type Layer = (Value, Option<Value>);

/// Operands: input, logits of the router, then weights and bias of up to three layers.
fn moe(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let layer = |i: usize| cx.opt(i).map(|w| (w, cx.opt(i + 1)));
    let (Some(first), Some(second)) = (layer(2), layer(4)) else { return invalid("lacks weights") };
    mixture(cx, [first, second], layer(6), None)
}

/// Operands: input, logits of the router, then codes, scales and bias of up to three layers, their zero points, and weights of the experts.
fn q_moe(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let kind = cx.text("quant_type", "int")?;
    if kind != "int" || cx.int("weights_prepacked", 0) > 0 {
        return unsupported(format!("has weights of the kind `{kind}`, or in an order of one device"));
    }
    refuse_operands(cx, &[15, 16, 17, 18, 19].map(|i| (i, "scales its activations")))?;
    let (first, second) = (decoded(cx, 0)?, decoded(cx, 1)?);
    let third = if cx.opt(8).is_some() { Some(decoded(cx, 2)?) } else { None };
    mixture(cx, [first, second], third, cx.opt(14))
}

/// Layer `i` from its codes.
fn decoded(cx: &mut OpCx<'_, '_>, i: usize) -> Result<Layer> {
    let at = 2 + 3 * i;
    let (packed, scale) = (cx.x(at)?, cx.x(at + 1)?);
    let bits = cx.int(&format!("fc{}_expert_weight_bits", i + 1), cx.int("expert_weight_bits", 4));
    let per_byte = match bits {
        4 => 2,
        8 => 1,
        _ => return unsupported(format!("packs its weights in {bits} bits")),
    };
    let known: Option<Vec<usize>> = cx.dims(packed).iter().map(Dim::as_usize).collect();
    let Some(&[experts, rows, bytes]) = known.as_deref() else { return invalid(format!("has the codes {}", cx.ty(packed))) };
    let codes = nbits::unpacked(cx, packed, bytes.saturating_mul(per_byte), bits)?;
    quant::check_block_scale(cx, scale)?;
    let block = cx.int("block_size", 0);
    let blocks = cx.dims(scale).get(2).map(Dim::as_usize).unwrap_or(Some(1));
    let Some(blocks) = blocks.filter(|b| block > 0 || *b == 1) else {
        return invalid(format!("has the scales {} for blocks of {block}", cx.ty(scale)));
    };
    let zero = match cx.opt(11 + i) {
        Some(z) if block > 0 => nbits::unpacked(cx, z, blocks, bits)?,
        Some(z) => nbits::unpacked(cx, z, rows, bits)?,
        None => cx.full(DType::U8, f64::from(1 << (bits - 1)), &[experts, rows, blocks].map(Dim::from))?,
    };
    let per_block = [experts, rows, blocks].map(Dim::from);
    let mut operands = vec![codes];
    for p in [scale, zero] {
        let p = cx.reshape(p, per_block.clone())?;
        operands.push(if block > 0 { quant::blockwise(cx, codes, p, 2, block)? } else { p });
    }
    let w = cx.add(op::Dequantize {}, &operands)?;
    Ok((w, cx.opt(at + 2)))
}

/// The weighted sum of all experts.
fn mixture(cx: &mut OpCx<'_, '_>, [first, second]: [Layer; 2], third: Option<Layer>, gates: Option<Value>) -> Result<Vec<Value>> {
    if cx.flag("use_sparse_mixer") || cx.flag("swiglu_limit_after_activation") {
        return unsupported("mixes sparsely, or limits activations");
    }
    let (x, logits) = (cx.x(0)?, cx.x(1)?);
    let dims = cx.dims(x);
    let Some((width, lead)) = dims.split_last() else { return invalid("needs rows of tokens") };
    let tokens = lead.iter().product::<Dim>();
    let x = cx.reshape(x, vec![tokens.clone(), width.clone()])?;
    let gate = gate(cx, logits, gates)?;
    cx.equal(&cx.dims(gate)[0].clone(), &tokens)?;
    let mut y = all_experts(cx, x, first)?;
    let third = match third {
        Some(layer) => Some(all_experts(cx, x, layer)?),
        None => None,
    };
    y = activated(cx, y, third)?;
    let wide = cx.dims(gate);
    let upright = cx.reshape(gate, vec![wide[0].clone(), wide[1].clone(), Dim::from(1)])?;
    y = cx.bin(BinOp::Mul, y, upright)?;
    // All experts' hidden units are added up in one product.
    let hidden = cx.dims(y);
    let units = &hidden[1] * &hidden[2];
    let y = cx.reshape(y, vec![tokens, units.clone()])?;
    let w = cx.transpose(second.0, &[0, 2, 1])?;
    let outputs = cx.dims(w)[2].clone();
    let w = cx.reshape(w, vec![units, outputs])?;
    let d = cx.dtype(y);
    let mut y = cx.mat_mul(y, w, d)?;
    if let Some(bias) = second.1 {
        let bias = cx.mat_mul(gate, bias, d)?;
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    Ok(vec![cx.reshape(y, dims)?])
}

/// Weights of the experts, `[T, E]`: of the softmax of the router's logits, or of given ones, those of the experts with the largest logits.
fn gate(cx: &mut OpCx<'_, '_>, logits: Value, given: Option<Value>) -> Result<Value> {
    let shares = cx.softmax(logits, 1)?;
    let k = Dim::from(cx.int("k", 1));
    let top = cx.add_multi(op::TopK { k, axis: 1, largest: true }, &[shares])?;
    let [mut weights, experts] = [top[0], top[1]];
    if let Some(given) = given {
        weights = cx.add(op::GatherElements { axis: 1 }, &[given, experts])?;
    }
    if cx.flag("normalize_routing_weights") {
        let sum = cx.reduce(ReduceKind::Sum, weights, &[1], true)?;
        weights = cx.bin(BinOp::Div, weights, sum)?;
    }
    let none = cx.full(cx.dtype(weights), 0.0, &cx.dims(logits))?;
    cx.add(op::ScatterElements { axis: 1, kind: ScatterKind::Set }, &[none, experts, weights])
}

/// One layer of all experts of tokens `[T, K]`: `[T, E, N]`.
fn all_experts(cx: &mut OpCx<'_, '_>, x: Value, (w, bias): Layer) -> Result<Value> {
    let dims = cx.dims(w);
    let [experts, rows, width] = dims.as_slice() else { return invalid(format!("has the weights {}", cx.ty(w))) };
    let w = cx.reshape(w, vec![experts * rows, width.clone()])?;
    let out_dtype = cx.dtype(x);
    let mut y = cx.add(Contract { lhs: vec![0, 1], rhs: vec![2, 1], out: vec![0, 2], out_dtype }, &[x, w])?;
    if let Some(bias) = bias {
        let bias = cx.reshape(bias, vec![experts * rows])?;
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    let tokens = cx.dims(y)[0].clone();
    cx.reshape(y, vec![tokens, experts.clone(), rows.clone()])
}

/// The activation of `[T, E, N]`, gated by a third layer or by every other part of the first.
fn activated(cx: &mut OpCx<'_, '_>, y: Value, third: Option<Value>) -> Result<Value> {
    let name = cx.text("activation_type", "relu")?;
    if name == "swiglu" {
        let [g, l] = match third {
            Some(l) => [y, l],
            None => halves(cx, y)?,
        };
        return swiglu(cx, g, l);
    }
    let a = match name.as_str() {
        "relu" => cx.bin_num(BinOp::Max, y, 0.0)?,
        "gelu" => cx.map1(y, gelu_tanh)?,
        "silu" => cx.map1(y, |b, d, x| scaled_silu(b, d, x, 1.0))?,
        "identity" => y,
        other => return unsupported(format!("has the activation `{other}`")),
    };
    match third {
        Some(l) => cx.bin(BinOp::Mul, a, l),
        None => Ok(a),
    }
}

/// The two halves of the last axis, which alternate or stand one behind the other.
fn halves(cx: &mut OpCx<'_, '_>, y: Value) -> Result<[Value; 2]> {
    let dims = cx.dims(y);
    let two = Dim::from(2);
    let Some(n) = dims[2].exact_div(&two) else { return invalid(format!("has {} gated units, which is odd", dims[2])) };
    let (axis, split) = match cx.int("swiglu_fusion", 0) {
        1 => (3, [n.clone(), two]),
        2 => (2, [two, n.clone()]),
        other => return invalid(format!("has one layer for `swiglu_fusion` {other}")),
    };
    let [a, b] = split;
    let y = cx.reshape(y, vec![dims[0].clone(), dims[1].clone(), a, b])?;
    let half = |cx: &mut OpCx<'_, '_>, i: i64| {
        let part = cx.slice(y, axis, &Dim::from(i), &Dim::from(1), 1)?;
        cx.reshape(part, vec![dims[0].clone(), dims[1].clone(), n.clone()])
    };
    Ok([half(cx, 0)?, half(cx, 1)?])
}

/// `g * sigmoid(alpha * g) * (l + beta)`, both operands clamped.
fn swiglu(cx: &mut OpCx<'_, '_>, g: Value, l: Value) -> Result<Value> {
    let (alpha, beta) = (cx.real("activation_alpha", 1.0), cx.real("activation_beta", 0.0));
    let limit = cx.attr("swiglu_limit").map(|a| f64::from(a.f()));
    let below = |b: &mut BodyBuilder, d: DType, x: Ref| match limit {
        Some(limit) => {
            let limit = b.num(d, limit);
            b.bin(BinOp::Min, x, limit)
        }
        None => x,
    };
    cx.map2(g, l, |b, d, g, l| {
        let (g, mut l) = (below(b, d, g), below(b, d, l));
        if let Some(limit) = limit {
            let lowest = b.num(d, -limit);
            l = b.bin(BinOp::Max, l, lowest);
        }
        let (g, beta) = (scaled_silu(b, d, g, alpha), b.num(d, beta));
        let l = b.bin(BinOp::Add, l, beta);
        b.bin(BinOp::Mul, g, l)
    })
}
