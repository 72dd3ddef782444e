//! Random small typed graphs.
