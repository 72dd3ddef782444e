//! Targets: what the generated code may use.

use std::str::FromStr;

use crate::CodegenError;

/// A processor level, with the features beyond it that the code may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    name: &'static str,
    lanes: u16,
    extra: Vec<&'static str>,
}

/// Features of x86-64-v3, as Rust names them.
const V3: &[&str] = &["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"];
/// What x86-64-v4 adds.
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
/// Extensions used where the host has them.
const EXTRA: &[&str] = &["avx512vnni", "avx512bf16"];

impl Target {
    /// AVX2 and FMA: 8 floats per vector.
    pub const X86_64_V3: Target = Target { name: "x86-64-v3", lanes: 8, extra: Vec::new() };
    /// As [`Target::X86_64_V3`] in vectors of 4 floats, for backends that have no wider ones.
    pub const X86_64_V3_128: Target = Target { name: "x86-64-v3", lanes: 4, extra: Vec::new() };
    /// AVX-512: 16 floats per vector.
    pub const X86_64_V4: Target = Target { name: "x86-64-v4", lanes: 16, extra: Vec::new() };

    /// The best target that this machine can run.
    pub fn host() -> Target {
        if !V4.iter().all(|f| detected(f)) {
            return Target::X86_64_V3;
        }
        Target { extra: EXTRA.iter().copied().filter(|f| detected(f)).collect(), ..Target::X86_64_V4 }
    }

    /// The name: a processor that LLVM knows.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Floats per vector.
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// All features that the code may use.
    pub fn features(&self) -> Vec<&'static str> {
        let v4: &[&str] = if self.lanes == 16 { V4 } else { &[] };
        V3.iter().chain(v4).chain(&self.extra).copied().collect()
    }

    /// LLVM's feature string.
    pub fn llvm_features(&self) -> String {
        self.extra.iter().map(|f| format!("+{f}")).collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Target {
    type Err = CodegenError;

    fn from_str(s: &str) -> Result<Self, CodegenError> {
        match s {
            "host" | "cpu" => Ok(Target::host()),
            "x86-64-v3" => Ok(Target::X86_64_V3),
            "x86-64-v4" => Ok(Target::X86_64_V4),
            other => Err(CodegenError::UnknownTarget(other.into())),
        }
    }
}

fn detected(feature: &str) -> bool {
    macro_rules! table {
        ($($f:tt),*) => { match feature { $($f => std::arch::is_x86_feature_detected!($f),)* _ => false } };
    }
    table!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16")
}
