//! A weight as a product of two: `W ~ D S` with few columns of `D`, and few numbers in each column of `S` (Chand et al. 2023, "DSFormer"), or of low rank.
//!
//! `D` and `S` are fitted in turns, by orthogonal matching pursuit (Pati et al. 1993) and by least squares. Inputs weigh as much as their mean square on
//! observed inputs. A low rank with as many multiply-adds is fitted too, and taken where it is nearer.

mod fit;

use std::str::FromStr;

use transc_ir::Value;
use transc_ir::interp::Tensor;
use transc_ir::op::{Contract, TypeError};
use transc_ir::tensor::Builder;
use transc_ir::types::DType;

use super::codes::{Coded, Layer};
use super::{Facts, WeightError, constant, relative_error};
use fit::{Dense, dense_sparse, low_rank};

/// What a multiply-add of a sparse product takes, in those of a dense one.
const SPARSE: f64 = 1.7;
/// What a result of a sparse product takes besides.
const TURNED: f64 = 10.0;
/// A factorised layer must take less than this share of the dense one's time.
const WORTH: f64 = 0.9;

/// How weights are factorised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// Columns of the first factor.
    pub rank: Rank,
    /// Numbers in each column of the second one; `None` for all.
    pub kept: Option<usize>,
    /// Rows of the second one of which each column has as many numbers as of all others; `None` for all in one.
    pub block: Option<usize>,
}

/// A number, or a share of the inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// A number.
    Number(usize),
    /// A share.
    Share(usize, usize),
}

impl FromStr for Factor {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let wrong = |why: &str| WeightError::Spec { option: "--factorize", text: text.into(), why: why.into() };
        let number = |s: &str| s.parse::<usize>().ok().filter(|n| *n > 0);
        let (codec, parameters) = text.split_once(':').unwrap_or((text, ""));
        let (mut rank, mut kept, mut block) = (None, None, None);
        for p in parameters.split(',').filter(|p| !p.is_empty()) {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            match name {
                "r" => {
                    let share = value.split_once('/').and_then(|(p, q)| number(p).zip(number(q)));
                    let share = share.filter(|(p, q)| p < q).map(|(p, q)| Rank::Share(p, q));
                    rank = Some(share.or(number(value).map(Rank::Number)).ok_or_else(|| wrong("`r` is a number or a share"))?);
                }
                "k" => kept = Some(number(value).ok_or_else(|| wrong("`k` is a number"))?),
                "b" => block = Some(number(value).ok_or_else(|| wrong("`b` is a number"))?),
                _ => return Err(wrong(&format!("`{p}` is no parameter of it"))),
            }
        }
        let rank = rank.ok_or_else(|| wrong("it has no `r`"))?;
        match (codec, kept, block) {
            ("low-rank", None, None) | ("dsformer", Some(_), _) => Ok(Self { rank, kept, block }),
            ("low-rank", ..) => Err(wrong("a low rank has `r` alone")),
            ("dsformer", ..) => Err(wrong("it has no `k`")),
            _ => Err(wrong("there is no such factorisation")),
        }
    }
}

impl Layer<'_> {
    /// The layer as two products, or why that does not pay.
    pub(super) fn factored(
        &self,
        b: &mut Builder<'_>,
        x: Value,
        values: &[f32],
        how: Factor,
        facts: Option<&Facts>,
    ) -> Result<Result<Coded, String>, TypeError> {
        let m = self.matrix;
        let (n, outputs) = (m.inputs, m.outputs);
        let r = match how.rank {
            Rank::Number(r) => r,
            Rank::Share(p, q) => (n * p / q).max(1),
        };
        let kept = how.kept.unwrap_or(r);
        let block = how.block.unwrap_or(r);
        if r >= n || kept > r {
            return Ok(Err(format!("{r} columns of which {kept} count are no factors of {n} inputs")));
        }
        if !r.is_multiple_of(block) || !(kept * block).is_multiple_of(r) {
            return Ok(Err(format!("{kept} of {r} cannot be spread evenly over blocks of {block}")));
        }
        let dense = (n * outputs) as f64;
        let second = ((kept * outputs) as f64 * SPARSE + TURNED * outputs as f64).min((r * outputs) as f64);
        let cost = ((n * r) as f64 + second) / dense;
        if cost >= WORTH {
            return Ok(Err(format!("{r} columns of which {kept} count would take {cost:.2} times as long as the weight itself")));
        }
        // Rows weigh as much as their input.
        let none = Vec::new();
        let spread = facts.map_or(&none, |f| &f.spread);
        let weigh = |k: usize| spread.get(k).map_or(1.0, |s| f64::from(*s)).max(1e-6);
        let w = Dense::from_fn(n, outputs, |k, o| f64::from(values[m.at(k, o)]) * weigh(k));
        let equal = ((n * r + kept * outputs) / (n + outputs)).clamp(1, n.min(outputs));
        let (mut codec, mut rank) = ("low-rank", equal);
        let mut factors = low_rank(&w, if kept == r { r } else { equal });
        if kept < r {
            let sparse = dense_sparse(&w, r, kept, block);
            if sparse.error(&w) <= factors.error(&w) {
                (factors, codec, rank) = (sparse, "dsformer", r);
            }
        } else {
            rank = r;
        }
        let d = Dense::from_fn(n, rank, |k, t| factors.d.at(k, t) / weigh(k));
        let product = d.times(&factors.s);
        let decoded: Vec<f32> = (0..values.len()).map(|i| product.at(m.input(i), m.output(i)) as f32).collect();
        let error = relative_error(values, &decoded);
        let (mine, other) = if self.site.weight == 0 {
            (&self.contract.rhs, &self.contract.lhs)
        } else {
            (&self.contract.lhs, &self.contract.rhs)
        };
        let (summed, column) = (other[1 - self.site.column], other[self.site.column]);
        let new = (0..=u8::MAX).find(|l| ![mine, other, &self.contract.out].iter().any(|ls| ls.contains(l)));
        let Some(new) = new else { return Ok(Err("it has too many axes".into())) };
        let between: Vec<u8> = mine.iter().map(|l| if *l == summed { new } else { *l }).collect();
        let first = Contract { lhs: mine.clone(), rhs: vec![summed, new], out: between.clone(), out_dtype: DType::F32 };
        let d = constant(b, self.name, Tensor::from_f32(&[n, rank], &d.to_f32()))?;
        let s = constant(b, self.name, Tensor::from_f32(&[rank, outputs], &factors.s.to_f32()))?;
        let z = b.add(first, &[x, d])?;
        let second = Contract { lhs: between, rhs: vec![new, column], out: self.contract.out.clone(), out_dtype: DType::F32 };
        let y = b.add(second, &[z, s])?;
        let parts = if codec == "dsformer" { format!("r={rank} k={kept}") } else { format!("r={rank}") };
        Ok(Ok((y, codec, format!("{parts} of {n}x{outputs}, weight error {error:.2e}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorisations_that_there_are() {
        let factor = |t: &str| t.parse::<Factor>();
        let want = Factor { rank: Rank::Share(1, 4), kept: Some(8), block: Some(16) };
        assert_eq!(factor("dsformer:r=1/4,k=8,b=16"), Ok(want));
        assert_eq!(factor("low-rank:r=32"), Ok(Factor { rank: Rank::Number(32), kept: None, block: None }));
        for wrong in
            ["", "dsformer", "dsformer:r=8", "dsformer:k=8", "low-rank:r=8,k=2", "low-rank:r=0", "low-rank:r=2/1", "svd:r=2"]
        {
            assert!(factor(wrong).is_err(), "{wrong}");
        }
    }
}
