//! Depthwise convolution in `f32`: a window of its own for every channel (Howard et al. 2017, "MobileNets", section 3.1).
//!
//! **Contract.** `y[n, m, o..] = sum over k.. of w[m, k..] * x[n, m / multiplier, o * stride + k * dilation - lo..]`, zero where `x` has no such
//! element. Windows have constant extents, and at most 64 taps along the last axis. The sum runs in ascending order of `k` in one
//! accumulator per element, one rounding per multiply-add.
//!
//! **Schedule.** A unit is one channel of one image. Its plane is copied to scratch memory with the padding around it, so that no window is checked.
//! Along the last axis, elements whose places differ by a multiple of the stride lie together: neighbouring windows read neighbours. Accumulators
//! are rows by vectors of positions.

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll, Var};
use transc_ir::op::Conv;
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::tile::{active, nest, place, unflatten, whole_turns};

/// Taps along the last axis, which are unrolled.
const MOST_TAPS: i64 = 64;

/// A convolution of planes.
pub struct Depthwise<'a> {
    /// Steps, padding.
    pub conv: &'a Conv,
    /// Extents of a plane.
    pub input: &'a [Dim],
    /// Extents of a window.
    pub window: &'a [i64],
    /// `[N, M, out..]`.
    pub out: &'a [Dim],
    /// Results per channel of the input.
    pub multiplier: i64,
    /// Lanes of a vector.
    pub lanes: u16,
}

/// Where an operand lies.
pub struct Operand<'a> {
    /// Its memory.
    pub buf: Buf,
    /// Element offset of the first element.
    pub offset: &'a Dim,
    /// Distance along each axis.
    pub strides: &'a [Dim],
}

/// Consumes finished elements: all indices (the last is that of the first lane), vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, &[Reg], Reg, Option<Reg>) + 'a;

impl Depthwise<'_> {
    /// True if there is a kernel.
    pub fn fits(&self) -> bool {
        self.window.last().is_some_and(|w| *w <= MOST_TAPS)
    }

    /// Number of independent units.
    pub fn extent(&self) -> Dim {
        &self.out[0] * &self.out[1]
    }

    fn last(&self) -> usize {
        self.window.len() - 1
    }

    /// Rows and vectors of a tile: eight sums keep the multipliers busy.
    fn tile(&self) -> (i64, i64) {
        match self.out.last().and_then(Dim::as_const) {
            _ if self.last() == 0 => (1, 8),
            Some(n) if n <= i64::from(self.lanes) => (8, 1),
            _ => (4, 2),
        }
    }

    /// Places of one remainder along the last axis.
    fn places(&self) -> Dim {
        let a = self.last();
        &self.out[2 + a] + &Dim::from((self.window[a] - 1) * self.conv.dilations[a] / self.conv.strides[a] + 1)
    }

    /// Extents of the plane in scratch memory: what windows reach, and along the last axis the places of each remainder.
    fn plane(&self) -> Vec<Dim> {
        let reach = |a: usize| {
            let more = (self.window[a] - 1) * self.conv.dilations[a] + 1 - self.conv.strides[a];
            &(&self.out[2 + a] * &Dim::from(self.conv.strides[a])) + &Dim::from(more)
        };
        let row = &self.places() * &Dim::from(self.conv.strides[self.last()]);
        (0..self.last()).map(reach).chain([row]).collect()
    }

    /// Builds the kernel's body. The kernel's extent must be [`Depthwise::extent`].
    pub fn build(&self, kb: &mut KernelBuilder, x: &Operand<'_>, w: &Operand<'_>, epilogue: &mut Epilogue<'_>) {
        let lanes = i64::from(self.lanes);
        let used = self.plane().iter().product::<Dim>();
        // The last vectors of the last row read beyond it.
        let len = &(&used + &Dim::from(lanes * (self.tile().1 + 1))).floor_div(&lanes.into()) * &Dim::from(lanes);
        let plane = kb.local(DType::F32, len.clone());
        let (zero, end) = (kb.index(0), kb.dim(&len));
        let nothing = kb.num(Ty::vector(DType::F32, self.lanes), 0.0);
        // Once: copies do not touch the padding.
        kb.for_(zero, end, lanes, Unroll::No, |kb, at| kb.store(plane, at, nothing));
        let (lo, hi) = (kb.lo(), kb.hi());
        kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
            let at = unflatten(kb, unit, &self.out[..2]);
            let multiplier = kb.index(self.multiplier);
            let channel = kb.bin(BinOp::Div, at[1], multiplier);
            let from = place(kb, x.offset, x.strides, &[at[0], channel]);
            self.copy(kb, x, from, plane);
            let weight = place(kb, w.offset, w.strides, &at[1..]);
            self.positions(kb, &at, plane, (w, weight), epilogue);
        });
    }

    /// Copies a plane of the input into the middle of scratch memory.
    fn copy(&self, kb: &mut KernelBuilder, x: &Operand<'_>, from: Reg, plane: Buf) {
        let (last, dims) = (self.last(), self.plane());
        let strides = &x.strides[2..];
        let rows: Vec<(Reg, Reg)> = (0..last)
            .map(|a| {
                let (all, reach, lo) = (kb.dim(&self.input[a]), kb.dim(&dims[a]), kb.index(self.conv.lo[a]));
                let reach = kb.sub(reach, lo);
                (kb.bin(BinOp::Min, all, reach), lo)
            })
            .collect();
        nest(kb, &rows.iter().map(|(n, _)| *n).collect::<Vec<_>>(), &mut Vec::new(), &mut |kb, at| {
            let (mut row, mut src) = (kb.index(0), from);
            for (a, i) in at.iter().enumerate() {
                let (n, stride) = (kb.dim(&dims[a]), kb.dim(&strides[a]));
                row = kb.mul(row, n);
                let i_padded = kb.add(*i, rows[a].1);
                row = kb.add(row, i_padded);
                let step = kb.mul(*i, stride);
                src = kb.add(src, step);
            }
            let pitch = kb.dim(&dims[last]);
            let row = kb.mul(row, pitch);
            for remainder in 0..self.conv.strides[last] {
                self.copy_row(kb, (x.buf, src, &strides[last]), (plane, row), remainder);
            }
        });
    }

    /// Copies the elements of a row that have a remainder by the stride.
    fn copy_row(&self, kb: &mut KernelBuilder, (buf, src, stride): (Buf, Reg, &Dim), (plane, row): (Buf, Reg), remainder: i64) {
        let last = self.last();
        let (step, lo) = (self.conv.strides[last], self.conv.lo[last]);
        // Place `q` holds element `q * step + remainder - lo`.
        let first = (lo - remainder + step - 1).max(0) / step;
        let places = self.places();
        let (all, most) = (kb.dim(&self.input[last]), kb.dim(&places));
        let more = kb.index(lo - remainder + step - 1);
        let end = kb.add(all, more);
        let step_reg = kb.index(step);
        let end = kb.bin(BinOp::Div, end, step_reg);
        let end = kb.bin(BinOp::Min, end, most);
        let (start, shift) = (kb.index(first), kb.dim(&(&places * &Dim::from(remainder))));
        let to = kb.add(row, shift);
        let (stride, back) = (kb.dim(stride), kb.index(remainder - lo));
        let element = |kb: &mut KernelBuilder, q: Reg, lanes: u16| {
            let i = kb.mul(q, step_reg);
            let i = kb.add(i, back);
            let i = kb.mul(i, stride);
            let (from, to) = (kb.add(src, i), kb.add(to, q));
            let v = kb.load(buf, from, lanes);
            kb.store(plane, to, v);
        };
        let mut middle = start;
        if step == 1 && kb.as_index(stride) == Some(1) {
            middle = whole_turns(kb, (start, end), self.lanes.into());
            kb.for_(start, middle, self.lanes.into(), Unroll::No, |kb, q| element(kb, q, self.lanes));
        }
        kb.for_(middle, end, 1, Unroll::No, |kb, q| element(kb, q, 1));
    }

    /// All positions of a plane of results.
    fn positions(&self, kb: &mut KernelBuilder, lead: &[Reg], plane: Buf, w: (&Operand<'_>, Reg), epilogue: &mut Epilogue<'_>) {
        let last = self.last();
        let (rows, vectors) = self.tile();
        let lanes = i64::from(self.lanes);
        let out = &self.out[2..];
        let (zero, row_end) = (kb.index(0), kb.dim(&out[last]));
        // All axes but the two of the tile.
        let outer: Vec<Reg> = out[..last.saturating_sub(1)].iter().map(|d| kb.dim(d)).collect();
        nest(kb, &outer, &mut Vec::new(), &mut |kb, at| {
            let mut columns = |kb: &mut KernelBuilder, row: Option<Reg>| {
                let middle = whole_turns(kb, (zero, row_end), vectors * lanes);
                kb.for_(zero, middle, vectors * lanes, Unroll::No, |kb, column| {
                    self.tile_at(kb, (lead, at, row, column), (rows, vectors, None), plane, w, epilogue);
                });
                let whole = out[last].modulo(&(vectors * lanes).into()).is(0);
                if !whole {
                    kb.for_(middle, row_end, lanes, Unroll::No, |kb, column| {
                        let left = kb.sub(row_end, column);
                        let full = out[last].modulo(&lanes.into()).is(0);
                        let count = (!full).then(|| active(kb, left, lanes));
                        self.tile_at(kb, (lead, at, row, column), (rows, 1, count), plane, w, epilogue);
                    });
                }
            };
            if last == 0 {
                columns(kb, None);
            } else {
                let end = kb.dim(&out[last - 1]);
                kb.for_(zero, end, rows, Unroll::No, |kb, row| columns(kb, Some(row)));
            }
        });
    }

    /// One tile: its sums, then its epilogue.
    fn tile_at(
        &self,
        kb: &mut KernelBuilder,
        (lead, outer, row, column): (&[Reg], &[Reg], Option<Reg>, Reg),
        (rows, vectors, count): (i64, i64, Option<Reg>),
        plane: Buf,
        (w, weight): (&Operand<'_>, Reg),
        epilogue: &mut Epilogue<'_>,
    ) {
        let (last, dims) = (self.last(), self.plane());
        // The last tile repeats the last row where there are no more.
        let tile_rows: Vec<Option<Reg>> = match row {
            None => vec![None],
            Some(row) => {
                let end = kb.dim(&(&self.out[1 + last] - &Dim::from(1)));
                let each = (0..rows).map(|r| {
                    let r = kb.index(r);
                    let at = kb.add(row, r);
                    Some(kb.bin(BinOp::Min, at, end))
                });
                each.collect()
            }
        };
        let nothing = kb.num(Ty::vector(DType::F32, self.lanes), 0.0);
        let sums: Vec<Var> = (0..tile_rows.len() as i64 * vectors).map(|_| kb.var(nothing)).collect();
        let taps: Vec<Reg> = self.window[..last].iter().map(|n| kb.index(*n)).collect();
        let (step, dilation) = (self.conv.strides[last], self.conv.dilations[last]);
        nest(kb, &taps, &mut Vec::new(), &mut |kb, k| {
            let starts: Vec<Reg> = tile_rows
                .iter()
                .map(|row| {
                    let mut at = kb.index(0);
                    for (a, (o, k)) in outer.iter().chain(row).zip(k).enumerate() {
                        let (n, s, d) = (kb.dim(&dims[a]), kb.index(self.conv.strides[a]), kb.index(self.conv.dilations[a]));
                        at = kb.mul(at, n);
                        let (o, k) = (kb.mul(*o, s), kb.mul(*k, d));
                        let i = kb.add(o, k);
                        at = kb.add(at, i);
                    }
                    let pitch = kb.dim(&dims[last]);
                    let at = kb.mul(at, pitch);
                    kb.add(at, column)
                })
                .collect();
            let mut of_weight = weight;
            for (k, stride) in k.iter().zip(&w.strides[2..]) {
                let stride = kb.dim(stride);
                let by = kb.mul(*k, stride);
                of_weight = kb.add(of_weight, by);
            }
            for tap in 0..self.window[last] {
                let (remainder, shift) = (tap * dilation % step, tap * dilation / step);
                let from = kb.dim(&(&(&self.places() * &Dim::from(remainder)) + &Dim::from(shift)));
                let by = kb.dim(&(&w.strides[2 + last] * &Dim::from(tap)));
                let by = kb.add(of_weight, by);
                let scale = kb.load(w.buf, by, 1);
                let scale = kb.splat(self.lanes, scale);
                for (i, sum) in sums.iter().enumerate() {
                    let (r, v) = (i / vectors as usize, i as i64 % vectors);
                    let skip = kb.index(v * i64::from(self.lanes));
                    let at = kb.add(starts[r], from);
                    let at = kb.add(at, skip);
                    let x = kb.load(plane, at, self.lanes);
                    let old = kb.get(*sum);
                    let new = kb.fma(scale, x, old);
                    kb.set(*sum, new);
                }
            }
        });
        for (r, of_row) in sums.chunks(vectors as usize).enumerate() {
            let mut hand_on = |kb: &mut KernelBuilder| {
                for (v, sum) in of_row.iter().enumerate() {
                    let skip = kb.index(v as i64 * i64::from(self.lanes));
                    let column = kb.add(column, skip);
                    let idx: Vec<Reg> = lead.iter().chain(outer).chain(&tile_rows[r]).chain([&column]).copied().collect();
                    let x = kb.get(*sum);
                    epilogue(kb, &idx, x, count);
                }
            };
            match row.filter(|_| r > 0 && !self.out[1 + last].modulo(&rows.into()).is(0)) {
                None => hand_on(kb),
                Some(row) => {
                    let (r, end) = (kb.index(r as i64), kb.dim(&self.out[1 + last]));
                    let at = kb.add(row, r);
                    let exists = kb.bin(BinOp::Lt, at, end);
                    kb.if_(exists, hand_on, |_| {});
                }
            }
        }
    }
}
