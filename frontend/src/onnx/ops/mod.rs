//! The operator table: one row per operator and range of versions, in files by topic.
//!
//! A row's builder gives the results of a node; it may give more results than the node uses. Operators that are not in the table are
//! reported as unsupported.

mod activation;
mod attention;
mod contrib;
mod control;
mod conv;
mod creation;
mod einsum;
mod elementwise;
mod grid;
mod grouped;
mod indexing;
mod linalg;
mod loss;
mod moe;
mod nbits;
mod norm;
mod pool;
mod qlinear;
mod quant;
mod recurrent;
mod reduce;
mod resize;
mod rnn;
mod sequence;
mod shape;
mod signal;
mod spatial;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use transc_ir::Value;

use super::MAX_OPSET as LAST;
use super::cx::OpCx;
use super::error::Result;

/// Builds the IR of one node.
pub(super) type Build = fn(&mut OpCx<'_, '_>) -> Result<Vec<Value>>;

/// How one operator is imported.
pub(super) struct OpRow {
    domain: &'static str,
    name: &'static str,
    /// The versions of the operator set in which the builder is right.
    pub(super) since: RangeInclusive<i64>,
    pub(super) build: Build,
    /// Operands and results may be sequences of tensors.
    pub(super) sequences: bool,
}

/// A row of the default domain.
const fn row(name: &'static str, since: RangeInclusive<i64>, build: Build) -> OpRow {
    OpRow { domain: "", name, since, build, sequences: false }
}

/// A row of the default domain that takes sequences as well as tensors.
const fn sequences(name: &'static str, since: RangeInclusive<i64>, build: Build) -> OpRow {
    OpRow { domain: "", name, since, build, sequences: true }
}

/// A row of the domain of ONNX Runtime's own operators, which has one version.
const fn contrib(name: &'static str, build: Build) -> OpRow {
    OpRow { domain: "com.microsoft", name, since: 1..=1, build, sequences: false }
}

static TABLE: LazyLock<BTreeMap<(&str, &str), Vec<&OpRow>>> = LazyLock::new(|| {
    let files = [
        activation::ROWS,
        attention::ROWS,
        control::ROWS,
        conv::ROWS,
        contrib::ROWS,
        creation::ROWS,
        einsum::ROWS,
        elementwise::ROWS,
        grid::ROWS,
        grouped::ROWS,
        indexing::ROWS,
        linalg::ROWS,
        loss::ROWS,
        moe::ROWS,
        nbits::ROWS,
        norm::ROWS,
        pool::ROWS,
        qlinear::ROWS,
        quant::ROWS,
        recurrent::ROWS,
        reduce::ROWS,
        resize::ROWS,
        rnn::ROWS,
        sequence::ROWS,
        shape::ROWS,
        signal::ROWS,
    ];
    let mut table: BTreeMap<_, Vec<&OpRow>> = BTreeMap::new();
    for r in files.into_iter().flatten() {
        table.entry((r.domain, r.name)).or_default().push(r);
    }
    table
});

/// The rows of an operator.
pub(super) fn rows<'a>(domain: &'a str, name: &'a str) -> impl Iterator<Item = &'static OpRow> + use<'a> {
    TABLE.get(&(domain, name)).into_iter().flatten().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_an_operator_do_not_overlap() {
        for ((domain, name), rows) in TABLE.iter() {
            for (i, a) in rows.iter().enumerate() {
                assert!(!a.since.is_empty(), "{domain}.{name}");
                for b in &rows[..i] {
                    assert!(a.since.end() < b.since.start() || b.since.end() < a.since.start(), "{domain}.{name}");
                }
            }
        }
    }
}
