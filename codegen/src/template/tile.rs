//! The register tile: the inner kernel of matrix products and of attention.
//!
//! `acc[r][v] += a[row r, k] * b[k, vector v]` for `k` in ascending order, one rounding per step (Goto and van de Geijn 2008, section 4).

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg, Ty, Unroll, Var};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::ahead::Asking;
use super::transpose::transpose;

/// Steps of `k` per turn of the inner loop.
pub const UNROLL: i64 = 4;

/// Vectors that an epilogue works on side by side.
pub const SIDE_BY_SIDE: u8 = 4;

/// The shape of a register tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileShape {
    /// Lanes of a vector.
    pub lanes: u16,
    /// Rows.
    pub rows: u16,
    /// Vectors per row.
    pub vectors: u16,
}

impl TileShape {
    /// Width in elements.
    pub const fn width(self) -> i64 {
        self.lanes as i64 * self.vectors as i64
    }

    /// The shapes for a machine with vectors of `lanes` floats: `rows * vectors + vectors + 1` registers out of 32 (16 lanes) or 16.
    pub fn space(lanes: u16) -> Vec<TileShape> {
        let tiles: &[(u16, u16)] = if lanes == 16 { &[(8, 3), (8, 2), (8, 1)] } else { &[(4, 3), (4, 2), (8, 1)] };
        tiles.iter().map(|(rows, vectors)| TileShape { lanes, rows: *rows, vectors: *vectors }).collect()
    }

    /// The shape that takes least time for `n` columns; the widest of equals.
    pub fn choose(lanes: u16, n: &Dim) -> TileShape {
        TileShape::fastest(&TileShape::space(lanes), n)
    }

    /// As [`TileShape::choose`], out of these.
    pub fn fastest(space: &[TileShape], n: &Dim) -> TileShape {
        let time = |s: &TileShape| n.as_const().map_or(0, |n| s.time(n));
        space.iter().copied().min_by_key(|s| (time(s), -s.width())).unwrap_or(space[0])
    }

    /// Time of a row of `n` columns, in steps of `k`.
    pub fn time(self, n: i64) -> i64 {
        (n + self.width() - 1) / self.width() * self.width() * self.slowness()
    }

    /// Time of a multiply-add in a tile, in thousandths of the ideal: a step takes as many loads as it has rows and vectors, each of which delays it by
    /// about a quarter of a multiply-add.
    fn slowness(self) -> i64 {
        let (rows, vectors) = (i64::from(self.rows), i64::from(self.vectors));
        1000 + 250 * (rows + vectors) / (rows * vectors)
    }

    /// Positions of the vectors inside a row.
    pub fn columns(self) -> impl Iterator<Item = i64> {
        (0..i64::from(self.vectors)).map(move |v| v * i64::from(self.lanes))
    }
}

/// The operands of a tile.
pub struct TileInput<'a> {
    /// Memory of the rows.
    pub a: Buf,
    /// Element offset of each row at `k = 0`.
    pub rows: &'a [Reg],
    /// Distance along `k` in the rows.
    pub a_stride: Reg,
    /// Memory of the columns.
    pub b: Buf,
    /// Element offset of the first column at `k = 0`.
    pub column: Reg,
    /// Distance along `k` in the columns.
    pub b_stride: Reg,
    /// Active lanes of each vector of columns, where not all are.
    pub counts: &'a [Option<Reg>],
    /// Length of the sums.
    pub k: &'a Dim,
    /// What each turn of the inner loop asks for.
    pub ahead: Option<Asking>,
}

/// A part of the sums of a tile.
#[derive(Clone, Copy)]
pub struct Part {
    /// First step; a multiple of the unrolling.
    pub from: Reg,
    /// End.
    pub to: Reg,
    /// The sums so far, row by row.
    pub sums: Option<(Buf, Reg)>,
}

/// Accumulators of `rows` rows, ordered by row, then vector: zero, or loaded from memory in this order.
pub fn accumulators(kb: &mut KernelBuilder, shape: TileShape, rows: usize, sums: Option<(Buf, Reg)>) -> Vec<Var> {
    let zero = kb.num(Ty::vector(DType::F32, shape.lanes), 0.0);
    (0..rows as i64 * i64::from(shape.vectors))
        .map(|i| {
            let first = sums.map_or(zero, |(buf, at)| {
                let offset = kb.index(i * i64::from(shape.lanes));
                let at = kb.add(at, offset);
                kb.load(buf, at, shape.lanes)
            });
            kb.var(first)
        })
        .collect()
}

/// Stores accumulators where [`accumulators`] finds them.
pub fn store_accumulators(kb: &mut KernelBuilder, shape: TileShape, acc: &[Var], (buf, at): (Buf, Reg)) {
    for (i, var) in acc.iter().enumerate() {
        let offset = kb.index(i as i64 * i64::from(shape.lanes));
        let at = kb.add(at, offset);
        let x = kb.get(*var);
        kb.store(buf, at, x);
    }
}

/// Gives the rows `m0..m1` of a panel of results, which lie in `buf` one after the other, to an epilogue: row, first column (from `n0` on, of `n`),
/// vector of values, active lanes. So the epilogue's code does not stand once per vector of a tile.
pub fn hand_on(
    kb: &mut KernelBuilder,
    shape: TileShape,
    buf: Buf,
    (m0, m1): (Reg, Reg),
    (n0, n): (Reg, &Dim),
    epilogue: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg, Option<Reg>),
) {
    let (zero, lanes, vectors, end) = (kb.index(0), kb.index(shape.lanes.into()), kb.index(shape.vectors.into()), kb.dim(n));
    let (rows, width) = (kb.sub(m1, m0), kb.index(shape.width()));
    // Vector by vector: what the epilogue knows of a column serves all rows.
    kb.for_(zero, vectors, 1, Unroll::Few, |kb, v| {
        let column = kb.mul(v, lanes);
        let first = kb.add(n0, column);
        let left = kb.sub(end, first);
        let live = (!n.modulo(&shape.width().into()).is(0)).then(|| active(kb, left, shape.lanes.into()));
        kb.for_(zero, rows, 1, Unroll::Interleave(SIDE_BY_SIDE), |kb, r| {
            let (m, from) = (kb.add(m0, r), kb.mul(r, width));
            let from = kb.add(from, column);
            let x = kb.load(buf, from, shape.lanes);
            epilogue(kb, m, first, x, live);
        });
    });
}

/// Computes the tile; the accumulators are ordered by row, then vector.
pub fn accumulate(kb: &mut KernelBuilder, shape: TileShape, x: &TileInput<'_>) -> Vec<Var> {
    let (from, to) = (kb.index(0), kb.dim(x.k));
    accumulate_part(kb, shape, x, Part { from, to, sums: None })
}

/// Adds some steps of the sums of a tile.
pub fn accumulate_part(kb: &mut KernelBuilder, shape: TileShape, x: &TileInput<'_>, part: Part) -> Vec<Var> {
    let acc = accumulators(kb, shape, x.rows.len(), part.sums);
    add_steps(kb, shape, x, (part.from, part.to), &acc);
    acc
}

/// Adds the steps `start..end` to the accumulators of a tile; see [`Part::from`].
pub fn add_steps(kb: &mut KernelBuilder, shape: TileShape, x: &TileInput<'_>, (start, end): (Reg, Reg), acc: &[Var]) {
    let step = |kb: &mut KernelBuilder, k: Reg| {
        let at = kb.mul(k, x.b_stride);
        let at = kb.add(x.column, at);
        let columns: Vec<Reg> = shape
            .columns()
            .zip(x.counts)
            .map(|(v, count)| {
                let v = kb.index(v);
                let at = kb.add(at, v);
                kb.load_part(x.b, at, shape.lanes, *count)
            })
            .collect();
        let k = kb.mul(k, x.a_stride);
        for (row, acc) in x.rows.iter().zip(acc.chunks(usize::from(shape.vectors))) {
            let at = kb.add(*row, k);
            let a = kb.load(x.a, at, 1);
            let a = kb.splat(shape.lanes, a);
            for (b, var) in columns.iter().zip(acc) {
                let sum = kb.get(*var);
                let sum = kb.fma(a, *b, sum);
                kb.set(*var, sum);
            }
        }
    };
    let main = whole_turns(kb, (start, end), UNROLL);
    kb.for_(start, main, UNROLL, Unroll::No, |kb, k| {
        if let Some(ahead) = x.ahead {
            ahead.turn(kb);
        }
        for u in 0..UNROLL {
            let u = kb.index(u);
            let k = kb.add(k, u);
            step(kb, k);
        }
    });
    if !x.k.modulo(&UNROLL.into()).is(0) {
        kb.for_(main, end, 1, Unroll::No, |kb, k| step(kb, k));
    }
}

/// Runs `body` for blocks of `rows` rows, then of the powers of two below, that together cover `lo..hi` once, in order.
pub fn sweep_rows(kb: &mut KernelBuilder, lo: Reg, hi: Reg, rows: u16, body: &mut dyn FnMut(&mut KernelBuilder, Reg, u16)) {
    let mut from = lo;
    let mut rows = rows;
    while rows > 0 {
        let left = kb.sub(hi, from);
        let step = kb.index(rows.into());
        let count = kb.bin(BinOp::Div, left, step);
        let covered = kb.mul(count, step);
        let end = kb.add(from, covered);
        kb.for_(from, end, rows.into(), Unroll::No, |kb, row| body(kb, row, rows));
        from = end;
        rows = rows.next_power_of_two() / 2;
    }
}

/// As [`hand_on`], as vectors of rows: first row, column, vector of values, active lanes. `square` holds as many vectors as they have lanes.
pub fn hand_on_turned(
    kb: &mut KernelBuilder,
    shape: TileShape,
    (buf, square): (Buf, Buf),
    (m0, m1): (Reg, Reg),
    (n0, n): (Reg, &Dim),
    epilogue: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg, Reg),
) {
    let (zero, lanes, vectors, end) = (kb.index(0), kb.index(shape.lanes.into()), kb.index(shape.vectors.into()), kb.dim(n));
    let (rows, width, one) = (kb.sub(m1, m0), kb.index(shape.width()), kb.index(1));
    let last = kb.sub(rows, one);
    kb.for_(zero, vectors, 1, Unroll::Few, |kb, v| {
        let column = kb.mul(v, lanes);
        let first = kb.add(n0, column);
        let left = kb.sub(end, first);
        let live = active(kb, left, shape.lanes.into());
        kb.for_(zero, rows, shape.lanes.into(), Unroll::No, |kb, r| {
            let each: Vec<Reg> = (0..i64::from(shape.lanes))
                .map(|i| {
                    // Beyond the last row, that one again.
                    let i = kb.index(i);
                    let row = kb.add(r, i);
                    let row = kb.bin(BinOp::Min, row, last);
                    let at = kb.mul(row, width);
                    let at = kb.add(at, column);
                    kb.load(buf, at, shape.lanes)
                })
                .collect();
            for (i, x) in transpose(kb, &each, 1).into_iter().enumerate() {
                let at = kb.index(i as i64 * i64::from(shape.lanes));
                kb.store(square, at, x);
            }
            let left = kb.sub(rows, r);
            let count = active(kb, left, shape.lanes.into());
            let m = kb.add(m0, r);
            kb.for_(zero, live, 1, Unroll::No, |kb, i| {
                let at = kb.mul(i, lanes);
                let x = kb.load(square, at, shape.lanes);
                let n = kb.add(first, i);
                epilogue(kb, m, n, x, count);
            });
        });
    });
}

/// Active lanes of the vectors of a block of columns of which `left` exist; all `None` if `n` is a multiple of the width.
pub fn column_counts(kb: &mut KernelBuilder, shape: TileShape, n: &Dim, left: Reg) -> Vec<Option<Reg>> {
    if n.modulo(&shape.width().into()).is(0) {
        return vec![None; shape.vectors.into()];
    }
    shape
        .columns()
        .map(|at| {
            let at = kb.index(at);
            let rest = kb.sub(left, at);
            Some(active(kb, rest, shape.lanes.into()))
        })
        .collect()
}

/// How many of `most` elements exist where `left` do, which may be negative.
pub fn active(kb: &mut KernelBuilder, left: Reg, most: i64) -> Reg {
    let (zero, most) = (kb.index(0), kb.index(most));
    let left = kb.bin(BinOp::Max, left, zero);
    kb.bin(BinOp::Min, left, most)
}

/// Where the whole turns of `step` steps from `from` on end, of those up to `to`.
pub fn whole_turns(kb: &mut KernelBuilder, (from, to): (Reg, Reg), step: i64) -> Reg {
    let (steps, width) = (kb.sub(to, from), kb.index(step));
    let turns = kb.bin(BinOp::Div, steps, width);
    let whole = kb.mul(turns, width);
    kb.add(from, whole)
}

/// A strided matrix in memory, read as `[k, n]`.
pub struct Source<'a> {
    /// Memory.
    pub buf: Buf,
    /// Element offset of `[0, 0]`.
    pub base: Reg,
    /// Distance along `k`.
    pub k_stride: &'a Dim,
    /// Distance along `n`.
    pub n_stride: &'a Dim,
}

/// Copies columns `n0..` of a `[k, n]` matrix of floats to `dst[at..]` as one panel `[k][width]` of `f32`, zero beyond the last column.
pub fn pack_panel(
    kb: &mut KernelBuilder,
    shape: TileShape,
    (k, n): (&Dim, &Dim),
    src: &Source<'_>,
    n0: Reg,
    (dst, at): (Buf, Reg),
) {
    let (zero, k_end, n_end) = (kb.index(0), kb.dim(k), kb.dim(n));
    let left = kb.sub(n_end, n0);
    let (ks, ns) = (kb.dim(src.k_stride), kb.dim(src.n_stride));
    let column = kb.mul(n0, ns);
    let start = kb.add(src.base, column);
    let width = kb.index(shape.width());
    if src.n_stride.is(1) {
        let counts = column_counts(kb, shape, n, left);
        kb.for_(zero, k_end, 1, Unroll::No, |kb, k| {
            let row = kb.mul(k, ks);
            let row = kb.add(start, row);
            let to = kb.mul(k, width);
            let to = kb.add(at, to);
            for (v, count) in shape.columns().zip(&counts) {
                let v = kb.index(v);
                let (from, to) = (kb.add(row, v), kb.add(to, v));
                let x = kb.load_part(src.buf, from, shape.lanes, *count);
                let x = kb.cast(DType::F32, x);
                kb.store(dst, to, x);
            }
        });
        return;
    }
    // Along n the source is not contiguous: walk it along k, where it usually is.
    let zero_value = kb.num(Ty::F32, 0.0);
    let filled = kb.bin(BinOp::Min, left, width);
    let from = |kb: &mut KernelBuilder, j: Reg, k: Reg| {
        let (column, row) = (kb.mul(j, ns), kb.mul(k, ks));
        let at = kb.add(start, column);
        kb.add(at, row)
    };
    let to = |kb: &mut KernelBuilder, j: Reg, k: Reg| {
        let row = kb.mul(k, width);
        let column = kb.add(at, j);
        kb.add(column, row)
    };
    let copy = |kb: &mut KernelBuilder, (lo, hi): (Reg, Reg), first: Reg| {
        kb.for_(lo, hi, 1, Unroll::No, |kb, j| {
            kb.for_(first, k_end, 1, Unroll::Auto, |kb, k| {
                let from = from(kb, j, k);
                let x = kb.load(src.buf, from, 1);
                let x = kb.cast(DType::F32, x);
                let to = to(kb, j, k);
                kb.store(dst, to, x);
            });
        });
    };
    let mut rest = zero;
    if src.k_stride.is(1) && shape.lanes >= 4 {
        let lanes = kb.index(shape.lanes.into());
        let whole = |kb: &mut KernelBuilder, n: Reg| {
            let blocks = kb.bin(BinOp::Div, n, lanes);
            kb.mul(blocks, lanes)
        };
        rest = whole(kb, filled);
        let whole_k = whole(kb, k_end);
        kb.for_(zero, rest, shape.lanes.into(), Unroll::No, |kb, j| {
            kb.for_(zero, whole_k, shape.lanes.into(), Unroll::No, |kb, k| {
                let place = |kb: &mut KernelBuilder, base: Reg, i: usize| {
                    let i = kb.index(i as i64);
                    kb.add(base, i)
                };
                let rows: Vec<Reg> = (0..shape.lanes.into())
                    .map(|i| {
                        let j = place(kb, j, i);
                        let from = from(kb, j, k);
                        let x = kb.load(src.buf, from, shape.lanes);
                        kb.cast(DType::F32, x)
                    })
                    .collect();
                for (i, x) in transpose(kb, &rows, 1).into_iter().enumerate() {
                    let k = place(kb, k, i);
                    let to = to(kb, j, k);
                    kb.store(dst, to, x);
                }
            });
        });
        if !k.modulo(&i64::from(shape.lanes).into()).is(0) {
            copy(kb, (zero, rest), whole_k);
        }
    }
    copy(kb, (rest, filled), zero);
    kb.for_(filled, width, 1, Unroll::No, |kb, j| {
        kb.for_(zero, k_end, 1, Unroll::Auto, |kb, k| {
            let to = to(kb, j, k);
            kb.store(dst, to, zero_value);
        });
    });
}

/// The quotient of a number that is not negative, rounded up.
pub fn ceil_div(kb: &mut KernelBuilder, n: Reg, by: i64) -> Reg {
    let (more, by) = (kb.index(by - 1), kb.index(by));
    let n = kb.add(n, more);
    kb.bin(BinOp::Div, n, by)
}

/// Quotient and remainder of a non-negative index; free when the divisor is the constant 1.
pub fn div_rem(kb: &mut KernelBuilder, r: Reg, by: &Dim) -> (Reg, Reg) {
    if by.is(1) {
        return (r, kb.index(0));
    }
    let by = kb.dim(by);
    (kb.bin(BinOp::Div, r, by), kb.bin(BinOp::Rem, r, by))
}

/// Row-major indices of a flat index; the outermost extent other than 1 needs no division.
pub fn unflatten(kb: &mut KernelBuilder, flat: Reg, dims: &[Dim]) -> Vec<Reg> {
    let ones = dims.iter().take_while(|d| d.is(1)).count();
    if ones > 0 && ones < dims.len() {
        let mut out: Vec<Reg> = (0..ones).map(|_| kb.index(0)).collect();
        out.extend(unflatten(kb, flat, &dims[ones..]));
        return out;
    }
    let mut out = Vec::with_capacity(dims.len());
    let mut rest = flat;
    for d in dims.iter().skip(1).rev() {
        let (q, r) = div_rem(kb, rest, d);
        out.push(r);
        rest = q;
    }
    if !dims.is_empty() {
        out.push(rest);
    }
    out.reverse();
    out
}

/// How far element `i` of an axis is from the first: neighbours are `stride` apart, or the axis lies in blocks of `len` neighbours that are so far
/// apart for each of them. `len` is a power of two.
pub fn along(kb: &mut KernelBuilder, i: Reg, stride: &Dim, len: Option<i64>) -> Reg {
    let distance = kb.dim(stride);
    let Some(len) = len else { return kb.mul(i, distance) };
    let last = kb.index(len - 1);
    let inside = kb.bin(BinOp::And, i, last);
    let first = kb.sub(i, inside);
    let block = kb.mul(first, distance);
    kb.add(block, inside)
}

/// `start + sum of at[i] * strides[i]`.
pub fn place<'a>(kb: &mut KernelBuilder, start: &Dim, strides: impl IntoIterator<Item = &'a Dim>, at: &[Reg]) -> Reg {
    let mut sum = kb.dim(start);
    for (stride, i) in strides.into_iter().zip(at) {
        let stride = kb.dim(stride);
        let step = kb.mul(*i, stride);
        sum = kb.add(sum, step);
    }
    sum
}

/// Loops inside one another, from 0 up to each end.
pub fn nest(kb: &mut KernelBuilder, ends: &[Reg], at: &mut Vec<Reg>, body: &mut dyn FnMut(&mut KernelBuilder, &[Reg])) {
    let Some(end) = ends.get(at.len()) else { return body(kb, at) };
    let zero = kb.index(0);
    kb.for_(zero, *end, 1, Unroll::No, |kb, i| {
        at.push(i);
        nest(kb, ends, at, body);
        at.pop();
    });
}

/// Calls `body` with first column and place of every panel `[len][width]`.
pub fn each_panel(
    kb: &mut KernelBuilder,
    panels: &Dim,
    shape: TileShape,
    len: &Dim,
    body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg),
) {
    let (zero, panels, width, len) = (kb.index(0), kb.dim(panels), kb.index(shape.width()), kb.dim(len));
    let size = kb.mul(width, len);
    kb.for_(zero, panels, 1, Unroll::No, |kb, j| {
        let (n0, at) = (kb.mul(j, width), kb.mul(j, size));
        body(kb, n0, at);
    });
}

/// Offsets of the rows of a tile.
pub fn tile_rows(kb: &mut KernelBuilder, row: Reg, rows: u16, stride: Reg) -> Vec<Reg> {
    let first = kb.mul(row, stride);
    (0..i64::from(rows))
        .map(|r| {
            let r = kb.index(r);
            let step = kb.mul(r, stride);
            kb.add(first, step)
        })
        .collect()
}

/// Where the accumulators of a tile lie in rows of a stride, from a column on.
pub fn tile_places(kb: &mut KernelBuilder, shape: TileShape, (row, rows): (Reg, u16), stride: Reg, column: Reg) -> Vec<Reg> {
    let starts = tile_rows(kb, row, rows, stride);
    let places = starts.into_iter().flat_map(|at| shape.columns().map(move |v| (at, v)));
    places
        .map(|(at, v)| {
            let (at, v) = (kb.add(at, column), kb.index(v));
            kb.add(at, v)
        })
        .collect()
}

/// Places of the vectors of a row from `at` on.
pub fn row_places(kb: &mut KernelBuilder, shape: TileShape, at: Reg) -> Vec<Reg> {
    let mut place = |v: i64| {
        let v = kb.index(v);
        kb.add(at, v)
    };
    shape.columns().map(&mut place).collect()
}

/// Vectors that [`fold_rows`] joins at once: an operation waits for the one before.
const FOLDS: usize = 8;

/// Gives what stands for a vector of a row of a panel: row and vector, place.
pub type RowOf<'a> = dyn FnMut(&mut KernelBuilder, (Reg, usize), Reg) -> Reg + 'a;

/// Folds `count` rows of a panel of floats from `base` on, row by row: for each vector of a row some that are still to be joined, each of which begins with `start`
/// and has every so many rows.
pub fn fold_rows(
    kb: &mut KernelBuilder,
    shape: TileShape,
    (base, count, start): (Reg, Reg, f64),
    row: &mut RowOf<'_>,
    join: &dyn Fn(&mut KernelBuilder, Reg, Reg) -> Reg,
) -> Vec<Vec<Reg>> {
    let (zero, width) = (kb.index(0), kb.index(shape.width()));
    let start = kb.num(Ty::vector(DType::F32, shape.lanes), start);
    let chains = FOLDS / usize::from(shape.vectors);
    let chains: Vec<Vec<Var>> = (0..chains).map(|_| shape.columns().map(|_| kb.var(start)).collect()).collect();
    let turn = chains.len() as i64;
    let mut step = |kb: &mut KernelBuilder, r: Reg, chain: &[Var]| {
        let inside = kb.mul(r, width);
        let at = kb.add(base, inside);
        for (v, (at, var)) in row_places(kb, shape, at).into_iter().zip(chain).enumerate() {
            let (x, old) = (row(kb, (r, v), at), kb.get(*var));
            let new = join(kb, x, old);
            kb.set(*var, new);
        }
    };
    let whole = whole_turns(kb, (zero, count), turn);
    kb.for_(zero, whole, turn, Unroll::No, |kb, r| {
        for (i, chain) in (0..).zip(&chains) {
            let i = kb.index(i);
            let r = kb.add(r, i);
            step(kb, r, chain);
        }
    });
    kb.for_(whole, count, 1, Unroll::No, |kb, r| step(kb, r, &chains[0]));
    (0..shape.vectors.into()).map(|v| chains.iter().map(|c| kb.get(c[v])).collect()).collect()
}

/// Stores accumulators at these places.
pub fn store_at(kb: &mut KernelBuilder, buf: Buf, places: &[Reg], acc: &[Var]) {
    for (at, var) in places.iter().zip(acc) {
        let x = kb.get(*var);
        kb.store(buf, *at, x);
    }
}

/// The first `count` lanes of `x`, the others from `fill`.
pub fn keep_lanes(kb: &mut KernelBuilder, x: Reg, count: Reg, fill: Reg) -> Reg {
    let n = kb.ty(x).lanes;
    let lane = kb.push(Inst::Lanes(Ty::vector(DType::I64, n)));
    let bound = kb.splat(n, count);
    let on = kb.bin(BinOp::Lt, lane, bound);
    kb.select(on, x, fill)
}
