//! Token merging by bipartite soft matching: the planner of Bolya et al. 2023, "Token Merging: Your ViT but Faster".
//!
//! Tokens at even positions look for their most similar token (by cosine) among those at odd positions, and the `remove` pairs of highest
//! similarity become one each. Groups are numbered: protected tokens, even tokens that stay, odd tokens. Even tokens that stay
//! keep their order if there are protected tokens, else the most similar comes first, as in the paper's method.

use std::cmp::Ordering;

use super::{ArgReduce, Concat, Contract, Iota, Map, Reduce, ReduceKind, Scan, Slice, TypeError};
use crate::scalar::{BinOp, Body, Literal, UnOp};
use crate::tensor::{Builder, Value};
use crate::types::{DType, Dim};

/// Least norm that a token is divided by.
const TINY: f64 = 1e-12;

/// Positions of the unprotected tokens of one half: those of the given parity.
fn half(n: usize, protect: usize, parity: usize) -> Vec<usize> {
    (protect..n).filter(|i| i % 2 == parity).collect()
}

/// The groups of the tokens with these features; similarities are rounded to `f32`.
pub fn plan(rows: &[&[f64]], remove: usize, protect: usize) -> Vec<i64> {
    let unit: Vec<Vec<f64>> = rows
        .iter()
        .map(|r| {
            let norm = r.iter().map(|x| x * x).sum::<f64>().sqrt().max(TINY);
            r.iter().map(|x| x / norm).collect()
        })
        .collect();
    let (even, odd) = (half(rows.len(), protect, 0), half(rows.len(), protect, 1));
    // For each even token its best partner; the first of equals.
    let best: Vec<(f32, usize)> = even
        .iter()
        .map(|a| {
            let mut best = (f32::NEG_INFINITY, 0);
            for (j, b) in odd.iter().enumerate() {
                let s = unit[*a].iter().zip(&unit[*b]).map(|(x, y)| x * y).sum::<f64>() as f32;
                if s > best.0 {
                    best = (s, j);
                }
            }
            best
        })
        .collect();
    let mut order: Vec<usize> = (0..even.len()).collect();
    order.sort_by(|a, b| best[*b].0.partial_cmp(&best[*a].0).unwrap_or(Ordering::Equal));
    let mut kept = order.split_off(remove);
    if protect > 0 {
        kept.sort_unstable();
    }
    let first_odd = protect + kept.len();
    let mut groups: Vec<i64> = (0..rows.len() as i64).collect();
    for (j, b) in odd.iter().enumerate() {
        groups[*b] = (first_odd + j) as i64;
    }
    for (i, a) in kept.iter().enumerate() {
        groups[even[*a]] = (protect + i) as i64;
    }
    for a in order {
        groups[even[a]] = (first_odd + best[a].1) as i64;
    }
    groups
}

/// The same in structured ops: one contraction, and ranks by counting.
pub fn decompose(b: &mut Builder<'_>, metric: Value, remove: usize, protect: usize) -> Result<Value, TypeError> {
    let (batch, n, d) =
        (b.ty(metric).dims[0].clone(), b.ty(metric).dims[1].as_usize().unwrap_or(0), b.ty(metric).dims[2].clone());
    let iota = |b: &mut Builder<'_>, dims: Vec<Dim>, axis: usize| b.add(Iota { dims, axis }, &[]);
    let (even, odd) = (half(n, protect, 0), half(n, protect, 1));
    let (na, nb) = (Dim::from(even.len()), Dim::from(odd.len()));
    let unit = unit_rows(b, metric)?;
    let side = |b: &mut Builder<'_>, positions: &[usize]| {
        let starts = vec![0.into(), positions.first().copied().unwrap_or(0).into(), 0.into()];
        b.add(Slice { starts, sizes: vec![batch.clone(), positions.len().into(), d.clone()], steps: vec![1, 2, 1] }, &[unit])
    };
    let (x, y) = (side(b, &even)?, side(b, &odd)?);
    let similarity = Contract { lhs: vec![0, 1, 3], rhs: vec![0, 2, 3], out: vec![0, 1, 2], out_dtype: DType::F32 };
    let s = b.add(similarity, &[x, y])?;
    let nan = b.un(UnOp::IsNan, s)?;
    let least = b.scalar(Literal::f32(f32::NEG_INFINITY))?;
    let s = b.select(nan, least, s)?;
    let v = b.add(Reduce { kind: ReduceKind::Max, axes: vec![2], keep: false }, &[s])?;
    let partner = b.add(ArgReduce { max: true, axis: 2, keep: false, last: false }, &[s])?;
    let rank = rank(b, v, &batch, &na)?;
    let count = b.scalar(Literal::i64(remove as i64))?;
    let merged = b.bin(BinOp::Lt, rank, count)?;
    let at = if protect > 0 {
        let one = b.cast(DType::I64, merged)?;
        let before = b.add(Scan { kind: ReduceKind::Sum, axis: 1, exclusive: true, reverse: false }, &[one])?;
        let i = iota(b, vec![batch.clone(), na.clone()], 1)?;
        b.bin(BinOp::Sub, i, before)?
    } else {
        b.bin(BinOp::Sub, rank, count)?
    };
    let offset = |b: &mut Builder<'_>, v: Value, by: usize| {
        let by = b.scalar(Literal::i64(by as i64))?;
        b.bin(BinOp::Add, v, by)
    };
    let first_odd = protect + even.len() - remove;
    let stays = offset(b, at, protect)?;
    let goes = offset(b, partner, first_odd)?;
    let evens = b.select(merged, goes, stays)?;
    let odds = iota(b, vec![batch.clone(), nb], 1)?;
    let odds = offset(b, odds, first_odd)?;
    interleave(b, [evens, odds], protect, n)
}

/// Rows of length one.
fn unit_rows(b: &mut Builder<'_>, metric: Value) -> Result<Value, TypeError> {
    let x = b.cast(DType::F32, metric)?;
    let square = b.bin(BinOp::Mul, x, x)?;
    let sum = b.add(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[square])?;
    let mut f = Body::builder(1);
    let root = f.un(UnOp::Sqrt, f.arg(0));
    let tiny = f.num(DType::F32, TINY);
    let norm = f.bin(BinOp::Max, root, tiny);
    let norm = b.add(Map { body: f.finish(norm) }, &[sum])?;
    b.bin(BinOp::Div, x, norm)
}

/// How many elements of a row come before each one in descending order; equal elements keep their order.
fn rank(b: &mut Builder<'_>, v: Value, batch: &Dim, n: &Dim) -> Result<Value, TypeError> {
    let mine = b.reshape(v, vec![batch.clone(), n.clone(), 1.into()])?;
    let other = b.reshape(v, vec![batch.clone(), 1.into(), n.clone()])?;
    let i = b.add(Iota { dims: vec![n.clone(), 1.into()], axis: 0 }, &[])?;
    let j = b.add(Iota { dims: vec![1.into(), n.clone()], axis: 1 }, &[])?;
    let larger = b.bin(BinOp::Gt, other, mine)?;
    let equal = b.bin(BinOp::Eq, other, mine)?;
    let earlier = b.bin(BinOp::Lt, j, i)?;
    let tie = b.bin(BinOp::And, equal, earlier)?;
    let before = b.bin(BinOp::Or, larger, tie)?;
    let before = b.cast(DType::I64, before)?;
    b.add(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: false }, &[before])
}

/// Protected positions, then alternating elements of the two halves.
fn interleave(b: &mut Builder<'_>, halves: [Value; 2], protect: usize, n: usize) -> Result<Value, TypeError> {
    let batch = b.ty(halves[0]).dims[0].clone();
    let pairs = (n - protect).div_ceil(2);
    let mut columns = Vec::new();
    for parity in [protect % 2, 1 - protect % 2] {
        let mut v = halves[parity];
        if b.ty(v).dims[1] != Dim::from(pairs) {
            let filler = b.add(Iota { dims: vec![batch.clone(), 1.into()], axis: 1 }, &[])?;
            v = b.add(Concat { axis: 1 }, &[v, filler])?;
        }
        columns.push(b.reshape(v, vec![batch.clone(), pairs.into(), 1.into()])?);
    }
    let both = b.add(Concat { axis: 2 }, &columns)?;
    let both = b.reshape(both, vec![batch.clone(), (2 * pairs).into()])?;
    let sizes = vec![batch.clone(), (n - protect).into()];
    let rest = b.add(Slice { starts: vec![0.into(), 0.into()], sizes, steps: vec![1, 1] }, &[both])?;
    if protect == 0 {
        return Ok(rest);
    }
    let first = b.add(Iota { dims: vec![batch, protect.into()], axis: 1 }, &[])?;
    b.add(Concat { axis: 1 }, &[first, rest])
}
