//! Products of 8-bit codes with zero points, both operands made while the kernel runs: `sum over k of (x - zx) * (y - zy)`, exact in `i32`.
//!
//! Dot products of bytes take an unsigned and a signed operand: codes of the other sign are shifted by 128 with their zero point, and what the zero
//! points add, which depends on a row or on a column alone, is where the sums start. Pairs of 16-bit numbers have their zero points taken off when
//! they are packed.

use transc_ir::loops::{Buf, Inst, KernelBuilder, ReduceOp, Reg, TargetInst, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::groups::{self, Form, Group};
use super::tile::{self, Source, TileShape};

/// Codes of one type on one side of a product.
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub(super) dtype: DType,
    pub(super) zero: i64,
    pub(super) group: Group,
    /// The side of the rows, whose bytes are unsigned.
    pub(super) left: bool,
}

impl Side {
    /// The code as the product takes it.
    pub(super) fn encode(self, kb: &mut KernelBuilder, x: Reg) -> Reg {
        if self.group == Group::Words {
            let (x, zero) = (kb.cast(DType::I16, x), self.zero as f64);
            let zero = kb.num(kb.ty(x), zero);
            return kb.sub(x, zero);
        }
        let [left, right] = self.group.dtypes();
        let to = if self.left { left } else { right };
        if self.dtype == to {
            return x;
        }
        let bits = if self.dtype == DType::U8 { x } else { kb.push(Inst::Bitcast(DType::U8, x)) };
        let shift = kb.num(kb.ty(bits), 128.0);
        let bits = kb.bin(BinOp::Xor, bits, shift);
        if to == DType::U8 { bits } else { kb.push(Inst::Bitcast(to, bits)) }
    }

    /// The zero point of what [`Side::encode`] gives.
    fn encoded_zero(self) -> i64 {
        match (self.group, self.left, self.dtype) {
            (Group::Words, ..) => 0,
            (_, true, DType::I8) => self.zero + 128,
            (_, false, DType::U8) => self.zero - 128,
            _ => self.zero,
        }
    }
}

/// A product of some rows `[rows][row_len]` by panels of columns.
pub(super) struct Product {
    pub(super) left: Side,
    pub(super) right: Side,
    shape: TileShape,
    /// Length of the sums.
    pub(super) k: Dim,
    /// Columns.
    n: Dim,
    /// The rows as the product takes them, with zeros beyond the end.
    pub(super) rows: Buf,
    /// `k` in whole vectors.
    pub(super) row_len: Dim,
    pub(super) panels: Buf,
    /// Where sums start, `i32`, by column and by row.
    starts: [Buf; 2],
    /// `i32[rows][..]`.
    pub(super) sums: Buf,
}

impl Product {
    /// With memory for sums `[rows][sums_len]`.
    pub(super) fn new(
        kb: &mut KernelBuilder,
        [left, right]: [Side; 2],
        shape: TileShape,
        [k, n]: [&Dim; 2],
        (rows, sums_len): (&Dim, &Dim),
    ) -> Product {
        let [row, panel] = left.group.dtypes();
        let (group, vector) = (Dim::from(left.group.size()), Dim::from(left.group.size() * i64::from(shape.lanes)));
        let (row_len, columns) = (&k.ceil_div(&vector) * &vector, &n.ceil_div(&shape.width().into()) * &shape.width().into());
        Product {
            left,
            right,
            shape,
            k: k.clone(),
            n: n.clone(),
            rows: kb.local(row, &row_len * rows),
            row_len,
            panels: kb.local(panel, &columns * &(&k.ceil_div(&group) * &group)),
            starts: [kb.local(DType::I32, columns), kb.local(DType::I32, rows.clone())],
            sums: kb.local(DType::I32, sums_len * rows),
        }
    }

    /// Elements of a vector of groups.
    pub(super) fn vector(&self) -> i64 {
        i64::from(self.shape.lanes) * self.left.group.size()
    }

    /// Length of the sums in whole groups.
    pub(super) fn depth(&self) -> Dim {
        let group = Dim::from(self.left.group.size());
        &self.k.ceil_div(&group) * &group
    }

    /// Packs all columns.
    pub(super) fn pack(&self, kb: &mut KernelBuilder, src: &Source<'_>) {
        let panels = self.n.ceil_div(&self.shape.width().into());
        tile::each_panel(kb, &panels, self.shape, &self.depth(), &mut |kb, n0, at| {
            self.pack_panel(kb, (src, &self.n), n0, (n0, at))
        });
    }

    /// Packs the columns from `from` on, of a source of `n`, as those of the panel that starts at column `n0` and element `at`.
    pub(super) fn pack_panel(&self, kb: &mut KernelBuilder, (src, n): (&Source<'_>, &Dim), from: Reg, (n0, at): (Reg, Reg)) {
        let encode = |kb: &mut KernelBuilder, x: Reg| self.right.encode(kb, x);
        let form = Form { shape: self.shape, group: self.right.group, depth: self.right.group.size(), encode: &encode };
        groups::pack_panel(kb, form, (&self.k, n), src, from, (self.panels, at));
        self.start_columns(kb, n0, at);
    }

    /// `zl * (k zr - sum of a column)` for the columns of a panel.
    pub(super) fn start_columns(&self, kb: &mut KernelBuilder, n0: Reg, at: Reg) {
        if self.left.group == Group::Words {
            return;
        }
        let (zl, zr) = (self.left.encoded_zero(), self.right.encoded_zero());
        let (lanes, len) = (self.shape.lanes, self.left.group.size());
        let ty = Ty::vector(DType::I32, lanes);
        let (zero, depth, width) = (kb.index(0), kb.dim(&self.depth()), kb.index(self.shape.width()));
        for v in self.shape.columns() {
            let (place, inside) = (kb.index(v), kb.index(v * len));
            let place = kb.add(n0, place);
            if zl == 0 {
                let none = kb.num(ty, 0.0);
                kb.store(self.starts[0], place, none);
                continue;
            }
            let from = kb.add(at, inside);
            let none = kb.num(ty, 0.0);
            let sum = kb.var(none);
            let ones = kb.num(Ty::vector(DType::U8, lanes * len as u16), 1.0);
            kb.for_(zero, depth, len, Unroll::No, |kb, k| {
                let step = kb.mul(k, width);
                let at = kb.add(from, step);
                let (x, old) = (kb.load(self.panels, at, lanes * len as u16), kb.get(sum));
                let new = kb.target(TargetInst::VpDpBusd, &[old, ones, x]);
                kb.set(sum, new);
            });
            let all = kb.dim(&(&self.k * &Dim::from(zr)));
            let all = kb.cast(DType::I32, all);
            let (all, factor, sum) = (kb.splat(lanes, all), kb.num(ty, zl as f64), kb.get(sum));
            let rest = kb.sub(all, sum);
            let start = kb.mul(rest, factor);
            kb.store(self.starts[0], place, start);
        }
    }

    /// `-zr * sum of a row`, whose elements beyond the end are zero.
    pub(super) fn start_row(&self, kb: &mut KernelBuilder, r: Reg) {
        if self.left.group == Group::Words {
            return;
        }
        let zr = self.right.encoded_zero();
        let lanes = self.shape.lanes;
        let vector = lanes * self.left.group.size() as u16;
        let none = kb.num(Ty::vector(DType::I32, lanes), 0.0);
        let sum = kb.var(none);
        if zr != 0 {
            let (zero, len) = (kb.index(0), kb.dim(&self.row_len));
            let base = kb.mul(r, len);
            let ones = kb.num(Ty::vector(DType::I8, vector), 1.0);
            kb.for_(zero, len, vector.into(), Unroll::No, |kb, j| {
                let at = kb.add(base, j);
                let (x, old) = (kb.load(self.rows, at, vector), kb.get(sum));
                let new = kb.target(TargetInst::VpDpBusd, &[old, x, ones]);
                kb.set(sum, new);
            });
        }
        let sum = kb.get(sum);
        let sum = kb.reduce(ReduceOp::Add, sum);
        let factor = kb.num(Ty::scalar(DType::I32), -zr as f64);
        let start = kb.mul(sum, factor);
        kb.store(self.starts[1], r, start);
    }

    /// The sums of a panel, which starts at column `n0` and element `column`, at `sums[row * stride + to + column of the panel]`.
    pub(super) fn multiply(&self, kb: &mut KernelBuilder, rows: Reg, (n0, column): (Reg, Reg), (stride, to): (Reg, Reg)) {
        let (shape, zero, one) = (self.shape, kb.index(0), kb.index(1));
        let (len, depth) = (kb.dim(&self.row_len), kb.dim(&self.depth()));
        tile::sweep_rows(kb, zero, rows, shape.rows, &mut |kb, row, n| {
            let at = tile::tile_rows(kb, row, n, len);
            let none = kb.num(Ty::vector(DType::I32, shape.lanes), 0.0);
            let starts: Vec<Reg> = if self.left.group == Group::Words {
                vec![none; usize::from(n * shape.vectors)]
            } else {
                let columns: Vec<Reg> = shape
                    .columns()
                    .map(|v| {
                        let v = kb.index(v);
                        let at = kb.add(n0, v);
                        kb.load(self.starts[0], at, shape.lanes)
                    })
                    .collect();
                let rows = tile::tile_rows(kb, row, n, one);
                rows.into_iter()
                    .flat_map(|r| {
                        let start = kb.load(self.starts[1], r, 1);
                        let start = kb.splat(shape.lanes, start);
                        columns.iter().map(|c| kb.add(start, *c)).collect::<Vec<_>>()
                    })
                    .collect()
            };
            let acc: Vec<_> = starts.into_iter().map(|s| kb.var(s)).collect();
            self.left.group.add_steps(kb, shape, (self.rows, &at), (self.panels, column, None), (zero, depth), &acc);
            let places = tile::tile_places(kb, shape, (row, n), stride, to);
            tile::store_at(kb, self.sums, &places, &acc);
        });
    }
}
