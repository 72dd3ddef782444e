//! Attention as a recurrence, and the short convolution in front of it.

use transc_ir::op;
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, limit, too_symbolic, unsupported};
use super::attention::{join_heads, split_heads};
use super::{LAST, OpRow, row};
use crate::activations::scaled_silu;

pub(super) static ROWS: &[OpRow] =
    &[row("CausalConvWithState", 27..=LAST, causal_conv), row("LinearAttention", 27..=LAST, linear_attention)];

/// Longest sequence that is unrolled.
const MAX_STEPS: i64 = 512;

/// A convolution per channel over the past and the new elements; the last `k - 1` of them are the next past.
fn causal_conv(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    let (dx, dw) = (cx.dims(x), cx.dims(w));
    let ([_, channels, _], [_, _, kernel]) = (dx.as_slice(), dw.as_slice()) else {
        return invalid(format!("needs a sequence per channel and a filter each, got {} and {}", cx.ty(x), cx.ty(w)));
    };
    let (Some(groups), Some(k)) = (channels.as_usize(), kernel.as_const().filter(|k| *k > 0)) else {
        return unsupported(format!("has {channels} channels and filters of {kernel}"));
    };
    let before = Dim::from(k - 1);
    let padded = match cx.opt(3) {
        Some(past) => cx.concat(&[past, x], 2)?,
        None => {
            let zero = Dim::from(0);
            cx.pad(x, &[zero.clone(), zero.clone(), before.clone()], &[zero.clone(), zero.clone(), zero], 0.0)?
        }
    };
    let conv = op::Conv { strides: vec![1], dilations: vec![1], lo: vec![0], hi: vec![0], groups };
    let mut y = cx.add(conv, &[padded, w])?;
    if let Some(bias) = cx.opt(2) {
        let bias = cx.per_channel(bias, 3)?;
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    y = match cx.text("activation", "none")?.as_str() {
        "none" => y,
        "silu" | "swish" => cx.map1(y, |b, d, x| scaled_silu(b, d, x, 1.0))?,
        other => return invalid(format!("has the unknown activation `{other}`")),
    };
    let start = &cx.dims(padded)[2] - &before;
    let present = cx.slice(padded, 2, &start, &before, 1)?;
    Ok(vec![y, present])
}

/// `S = exp(g) S + k (beta (v - S' k))'`, `o = scale S' q` step by step (Yang et al. 2024), unrolled over a sequence of known length.
fn linear_attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (h, g) = (cx.int("q_num_heads", 0), cx.int("kv_num_heads", 0));
    let (gated, delta) = match cx.text("update_rule", "gated_delta")?.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return invalid(format!("has the unknown update rule `{other}`")),
    };
    if h <= 0 || g <= 0 || h % g != 0 {
        return invalid(format!("has {h} query heads for {g} key heads; they must divide evenly"));
    }
    let out_type = cx.dtype(cx.x(0)?);
    let mut heads = Vec::new();
    for (i, n) in [h, g, g].into_iter().enumerate() {
        let v = cx.x(i)?;
        let v = split_heads(cx, v, n)?;
        heads.push(cx.cast(DType::F32, v)?);
    }
    let [q, k, v] = [heads[0], heads[1], heads[2]];
    let (dq, dv) = (cx.dims(q), cx.dims(v));
    let (batch, width) = (dq[0].clone(), dq[3].clone());
    let Some(steps) = dq[2].as_const() else { return too_symbolic("runs over a sequence of symbolic length") };
    if steps > MAX_STEPS {
        return limit(format!("runs over {steps} steps, the limit of unrolling is {MAX_STEPS}"));
    }
    // Per head, or per head and key feature.
    let per_head = |cx: &mut OpCx<'_, '_>, x: Value| -> Result<Value> {
        let last = cx.dims(x).last().and_then(Dim::as_const).unwrap_or(0);
        let n = if last == 1 { 1 } else { g };
        let x = split_heads(cx, x, n)?;
        cx.cast(DType::F32, x)
    };
    let decay = match cx.opt(4).filter(|_| gated) {
        Some(d) => Some(per_head(cx, d)?),
        None if gated => return invalid("lacks the decay that its update rule needs"),
        None => None,
    };
    let beta = match cx.opt(5).filter(|_| delta) {
        Some(b) => Some(per_head(cx, b)?),
        None if delta => return invalid("lacks the step size that its update rule needs"),
        None => None,
    };
    let state_dims = [batch.clone(), Dim::from(g), width.clone(), dv[3].clone()];
    let (mut state, state_type) = match cx.opt(3) {
        Some(s) => (cx.cast(DType::F32, s)?, cx.dtype(s)),
        None => (cx.full(DType::F32, 0.0, &state_dims)?, out_type),
    };
    let scale = match (cx.real("scale", 0.0), width.as_const()) {
        (0.0, Some(w)) if w > 0 => 1.0 / (w as f64).sqrt(),
        (0.0, _) => return too_symbolic("has heads of symbolic size and no scale"),
        (s, _) => s,
    };
    let one = Dim::from(1);
    let mut outputs = Vec::new();
    for t in 0..steps {
        let at = |cx: &mut OpCx<'_, '_>, x: Value| cx.slice(x, 2, &Dim::from(t), &one, 1);
        // Key and decay stand upright: `[B, G, D, 1]`.
        let key = at(cx, k)?;
        let key = cx.move_axis(key, 3, 2)?;
        if let Some(d) = decay {
            let d = at(cx, d)?;
            let d = cx.move_axis(d, 3, 2)?;
            let d = cx.un(UnOp::Exp, d)?;
            state = cx.bin(BinOp::Mul, state, d)?;
        }
        let mut value = at(cx, v)?;
        if let Some(b) = beta {
            let row = cx.move_axis(key, 3, 2)?;
            let known = cx.mat_mul(row, state, DType::F32)?;
            let missing = cx.bin(BinOp::Sub, value, known)?;
            let b = at(cx, b)?;
            value = cx.bin(BinOp::Mul, b, missing)?;
        }
        let write = cx.bin(BinOp::Mul, key, value)?;
        state = cx.bin(BinOp::Add, state, write)?;
        // The query heads of one key head read its state together.
        let query = at(cx, q)?;
        let query = cx.reshape(query, vec![batch.clone(), Dim::from(g), Dim::from(h / g), width.clone()])?;
        let read = cx.mat_mul(query, state, DType::F32)?;
        outputs.push(cx.reshape(read, vec![batch.clone(), Dim::from(h), one.clone(), dv[3].clone()])?);
    }
    if outputs.is_empty() {
        return unsupported("runs over an empty sequence");
    }
    let y = cx.concat(&outputs, 2)?;
    let y = cx.bin_num(BinOp::Mul, y, scale)?;
    let y = join_heads(cx, y)?;
    Ok(vec![cx.cast(out_type, y)?, cx.cast(state_type, state)?])
}
