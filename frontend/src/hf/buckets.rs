//! A bias of the logits by the distance of query and key, in buckets that grow with it (Raffel et al. 2020).

use transc_ir::Value;
use transc_ir::diag::Fault;
use transc_ir::op::{Gather, Map};
use transc_ir::scalar::{BinOp, Body, Literal};
use transc_ir::tensor::ConstData;
use transc_ir::types::{DType, TensorType};

use super::layers::{Layers, typed};
use super::weights::ANY;
use super::{Result, problem};

/// Buckets of keys on each side of the query.
const BUCKETS: i64 = 16;
/// Distances from here on share a bucket.
const FAR: f32 = 128.0;

/// The bias `[H, S, S]` for sequences of up to `longest` tokens, as `ids[B, S]` are.
pub(crate) fn bias(l: &mut Layers<'_>, ids: Value, longest: usize, heads: usize) -> Result<Value> {
    let far = longest as i64 - 1;
    let bytes = (-far..=far).flat_map(|distance| bucket(distance).to_le_bytes()).collect();
    let ty = TensorType::new(DType::I64, vec![(2 * longest - 1).into()]);
    let data = ConstData::new(ty, bytes)
        .ok_or_else(|| problem("T0405", Fault::Invalid, "config.json", "has positions without buckets", ""))?;
    let buckets = l.constant("relative_attention_bias.buckets", data)?;
    let by_distance = l.embedding("relative_attention_bias.weight", [ANY, heads], buckets)?;
    let (queries, keys) = l.places(ids)?;
    let mut f = Body::builder(2);
    let (i, j, far) = (f.arg(0), f.arg(1), f.lit(Literal::i64(far)));
    let distance = f.bin(BinOp::Sub, j, i);
    let index = f.bin(BinOp::Add, distance, far);
    let index = typed(l.b.add(Map { body: f.finish(index) }, &[queries, keys]))?;
    let bias = typed(l.b.add(Gather { axis: 0 }, &[by_distance, index]))?;
    typed(l.b.transpose(bias, &[2, 0, 1]))
}

/// The bucket of a key that stands so far behind the query: half of those of a side for one distance each, the others growing.
fn bucket(distance: i64) -> i64 {
    let (side, near) = (if distance > 0 { BUCKETS } else { 0 }, BUCKETS / 2);
    let n = distance.abs();
    if n < near {
        return side + n;
    }
    let grown = (n as f32 / near as f32).ln() / (FAR / near as f32).ln() * (BUCKETS - near) as f32;
    side + (near + grown as i64).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_with_the_distance() {
        let found: Vec<i64> = [0, -1, -7, -8, -15, -16, -32, -64, -127, -128, -500].map(bucket).to_vec();
        assert_eq!(found, [0, 1, 7, 8, 9, 10, 12, 14, 15, 15, 15]);
        assert_eq!([1, 7, 64].map(bucket), [17, 23, 30]);
    }
}
