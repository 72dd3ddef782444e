//! Passes that keep every bit under the reference interpreter (and `decompose`, which rounds elsewhere).

//Xpub mod algebra;
pub mod cse;
pub mod dce;
//Xpub mod decompose;
//Xpub mod fold_constants;
pub mod fuse;
//Xpub mod linearise_contract;
//Xpub mod move_views;
//Xpub mod simplify_shapes;
mod sweep;
