//! Estimated time of an op as a kernel of its own, in nanoseconds: what extraction compares.

use transc_ir::TensorType;
use transc_ir::op::Op;
use transc_ir::types::{DType, Dim, Ranges};

use super::cost;

/// Share of zeros from which a weight may get a sparse kernel.
pub const MANY_ZEROS: f64 = 0.5;

/// What the target does in a nanosecond. Only ratios matter to decisions; the default is one core with 512-bit vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct CostTable {
    /// Multiply-adds of `f32` in a dense kernel.
    pub macs: f64,
    /// Elements of one vector instruction.
    pub elements: f64,
    /// Bytes read from or written to memory.
    pub bytes: f64,
    /// Nanoseconds of a kernel that does nothing.
    pub launch: f64,
    /// Nanoseconds of a node: of two forms of equal time the one with fewer nodes is better.
    pub node: f64,
}

impl Default for CostTable {
    fn default() -> Self {
        Self { macs: 50.0, elements: 16.0, bytes: 16.0, launch: 1000.0, node: 1.0 }
    }
}

impl CostTable {
    /// Time of an op. `constant`: it is computed when the model is compiled.
    pub fn nanoseconds(&self, op: &Op, operands: &[&TensorType], results: &[TensorType], constant: bool, ranges: &Ranges) -> f64 {
        if constant {
            return self.node;
        }
        let count = |t: &TensorType| cost::nominal(&t.count(), ranges);
        let bytes = |t: &TensorType| count(t) * t.dtype.size_bytes() as f64;
        let out: f64 = results.iter().map(count).sum();
        let traffic = (operands.iter().map(|t| bytes(t)).sum::<f64>() + results.iter().map(bytes).sum::<f64>()) / self.bytes;
        let per_element = |instructions: f64| instructions * out / self.elements;
        let dtypes: Vec<DType> = operands.iter().map(|t| t.dtype).collect();
        let kernel = |work: f64| self.node + self.launch + traffic + work;
        match op {
            Op::Constant(_) | Op::Dims(_) | Op::Iota(_) => self.node,
            // Views are free where a kernel reads through them, and most do.
            Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) => self.node + out * 0.01 / self.elements,
            // A map joins the kernel before or behind it.
            Op::Map(_) if operands.is_empty() => self.node,
            Op::Map(_) => self.node + 0.25 * traffic + per_element(cost::op(op, &dtypes)),
            Op::Contract(c) => {
                let inner = c.lhs.iter().zip(&operands[0].dims).filter(|(l, _)| !c.out.contains(l));
                let k = cost::nominal(&inner.map(|(_, d)| d).product::<Dim>(), ranges);
                kernel(out * k / self.macs)
            }
            Op::Conv(_) => {
                let k = operands[1].dims[1..].iter().product::<Dim>();
                kernel(out * cost::nominal(&k, ranges) / self.macs)
            }
            Op::Attention(_) | Op::IntAttention(_) => {
                let (q, k, v) = (operands[0], operands[1], operands[2]);
                let logits = cost::nominal(&(&(&(&q.dims[0] * &q.dims[1]) * &q.dims[2]) * &k.dims[2]), ranges);
                let width = cost::nominal(&(&q.dims[3] + &v.dims[3]), ranges);
                kernel(logits * width / self.macs + logits * 12.0 / self.elements)
            }
            Op::Softmax(_) => kernel(per_element(25.0)),
            Op::LayerNorm(_) | Op::RmsNorm(_) => kernel(per_element(6.0)),
            Op::Reduce(_) | Op::ArgReduce(_) | Op::Scan(_) => {
                kernel(operands.iter().map(|t| count(t)).sum::<f64>() * 2.0 / self.elements)
            }
            _ => kernel(per_element(cost::op(op, &dtypes).max(2.0))),
        }
    }
}
