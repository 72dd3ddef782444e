//! `patches`: a convolution whose windows neither overlap nor leave gaps becomes a product of patches, one row each, by the weight, as vision transformers
//! embed an image (Dosovitskiy et al. 2021, section 3.1).
//!
//! Its sums run in the same order. The weight is then one that is packed, rounded and pruned as those of other layers are, and the transposition to tokens
//! meets the one that this leaves.

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::op::{Contract, Conv, Op, Slice, TypeError};
use transc_ir::tensor::Builder;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::types::{Dim, TensorType};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let Op::Conv(c) = &node.op else { return Ok(None) };
        if !is_of_patches(c, b.ty(operands[1])) {
            return Ok(None);
        }
        cx.fired("patches");
        product(b, c, operands).map(|v| Some(vec![v]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The result `[N, M, windows..]` of the convolution.
fn product(b: &mut Builder<'_>, c: &Conv, operands: &[Value]) -> Result<Value, TypeError> {
    let (x, w) = (whole_windows(b, c, operands[0])?, operands[1]);
    let (x_dims, w_dims, out_dtype) = (b.ty(x).dims.clone(), b.ty(w).dims.clone(), b.ty(x).dtype);
    let n = c.strides.len();
    let steps: Vec<Dim> = c.strides.iter().map(|s| Dim::from(*s)).collect();
    let windows: Vec<Dim> = x_dims[2..].iter().zip(&steps).map(|(d, s)| d.floor_div(s)).collect();
    // [N, C, window, inside, ..] -> [N, window.., C, inside..]
    let split = windows.iter().zip(&steps).flat_map(|(w, s)| [w.clone(), s.clone()]);
    let split: Vec<Dim> = x_dims[..2].iter().cloned().chain(split).collect();
    let x = b.reshape(x, split)?;
    let axes = |first: usize| (0..n).map(move |i| first + 2 * i);
    let perm: Vec<usize> = std::iter::once(0).chain(axes(2)).chain([1]).chain(axes(3)).collect();
    let x = b.transpose(x, &perm)?;
    let k = w_dims[1..].iter().product::<Dim>();
    let rows: Vec<Dim> = x_dims[..1].iter().chain(&windows).chain([&k]).cloned().collect();
    let x = b.reshape(x, rows)?;
    let w = b.reshape(w, vec![w_dims[0].clone(), k])?;
    // Labels: those of the rows, then the sum's, then the channel's.
    let rows: Vec<u8> = (0..=n as u8).collect();
    let (k, m) = (n as u8 + 1, n as u8 + 2);
    let with = |l: u8| rows.iter().copied().chain([l]).collect::<Vec<u8>>();
    let y = b.add(Contract { lhs: with(k), rhs: vec![m, k], out: with(m), out_dtype }, &[x, w])?;
    let perm: Vec<usize> = [0, n + 1].into_iter().chain(1..=n).collect();
    b.transpose(y, &perm)
}

/// The input without what does not fill a window.
fn whole_windows(b: &mut Builder<'_>, c: &Conv, x: Value) -> Result<Value, TypeError> {
    let dims = b.ty(x).dims.clone();
    let fit = |(d, s): (&Dim, &i64)| &d.floor_div(&Dim::from(*s)) * &Dim::from(*s);
    let sizes: Vec<Dim> = dims[..2].iter().cloned().chain(dims[2..].iter().zip(&c.strides).map(fit)).collect();
    if sizes == dims {
        return Ok(x);
    }
    b.add(Slice { starts: vec![Dim::from(0); dims.len()], steps: vec![1; dims.len()], sizes }, &[x])
}

/// True if each element of the input belongs to one window, and a window has more than one.
fn is_of_patches(c: &Conv, weight: &TensorType) -> bool {
    let padded = c.lo.iter().chain(&c.hi).any(|p| *p != 0);
    let side_by_side = weight.dims[2..].iter().zip(&c.strides).all(|(k, s)| k.is(*s));
    let spread = c.groups > 1 || c.dilations.iter().any(|d| *d != 1);
    weight.dtype.is_float() && !padded && side_by_side && !spread && c.strides.iter().any(|s| *s > 1)
}
