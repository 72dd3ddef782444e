//! Weights packed into few bits (domain `com.microsoft`).

use transc_ir::op::Contract;
use transc_ir::scalar::BinOp;
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::{OpRow, contrib, quant};

pub(super) static ROWS: &[OpRow] = &[contrib("GatherBlockQuantized", gather_block), contrib("MatMulNBits", mat_mul_nbits)];

/// Operands: activation, codes `[N, blocks, bytes of a block]`, scales `[N, blocks]`, zero points packed by row, order of groups, bias. The codes
/// stand lowest bits first; without zero points the middle code stands for 0.
fn mat_mul_nbits(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, packed, scale) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let bits = cx.int("bits", 4);
    if !matches!(bits, 4 | 8) {
        return unsupported(format!("packs its weights in {bits} bits"));
    }
    if cx.opt(4).is_some() {
        return unsupported("orders its groups");
    }
    let [k, n, block] = ["K", "N", "block_size"].map(|a| usize::try_from(cx.int(a, 0)).unwrap_or(0));
    if k == 0 || n == 0 || block < 16 || !block.is_power_of_two() {
        return invalid(format!("has {k} by {n} weights in blocks of {block}; blocks have 16, 32, 64 .. elements"));
    }
    let (blocks, per_byte) = (k.div_ceil(block), if bits == 4 { 2 } else { 1 });
    let row = blocks * block / per_byte;
    let bytes = packed_bytes(cx, packed, n.checked_mul(row), "codes")?;
    let codes = (0..n * k).map(|i| f64::from(code(&bytes[i / k * row..][..row], i % k, bits)));
    let codes = cx.table(DType::U8, &[n, k], codes)?;
    if cx.ty(scale).count() != Dim::from(n * blocks) {
        return invalid(format!("has scales {} for {n} rows of {blocks} blocks", cx.ty(scale)));
    }
    quant::check_block_scale(cx, scale)?;
    let per_block = vec![Dim::from(n), Dim::from(blocks)];
    let scale = cx.reshape(scale, per_block.clone())?;
    let zero = match cx.opt(3) {
        Some(z) if cx.dtype(z) != DType::U8 => return unsupported("has real zero points"),
        Some(z) => {
            let row = blocks.div_ceil(per_byte);
            let bytes = packed_bytes(cx, z, n.checked_mul(row), "zero points")?;
            let zeros = (0..n * blocks).map(|i| f64::from(code(&bytes[i / blocks * row..][..row], i % blocks, bits)));
            cx.table(DType::U8, &[n, blocks], zeros)?
        }
        None => cx.full(DType::U8, f64::from(1 << (bits - 1)), &per_block)?,
    };
    let (scale, zero) = (quant::parameter(cx, codes, scale)?, quant::parameter(cx, codes, zero)?);
    let w = quant::decoded(cx, codes, scale, Some(zero))?;
    let dims = cx.dims(x);
    let Some(last) = dims.last() else { return invalid("needs a matrix") };
    cx.equal(last, &Dim::from(k))?;
    let Contract { lhs, mut rhs, out, out_dtype } = Contract::linear(dims.len(), cx.dtype(x));
    // The weight stands with its outputs first.
    rhs.swap(0, 1);
    let mut y = cx.add(Contract { lhs, rhs, out, out_dtype }, &[x, w])?;
    if let Some(bias) = cx.opt(5) {
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    Ok(vec![y])
}

/// The bytes of a constant that must have `want` of them.
fn packed_bytes(cx: &mut OpCx<'_, '_>, v: Value, want: Option<usize>, what: &str) -> Result<Vec<u8>> {
    let t = cx.constant_of(v, what)?;
    if t.dtype != DType::U8 || Some(t.data.len()) != want {
        return invalid(format!("has {what} {}, needs {} bytes", t.ty(), want.unwrap_or(0)));
    }
    Ok(t.data)
}

/// Rows of a table of codes with a scale and a zero point per block: operands codes, indices, scales, zero points. Codes of unsigned bytes are packed.
fn gather_block(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (mut codes, index, scale) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let rank = cx.rank(codes);
    let (axis, along) = (cx.axis(cx.int("gather_axis", 0), rank)?, cx.axis(cx.int("quantize_axis", 1), rank)?);
    let block = cx.int("block_size", 128);
    let bits = cx.int("bits", 4);
    let mut zero = cx.opt(3);
    let blocks = cx.dims(scale).get(along).and_then(Dim::as_usize);
    let (Some(blocks), true) = (blocks, cx.rank(scale) == rank && block > 0) else {
        return invalid(format!("has the scales {} for {}", cx.ty(scale), cx.ty(codes)));
    };
    // Two codes to a byte where the scales say that there are twice as many elements.
    let have = cx.dims(codes)[along].as_usize().unwrap_or(0);
    let reach = blocks.saturating_mul(usize::try_from(block).unwrap_or(0));
    let unsigned = cx.dtype(codes) == DType::U8;
    if unsigned && along + 1 == rank && bits == 4 && have.saturating_mul(2) <= reach {
        codes = unpacked(cx, codes, have * 2, bits)?;
        zero = match zero {
            Some(z) => Some(unpacked(cx, z, blocks, bits)?),
            None => None,
        };
    }
    if unsigned && zero.is_none() {
        let middle = if bits == 4 { 8.0 } else { 128.0 };
        zero = Some(cx.num(DType::U8, middle)?);
    }
    quant::check_block_scale(cx, scale)?;
    let scale = quant::blockwise(cx, codes, scale, along, block)?;
    let zero = match zero {
        Some(z) if cx.rank(z) != 0 => Some(quant::blockwise(cx, codes, z, along, block)?),
        scalar => scalar,
    };
    let table = quant::decoded(cx, codes, scale, zero)?;
    Ok(vec![cx.gather(table, index, axis)?])
}

/// The first `n` codes of each row of constant bytes, of 8 or of 4 bits, of which the lowest stand first.
pub(super) fn unpacked(cx: &mut OpCx<'_, '_>, packed: Value, n: usize, bits: i64) -> Result<Value> {
    let t = cx.constant_of(packed, "codes")?;
    let Some((last, lead)) = t.dims.split_last() else { return invalid("has codes of no axes") };
    if t.dtype != DType::U8 || *last != if bits == 4 { n.div_ceil(2) } else { n } {
        return invalid(format!("has codes {} for rows of {n}", t.ty()));
    }
    let dims: Vec<usize> = lead.iter().copied().chain([n]).collect();
    let rows = t.data.chunks_exact((*last).max(1));
    let codes = rows.flat_map(|row| (0..n).map(move |i| f64::from(code(row, i, bits))));
    cx.table(DType::U8, &dims, codes)
}

/// Code `i` of 4 or 8 bits.
fn code(bytes: &[u8], i: usize, bits: i64) -> u8 {
    if bits == 8 { bytes[i] } else { bytes[i / 2] >> (i % 2 * 4) & 15 }
}
