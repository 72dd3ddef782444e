//! Targets: what the generated code may use.

use std::str::FromStr;

use crate::{CodegenError, Tuning};

/// A processor level with the features beyond it that the code may use, or a kind of device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    name: &'static str,
    /// What LLVM may use without being told more.
    level: &'static str,
    /// The processor that instructions are scheduled for.
    tune: Option<&'static str>,
    lanes: u16,
    extra: Vec<&'static str>,
    tuning: Tuning,
}

/// Features of x86-64-v3, as Rust names them.
const V3: &[&str] = &["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"];
/// What x86-64-v4 adds.
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
/// Extensions to v4 that are used where the host has them: dot products of bytes, of pairs of `bf16`, look-up of bytes in registers, and matrix
/// registers.
const BEYOND_V4: &[&str] = &[VNNI, BF16, VBMI, AMX[0], AMX[1], AMX[2]];
/// The same without matrix registers.
const NO_AMX: &[&str] = &[VNNI, BF16, VBMI];
/// Those to v3.
const BEYOND_V3: &[&str] = &[AVX_VNNI];
const VNNI: &str = "avx512vnni";
const AVX_VNNI: &str = "avxvnni";
const BF16: &str = "avx512bf16";
const VBMI: &str = "avx512vbmi";
/// Matrix registers with products of bytes and of `bf16`: no processor has one without the others.
const AMX: [&str; 3] = ["amx-tile", "amx-int8", "amx-bf16"];
/// What processors of AMD have and those of Intel have not.
const AMD: &str = "sse4a";

/// Processors by name: the level, and which extensions they have beyond it. Only these features are used, so that what is checked at
/// load is all that the code may contain. Intel's vectors sum pairs of `bf16` at half the rate of two units for `f32`: without matrix registers
/// [`BF16`] is not among what is used.
const PROCESSORS: &[(&str, Target, &[&str])] = &[
    ("haswell", Target::X86_64_V3, &[]),
    ("skylake", Target::X86_64_V3, &[]),
    ("alderlake", Target::X86_64_V3, BEYOND_V3),
    ("arrowlake", Target::X86_64_V3, BEYOND_V3),
    ("sierraforest", Target::X86_64_V3, BEYOND_V3),
    ("znver2", Target::X86_64_V3, &[]),
    ("znver3", Target::X86_64_V3, &[]),
    ("skylake-avx512", Target::X86_64_V4, &[]),
    ("cascadelake", Target::X86_64_V4, &[VNNI]),
    ("cooperlake", Target::X86_64_V4, &[VNNI]),
    ("icelake-server", Target::X86_64_V4, &[VNNI, VBMI]),
    ("sapphirerapids", Target::X86_64_V4, BEYOND_V4),
    ("graniterapids", Target::X86_64_V4, BEYOND_V4),
    ("znver4", Target::X86_64_V4, NO_AMX),
    ("znver5", Target::X86_64_V4, NO_AMX),
];

impl Target {
    /// AVX2 and FMA: 8 floats per vector.
    pub const X86_64_V3: Target = Target::of("x86-64-v3", 8);
    /// As [`Target::X86_64_V3`] in vectors of 4 floats, for backends that have no wider ones.
    pub const X86_64_V3_128: Target = Target::of("x86-64-v3", 4);
    /// AVX-512: 16 floats per vector.
    pub const X86_64_V4: Target = Target::of("x86-64-v4", 16);

    /// CUDA devices of compute capability 8.0 and later.
    pub const CUDA_SM_80: Target = Target::of("cuda:sm_80", 1);
    /// CUDA devices of compute capability 9.0.
    pub const CUDA_SM_90A: Target = Target::of("cuda:sm_90a", 1);

    const fn of(name: &'static str, lanes: u16) -> Target {
        Target { name, level: name, tune: None, lanes, extra: Vec::new(), tuning: Tuning::NONE }
    }

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
        let has = |f: &&&str| transc_runtime::has_feature(f);
        if !V4.iter().all(|f| has(&f)) {
            return Target { extra: BEYOND_V3.iter().filter(has).copied().collect(), ..Target::X86_64_V3 };
        }
        let mut target = Target { extra: BEYOND_V4.iter().filter(has).copied().collect(), ..Target::X86_64_V4 };
        if !target.has_matrices() && !has(&&AMD) {
            target.extra.retain(|f| *f != BF16);
        }
        target
    }

    /// The names of all targets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let processors = PROCESSORS.iter().map(|p| p.0);
        ["host", "x86-64-v3", "x86-64-v4"].into_iter().chain(processors).chain(["cuda:sm_80", "cuda:sm_90a"])
    }

    /// The targets of a comma list, each once, the most demanding first: the order in which a loader tries them.
    ///
    /// # Errors
    /// A name that is not known, or a device beside other targets.
    pub fn list(names: &str) -> Result<Vec<Target>, CodegenError> {
        let mut all: Vec<Target> = Vec::new();
        for name in names.split(',') {
            let target: Target = name.parse()?;
            if all.iter().all(|t| t.features() != target.features() || t.name != target.name) {
                all.push(target);
            }
        }
        if all.len() > 1 && all.iter().any(Target::is_device) {
            return Err(CodegenError::MixedTargets);
        }
        all.sort_by_key(|t| (std::cmp::Reverse(t.features().len()), t.name));
        Ok(all)
    }

    /// This target with measured choices of schedules.
    #[must_use]
    pub fn tuned(self, tuning: Tuning) -> Target {
        Target { tuning, ..self }
    }

    /// The measured choices of schedules.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The processor as LLVM knows it.
    pub fn processor(&self) -> &'static str {
        self.level.strip_prefix("cuda:").unwrap_or(self.level)
    }

    /// The processor that instructions are scheduled for, if one was named.
    pub fn scheduled_for(&self) -> Option<&'static str> {
        self.tune
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

    /// True if there is an instruction for sums of products of bytes.
    pub fn has_byte_dot(&self) -> bool {
        self.extra.iter().any(|f| [VNNI, AVX_VNNI].contains(f))
    }

    /// True if there is an instruction that looks bytes up in a table of 128.
    pub fn looks_up_bytes(&self) -> bool {
        self.extra.contains(&VBMI)
    }

    /// True if there is an instruction for products of pairs of `bf16`.
    pub fn multiplies_bf16(&self) -> bool {
        self.extra.contains(&BF16)
    }

    /// True if there are matrix registers.
    pub fn has_matrices(&self) -> bool {
        AMX.iter().all(|f| self.extra.contains(f))
    }

    /// This target without matrix registers.
    #[must_use]
    pub fn without_matrices(mut self) -> Target {
        self.extra.retain(|f| !AMX.contains(f));
        self
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
            other => {
                let (name, level, extra) =
                    PROCESSORS.iter().find(|p| p.0 == other).ok_or_else(|| CodegenError::UnknownTarget(other.into()))?;
                Ok(Target { name, tune: Some(name), extra: extra.to_vec(), ..level.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ordered_for_the_loader() {
        let names = |s: &str| Target::list(s).map(|l| l.iter().map(Target::name).collect::<Vec<_>>()).map_err(|e| e.to_string());
        let ordered = Ok(vec!["znver4", "x86-64-v4", "x86-64-v3"]);
        assert_eq!(names("x86-64-v3,znver4,x86-64-v4,x86-64-v3"), ordered);
        assert_eq!(names("x86-64-v4,x86-64-v3,znver4"), ordered);
        assert!(names("x86-64-v3,cuda:sm_80").is_err() && names("x86-64-v3,").is_err() && names("z80").is_err());
        assert_eq!(names("cuda:sm_80"), Ok(vec!["cuda:sm_80"]));
        for (name, ..) in PROCESSORS {
            let t: Target = name.parse().expect("known");
            assert!(t.processor().starts_with("x86-64-v") && t.features().contains(&"avx2"), "{name}");
        }
    }
}
