//! Symbolic values of small integer tensors: shape arithmetic as dim expressions.

use super::tensor::{broadcast_strides, flat, for_each_index, strides};
use super::wrap_index;
use crate::op::{Op, ReduceKind};
use crate::scalar::{BinOp, Body, Inst, Ref, UnOp};
use crate::tensor::ConstPool;
use crate::types::{DType, Dim, Ranges, TensorType};

/// Largest tensor that is followed, in elements.
const MAX_ELEMENTS: usize = 4096;

/// A small integer or bool tensor whose elements are dim expressions (bools: 0 or 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymTensor {
    /// Extents.
    pub dims: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<Dim>,
}

impl SymTensor {
    /// A vector.
    pub fn vector(values: Vec<Dim>) -> Self {
        Self { dims: vec![values.len()], values }
    }

    /// The elements as numbers, if all are.
    pub fn as_ints(&self) -> Option<Vec<i64>> {
        self.values.iter().map(Dim::as_const).collect()
    }

    fn pick(&self, dims: Vec<usize>, f: impl Fn(&[usize]) -> Option<usize>) -> Option<SymTensor> {
        let mut values = Vec::new();
        let mut ok = dims.iter().product::<usize>() <= MAX_ELEMENTS;
        if ok {
            for_each_index(&dims, |idx| {
                match f(idx).and_then(|i| self.values.get(i)) {
                    Some(v) => values.push(v.clone()),
                    None => ok = false,
                }
                Ok(())
            })
            .ok()?;
        }
        ok.then_some(SymTensor { dims, values })
    }
}

/// The symbolic results of an op, if its operands' are known and the op is one of shape arithmetic.
pub fn sym_eval(
    op: &Op,
    operands: &[Option<&SymTensor>],
    operand_types: &[&TensorType],
    results: &[TensorType],
    consts: &ConstPool,
    ranges: &Ranges,
) -> Option<Vec<SymTensor>> {
    let out_ty = results.first()?;
    if out_ty.dtype.is_float() && !matches!(op, Op::Map(_)) {
        return None;
    }
    let dims = || -> Option<Vec<usize>> {
        let d: Option<Vec<usize>> = out_ty.dims.iter().map(Dim::as_usize).collect();
        d.filter(|d| d.iter().try_fold(1usize, |a, b| a.checked_mul(*b)).is_some_and(|n| n <= MAX_ELEMENTS))
    };
    let x = || operands.first().copied().flatten();
    let one = match op {
        Op::Constant(c) => {
            let data = consts.get(c.id)?;
            if data.ty().dtype.is_float() || data.bytes().len() / data.ty().dtype.size_bytes() > MAX_ELEMENTS {
                return None;
            }
            let t = super::Tensor::from_const(data);
            SymTensor { values: (0..t.count()).map(|i| Dim::from(t.get_i64(i))).collect(), dims: t.dims }
        }
        Op::Dims(d) => SymTensor::vector(d.values.clone()),
        Op::Iota(i) => {
            let dims = dims()?;
            let mut values = Vec::new();
            for_each_index(&dims, |idx| {
                values.push(Dim::from(idx[i.axis]));
                Ok(())
            })
            .ok()?;
            SymTensor { dims, values }
        }
        Op::Map(m) => map(&m.body, operands, operand_types, dims()?, ranges)?,
        Op::Reshape(_) => SymTensor { dims: dims()?, values: x()?.values.clone() },
        Op::Transpose(t) => {
            let s = strides(&x()?.dims);
            x()?.pick(dims()?, |idx| Some(t.perm.iter().zip(idx).map(|(p, i)| i * s[*p]).sum()))?
        }
        Op::Broadcast(_) => {
            let dims = dims()?;
            let s = broadcast_strides(&x()?.dims, dims.len());
            x()?.pick(dims, |idx| Some(flat(idx, &s)))?
        }
        Op::Slice(sl) => {
            let starts: Vec<i64> = sl.starts.iter().map(Dim::as_const).collect::<Option<_>>()?;
            let s = strides(&x()?.dims);
            x()?.pick(dims()?, |idx| {
                let at = |a: usize| usize::try_from(starts[a] + idx[a] as i64 * sl.steps[a]).ok();
                (0..idx.len()).try_fold(0, |sum, a| Some(sum + at(a)? * s[a]))
            })?
        }
        Op::Concat(c) => {
            let parts: Vec<&SymTensor> = operands.iter().copied().collect::<Option<_>>()?;
            let dims = dims()?;
            let mut values = Vec::new();
            for_each_index(&dims, |idx| {
                let mut idx = idx.to_vec();
                for p in &parts {
                    if idx[c.axis] < p.dims[c.axis] {
                        values.push(p.values[flat(&idx, &strides(&p.dims))].clone());
                        break;
                    }
                    idx[c.axis] -= p.dims[c.axis];
                }
                Ok(())
            })
            .ok()?;
            SymTensor { dims, values }
        }
        Op::Gather(g) => {
            let (data, index) = (x()?, operands.get(1).copied().flatten()?);
            let index_values = index.as_ints()?;
            let (s, si, n) = (strides(&data.dims), strides(&index.dims), index.dims.len());
            data.pick(dims()?, |idx| {
                let i = wrap_index(index_values[flat(&idx[g.axis..g.axis + n], &si)], data.dims[g.axis]).ok()?;
                let before: usize = idx[..g.axis].iter().zip(&s).map(|(i, s)| i * s).sum();
                let after: usize = idx[g.axis + n..].iter().zip(&s[g.axis + 1..]).map(|(i, s)| i * s).sum();
                Some(before + i * s[g.axis] + after)
            })?
        }
        Op::Reduce(r) => reduce(r, x()?, dims()?, out_ty.dtype, ranges)?,
        Op::Scan(s) if s.kind == ReduceKind::Sum && x()?.dims.len() == 1 && !s.reverse => {
            let mut sum = Dim::from(0);
            let values = x()?.values.iter().map(|v| {
                let before = sum.clone();
                sum = &sum + v;
                if s.exclusive { before } else { sum.clone() }
            });
            SymTensor { dims: dims()?, values: values.collect() }
        }
        _ => return None,
    };
    Some(vec![one])
}

fn reduce(r: &crate::op::Reduce, x: &SymTensor, dims: Vec<usize>, dtype: DType, ranges: &Ranges) -> Option<SymTensor> {
    let mut out: Vec<Option<Dim>> = vec![None; dims.iter().product()];
    let kept: Vec<usize> = (0..x.dims.len()).filter(|a| !r.axes.contains(a)).collect();
    let kept_dims: Vec<usize> = kept.iter().map(|a| x.dims[*a]).collect();
    let (s, so) = (strides(&x.dims), strides(&kept_dims));
    let mut failed = false;
    for_each_index(&x.dims, |idx| {
        let to: usize = kept.iter().zip(&so).map(|(a, s)| idx[*a] * s).sum();
        let v = &x.values[flat(idx, &s)];
        out[to] = match out[to].take() {
            None => Some(v.clone()),
            Some(old) => bin(super::scalar::fold_op(r.kind), &old, v, ranges),
        };
        failed |= out[to].is_none();
        Ok(())
    })
    .ok()?;
    let empty = super::scalar::identity(r.kind, dtype).to_i64();
    (!failed).then(|| SymTensor { dims, values: out.into_iter().map(|v| v.unwrap_or_else(|| empty.into())).collect() })
}

fn map(
    body: &Body,
    operands: &[Option<&SymTensor>],
    types: &[&TensorType],
    dims: Vec<usize>,
    ranges: &Ranges,
) -> Option<SymTensor> {
    let args: Vec<&SymTensor> = operands.iter().copied().collect::<Option<_>>()?;
    let arg_types: Vec<DType> = types.iter().map(|t| t.dtype).collect();
    let inst_types = body.infer(&arg_types).ok()?;
    let st: Vec<Vec<usize>> = args.iter().map(|a| broadcast_strides(&a.dims, dims.len())).collect();
    let mut values = Vec::new();
    let mut failed = false;
    for_each_index(&dims, |idx| {
        if !failed {
            let at: Vec<&Dim> = args.iter().zip(&st).map(|(a, s)| &a.values[flat(idx, s)]).collect();
            match scalar(body, &at, &inst_types, ranges) {
                Some(v) => values.push(v),
                None => failed = true,
            }
        }
        Ok(())
    })
    .ok()?;
    (!failed).then_some(SymTensor { dims, values })
}

fn scalar(body: &Body, args: &[&Dim], types: &[DType], ranges: &Ranges) -> Option<Dim> {
    let mut slots: Vec<Dim> = Vec::new();
    for (inst, ty) in body.insts.iter().zip(types) {
        let at = |r: Ref| match r {
            Ref::Arg(i) => args[i as usize],
            Ref::Inst(i) => &slots[i as usize],
        };
        let v = match inst {
            Inst::Const(l) => {
                // Integral floats take part: exporters multiply and floor sizes in floating point.
                let v = l.to_f64();
                if v.fract() != 0.0 || v.abs() > 1e15 {
                    return None;
                }
                Dim::from(l.to_i64())
            }
            Inst::Dim(d) => d.clone(),
            Inst::Un(UnOp::Neg, a) => &Dim::from(0) - at(*a),
            Inst::Un(UnOp::Floor | UnOp::Ceil | UnOp::Round | UnOp::Trunc, a) => at(*a).clone(),
            Inst::Un(UnOp::Abs, a) if at(*a).bounds(ranges).0 >= 0 => at(*a).clone(),
            Inst::Un(UnOp::Not, a) if *ty == DType::Bool => &Dim::from(1) - at(*a),
            Inst::Un(..) => return None,
            // A float quotient is followed only where it is whole.
            Inst::Bin(BinOp::Div, a, b) if ty.is_float() => at(*a).exact_div(at(*b))?,
            Inst::Bin(op, a, b) => bin(*op, at(*a), at(*b), ranges)?,
            Inst::Select(c, a, b) => match at(*c).as_const() {
                Some(0) => at(*b).clone(),
                Some(_) => at(*a).clone(),
                None if at(*a) == at(*b) => at(*a).clone(),
                None => return None,
            },
            Inst::Cast(DType::Bool, a) => bin(BinOp::Ne, at(*a), &Dim::from(0), ranges)?,
            Inst::Cast(d, a) => {
                // Narrow types would wrap.
                let (lo, hi) = at(*a).bounds(ranges);
                let fits = match d {
                    DType::I64 | DType::F64 | DType::F32 => true,
                    d => lo >= 0 && hi < 1i64 << (d.bits() - 1).min(62),
                };
                if !fits {
                    return None;
                }
                at(*a).clone()
            }
        };
        slots.push(v);
    }
    match body.result {
        Ref::Arg(i) => args.get(i as usize).map(|d| (*d).clone()),
        Ref::Inst(i) => slots.get(i as usize).cloned(),
    }
}

fn bin(op: BinOp, a: &Dim, b: &Dim, ranges: &Ranges) -> Option<Dim> {
    let (lo, hi) = (a - b).bounds(ranges);
    // 1 if it always holds, 0 if it never does.
    let truth = |always: bool, never: bool| (always || never).then(|| Dim::from(i64::from(always)));
    let is_bool = |d: &Dim| matches!(d.bounds(ranges), (0.., ..=1));
    Some(match op {
        BinOp::Add => a + b,
        BinOp::Sub => a - b,
        BinOp::Mul => a * b,
        BinOp::Div | BinOp::Mod | BinOp::Rem => {
            // Truncation is floor division only for non-negative numbers.
            let whole = a.bounds(ranges).0 >= 0 && b.bounds(ranges).0 > 0;
            match (op, whole) {
                (BinOp::Div, true) => a.floor_div(b),
                (BinOp::Div, false) => match (a.as_const(), b.as_const()) {
                    (Some(x), Some(y)) => Dim::from(x.checked_div(y)?),
                    _ => a.exact_div(b)?,
                },
                (_, true) => a.modulo(b),
                (BinOp::Mod, false) if b.bounds(ranges).0 > 0 => a.modulo(b),
                _ => return None,
            }
        }
        BinOp::Min => a.min_within(b, ranges),
        BinOp::Max => a.max_within(b, ranges),
        BinOp::Eq => truth(lo == 0 && hi == 0, lo > 0 || hi < 0)?,
        BinOp::Ne => truth(lo > 0 || hi < 0, lo == 0 && hi == 0)?,
        BinOp::Lt => truth(hi < 0, lo >= 0)?,
        BinOp::Ge => truth(lo >= 0, hi < 0)?,
        BinOp::Gt => truth(lo > 0, hi <= 0)?,
        BinOp::Le => truth(hi <= 0, lo > 0)?,
        BinOp::And if a.is(0) || b.is(0) => Dim::from(0),
        BinOp::And if a.is(1) && is_bool(b) => b.clone(),
        BinOp::And if b.is(1) && is_bool(a) => a.clone(),
        BinOp::Or if a.is(0) => b.clone(),
        BinOp::Or if b.is(0) => a.clone(),
        BinOp::Pow => match (a.as_const(), b.as_const()) {
            (Some(x), Some(y)) => Dim::from(x.checked_pow(u32::try_from(y).ok()?)?),
            _ => return None,
        },
        _ => return None,
    })
}
