//! Analyses: facts about functions, computed on demand and never stored in nodes.

pub mod cost;
pub mod coverage;
pub mod estimate;
pub mod uses;
pub mod views;
