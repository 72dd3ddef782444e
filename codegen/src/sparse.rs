//! Weights with zeros: finding their blocks, and storing what is left.

use crate::panels::put_word;
use crate::program::Matrix;
use crate::template::spmm;

/// A layout of a matrix `[k, n]` by blocks of `height` neighbouring columns of one row. The matrix is cut into pieces of `piece` rows; a block row is
/// what one piece has in such columns, and those of a piece follow each other. The blocks of zeros are left out; the rows of the others stand in groups
/// of `quad`, filled up with the last row and zero weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sparse {
    /// The matrix.
    pub matrix: Matrix,
    /// Columns of a block.
    pub height: usize,
    /// Rows of a group.
    pub quad: usize,
    /// Rows of a piece.
    pub piece: usize,
    /// Number of groups.
    pub groups: usize,
    /// What an offset counts per row.
    pub stride: usize,
    /// Bytes are stored in 16 bits.
    pub words: bool,
    /// Which of the arrays this is.
    pub part: SparsePart,
}

/// The arrays of a sparse matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SparsePart {
    /// `i32[ceil(k/piece) * ceil(n/height) + 1]`: the first group of each block row, and the end.
    Starts,
    /// `i32[groups][quad]`: `row * stride`.
    Offsets,
    /// `[groups][height][quad]` in the element type of the matrix, or in `i16`.
    Values,
}

impl Sparse {
    /// The layout of a matrix; `size` is that of an element in bytes.
    pub(crate) fn new(src: &[u8], size: usize, matrix: Matrix, s: spmm::Schedule) -> Self {
        let [quad, piece, stride] = [s.quad(), s.piece(), s.rows()].map(|v| v as usize);
        let mut s =
            Self { matrix, height: s.height.into(), quad, piece, groups: 0, stride, words: s.words, part: SparsePart::Starts };
        s.groups = s.block_rows(src, size).map(|kept| kept.len().div_ceil(quad)).sum();
        s
    }

    /// Multiply-adds per row of the activation, those with the filling included.
    pub(crate) fn macs(&self) -> usize {
        self.groups * self.quad * self.height
    }

    /// Rows of the blocks that are kept, per block row.
    fn block_rows<'a>(&self, src: &'a [u8], size: usize) -> impl Iterator<Item = Vec<usize>> + 'a {
        let (m, height, piece) = (self.matrix, self.height, self.piece);
        let zero = move |k: usize, c: usize| {
            let at = (k * m.k_stride + c * m.n_stride) * size;
            // A negative zero of a float is one too.
            src[at..at + size].iter().enumerate().all(|(i, b)| *b == 0 || size == 4 && i == 3 && *b == 0x80)
        };
        let pieces = (0..m.k).step_by(piece).flat_map(move |k| (0..m.n).step_by(height).map(move |c| (k, c)));
        pieces.map(move |(k, c)| {
            let columns = c..m.n.min(c + height);
            (k..m.k.min(k + piece)).filter(|k| !columns.clone().all(|c| zero(*k, c))).collect()
        })
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self, size: usize) -> usize {
        match self.part {
            SparsePart::Starts => (self.matrix.k.div_ceil(self.piece) * self.matrix.n.div_ceil(self.height) + 1) * 4,
            SparsePart::Offsets => self.groups * self.quad * 4,
            SparsePart::Values => self.macs() * if self.words { 2 } else { size },
        }
    }

    /// Fills `out`, which has [`Sparse::len_bytes`] zero bytes.
    pub(crate) fn write(&self, src: &[u8], size: usize, out: &mut [u8]) {
        let m = self.matrix;
        let mut put = |i: usize, v: usize| out[4 * i..4 * i + 4].copy_from_slice(&(v as u32).to_le_bytes());
        let mut group = 0;
        match self.part {
            SparsePart::Starts => {
                for (i, kept) in self.block_rows(src, size).enumerate() {
                    group += kept.len().div_ceil(self.quad);
                    put(i + 1, group);
                }
            }
            SparsePart::Offsets => {
                for kept in self.block_rows(src, size) {
                    for i in 0..kept.len().next_multiple_of(self.quad) {
                        put(group * self.quad + i, kept[i.min(kept.len() - 1)] * self.stride);
                    }
                    group += kept.len().div_ceil(self.quad);
                }
            }
            SparsePart::Values => {
                for (block, kept) in self.block_rows(src, size).enumerate() {
                    let block = block % m.n.div_ceil(self.height);
                    let columns = block * self.height..m.n.min((block + 1) * self.height);
                    for (i, k) in kept.iter().enumerate() {
                        for (r, c) in columns.clone().enumerate() {
                            let to = ((group + i / self.quad) * self.height + r) * self.quad + i % self.quad;
                            let from = (k * m.k_stride + c * m.n_stride) * size;
                            if self.words {
                                put_word(out, to, src[from]);
                            } else {
                                out[to * size..(to + 1) * size].copy_from_slice(&src[from..from + size]);
                            }
                        }
                    }
                    group += kept.len().div_ceil(self.quad);
                }
            }
        }
    }
}
