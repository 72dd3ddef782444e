//! Layers through codes.

use transc_ir::Value;
use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, Dequantize, Gather, Map, Quantize, Reduce, ReduceKind, TypeError};
use transc_ir::scalar::{BinOp, Body, Literal, Ref, UnOp};
use transc_ir::tensor::Builder;
use transc_ir::types::{DType, Dim};

use super::{Codes, Facts, Matrix, Site, constant, relative_error};

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
type Coded = (Value, &'static str, String);

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
        match codes {
            Codes::Weights8 | Codes::Weights4(_) => {
                let decoded = match codes {
                    Codes::Weights4(group) => through_nibbles(values, self.matrix, group),
                    _ => decode(&signed(values, self.matrix), self.matrix),
                };
                let error = relative_error(values, &decoded);
                let w = constant(b, self.name, Tensor::from_f32(self.dims, &decoded))?;
                let (codec, how) = match codes {
                    Codes::Weights4(group) => ("w4", format!("per output and {group} inputs")),
                    _ => ("w8", "per output".to_string()),
                };
                Ok((self.product(b, x, w)?, codec, format!("{how}, weight error {error:.2e}")))
            }
            Codes::Dynamic => {
                let (w, error) = self.weight(b, values)?;
                let x = self.dynamic(b, x)?;
                Ok((self.product(b, x, w)?, "int8", format!("dynamic per row, weight error {error:.2e}")))
            }
            Codes::Static { .. } => self.fixed(b, x, values, facts),
            Codes::Outliers(threshold) => self.outliers(b, x, values, facts, threshold),
        }
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

    /// The activation through unsigned codes in the observed range, its columns smoothed first.
    fn fixed(&self, b: &mut Builder<'_>, mut x: Value, values: &[f32], facts: &Facts) -> Result<Coded, TypeError> {
        let mut values = values.to_vec();
        let mut how = "static".to_string();
        if !facts.smooth.is_empty() {
            for (i, v) in values.iter_mut().enumerate() {
                *v *= facts.smooth[self.matrix.input(i)];
            }
            let inverse: Vec<f32> = facts.smooth.iter().map(|s| s.recip()).collect();
            let by = self.by_column(b, &inverse)?;
            x = b.bin(BinOp::Mul, x, by)?;
            how.push_str(" smoothed");
        }
        let (w, error) = self.weight(b, &values)?;
        let (scale, zero) = facts.range.code();
        let s = b.scalar(Literal::from_f64(DType::F32, scale.into()))?;
        let z = b.scalar(Literal::from_i64(DType::U8, zero.into()))?;
        let q = b.add(Quantize { to: DType::U8 }, &[x, s, z])?;
        let x = b.add(Dequantize {}, &[q, s, z])?;
        let range = facts.range;
        let how = format!("{how}, activation {:.4}..{:.4}, weight error {error:.2e}", range.lo, range.hi);
        Ok((self.product(b, x, w)?, "int8", how))
    }

    /// The columns that were outliers in `f32`, the others through codes. No row depends on its neighbours: which columns these are is fixed.
    fn outliers(&self, b: &mut Builder<'_>, x: Value, values: &[f32], facts: &Facts, threshold: f32) -> Result<Coded, TypeError> {
        let (w, error) = self.weight(b, values)?;
        let how = format!(
            "{} of {} inputs reach {threshold} and stay f32, weight error {error:.2e}",
            facts.outliers.len(),
            self.matrix.inputs
        );
        if facts.outliers.is_empty() {
            let x = self.dynamic(b, x)?;
            return Ok((self.product(b, x, w)?, "llm-int8", how));
        }
        let keep: Vec<f32> = (0..self.matrix.inputs).map(|k| f32::from(!facts.outliers.contains(&k))).collect();
        let keep = self.by_column(b, &keep)?;
        let mut f = Body::builder(2);
        let zero = f.num(DType::F32, 0.0);
        let on = f.bin(BinOp::Gt, Ref::Arg(1), zero);
        let v = f.select(on, Ref::Arg(0), zero);
        let rest = b.add(Map { body: f.finish(v) }, &[x, keep])?;
        let rest = self.dynamic(b, rest)?;
        let regular = self.product(b, rest, w)?;

        let index = facts.outliers.iter().flat_map(|k| (*k as i64).to_le_bytes()).collect();
        let index = constant(b, self.name, Tensor { dtype: DType::I64, dims: vec![facts.outliers.len()], data: index })?;
        let few = b.add(Gather { axis: self.site.input }, &[x, index])?;
        let m = Matrix { inputs: facts.outliers.len(), ..self.matrix };
        let rows = (0..m.inputs * m.outputs).map(|i| values[self.matrix.at(facts.outliers[m.input(i)], m.output(i))]);
        let mut dims = self.dims.to_vec();
        dims[1 - self.site.column] = m.inputs;
        let w = constant(b, self.name, Tensor::from_f32(&dims, &rows.collect::<Vec<_>>()))?;
        let large = self.product(b, few, w)?;
        Ok((b.bin(BinOp::Add, regular, large)?, "llm-int8", how))
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
            let scale = (hi - lo) / MAX_NIBBLE;
            let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };
            let zero = (-lo / scale).round_ties_even();
            for i in members() {
                out[i] = (((w[i] / scale).round_ties_even() + zero).clamp(0.0, MAX_NIBBLE) - zero) * scale;
            }
        }
    }
    out
}
