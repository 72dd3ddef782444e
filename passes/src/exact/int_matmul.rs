//! `int-matmul`: products of quantised operands become integer products that are scaled afterwards.
//!
//! `sum over k of (x - zx) * sx * (w - zw) * sw = sx * sw * (sum x*w - zx * sum w - zw * sum x + K * zx * zw)`: the bracket is exact in 32-bit
//! integers, and all that depends on the weight `w` alone is computed here (Jacob et al. 2018, section 2.3). The sum is taken over an unsigned
//! activation and a signed weight, the operands of the processor's dot products; another signedness is a shift of the zero point by 128.
//!
//! Products of integers (`MatMulInteger`) and of dequantised reals are treated alike. The latter round less than before: over the reals nothing changes.

use transc_ir::interp::{EvalCx, Tensor};
use transc_ir::op::{Contract, Map, Op, Reduce, ReduceKind, TypeError};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, Node};
use transc_ir::types::{DType, Dim, TensorType};
use transc_ir::{Module, Value};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Largest scale or zero point that is computed here, in bytes.
const MAX_PARAM_BYTES: usize = 1 << 20;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let Op::Contract(c) = &node.op else { return Ok(None) };
        match Product::find(b, c, operands) {
            Ok(p) => {
                cx.fired("int-matmul");
                p.build(b, c).map(|v| Some(vec![v]))
            }
            Err(Some(why)) => {
                cx.remark(&node.loc, format!("stays a product of reals: {why}"));
                Ok(None)
            }
            Err(None) => Ok(None),
        }
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// A quantised operand: `(codes - zero) * scale`.
struct Quantised {
    /// The view through which the product reads the codes; scale and zero point are the same for all elements then.
    view: Option<Op>,
    codes: Value,
    zero: Option<Value>,
    /// None: the operand is the integer itself.
    scale: Option<Value>,
}

/// What a value decodes; `None` if it is not a decoding of 8-bit codes.
fn quantised(b: &Builder<'_>, v: Value) -> Option<Quantised> {
    let byte = |v: Value| matches!(b.ty(v).dtype, DType::U8 | DType::I8);
    if byte(v) {
        return Some(Quantised { view: None, codes: v, zero: None, scale: None });
    }
    let node = b.func.def_node(v)?;
    let arg = |n: &Node, i: usize| n.operands.get(i).copied();
    match &node.op {
        Op::Dequantize(_) if byte(arg(node, 0)?) && b.ty(v).dtype == DType::F32 => {
            Some(Quantised { view: None, codes: arg(node, 0)?, zero: arg(node, 2), scale: arg(node, 1) })
        }
        // How importers subtract a zero point from an integer matrix.
        Op::Map(m) if m.body == Body::bin(BinOp::Sub) => {
            let (x, z) = (widened(b, arg(node, 0)?)?, arg(node, 1)?);
            let z = widened(b, z).unwrap_or(z);
            byte(x).then_some(Quantised { view: None, codes: x, zero: Some(z), scale: None })
        }
        Op::Reshape(_) | Op::Transpose(_) => {
            let inner = quantised(b, arg(node, 0)?).filter(|q| q.view.is_none() && q.has_one_scale(b))?;
            Some(Quantised { view: Some(node.op.clone()), ..inner })
        }
        _ => None,
    }
}

impl Quantised {
    fn has_one_scale(&self, b: &Builder<'_>) -> bool {
        [self.zero, self.scale].into_iter().flatten().all(|v| b.ty(v).count().is(1))
    }
}

impl Quantised {
    /// True if the scale varies over the rows of a linear layer only, and broadcasts to its result as it is.
    fn has_scale_per_row(&self, b: &Builder<'_>, c: &Contract, labels: &[u8]) -> bool {
        let (Some(scale), None, None) = (self.scale, self.zero, &self.view) else { return false };
        let dims = &b.ty(scale).dims;
        let rows = labels.len() - 1;
        dims.len() == labels.len() && dims[rows].is(1) && c.out.len() == labels.len() && c.out[..rows] == labels[..rows]
    }
}

/// What a conversion to 32-bit integers converts.
fn widened(b: &Builder<'_>, v: Value) -> Option<Value> {
    let node = b.func.def_node(v).filter(|n| n.op.casts_to(DType::I32))?;
    node.operands.first().copied()
}

/// A small value that depends on nothing.
fn known(b: &Builder<'_>, v: Value) -> Option<Tensor> {
    let node = b.func.def_node(v)?;
    if sweep::static_bytes(b.ty(v))? > MAX_PARAM_BYTES {
        return None;
    }
    let operands = node.operands.iter().map(|o| known(b, *o)).collect::<Option<Vec<_>>>()?;
    let cx = EvalCx { consts: b.consts, symbols: &|_| None };
    node.op.eval(&operands.iter().collect::<Vec<_>>(), &cx).ok()?.into_iter().next()
}

/// A matrix of weights with signed codes: `w = codes - zero[column]`.
struct Weight {
    codes: Tensor,
    /// Sum of the codes of each column.
    sums: Vec<i32>,
    /// Empty if all are zero.
    zeros: Vec<i32>,
}

struct Product {
    x: Quantised,
    /// Zero point of the activation, if it is known.
    x_zero: Option<i32>,
    weight: Weight,
    weight_scale: Option<Value>,
    /// The label of the weight's columns.
    column: u8,
    /// Labels of the activation and of the weight.
    labels: [Vec<u8>; 2],
    /// Length of the sums.
    k: i32,
}

impl Product {
    /// The product behind a contraction. The error says why one that looked like it is none.
    fn find(b: &Builder<'_>, c: &Contract, operands: &[Value]) -> Result<Self, Option<&'static str>> {
        let both =
            quantised(b, operands[0]).zip(quantised(b, operands[1])).filter(|(p, q)| p.scale.is_some() == q.scale.is_some());
        let Some((lhs, rhs)) = both else { return Err(None) };
        if lhs.scale.is_some() != (c.out_dtype == DType::F32) || lhs.scale.is_none() && c.out_dtype != DType::I32 {
            return Err(None);
        }
        let is_const = |q: &Quantised| q.view.is_none() && b.func.constant(q.codes).is_some();
        let (x, w, labels) = match (is_const(&lhs), is_const(&rhs)) {
            (false, true) => (lhs, rhs, [c.lhs.clone(), c.rhs.clone()]),
            (true, false) => (rhs, lhs, [c.rhs.clone(), c.lhs.clone()]),
            _ => return Err(Some("both operands are activations, of which only attention takes integers")),
        };
        let free: Vec<u8> = labels[1].iter().filter(|l| c.out.contains(l)).copied().collect();
        let [column] = free.as_slice() else { return Err(Some("the weight is not one matrix")) };
        let inner: Vec<usize> = (0..labels[1].len()).filter(|i| labels[1][*i] != *column).collect();
        if labels[0].contains(column) || inner.is_empty() {
            return Err(Some("the weight is not one matrix"));
        }
        if !x.has_one_scale(b) && !x.has_scale_per_row(b, c, &labels[0]) {
            return Err(Some("the activation has scales along its sums, or several zero points"));
        }
        let x_zero = match x.zero {
            None => Some(0),
            Some(z) => known(b, z).map(|t| t.get_i64(0) as i32),
        };
        let axis = labels[1].iter().position(|l| l == column).unwrap_or(0);
        let per_column = |v: Value| by_column(&b.ty(v).dims, labels[1].len(), axis);
        if !w.scale.is_none_or(per_column) || !w.zero.is_none_or(per_column) {
            return Err(Some("the weight has scales along its sums"));
        }
        let weight = Weight::new(b, &w, axis).ok_or(Some("the weight's zero points are not constant"))?;
        let k = inner.iter().try_fold(1i32, |a, i| a.checked_mul(i32::try_from(weight.codes.dims[*i]).ok()?));
        // |sum| <= k * 255 * 128 must stay in 32 bits for the sums to be those of the model.
        let k = k.filter(|k| *k <= 65_000).ok_or(Some("the sums do not fit 32 bits"))?;
        Ok(Self { x, x_zero, weight, weight_scale: w.scale, column: *column, labels, k })
    }

    /// The integer product, corrected and scaled.
    fn build(self, b: &mut Builder<'_>, c: &Contract) -> Result<Value, TypeError> {
        let signed = b.ty(self.x.codes).dtype == DType::I8;
        let mut x = self.x.codes;
        if signed {
            x = b.add(Map { body: shifted() }, &[x])?;
        }
        if let Some(view) = &self.x.view {
            x = b.add(view.clone(), &[x])?;
        }
        let x_zero = self.x_zero.map(|z| if signed { z + 128 } else { z });
        let [lhs, rhs] = self.labels.clone();
        let weight = constant(b, self.weight.codes.clone())?;
        let mut y = b.add(Contract { lhs: lhs.clone(), rhs, out: c.out.clone(), out_dtype: DType::I32 }, &[x, weight])?;
        // zx * (sum w - K zw), by column.
        let zero_of = |i: usize| self.weight.zeros.get(i).copied().unwrap_or(0);
        let columns = (0..self.weight.sums.len()).map(|i| self.weight.sums[i].wrapping_sub(self.k.wrapping_mul(zero_of(i))));
        match x_zero {
            Some(0) => {}
            Some(z) => {
                let shift = self.by_column(b, c, &columns.map(|s| s.wrapping_mul(z)).collect::<Vec<_>>())?;
                y = b.bin(BinOp::Sub, y, shift)?;
            }
            None => {
                let sums = self.by_column(b, c, &columns.collect::<Vec<_>>())?;
                let zero = b.reshape(self.x.zero.unwrap_or(x), Vec::new())?;
                let mut zero = b.cast(DType::I32, zero)?;
                if signed {
                    let offset = b.scalar(Literal::from_i64(DType::I32, 128))?;
                    zero = b.bin(BinOp::Add, zero, offset)?;
                }
                let shift = b.bin(BinOp::Mul, sums, zero)?;
                y = b.bin(BinOp::Sub, y, shift)?;
            }
        }
        if !self.weight.zeros.is_empty() {
            let zeros = self.by_column(b, c, &self.weight.zeros)?;
            let rows = self.row_sums(b, c, &lhs, x)?;
            let shift = b.bin(BinOp::Mul, rows, zeros)?;
            y = b.bin(BinOp::Sub, y, shift)?;
        }
        let (Some(mut sx), Some(sw)) = (self.x.scale, self.weight_scale) else { return Ok(y) };
        let per_row = !b.ty(sx).count().is(1);
        if !per_row {
            sx = b.reshape(sx, Vec::new())?;
        }
        let dims = if b.ty(sw).count().is(1) { Vec::new() } else { self.column_dims(c, b.ty(sw).count()) };
        let sw = b.reshape(sw, dims)?;
        let y = b.cast(DType::F32, y)?;
        if per_row {
            let y = b.bin(BinOp::Mul, y, sw)?;
            return b.bin(BinOp::Mul, y, sx);
        }
        let scale = b.bin(BinOp::Mul, sw, sx)?;
        b.bin(BinOp::Mul, y, scale)
    }

    /// `sum over k of x`, shaped to broadcast to the result.
    fn row_sums(&self, b: &mut Builder<'_>, c: &Contract, lhs: &[u8], x: Value) -> Result<Value, TypeError> {
        let axes: Vec<usize> = (0..lhs.len()).filter(|i| !c.out.contains(&lhs[*i])).collect();
        let wide = b.cast(DType::I32, x)?;
        let sums = b.add(Reduce { kind: ReduceKind::Sum, axes, keep: false }, &[wide])?;
        let kept: Vec<u8> = lhs.iter().filter(|l| c.out.contains(l)).copied().collect();
        let rows: Vec<u8> = c.out.iter().filter(|l| **l != self.column).copied().collect();
        let perm: Vec<usize> = rows.iter().filter_map(|l| kept.iter().position(|m| m == l)).collect();
        let sums = b.transpose(sums, &perm)?;
        let mut dims = b.ty(sums).dims.clone();
        let at = c.out.iter().position(|l| *l == self.column).unwrap_or(0);
        dims.insert(at, Dim::from(1));
        b.reshape(sums, dims)
    }

    /// Dims that put the columns on their axis of the result.
    fn column_dims(&self, c: &Contract, n: Dim) -> Vec<Dim> {
        let at = c.out.iter().position(|l| *l == self.column).unwrap_or(0);
        std::iter::once(n).chain(c.out[at + 1..].iter().map(|_| Dim::from(1))).collect()
    }

    /// A constant of one integer per column.
    fn by_column(&self, b: &mut Builder<'_>, c: &Contract, values: &[i32]) -> Result<Value, TypeError> {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let v = constant(b, Tensor { dtype: DType::I32, dims: vec![values.len()], data })?;
        b.reshape(v, self.column_dims(c, values.len().into()))
    }
}

/// True if a parameter of these dims varies along one axis of a tensor at most.
fn by_column(dims: &[Dim], rank: usize, axis: usize) -> bool {
    let skip = rank - dims.len();
    dims.iter().enumerate().all(|(i, d)| i + skip == axis || d.is(1))
}

impl Weight {
    fn new(b: &Builder<'_>, q: &Quantised, axis: usize) -> Option<Self> {
        let Op::Constant(id) = &b.func.def_node(q.codes)?.op else { return None };
        let mut codes = Tensor::from_const(b.consts.get(id.id)?);
        let n = codes.dims[axis];
        let given = match q.zero {
            None => vec![0],
            Some(z) => {
                let t = known(b, z)?;
                (0..t.count()).map(|i| t.get_i64(i) as i32).collect()
            }
        };
        let stride: usize = codes.dims[axis + 1..].iter().product();
        let mut zeros: Vec<i32> = given.iter().copied().cycle().take(n).collect();
        let column = |i: usize| i / stride % n;
        let value = |byte: u8| if codes.dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) };
        // Where all differences fit, the zero points vanish; else unsigned codes become signed with a shifted zero point.
        let fits = codes.data.iter().enumerate().all(|(i, c)| i8::try_from(value(*c) - zeros[column(i)]).is_ok());
        let shift = if fits { None } else { Some(if codes.dtype == DType::U8 { 128 } else { 0 }) };
        let mut sums = vec![0i32; n];
        let signed: Vec<u8> = codes
            .data
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let v = value(*c) - shift.unwrap_or(zeros[column(i)]);
                sums[column(i)] = sums[column(i)].wrapping_add(v);
                (v as i8) as u8
            })
            .collect();
        match shift {
            None => zeros.clear(),
            Some(s) => zeros.iter_mut().for_each(|z| *z -= s),
        }
        codes = Tensor { dtype: DType::I8, data: signed, ..codes };
        Some(Self { codes, sums, zeros })
    }
}

/// Signed codes as unsigned ones with the zero point 128 higher.
fn shifted() -> Body {
    let mut f = Body::builder(1);
    let wide = f.cast(DType::I32, Ref::Arg(0));
    let offset = f.push(Inst::Const(Literal::from_i64(DType::I32, 128)));
    let sum = f.bin(BinOp::Add, wide, offset);
    let y = f.cast(DType::U8, sum);
    f.finish(y)
}

fn constant(b: &mut Builder<'_>, t: Tensor) -> Result<Value, TypeError> {
    let name = b.loc.path().to_string();
    let ty = TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>());
    let data = transc_ir::tensor::ConstData::new(ty, t.data);
    let data = data.ok_or_else(|| TypeError::dims("constant", "a length that does not fit its dims"))?;
    b.constant(&name, data)
}
