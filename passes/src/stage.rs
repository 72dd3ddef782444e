//! The stages of a module between passes.

use transc_ir::Module;
use transc_ir::op::Op;
use transc_ir::verify::{self, StageSpec};

use crate::error::PassError;
use crate::exact::fuse::check_region;

/// What a module consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Any op but `fused`.
    Tensor,
    /// The entry function holds `fused` regions only; see the docs of pass `fuse`.
    Fused,
}

static TENSOR: StageSpec =
    StageSpec { name: "tensor", admits: |op| !matches!(op, Op::Fused(_)), region: |_| Ok(()), stored_results: false };

static FUSED: StageSpec =
    StageSpec { name: "fused", admits: |op| matches!(op, Op::Fused(_)), region: check_region, stored_results: true };

impl Stage {
    fn spec(self) -> &'static StageSpec {
        match self {
            Stage::Tensor => &TENSOR,
            Stage::Fused => &FUSED,
        }
    }

    /// The name in listings.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// The stage that a module is at, from its ops.
    pub(crate) fn of(module: &Module) -> Stage {
        if module.main.nodes().any(|(_, n)| matches!(n.op, Op::Fused(_))) { Stage::Fused } else { Stage::Tensor }
    }

    /// Checks a module of this stage; `when` says at which point, for the error.
    pub(crate) fn verify(self, module: &Module, when: &str) -> Result<(), PassError> {
        verify::verify(module, self.spec()).map_err(|problems| PassError::Verify { when: when.into(), problems })
    }
}
