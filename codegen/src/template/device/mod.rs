//! Templates for devices that run grids of thread blocks. Scalar code: a thread computes a few elements, a block shares tiles.

use transc_ir::loops::{Buf, KernelBuilder, Reg};
use transc_ir::scalar::BinOp;
use transc_ir::types::DType;

pub mod attention;
pub mod matmul;

/// Folds one value of every thread of a block of `threads` (a power of two) in a fixed tree; all threads get the result. `partial` is shared
/// memory for as many values.
pub fn fold(kb: &mut KernelBuilder, partial: Buf, threads: i64, op: BinOp, value: Reg) -> Reg {
    let (thread, zero) = (kb.thread(), kb.index(0));
    kb.store(partial, thread, value);
    kb.barrier();
    let mut half = threads / 2;
    while half > 0 {
        let distance = kb.index(half);
        let low = kb.bin(BinOp::Lt, thread, distance);
        kb.if_(
            low,
            |kb| {
                let other = kb.add(thread, distance);
                let (x, y) = (kb.load(partial, thread, 1), kb.load(partial, other, 1));
                let x = kb.bin(op, x, y);
                kb.store(partial, thread, x);
            },
            |_| {},
        );
        kb.barrier();
        half /= 2;
    }
    let result = kb.load(partial, zero, 1);
    // Before anyone writes the next partial results.
    kb.barrier();
    result
}

/// `load` where `inside` holds, zero elsewhere.
fn guarded<E>(
    kb: &mut KernelBuilder,
    acc: DType,
    inside: Reg,
    load: impl FnOnce(&mut KernelBuilder) -> Result<Reg, E>,
) -> Result<Reg, E> {
    let zero = kb.num(transc_ir::loops::Ty::scalar(acc), 0.0);
    let x = kb.var(zero);
    let mut out = Ok(());
    kb.if_(
        inside,
        |kb| {
            out = load(kb).map(|v| {
                let v = kb.cast(acc, v);
                kb.set(x, v);
            });
        },
        |_| {},
    );
    out?;
    Ok(kb.get(x))
}

/// `acc + a * b`, with one rounding for floats.
fn multiply_add(kb: &mut KernelBuilder, a: Reg, b: Reg, acc: Reg) -> Reg {
    if kb.ty(acc).dtype.is_float() {
        return kb.fma(a, b, acc);
    }
    let p = kb.mul(a, b);
    kb.add(acc, p)
}
