//! Codecs: lossy steps, each asked for by name. A step inserts `decode(encode(x))` at a site and writes a line in the ledger; what follows is exact.

pub mod code_attention;
pub mod cut;
pub mod merge_tokens;
pub mod round_products;
pub mod weights;

/// A lossy step that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerEntry {
    /// The user's node.
    pub site: String,
    /// The codec.
    pub codec: &'static str,
    /// Its parameters at this site.
    pub parameters: String,
}
