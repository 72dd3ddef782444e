//! What this processor can do.

use crate::Error;

macro_rules! table {
    ($name:ident: $($f:tt)*) => { match $name { $($f => std::arch::is_x86_feature_detected!($f),)* _ => false } };
}

/// Names of features, separated by commas, that are not used although they are there: to try what another machine would run.
const WITHOUT: &str = "TRANSC_WITHOUT";

/// Whether this processor and system have a feature, by Rust's name for it. Unknown names are answered with no, and so are those in the
/// environment variable `TRANSC_WITHOUT`.
pub fn has_feature(name: &str) -> bool {
    let without = std::env::var(WITHOUT).is_ok_and(|list| list.split(',').any(|f| f.trim() == name));
    !without && detected(name)
}

fn detected(name: &str) -> bool {
    table!(name:
        "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "aes" "pclmulqdq" "avx" "avx2" "fma" "bmi1" "bmi2" "lzcnt" "movbe" "adx" "f16c"
        "gfni" "vaes" "vpclmulqdq" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
        "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16" "avxvnni" "avxvnniint8" "avxifma" "avxneconvert"
    )
}

/// # Errors
/// [`Error::MissingFeature`] naming all features that this processor lacks.
pub(super) fn require(features: &[String]) -> Result<(), Error> {
    let missing: Vec<&str> = features.iter().map(String::as_str).filter(|f| !has_feature(f)).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::MissingFeature(missing.join(", "))) }
}
