//! Operators that ONNX Runtime's transformer optimiser writes (domain `com.microsoft`).

use transc_ir::scalar::{BinOp, BodyBuilder, Inst, Ref, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, data_dependent, invalid, unsupported};
use super::attention::{Heads, join_heads, rotate, split_heads};
use super::{OpRow, contrib, linalg, norm, quant};
use crate::activations::{gelu_erf, gelu_tanh, scaled_silu};

pub(super) static ROWS: &[OpRow] = &[
    contrib("Attention", attention),
    contrib("BiasAdd", |cx| {
        let (x, bias, skip) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
        let y = cx.bin(BinOp::Add, x, bias)?;
        Ok(vec![cx.bin(BinOp::Add, y, skip)?])
    }),
    contrib("BiasGelu", |cx| with_bias(cx, gelu_erf)),
    contrib("BiasSoftmax", bias_softmax),
    contrib("BiasSplitGelu", bias_split_gelu),
    contrib("EmbedLayerNormalization", embed_layer_norm),
    contrib("FastGelu", |cx| with_bias(cx, gelu_tanh)),
    contrib("Gelu", |cx| with_bias(cx, gelu_erf)),
    contrib("MultiHeadAttention", multi_head_attention),
    contrib("QAttention", q_attention),
    contrib("QEmbedLayerNormalization", q_embed_layer_norm),
    contrib("QuickGelu", |cx| {
        let alpha = cx.real("alpha", 1.702);
        with_bias(cx, |b, d, x| scaled_silu(b, d, x, alpha))
    }),
    contrib("RelativePositionBias", relative_position_bias),
    contrib("RotaryEmbedding", rotary),
];

fn with_bias(cx: &mut OpCx<'_, '_>, f: impl FnOnce(&mut BodyBuilder, DType, Ref) -> Ref) -> Result<Vec<Value>> {
    let mut x = cx.x(0)?;
    if let Some(bias) = cx.opt(1) {
        x = cx.bin(BinOp::Add, x, bias)?;
    }
    Ok(vec![cx.map1(x, f)?])
}

pub(super) fn optional_scale(cx: &OpCx<'_, '_>) -> Option<f64> {
    cx.attr("scale").map(|a| f64::from(a.f())).filter(|s| *s != 0.0)
}

/// Refuses operands that change what the operator computes.
pub(super) fn refuse_operands(cx: &OpCx<'_, '_>, operands: &[(usize, &str)]) -> Result<()> {
    match operands.iter().find(|(i, _)| cx.opt(*i).is_some()) {
        Some((_, what)) => unsupported(*what),
        None => Ok(()),
    }
}

/// Masks of these operators: `[B, Sk]` of 0 and 1, `[B, Sq, Sk]`, `[B, 1, M, M]` for up to `M` tokens, or bounds of the keys ([`key_bounds`]). The
/// sizes are those of the batch, the queries and the keys.
pub(super) fn key_mask(cx: &mut OpCx<'_, '_>, mut mask: Value, [batch, queries, keys]: [&Dim; 3]) -> Result<Value> {
    let dims = cx.dims(mask);
    let one = Dim::from(1);
    let shape = match dims.as_slice() {
        [b, k] => vec![b.clone(), one.clone(), one, k.clone()],
        [b, q, k] => vec![b.clone(), one, q.clone(), k.clone()],
        [_, _, rows, _] => {
            // The queries are the last tokens.
            if !cx.assume_not_negative(&(rows - keys), "the mask is large enough") {
                return invalid(format!("has the mask {} for {keys} keys", cx.ty(mask)));
            }
            mask = cx.slice(mask, 2, &(keys - queries), queries, 1)?;
            mask = cx.slice(mask, 3, &Dim::from(0), keys, 1)?;
            cx.dims(mask)
        }
        [n] => return bounded(cx, mask, n, [batch, keys]),
        _ => return unsupported(format!("has the mask {}", cx.ty(mask))),
    };
    let m = cx.reshape(mask, shape)?;
    cx.cast(DType::Bool, m)
}

/// The keys inside the bounds of their row of a batch: `[B]` ends, `[2 B]` ends, then starts, or `[3 B + 2]` ends, then sums of lengths. Which of them it is
/// may be seen only when the model runs.
fn bounded(cx: &mut OpCx<'_, '_>, mask: Value, n: &Dim, [batch, keys]: [&Dim; 2]) -> Result<Value> {
    if !cx.assume_not_negative(&(n - batch), "the mask has a number for each row of the batch") {
        return invalid(format!("has the mask {} for {batch} rows", cx.ty(mask)));
    }
    let one = Dim::from(1);
    let column = vec![batch.clone(), one.clone(), one.clone(), one];
    let bounds = cx.cast(DType::I64, mask)?;
    let at = cx.iota(keys, 3, 4)?;
    let ends = cx.slice(bounds, 0, &Dim::from(0), batch, 1)?;
    let ends = cx.reshape(ends, column.clone())?;
    let seen = cx.bin(BinOp::Lt, at, ends)?;
    if n == batch {
        return Ok(seen);
    }
    let row = cx.iota(batch, 0, 1)?;
    let place = cx.map1(row, |b, d, row| {
        let [n, batch] = [n, batch].map(|d| b.push(Inst::Dim(d.clone())));
        let one = b.num(d, 1.0);
        let (last, place) = (b.bin(BinOp::Sub, n, one), b.bin(BinOp::Add, row, batch));
        b.bin(BinOp::Min, place, last)
    })?;
    let starts = cx.gather(bounds, place, 0)?;
    let starts = cx.reshape(starts, column)?;
    let behind = cx.map2(at, starts, |b, _, at, start| {
        let [n, both] = [n, &(batch + batch)].map(|d| b.push(Inst::Dim(d.clone())));
        let (behind, no_start) = (b.bin(BinOp::Ge, at, start), b.bin(BinOp::Ne, n, both));
        b.bin(BinOp::Or, behind, no_start)
    })?;
    cx.bin(BinOp::And, seen, behind)
}

/// What `Attention` and `MultiHeadAttention` add to the logits: what their mask hides is lowered by a number, so that a row of which all is hidden still has
/// weights. The sizes are as for [`key_mask`].
fn lowered(cx: &mut OpCx<'_, '_>, (mask, bias): (usize, usize), sizes: [&Dim; 3], dtype: DType) -> Result<Option<Value>> {
    let bias = cx.opt(bias);
    let Some(mask) = cx.opt(mask) else { return Ok(bias) };
    let seen = key_mask(cx, mask, sizes)?;
    let (zero, low) = (cx.num(dtype, 0.0)?, cx.num(dtype, cx.real("mask_filter_value", -10_000.0))?);
    let mask = cx.select(seen, zero, low)?;
    Ok(Some(match bias {
        Some(bias) => cx.bin(BinOp::Add, mask, bias)?,
        None => mask,
    }))
}

/// Operands: input, weights of the packed projection, bias, mask, past, additive bias.
fn attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    refuse_operands(cx, &[(6, "shares the buffer of its past")])?;
    let packed = cx.mat_mul(x, w, cx.dtype(x))?;
    packed_attention(cx, packed, [3, 4, 5])
}

/// Operands: codes of the input and of the weights of the packed projection, bias, their scales, mask, their zero points, past.
fn q_attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w, x_scale, w_scale) = (cx.x(0)?, cx.x(1)?, cx.x(3)?, cx.x(4)?);
    for scale in [x_scale, w_scale] {
        quant::check_scale(cx, scale)?;
    }
    let packed = linalg::scaled_product(cx, (x, x_scale, cx.opt(6)), (w, w_scale, cx.opt(7)), None)?;
    packed_attention(cx, packed, [5, 8, usize::MAX])
}

/// Attention of a packed projection without its bias, which is operand 2; then the places of mask, past and additive bias.
fn packed_attention(cx: &mut OpCx<'_, '_>, mut packed: Value, [mask, past_at, bias_at]: [usize; 3]) -> Result<Vec<Value>> {
    if cx.flag("do_rotary") {
        return unsupported("rotates inside");
    }
    let heads = cx.int("num_heads", 0);
    if let Some(bias) = cx.opt(2) {
        packed = cx.bin(BinOp::Add, packed, bias)?;
    }
    let sizes = match cx.int_list("qkv_hidden_sizes").filter(|s| !s.is_empty()) {
        Some(s) => s.into_iter().map(Dim::from).collect::<Vec<_>>(),
        None => vec![cx.dims(packed)[2].floor_div(&Dim::from(3)); 3],
    };
    let [sq, sk, sv] = sizes.as_slice() else { return invalid("needs three hidden sizes") };
    let zero = Dim::from(0);
    let (at_k, at_v) = (sq.clone(), sq + sk);
    let mut parts = Vec::new();
    for (start, size) in [(&zero, sq), (&at_k, sk), (&at_v, sv)] {
        let p = cx.slice(packed, 2, start, size, 1)?;
        parts.push(split_heads(cx, p, heads)?);
    }
    let (q, mut k, mut v) = (parts[0], parts[1], parts[2]);
    let mut past = Dim::from(0);
    if let Some(p) = cx.opt(past_at) {
        past = cx.dims(p).get(3).cloned().unwrap_or(past);
        (k, v) = (joined_past(cx, p, 0, k)?, joined_past(cx, p, 1, v)?);
    }
    let [batch, keys] = [0, 2].map(|a| cx.dims(k)[a].clone());
    let queries = cx.dims(q)[2].clone();
    let mask = lowered(cx, (mask, bias_at), [&batch, &queries, &keys], cx.dtype(q))?;
    let causal = cx.flag("unidirectional").then_some(past);
    let y = Heads { q, k, v, mask, scale: optional_scale(cx), softcap: 0.0, causal, clear: true }.build(cx)?;
    let y = join_heads(cx, y)?;
    if !cx.wants(1) {
        return Ok(vec![y]);
    }
    let mut present = Vec::new();
    for p in [k, v] {
        let mut dims = cx.dims(p);
        dims.insert(0, Dim::from(1));
        present.push(cx.reshape(p, dims)?);
    }
    Ok(vec![y, cx.concat(&present, 0)?])
}

/// The parts `[B, S, H * D]` of `[B, S, H, n, D]`.
fn unpacked(cx: &mut OpCx<'_, '_>, x: Value, n: i64) -> Result<Vec<Value>> {
    let dims = cx.dims(x);
    let [b, s, h, parts, d] = dims.as_slice() else { return invalid(format!("has the packed operand {}", cx.ty(x))) };
    if !parts.is(n) {
        return invalid(format!("has the packed operand {}, needs {n} parts", cx.ty(x)));
    }
    let mut out = Vec::new();
    for i in 0..n {
        let part = cx.slice(x, 3, &Dim::from(i), &Dim::from(1), 1)?;
        out.push(cx.reshape(part, vec![b.clone(), s.clone(), h * d])?);
    }
    Ok(out)
}

/// The half of a packed past `[2, B, H, P, D]`, with new keys or values behind it.
fn joined_past(cx: &mut OpCx<'_, '_>, past: Value, half: i64, new: Value) -> Result<Value> {
    let p = cx.slice(past, 0, &Dim::from(half), &Dim::from(1), 1)?;
    let mut dims = cx.dims(p);
    dims.remove(0);
    let p = cx.reshape(p, dims)?;
    cx.concat(&[p, new], 2)
}

/// Operands: query, key, value, bias, mask, additive bias, past key, past value.
fn multi_head_attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let heads = cx.int("num_heads", 0);
    refuse_operands(cx, &[(8, "shares the buffer of its past"), (9, "reads its past in the order of beams")])?;
    if cx.wants(3) {
        return unsupported("gives its logits");
    }
    let q = cx.x(0)?;
    let mut parts = match (cx.opt(1), cx.opt(2)) {
        (Some(k), Some(v)) => [q, k, v],
        // `[B, S, H, 2, D]`
        (Some(kv), None) => {
            let kv = unpacked(cx, kv, 2)?;
            [q, kv[0], kv[1]]
        }
        // `[B, S, H, 3, D]`
        _ => {
            let all = unpacked(cx, q, 3)?;
            [all[0], all[1], all[2]]
        }
    };
    if cx.rank(parts[0]) != 3 {
        return invalid(format!("has the queries {}", cx.ty(parts[0])));
    }
    if let Some(bias) = cx.opt(3) {
        let mut start = Dim::from(0);
        for p in &mut parts {
            if cx.rank(*p) != 3 {
                return unsupported("adds a bias to keys that are already split into heads");
            }
            let n = cx.dims(*p)[2].clone();
            let b = cx.slice(bias, 0, &start, &n, 1)?;
            *p = cx.bin(BinOp::Add, *p, b)?;
            start = &start + &n;
        }
    }
    for p in &mut parts {
        // Keys of cross-attention may come split.
        if cx.rank(*p) == 3 {
            *p = split_heads(cx, *p, heads)?;
        }
    }
    let [q, mut k, mut v] = parts;
    let mut past = Dim::from(0);
    if let (Some(pk), Some(pv)) = (cx.opt(6), cx.opt(7)) {
        past = cx.dims(pk).get(2).cloned().unwrap_or(past);
        (k, v) = (cx.concat(&[pk, k], 2)?, cx.concat(&[pv, v], 2)?);
    }
    let keys = cx.dims(k).get(2).cloned().unwrap_or_else(|| Dim::from(0));
    let [batch, queries] = [0, 2].map(|a| cx.dims(q)[a].clone());
    let mask = lowered(cx, (4, 5), [&batch, &queries, &keys], cx.dtype(q))?;
    let causal = cx.flag("unidirectional").then_some(past);
    let y = Heads { q, k, v, mask, scale: optional_scale(cx), softcap: 0.0, causal, clear: true }.build(cx)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// Operands: x, position ids, cosines, sines.
fn rotary(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, ids, mut cos, mut sin) = (cx.x(0)?, cx.x(1)?, cx.x(2)?, cx.x(3)?);
    let dims = cx.dims(x);
    let sequence = match dims.as_slice() {
        [_, s, _] => s.clone(),
        [_, _, s, _] => s.clone(),
        _ => return invalid(format!("cannot rotate {}", cx.ty(x))),
    };
    let ids = if cx.rank(ids) == 1 {
        // One number: the position of the first token.
        let first = cx.reshape(ids, vec![Dim::from(1), Dim::from(1)])?;
        let at = cx.iota(&sequence, 1, 2)?;
        cx.bin(BinOp::Add, at, first)?
    } else {
        ids
    };
    (cos, sin) = (cx.gather(cos, ids, 0)?, cx.gather(sin, ids, 0)?);
    let interleaved = cx.flag("interleaved");
    if dims.len() == 4 {
        return Ok(vec![rotate(cx, x, cos, sin, interleaved, 1)?]);
    }
    let half = cx.dims(cos).last().cloned().unwrap_or_else(|| Dim::from(0));
    let heads = match cx.int("num_heads", 0) {
        0 => dims[2].exact_div(&(&half + &half)),
        n => Some(Dim::from(n)),
    };
    let size = heads.as_ref().and_then(|h| dims[2].exact_div(h));
    let (Some(heads), Some(size)) = (heads, size) else { return invalid(format!("cannot split {} into heads", cx.ty(x))) };
    let y = cx.reshape(x, vec![dims[0].clone(), dims[1].clone(), heads, size])?;
    let y = rotate(cx, y, cos, sin, interleaved, 2)?;
    Ok(vec![cx.reshape(y, dims)?])
}

/// The softmax of a sum, over all axes from the given one on.
fn bias_softmax(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, bias) = (cx.x(0)?, cx.x(1)?);
    let axis = cx.axis(cx.int("axis", 1), cx.rank(x))?;
    if axis + 1 != cx.rank(x) {
        return unsupported("runs over several axes at once");
    }
    let y = cx.bin(BinOp::Add, x, bias)?;
    Ok(vec![cx.softmax(y, axis)?])
}

/// The first half of the last axis by the activation of the second.
fn bias_split_gelu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, bias) = (cx.x(0)?, cx.x(1)?);
    let x = cx.bin(BinOp::Add, x, bias)?;
    let axis = cx.axis(-1, cx.rank(x))?;
    let Some(half) = cx.dims(x)[axis].exact_div(&Dim::from(2)) else { return invalid(format!("cannot halve {}", cx.ty(x))) };
    let (left, right) = (cx.slice(x, axis, &Dim::from(0), &half, 1)?, cx.slice(x, axis, &half, &half, 1)?);
    let gate = cx.map1(right, gelu_erf)?;
    Ok(vec![cx.bin(BinOp::Mul, left, gate)?])
}

/// Operands: a table of biases by bucket, numbers of queries and of keys. How far a key stands from a query says its bucket: near ones have their own, those
/// further off share one by the logarithm of the distance (Raffel et al. 2020).
fn relative_position_bias(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (table, queries, keys) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let (Some(queries), Some(keys)) = (cx.known_scalar(queries)?, cx.known_scalar(keys)?) else {
        return data_dependent("the number of queries or keys");
    };
    let (both, max) = (cx.flag("is_bidirectional"), cx.int("max_distance", 128));
    let known: Option<Vec<i64>> = cx.dims(table).iter().map(Dim::as_const).collect();
    let Some(&[buckets, heads]) = known.as_deref() else { return invalid(format!("has the table {}", cx.ty(table))) };
    // Keys behind a query have the other half of the buckets, or share the first.
    let side = if both { buckets / 2 } else { buckets };
    let near = side / 2;
    if near < 1 || max <= near {
        return invalid(format!("has {buckets} buckets for distances up to {max}"));
    }
    let (i, j) = (cx.iota(&queries, 0, 2)?, cx.iota(&keys, 1, 2)?);
    let bucket = cx.map2(i, j, |b, d, i, j| {
        let ahead = b.bin(BinOp::Sub, j, i);
        let [zero, near_by, last, other] = [0, near, side - 1, side].map(|n| b.num(d, n as f64));
        let distance = if both {
            b.un(UnOp::Abs, ahead)
        } else {
            let back = b.un(UnOp::Neg, ahead);
            b.bin(BinOp::Max, back, zero)
        };
        let reals = [near as f64, (max as f64 / near as f64).ln(), (side - near) as f64];
        let [first, range, shared] = reals.map(|n| b.num(DType::F32, n));
        let far = b.bin(BinOp::Max, distance, near_by);
        let far = b.cast(DType::F32, far);
        let far = b.bin(BinOp::Div, far, first);
        let far = b.un(UnOp::Log, far);
        let far = b.bin(BinOp::Div, far, range);
        let far = b.bin(BinOp::Mul, far, shared);
        let far = b.cast(d, far);
        let far = b.bin(BinOp::Add, far, near_by);
        let far = b.bin(BinOp::Min, far, last);
        let own = b.bin(BinOp::Lt, distance, near_by);
        let bucket = b.select(own, distance, far);
        if !both {
            return bucket;
        }
        let (behind, moved) = (b.bin(BinOp::Gt, ahead, zero), b.bin(BinOp::Add, bucket, other));
        b.select(behind, moved, bucket)
    })?;
    // The table's elements stand head by head, whatever its dims say.
    let table = cx.reshape(table, vec![Dim::from(heads), Dim::from(buckets)])?;
    let bias = cx.gather(table, bucket, 1)?;
    Ok(vec![cx.reshape(bias, vec![Dim::from(1), Dim::from(heads), queries, keys])?])
}

/// Operands: ids, segment ids, word, position and segment tables, scale, bias, mask, position ids.
fn embed_layer_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (words, positions) = (cx.x(2)?, cx.x(3)?);
    embedded(cx, [Some(words), Some(positions), cx.opt(4), cx.opt(5), cx.opt(6)], cx.opt(8))
}

/// Operands: ids, segment ids, codes of the tables, of the scale and of the bias, mask, then the scales and the zero points of those five.
fn q_embed_layer_norm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut tables = [None; 5];
    for (i, t) in tables.iter_mut().enumerate() {
        let (Some(codes), Some(scale)) = (cx.opt(2 + i), cx.opt(8 + i)) else { continue };
        quant::check_scale(cx, scale)?;
        *t = Some(quant::decoded(cx, codes, scale, cx.opt(13 + i))?);
    }
    embedded(cx, tables, None)
}

/// The normalised sum of embeddings by word, position and segment tables, scale and bias.
fn embedded(cx: &mut OpCx<'_, '_>, tables: [Option<Value>; 5], places: Option<Value>) -> Result<Vec<Value>> {
    let [Some(words), Some(positions), segments, scale, bias] = tables else { return invalid("lacks a table") };
    let ids = cx.x(0)?;
    let mut sum = cx.gather(words, ids, 0)?;
    let place = match places {
        Some(p) => cx.gather(positions, p, 0)?,
        None => {
            let (rows, n) = (cx.dims(positions)[0].clone(), cx.dims(ids)[1].clone());
            if !cx.assume_not_negative(&(&rows - &n), "the table of positions is long enough") {
                return invalid("has a table of positions that is too short");
            }
            cx.slice(positions, 0, &Dim::from(0), &n, 1)?
        }
    };
    sum = cx.bin(BinOp::Add, sum, place)?;
    if let (Some(of), Some(table)) = (cx.opt(1), segments) {
        let s = cx.gather(table, of, 0)?;
        sum = cx.bin(BinOp::Add, sum, s)?;
    }
    let y = norm::layer_norm(cx, sum, scale, bias, 2, cx.real("epsilon", 1e-12))?;
    let lengths = if cx.wants(1) {
        match cx.opt(7) {
            Some(m) => {
                let m = cx.cast(DType::I32, m)?;
                cx.reduce(transc_ir::op::ReduceKind::Sum, m, &[1], false)?
            }
            // Without a mask there are no lengths; the operator gives zeros.
            None => {
                let batch = cx.dims(ids)[0].clone();
                cx.full(DType::I32, 0.0, &[batch])?
            }
        }
    } else {
        y
    };
    Ok(vec![y, lengths, sum])
}
