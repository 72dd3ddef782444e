//! Rows and columns of small matrices in registers change places, by shuffles within 128-bit lanes first and between them last.

use transc_ir::loops::{Buf, Inst, KernelBuilder, Reg};

/// Pieces of `size` elements of two vectors in turn, within each 128-bit lane of `lane` elements: of the lower or the upper halves.
pub(super) fn unpack(kb: &mut KernelBuilder, [a, b]: [Reg; 2], lane: u16, size: u16, upper: bool) -> Reg {
    let n = kb.ty(a).lanes;
    let half = if upper { lane / 2 } else { 0 };
    let mut picks = Vec::with_capacity(n.into());
    for start in (0..n).step_by(lane.into()) {
        for piece in (0..lane / 2).step_by(size.into()) {
            for of in [0, n] {
                picks.extend((0..size).map(|i| of + start + half + piece + i));
            }
        }
    }
    kb.push(Inst::Shuffle(a, b, picks))
}

/// Two steps of unpacking within 128-bit lanes of `lane` elements. Bytes (`lane` 16) of four vectors become four vectors of quads: quad `4l + c` of
/// vector `t` holds byte `16l + 4t + c` of each. Items of 4 bytes become squares: lane `l` of vector `c` holds item `4l + c` of each.
fn turn(kb: &mut KernelBuilder, r: [Reg; 4], lane: u16, size: u16) -> Vec<Reg> {
    let mut out = Vec::with_capacity(4);
    for upper in [false, true] {
        let pairs = [unpack(kb, [r[0], r[1]], lane, size, upper), unpack(kb, [r[2], r[3]], lane, size, upper)];
        out.extend([unpack(kb, pairs, lane, 2 * size, false), unpack(kb, pairs, lane, 2 * size, true)]);
    }
    out
}

/// Lines of a square, by buffer, place of the first one and distance, become lines of another one.
pub(crate) fn turn_square(
    kb: &mut KernelBuilder,
    lanes: u16,
    (from, at, step): (Buf, Reg, Reg),
    (to, to_at, to_step): (Buf, Reg, Reg),
) {
    let line = |kb: &mut KernelBuilder, at: Reg, i: usize, step: Reg| {
        let i = kb.index(i as i64);
        let offset = kb.mul(i, step);
        kb.add(at, offset)
    };
    let square: Vec<Reg> = (0..lanes.into())
        .map(|i| {
            let at = line(kb, at, i, step);
            kb.load(from, at, lanes)
        })
        .collect();
    for (i, x) in transpose(kb, &square, 1).into_iter().enumerate() {
        let at = line(kb, to_at, i, to_step);
        kb.store(to, at, x);
    }
}

/// Bytes of four vectors as quads, in the order of [`turn`].
pub(super) fn interleave(kb: &mut KernelBuilder, rows: [Reg; 4]) -> Vec<Reg> {
    turn(kb, rows, 16, 1)
}

/// Squares of four vectors of items of `size` elements, in the order of [`turn`].
fn turn_quads(kb: &mut KernelBuilder, r: [Reg; 4], size: u16) -> Vec<Reg> {
    turn(kb, r, 4 * size, size)
}

/// The transpose of a square of items of `size` elements, one row per vector, each of 4 bytes.
pub(super) fn transpose(kb: &mut KernelBuilder, rows: &[Reg], size: u16) -> Vec<Reg> {
    let (n, lane) = (rows.len(), 4 * size);
    // `quads[i][c]` holds in lane `l` the items `4l + c` of rows `4i..4i+4`.
    let quads: Vec<Vec<Reg>> = rows.chunks_exact(4).map(|r| turn_quads(kb, [r[0], r[1], r[2], r[3]], size)).collect();
    // Between lanes.
    let lanes_of = |kb: &mut KernelBuilder, a: Reg, b: Reg, picks: &[u16]| {
        let elements = picks.iter().flat_map(|l| (0..lane).map(move |i| l * lane + i)).collect();
        kb.push(Inst::Shuffle(a, b, elements))
    };
    let mut out = vec![rows[0]; n];
    for c in 0..4 {
        let q: Vec<Reg> = quads.iter().map(|q| q[c]).collect();
        let lanes: Vec<Reg> = if n == 4 {
            q
        } else if n == 8 {
            [[0, 2], [1, 3]].iter().map(|picks| lanes_of(kb, q[0], q[1], picks)).collect()
        } else {
            let halves: Vec<[Reg; 2]> = [[0u16, 1, 4, 5], [2, 3, 6, 7]]
                .iter()
                .map(|p| [lanes_of(kb, q[0], q[1], p), lanes_of(kb, q[2], q[3], p)])
                .collect();
            halves.iter().flat_map(|[a, b]| [[0, 2, 4, 6], [1, 3, 5, 7]].map(|p| lanes_of(kb, *a, *b, &p))).collect()
        };
        for (l, v) in lanes.into_iter().enumerate() {
            out[4 * l + c] = v;
        }
    }
    out
}
