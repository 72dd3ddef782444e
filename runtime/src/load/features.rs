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
    has_matrices(name) || vectors(name)
}

/// Matrix registers, by Rust's names for their parts. The system gives them to a process that asks; asking again costs a call and changes nothing.
fn has_matrices(name: &str) -> bool {
    /// Linux: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
    const REQUEST: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    /// The leaf of extended features and its bits in `edx`.
    const LEAF: u32 = 7;
    let bit = match name {
        "amx-bf16" => 22,
        "amx-tile" => 24,
        "amx-int8" => 25,
        _ => return false,
    };
    let known = std::arch::x86_64::__cpuid(0).eax >= LEAF && std::arch::x86_64::__cpuid_count(LEAF, 0).edx >> bit & 1 == 1;
    // SAFETY: the call takes two numbers and touches no memory of this process; a system that does not know it answers with an error.
    known && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
}

fn vectors(name: &str) -> bool {
    table!(name:
        "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "popcnt" "aes" "pclmulqdq" "avx" "avx2" "fma" "bmi1" "bmi2" "lzcnt" "movbe" "adx" "f16c"
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
