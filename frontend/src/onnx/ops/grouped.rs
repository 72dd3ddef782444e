//! Attention whose keys have fewer heads than its queries, as decoders that ONNX Runtime runs have it (domain `com.microsoft`).

use transc_ir::scalar::{BinOp, Inst};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::attention::{Heads, join_heads, rotate, split_heads};
use super::contrib::{key_mask, optional_scale, refuse_operands};
use super::{OpRow, contrib};

pub(super) static ROWS: &[OpRow] = &[contrib("GroupQueryAttention", group_query_attention)];

/// A boolean mask and an additive bias as one mask.
fn merged(cx: &mut OpCx<'_, '_>, mask: Value, bias: Option<Value>) -> Result<Value> {
    let Some(bias) = bias else { return Ok(mask) };
    let low = cx.num(cx.dtype(bias), f64::NEG_INFINITY)?;
    cx.select(mask, bias, low)
}

/// Operands: query, key, value, past key, past value, lengths minus one, total length, cosines, sines, position ids, additive bias, sinks. Each row of a
/// batch has its own number of tokens in the past, with room behind them.
fn group_query_attention(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (h, g) = (cx.int("num_heads", 0), cx.int("kv_num_heads", 0));
    refuse_operands(cx, &[(12, "codes its past"), (14, "normalises its queries"), (16, "has padded queries")])?;
    if cx.flag("sliding_window_cache") || cx.wants(3) {
        return unsupported("keeps a window of its past, or gives its logits");
    }
    if h <= 0 || g <= 0 {
        return invalid(format!("has {h} query heads for {g} key heads"));
    }
    let [q, k, v] = unpacked(cx, h, g)?;
    let (mut q, mut k, mut v) = (split_heads(cx, q, h)?, split_heads(cx, k, g)?, split_heads(cx, v, g)?);
    let past = cx.opt(3).zip(cx.opt(4));
    let before = past.and_then(|(p, _)| cx.dims(p).get(2).cloned()).unwrap_or_else(|| Dim::from(0));
    let [batch, n] = [0, 2].map(|a| cx.dims(q)[a].clone());
    let lengths = Lengths::new(cx, &batch, &n)?;
    let places = lengths.places(cx, &n)?;
    if cx.flag("do_rotary") {
        let given = cx.opt(9).or(past.map(|_| places));
        let tables = rotary_tables(cx, given, &n, &before)?;
        let interleaved = cx.flag("rotary_interleaved");
        q = rotate(cx, q, tables[0], tables[1], interleaved, 1)?;
        k = rotate(cx, k, tables[0], tables[1], interleaved, 1)?;
    }
    if let Some((pk, pv)) = past {
        (k, v) = (lengths.joined(cx, pk, k)?, lengths.joined(cx, pv, v)?);
    }
    let keys = cx.dims(k)[2].clone();
    let mut mask = key_mask(cx, lengths.all, [&batch, &n, &keys])?;
    let (causal, window) = (cx.int("causal", 1) != 0, cx.int("local_window_size", -1));
    if causal && (window > 0 || past.is_some()) {
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
    let causal = (causal && past.is_none()).then(|| Dim::from(0));
    let mut heads = Heads { q, k, v, mask, scale, softcap: cx.real("softcap", 0.0), causal, clear: true };
    if cx.opt(11).is_some() || cx.int("smooth_softmax", 0) > 0 {
        with_sink(cx, &mut heads, cx.opt(11))?;
    }
    let y = heads.build(cx)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// Queries, keys and values, which may stand side by side in the first operand.
fn unpacked(cx: &mut OpCx<'_, '_>, h: i64, g: i64) -> Result<[Value; 3]> {
    let q = cx.x(0)?;
    if let (Some(k), Some(v)) = (cx.opt(1), cx.opt(2)) {
        return Ok([q, k, v]);
    }
    let width = cx.dims(q).get(2).and_then(|d| d.exact_div(&Dim::from(h.saturating_add(g.saturating_mul(2)))));
    let Some(d) = width else { return invalid(format!("has packed heads {}", cx.ty(q))) };
    let (nq, nk) = (&d * &Dim::from(h), &d * &Dim::from(g));
    let (k, v) = (cx.slice(q, 2, &nq, &nk, 1)?, cx.slice(q, 2, &(&nq + &nk), &nk, 1)?);
    Ok([cx.slice(q, 2, &Dim::from(0), &nq, 1)?, k, v])
}

/// Rows of the tables of cosines and sines for `n` queries: those of given places, or the first ones.
fn rotary_tables(cx: &mut OpCx<'_, '_>, places: Option<Value>, n: &Dim, before: &Dim) -> Result<[Value; 2]> {
    let mut tables = [cx.x(7)?, cx.x(8)?];
    let rows = cx.dims(tables[0])[0].clone();
    if !cx.assume_not_negative(&(&rows - &(before + n)), "the rotary tables are long enough") {
        return invalid("has rotary tables that are too short");
    }
    for t in &mut tables {
        *t = match places {
            Some(p) => cx.gather(*t, p, 0)?,
            None => {
                let part = cx.slice(*t, 0, &Dim::from(0), n, 1)?;
                let half = cx.dims(part)[1].clone();
                cx.reshape(part, vec![Dim::from(1), n.clone(), half])?
            }
        };
    }
    Ok(tables)
}

/// Puts a key in front of all others that each query sees and whose value is zero. Its logit is the number of the head, or 0.
fn with_sink(cx: &mut OpCx<'_, '_>, heads: &mut Heads, sink: Option<Value>) -> Result<()> {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let front = |cx: &mut OpCx<'_, '_>, x: Value, axis: usize, v: f64| {
        let (mut lo, hi) = (vec![zero.clone(); 4], vec![zero.clone(); 4]);
        lo[axis] = one.clone();
        cx.pad(x, &lo, &hi, v)
    };
    (heads.k, heads.v) = (front(cx, heads.k, 2, 0.0)?, front(cx, heads.v, 2, 0.0)?);
    heads.causal = heads.causal.take().map(|offset| &offset + &one);
    let Some(mask) = heads.mask else { return Ok(()) };
    let seen = if cx.dtype(mask) == DType::Bool { 1.0 } else { 0.0 };
    let Some(sink) = sink else {
        heads.mask = Some(front(cx, mask, 3, seen)?);
        return Ok(());
    };
    let d = cx.dtype(heads.q);
    let (open, low) = (cx.num(d, 0.0)?, cx.num(d, f64::NEG_INFINITY)?);
    let added = if seen == 0.0 { cx.cast(d, mask)? } else { cx.select(mask, open, low)? };
    let mut dims = cx.dims(added);
    dims[1] = cx.dims(heads.q)[1].clone();
    let added = cx.broadcast(added, &dims)?;
    dims[3] = one.clone();
    let column = cx.reshape(sink, vec![one.clone(), dims[1].clone(), one.clone(), one.clone()])?;
    let column = cx.broadcast(column, &dims)?;
    heads.mask = Some(cx.concat(&[column, added], 3)?);
    Ok(())
}

/// How many tokens each row of a batch has: `i64[B]`.
struct Lengths {
    all: Value,
    /// Those before the queries, which are the last ones; none where there are fewer tokens than queries.
    before: Value,
}

impl Lengths {
    /// Of `GroupQueryAttention`, whose operand 5 has them less one, with `n` queries.
    fn new(cx: &mut OpCx<'_, '_>, batch: &Dim, n: &Dim) -> Result<Self> {
        let lengths = cx.x(5)?;
        let count = cx.ty(lengths).count();
        cx.equal(&count, batch)?;
        let lengths = cx.reshape(lengths, vec![batch.clone()])?;
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
