//! Convolutions through the matrix template: weights `[channels, k]` times patches `[k, positions]`, gathered panel by panel (implicit GEMM:
//! Chetlur et al. 2014, section 3.1); no patch matrix in memory.

use transc_ir::Value;
use transc_ir::loops::{Access, Buf, KernelBuilder, Reg, Unroll};
use transc_ir::op::{Conv, Op};
use transc_ir::scalar::BinOp;
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Axis, merged};
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::Elements;
use super::index::Index;
use super::nest::{is_f32, results};
use super::products::{MACS_PER_NS, finish};
use super::region::Region;
use super::strided::{Strided, strided};
use crate::Target;
use crate::template::matmul::{self, Lhs, MatmulProblem, Rhs};
use crate::template::tile;

/// The kernel of a convolution by the matrix template; `None` where it does not fit.
pub(crate) fn conv_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let Op::Conv(c) = &node.op else { return None };
    let root = r.roots()[0];
    let (x, w) = (node.operands[0], node.operands[1]);
    if ![x, w].iter().all(|v| is_f32(r.ty(*v).dtype)) || r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    let (xv, wv) = (strided(r, x)?, strided(r, w)?);
    let (out_dims, w_dims) = (r.ty(anchor).dims.clone(), r.ty(w).dims.clone());
    let w_axes: Vec<Axis> = w_dims.iter().zip(&wv.strides).map(|(d, s)| Axis { extent: d.clone(), stride: s.clone() }).collect();
    let (row_stride, k_stride) = (wv.strides[0].clone(), merged(&w_axes[1..])?);
    let groups = Dim::from(c.groups);
    let p = MatmulProblem {
        batch: vec![out_dims[0].clone(), groups.clone()],
        m: out_dims[1].floor_div(&groups),
        n: out_dims[2..].iter().product(),
        k: w_dims[1..].iter().product(),
    };
    let s = matmul::Schedule { chunk: matmul::GATHERED_CHUNK, ..matmul::Schedule::choose(target.lanes(), &p.n) };
    let mut kb = KernelBuilder::new(&format!("conv_{s}"), r.symbols.clone(), s.extent(&p));
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let (x_buf, w_buf) = (e.buffer(&mut kb, xv.base)?, e.buffer(&mut kb, wv.base)?);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let mut row = |kb: &mut KernelBuilder, at: &[Reg], m: Reg| {
        let per_group = kb.dim(&p.m);
        let first = kb.mul(at[1], per_group);
        let channel = kb.add(first, m);
        let (stride, start) = (kb.dim(&row_stride), kb.dim(&wv.offset));
        let step = kb.mul(channel, stride);
        kb.add(start, step)
    };
    let patches = Patches { conv: c, x: (x_buf, &xv), x_dims: &r.ty(x).dims, kernel: &w_dims[1..], out: &out_dims[2..] };
    let starts: Vec<Buf> = (0..c.strides.len()).map(|_| kb.local(DType::I64, s.tile.width().into())).collect();
    let mut gather =
        |kb: &mut KernelBuilder, at: &[Reg], n0: Reg, panel: Buf| patches.gather(kb, at, n0, &starts, panel, s.tile.width());
    let mut lhs = Lhs { buf: w_buf, row: &mut row, k_stride };
    let mut rhs = Rhs::Gathered(&mut gather);
    let ty = r.ty(root).clone();
    let flat = positions_are_flat(r, anchor);
    let lanes = kb.local(DType::F32, i64::from(s.tile.lanes).into());
    let mut stuck = false;
    let mut epilogue = |kb: &mut KernelBuilder, at: &[Reg], m: Reg, n: Reg, v: Reg, count: Option<Reg>| {
        let per_group = kb.dim(&p.m);
        let first = kb.mul(at[1], per_group);
        let lead = [Index::scalar(at[0]), Index::scalar(kb.add(first, m))];
        if flat {
            // All positions as one axis: the last that is longer than 1, since an index along the others is not used.
            let mut idx = lead.to_vec();
            let zero = kb.index(0);
            idx.resize(out_dims.len(), Index::scalar(zero));
            let axis = (2..out_dims.len()).rev().find(|a| !out_dims[*a].is(1)).unwrap_or(out_dims.len() - 1);
            idx[axis] = Index { reg: n, step: 1, aligned: true };
            stuck |= finish(&mut e, kb, (anchor, root), out, &ty, &idx, v, count).is_err();
            return;
        }
        let (zero, width) = (kb.index(0), kb.index(s.tile.lanes.into()));
        kb.store(lanes, zero, v);
        let mark = e.mark();
        kb.for_(zero, count.unwrap_or(width), 1, Unroll::No, |kb, lane| {
            let x = kb.load(lanes, lane, 1);
            let position = kb.add(n, lane);
            let mut idx = lead.to_vec();
            idx.extend(tile::unflatten(kb, position, &out_dims[2..]).into_iter().map(Index::scalar));
            stuck |= finish(&mut e, kb, (anchor, root), out, &ty, &idx, x, None).is_err();
        });
        e.release(mark);
    };
    matmul::build(&mut kb, &p, s, &mut lhs, &mut rhs, &mut epilogue);
    if stuck {
        return None;
    }
    let macs = p.batch.iter().fold(&(&p.m * &p.n) * &p.k, |a, d| &a * d);
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&MACS_PER_NS.into()) })
}

/// True if every operand of the epilogue has all positions of the result in its order, or one value for all of them.
fn positions_are_flat(r: &Region, anchor: Value) -> bool {
    let full = &r.ty(anchor).dims[2..];
    r.body.nodes().filter(|(_, n)| matches!(n.op, Op::Map(_))).all(|(_, n)| {
        n.operands.iter().all(|v| {
            let dims = &r.ty(*v).dims;
            let own = &dims[dims.len().saturating_sub(full.len())..];
            let stored = r.body.def_node(*v).is_none_or(|d| matches!(d.op, Op::Constant(_) | Op::Map(_) | Op::Conv(_)));
            stored && (own == full || own.iter().all(|d| d.is(1)))
        })
    })
}

/// The right operand: column `j` is the patch of position `j`.
struct Patches<'a> {
    conv: &'a Conv,
    x: (Buf, &'a Strided),
    x_dims: &'a [Dim],
    /// Channels of a group, then extents of the window.
    kernel: &'a [Dim],
    /// Extents of the positions.
    out: &'a [Dim],
}

impl Patches<'_> {
    /// Fills a panel `[k][width]` with the patches from `n0` on, zero beyond the last.
    fn gather(&self, kb: &mut KernelBuilder, batch: &[Reg], n0: Reg, starts: &[Buf], panel: Buf, width: i64) {
        let (zero, width) = (kb.index(0), kb.index(width));
        let n = self.out.iter().product::<Dim>();
        let end = kb.dim(&n);
        let left = kb.sub(end, n0);
        let left = kb.bin(BinOp::Min, left, width);
        // Where each patch starts along each axis.
        kb.for_(zero, left, 1, Unroll::No, |kb, j| {
            let position = kb.add(n0, j);
            for (a, at) in tile::unflatten(kb, position, self.out).into_iter().enumerate() {
                let (stride, lo) = (kb.index(self.conv.strides[a]), kb.index(self.conv.lo[a]));
                let at = kb.mul(at, stride);
                let at = kb.sub(at, lo);
                kb.store(starts[a], j, at);
            }
        });
        let (_, x) = self.x;
        let channels = kb.dim(&self.kernel[0]);
        let first = kb.mul(batch[1], channels);
        let mut base = kb.dim(&x.offset);
        for (i, stride) in [batch[0], first].into_iter().zip(&x.strides) {
            let stride = kb.dim(stride);
            let step = kb.mul(i, stride);
            base = kb.add(base, step);
        }
        self.outer(kb, &mut Vec::new(), &mut |kb, k| {
            kb.for_(zero, left, 1, Unroll::No, |kb, j| {
                let starts: Vec<Reg> = starts.iter().map(|b| kb.load(*b, j, 1)).collect();
                self.run(kb, base, k, &starts, (panel, width, j));
            });
        });
        let k = self.kernel.iter().product::<Dim>();
        let k_end = kb.dim(&k);
        let nothing = kb.num(transc_ir::loops::Ty::F32, 0.0);
        kb.for_(zero, k_end, 1, Unroll::No, |kb, k| {
            let row = kb.mul(k, width);
            kb.for_(left, width, 1, Unroll::No, |kb, j| {
                let to = kb.add(row, j);
                kb.store(panel, to, nothing);
            });
        });
    }

    /// Loops over the channels and all axes of the window but the last.
    fn outer(&self, kb: &mut KernelBuilder, at: &mut Vec<Reg>, body: &mut dyn FnMut(&mut KernelBuilder, &[Reg])) {
        if at.len() + 1 == self.kernel.len() {
            body(kb, at);
            return;
        }
        let (zero, n) = (kb.index(0), kb.dim(&self.kernel[at.len()]));
        kb.for_(zero, n, 1, Unroll::No, |kb, i| {
            at.push(i);
            self.outer(kb, at, body);
            at.pop();
        });
    }

    /// One run of a patch along the last axis of the window.
    fn run(&self, kb: &mut KernelBuilder, base: Reg, k: &[Reg], starts: &[Reg], (panel, width, j): (Buf, Reg, Reg)) {
        let (buf, x) = self.x;
        let mut row = kb.index(0);
        for (i, d) in k.iter().zip(self.kernel) {
            let d = kb.dim(d);
            let scaled = kb.mul(row, d);
            row = kb.add(scaled, *i);
        }
        let run = kb.dim(&self.kernel[k.len()]);
        let row = kb.mul(row, run);
        let stride = kb.dim(&x.strides[1]);
        let channel = kb.mul(k[0], stride);
        let mut from = kb.add(base, channel);
        let mut inside = None;
        let last = starts.len() - 1;
        for (a, start) in starts.iter().enumerate() {
            let mut at = *start;
            if a < last {
                let dilation = kb.index(self.conv.dilations[a]);
                let step = kb.mul(k[1 + a], dilation);
                at = kb.add(at, step);
                self.check(kb, a, at, &mut inside);
            }
            let stride = kb.dim(&x.strides[2 + a]);
            let step = kb.mul(at, stride);
            from = kb.add(from, step);
        }
        let zero = kb.index(0);
        let stride = kb.dim(&x.strides[2 + last]);
        kb.for_(zero, run, 1, Unroll::Auto, |kb, i| {
            let dilation = kb.index(self.conv.dilations[last]);
            let step = kb.mul(i, dilation);
            let mut inside = inside;
            let at = kb.add(starts[last], step);
            self.check(kb, last, at, &mut inside);
            let step = kb.mul(step, stride);
            let from = kb.add(from, step);
            let to = kb.add(row, i);
            let to = kb.mul(to, width);
            let to = kb.add(to, j);
            let copy = |kb: &mut KernelBuilder| {
                let v = kb.load(buf, from, 1);
                kb.store(panel, to, v);
            };
            match inside {
                None => copy(kb),
                Some(inside) => kb.if_(inside, copy, |kb| {
                    let nothing = kb.num(transc_ir::loops::Ty::F32, 0.0);
                    kb.store(panel, to, nothing);
                }),
            }
        });
    }

    /// Adds "lies inside along this axis" to a condition, where padding makes it possible not to.
    fn check(&self, kb: &mut KernelBuilder, axis: usize, at: Reg, inside: &mut Option<Reg>) {
        if self.conv.lo[axis] == 0 && self.conv.hi[axis] == 0 {
            return;
        }
        let (zero, n) = (kb.index(0), kb.dim(&self.x_dims[2 + axis]));
        let (above, below) = (kb.bin(BinOp::Ge, at, zero), kb.bin(BinOp::Lt, at, n));
        let here = kb.bin(BinOp::And, above, below);
        *inside = Some(inside.map_or(here, |before| kb.bin(BinOp::And, before, here)));
    }
}
