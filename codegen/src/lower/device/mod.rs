//! Lowering for devices that run grids of thread blocks: templates where they pay, else one thread per element, row or tensor.

mod products;
mod rows;

use transc_ir::Value;
use transc_ir::loops::{Access, Block, Inst, Kernel, KernelBuilder, Reg, Stmt, Ty};
use transc_ir::op::Op;
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::Node;
use transc_ir::types::Dim;

use super::element::{Elements, Lanes, Stuck};
use super::index::Index;
use super::nest::{cost, results, store};
use super::region::Region;
use super::{Lowered, rows as host_rows, tokens};
use crate::Target;
use crate::template::tile;

/// Threads of a block that share nothing.
const THREADS: i64 = 128;

/// Shared memory that a block may ask for, in bytes: what every device of the targets has.
const SHARED_BYTES: i64 = 96 * 1024;

/// Lowers one region.
pub(crate) fn lower(r: &Region, anchor: Option<(Value, &Node)>, target: &Target) -> Result<Lowered, Stuck> {
    let Some((v, n)) = anchor else { return elements(r) };
    match &n.op {
        Op::Contract(_) => products::matmul(r, v, n).unwrap_or_else(|| elements(r)),
        Op::Attention(_) => products::attention(r, v, n),
        Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) => rows::lower(r, v, n),
        Op::Reduce(x) if rows::pays(r, v, n, x) => rows::lower(r, v, n),
        Op::Scan(_) => host_rows::lower(r, v, n, target).map(spread),
        Op::TopK(_) => host_rows::top_k(r, n, target).map(spread),
        Op::ScatterElements(_) | Op::ScatterNd(_) => host_rows::scatter(r, v, n, target).map(spread),
        Op::TokenPlan(_) => tokens::plan(r, n, target).map(spread).ok_or(Stuck::Op(v)),
        Op::TokenApply(_) => tokens::apply(r, n, target).map(spread),
        _ => elements(r),
    }
}

/// One thread per element of the results.
fn elements(r: &Region) -> Result<Lowered, Stuck> {
    let ty = r.ty(r.roots()[0]).clone();
    let count = ty.count();
    let mut kb = KernelBuilder::new(&format!("each_{}", ty.dtype), r.symbols.clone(), count.ceil_div(&THREADS.into()));
    kb.set_block(THREADS as u32);
    let mut e = Elements::new(&mut kb, r, 1);
    let results = results(&mut kb, &mut e, Access::Write);
    let (unit, thread, threads, end) = (kb.lo(), kb.thread(), kb.index(THREADS), kb.dim(&count));
    let first = kb.mul(unit, threads);
    let at = kb.add(first, thread);
    let inside = kb.bin(BinOp::Lt, at, end);
    let mut out = Ok(());
    kb.if_(
        inside,
        |kb| {
            let idx: Vec<Index> = tile::unflatten(kb, at, &ty.dims).into_iter().map(Index::scalar).collect();
            out = results.iter().try_for_each(|(v, buf)| {
                let x = e.at(kb, *v, &idx, Lanes::ONE)?;
                store(kb, *buf, &r.view(*v), &idx, x, Lanes::ONE)
            });
        },
        |_| {},
    );
    out?;
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns: cost(r, &ty, 4) })
}

/// Scalar host code as device code: every thread does one unit.
fn spread(l: Lowered) -> Lowered {
    let mut k = l.kernel;
    let threads = if k.extent.is(1) { 1 } else { THREADS };
    let blocks = k.extent.ceil_div(&threads.into());
    let units = std::mem::replace(&mut k.extent, blocks);
    k.block = Some(threads as u32);
    let body = std::mem::take(&mut k.body);
    k.body = spread_block(&mut k, body, threads, &units);
    Lowered { kernel: k, ..l }
}

fn spread_block(k: &mut Kernel, block: Block, threads: i64, units: &Dim) -> Block {
    let mut out = Vec::with_capacity(block.len() + 8);
    for s in block {
        match s {
            Stmt::Let(r, inst @ (Inst::Lo | Inst::Hi)) => {
                let mut push = |inst: Inst| {
                    k.regs.push(Ty::INDEX);
                    let r = Reg((k.regs.len() - 1) as u32);
                    out.push(Stmt::Let(r, inst));
                    r
                };
                let (lo, t) = (push(Inst::Lo), push(Inst::Thread));
                let n = push(Inst::Const(Literal::i64(threads)));
                let first = push(Inst::Bin(BinOp::Mul, lo, n));
                if inst == Inst::Lo {
                    out.push(Stmt::Let(r, Inst::Bin(BinOp::Add, first, t)));
                    continue;
                }
                let unit = push(Inst::Bin(BinOp::Add, first, t));
                let one = push(Inst::Const(Literal::i64(1)));
                let next = push(Inst::Bin(BinOp::Add, unit, one));
                let end = push(units.as_const().map_or_else(|| Inst::Dim(units.clone()), |c| Inst::Const(Literal::i64(c))));
                out.push(Stmt::Let(r, Inst::Bin(BinOp::Min, next, end)));
            }
            other => out.push(other.map_blocks(|b| spread_block(k, b, threads, units))),
        }
    }
    out
}
