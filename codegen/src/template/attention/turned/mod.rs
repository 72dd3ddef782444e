//! Attention whose operands and result lie turned, the tokens beside each other: `[head, feature, token]`.
//!
//! Vectors run along the queries, as sparse layers leave them (Shen et al. 2023, "An Efficient Sparse Inference Software Accelerator for
//! Transformer-based Language Models on CPUs"): logits are `K Q^T`, `[keys, queries]`, and the result is `V^T` times the weights, `[features, queries]`. So
//! the result is not transposed, and softmax folds no lanes. There is no causality.

use transc_ir::loops::{Buf, KernelBuilder, Reg, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::super::tile::{self, TileShape};
use super::super::transpose::turn_square;
use super::{AttentionProblem, Mask, Unit};

pub mod floats;
pub mod int8;

/// Queries of a unit, a multiple of the width of every tile.
pub const QUERIES: i64 = 64;

/// Consumes finished elements: `[batch, head, feature]`, first query, vector of values, active lanes.
pub type Epilogue<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, Reg, Option<Reg>) + 'a;

/// A tile of either product.
fn tile(lanes: u16, rows: u16) -> TileShape {
    TileShape { lanes, rows, vectors: 2 }
}

/// Folds rows of a panel to one vector for each of its vectors; see [`tile::fold_rows`].
fn fold(
    kb: &mut KernelBuilder,
    shape: TileShape,
    from: (Reg, Reg, f64),
    row: &mut tile::RowOf<'_>,
    join: &dyn Fn(&mut KernelBuilder, Reg, Reg) -> Reg,
) -> Vec<Reg> {
    let each = tile::fold_rows(kb, shape, from, row, join);
    each.into_iter().filter_map(|all| all.into_iter().reduce(|a, b| join(kb, a, b))).collect()
}

/// Gives a vector of mask values to add, for `[batch, head, key]` and the first query; lanes beyond the count are not used.
pub type QueryMask<'a> = dyn FnMut(&mut KernelBuilder, &[Reg; 3], Reg, u16, Option<Reg>) -> Reg + 'a;

/// A mask by what it gives vectors of.
pub enum Masking<'m, 'f> {
    /// Of keys, which have to be turned.
    Keys(&'m mut Mask<'f>),
    /// Of queries.
    Queries(&'m mut QueryMask<'f>),
}

/// The queries of a panel.
struct Queries<'a> {
    u: &'a Unit,
    /// The first one in the unit.
    first: Reg,
    /// How many of each vector exist.
    counts: Vec<Option<Reg>>,
}

impl<'a> Queries<'a> {
    fn new(kb: &mut KernelBuilder, (p, shape): (&AttentionProblem, TileShape), u: &'a Unit, first: Reg) -> Self {
        let left = kb.sub(u.rows, first);
        Self { u, first, counts: tile::column_counts(kb, shape, &p.sq, left) }
    }

    /// The first query of a vector, among all.
    fn token(&self, kb: &mut KernelBuilder, shape: TileShape, v: usize) -> Reg {
        let (first, v) = (kb.add(self.u.row, self.first), kb.index(v as i64 * i64::from(shape.lanes)));
        kb.add(first, v)
    }
}

/// What is added to the logits of some keys, for the queries of a panel.
struct Added<'m, 'f> {
    mask: Masking<'m, 'f>,
    /// `[keys][width]`.
    values: Buf,
    /// A square of them by queries.
    square: Buf,
}

impl<'m, 'f> Added<'m, 'f> {
    /// With memory for so many keys, where they have to be turned.
    fn new(kb: &mut KernelBuilder, shape: TileShape, keys: &Dim, mask: Masking<'m, 'f>) -> Self {
        let lanes = i64::from(shape.lanes);
        let (values, square) = match mask {
            Masking::Keys(_) => (&(&keys.ceil_div(&lanes.into()) * &lanes.into()) * &shape.width().into(), lanes * lanes),
            Masking::Queries(_) => (0.into(), 0),
        };
        Self { mask, values: kb.local(DType::F32, values), square: kb.local(DType::F32, square.into()) }
    }

    /// What is added for vector `v` of some queries and a key, the first of which is given as well.
    fn vector(&mut self, kb: &mut KernelBuilder, shape: TileShape, q: &Queries<'_>, (first, key): (Reg, Reg), v: usize) -> Reg {
        match &mut self.mask {
            Masking::Keys(_) => {
                let (width, v) = (kb.index(shape.width()), kb.index(v as i64 * i64::from(shape.lanes)));
                let row = kb.mul(key, width);
                let at = kb.add(row, v);
                kb.load(self.values, at, shape.lanes)
            }
            Masking::Queries(mask) => {
                let (key, token) = (kb.add(first, key), q.token(kb, shape, v));
                mask(kb, &[q.u.b, q.u.h, key], token, shape.lanes, q.counts[v])
            }
        }
    }

    /// Turns what a mask gives, vectors of keys, for some keys and queries.
    fn take(
        &mut self,
        kb: &mut KernelBuilder,
        (p, shape): (&AttentionProblem, TileShape),
        q: &Queries<'_>,
        (first, count): (Reg, Reg),
    ) {
        let Masking::Keys(mask) = &mut self.mask else { return };
        let u = q.u;
        let lanes = i64::from(shape.lanes);
        let (zero, one, side, width) = (kb.index(0), kb.index(1), kb.index(lanes), kb.index(shape.width()));
        let last = kb.sub(u.rows, one);
        let ragged = !p.sk.modulo(&lanes.into()).is(0);
        kb.for_(zero, count, lanes, Unroll::No, |kb, j| {
            let (key, left) = (kb.add(first, j), kb.sub(count, j));
            let active = ragged.then(|| tile::active(kb, left, lanes));
            kb.for_(zero, width, lanes, Unroll::No, |kb, v| {
                kb.for_(zero, side, 1, Unroll::No, |kb, i| {
                    let (row, at) = (kb.add(q.first, v), kb.mul(i, side));
                    let row = kb.add(row, i);
                    // Beyond the last query, that one again.
                    let row = kb.bin(BinOp::Min, row, last);
                    let row = kb.add(u.row, row);
                    let x = mask(kb, &[u.b, u.h, row], key, shape.lanes, active);
                    kb.store(self.square, at, x);
                });
                let row = kb.mul(j, width);
                let at = kb.add(row, v);
                turn_square(kb, shape.lanes, (self.square, zero, side), (self.values, at, width));
            });
        });
    }
}
