//! The table of passes.

use transc_ir::Module;

use crate::context::PassCx;
use crate::egraph;
use crate::error::PassError;
use crate::exact;
use crate::lossy;
use crate::stage::Stage;

/// How far a pass may change results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Every bit stays, under the reference interpreter.
    Exact,
    /// Equal over the reals; rounding may differ.
    Reassoc,
    /// Results change; only where the user asks for it by name.
    Lossy,
}

impl Class {
    /// The name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Exact => "exact",
            Class::Reassoc => "reassoc",
            Class::Lossy => "lossy",
        }
    }
}

/// A row of the table.
pub struct PassInfo {
    /// Name.
    pub name: &'static str,
    /// The stage of the module that it takes.
    pub stage_in: Stage,
    /// The stage of the module that it gives.
    pub stage_out: Stage,
    /// How far it may change results.
    pub class: Class,
    /// One line.
    pub summary: &'static str,
    /// The pass.
    ///
    /// # Errors
    /// Only for a bug in the pass.
    pub run: fn(&mut Module, &mut PassCx) -> Result<(), PassError>,
}

const fn tensor(
    name: &'static str,
    class: Class,
    run: fn(&mut Module, &mut PassCx) -> Result<(), PassError>,
    summary: &'static str,
) -> PassInfo {
    PassInfo { name, stage_in: Stage::Tensor, stage_out: Stage::Tensor, class, summary, run }
}

/// Every pass, sorted by name.
pub const PASSES: &[PassInfo] = &[
    tensor(
        "algebra",
        Class::Exact,
        exact::algebra::run,
        "element-wise identities that keep every bit; scalar constants move into bodies",
    ),
    tensor(
        "carry-unmerge",
        Class::Reassoc,
        exact::carry_unmerge::run,
        "un-merges of tokens move behind what treats tokens alike, to where the result is read",
    ),
    tensor(
        "code-attention",
        Class::Lossy,
        lossy::code_attention::run,
        "attention multiplies 8-bit codes of queries, keys, values and weights, where asked for",
    ),
    tensor(
        "compress-weights",
        Class::Lossy,
        lossy::weights::run,
        "weights are pruned, and weights and activations become 8-bit codes, where asked for",
    ),
    tensor("cse", Class::Exact, exact::cse::run, "equal nodes become one"),
    tensor(
        "cut-layers",
        Class::Lossy,
        lossy::cut::run,
        "hidden units, heads and whole blocks go, and their rows and columns of the weights, where asked for",
    ),
    tensor("dce", Class::Exact, exact::dce::run, "nodes and constants that no output depends on vanish"),
    tensor("decompose", Class::Reassoc, exact::decompose::run, "named ops without a kernel become simpler ops"),
    tensor(
        "fold-constants",
        Class::Exact,
        exact::fold_constants::run,
        "nodes with constant operands and a small result are evaluated",
    ),
    tensor(
        "fold-linear",
        Class::Reassoc,
        exact::fold_linear::run,
        "constant factors and shifts around products fold into the weights, and so do two products in a row where one is cheaper",
    ),
    PassInfo {
        name: "fuse",
        stage_in: Stage::Tensor,
        stage_out: Stage::Fused,
        class: Class::Exact,
        summary: "nodes are grouped into regions, one per kernel",
        run: exact::fuse::run,
    },
    tensor(
        "merge-matmuls",
        Class::Exact,
        exact::merge_matmuls::run,
        "queries, keys and values of one attention come from one product",
    ),
    tensor("merge-tokens", Class::Lossy, lossy::merge_tokens::run, "tokens that resemble each other become one, where asked for"),
    tensor(
        "int-matmul",
        Class::Reassoc,
        exact::int_matmul::run,
        "products of quantised operands become integer products, scaled afterwards",
    ),
    tensor(
        "move-views",
        Class::Exact,
        exact::move_views::run,
        "transposes, reshapes and broadcasts move to where they cancel or cost nothing",
    ),
    tensor("patches", Class::Exact, exact::patches::run, "convolutions of windows side by side become products of patches"),
    tensor(
        "round-early",
        Class::Exact,
        exact::round_early::run,
        "values of which only the rounding to bf16 is read are rounded where they are made",
    ),
    tensor(
        "round-products",
        Class::Lossy,
        lossy::round_products::run,
        "products by constant weights take their operands in bf16, where asked for",
    ),
    tensor(
        "saturate",
        Class::Reassoc,
        egraph::run,
        "equality saturation: attention, norms and activations are found by meaning, rows that nobody reads vanish",
    ),
    tensor(
        "simplify-shapes",
        Class::Exact,
        exact::simplify_shapes::run,
        "views compose, trivial ones vanish, shape arithmetic becomes `dims`",
    ),
    tensor(
        "widen-halves",
        Class::Reassoc,
        exact::widen_halves::run,
        "products, convolutions and attention of 16-bit floats are computed in f32 and rounded afterwards",
    ),
];

/// The pass with a name.
pub(crate) fn find(name: &str) -> Result<&'static PassInfo, PassError> {
    PASSES.iter().find(|p| p.name == name).ok_or_else(|| PassError::Unknown(name.into()))
}
