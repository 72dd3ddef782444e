//! Arithmetic and memory traffic of a region, for reports: nothing is decided by them.

use transc_ir::Value;
use transc_ir::op::Op;
use transc_ir::tensor::macs_of;
use transc_ir::types::{DType, Dim};

use super::Source;
use super::region::Region;
use crate::program::{PackedConst, Work};

/// The work of a kernel of a region that reads and writes `args`; the first one counts as the one that multiplies.
pub(super) fn of(r: &Region, first: bool, args: &[Source]) -> Work {
    let macs = if first { macs_of(&r.body) } else { Dim::from(0) };
    let macs = match r.layer.get() {
        Some(l) if l.sparse.is_some() => (&macs * &Dim::from(l.macs.0)).floor_div(&Dim::from(l.macs.1)),
        _ => macs,
    };
    let product =
        r.body.nodes().find(|(_, n)| matches!(n.op, Op::Contract(_) | Op::Conv(_) | Op::Attention(_) | Op::IntAttention(_)));
    let dtype = product.map_or(DType::F32, |(_, n)| r.ty(n.operands[0]).dtype);
    let bytes = args.iter().fold(Dim::from(0), |sum, a| &sum + &bytes(r, *a));
    Work { macs, dtype, bytes }
}

fn bytes(r: &Region, source: Source) -> Dim {
    let whole = |v: Value| &r.ty(v).count() * &Dim::from(r.ty(v).dtype.size_bytes());
    let touched = |v: Value| rows_looked_up(r, v).unwrap_or_else(|| whole(v));
    match source {
        Source::Operand(i) => touched(r.body.params()[i].1),
        Source::Result(i) => whole(r.roots()[i]),
        Source::Between => r.between.borrow().as_ref().map_or(0.into(), |t| &t.count() * &Dim::from(t.dtype.size_bytes())),
        Source::Table => Dim::from(r.table.borrow().as_ref().map_or(0, |t| t.bytes().len())),
        Source::Const(id, packing) => {
            let used = r.body.nodes().find(|(_, n)| matches!(&n.op, Op::Constant(c) if c.id == id));
            let rows = used.and_then(|(_, n)| rows_looked_up(r, n.results[0]));
            let packed = || r.consts.get(id).map_or(0, |source| PackedConst { source: source.clone(), packing }.len_bytes());
            rows.unwrap_or_else(|| Dim::from(packed()))
        }
    }
}

/// Bytes of the rows of a value that only look-ups read; `None` if something else reads it.
fn rows_looked_up(r: &Region, v: Value) -> Option<Dim> {
    let mut sum = None;
    for (_, n) in r.body.nodes().filter(|(_, n)| n.operands.contains(&v)) {
        let Op::Gather(_) = &n.op else { return None };
        if n.operands[0] != v {
            return None;
        }
        let rows = &r.ty(n.results[0]).count() * &Dim::from(r.ty(v).dtype.size_bytes());
        sum = Some(sum.map_or_else(|| rows.clone(), |s: Dim| &s + &rows));
    }
    sum
}
