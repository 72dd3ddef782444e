//! Weights with zeros: finding their blocks, and storing what is left.

use std::fmt;

use transc_ir::types::DType;

use crate::panels::put_word;
use crate::program::Matrix;
use crate::template::spmm;

/// The neighbours in a weight that are kept or left out together. `Display` is the usual name: `4x1`, `1x4`, `1x1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// Columns: outputs.
    pub columns: u16,
    /// Rows: inputs.
    pub rows: u16,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.columns, self.rows)
    }
}

/// A layout of a matrix `[k, n]` by blocks. The matrix is cut into pieces of `piece` rows; a block row is what one piece has in the columns of
/// a block, and those of a piece follow each other. The blocks of zeros are left out; the others stand in groups of `quad` rows, filled up with the
/// last block's rows and zero weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sparse {
    /// The matrix.
    pub matrix: Matrix,
    /// What is kept or left out.
    pub block: Block,
    /// Rows of a group, a multiple of those of a block.
    pub quad: usize,
    /// Rows of a piece, a multiple of those of a group.
    pub piece: usize,
    /// Number of groups.
    pub groups: usize,
    /// What an offset counts per row.
    pub stride: usize,
    /// Element type of the matrix, and that in which its values are stored.
    pub dtypes: [DType; 2],
    /// Which of the arrays this is.
    pub part: SparsePart,
}

/// The arrays of a sparse matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SparsePart {
    /// `i32[ceil(k/piece) * ceil(n/columns) + 1]`: the first group of each block row, and the end.
    Starts,
    /// `i32[groups][quad/rows]`: the first row of a block times `stride`.
    Offsets,
    /// `[groups][columns][quad]` in the second of the element types.
    Values,
}

/// Which elements of a matrix are not zero: `[n][k]`.
pub(crate) struct NonZero {
    map: Vec<bool>,
    k: usize,
}

/// The share of zeros of a matrix that is all of a constant of elements of type `dtype`, which is faster to have than [`NonZero`]; `None` for another.
pub(crate) fn share_of_zeros(src: &[u8], dtype: DType, m: Matrix) -> Option<f64> {
    let size = dtype.size_bytes();
    if m.k * m.n * size != src.len() {
        return None;
    }
    // A negative zero of a float is one too.
    let sign = if dtype.is_float() { 1 << (8 * size - 1) } else { 0 };
    let zeros = match size {
        1 => src.iter().filter(|b| **b == 0).count(),
        2 => src.as_chunks().0.iter().filter(|b| u32::from(u16::from_le_bytes(**b)) & !sign == 0).count(),
        4 => src.as_chunks().0.iter().filter(|b| u32::from_le_bytes(**b) & !sign == 0).count(),
        _ => return None,
    };
    Some(zeros as f64 / (m.k * m.n).max(1) as f64)
}

impl NonZero {
    /// Looks at the matrix `m` of elements of type `dtype`.
    pub(crate) fn of(src: &[u8], dtype: DType, m: Matrix) -> Self {
        let size = dtype.size_bytes();
        // A negative zero of a float is one too.
        let sign = if dtype.is_float() { 0x80 } else { 0 };
        let mut map = vec![false; m.n * m.k];
        let mut look = |k: usize, c: usize| {
            let at = (k * m.k_stride + c * m.n_stride) * size;
            let (upper, lower) = (src[at + size - 1] & !sign, &src[at..at + size - 1]);
            map[c * m.k + k] = upper != 0 || lower.iter().any(|b| *b != 0);
        };
        // In the order in which the elements lie.
        if m.n_stride <= m.k_stride {
            (0..m.k).for_each(|k| (0..m.n).for_each(|c| look(k, c)));
        } else {
            (0..m.n).for_each(|c| (0..m.k).for_each(|k| look(k, c)));
        }
        Self { map, k: m.k }
    }

    /// The share of zeros.
    pub(crate) fn zeros(&self) -> f64 {
        self.map.iter().filter(|v| !**v).count() as f64 / self.map.len().max(1) as f64
    }

    /// Which blocks of block row `i` hold something else than zeros.
    fn blocks(&self, block: Block, i: usize) -> Vec<bool> {
        let (columns, rows) = (usize::from(block.columns), usize::from(block.rows));
        let mut any = vec![false; self.k];
        for column in self.map.chunks_exact(self.k).skip(i * columns).take(columns) {
            any.iter_mut().zip(column).for_each(|(a, v)| *a |= v);
        }
        if rows == 1 { any } else { any.chunks(rows).map(|b| b.contains(&true)).collect() }
    }
}

impl Sparse {
    /// The layout of a matrix of elements of type `dtype`.
    pub(crate) fn new(nonzero: &NonZero, dtype: DType, matrix: Matrix, s: spmm::Schedule) -> Self {
        let [quad, piece, stride] = [s.quad(), s.piece(), s.rows()].map(|v| v as usize);
        let dtypes = [dtype, s.values()];
        let mut s = Self { matrix, block: s.block, quad, piece, groups: 0, stride, dtypes, part: SparsePart::Starts };
        let of_piece = s.blocks_of_piece();
        let groups = |piece: &[bool]| piece.iter().filter(|v| **v).count().div_ceil(s.per_group());
        s.groups = (0..s.block_rows()).map(|i| nonzero.blocks(s.block, i).chunks(of_piece).map(groups).sum::<usize>()).sum();
        s
    }

    /// Multiply-adds per row of the activation, those with the filling included.
    pub(crate) fn macs(&self) -> usize {
        self.groups * self.quad * usize::from(self.block.columns)
    }

    /// Blocks of a group.
    fn per_group(&self) -> usize {
        self.quad / usize::from(self.block.rows)
    }

    /// The columns of block row `i` of a piece.
    fn columns(&self, i: usize) -> std::ops::Range<usize> {
        let columns = usize::from(self.block.columns);
        i * columns..self.matrix.n.min((i + 1) * columns)
    }

    /// Where an element lies in the matrix, in bytes.
    fn place(&self, k: usize, c: usize) -> usize {
        (k * self.matrix.k_stride + c * self.matrix.n_stride) * self.dtypes[0].size_bytes()
    }

    /// Block rows of a piece.
    fn block_rows(&self) -> usize {
        self.matrix.n.div_ceil(self.block.columns.into())
    }

    /// Blocks of a block row in a piece.
    fn blocks_of_piece(&self) -> usize {
        self.piece / usize::from(self.block.rows)
    }

    /// First rows of the blocks that are kept, piece by piece and there per block row.
    fn kept(&self, src: &[u8]) -> Vec<Vec<usize>> {
        let nonzero = NonZero::of(src, self.dtypes[0], self.matrix);
        let flags: Vec<Vec<bool>> = (0..self.block_rows()).map(|i| nonzero.blocks(self.block, i)).collect();
        let rows = usize::from(self.block.rows);
        let mut kept = Vec::new();
        for piece in (0..self.matrix.k).step_by(self.piece) {
            let (first, end) = (piece / rows, self.matrix.k.min(piece + self.piece).div_ceil(rows));
            kept.extend(flags.iter().map(|f| (first..end).filter(|b| f[*b]).map(|b| b * rows).collect()));
        }
        kept
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        match self.part {
            SparsePart::Starts => (self.matrix.k.div_ceil(self.piece) * self.block_rows() + 1) * 4,
            SparsePart::Offsets => self.groups * self.per_group() * 4,
            SparsePart::Values => self.macs() * self.dtypes[1].size_bytes(),
        }
    }

    /// Fills `out`, which has [`Sparse::len_bytes`] zero bytes.
    pub(crate) fn write(&self, src: &[u8], out: &mut [u8]) {
        let (m, per_group, rows) = (self.matrix, self.per_group(), usize::from(self.block.rows));
        let put = |out: &mut [u8], i: usize, v: usize| out[4 * i..4 * i + 4].copy_from_slice(&(v as u32).to_le_bytes());
        let mut group = 0;
        for (i, kept) in self.kept(src).into_iter().enumerate() {
            let groups = kept.len().div_ceil(per_group);
            match self.part {
                SparsePart::Starts => put(out, i + 1, group + groups),
                SparsePart::Offsets => {
                    for b in 0..groups * per_group {
                        put(out, group * per_group + b, kept[b.min(kept.len() - 1)] * self.stride);
                    }
                }
                SparsePart::Values => {
                    for (b, first) in kept.iter().enumerate() {
                        for (r, c) in self.columns(i % self.block_rows()).enumerate() {
                            let to = ((group + b / per_group) * usize::from(self.block.columns) + r) * self.quad
                                + b % per_group * rows;
                            for k in *first..m.k.min(first + rows) {
                                self.put_value(src, self.place(k, c), out, to + k - first);
                            }
                        }
                    }
                }
            }
            group += groups;
        }
    }

    /// Stores the element that lies at byte `from` as value `to`.
    fn put_value(&self, src: &[u8], from: usize, out: &mut [u8], to: usize) {
        match self.dtypes {
            [DType::I8, DType::I16] => put_word(out, to, src[from]),
            // The upper half of a float.
            [DType::Bf16, DType::F32] => out[4 * to + 2..4 * to + 4].copy_from_slice(&src[from..from + 2]),
            [dtype, _] => {
                let size = dtype.size_bytes();
                out[to * size..(to + 1) * size].copy_from_slice(&src[from..from + size]);
            }
        }
    }
}
