//! Plans of merged tokens, and their application.

use transc_ir::loops::{Access, KernelBuilder, Reg, Unroll};
use transc_ir::op::{Op, Planner};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::{Elements, Lanes, Stuck, checked_index};
use super::index::Index;
use super::nest::{flat_index, is_f32, results, vector_range};
use super::region::Region;
use super::strided::strided;
use crate::Target;
use crate::template::{tile, token_plan};

type Done = Result<(), Stuck>;

/// Channels of one unit of an application.
const CHANNELS: i64 = 64;
/// Least size of a group: one whose tokens all have size 0 gives zeros.
const LEAST_SIZE: f64 = 1e-30;

/// The kernel of a plan by its template; `None` where it does not fit.
pub(crate) fn plan(r: &Region, node: &Node, target: &Target) -> Option<Lowered> {
    let Op::TokenPlan(t) = &node.op else { return None };
    let Planner::Tome = t.planner;
    let (metric, dims) = (node.operands[0], r.ty(node.operands[0]).dims.clone());
    if !is_f32(r.ty(metric).dtype) || r.roots() != [node.results[0]] || t.remove == 0 {
        return None;
    }
    let p = token_plan::PlanProblem {
        b: dims[0].clone(),
        n: dims[1].as_const()?,
        d: dims[2].clone(),
        remove: t.remove as i64,
        protect: t.protect as i64,
    };
    let s = token_plan::Schedule::choose(target.lanes(), &p);
    let mut kb = KernelBuilder::new(&s.to_string(), r.symbols.clone(), p.b.clone());
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let view = strided(r, metric)?;
    let x =
        token_plan::Features { buf: e.buffer(&mut kb, view.base)?, offset: view.offset, strides: view.strides.try_into().ok()? };
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    token_plan::build(&mut kb, &p, s, &x, out);
    let cost_ns = (&(&p.b * &p.d) * &Dim::from(p.n * p.n / 4)).floor_div(&20.into());
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns })
}

/// Adds each token's share to its group, token by token; a unit is a block of channels of one image.
pub(crate) fn apply(r: &Region, node: &Node, target: &Target) -> Result<Lowered, Stuck> {
    let root = node.results[0];
    let [x, plan, size] = [0, 1, 2].map(|i| node.operands[i]);
    if !is_f32(r.ty(x).dtype) || r.roots() != [root] {
        return Err(Stuck::Op(root));
    }
    let (from, to) = (r.ty(x).dims.clone(), r.ty(root).dims.clone());
    let chunks = to[2].ceil_div(&CHANNELS.into());
    let name = format!("token_apply_f32x{}", target.lanes());
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), &to[0] * &chunks);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let (_, out) = results(&mut kb, &mut e, Access::ReadWrite)[0];
    let total = kb.local(DType::F32, to[1].clone());
    let (lo, hi) = (kb.lo(), kb.hi());
    let mut stuck = Ok(());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (image, chunk) = tile::div_rem(kb, unit, &chunks);
        let (len, channels) = (kb.index(CHANNELS), kb.dim(&to[2]));
        let c0 = kb.mul(chunk, len);
        let c1 = kb.add(c0, len);
        let c1 = kb.bin(BinOp::Min, c1, channels);
        let (zero, tokens, groups) = (kb.index(0), kb.dim(&from[1]), kb.dim(&to[1]));
        let none = kb.lit(Literal::f32(0.0));
        let mark = e.mark();
        kb.for_(zero, groups, 1, Unroll::No, |kb, g| {
            kb.store(total, g, none);
            // -0 is the neutral element of the sum: 0 would turn -0 into 0.
            let neutral = kb.lit(Literal::f32(-0.0));
            stuck = vector_range(&mut e, kb, (c0, c1), &to[2], &mut |_, kb, c, lanes| {
                let v = kb.splat(lanes.n, neutral);
                let (at, _) = flat_index(kb, &to, &[Index::scalar(image), Index::scalar(g), c])?;
                kb.store_part(out, at, v, lanes.count);
                Ok(())
            });
        });
        e.release(mark);
        let mut each =
            |kb: &mut KernelBuilder, f: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, [Index; 2], Reg, Reg) -> Done| {
                kb.for_(zero, tokens, 1, Unroll::No, |kb, j| {
                    let token = [Index::scalar(image), Index::scalar(j)];
                    let member = e.at(kb, plan, &token, Lanes::ONE).and_then(|g| Ok((g, e.at(kb, size, &token, Lanes::ONE)?)));
                    let done = member.and_then(|(g, s)| {
                        let g = checked_index(kb, g, &to[1]);
                        f(&mut e, kb, token, g, s)
                    });
                    stuck = stuck.and(done);
                });
                e.release(mark);
            };
        each(kb, &mut |_, kb, _, g, s| {
            let sum = kb.load(total, g, 1);
            let sum = kb.add(sum, s);
            kb.store(total, g, sum);
            Ok(())
        });
        each(kb, &mut |e, kb, [image, j], g, s| {
            let (sum, least) = (kb.load(total, g, 1), kb.lit(Literal::from_f64(DType::F32, LEAST_SIZE)));
            let sum = kb.bin(BinOp::Max, sum, least);
            let share = kb.bin(BinOp::Div, s, sum);
            vector_range(e, kb, (c0, c1), &to[2], &mut |e, kb, c, lanes| {
                let v = e.at(kb, x, &[image, j, c], lanes)?;
                let (at, _) = flat_index(kb, &to, &[image, Index::scalar(g), c])?;
                let old = kb.load_part(out, at, lanes.n, lanes.count);
                let share = kb.splat(lanes.n, share);
                let new = kb.fma(share, v, old);
                kb.store_part(out, at, new, lanes.count);
                Ok(())
            })
        });
    });
    stuck?;
    let cost_ns = (&(&to[0] * &from[1]) * &to[2]).floor_div(&4.into());
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns })
}
