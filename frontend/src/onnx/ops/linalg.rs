//! Matrix products.

use transc_ir::op::Contract;
use transc_ir::scalar::BinOp;
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid};
use super::{LAST, OpRow, activation, contrib, quant, row};

pub(super) static ROWS: &[OpRow] = &[
    row("Gemm", 7..=LAST, gemm),
    row("MatMul", 1..=LAST, mat_mul),
    row("MatMulInteger", 10..=LAST, mat_mul_integer),
    row("QLinearMatMul", 10..=LAST, q_linear_mat_mul),
    contrib("DynamicQuantizeMatMul", dynamic_quantize_mat_mul),
    contrib("FusedGemm", fused_gemm),
    contrib("FusedMatMul", fused_mat_mul),
    contrib("GemmFastGelu", |cx| {
        let (a, b) = (cx.x(0)?, cx.x(1)?);
        let mut y = cx.mat_mul(a, b, cx.dtype(a))?;
        if let Some(bias) = cx.opt(2) {
            y = cx.bin(BinOp::Add, y, bias)?;
        }
        Ok(vec![cx.map1(y, crate::activations::gelu_tanh)?])
    }),
    contrib("MatMulIntegerToFloat", mat_mul_integer_to_float),
    contrib("TransposeMatMul", fused_mat_mul),
];

impl OpCx<'_, '_> {
    /// NumPy's `matmul`, with a result of type `out`.
    pub(in super::super) fn mat_mul(&mut self, a: Value, b: Value, out: DType) -> Result<Value> {
        let (da, db) = (self.dims(a), self.dims(b));
        if da.is_empty() || db.is_empty() {
            return invalid(format!("cannot multiply {} by {}", self.ty(a), self.ty(b)));
        }
        // Vectors become matrices, and lose the axis again at the end.
        let (vector_a, vector_b) = (da.len() == 1, db.len() == 1);
        let ma = if vector_a { vec![Dim::from(1), da[0].clone()] } else { da };
        let mb = if vector_b { vec![db[0].clone(), Dim::from(1)] } else { db };
        let (a, b) = (self.reshape(a, ma.clone())?, self.reshape(b, mb.clone())?);
        self.equal(&ma[ma.len() - 1], &mb[mb.len() - 2])?;
        let mut y = self.batched(a, b, out)?;
        let mut dims = self.dims(y);
        if vector_b {
            dims.pop();
        }
        if vector_a {
            let last = dims.len() - usize::from(!vector_b) - 1;
            dims.remove(last);
        }
        y = self.reshape(y, dims)?;
        Ok(y)
    }

    /// The product of matrices with leading axes that broadcast: an axis that only one operand really has is a free axis of it.
    fn batched(&mut self, a: Value, b: Value, out: DType) -> Result<Value> {
        let (da, db) = (self.dims(a), self.dims(b));
        let lead = da.len().max(db.len()) - 2;
        let (mut left, mut right, mut result) = (Axes::default(), Axes::default(), Axes::default());
        let mut dims = Vec::new();
        for i in 0..lead {
            let axis = |d: &[Dim]| (i + d.len()).checked_sub(lead + 2).map(|j| d[j].clone());
            let (x, y) = match (axis(&da), axis(&db)) {
                // Where both have the axis, an extent of 1 stretches.
                (Some(x), Some(y)) => (Some(x).filter(|d| !d.is(1)), Some(y).filter(|d| !d.is(1))),
                alone => alone,
            };
            if let (Some(x), Some(y)) = (&x, &y) {
                self.equal(x, y)?;
            }
            let label = i as u8;
            for (side, d) in [(&mut left, &x), (&mut right, &y), (&mut result, &x.clone().or(y.clone()))] {
                if let Some(d) = d {
                    side.push(label, d);
                }
            }
            dims.push(x.or(y).unwrap_or_else(|| Dim::from(1)));
        }
        let [m, k, n] = [lead as u8, lead as u8 + 1, lead as u8 + 2];
        let ([rows, inner], [inner_b, columns]) = (last_two(&da), last_two(&db));
        left.push(m, rows);
        left.push(k, inner);
        right.push(k, inner_b);
        right.push(n, columns);
        result.push(m, rows);
        result.push(n, columns);
        dims.extend([rows.clone(), columns.clone()]);
        let (a, b) = (self.reshape(a, left.dims)?, self.reshape(b, right.dims)?);
        let y = self.add(Contract { lhs: left.labels, rhs: right.labels, out: result.labels, out_dtype: out }, &[a, b])?;
        self.reshape(y, dims)
    }
}

/// The labelled axes of an operand of a contraction.
#[derive(Default)]
struct Axes {
    labels: Vec<u8>,
    dims: Vec<Dim>,
}

impl Axes {
    fn push(&mut self, label: u8, d: &Dim) {
        self.labels.push(label);
        self.dims.push(d.clone());
    }
}

fn last_two(d: &[Dim]) -> [&Dim; 2] {
    [&d[d.len() - 2], &d[d.len() - 1]]
}

fn mat_mul(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, b) = (cx.x(0)?, cx.x(1)?);
    Ok(vec![cx.mat_mul(a, b, cx.dtype(a))?])
}

/// `alpha * A' B' + beta * C`.
fn gemm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, b) = (cx.x(0)?, cx.x(1)?);
    if cx.rank(a) != 2 || cx.rank(b) != 2 {
        return invalid(format!("needs two matrices, got {} and {}", cx.ty(a), cx.ty(b)));
    }
    let (ta, tb) = (cx.flag("transA"), cx.flag("transB"));
    let (da, db) = (cx.dims(a), cx.dims(b));
    cx.equal(&da[usize::from(!ta)], &db[usize::from(tb)])?;
    let order = |t: bool, x: u8, y: u8| if t { vec![y, x] } else { vec![x, y] };
    let d = cx.dtype(a);
    let mut y = cx.add(Contract { lhs: order(ta, 0, 1), rhs: order(tb, 1, 2), out: vec![0, 2], out_dtype: d }, &[a, b])?;
    let (alpha, beta) = (cx.real("alpha", 1.0), cx.real("beta", 1.0));
    if alpha != 1.0 {
        y = cx.bin_num(BinOp::Mul, y, alpha)?;
    }
    if let Some(mut c) = cx.opt(2).filter(|_| beta != 0.0) {
        if beta != 1.0 {
            c = cx.bin_num(BinOp::Mul, c, beta)?;
        }
        y = cx.bin(BinOp::Add, y, c)?;
    }
    Ok(vec![y])
}

/// A product of matrices and an activation.
fn fused_gemm(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let y = gemm(cx)?[0];
    let name = cx.text("activation", "")?;
    let given = ["activation_alpha", "activation_beta", "activation_gamma"];
    let given: Vec<f32> = given.into_iter().map_while(|a| cx.attr(a).map(|a| a.f())).collect();
    Ok(vec![activation::by_name(cx, &name, &given, y)?])
}

/// A matrix of 8-bit integers minus its zero point, widened; a zero point per row of the first or per column of the second operand.
fn centred(cx: &mut OpCx<'_, '_>, x: Value, zero: Option<Value>, left: bool) -> Result<Value> {
    let Some(zero) = zero else { return Ok(x) };
    if cx.dtype(zero) != cx.dtype(x) {
        return invalid(format!("has a zero point of {} for {}", cx.dtype(zero), cx.ty(x)));
    }
    let along = if left { 2 } else { 1 };
    if let ([n], Some(axis)) = (cx.dims(zero).as_slice(), cx.rank(x).checked_sub(along))
        && !n.is(1)
        && cx.dims(x)[axis] != *n
    {
        return invalid(format!("has {n} zero points for {}", cx.ty(x)));
    }
    if let Some(t) = cx.try_constant(zero)?
        && t.data.iter().all(|b| *b == 0)
    {
        return Ok(x);
    }
    let zero = if left && cx.rank(zero) == 1 && !cx.dims(zero)[0].is(1) {
        let n = cx.dims(zero)[0].clone();
        cx.reshape(zero, vec![n, Dim::from(1)])?
    } else {
        zero
    };
    let (x, zero) = (cx.cast(DType::I32, x)?, cx.cast(DType::I32, zero)?);
    cx.bin(BinOp::Sub, x, zero)
}

fn mat_mul_integer(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, b) = (cx.x(0)?, cx.x(1)?);
    let (a, b) = (centred(cx, a, cx.opt(2), true)?, centred(cx, b, cx.opt(3), false)?);
    Ok(vec![cx.mat_mul(a, b, DType::I32)?])
}

fn q_linear_mat_mul(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, a_scale, a_zero, b, b_scale, b_zero) = (cx.x(0)?, cx.x(1)?, cx.x(2)?, cx.x(3)?, cx.x(4)?, cx.x(5)?);
    let (y_scale, y_zero) = (cx.x(6)?, cx.x(7)?);
    for scale in [a_scale, b_scale, y_scale] {
        quant::check_scale(cx, scale)?;
    }
    let (a, b) = (centred(cx, a, Some(a_zero), true)?, centred(cx, b, Some(b_zero), false)?);
    let product = cx.mat_mul(a, b, DType::I32)?;
    let d = cx.dtype(y_scale);
    let real = cx.cast(d, product)?;
    let a_scale = row_vector(cx, a_scale)?;
    let scale = cx.bin(BinOp::Mul, a_scale, b_scale)?;
    let real = cx.bin(BinOp::Mul, real, scale)?;
    Ok(vec![quant::quantize_to(cx, real, y_scale, Some(y_zero))?])
}

/// A scale per row stands upright.
fn row_vector(cx: &mut OpCx<'_, '_>, scale: Value) -> Result<Value> {
    match cx.dims(scale).as_slice() {
        [n] if !n.is(1) => cx.reshape(scale, vec![n.clone(), Dim::from(1)]),
        [_] => cx.reshape(scale, Vec::new()),
        _ => Ok(scale),
    }
}

/// `alpha * A' B'` where the first axis of the operands may stand behind the batch, and then the last two axes may be swapped.
fn fused_mat_mul(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (mut a, mut b) = (cx.x(0)?, cx.x(1)?);
    for (flag, batch, v) in [("transA", "transBatchA", &mut a), ("transB", "transBatchB", &mut b)] {
        let rank = cx.rank(*v);
        if cx.flag(batch) && rank >= 3 {
            *v = cx.move_axis(*v, 0, rank - 2)?;
        }
        if cx.flag(flag) && rank >= 2 {
            *v = cx.move_axis(*v, rank - 1, rank - 2)?;
        }
    }
    let y = cx.mat_mul(a, b, cx.dtype(a))?;
    let alpha = cx.real("alpha", 1.0);
    Ok(vec![if alpha == 1.0 { y } else { cx.bin_num(BinOp::Mul, y, alpha)? }])
}

/// A matrix of codes with its scale and zero point.
pub(super) type Coded = (Value, Value, Option<Value>);

/// The reals that an integer product stands for; `c` is added to the integers.
pub(super) fn scaled_product(cx: &mut OpCx<'_, '_>, a: Coded, b: Coded, c: Option<Value>) -> Result<Value> {
    let (left, right) = (centred(cx, a.0, a.2, true)?, centred(cx, b.0, b.2, false)?);
    let mut sum = cx.mat_mul(left, right, DType::I32)?;
    if let Some(c) = c {
        sum = cx.bin(BinOp::Add, sum, c)?;
    }
    let scale = cx.bin(BinOp::Mul, a.1, b.1)?;
    let real = cx.cast(cx.dtype(scale), sum)?;
    cx.bin(BinOp::Mul, real, scale)
}

/// A product by an 8-bit weight, the activation quantised with the range that it has.
fn dynamic_quantize_mat_mul(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, w, w_scale) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    let [a, a_scale, a_zero] = quant::dynamic(cx, x)?;
    let mut y = scaled_product(cx, (a, a_scale, Some(a_zero)), (w, w_scale, cx.opt(3)), None)?;
    if let Some(bias) = cx.opt(4) {
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    Ok(vec![y])
}

fn mat_mul_integer_to_float(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (a, b, a_scale, b_scale) = (cx.x(0)?, cx.x(1)?, cx.x(2)?, cx.x(3)?);
    let mut y = scaled_product(cx, (a, a_scale, cx.opt(4)), (b, b_scale, cx.opt(5)), None)?;
    if let Some(bias) = cx.opt(6) {
        y = cx.bin(BinOp::Add, y, bias)?;
    }
    Ok(vec![y])
}
