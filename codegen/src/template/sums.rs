//! Sums of products that are worked off in blocks along `k`: the part of a panel that a block reads stays in the nearest cache while all rows of a chunk
//! go over it, and the sums of the rows wait in memory between blocks (Goto and van de Geijn 2008, section 4). Their order does not change.

use transc_ir::loops::{Buf, KernelBuilder, Reg, Ty, Unroll};
use transc_ir::scalar::BinOp;
use transc_ir::types::{DType, Dim};

use super::matmul::Schedule;
use super::tile::TileShape;

/// The sums of the rows of a chunk in one panel.
pub struct Sums {
    /// Row after row.
    pub buf: Buf,
    shape: TileShape,
}

impl Sums {
    /// Room for the rows of a chunk.
    pub fn new(kb: &mut KernelBuilder, s: Schedule) -> Sums {
        Sums { buf: kb.local(DType::F32, (s.tile.width() * s.chunk).into()), shape: s.tile }
    }

    /// Where the sums of a row lie.
    pub fn at(&self, kb: &mut KernelBuilder, m0: Reg, row: Reg) -> (Buf, Reg) {
        let width = kb.index(self.shape.width());
        let row = kb.sub(row, m0);
        (self.buf, kb.mul(row, width))
    }

    /// Calls `body` for blocks of the sums of some rows: first step, end, and whether that is all of them. If it is not, the sums are zero before the
    /// first.
    pub fn in_blocks(
        &self,
        kb: &mut KernelBuilder,
        (m0, m1): (Reg, Reg),
        k: &Dim,
        block: i64,
        body: &mut dyn FnMut(&mut KernelBuilder, Reg, Reg, bool),
    ) {
        let (zero, end) = (kb.index(0), kb.dim(k));
        if k.as_const().is_some_and(|k| k <= block) {
            return body(kb, zero, end, true);
        }
        let (_, len) = self.at(kb, m0, m1);
        let nothing = kb.num(Ty::vector(DType::F32, self.shape.lanes), 0.0);
        kb.for_(zero, len, self.shape.lanes.into(), Unroll::Auto, |kb, i| kb.store(self.buf, i, nothing));
        kb.for_(zero, end, block, Unroll::No, |kb, from| {
            let len = kb.index(block);
            let to = kb.add(from, len);
            let to = kb.bin(BinOp::Min, to, end);
            body(kb, from, to, false);
        });
    }
}
