//! The collecting verifier.
