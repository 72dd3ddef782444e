//! Layers through codes.

use transc_ir::Value;
use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Dequantize, Gather, Map, Quantize, Reduce, ReduceKind, TypeError};
use transc_ir::scalar::{BinOp, Body, Literal, Ref, UnOp};
use transc_ir::tensor::Builder;
use transc_ir::types::{DType, Dim};

use super::spec::MAX_BYTE;
use super::{Codes, Facts, Matrix, Range, Site, constant, relative_error};

/// The largest signed code; -128 is not used, so that codes are symmetric.
const MAX_CODE: f32 = 127.0;
/// The largest code of 4 bits.
const MAX_NIBBLE: f32 = 15.0;

/// A layer on the way to codes.
pub(super) struct Layer<'a> {
    pub(super) contract: &'a Contract,
    pub(super) site: &'a Site,
    pub(super) name: &'a str,
    pub(super) dims: &'a [usize],
    pub(super) matrix: Matrix,
}

/// What a layer became: the codec and its parameters.
pub(super) type Coded = (Value, &'static str, String);

impl Layer<'_> {
    /// The product of an activation and a weight.
    pub(super) fn product(&self, b: &mut Builder<'_>, x: Value, w: Value) -> Result<Value, TypeError> {
        b.add(self.contract.clone(), &if self.site.weight == 0 { [w, x] } else { [x, w] })
    }

    /// The layer through codes.
    pub(super) fn coded(
        &self,
        b: &mut Builder<'_>,
        x: Value,
        values: &[f32],
        codes: Codes,
        facts: Option<&Facts>,
    ) -> Result<Coded, TypeError> {
        let none = Facts::default();
        let facts = facts.unwrap_or(&none);
        let (codec, how, decoded) = match codes {
            Codes::Weights4(group) => {
                ("w4", format!("per output and {group} inputs"), through_nibbles(values, self.matrix, group))
            }
            Codes::Weights8 => ("w8", "per output".to_string(), decode(&signed(values, self.matrix), self.matrix)),
            Codes::Dynamic | Codes::Static { .. } | Codes::Outliers(_) | Codes::Factored(_) => {
                return self.integers(b, x, values, codes, facts);
            }
        };
        let error = relative_error(values, &decoded);
        let w = constant(b, self.name, Tensor::from_f32(self.dims, &decoded))?;
        Ok((self.product(b, x, w)?, codec, format!("{how}, weight error {error:.2e}")))
    }

    /// Weight and activation through 8-bit codes; columns that were outliers beside them in `f32`. Which these are is fixed, so that no row
    /// depends on its neighbours.
    fn integers(&self, b: &mut Builder<'_>, x: Value, values: &[f32], codes: Codes, facts: &Facts) -> Result<Coded, TypeError> {
        let (codec, mut how) = match codes {
            Codes::Static { .. } => ("int8", format!("static, activation {}", facts.range)),
            Codes::Outliers(_) => ("llm-int8", "dynamic per row".to_string()),
            _ => ("int8", "dynamic per row".to_string()),
        };
        let mut coded = values.to_vec();
        let mut rest = x;
        if !facts.smooth.is_empty() {
            coded.iter_mut().enumerate().for_each(|(i, v)| *v *= facts.smooth[self.matrix.input(i)]);
            let inverse: Vec<f32> = facts.smooth.iter().map(|s| s.recip()).collect();
            let by = self.by_column(b, &inverse)?;
            rest = b.bin(BinOp::Mul, rest, by)?;
            how.push_str(", smoothed");
        }
        if let Some(t) = codes.threshold() {
            how.push_str(&format!(", {} of {} inputs reach {t} and stay f32", facts.outliers.len(), self.matrix.inputs));
        }
        if !facts.outliers.is_empty() {
            let keep: Vec<f32> = (0..self.matrix.inputs).map(|k| f32::from(!facts.outliers.contains(&k))).collect();
            coded.iter_mut().enumerate().for_each(|(i, v)| *v *= keep[self.matrix.input(i)]);
            let keep = self.by_column(b, &keep)?;
            let mut f = Body::builder(2);
            let zero = f.num(DType::F32, 0.0);
            let on = f.bin(BinOp::Gt, Ref::Arg(1), zero);
            let v = f.select(on, Ref::Arg(0), zero);
            rest = b.add(Map { body: f.finish(v) }, &[rest, keep])?;
        }
        let (w, error) = self.weight(b, &coded)?;
        let rest = if let Codes::Static { .. } = codes { fixed(b, rest, facts)? } else { self.dynamic(b, rest)? };
        let mut y = self.product(b, rest, w)?;
        if !facts.outliers.is_empty() {
            let large = self.outliers(b, x, values, &facts.outliers)?;
            y = b.bin(BinOp::Add, y, large)?;
        }
        Ok((y, codec, format!("{how}, weight error {error:.2e}")))
    }

    /// The product of a few columns of the activation by their rows of the weight.
    fn outliers(&self, b: &mut Builder<'_>, x: Value, values: &[f32], columns: &[usize]) -> Result<Value, TypeError> {
        let index = columns.iter().flat_map(|k| (*k as i64).to_le_bytes()).collect();
        let index = constant(b, self.name, Tensor { dtype: DType::I64, dims: vec![columns.len()], data: index })?;
        let few = b.add(Gather { axis: self.site.input }, &[x, index])?;
        let m = Matrix { inputs: columns.len(), ..self.matrix };
        let rows = (0..m.inputs * m.outputs).map(|i| values[self.matrix.at(columns[m.input(i)], m.output(i))]);
        let mut dims = self.dims.to_vec();
        dims[1 - self.site.column] = m.inputs;
        let w = constant(b, self.name, Tensor::from_f32(&dims, &rows.collect::<Vec<_>>()))?;
        self.product(b, few, w)
    }

    /// The weight through signed codes, and its error.
    fn weight(&self, b: &mut Builder<'_>, values: &[f32]) -> Result<(Value, f64), TypeError> {
        let coded = signed(values, self.matrix);
        let error = relative_error(values, &decode(&coded, self.matrix));
        let (codes, scales) = coded;
        let w = Tensor { dtype: DType::I8, dims: self.dims.to_vec(), data: codes.iter().map(|q| *q as u8).collect() };
        let w = constant(b, self.name, w)?;
        let mut shape = vec![1; 2];
        shape[self.site.column] = self.matrix.outputs;
        let scale = constant(b, self.name, Tensor::from_f32(&shape, &scales))?;
        Ok((b.add(Dequantize {}, &[w, scale])?, error))
    }

    /// A constant of one number per column of the activation, shaped to broadcast to it.
    fn by_column(&self, b: &mut Builder<'_>, values: &[f32]) -> Result<Value, TypeError> {
        let v = constant(b, self.name, Tensor::from_f32(&[values.len()], values))?;
        let labels = if self.site.weight == 0 { &self.contract.rhs } else { &self.contract.lhs };
        let behind = labels.len() - 1 - self.site.input;
        let dims: Vec<Dim> = std::iter::once(Dim::from(values.len())).chain((0..behind).map(|_| Dim::from(1))).collect();
        b.reshape(v, dims)
    }

    /// The activation through signed codes whose scale follows each row's largest magnitude.
    fn dynamic(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, TypeError> {
        let magnitude = b.un(UnOp::Abs, x)?;
        let axes = vec![self.site.input];
        let largest = b.add(Reduce { kind: ReduceKind::Max, axes, keep: true }, &[magnitude])?;
        let mut f = Body::builder(1);
        let (steps, zero, one) = (f.num(DType::F32, MAX_CODE.into()), f.num(DType::F32, 0.0), f.num(DType::F32, 1.0));
        let s = f.bin(BinOp::Div, Ref::Arg(0), steps);
        // A row of zeros: any scale will do.
        let empty = f.bin(BinOp::Eq, s, zero);
        let s = f.select(empty, one, s);
        let scale = b.add(Map { body: f.finish(s) }, &[largest])?;
        let q = b.add(Quantize { to: DType::I8 }, &[x, scale])?;
        b.add(Dequantize {}, &[q, scale])
    }
}

/// The activation through unsigned codes in the observed range.
fn fixed(b: &mut Builder<'_>, x: Value, facts: &Facts) -> Result<Value, TypeError> {
    let (codes, [scale, zero]) = unsigned(b, x, facts.range)?;
    b.add(Dequantize {}, &[codes, scale, zero])
}

/// Unsigned codes in a range, with their scale and zero point.
pub(in crate::lossy) fn unsigned(b: &mut Builder<'_>, x: Value, range: Range) -> Result<(Value, [Value; 2]), TypeError> {
    let (scale, zero) = range.code(MAX_BYTE);
    let s = b.scalar(Literal::from_f64(DType::F32, scale.into()))?;
    let z = b.scalar(Literal::from_i64(DType::U8, zero as i64))?;
    Ok((b.add(Quantize { to: DType::U8 }, &[x, s, z])?, [s, z]))
}

/// Symmetric codes with a scale per output.
fn signed(w: &[f32], m: Matrix) -> (Vec<i8>, Vec<f32>) {
    let mut scales = vec![0.0f32; m.outputs];
    for (i, v) in w.iter().enumerate() {
        let s = &mut scales[m.output(i)];
        *s = s.max(v.abs() / MAX_CODE);
    }
    scales.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = 1.0);
    let code = |(i, v): (usize, &f32)| (v / scales[m.output(i)]).round_ties_even().clamp(-MAX_CODE, MAX_CODE) as i8;
    (w.iter().enumerate().map(code).collect(), scales)
}

fn decode((codes, scales): &(Vec<i8>, Vec<f32>), m: Matrix) -> Vec<f32> {
    codes.iter().enumerate().map(|(i, q)| f32::from(*q) * scales[m.output(i)]).collect()
}

/// Codes of 4 bits in the range of each output's `group` inputs, decoded. The last group may be shorter.
fn through_nibbles(w: &[f32], m: Matrix, group: usize) -> Vec<f32> {
    let mut out = vec![0.0; w.len()];
    for output in 0..m.outputs {
        for start in (0..m.inputs).step_by(group) {
            let members = || (start..m.inputs.min(start + group)).map(|k| m.at(k, output));
            let (lo, hi) = members().fold((0.0f32, 0.0f32), |(lo, hi), i| (lo.min(w[i]), hi.max(w[i])));
            let decoded = Range { lo, hi }.decoded(MAX_NIBBLE);
            members().for_each(|i| out[i] = decoded(w[i]));
        }
    }
    out
}
