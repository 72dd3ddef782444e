//! Running launches: threads, and the workspace that they run in.

mod place;
mod pool;
mod workspace;

pub(crate) use workspace::Workspace;
