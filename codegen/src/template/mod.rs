//! Kernel templates: one file each, with its contract, its schedule and the code that builds it.

pub mod ahead;
pub mod amx;
pub mod attention;
pub mod bytes;
mod coded_product;
pub mod depthwise;
pub mod device;
pub mod groups;
pub mod lies;
pub mod matmul;
pub mod matmul_amx;
pub mod matmul_bf16;
pub mod matmul_codes;
pub mod matmul_int8;
pub mod spmm;
mod spmm_turn;
pub mod sums;
pub mod tile;
pub mod token_plan;
pub(crate) mod transpose;
