//! Helpers shared by type rules.

use super::TypeError;
use crate::interp::EvalError;
use crate::scalar::Literal;
use crate::types::{Dim, TensorType};

/// NumPy broadcasting of dims: right-aligned; a constant 1 stretches, all else must be equal.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1);
    (0..rank)
        .map(|i| {
            let at = |d: &[Dim]| (i + d.len()).checked_sub(rank).map_or_else(|| one.clone(), |j| d[j].clone());
            let (x, y) = (at(a), at(b));
            if x == y || y.is(1) {
                Some(x)
            } else if x.is(1) {
                Some(y)
            } else {
                None
            }
        })
        .collect()
}

/// Number of window positions along one axis: `floor((extent + lo + hi - dilation*(kernel-1) - 1) / stride) + 1`.
pub fn window_extent(extent: &Dim, lo: i64, hi: i64, kernel: i64, stride: i64, dilation: i64) -> Dim {
    let span = extent + &Dim::from(lo + hi - dilation * (kernel - 1) - 1);
    &span.floor_div(&Dim::from(stride)) + &Dim::from(1)
}

/// Checks the number of operands.
pub(super) fn arity(op: &str, operands: &[&TensorType], want: std::ops::RangeInclusive<usize>) -> Result<(), TypeError> {
    if want.contains(&operands.len()) {
        return Ok(());
    }
    let text = if want.start() == want.end() { want.start().to_string() } else { format!("{} to {}", want.start(), want.end()) };
    Err(TypeError::arity(op, &text, operands.len()))
}

/// Checks an axis.
pub(super) fn axis(op: &str, axis: usize, rank: usize) -> Result<(), TypeError> {
    if axis < rank { Ok(()) } else { Err(TypeError::axis(op, axis, rank)) }
}

/// Checks that an operand holds indices.
pub(super) fn index_type(op: &str, t: &TensorType) -> Result<(), TypeError> {
    use crate::types::DType;
    if matches!(t.dtype, DType::I32 | DType::I64) {
        Ok(())
    } else {
        Err(TypeError::dtype(op, format!("needs i32 or i64 indices, got {t}")))
    }
}

/// The type in which sums of a float type are kept: at least f32.
pub(super) fn wide(d: crate::DType) -> crate::DType {
    if d == crate::DType::F64 { d } else { crate::DType::F32 }
}

/// The number of elements of the axes `axis..`, as a float in a body.
pub(super) fn count_from(
    f: &mut crate::scalar::BodyBuilder,
    dims: &[Dim],
    axis: usize,
    dtype: crate::DType,
) -> crate::scalar::Ref {
    let n = dims[axis..].iter().product::<Dim>();
    let n = match n.as_const() {
        Some(c) => return f.num(dtype, c as f64),
        None => f.push(crate::scalar::Inst::Dim(n)),
    };
    f.cast(dtype, n)
}

/// Dims after folding `axes`.
pub(super) fn reduced_dims(dims: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    dims.iter()
        .enumerate()
        .filter_map(|(i, d)| match (axes.contains(&i), keep) {
            (false, _) => Some(d.clone()),
            (true, true) => Some(Dim::from(1)),
            (true, false) => None,
        })
        .collect()
}

/// Checks that an operand is of a float type.
pub(super) fn float(op: &str, t: &TensorType) -> Result<(), TypeError> {
    if t.dtype.is_float() { Ok(()) } else { Err(TypeError::dtype(op, format!("needs a float tensor, got {t}"))) }
}

/// Checks that optional scale and bias operands of a norm broadcast to the normalised dims.
pub(super) fn norm_operands(op: &str, operands: &[&TensorType], axis: usize) -> Result<(), TypeError> {
    let x = operands[0];
    float(op, x)?;
    self::axis(op, axis, x.rank())?;
    for p in &operands[1..] {
        if p.dtype != x.dtype || broadcast_dims(&p.dims, &x.dims[axis..]).as_deref() != Some(&x.dims[axis..]) {
            return Err(TypeError::broadcast(op, x, p));
        }
    }
    Ok(())
}

/// Checks scale and zero point of (de)quantisation against the tensor that they broadcast to.
pub(super) fn quant_params(
    op: &str,
    x: &TensorType,
    scale: &TensorType,
    zero: Option<&TensorType>,
    int: crate::DType,
) -> Result<(), TypeError> {
    float(op, scale)?;
    if zero.is_some_and(|z| z.dtype != int) {
        return Err(TypeError::dtype(op, format!("needs a zero point of {int}")));
    }
    for p in std::iter::once(scale).chain(zero) {
        if broadcast_dims(&p.dims, &x.dims).as_ref() != Some(&x.dims) {
            return Err(TypeError::broadcast(op, x, p));
        }
    }
    Ok(())
}

/// [`window_extent`] of constants.
pub(super) fn extent_of(extent: usize, lo: i64, hi: i64, kernel: i64, stride: i64, dilation: i64) -> Result<usize, EvalError> {
    let d = window_extent(&Dim::from(extent), lo, hi, kernel, stride, dilation);
    d.as_usize().ok_or_else(|| EvalError::Shape("a window larger than its input".into()))
}

/// Total order of two elements of one dtype; NaN is the largest.
pub(super) fn compare(a: Literal, b: Literal) -> std::cmp::Ordering {
    if a.dtype.is_float() {
        let (x, y) = (a.to_f64(), b.to_f64());
        return x.partial_cmp(&y).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()));
    }
    if a.dtype == crate::DType::U64 { a.bits.cmp(&b.bits) } else { a.to_i64().cmp(&b.to_i64()) }
}
