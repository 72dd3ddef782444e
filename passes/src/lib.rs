//! The passes: tensor IR to tensor IR, ending in regions of which each becomes one kernel.
//!
//! * [`PASSES`] lists every pass; the name of a pass is the name of its file, of its folder of tests, and its name on the command line.
//! * [`pipeline`] reads from top to bottom as the order in which they run.
//! * This crate sees costs and limits, never a target.
//!
//! A pass is a function from module to module that keeps the meaning of the module within its [`Class`]. It reports what it did
//! through [`PassCx`]: rules that fired, remarks about what it declined to do.
#![deny(clippy::print_stdout, reason = "stdout carries results only")]
#![forbid(unsafe_code)]

mod analysis;
mod context;
pub mod dot;
pub mod egraph;
mod error;
mod exact;
mod lossy;
mod miss;
pub mod pipeline;
mod registry;
mod stage;

pub use analysis::coverage::{Counts, Coverage, coverage, coverage_text};
pub use analysis::estimate::CostTable;
pub use context::{PassCx, PassStats, Remark};
pub use error::PassError;
pub use exact::fuse::check_region;
pub use lossy::LedgerEntry;
pub use lossy::code_attention::{attention_ranges, attentions, probe_attention};
pub use lossy::cut::{CutError, CutSpec, Kind, Layer, Masks, Nested, Shares, layers};
pub use lossy::merge_tokens::{MergeError, MergeSpec};
pub use lossy::round_products::{Precision, PrecisionError};
pub use lossy::weights::{
    Codes, Factor, Facts, Observed, Observer, Prune, Range, Rank, Site, WeightError, WeightSpec, facts, parse_budget, probe,
    relative_error_of, root_mean_squares, sites,
};
pub use pipeline::{optimise, run};
pub use registry::{Class, PASSES, PassInfo};
pub use stage::Stage;
pub use transc_ir::tensor::macs_of;
