//! Weights that are few bits, a scale and a zero point: finding them in the decoded numbers, and storing what they are made of.
//!
//! A quantised weight arrives decoded, as `f32(code - zero) * scale` per column, or per column and group of rows. Which codes these were is found again by
//! trying: a group has few different numbers, the largest is a small multiple of the scale, and the rest must be multiples to the bit. So decoding inside a
//! kernel gives the very numbers that stood in the constant.

use crate::program::Matrix;

/// Codes of a matrix `[k, n]` in column panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codes {
    /// The matrix.
    pub matrix: Matrix,
    /// Width of a panel.
    pub width: usize,
    /// Bits of a code: 4 or 8.
    pub bits: usize,
    /// Rows that share scale and zero point with the others of their column; even, or all.
    pub group: usize,
    /// Which of the arrays this is.
    pub part: CodesPart,
}

/// The arrays of a coded matrix, zero padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodesPart {
    /// `u8[ceil(n/width)][k][width]`; with 4 bits `[ceil(n/width)][ceil(k/2)][width]`, the even row in the lower half of a byte.
    Codes,
    /// `f32[ceil(n/width)][ceil(k/group)][2][width]`: scales, then zero points.
    Scales,
}

/// Sizes of groups that are tried, besides whole columns.
const GROUPS: [usize; 7] = [1024, 512, 256, 128, 64, 32, 16];
/// Matrices with fewer elements are left alone.
const MIN_ELEMENTS: usize = 4096;

impl Codes {
    /// The codes that a matrix of `f32` was made of, in the fewest bits and the largest groups.
    pub(crate) fn find(src: &[u8], m: Matrix, width: usize) -> Option<Self> {
        if m.k * m.n < MIN_ELEMENTS {
            return None;
        }
        let of = |bits, group| Self { matrix: m, width, bits, group, part: CodesPart::Codes };
        let groups = || std::iter::once(m.k).chain(GROUPS.into_iter().filter(|g| *g < m.k));
        let candidates = groups().map(|g| of(4, g)).chain(groups().map(|g| of(8, g)));
        // Most matrices are no codes, which one column shows.
        let first = (0..m.n).find(|c| (0..m.k).any(|k| at(src, m, k, *c) != 0.0))?;
        let mut candidates = candidates.filter(|c| c.column(src, first).is_some());
        candidates.find(|c| (0..m.n).all(|n| c.column(src, n).is_some()))
    }

    /// Scale and smallest multiple of each group of a column.
    fn column(&self, src: &[u8], c: usize) -> Option<Vec<(f32, i32)>> {
        let m = self.matrix;
        let group = |start: usize| fit((start..m.k.min(start + self.group)).map(|k| at(src, m, k, c)), (1 << self.bits) - 1);
        (0..m.k).step_by(self.group).map(group).collect()
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        let m = self.matrix;
        let rows = match self.part {
            CodesPart::Codes => m.k.div_ceil(8 / self.bits),
            CodesPart::Scales => m.k.div_ceil(self.group) * 2 * 4,
        };
        m.n.next_multiple_of(self.width) * rows
    }

    /// Fills `out`, which has [`Codes::len_bytes`] zero bytes.
    pub(crate) fn write(&self, src: &[u8], out: &mut [u8]) {
        let (m, width) = (self.matrix, self.width);
        let panel = self.len_bytes() / m.n.div_ceil(width);
        for c in 0..m.n {
            let (start, lane) = (c / width * panel, c % width);
            // Found once, so there again.
            let Some(groups) = self.column(src, c) else { continue };
            match self.part {
                CodesPart::Scales => {
                    for (g, (scale, low)) in groups.into_iter().enumerate() {
                        for (i, v) in [scale, -low as f32].into_iter().enumerate() {
                            let to = start + ((2 * g + i) * width + lane) * 4;
                            out[to..to + 4].copy_from_slice(&v.to_le_bytes());
                        }
                    }
                }
                CodesPart::Codes => {
                    for k in 0..m.k {
                        let (scale, low) = groups[k / self.group];
                        let code = ((at(src, m, k, c) / scale).round() as i32 - low) as u8;
                        let (row, shift) = if self.bits == 4 { (k / 2, k % 2 * 4) } else { (k, 0) };
                        out[start + row * width + lane] |= code << shift;
                    }
                }
            }
        }
    }
}

fn at(src: &[u8], m: Matrix, k: usize, c: usize) -> f32 {
    let i = (k * m.k_stride + c * m.n_stride) * 4;
    f32::from_le_bytes([src[i], src[i + 1], src[i + 2], src[i + 3]])
}

/// A scale of which all numbers are multiples, to the bit, over a range of at most `span`; and the smallest multiple.
fn fit(values: impl Iterator<Item = f32>, span: i32) -> Option<(f32, i32)> {
    let mut distinct: Vec<f32> = values.map(|v| v + 0.0).collect();
    if distinct.iter().any(|v| !v.is_finite()) {
        return None;
    }
    distinct.sort_by(f32::total_cmp);
    distinct.dedup();
    if distinct.len() > span as usize + 1 {
        return None;
    }
    let largest = distinct.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    if largest == 0.0 {
        return Some((1.0, 0));
    }
    // The rounding of a multiple moves the quotient by two places at most.
    let near = |multiple: i32| {
        let s = largest / multiple as f32;
        [0i32, 1, -1, 2, -2].into_iter().map(move |d| f32::from_bits(s.to_bits().wrapping_add_signed(d)))
    };
    let fits = |s: &f32| {
        let multiple = |v: f32| Some((v / s).round()).filter(|d| d * s == v);
        let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
        for v in &distinct {
            let d = multiple(*v)?;
            (lo, hi) = (lo.min(d), hi.max(d));
        }
        (hi - lo <= span as f32).then_some((*s, lo as i32))
    };
    (1..=span).flat_map(near).filter(|s| s.is_normal()).find_map(|s| fits(&s))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that look random, decoded; the first of each group is the largest.
    fn decoded(k: usize, n: usize, group: usize, top: i32, zero: i32) -> Vec<u8> {
        let mut state = 1u64;
        let mut code = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as i32 % (top + 1)
        };
        let value = |i: usize| {
            let (k, c) = (i / n, i % n);
            let scale = 0.01 + ((k / group) * 31 + c * 7) as f32 * 0.001_37;
            let q = if k % group == 0 { top } else { code() };
            (q - zero) as f32 * scale
        };
        (0..k * n).map(value).collect::<Vec<_>>().into_iter().flat_map(f32::to_le_bytes).collect()
    }

    fn matrix(k: usize, n: usize) -> Matrix {
        Matrix { k, n, k_stride: n, n_stride: 1 }
    }

    #[test]
    fn codes_are_found_and_decode_to_the_same_bits() {
        for (k, n, group, top, zero) in
            [(96, 50, 96, 254, 127), (128, 40, 32, 15, 8), (100, 48, 32, 15, 3), (65, 64, 65, 15, 0), (128, 33, 64, 255, 200)]
        {
            let (src, m) = (decoded(k, n, group, top, zero), matrix(k, n));
            let codes = Codes::find(&src, m, 24).unwrap_or_else(|| panic!("{k}x{n} in groups of {group}"));
            assert_eq!((codes.bits, codes.group), (if top > 15 { 8 } else { 4 }, group));
            let part = |part| {
                let c = Codes { part, ..codes };
                let mut out = vec![0; c.len_bytes()];
                c.write(&src, &mut out);
                out
            };
            let (bytes, scales) = (part(CodesPart::Codes), part(CodesPart::Scales));
            assert!(bytes.len() + scales.len() < src.len(), "smaller");
            let (rows, groups) = (k.div_ceil(8 / codes.bits), k.div_ceil(group));
            for (i, want) in src.chunks_exact(4).enumerate() {
                let (k, c) = (i / n, i % n);
                let (row, shift) = if codes.bits == 4 { (k / 2, k % 2 * 4) } else { (k, 0) };
                let code = bytes[(c / 24 * rows + row) * 24 + c % 24] >> shift & if codes.bits == 4 { 15 } else { 255 };
                let number = |part: usize| {
                    let at = ((c / 24 * groups + k / group) * 2 + part) * 24 + c % 24;
                    f32::from_le_bytes(scales[4 * at..4 * at + 4].try_into().expect("four bytes"))
                };
                assert_eq!(((f32::from(code) - number(1)) * number(0)).to_le_bytes(), *want, "element {k}, {c}");
            }
        }
    }

    #[test]
    fn other_numbers_are_no_codes() {
        let m = matrix(96, 50);
        let src: Vec<u8> = (0..96 * 50).flat_map(|i| (i as f32 * 0.37).sin().to_le_bytes()).collect();
        assert_eq!(Codes::find(&src, m, 24), None);
        // One number among codes that is none.
        let mut src = decoded(96, 50, 96, 254, 127);
        src[4 * 1234] ^= 1;
        assert_eq!(Codes::find(&src, m, 24).filter(|c| c.group == 96), None);
        let nan: Vec<u8> = (0..96 * 50).flat_map(|_| f32::NAN.to_le_bytes()).collect();
        assert_eq!(Codes::find(&nan, m, 24), None);
    }
}
