//! Targets: what the generated code may use.

use std::str::FromStr;

use crate::CodegenError;

/// A processor level with the features beyond it that the code may use, or a kind of device.
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

    /// CUDA devices of compute capability 8.0 and later.
    pub const CUDA_SM_80: Target = Target { name: "cuda:sm_80", lanes: 1, extra: Vec::new() };
    /// CUDA devices of compute capability 9.0.
    pub const CUDA_SM_90A: Target = Target { name: "cuda:sm_90a", lanes: 1, extra: Vec::new() };

    /// The target for a CUDA device; `None` if the device is too old.
    pub fn cuda((major, minor): (i32, i32)) -> Option<Target> {
        match (major, minor) {
            (9, 0) => Some(Target::CUDA_SM_90A),
            (8.., _) => Some(Target::CUDA_SM_80),
            _ => None,
        }
    }

    /// The best target that this machine can run.
    pub fn host() -> Target {
        if !V4.iter().all(|f| detected(f)) {
            return Target::X86_64_V3;
        }
        Target { extra: EXTRA.iter().copied().filter(|f| detected(f)).collect(), ..Target::X86_64_V4 }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The processor as LLVM knows it.
    pub fn processor(&self) -> &'static str {
        self.name.strip_prefix("cuda:").unwrap_or(self.name)
    }

    /// True for devices that run grids of thread blocks.
    pub fn is_device(&self) -> bool {
        self.name.starts_with("cuda:")
    }

    /// Floats per vector.
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// All features of the host that the code may use.
    pub fn features(&self) -> Vec<&'static str> {
        if self.is_device() {
            return Vec::new();
        }
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
            "cuda:sm_80" => Ok(Target::CUDA_SM_80),
            "cuda:sm_90a" => Ok(Target::CUDA_SM_90A),
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
