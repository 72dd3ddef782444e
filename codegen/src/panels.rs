//! Constant matrices in column panels.

use crate::program::Matrix;

/// Column panels of matrices `[batch, k, n]` whose rows stand in groups: `[batch][ceil(n/width)][groups][width][group]`, zero padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Panels {
    /// Number of matrices.
    pub batch: usize,
    /// The first matrix.
    pub matrix: Matrix,
    /// Its first element in the source.
    pub offset: usize,
    /// Distance between matrices in the source, in elements.
    pub batch_stride: usize,
    /// Width of a panel.
    pub width: usize,
    /// Rows of a group.
    pub group: usize,
    /// Rows of a panel are filled up to a multiple of this, which is one of `group`.
    pub depth: usize,
    /// Bytes are stored in 16 bits.
    pub words: bool,
}

impl Panels {
    /// Panels of one matrix that begins where the source does.
    pub fn of(matrix: Matrix, width: usize, group: usize, depth: usize) -> Self {
        Self { batch: 1, matrix, offset: 0, batch_stride: 0, width, group, depth, words: false }
    }

    /// Length in bytes; `size` is that of an element of the source.
    pub(crate) fn len_bytes(&self, size: usize) -> usize {
        let Matrix { k, n, .. } = self.matrix;
        self.batch * n.div_ceil(self.width) * k.next_multiple_of(self.depth) * self.width * if self.words { 2 } else { size }
    }

    /// Fills `out`, which has [`Panels::len_bytes`] zero bytes.
    pub(crate) fn write(&self, src: &[u8], size: usize, out: &mut [u8]) {
        let Matrix { k, n, k_stride, n_stride } = self.matrix;
        let (width, group) = (self.width, self.group);
        let (panels, rows) = (n.div_ceil(width), k.next_multiple_of(self.depth));
        for b in 0..self.batch {
            for panel in 0..panels {
                let columns = panel * width..n.min((panel + 1) * width);
                for row in 0..k {
                    let to = ((b * panels + panel) * rows + row / group * group) * width + row % group;
                    let from = self.offset + b * self.batch_stride + row * k_stride + columns.start * n_stride;
                    if n_stride == 1 && group == 1 && !self.words {
                        let len = columns.len() * size;
                        out[to * size..][..len].copy_from_slice(&src[from * size..][..len]);
                        continue;
                    }
                    for i in 0..columns.len() {
                        let (to, from) = (to + i * group, from + i * n_stride);
                        if self.words {
                            put_word(out, to, src[from]);
                        } else {
                            out[to * size..][..size].copy_from_slice(&src[from * size..][..size]);
                        }
                    }
                }
            }
        }
    }
}

/// Stores a signed byte as number `i` of 16 bits.
pub(crate) fn put_word(out: &mut [u8], i: usize, byte: u8) {
    out[2 * i..][..2].copy_from_slice(&i16::from(byte as i8).to_le_bytes());
}
