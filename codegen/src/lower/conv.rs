//! Convolutions. Those with a window per channel have a template of their own. The others are products of the weights `[channels, k]` and patches
//! `[k, positions]`, gathered panel by panel (implicit GEMM: Chetlur et al. 2014, section 3.1); no patch matrix is in memory.

use transc_ir::loops::{Access, Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::op::{Conv, Op};
use transc_ir::scalar::BinOp;
use transc_ir::tensor::Node;
use transc_ir::tensor::strided::{Axis, merged};
use transc_ir::types::{DType, Dim};
use transc_ir::{ConstId, Value};

use super::Lowered;
use super::element::Elements;
use super::index::Index;
use super::nest::{is_f32, results};
use super::products::{MACS_PER_NS, finish};
use super::region::Region;
use super::strided::{Strided, strided};
use crate::Target;
use crate::panels::Panels;
use crate::program::{Matrix, Packing};
use crate::template::depthwise::{Depthwise, Operand};
use crate::template::matmul::{self, Lhs, MatmulProblem, Rhs, Schedule};
use crate::template::tile::{self, TileShape};

/// The kernel of a convolution by a template; `None` where none fits.
pub(crate) fn conv_of(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Lowered> {
    let Op::Conv(c) = &node.op else { return None };
    let (root, w) = (r.roots()[0], node.operands[1]);
    if ![node.operands[0], w].iter().all(|v| is_f32(r.ty(*v).dtype)) || r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    // One channel to a window leaves nothing for a product of matrices to share.
    if r.ty(w).dims[1].is(1) && c.groups > 1 {
        let by = |vectors| depthwise_of(r, (anchor, root), (c, node), target, vectors);
        if let Some(kernel) = by(true).or_else(|| by(false)) {
            return Some(kernel);
        }
    }
    product_of(r, (anchor, root), (c, node), target)
}

/// A convolution of planes. Its epilogue works on vectors of neighbours, or where it cannot on one element after the other.
fn depthwise_of(
    r: &Region,
    (anchor, root): (Value, Value),
    (c, node): (&Conv, &Node),
    target: &Target,
    vectors: bool,
) -> Option<Lowered> {
    let (x, w) = (node.operands[0], node.operands[1]);
    let (xv, wv) = (strided(r, x)?, strided(r, w)?);
    let (x_dims, out) = (r.ty(x).dims.clone(), r.ty(anchor).dims.clone());
    let window: Vec<i64> = r.ty(w).dims[2..].iter().map(Dim::as_const).collect::<Option<_>>()?;
    let multiplier = out[1].as_const()? / c.groups as i64;
    let d = Depthwise { conv: c, input: &x_dims[2..], window: &window, out: &out, multiplier, lanes: target.lanes() };
    if !d.fits() {
        return None;
    }
    let mut kb = KernelBuilder::new("conv_f32_depthwise", r.symbols.clone(), d.extent());
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let (x_buf, w_buf) = (e.buffer(&mut kb, xv.base)?, e.buffer(&mut kb, wv.base)?);
    let (_, y) = results(&mut kb, &mut e, Access::Write)[0];
    let lanes = (!vectors).then(|| kb.local(DType::F32, i64::from(target.lanes()).into()));
    let mut stuck = false;
    let mut epilogue = |kb: &mut KernelBuilder, at: &[Reg], x: Reg, count: Option<Reg>| {
        let mut idx: Vec<Index> = at.iter().map(|i| Index::scalar(*i)).collect();
        let last = idx.len() - 1;
        let Some(lanes) = lanes else {
            idx[last] = Index::vector(at[last]);
            stuck |= finish(&mut e, kb, (anchor, root), y, &idx, x, count).is_err();
            return;
        };
        each_lane(&mut e, kb, lanes, (x, count), &mut |e, kb, lane, x| {
            idx[last] = Index::scalar(kb.add(at[last], lane));
            stuck |= finish(e, kb, (anchor, root), y, &idx, x, None).is_err();
        });
    };
    let from = Operand { buf: x_buf, offset: &xv.offset, strides: &xv.strides };
    let weight = Operand { buf: w_buf, offset: &wv.offset, strides: &wv.strides };
    d.build(&mut kb, &from, &weight, &mut epilogue);
    if stuck {
        return None;
    }
    let macs = &out.iter().product::<Dim>() * &Dim::from(window.iter().product::<i64>());
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&(MACS_PER_NS / 2).into()) })
}

/// The elements of a vector, one after the other.
fn each_lane(
    e: &mut Elements<'_>,
    kb: &mut KernelBuilder,
    lanes: Buf,
    (x, count): (Reg, Option<Reg>),
    body: &mut dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, Reg, Reg),
) {
    let (zero, width) = (kb.index(0), kb.index(kb.ty(x).lanes.into()));
    kb.store(lanes, zero, x);
    let mark = e.mark();
    kb.for_(zero, count.unwrap_or(width), 1, Unroll::No, |kb, lane| {
        let x = kb.load(lanes, lane, 1);
        body(e, kb, lane, x);
    });
    e.release(mark);
}

/// A product of the weights `[channels, k]` and patches `[k, positions]`; with positions as rows and packed weights where that wastes less of
/// the tiles.
fn product_of(r: &Region, (anchor, root): (Value, Value), (c, node): (&Conv, &Node), target: &Target) -> Option<Lowered> {
    let (x, w) = (node.operands[0], node.operands[1]);
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
    let usual = Schedule { chunk: matmul::GATHERED_CHUNK, ..Schedule::choose(target.lanes(), &p.n) };
    let packed = packed_weight(r, &p, (&wv, &k_stride), usual, target);
    let q = MatmulProblem { m: p.n.clone(), n: p.m.clone(), ..p.clone() };
    let (name, s, extent, shape) = match &packed {
        // The rows of a chunk are gathered as one wide panel.
        Some((s, ..)) => {
            ("conv_turned", *s, s.extent(&q), TileShape { vectors: (s.chunk / i64::from(s.tile.lanes)) as u16, ..s.tile })
        }
        None => ("conv", usual, usual.extent(&p), usual.tile),
    };
    let mut kb = KernelBuilder::new(&format!("{name}_{s}"), r.symbols.clone(), extent);
    let mut e = Elements::new(&mut kb, r, target.lanes());
    let x_buf = e.buffer(&mut kb, xv.base)?;
    let w_buf = match &packed {
        Some((_, id, packing)) => e.constant(&mut kb, wv.base, *id, *packing),
        None => e.buffer(&mut kb, wv.base)?,
    };
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let patches = Patches { conv: c, x: (x_buf, &xv), x_dims: &r.ty(x).dims, kernel: &w_dims[1..], out: &out_dims[2..] };
    let positions = patches.positions();
    let mut gather = |kb: &mut KernelBuilder, at: &[Reg], n0: Reg, panel: Buf| {
        let base = patches.base(kb, at);
        match &positions {
            // Windows of one element: the positions are those of the input.
            Some(n_stride) => {
                let src = tile::Source { buf: x_buf, base, k_stride: &xv.strides[1], n_stride };
                let start = kb.index(0);
                tile::pack_panel(kb, shape, (&p.k, &p.n), &src, n0, (panel, start));
            }
            None => patches.gather(kb, base, n0, panel, shape),
        }
    };
    let flat = positions_are_flat(r, anchor);
    let lanes = kb.local(DType::F32, i64::from(s.tile.lanes).into());
    let mut stuck = false;
    // A vector of positions of a channel.
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
            idx[axis] = Index { reg: n, step: 1, aligned: packed.is_none() };
            stuck |= finish(&mut e, kb, (anchor, root), out, &idx, v, count).is_err();
            return;
        }
        each_lane(&mut e, kb, lanes, (v, count), &mut |e, kb, lane, x| {
            let position = kb.add(n, lane);
            let mut idx = lead.to_vec();
            idx.extend(tile::unflatten(kb, position, &out_dims[2..]).into_iter().map(Index::scalar));
            stuck |= finish(e, kb, (anchor, root), out, &idx, x, None).is_err();
        });
    };
    if packed.is_some() {
        let mut of_rows =
            |kb: &mut KernelBuilder, at: &[Reg], m: Reg, n: Reg, v: Reg, count: Option<Reg>| epilogue(kb, at, n, m, v, count);
        matmul::build_turned(&mut kb, &q, s, &mut gather, w_buf, &mut of_rows);
    } else {
        let mut row = |kb: &mut KernelBuilder, at: &[Reg], m: Reg| {
            let per_group = kb.dim(&p.m);
            let first = kb.mul(at[1], per_group);
            let channel = kb.add(first, m);
            let (stride, start) = (kb.dim(&row_stride), kb.dim(&wv.offset));
            let step = kb.mul(channel, stride);
            kb.add(start, step)
        };
        let mut lhs = Lhs { buf: w_buf, row: &mut row, k_stride };
        matmul::build(&mut kb, &p, s, &mut lhs, &mut Rhs::Gathered(&mut gather), &mut epilogue);
    }
    if stuck {
        return None;
    }
    let macs = p.batch.iter().fold(&(&p.m * &p.n) * &p.k, |a, d| &a * d);
    Some(Lowered { kernel: kb.finish(), args: e.args, cost_ns: macs.floor_div(&MACS_PER_NS.into()) })
}

/// Schedule and layout of constant weights whose channels are the columns, where that is estimated to take less time than positions as columns.
fn packed_weight(
    r: &Region,
    p: &MatmulProblem,
    (w, k_stride): (&Strided, &Dim),
    usual: Schedule,
    target: &Target,
) -> Option<(Schedule, ConstId, Packing)> {
    let id = r.body.constant(w.base)?;
    let (channels, positions, k) = (p.m.as_const()?, p.n.as_const()?, p.k.as_const()?);
    let s = Schedule::turned(target.lanes(), positions, &p.m, k);
    if s.time(positions, channels) >= usual.time(channels, positions) {
        return None;
    }
    let matrix = Matrix {
        k: usize::try_from(k).ok()?,
        n: usize::try_from(channels).ok()?,
        k_stride: k_stride.as_usize()?,
        n_stride: w.strides[0].as_usize()?,
    };
    let panels = Panels {
        batch: p.batch[1].as_usize()?,
        matrix,
        offset: w.offset.as_usize()?,
        batch_stride: usize::try_from(channels).ok()? * w.strides[0].as_usize()?,
        width: usize::try_from(s.tile.width()).ok()?,
        group: 1,
        depth: 1,
        words: false,
    };
    Some((s, id, Packing::Panels(panels)))
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

/// Neighbouring positions of one row.
struct Run {
    /// Their place in the panel.
    at: Reg,
    /// The first one's index along the row.
    first: Reg,
    /// How many.
    count: Reg,
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
    /// The distance between positions in the input, where each is a window of one element and all lie evenly.
    fn positions(&self) -> Option<Dim> {
        let c = self.conv;
        let one = self.kernel[1..].iter().all(|k| k.is(1)) && c.strides.iter().all(|s| *s == 1);
        let plain = one && c.lo.iter().chain(&c.hi).all(|p| *p == 0);
        let axes = self.x_dims[2..].iter().zip(&self.x.1.strides[2..]);
        let axes: Vec<Axis> = axes.map(|(d, s)| Axis { extent: d.clone(), stride: s.clone() }).collect();
        plain.then(|| merged(&axes)).flatten()
    }

    /// Where the channels of a group begin.
    fn base(&self, kb: &mut KernelBuilder, batch: &[Reg]) -> Reg {
        let (_, x) = self.x;
        let channels = kb.dim(&self.kernel[0]);
        let first = kb.mul(batch[1], channels);
        tile::place(kb, &x.offset, &x.strides, &[batch[0], first])
    }

    /// Fills a panel `[k][width]` with the patches from `n0` on, zero beyond the last: row by row of positions, since neighbours in a row read
    /// neighbours.
    fn gather(&self, kb: &mut KernelBuilder, base: Reg, n0: Reg, panel: Buf, shape: TileShape) {
        let last = self.out.len() - 1;
        let (zero, width) = (kb.index(0), kb.index(shape.width()));
        let n = self.out.iter().product::<Dim>();
        let (end, row_len) = (kb.dim(&n), kb.dim(&self.out[last]));
        let beyond = kb.add(n0, width);
        let end = kb.bin(BinOp::Min, end, beyond);
        let one = kb.index(1);
        let first = kb.bin(BinOp::Div, n0, row_len);
        let last_position = kb.sub(end, one);
        let rows = kb.bin(BinOp::Div, last_position, row_len);
        let rows = kb.add(rows, one);
        kb.for_(first, rows, 1, Unroll::No, |kb, row| {
            let start = kb.mul(row, row_len);
            let next = kb.add(start, row_len);
            let (from, to) = (kb.bin(BinOp::Max, n0, start), kb.bin(BinOp::Min, end, next));
            let run = Run { at: kb.sub(from, n0), first: kb.sub(from, start), count: kb.sub(to, from) };
            let starts: Vec<Reg> = tile::unflatten(kb, row, &self.out[..last])
                .into_iter()
                .enumerate()
                .map(|(a, at)| {
                    let (stride, lo) = (kb.index(self.conv.strides[a]), kb.index(self.conv.lo[a]));
                    let at = kb.mul(at, stride);
                    kb.sub(at, lo)
                })
                .collect();
            let taps = kb.dim(&self.kernel[1 + last]);
            kb.for_(zero, taps, 1, Unroll::No, |kb, tap| self.tap(kb, base, (&starts, &run, tap), (panel, shape)));
        });
        let k = self.kernel.iter().product::<Dim>();
        let (k_end, left) = (kb.dim(&k), kb.sub(end, n0));
        let nothing = kb.num(Ty::F32, 0.0);
        kb.for_(zero, k_end, 1, Unroll::No, |kb, k| {
            let row = kb.mul(k, width);
            kb.for_(left, width, 1, Unroll::No, |kb, j| {
                let to = kb.add(row, j);
                kb.store(panel, to, nothing);
            });
        });
    }

    /// What a tap along the last axis reads for a run of positions, for all channels and all places along the other axes of the window.
    fn tap(&self, kb: &mut KernelBuilder, base: Reg, (starts, run, tap): (&[Reg], &Run, Reg), (panel, shape): (Buf, TileShape)) {
        let (last, (buf, x)) = (starts.len(), self.x);
        let (step, lo, dilation) = (self.conv.strides[last], self.conv.lo[last], self.conv.dilations[last]);
        let (step_reg, lo_reg, dilation) = (kb.index(step), kb.index(lo), kb.index(dilation));
        let place = kb.mul(run.first, step_reg);
        let ahead = kb.mul(tap, dilation);
        let place = kb.add(place, ahead);
        let place = kb.sub(place, lo_reg);
        // Of the run, what lies inside the input: the element at `place + j * step`.
        let zero = kb.index(0);
        let (mut inner, mut outer) = (zero, run.count);
        if lo != 0 || self.conv.hi[last] != 0 {
            let up_to = |kb: &mut KernelBuilder, bound: Reg| {
                let left = kb.sub(bound, place);
                let left = kb.bin(BinOp::Max, left, zero);
                let n = tile::ceil_div(kb, left, step);
                kb.bin(BinOp::Min, n, run.count)
            };
            let extent = kb.dim(&self.x_dims[2 + last]);
            (inner, outer) = (up_to(kb, zero), up_to(kb, extent));
        }
        let stride = kb.dim(&x.strides[2 + last]);
        let along = kb.mul(place, stride);
        let stride = kb.mul(stride, step_reg);
        let dense = kb.as_index(stride) == Some(1);
        let middle = if dense { tile::whole_turns(kb, (inner, outer), shape.lanes.into()) } else { inner };
        let (taps, width) = (kb.dim(&self.kernel[1 + last]), kb.index(shape.width()));
        // For each row of the panel: where it begins, where its first element comes from, and whether that lies inside along the other axes.
        let each = |kb: &mut KernelBuilder, body: &dyn Fn(&mut KernelBuilder, Reg, Reg, Option<Reg>)| {
            let others: Vec<Reg> = self.kernel[..=last].iter().map(|d| kb.dim(d)).collect();
            tile::nest(kb, &others, &mut Vec::new(), &mut |kb, k| {
                let mut row = kb.index(0);
                for (i, d) in k.iter().zip(self.kernel) {
                    let d = kb.dim(d);
                    let scaled = kb.mul(row, d);
                    row = kb.add(scaled, *i);
                }
                let row = kb.mul(row, taps);
                let row = kb.add(row, tap);
                let row = kb.mul(row, width);
                let row = kb.add(row, run.at);
                let channel = kb.dim(&x.strides[1]);
                let channel = kb.mul(k[0], channel);
                let mut from = kb.add(base, channel);
                from = kb.add(from, along);
                let mut inside = None;
                for (a, start) in starts.iter().enumerate() {
                    let dilation = kb.index(self.conv.dilations[a]);
                    let ahead = kb.mul(k[1 + a], dilation);
                    let at = kb.add(*start, ahead);
                    self.check(kb, a, at, &mut inside);
                    let stride = kb.dim(&x.strides[2 + a]);
                    let step = kb.mul(at, stride);
                    from = kb.add(from, step);
                }
                body(kb, row, from, inside);
            });
        };
        let copy = |kb: &mut KernelBuilder, (row, from): (Reg, Reg), j: Reg, lanes: u16| {
            let step = kb.mul(j, stride);
            let (from, to) = (kb.add(from, step), kb.add(row, j));
            let v = kb.load(buf, from, lanes);
            kb.store(panel, to, v);
        };
        let clear = |kb: &mut KernelBuilder, row: Reg, (from, to): (Reg, Reg)| {
            let nothing = kb.num(Ty::F32, 0.0);
            kb.for_(from, to, 1, Unroll::No, |kb, j| {
                let to = kb.add(row, j);
                kb.store(panel, to, nothing);
            });
        };
        let parts = |kb: &mut KernelBuilder, row: Reg, from: Reg, inside: Option<Reg>| {
            let all = |kb: &mut KernelBuilder| {
                clear(kb, row, (zero, inner));
                if dense {
                    kb.for_(inner, middle, shape.lanes.into(), Unroll::No, |kb, j| copy(kb, (row, from), j, shape.lanes));
                }
                kb.for_(middle, outer, 1, Unroll::No, |kb, j| copy(kb, (row, from), j, 1));
                clear(kb, row, (outer, run.count));
            };
            match inside {
                None => all(kb),
                Some(inside) => kb.if_(inside, all, |kb| clear(kb, row, (zero, run.count))),
            }
        };
        if !dense {
            return each(kb, &parts);
        }
        // Most runs fill the panel, and lie inside.
        let whole = |kb: &mut KernelBuilder, row: Reg, from: Reg, inside: Option<Reg>| {
            let vectors = |kb: &mut KernelBuilder| {
                for v in shape.columns() {
                    let v = kb.index(v);
                    copy(kb, (row, from), v, shape.lanes);
                }
            };
            match inside {
                None => vectors(kb),
                Some(inside) => kb.if_(inside, vectors, |kb| clear(kb, row, (zero, width))),
            }
        };
        let starts_inside = kb.bin(BinOp::Eq, inner, zero);
        let ends_inside = kb.bin(BinOp::Eq, outer, width);
        let fills = kb.bin(BinOp::And, starts_inside, ends_inside);
        kb.if_(fills, |kb| each(kb, &whole), |kb| each(kb, &parts));
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
