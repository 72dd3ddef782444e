//! Arithmetic, comparison, logic and conversion of single elements.

use transc_ir::scalar::{BinOp, Body, UnOp};
use transc_ir::{DType, Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, unsupported};
use super::super::tensor;
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    // One operand.
    row("Abs", 6..=LAST, |cx| un(cx, UnOp::Abs)),
    row("Acos", 7..=LAST, |cx| un(cx, UnOp::Acos)),
    row("Acosh", 9..=LAST, |cx| un(cx, UnOp::Acosh)),
    row("Asin", 7..=LAST, |cx| un(cx, UnOp::Asin)),
    row("Asinh", 9..=LAST, |cx| un(cx, UnOp::Asinh)),
    row("Atan", 7..=LAST, |cx| un(cx, UnOp::Atan)),
    row("Atanh", 9..=LAST, |cx| un(cx, UnOp::Atanh)),
    row("BitwiseNot", 18..=LAST, |cx| un(cx, UnOp::Not)),
    row("Ceil", 6..=LAST, |cx| un(cx, UnOp::Ceil)),
    row("Cos", 7..=LAST, |cx| un(cx, UnOp::Cos)),
    row("Cosh", 9..=LAST, |cx| un(cx, UnOp::Cosh)),
    row("Erf", 9..=LAST, |cx| un(cx, UnOp::Erf)),
    row("Exp", 6..=LAST, |cx| un(cx, UnOp::Exp)),
    row("Floor", 6..=LAST, |cx| un(cx, UnOp::Floor)),
    row("IsNaN", 9..=LAST, |cx| un(cx, UnOp::IsNan)),
    row("Log", 6..=LAST, |cx| un(cx, UnOp::Log)),
    row("Neg", 6..=LAST, |cx| un(cx, UnOp::Neg)),
    row("Not", 1..=LAST, |cx| un(cx, UnOp::Not)),
    row("Reciprocal", 6..=LAST, |cx| un(cx, UnOp::Recip)),
    row("Round", 11..=LAST, |cx| un(cx, UnOp::Round)),
    row("Sigmoid", 6..=LAST, |cx| un(cx, UnOp::Sigmoid)),
    row("Sign", 9..=LAST, |cx| un(cx, UnOp::Sign)),
    row("Sin", 7..=LAST, |cx| un(cx, UnOp::Sin)),
    row("Sinh", 9..=LAST, |cx| un(cx, UnOp::Sinh)),
    row("Sqrt", 6..=LAST, |cx| un(cx, UnOp::Sqrt)),
    row("Tan", 7..=LAST, |cx| un(cx, UnOp::Tan)),
    row("Tanh", 6..=LAST, |cx| un(cx, UnOp::Tanh)),
    // Two operands.
    row("Add", 7..=LAST, |cx| bin(cx, BinOp::Add)),
    row("And", 7..=LAST, |cx| bin(cx, BinOp::And)),
    row("BitwiseAnd", 18..=LAST, |cx| bin(cx, BinOp::And)),
    row("BitwiseOr", 18..=LAST, |cx| bin(cx, BinOp::Or)),
    row("BitwiseXor", 18..=LAST, |cx| bin(cx, BinOp::Xor)),
    row("Div", 7..=LAST, div),
    row("Equal", 7..=LAST, |cx| bin(cx, BinOp::Eq)),
    row("Greater", 7..=LAST, |cx| bin(cx, BinOp::Gt)),
    row("GreaterOrEqual", 12..=LAST, |cx| bin(cx, BinOp::Ge)),
    row("Less", 7..=LAST, |cx| bin(cx, BinOp::Lt)),
    row("LessOrEqual", 12..=LAST, |cx| bin(cx, BinOp::Le)),
    row("Mul", 7..=LAST, |cx| bin(cx, BinOp::Mul)),
    row("Or", 7..=LAST, |cx| bin(cx, BinOp::Or)),
    row("Sub", 7..=LAST, |cx| bin(cx, BinOp::Sub)),
    row("Xor", 7..=LAST, |cx| bin(cx, BinOp::Xor)),
    row("BitShift", 11..=LAST, bit_shift),
    row("Mod", 10..=LAST, modulo),
    row("Pow", 7..=LAST, pow),
    row("PRelu", 7..=LAST, prelu),
    // Any number of operands.
    row("Max", 8..=LAST, |cx| fold(cx, BinOp::Max)),
    row("Min", 8..=LAST, |cx| fold(cx, BinOp::Min)),
    row("Sum", 8..=LAST, |cx| fold(cx, BinOp::Add)),
    row("Mean", 8..=LAST, mean),
    row("Where", 9..=LAST, select),
    // Conversion.
    row("BitCast", 26..=LAST, bit_cast),
    row("Cast", 6..=LAST, cast),
    row("CastLike", 15..=LAST, cast_like),
    row("Clip", 6..=10, clip_attributes),
    row("Clip", 11..=LAST, clip),
    row("Dropout", 7..=LAST, dropout),
    row("IsInf", 10..=LAST, is_inf),
];

fn un(cx: &mut OpCx<'_, '_>, o: UnOp) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    Ok(vec![cx.un(o, x)?])
}

fn bin(cx: &mut OpCx<'_, '_>, o: BinOp) -> Result<Vec<Value>> {
    let (x, y) = (cx.x(0)?, cx.x(1)?);
    Ok(vec![cx.bin(o, x, y)?])
}

/// Quotients of sizes are those of numbers that are not negative, where rounding down is rounding to zero.
fn div(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, y) = (cx.x(0)?, cx.x(1)?);
    let symbolic = |v| cx.imp.facts.symbolic(v).map(<[Dim]>::to_vec);
    if let (Some(sizes), Some(by)) = (symbolic(x), symbolic(y)) {
        for (size, by) in sizes.iter().zip(by.iter().cycle()) {
            let (_, most) = size.bounds(&cx.imp.module.symbols);
            if by.as_const().is_some_and(|by| 0 < by && by <= most) {
                cx.assume_not_negative(size, "a size that is divided is not negative");
            }
        }
    }
    Ok(vec![cx.bin(BinOp::Div, x, y)?])
}

fn fold(cx: &mut OpCx<'_, '_>, o: BinOp) -> Result<Vec<Value>> {
    let all = cx.all()?;
    let mut acc = all[0];
    for v in &all[1..] {
        acc = cx.bin(o, acc, *v)?;
    }
    Ok(vec![acc])
}

fn mean(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let n = cx.all()?.len() as f64;
    let sum = fold(cx, BinOp::Add)?[0];
    Ok(vec![cx.bin_num(BinOp::Div, sum, n)?])
}

fn bit_shift(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    match cx.text("direction", "")?.as_str() {
        "LEFT" => bin(cx, BinOp::Shl),
        "RIGHT" => bin(cx, BinOp::Shr),
        other => invalid(format!("the direction must be LEFT or RIGHT, not `{other}`")),
    }
}

fn modulo(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    bin(cx, if cx.flag("fmod") { BinOp::Rem } else { BinOp::Mod })
}

/// The result has the type of the base; a real power of an integer is computed in reals.
fn pow(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, y) = (cx.x(0)?, cx.x(1)?);
    let (dx, dy) = (cx.dtype(x), cx.dtype(y));
    let wide = if dy.is_float() && !dx.is_float() { if dy == DType::F64 { DType::F64 } else { DType::F32 } } else { dx };
    let (x, y) = (cx.cast(wide, x)?, cx.cast(wide, y)?);
    let p = cx.bin(BinOp::Pow, x, y)?;
    Ok(vec![cx.cast(dx, p)?])
}

fn prelu(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, slope) = (cx.x(0)?, cx.x(1)?);
    let y = cx.map2(x, slope, |b, d, x, s| {
        let zero = b.num(d, 0.0);
        let negative = b.bin(BinOp::Lt, x, zero);
        let scaled = b.bin(BinOp::Mul, x, s);
        b.select(negative, scaled, x)
    })?;
    Ok(vec![y])
}

fn select(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (c, x, y) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    Ok(vec![cx.select(c, x, y)?])
}

fn cast(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let to = tensor::dtype(i32::try_from(cx.int("to", 0)).unwrap_or(0), "the attribute `to`")?;
    Ok(vec![cx.cast(to, x)?])
}

fn cast_like(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let (x, like) = (cx.x(0)?, cx.x(1)?);
    Ok(vec![cx.cast(cx.dtype(like), x)?])
}

/// Reads the bits of integers of one width as signed or unsigned; other types have no instruction here.
fn bit_cast(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let from = cx.dtype(x);
    let to = tensor::dtype(i32::try_from(cx.int("to", 0)).unwrap_or(0), "the attribute `to`")?;
    if from == to || from.is_int() && to.is_int() && from.size_bytes() == to.size_bytes() {
        return Ok(vec![cx.cast(to, x)?]);
    }
    unsupported(format!("reads the bits of {from} as {to}"))
}

fn clip_attributes(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let (lo, hi) = (cx.real("min", f32::MIN), cx.real("max", f32::MAX));
    let y = cx.map1(x, |b, d, x| {
        let (lo, hi) = (b.num(d, lo), b.num(d, hi));
        let y = b.bin(BinOp::Max, x, lo);
        b.bin(BinOp::Min, y, hi)
    })?;
    Ok(vec![y])
}

fn clip(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let mut y = cx.x(0)?;
    if let Some(lo) = cx.opt(1) {
        y = cx.bin(BinOp::Max, y, lo)?;
    }
    if let Some(hi) = cx.opt(2) {
        y = cx.bin(BinOp::Min, y, hi)?;
    }
    Ok(vec![y])
}

/// Inference leaves the operand as it is; the mask keeps everything.
fn dropout(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    if cx.opset >= 12
        && let Some(training) = cx.opt(2)
        && cx.int_value(training, "the training mode")? != 0
    {
        let ratio = match cx.opt(1) {
            Some(r) => cx.reals(r, "the ratio")?.first().copied().unwrap_or(0.5),
            None => 0.5,
        };
        if ratio != 0.0 {
            return unsupported("drops elements at random, which is training");
        }
    }
    if !cx.wants(1) {
        return Ok(vec![x]);
    }
    let mask_type = if cx.opset >= 10 { DType::Bool } else { cx.dtype(x) };
    let mask = cx.full(mask_type, 1.0, &cx.dims(x))?;
    Ok(vec![x, mask])
}

fn is_inf(cx: &mut OpCx<'_, '_>) -> Result<Vec<Value>> {
    let x = cx.x(0)?;
    let (neg, pos) = (cx.int("detect_negative", 1) != 0, cx.int("detect_positive", 1) != 0);
    let y = match (neg, pos) {
        (true, true) => cx.map(Body::un(UnOp::IsInf), &[x])?,
        (false, false) => cx.full(DType::Bool, 0.0, &cx.dims(x))?,
        _ => cx.map1(x, |b, d, x| {
            let inf = b.num(d, if neg { f64::NEG_INFINITY } else { f64::INFINITY });
            b.bin(BinOp::Eq, x, inf)
        })?,
    };
    Ok(vec![y])
}
