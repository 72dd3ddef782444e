//! Operators that ONNX Runtime's transformer optimiser writes (domain `com.microsoft`).

use transc_ir::scalar::{BinOp, BodyBuilder, Inst, Ref};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
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
    contrib("EmbedLayerNormalization", embed_layer_norm),
    contrib("FastGelu", |cx| with_bias(cx, gelu_tanh)),
    contrib("Gelu", |cx| with_bias(cx, gelu_erf)),
    contrib("GroupQueryAttention", group_query_attention),
    contrib("MultiHeadAttention", multi_head_attention),
    contrib("QAttention", q_attention),
    contrib("QEmbedLayerNormalization", q_embed_layer_norm),
    contrib("QuickGelu", |cx| {
        let alpha = cx.real("alpha", 1.702);
        with_bias(cx, |b, d, x| scaled_silu(b, d, x, alpha))
    }),
    contrib("RotaryEmbedding", rotary),
];

fn with_bias(cx: &mut OpCx<'_, '_>, f: impl FnOnce(&mut BodyBuilder, DType, Ref) -> Ref) -> Result<Vec<Value>> {
    let mut x = cx.x(0)?;
    if let Some(bias) = cx.opt(1) {
        x = cx.bin(BinOp::Add, x, bias)?;
    }
    Ok(vec![cx.map1(x, f)?])
}

fn optional_scale(cx: &OpCx<'_, '_>) -> Option<f64> {
    cx.attr("scale").map(|a| f64::from(a.f())).filter(|s| *s != 0.0)
}

/// Masks of these operators: `[B, Sk]` of 0 and 1, `[B]` of lengths, `[2 B]` of ends, then starts, or `[B, Sq, Sk]`.
fn key_mask(cx: &mut OpCx<'_, '_>, mask: Value, batch: &Dim, keys: &Dim) -> Result<Value> {
    let dims = cx.dims(mask);
    let one = Dim::from(1);
    let shape = match dims.as_slice() {
        [b, k] => vec![b.clone(), one.clone(), one, k.clone()],
        [b, q, k] => vec![b.clone(), one, q.clone(), k.clone()],
        [n] => {
            // Behind the ends there may be starts.
            let both = *n == batch * &Dim::from(2);
            let count = if both { batch } else { n };
            let bounds = cx.cast(DType::I64, mask)?;
            let at = cx.iota(keys, 3, 4)?;
            let column = vec![count.clone(), one.clone(), one.clone(), one];
            let ends = cx.slice(bounds, 0, &Dim::from(0), count, 1)?;
            let ends = cx.reshape(ends, column.clone())?;
            let mut seen = cx.bin(BinOp::Lt, at, ends)?;
            if both {
                let starts = cx.slice(bounds, 0, count, count, 1)?;
                let starts = cx.reshape(starts, column)?;
                let behind = cx.bin(BinOp::Ge, at, starts)?;
                seen = cx.bin(BinOp::And, seen, behind)?;
            }
            return Ok(seen);
        }
        _ => return unsupported(format!("has the mask {}", cx.ty(mask))),
    };
    let m = cx.reshape(mask, shape)?;
    cx.cast(DType::Bool, m)
}

/// What `Attention` and `MultiHeadAttention` add to the logits: what their mask hides is lowered by a number, so that a row of which all is hidden still has
/// weights.
fn lowered(cx: &mut OpCx<'_, '_>, (mask, bias): (usize, usize), logits: [&Dim; 2], dtype: DType) -> Result<Option<Value>> {
    let bias = cx.opt(bias);
    let Some(mask) = cx.opt(mask) else { return Ok(bias) };
    let seen = key_mask(cx, mask, logits[0], logits[1])?;
    let (zero, low) = (cx.num(dtype, 0.0)?, cx.num(dtype, cx.real("mask_filter_value", -10_000.0))?);
    let mask = cx.select(seen, zero, low)?;
    Ok(Some(match bias {
        Some(bias) => cx.bin(BinOp::Add, mask, bias)?,
        None => mask,
    }))
}

/// A boolean mask and an additive bias as one mask.
fn merged(cx: &mut OpCx<'_, '_>, mask: Value, bias: Option<Value>) -> Result<Value> {
    let Some(bias) = bias else { return Ok(mask) };
    let low = cx.num(cx.dtype(bias), f64::NEG_INFINITY)?;
    cx.select(mask, bias, low)
}

/// Operands: input, weights of the packed projection, bias, mask, past, additive bias.
fn attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w) = (cx.x(0)?, cx.x(1)?);
    if cx.opt(6).is_some() {
        return unsupported("shares the buffer of its past");
    }
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
    let mask = lowered(cx, (mask, bias_at), [&batch, &keys], cx.dtype(q))?;
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
    let batch = cx.dims(q)[0].clone();
    let mask = lowered(cx, (4, 5), [&batch, &keys], cx.dtype(q))?;
    let causal = cx.flag("unidirectional").then_some(past);
    let y = Heads { q, k, v, mask, scale: optional_scale(cx), softcap: 0.0, causal, clear: true }.build(cx)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// Operands: query, key, value, past key, past value, lengths minus one, total length, cosines, sines. Each row of a batch has its own number of tokens in
/// the past, with room behind them.
fn group_query_attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (h, g) = (cx.int("num_heads", 0), cx.int("kv_num_heads", 0));
    if cx.flag("smooth_softmax") || cx.opt(11).is_some() {
        return unsupported("smooths its softmax");
    }
    if h <= 0 || g <= 0 {
        return invalid(format!("has {h} query heads for {g} key heads"));
    }
    let mut q = cx.x(0)?;
    let (k, v) = match (cx.opt(1), cx.opt(2)) {
        (Some(k), Some(v)) => (k, v),
        _ => {
            // The heads of queries, keys and values stand side by side.
            let width = cx.dims(q).get(2).and_then(|d| d.exact_div(&Dim::from(h.saturating_add(g.saturating_mul(2)))));
            let Some(d) = width else { return invalid(format!("has packed heads {}", cx.ty(q))) };
            let (nq, nk) = (&d * &Dim::from(h), &d * &Dim::from(g));
            let (k, v) = (cx.slice(q, 2, &nq, &nk, 1)?, cx.slice(q, 2, &(&nq + &nk), &nk, 1)?);
            q = cx.slice(q, 2, &Dim::from(0), &nq, 1)?;
            (k, v)
        }
    };
    let (mut q, mut k, mut v) = (split_heads(cx, q, h)?, split_heads(cx, k, g)?, split_heads(cx, v, g)?);
    let past = cx.opt(3).zip(cx.opt(4));
    let before = past.and_then(|(p, _)| cx.dims(p).get(2).cloned()).unwrap_or_else(|| Dim::from(0));
    let n = cx.dims(q)[2].clone();
    let lengths = Lengths::new(cx, &n)?;
    let places = lengths.places(cx, &n)?;
    if cx.flag("do_rotary") {
        let (cos, sin) = (cx.x(7)?, cx.x(8)?);
        let rows = cx.dims(cos)[0].clone();
        if !cx.assume_not_negative(&(&rows - &(&before + &n)), "the rotary tables are long enough") {
            return invalid("has rotary tables that are too short");
        }
        let mut tables = [cos, sin];
        for t in &mut tables {
            *t = match past {
                Some(_) => cx.gather(*t, places, 0)?,
                None => {
                    let part = cx.slice(*t, 0, &Dim::from(0), &n, 1)?;
                    let half = cx.dims(part)[1].clone();
                    cx.reshape(part, vec![Dim::from(1), n.clone(), half])?
                }
            };
        }
        let interleaved = cx.flag("rotary_interleaved");
        q = rotate(cx, q, tables[0], tables[1], interleaved, 1)?;
        k = rotate(cx, k, tables[0], tables[1], interleaved, 1)?;
    }
    if let Some((pk, pv)) = past {
        (k, v) = (lengths.joined(cx, pk, k)?, lengths.joined(cx, pv, v)?);
    }
    let keys = cx.dims(k)[2].clone();
    let batch = cx.dims(q)[0].clone();
    let mut mask = key_mask(cx, lengths.all, &batch, &keys)?;
    let window = cx.int("local_window_size", -1);
    if window > 0 || past.is_some() {
        // A query sees itself and the keys before it, as many as the window holds.
        let at = cx.reshape(places, vec![batch, Dim::from(1), n, Dim::from(1)])?;
        let column = cx.iota(&keys, 3, 4)?;
        let near = cx.map2(at, column, |b, d, at, column| {
            let mut seen = b.bin(BinOp::Le, column, at);
            if window > 0 {
                let size = b.num(d, window as f64);
                let first = b.bin(BinOp::Sub, at, size);
                let near = b.bin(BinOp::Gt, column, first);
                seen = b.bin(BinOp::And, seen, near);
            }
            seen
        })?;
        mask = cx.bin(BinOp::And, mask, near)?;
    }
    let mask = Some(merged(cx, mask, cx.opt(10))?);
    let scale = optional_scale(cx);
    // With a past, where the diagonal lies depends on the row of the batch.
    let causal = past.is_none().then(|| Dim::from(0));
    let y = Heads { q, k, v, mask, scale, softcap: cx.real("softcap", 0.0), causal, clear: true }.build(cx)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// How many tokens each row of a batch has: `i64[B]`.
struct Lengths {
    all: Value,
    /// Those before the queries, which are the last ones; none where there are fewer tokens than queries.
    before: Value,
}

impl Lengths {
    /// Of `GroupQueryAttention`, whose operand 5 has them less one, with `n` queries.
    fn new(cx: &mut OpCx<'_, '_>, n: &Dim) -> Result<Self> {
        let lengths = cx.x(5)?;
        let batch = cx.ty(lengths).count();
        let lengths = cx.reshape(lengths, vec![batch])?;
        let lengths = cx.cast(DType::I64, lengths)?;
        let all = cx.bin_num(BinOp::Add, lengths, 1.0)?;
        let before = cx.map1(all, |b, d, all| {
            let (n, none) = (b.push(Inst::Dim(n.clone())), b.num(d, 0.0));
            let before = b.bin(BinOp::Sub, all, n);
            b.bin(BinOp::Max, before, none)
        })?;
        Ok(Self { all, before })
    }

    /// The places of `n` queries, `i64[B, n]`.
    fn places(&self, cx: &mut OpCx<'_, '_>, n: &Dim) -> Result<Value> {
        let batch = cx.dims(self.before)[0].clone();
        let before = cx.reshape(self.before, vec![batch, Dim::from(1)])?;
        let at = cx.iota(n, 1, 2)?;
        cx.bin(BinOp::Add, before, at)
    }

    /// A past `[B, G, P, D]` with what is new, `[B, G, n, D]`, behind the tokens that each row has.
    fn joined(&self, cx: &mut OpCx<'_, '_>, past: Value, new: Value) -> Result<Value> {
        let (past_len, n) = (cx.dims(past)[2].clone(), cx.dims(new)[2].clone());
        let both = cx.concat(&[past, new], 2)?;
        let keys = cx.dims(both)[2].clone();
        let batch = cx.dims(self.before)[0].clone();
        let before = cx.reshape(self.before, vec![batch, Dim::from(1)])?;
        let at = cx.iota(&keys, 1, 2)?;
        let source = cx.map2(at, before, |b, _, at, before| {
            let [shift, last] = [&past_len, &n].map(|d| b.push(Inst::Dim(d.clone())));
            let inside = b.bin(BinOp::Sub, at, before);
            let one = b.num(DType::I64, 1.0);
            let end = b.bin(BinOp::Sub, last, one);
            let inside = b.bin(BinOp::Min, inside, end);
            let moved = b.bin(BinOp::Add, inside, shift);
            let old = b.bin(BinOp::Lt, at, before);
            b.select(old, at, moved)
        })?;
        let dims = cx.dims(source);
        let source = cx.reshape(source, vec![dims[0].clone(), dims[1].clone(), Dim::from(1)])?;
        let by_token = cx.transpose(both, &[0, 2, 1, 3])?;
        let moved = cx.add(transc_ir::op::GatherNd { batch_dims: 1 }, &[by_token, source])?;
        let moved = cx.transpose(moved, &[0, 2, 1, 3])?;
        // Behind the last token there is nothing.
        let left = cx.map2(at, before, |b, _, at, before| {
            let n = b.push(Inst::Dim(n.clone()));
            let end = b.bin(BinOp::Add, before, n);
            b.bin(BinOp::Lt, at, end)
        })?;
        let left = cx.reshape(left, vec![dims[0].clone(), Dim::from(1), dims[1].clone(), Dim::from(1)])?;
        let none = cx.num(cx.dtype(moved), 0.0)?;
        cx.select(left, moved, none)
    }
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
