//! Passes that keep every bit under the reference interpreter (and some that round elsewhere: the table says which).

pub mod algebra;
pub mod carry_unmerge;
pub mod cse;
pub mod dce;
pub mod decompose;
pub mod fold_constants;
pub mod fold_linear;
pub mod fuse;
pub mod int_matmul;
pub mod merge_matmuls;
pub mod move_views;
pub mod patches;
pub mod round_early;
pub mod simplify_shapes;
pub(crate) mod sweep;
pub mod widen_halves;
