//! Attention and rotary embedding of the default domain.

use transc_ir::op::{self, Real};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, too_symbolic};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[row("Attention", 23..=LAST, attention_row), row("RotaryEmbedding", 23..=LAST, rotary_row)];

/// What attention is asked to do, with operands `[B, H, S, D]`.
pub(super) struct Heads {
    pub(super) q: Value,
    pub(super) k: Value,
    pub(super) v: Value,
    /// Broadcasts to `[B, H, Sq, Sk]`.
    pub(super) mask: Option<Value>,
    pub(super) scale: Option<f64>,
    pub(super) softcap: f64,
    /// Offset of the causal diagonal.
    pub(super) causal: Option<Dim>,
    /// A row that sees no key gives zeros.
    pub(super) clear: bool,
}

impl Heads {
    /// Makes dims equal that the definition of attention makes equal.
    fn align(&self, cx: &mut OpCx<'_, '_>) -> Result<()> {
        let (q, k, v) = (cx.dims(self.q), cx.dims(self.k), cx.dims(self.v));
        if q.len() != 4 || k.len() != 4 || v.len() != 4 {
            return invalid(format!("needs operands of four axes, got {}, {}, {}", cx.ty(self.q), cx.ty(self.k), cx.ty(self.v)));
        }
        if let (Some(h), Some(g)) = (q[1].as_const(), k[1].as_const())
            && (h <= 0 || g <= 0 || h % g != 0)
        {
            return invalid(format!("has {h} query heads for {g} key heads; they must divide evenly"));
        }
        for (a, b) in [(&q[0], &k[0]), (&q[0], &v[0]), (&k[1], &v[1]), (&k[2], &v[2]), (&q[3], &k[3])] {
            cx.equal(a, b)?;
        }
        if let Some(m) = self.mask {
            let logits = [q[0].clone(), q[1].clone(), q[2].clone(), k[2].clone()];
            let mask = cx.dims(m);
            if mask.len() > 4 {
                return invalid(format!("has the mask {}", cx.ty(m)));
            }
            for (a, b) in mask.iter().rev().zip(logits.iter().rev()) {
                if !a.is(1) {
                    cx.equal(a, b)?;
                }
            }
        }
        Ok(())
    }

    fn scale(&self, cx: &OpCx<'_, '_>) -> Result<f64> {
        match (self.scale, cx.dims(self.q)[3].as_const()) {
            (Some(s), _) => Ok(s),
            (None, Some(d)) if d > 0 => Ok(1.0 / (d as f64).sqrt()),
            _ => too_symbolic("has heads of symbolic size and no scale"),
        }
    }

    /// The result `[B, H, Sq, E]`.
    pub(super) fn build(&self, cx: &mut OpCx<'_, '_>) -> Result<Value> {
        self.align(cx)?;
        let scale = Real(self.scale(cx)?);
        let mut operands = vec![self.q, self.k, self.v];
        if let Some(m) = self.mask {
            let d = cx.dtype(self.q);
            operands.push(if cx.dtype(m) == DType::Bool { m } else { cx.cast(d, m)? });
        }
        let softcap = Real(self.softcap);
        cx.add(op::Attention { scale, causal: self.causal.clone(), softcap, clear: self.clear }, &operands)
    }

    /// The result and the matrix `[B, H, Sq, Sk]` of a stage: 0 logits, 1 after the cap, 2 after the mask, 3 after the softmax.
    fn build_with_logits(&self, cx: &mut OpCx<'_, '_>, stage: i64) -> Result<[Value; 2]> {
        self.align(cx)?;
        let scale = self.scale(cx)?;
        let d = cx.dtype(self.q);
        let (k, v) = (self.repeated(cx, self.k)?, self.repeated(cx, self.v)?);
        let kt = cx.move_axis(k, 3, 2)?;
        let logits = cx.mat_mul(self.q, kt, d)?;
        let logits = cx.bin_num(BinOp::Mul, logits, scale)?;
        let cap = self.softcap;
        let capped = if cap == 0.0 {
            logits
        } else {
            cx.map1(logits, |b, d, x| {
                let c = b.num(d, cap);
                let q = b.bin(BinOp::Div, x, c);
                let t = b.un(UnOp::Tanh, q);
                b.bin(BinOp::Mul, c, t)
            })?
        };
        let mut masked = capped;
        if let Some(m) = self.mask {
            masked = if cx.dtype(m) == DType::Bool {
                let low = cx.num(d, f64::NEG_INFINITY)?;
                cx.select(m, masked, low)?
            } else {
                let m = cx.cast(d, m)?;
                cx.bin(BinOp::Add, masked, m)?
            };
        }
        if let Some(offset) = &self.causal {
            let dims = cx.dims(masked);
            let visible = causal_mask(cx, &dims[2], &dims[3], offset)?;
            let low = cx.num(d, f64::NEG_INFINITY)?;
            masked = cx.select(visible, masked, low)?;
        }
        let weights = cx.softmax(masked, 3)?;
        let y = cx.mat_mul(weights, v, d)?;
        let shown = match stage {
            0 => logits,
            1 => capped,
            2 => masked,
            3 => weights,
            other => return invalid(format!("has the unknown output mode {other}")),
        };
        Ok([y, shown])
    }

    /// Keys or values with one head per query head.
    fn repeated(&self, cx: &mut OpCx<'_, '_>, x: Value) -> Result<Value> {
        let (h, d) = (cx.dims(self.q)[1].clone(), cx.dims(x));
        if h == d[1] {
            return Ok(x);
        }
        let Some(times) = h.exact_div(&d[1]) else { return invalid(format!("has {h} query heads for {} key heads", d[1])) };
        let y = cx.reshape(x, vec![d[0].clone(), d[1].clone(), Dim::from(1), d[2].clone(), d[3].clone()])?;
        let y = cx.broadcast(y, &[d[0].clone(), d[1].clone(), times, d[2].clone(), d[3].clone()])?;
        cx.reshape(y, vec![d[0].clone(), h, d[2].clone(), d[3].clone()])
    }
}

/// `bool[queries, keys]`, true where key `j <= i + offset`.
pub(super) fn causal_mask(cx: &mut OpCx<'_, '_>, queries: &Dim, keys: &Dim, offset: &Dim) -> Result<Value> {
    let (i, j) = (cx.iota(queries, 0, 2)?, cx.iota(keys, 1, 2)?);
    cx.map2(i, j, |b, _, i, j| {
        let o = b.push(transc_ir::scalar::Inst::Dim(offset.clone()));
        let edge = b.bin(BinOp::Add, i, o);
        b.bin(BinOp::Le, j, edge)
    })
}

/// `[B, S, H*D]` as `[B, H, S, D]`.
pub(super) fn split_heads(cx: &mut OpCx<'_, '_>, x: Value, heads: i64) -> Result<Value> {
    let d = cx.dims(x);
    let h = Dim::from(heads);
    match (d.as_slice(), heads > 0) {
        ([b, s, hidden], true) if hidden.exact_div(&h).is_some() => {
            let size = hidden.floor_div(&h);
            let y = cx.reshape(x, vec![b.clone(), s.clone(), h, size])?;
            cx.transpose(y, &[0, 2, 1, 3])
        }
        _ => invalid(format!("cannot split {} into {heads} heads", cx.ty(x))),
    }
}

/// `[B, H, S, D]` as `[B, S, H*D]`.
pub(super) fn join_heads(cx: &mut OpCx<'_, '_>, x: Value) -> Result<Value> {
    let d = cx.dims(x);
    let y = cx.transpose(x, &[0, 2, 1, 3])?;
    cx.reshape(y, vec![d[0].clone(), d[2].clone(), &d[1] * &d[3]])
}

fn attention_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (q, k, v) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let flat = cx.rank(q) == 3;
    let (q, mut k, mut v) = if flat {
        let (h, g) = (cx.int("q_num_heads", 0), cx.int("kv_num_heads", 0));
        (split_heads(cx, q, h)?, split_heads(cx, k, g)?, split_heads(cx, v, g)?)
    } else {
        (q, k, v)
    };
    let mut past = Dim::from(0);
    if let (Some(pk), Some(pv)) = (cx.opt(4), cx.opt(5)) {
        past = cx.dims(pk).get(2).cloned().unwrap_or(past);
        (k, v) = (cx.concat(&[pk, k], 2)?, cx.concat(&[pv, v], 2)?);
    }
    let keys = cx.dims(k).get(2).cloned().unwrap_or_else(|| Dim::from(0));
    let mut mask = match cx.opt(3) {
        Some(m) => Some(padded_mask(cx, m, &keys)?),
        None => None,
    };
    if let Some(lengths) = cx.opt(6) {
        mask = Some(with_lengths(cx, mask, lengths, &keys)?);
    }
    let causal = cx.flag("is_causal").then_some(past);
    let scale = cx.attr("scale").map(|a| f64::from(a.f()));
    let heads = Heads { q, k, v, mask, scale, softcap: cx.real("softcap", 0.0), causal, clear: false };
    let (y, shown) = if cx.wants(3) {
        let [y, shown] = heads.build_with_logits(cx, cx.int("qk_matmul_output_mode", 0))?;
        (y, shown)
    } else {
        let y = heads.build(cx)?;
        (y, y)
    };
    let y = if flat { join_heads(cx, y)? } else { y };
    Ok(vec![y, k, v, shown])
}

/// A mask that ends before the last key hides the rest.
fn padded_mask(cx: &mut OpCx<'_, '_>, mask: Value, keys: &Dim) -> Result<Value> {
    let d = cx.dims(mask);
    let Some((last, _)) = d.split_last() else { return Ok(mask) };
    let missing = keys - last;
    if last.is(1) || missing.bounds(&cx.imp.module.symbols).0 <= 0 {
        return Ok(mask);
    }
    let (lo, mut hi) = (vec![Dim::from(0); d.len()], vec![Dim::from(0); d.len()]);
    hi[d.len() - 1] = missing;
    let hidden = if cx.dtype(mask) == DType::Bool { 0.0 } else { f64::NEG_INFINITY };
    cx.pad(mask, &lo, &hi, hidden)
}

/// A mask that also hides the keys from `lengths[b]` on.
fn with_lengths(cx: &mut OpCx<'_, '_>, mask: Option<Value>, lengths: Value, keys: &Dim) -> Result<Value> {
    let batch = cx.ty(lengths).count();
    let lengths = cx.cast(DType::I64, lengths)?;
    let lengths = cx.reshape(lengths, vec![batch, Dim::from(1), Dim::from(1), Dim::from(1)])?;
    let at = cx.iota(keys, 3, 4)?;
    let inside = cx.bin(BinOp::Lt, at, lengths)?;
    match mask {
        None => Ok(inside),
        Some(m) if cx.dtype(m) == DType::Bool => cx.bin(BinOp::And, m, inside),
        Some(m) => {
            let low = cx.num(cx.dtype(m), f64::NEG_INFINITY)?;
            cx.select(inside, m, low)
        }
    }
}

/// Rotates `x` of axes `[B, H, S, D]`, or `[B, S, H, D]` with the heads behind, by rows of the tables.
pub(super) fn rotate(
    cx: &mut OpCx<'_, '_>,
    x: Value,
    cos: Value,
    sin: Value,
    interleaved: bool,
    heads_axis: usize,
) -> Result<Value> {
    let half = cx.dims(cos).last().and_then(Dim::as_usize);
    let Some(half) = half else { return too_symbolic("has tables of symbolic width") };
    let d = cx.dtype(x);
    let mut tables = [cos, sin];
    for t in &mut tables {
        let mut dims = cx.dims(*t);
        dims.insert(heads_axis, Dim::from(1));
        let v = cx.reshape(*t, dims)?;
        *t = cx.cast(d, v)?;
    }
    let mut want = cx.dims(x);
    if let Some(last) = want.last_mut() {
        *last = Dim::from(half);
    }
    for (a, b) in cx.dims(tables[0]).iter().zip(&want) {
        if !a.is(1) {
            cx.equal(a, b)?;
        }
    }
    cx.add(op::Rope { rotary: 2 * half, interleaved }, &[x, tables[0], tables[1]])
}

fn rotary_row(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, mut cos, mut sin) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    if let Some(ids) = cx.opt(3) {
        (cos, sin) = (cx.gather(cos, ids, 0)?, cx.gather(sin, ids, 0)?);
    }
    let width = cx.int("rotary_embedding_dim", 0);
    if width > 0 {
        let half = Dim::from(width / 2);
        let last = cx.rank(cos).saturating_sub(1);
        (cos, sin) = (cx.slice(cos, last, &Dim::from(0), &half, 1)?, cx.slice(sin, last, &Dim::from(0), &half, 1)?);
    }
    let interleaved = cx.flag("interleaved");
    if cx.rank(x) == 4 {
        return Ok(vec![rotate(cx, x, cos, sin, interleaved, 1)?]);
    }
    let heads = Dim::from(cx.int("num_heads", 0));
    let dims = cx.dims(x);
    let size = match dims.as_slice() {
        [_, _, hidden] if !heads.is(0) => hidden.exact_div(&heads),
        _ => None,
    };
    let Some(size) = size else { return invalid(format!("cannot split {} into {heads} heads", cx.ty(x))) };
    let y = cx.reshape(x, vec![dims[0].clone(), dims[1].clone(), heads, size])?;
    let y = rotate(cx, y, cos, sin, interleaved, 2)?;
    Ok(vec![cx.reshape(y, dims)?])
}
