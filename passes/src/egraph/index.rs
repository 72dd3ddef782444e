//! The meaning of index arithmetic: which conditions are a causal diagonal.

use egg::Id;
use transc_ir::op::Op;
use transc_ir::scalar::{BinOp, Inst, Ref, UnOp};
use transc_ir::types::Dim;

use super::graph::Graph;

/// How deep conditions are read.
const MAX_DEPTH: u32 = 10;

/// An index along an axis counted from the last one (none for a number) plus an offset.
#[derive(Clone, PartialEq, Eq)]
struct Index {
    axis: Option<usize>,
    offset: Dim,
}

/// The offset `c` if the condition (or its negation, without `keep`) is `j <= i + c` for the last axis `j` and the one before it `i`,
/// and every row sees a key.
pub fn causal(g: &Graph<'_>, id: Id, keep: bool) -> Option<Dim> {
    g.first(id, |(op, args)| match op {
        Op::Map(m) => {
            let b = &m.body;
            let index = |r: Ref| scalar(g, &b.insts, r, args, MAX_DEPTH);
            let compare = |r: Ref, keep: bool| {
                let Ref::Inst(i) = r else { return None };
                let (op, x, y) = match b.insts[i as usize] {
                    Inst::Bin(op, x, y) if op.is_compare() => (op, index(x)?, index(y)?),
                    _ => return None,
                };
                diagonal(op, &x, &y, keep)
            };
            match b.result {
                Ref::Inst(i) => match b.insts[i as usize] {
                    Inst::Un(UnOp::Not, Ref::Arg(a)) => causal(g, args[a as usize], !keep),
                    Inst::Un(UnOp::Not, r) => compare(r, !keep),
                    _ => compare(b.result, keep),
                },
                Ref::Arg(_) => None,
            }
        }
        Op::Broadcast(_) => causal(g, args[0], keep),
        Op::Reshape(_) => same_tail(g, id, args[0]).then(|| causal(g, args[0], keep)).flatten(),
        _ => None,
    })
    .filter(|c| c.bounds(g.ranges).0 >= 0)
}

/// True if a reshape only adds or drops leading axes of extent 1.
fn same_tail(g: &Graph<'_>, a: Id, b: Id) -> bool {
    let strip = |d: &[Dim]| d.iter().skip_while(|d| d.is(1)).cloned().collect::<Vec<_>>();
    strip(g.dims(a)) == strip(g.dims(b))
}

/// `x op y`, or its negation, as `j <= i + c`.
fn diagonal(op: BinOp, x: &Index, y: &Index, keep: bool) -> Option<Dim> {
    let op = match (op, keep) {
        (o, true) => o,
        (BinOp::Lt, false) => BinOp::Ge,
        (BinOp::Le, false) => BinOp::Gt,
        (BinOp::Gt, false) => BinOp::Le,
        (BinOp::Ge, false) => BinOp::Lt,
        _ => return None,
    };
    let (j, i, strict) = match op {
        BinOp::Le => (x, y, false),
        BinOp::Lt => (x, y, true),
        BinOp::Ge => (y, x, false),
        BinOp::Gt => (y, x, true),
        _ => return None,
    };
    let c = &(&i.offset - &j.offset) - &Dim::from(i64::from(strict));
    (j.axis == Some(0) && i.axis == Some(1)).then_some(c)
}

fn scalar(g: &Graph<'_>, insts: &[Inst], r: Ref, args: &[Id], depth: u32) -> Option<Index> {
    let number = |offset: Dim| Some(Index { axis: None, offset });
    match r {
        Ref::Arg(a) => class(g, args[a as usize], depth.checked_sub(1)?),
        Ref::Inst(i) => match &insts[i as usize] {
            Inst::Const(l) if !l.dtype.is_float() => number(l.to_i64().into()),
            Inst::Dim(d) => number(d.clone()),
            Inst::Bin(op @ (BinOp::Add | BinOp::Sub), x, y) => {
                let (x, y) = (scalar(g, insts, *x, args, depth)?, scalar(g, insts, *y, args, depth)?);
                match (op, x.axis, y.axis) {
                    (BinOp::Add, a, None) | (BinOp::Add, None, a) => Some(Index { axis: a, offset: &x.offset + &y.offset }),
                    (BinOp::Sub, a, None) => Some(Index { axis: a, offset: &x.offset - &y.offset }),
                    _ => None,
                }
            }
            _ => None,
        },
    }
}

fn class(g: &Graph<'_>, id: Id, depth: u32) -> Option<Index> {
    let dims = g.dims(id).to_vec();
    let depth = depth.checked_sub(1)?;
    g.first(id, |(op, args)| match op {
        Op::Iota(i) => Some(Index { axis: Some(dims.len() - 1 - i.axis), offset: 0.into() }),
        Op::Dims(d) => (d.values.len() == 1).then(|| Index { axis: None, offset: d.values[0].clone() }),
        Op::Constant(_) => g.integer(id).map(|v| Index { axis: None, offset: v.into() }),
        Op::Map(m) => scalar(g, &m.body.insts, m.body.result, args, depth),
        Op::Broadcast(_) => class(g, args[0], depth),
        // The axis that varies is the only one longer than 1, or an index stays where it was.
        Op::Reshape(_) => {
            let inner = class(g, args[0], depth)?;
            let Some(axis) = inner.axis else { return Some(inner) };
            let from = g.dims(args[0]);
            let extent = &from[from.len() - 1 - axis];
            let long = |d: &[Dim]| d.iter().filter(|d| !d.is(1)).count();
            if long(from) != 1 || long(&dims) != 1 {
                return same_tail(g, id, args[0]).then_some(inner);
            }
            let at = dims.iter().rposition(|d| d == extent)?;
            Some(Index { axis: Some(dims.len() - 1 - at), ..inner })
        }
        _ => None,
    })
}
