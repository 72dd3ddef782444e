//! A tile of matrix registers: two registers of rows by two of columns, which meet in four of sums.
//!
//! Loads and products overlap from four sums on (Intel 2024, "64 and IA-32 architectures optimization reference manual", chapter 20).

use transc_ir::loops::{Buf, KernelBuilder, Matrix, MatrixDot, MatrixInst, Reg, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::DType;

use super::ahead::Asking;
use super::groups::Group;
use super::tile::TileShape;

/// Rows of a register, and 32-bit columns.
pub const ROWS: i64 = MatrixInst::ROWS as i64;
/// Registers of rows, and most registers of columns, of a tile.
pub const SIDE: usize = 2;

/// The shape of a tile for `n` columns, where that is known.
pub const fn shape(n: Option<i64>) -> TileShape {
    let one = matches!(n, Some(n) if n <= ROWS);
    TileShape { lanes: ROWS as u16, rows: (SIDE as i64 * ROWS) as u16, vectors: if one { 1 } else { SIDE as u16 } }
}

/// Elements along `k` that one product takes.
pub const fn depth(group: Group) -> i64 {
    group.size() * ROWS
}

/// Rows of a product: where those of the first register start, and the distances, in elements.
pub struct Rows {
    /// Where they lie.
    pub buf: Buf,
    /// The first one.
    pub at: Reg,
    /// From row to row.
    pub row: Reg,
    /// From register to register.
    pub block: Reg,
    /// From step to step along `k`.
    pub step: Reg,
}

/// A panel `[k / group][width][group]` of whole steps.
pub struct Panel {
    /// Where it lies.
    pub buf: Buf,
    /// Its first element.
    pub at: Reg,
    /// What each step asks for.
    pub ahead: Option<Asking>,
}

/// Where sums lie: buffer, first element, distance from row to row.
pub type Place = (Buf, Reg, Reg);

/// The registers.
pub struct Registers {
    sums: [[Matrix; SIDE]; SIDE],
    rows: [Matrix; SIDE],
    columns: [Matrix; SIDE],
}

impl Registers {
    /// All registers of a kernel.
    pub fn new(kb: &mut KernelBuilder) -> Registers {
        let mut pair = || [kb.matrix(), kb.matrix()];
        Registers { sums: [pair(), pair()], rows: pair(), columns: pair() }
    }

    /// The registers of sums of some registers of rows and of columns, with where they lie in a matrix in memory.
    fn each_sum(
        &self,
        kb: &mut KernelBuilder,
        [rows, columns]: [usize; 2],
        (at, stride): (Reg, Reg),
        body: &mut dyn FnMut(&mut KernelBuilder, Matrix, Reg),
    ) {
        for (i, sums) in self.sums[..rows].iter().enumerate() {
            for (j, matrix) in sums[..columns].iter().enumerate() {
                let (row, column) = (kb.index(i as i64 * ROWS), kb.index(j as i64 * ROWS));
                let row = kb.mul(row, stride);
                let at = kb.add(at, row);
                let at = kb.add(at, column);
                body(kb, *matrix, at);
            }
        }
    }

    /// Leaves the sums of `steps` steps of the rows of a tile, of which `left` are left, times a panel of so many registers of columns in memory: whole
    /// registers of rows. They start from zero or, if a condition is given and holds, from what is there.
    pub fn multiply(
        &self,
        kb: &mut KernelBuilder,
        (group, columns): (Group, u16),
        (a, b): (&Rows, &Panel),
        (left, steps): (Reg, Reg),
        (sums, later): (Place, Option<Reg>),
    ) {
        let (buf, at, stride) = sums;
        let some = |kb: &mut KernelBuilder, rows: usize| {
            let count = [rows, columns.into()];
            let clear = |kb: &mut KernelBuilder| self.each_sum(kb, count, (at, stride), &mut |kb, m, _| kb.matrix_zero(m));
            match later {
                Some(later) => {
                    let load = |kb: &mut KernelBuilder| {
                        self.each_sum(kb, count, (at, stride), &mut |kb, m, at| kb.matrix_load(m, buf, at, stride));
                    };
                    kb.if_(later, load, clear);
                }
                None => clear(kb),
            }
            self.add_steps(kb, group, count, (a, b), steps);
            self.each_sum(kb, count, (at, stride), &mut |kb, m, at| kb.matrix_store(buf, at, stride, m));
        };
        let one = kb.index(ROWS);
        let both = kb.bin(BinOp::Gt, left, one);
        kb.if_(both, |kb| some(kb, SIDE), |kb| some(kb, 1));
    }

    /// Adds steps of rows times a panel, which is as wide as its registers.
    fn add_steps(&self, kb: &mut KernelBuilder, group: Group, [rows, columns]: [usize; 2], (a, b): (&Rows, &Panel), steps: Reg) {
        let (dot, width) = (if group == Group::Bytes { MatrixDot::Bytes } else { MatrixDot::Bf16 }, columns as i64 * ROWS);
        let zero = kb.index(0);
        kb.for_(zero, steps, 1, Unroll::No, |kb, step| {
            if let Some(ahead) = b.ahead {
                ahead.turn(kb);
            }
            let (step_len, group_row) = (kb.index(depth(group) * width), kb.index(group.size() * width));
            let at = kb.mul(step, step_len);
            let at = kb.add(b.at, at);
            for (j, matrix) in self.columns[..columns].iter().enumerate() {
                let j = kb.index(j as i64 * ROWS * group.size());
                let at = kb.add(at, j);
                kb.matrix_load(*matrix, b.buf, at, group_row);
            }
            let inside = kb.mul(step, a.step);
            let mut at = kb.add(a.at, inside);
            for (left, sums) in self.rows[..rows].iter().zip(&self.sums) {
                kb.matrix_load(*left, a.buf, at, a.row);
                for (right, sums) in self.columns[..columns].iter().zip(sums) {
                    kb.matrix_dot(dot, *sums, *left, *right);
                }
                at = kb.add(at, a.block);
            }
        });
    }
}

/// Element type of sums.
pub fn sums(group: Group) -> DType {
    if group == Group::Bytes { DType::I32 } else { DType::F32 }
}
