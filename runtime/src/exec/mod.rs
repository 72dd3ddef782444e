//! Running launches on threads.

mod pool;

pub(crate) use pool::{Job, Pool};
