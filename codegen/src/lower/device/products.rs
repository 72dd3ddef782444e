//! Contractions and attention through the device templates. Operands are read through their element functions, so every view, dtype and
//! prologue fits.

use std::cell::RefCell;

use transc_ir::Value;
use transc_ir::loops::{Access, KernelBuilder, Reg};
use transc_ir::op::Op;
use transc_ir::scalar::Literal;
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::SHARED_BYTES;
use super::rows::finish;
use crate::lower::Lowered;
use crate::lower::anchor::wide;
use crate::lower::element::{Elements, Lanes, Stuck};
use crate::lower::index::Index;
use crate::lower::nest::{cost, results};
use crate::lower::products::roles;
use crate::lower::region::Region;
use crate::template::attention::AttentionProblem;
use crate::template::device::{attention, matmul};
use crate::template::matmul::MatmulProblem;
use crate::template::tile;

type Result<T> = std::result::Result<T, Stuck>;

/// A contraction as a product of matrices; `None` where it is none.
pub(super) fn matmul(r: &Region, anchor: Value, node: &Node) -> Option<Result<Lowered>> {
    let Op::Contract(c) = &node.op else { return None };
    if r.ty(r.roots()[0]).dims != r.ty(anchor).dims {
        return None;
    }
    // Columns are neighbours in the result, so the operand that owns its last label is the right one.
    let last = c.out.last()?;
    let swap = c.lhs.contains(last) && !c.rhs.contains(last);
    let sides = [(node.operands[0], &c.lhs), (node.operands[1], &c.rhs)];
    let [(a, a_labels), (b, b_labels)] = if swap { [sides[1], sides[0]] } else { sides };
    let roles = roles(c, a_labels, b_labels);
    if roles.inner.is_empty() || roles.columns.is_empty() {
        return None;
    }
    let extents = |labels: &[u8]| -> Vec<Dim> {
        let find = |l: &u8, v: Value, of: &[u8]| of.iter().position(|m| m == l).map(|i| r.ty(v).dims[i].clone());
        labels.iter().filter_map(|l| find(l, a, a_labels).or_else(|| find(l, b, b_labels))).collect()
    };
    let (rows, columns, inner) = (extents(&roles.rows), extents(&roles.columns), extents(&roles.inner));
    let p = MatmulProblem {
        batch: extents(&roles.batch),
        m: rows.iter().product(),
        n: columns.iter().product(),
        k: inner.iter().product(),
    };
    let s = matmul::Schedule::choose(p.m.bounds(&r.ranges).1, p.n.bounds(&r.ranges).1);
    let acc = if c.out_dtype.is_float() { wide(c.out_dtype) } else { c.out_dtype };
    let mut kb = KernelBuilder::new(&format!("{s}_{acc}"), r.symbols.clone(), s.extent(&p));
    let mut e = Elements::new(&mut kb, r, 1);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let e = RefCell::new(e);
    // The index of a tensor with these labels from those of its parts.
    let index = |kb: &mut KernelBuilder, labels: &[u8], parts: [(&[u8], Vec<Reg>); 3]| -> Vec<Index> {
        let zero = kb.index(0);
        let at = |l: &u8| parts.iter().find_map(|(of, regs)| of.iter().position(|m| m == l).map(|i| regs[i]));
        labels.iter().map(|l| Index::scalar(at(l).unwrap_or(zero))).collect()
    };
    let mut left = |kb: &mut KernelBuilder, batch: &[Reg], m: Reg, k: Reg| {
        let (m, k) = (tile::unflatten(kb, m, &rows), tile::unflatten(kb, k, &inner));
        let idx = index(kb, a_labels, [(&roles.batch, batch.to_vec()), (&roles.rows, m), (&roles.inner, k)]);
        element(&e, kb, a, &idx)
    };
    let mut right = |kb: &mut KernelBuilder, batch: &[Reg], k: Reg, n: Reg| {
        let (n, k) = (tile::unflatten(kb, n, &columns), tile::unflatten(kb, k, &inner));
        let idx = index(kb, b_labels, [(&roles.batch, batch.to_vec()), (&roles.columns, n), (&roles.inner, k)]);
        element(&e, kb, b, &idx)
    };
    let mut epilogue = |kb: &mut KernelBuilder, batch: &[Reg], m: Reg, n: Reg, x: Reg| {
        let (m, n) = (tile::unflatten(kb, m, &rows), tile::unflatten(kb, n, &columns));
        let idx = index(kb, &c.out, [(&roles.batch, batch.to_vec()), (&roles.rows, m), (&roles.columns, n)]);
        finish(&mut e.borrow_mut(), kb, anchor, x, &idx, out)
    };
    let built = matmul::build(&mut kb, &p, s, acc, (&mut left, &mut right), &mut epilogue);
    let args = e.into_inner().args;
    Some(built.map(|()| Lowered { kernel: kb.finish(), args, cost_ns: cost(r, r.ty(anchor), 1) }))
}

/// An element inside a branch: what it computes is not there outside.
fn element(e: &RefCell<Elements<'_>>, kb: &mut KernelBuilder, v: Value, idx: &[Index]) -> Result<Reg> {
    let mut e = e.borrow_mut();
    let mark = e.mark();
    let x = e.at(kb, v, idx, Lanes::ONE);
    e.release(mark);
    x
}

/// An attention by its template.
pub(super) fn attention(r: &Region, anchor: Value, node: &Node) -> Result<Lowered> {
    let Op::Attention(a) = &node.op else { return Err(Stuck::Op(anchor)) };
    if r.ty(r.roots()[0]).dims != r.ty(anchor).dims {
        return Err(Stuck::Op(anchor));
    }
    let [q, k, v] = [0, 1, 2].map(|i| node.operands[i]);
    let p = AttentionProblem::new(a, [q, k, v].map(|x| r.ty(x).dims.as_slice()));
    let acc = wide(r.ty(q).dtype);
    let bytes = |s: &attention::Schedule| s.shared(&p).bounds(&r.ranges).1.saturating_mul(acc.size_bytes() as i64);
    let s = attention::Schedule::choose(&p).filter(|s| bytes(s) <= SHARED_BYTES).ok_or(Stuck::Op(anchor))?;
    let flags = p.flags(node.operands.len() > 3);
    let mut kb = KernelBuilder::new(&format!("{s}{flags}_{acc}"), r.symbols.clone(), s.extent(&p));
    let mut e = Elements::new(&mut kb, r, 1);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let e = RefCell::new(e);
    let of = |v: Value| {
        let e = &e;
        move |kb: &mut KernelBuilder, at: [Reg; 4]| element(e, kb, v, &at.map(Index::scalar))
    };
    let mut mask = |kb: &mut KernelBuilder, at: [Reg; 4]| {
        let m = node.operands[3];
        let dims = &r.ty(m).dims;
        let zero = kb.index(0);
        let idx: Vec<Index> =
            dims.iter().zip(&at[4 - dims.len()..]).map(|(d, i)| Index::scalar(if d.is(1) { zero } else { *i })).collect();
        let x = element(&e, kb, m, &idx)?;
        if r.ty(m).dtype != DType::Bool {
            return Ok(x);
        }
        let (on, off) = (kb.lit(Literal::from_f64(acc, 0.0)), kb.lit(Literal::from_f64(acc, f64::NEG_INFINITY)));
        Ok(kb.select(x, on, off))
    };
    let masked: Option<&mut attention::Element<'_, Stuck>> = if node.operands.len() > 3 { Some(&mut mask) } else { None };
    let mut operands = attention::Operands { q: &mut of(q), k: &mut of(k), v: &mut of(v), mask: masked };
    let mut epilogue =
        |kb: &mut KernelBuilder, at: [Reg; 4], x: Reg| finish(&mut e.borrow_mut(), kb, anchor, x, &at.map(Index::scalar), out);
    attention::build(&mut kb, &p, s, acc, &mut operands, &mut epilogue)?;
    let args = e.into_inner().args;
    Ok(Lowered { kernel: kb.finish(), args, cost_ns: cost(r, r.ty(anchor), 4) })
}
