//! Matrix product of bytes `C[m, n] = sum over k of A[m, k] * B[k, n]`: `u8` by `i8`, exact in `i32`.
//!
//! **Contract.** Rows of `A` are contiguous along `k`. `B` is a constant in panels of quads ([`crate::Packing::Quads`]). The sums wrap as
//! 32-bit integers; no step saturates, so every target gives the same integers. What happens to a finished element is the caller's epilogue.
//!
//! **Schedule.** A register tile: four bytes of each row, broadcast, against the panel's vectors (`vpdpbusd`: Intel 2018, "Lower numerical
//! precision deep learning inference and training"). A unit is one panel of columns times `chunk` rows.

use transc_ir::loops::{Buf, KernelBuilder, Reg, TargetInst, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::matmul::Schedule;
use super::tile::{self, TileShape};

/// Rows of the weight that one instruction takes.
const QUAD: i64 = 4;

/// The kernel's name under a schedule.
pub fn name(s: Schedule) -> String {
    format!("matmul_int8_m{}n{}c{}", s.tile.rows, s.tile.width(), s.chunk)
}

/// Number of independent units for `m` rows and `n` columns: a panel of columns by a chunk of rows.
pub fn extent(s: Schedule, m: &Dim, n: &Dim) -> Dim {
    &n.ceil_div(&s.tile.width().into()) * &m.ceil_div(&s.chunk.into())
}

/// Gives the element offset of row `m` of `A`.
pub type RowOffset<'a> = dyn FnMut(&mut KernelBuilder, Reg) -> Reg + 'a;
/// Consumes finished elements: row, first column, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, Reg, Reg, Reg, Option<Reg>) + 'a;

/// The sizes of a product and its operands.
pub struct Problem<'a> {
    /// Rows of the result.
    pub m: &'a Dim,
    /// Columns of the result.
    pub n: i64,
    /// Length of the sums.
    pub k: i64,
    /// The activation.
    pub a: Buf,
    /// The packed weight.
    pub b: Buf,
}

/// Builds the kernel's body. The kernel's extent must be [`extent`].
pub fn build(kb: &mut KernelBuilder, p: &Problem<'_>, s: Schedule, row: &mut RowOffset<'_>, epilogue: &mut Epilogue<'_>) {
    let (shape, n) = (s.tile, Dim::from(p.n));
    let n_chunks = p.m.ceil_div(&s.chunk.into());
    let stage = kb.local(DType::I32, Dim::from(shape.width() * i64::from(shape.rows)));
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (panel, chunk) = tile::div_rem(kb, unit, &n_chunks);
        let (chunk_len, width) = (kb.index(s.chunk), kb.index(shape.width()));
        let (m0, n0) = (kb.mul(chunk, chunk_len), kb.mul(panel, width));
        let (m_end, n_end) = (kb.dim(p.m), kb.dim(&n));
        let m1 = kb.add(m0, chunk_len);
        let m1 = kb.bin(BinOp::Min, m1, m_end);
        let panel_len = kb.index((p.k + QUAD - 1) / QUAD * QUAD * shape.width());
        let column = kb.mul(panel, panel_len);
        let left = kb.sub(n_end, n0);
        let counts = tile::column_counts(kb, shape, &n, left);
        tile::sweep_rows(kb, m0, m1, shape.rows, &mut |kb, m, rows| {
            let offsets: Vec<Reg> = (0..i64::from(rows))
                .map(|r| {
                    let r = kb.index(r);
                    let m = kb.add(m, r);
                    row(kb, m)
                })
                .collect();
            accumulate(kb, p, shape, &offsets, column, stage);
            // The epilogue's code stands once per tile shape and not once per vector.
            let (zero, n_rows) = (kb.index(0), kb.index(rows.into()));
            kb.for_(zero, n_rows, 1, Unroll::No, |kb, r| {
                let m = kb.add(m, r);
                let from = kb.mul(r, width);
                for (at, count) in shape.columns().zip(&counts) {
                    let at = kb.index(at);
                    let from = kb.add(from, at);
                    let x = kb.load(stage, from, shape.lanes);
                    let n = kb.add(n0, at);
                    epilogue(kb, m, n, x, *count);
                }
            });
        });
    });
}

/// The sums of one tile, left in `stage`.
fn accumulate(kb: &mut KernelBuilder, p: &Problem<'_>, shape: TileShape, rows: &[Reg], column: Reg, stage: Buf) {
    let zero = kb.num(Ty::vector(DType::I32, shape.lanes), 0.0);
    let vectors = usize::from(shape.vectors);
    let acc: Vec<_> = (0..rows.len() * vectors).map(|_| kb.var(zero)).collect();
    // One quad of four bytes in every 32-bit lane.
    let spread: Vec<u16> = (0..shape.lanes * 4).map(|i| i % 4).collect();
    let step = |kb: &mut KernelBuilder, k: Reg, count: Option<Reg>| {
        let width = kb.index(shape.width());
        let at = kb.mul(k, width);
        let at = kb.add(column, at);
        let weights: Vec<Reg> = shape
            .columns()
            .map(|v| {
                let v = kb.index(v * QUAD);
                let at = kb.add(at, v);
                kb.load(p.b, at, shape.lanes * 4)
            })
            .collect();
        for (row, acc) in rows.iter().zip(acc.chunks(vectors)) {
            let at = kb.add(*row, k);
            let x = match count {
                Some(c) => kb.load_count(p.a, at, 4, c),
                None => kb.load(p.a, at, 4),
            };
            let x = kb.push(transc_ir::loops::Inst::Shuffle(x, x, spread.clone()));
            for (w, var) in weights.iter().zip(acc) {
                let sum = kb.get(*var);
                let sum = kb.target(TargetInst::VpDpBusd, &[sum, x, *w]);
                kb.set(*var, sum);
            }
        }
    };
    let (start, whole) = (kb.index(0), p.k / QUAD * QUAD);
    let end = kb.index(whole);
    kb.for_(start, end, QUAD, Unroll::No, |kb, k| step(kb, k, None));
    if whole < p.k {
        // The quads beyond the end of a row belong to the next one.
        let left = kb.index(p.k - whole);
        step(kb, end, Some(left));
    }
    for (i, var) in acc.iter().enumerate() {
        let (r, v) = (i / vectors, i % vectors);
        let at = kb.index(r as i64 * shape.width() + v as i64 * i64::from(shape.lanes));
        let x = kb.get(*var);
        kb.store(stage, at, x);
    }
}
