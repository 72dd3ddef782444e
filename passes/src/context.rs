//! What a pass sees besides the module, and what it reports.

use std::collections::BTreeMap;
use std::time::Duration;

use transc_ir::Loc;

use crate::analysis::coverage::Counts;
use crate::analysis::estimate::CostTable;
use crate::egraph::{ENode, Limits, Proof, Stop};
use crate::lossy::LedgerEntry;
use crate::lossy::cut::CutSpec;
use crate::lossy::merge_tokens::MergeSpec;
use crate::lossy::round_products::Precision;
use crate::lossy::weights::WeightSpec;
use crate::registry::Class;

/// Something worth telling the user: what a pass declined to do, where and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The pass.
    pub pass: &'static str,
    /// The user's node.
    pub loc: Loc,
    /// One sentence.
    pub message: String,
}

/// What one run of a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassStats {
    /// The pass.
    pub pass: &'static str,
    /// Nodes of the entry function and of its regions before the pass.
    pub nodes_before: usize,
    /// The same after it.
    pub nodes_after: usize,
    /// How often each rule fired.
    pub fired: BTreeMap<&'static str, u32>,
    /// Why equality saturation ended, where it ran.
    pub stop: Option<Stop>,
    /// How long it took; for people, never read by a pass.
    pub time: Duration,
}

/// Options of the passes, and their reports.
#[derive(Clone, Debug)]
pub struct PassCx {
    /// What the passes had to say, in order.
    pub remarks: Vec<Remark>,
    /// One entry per pass that ran, in order.
    pub stats: Vec<PassStats>,
    /// Verify after every pass instead of only where the stage changes.
    pub verify_each: bool,
    /// Mnemonics of the named ops that pass `decompose` expands: those for which the back end has no kernel of its own.
    pub decompose: Vec<&'static str>,
    /// How tokens are merged; `None` for not at all.
    pub merge: Option<MergeSpec>,
    /// What is cut from layers.
    pub cuts: CutSpec,
    /// How weights are compressed.
    pub weights: WeightSpec,
    /// The element type that products are computed in.
    pub precision: Precision,
    /// The lossy steps that were taken, in order.
    pub ledger: Vec<LedgerEntry>,
    /// What equality saturation may change: with [`Class::Exact`], no bit.
    pub numerics: Class,
    /// What bounds equality saturation.
    pub limits: Limits,
    /// How many rules equality saturation may still apply and how many other passes may still change something, in all; `None` for any
    /// number. To find what breaks something by bisection.
    pub fuel: Option<u32>,
    /// What extraction compares.
    pub costs: CostTable,
    /// Formulas that were one op each when equality saturation ended.
    pub fused: Counts,
    /// Record the chains of rules of equality saturation in `proofs`.
    pub explain: bool,
    /// Why what equality saturation gave equals what it was given, one entry for all equal pieces.
    pub proofs: Vec<Proof>,
    /// The e-graphs of the pieces when they were saturated, if that is asked for.
    pub egraph: Option<Vec<ENode>>,
    /// The last change that was made, in words.
    pub last: Option<String>,
    pub(crate) current: Current,
}

/// The pass that is running.
#[derive(Clone, Debug, Default)]
pub(crate) struct Current {
    pub(crate) pass: &'static str,
    pub(crate) fired: BTreeMap<&'static str, u32>,
    pub(crate) stop: Option<Stop>,
    pub(crate) last: Option<String>,
    pub(crate) graphs: usize,
}

impl Default for PassCx {
    /// Decomposes the named ops that are pointwise (`rope`, `quantize`, `dequantize`) and those on tokens.
    fn default() -> Self {
        Self {
            remarks: Vec::new(),
            stats: Vec::new(),
            verify_each: false,
            decompose: vec!["rope", "quantize", "dequantize", "token_size", "token_unmerge"],
            merge: None,
            cuts: CutSpec::default(),
            weights: WeightSpec::default(),
            precision: Precision::default(),
            ledger: Vec::new(),
            numerics: Class::Reassoc,
            limits: Limits::default(),
            fuel: None,
            costs: CostTable::default(),
            fused: Counts::new(),
            explain: false,
            proofs: Vec::new(),
            egraph: None,
            last: None,
            current: Current::default(),
        }
    }
}

impl PassCx {
    /// Counts one firing of a rule of the running pass.
    pub(crate) fn fired(&mut self, rule: &'static str) {
        *self.current.fired.entry(rule).or_default() += 1;
    }

    /// Adds a remark of the running pass.
    pub(crate) fn remark(&mut self, loc: &Loc, message: impl Into<String>) {
        self.remarks.push(Remark { pass: self.current.pass, loc: loc.clone(), message: message.into() });
    }
}
