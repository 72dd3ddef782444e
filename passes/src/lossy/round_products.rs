//! `round-products`: products of an activation by a constant weight, and those of attention, take their operands in `bf16`, where asked for.
//!
//! `decode(encode(x))` is the rounding to `bf16`, to nearest even, of weight and activation, or of queries, keys, values and result; sums stay in `f32`,
//! and so does everything else. The pass comes last: what the others find in weights they find in those of the model.

use std::collections::BTreeMap;
use std::str::FromStr;

use transc_ir::diag::{Diagnostic, Fault};
use transc_ir::op::{Contract, Op, TypeError};
use transc_ir::scalar::Literal;
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, ConstData, ConstId, Node};
use transc_ir::types::{DType, TensorType};
use transc_ir::{Module, Value};

use super::LedgerEntry;
use super::weights::{WeightSpec, floats, relative_error_of};
use crate::analysis::views;
use crate::context::PassCx;
use crate::error::PassError;
use crate::exact::sweep;

/// How far the operands of attention are followed.
const MAX_STEPS: usize = 12;
/// Weights with fewer elements stay.
const MIN_ELEMENTS: usize = 1024;

/// The element type that products take their operands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// That of the model.
    #[default]
    Model,
    /// `bf16` where an activation meets a constant weight and in attention, all `f32` in the model.
    Bf16,
}

/// What is wrong with a choice of element types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrecisionError {
    /// A type that products are not computed in.
    #[error("`--dtype {0}` cannot be done")]
    Unknown(String),
    /// A weight cannot be two codes at once.
    #[error("`--dtype bf16` does not go together with codes for weights")]
    Codes,
}

impl PrecisionError {
    /// The error for people.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let (code, help) = match self {
            PrecisionError::Unknown(_) => ("T0528", "`f32` leaves the model as it is, `bf16` rounds what products multiply"),
            PrecisionError::Codes => ("T0529", "leave out `--dtype bf16`, or `--int8`, `--llm-int8`, `--w8` and `--w4`"),
        };
        vec![Diagnostic { code, fault: Fault::Invalid, message: self.to_string(), place: None, help: help.into() }]
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(s: &str) -> Result<Self, PrecisionError> {
        match s {
            "f32" => Ok(Precision::Model),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(PrecisionError::Unknown(s.into())),
        }
    }
}

impl Precision {
    /// Checks that it goes together with a compression of the weights.
    ///
    /// # Errors
    /// `bf16` beside codes.
    pub fn beside(self, weights: &WeightSpec) -> Result<(), PrecisionError> {
        if self == Precision::Bf16 && weights.codes.is_some() { Err(PrecisionError::Codes) } else { Ok(()) }
    }
}

/// Runs the pass.
///
/// # Errors
/// Codes for weights beside it, or a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    if cx.precision == Precision::Model {
        return Ok(());
    }
    cx.precision.beside(&cx.weights)?;
    let mut known = Known::default();
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        if matches!(node.op, Op::Attention(_)) {
            return attention(b, node, operands, &mut known, cx);
        }
        let Some((c, weight)) = site(b, node, operands) else { return Ok(None) };
        match known.weight(b, operands[weight])? {
            Err(why) => {
                cx.remark(&node.loc, format!("stays in f32: {why}"));
                Ok(None)
            }
            Ok((w, error)) => {
                let x = known.activation(b, operands[1 - weight])?;
                cx.fired("bf16");
                cx.ledger.push(LedgerEntry {
                    site: node.loc.path().into(),
                    codec: "bf16",
                    parameters: format!("weight and activation, weight error {error:.2e}"),
                });
                let pair = if weight == 1 { [x, w] } else { [w, x] };
                Ok(Some(vec![b.add(c.clone(), &pair)?]))
            }
        }
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// An attention with its operands and its result rounded; `None` where it stays.
fn attention(
    b: &mut Builder<'_>,
    node: &Node,
    operands: &[Value],
    known: &mut Known,
    cx: &mut PassCx,
) -> Result<Option<Vec<Value>>, TypeError> {
    if b.ty(operands[0]).dtype != DType::F32 {
        return Ok(None);
    }
    if operands[..3].iter().any(|v| from_codes(b, *v, MAX_STEPS)) {
        cx.remark(&node.loc, "stays in f32: it stands between products of 8 bits, whose codes would fall the other way");
        return Ok(None);
    }
    cx.fired("bf16");
    let parameters = "queries, keys, values and result".into();
    cx.ledger.push(LedgerEntry { site: node.loc.path().into(), codec: "bf16", parameters });
    let mut rounded = operands.to_vec();
    for v in &mut rounded[..3] {
        *v = known.activation(b, *v)?;
    }
    let y = b.add(node.op.clone(), &rounded)?;
    Ok(Some(vec![b.cast(DType::F32, y)?]))
}

/// True if a value is made of integers, by element-wise steps and views.
fn from_codes(b: &Builder<'_>, v: Value, steps: usize) -> bool {
    let Some(node) = b.func.def_node(v).filter(|_| steps > 0) else { return false };
    match &node.op {
        Op::Dequantize(_) | Op::Quantize(_) => true,
        Op::Contract(c) => !c.out_dtype.is_float(),
        Op::Map(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => {
            node.operands.iter().any(|v| from_codes(b, *v, steps - 1))
        }
        _ => false,
    }
}

/// A product in `f32` by a constant that gives the columns of the result, and which operand that is.
fn site<'n>(b: &Builder<'_>, node: &'n Node, operands: &[Value]) -> Option<(&'n Contract, usize)> {
    let Op::Contract(c) = &node.op else { return None };
    let f32s = operands.iter().all(|v| b.ty(*v).dtype == DType::F32) && c.out_dtype == DType::F32;
    let column = c.out.last()?;
    let weight = usize::from(!c.lhs.contains(column));
    let (own, other) = if weight == 0 { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
    let columns = own.iter().filter(|l| c.out.contains(l) && !other.contains(l)).count();
    let sums = own.iter().any(|l| !c.out.contains(l));
    (f32s && columns == 1 && sums && !other.contains(column) && views::base(b, operands[weight]).is_some()).then_some((c, weight))
}

/// A rounded weight and its relative error, or why it stays.
type Rounded = Result<(ConstId, f64), &'static str>;

/// What was rounded already: each value once.
#[derive(Default)]
struct Known {
    weights: BTreeMap<ConstId, Rounded>,
    activations: BTreeMap<Value, Value>,
}

impl Known {
    fn activation(&mut self, b: &mut Builder<'_>, x: Value) -> Result<Value, TypeError> {
        if let Some(y) = self.activations.get(&x) {
            return Ok(*y);
        }
        let y = b.cast(DType::Bf16, x)?;
        self.activations.insert(x, y);
        Ok(y)
    }

    /// The same view of the rounded constant, and the error of the constant.
    fn weight(&mut self, b: &mut Builder<'_>, v: Value) -> Result<Result<(Value, f64), &'static str>, TypeError> {
        let Some(id) = views::base(b, v) else { return Ok(Err("its weight is computed")) };
        let rounded = *self.weights.entry(id).or_insert_with(|| {
            let name = b.consts.name(id).to_string();
            let (data, error) = rounded(b.consts.get(id).ok_or("its weight is not there")?)?;
            Ok((std::sync::Arc::make_mut(b.consts).add(&name, data), error))
        });
        match rounded {
            Err(why) => Ok(Err(why)),
            Ok((id, error)) => Ok(Ok((views::of_another(b, v, id)?, error))),
        }
    }
}

fn rounded(data: &ConstData) -> Result<(ConstData, f64), &'static str> {
    let exact = floats(data);
    if exact.len() < MIN_ELEMENTS {
        return Err("its weight is small");
    }
    let codes: Vec<u16> = exact.iter().map(|v| Literal::from_f64(DType::Bf16, f64::from(*v)).bits as u16).collect();
    let near: Vec<f32> = codes.iter().map(|c| f32::from_bits(u32::from(*c) << 16)).collect();
    if !near.iter().all(|v| v.is_finite()) {
        return Err("its weight holds numbers that are not finite in bf16");
    }
    let ty = TensorType { dtype: DType::Bf16, ..data.ty().clone() };
    let bytes = codes.iter().flat_map(|c| c.to_le_bytes()).collect();
    let data = ConstData::new(ty, bytes).ok_or("its weight is not whole")?;
    Ok((data, relative_error_of([(&exact[..], &near[..])]).unwrap_or(0.0)))
}
