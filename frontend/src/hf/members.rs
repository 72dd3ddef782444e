//! The decoders with rotary positions and RMS norms: what each does in its own way, and what the fields that its config leaves out mean.

use super::Result;
use super::config::Config;
use super::moe::{self, Kinds};
use super::rope::THETA;

/// A member of the family.
pub(crate) struct Member {
    /// Sizes where the config has none.
    pub(crate) sizes: Sizes,
    pub(crate) epsilon: f64,
    /// The field of the activation, and what it means where it is absent.
    pub(crate) activation: (&'static str, &'static str),
    /// Base of the rotations.
    pub(crate) theta: f64,
    /// Layers with a window have rotations of their own.
    pub(crate) local_turns: bool,
    pub(crate) windows: Windows,
    /// Query, key and value are one layer, and so are gate and values of the gated unit.
    pub(crate) fused: bool,
    /// Norm weights are stored minus 1, embeddings scaled by the root of the width.
    pub(crate) gemma: bool,
    /// Norms stand behind attention and the gated unit, too.
    pub(crate) norms_behind: bool,
    /// The logits of attention are scaled by one over the root of a field, which is this where it is absent.
    pub(crate) query_scale: Option<f64>,
    /// The fields of the soft caps of the logits of attention and of words, and what absent ones mean; without a name there is none.
    pub(crate) softcaps: [(&'static str, Option<f64>); 2],
    pub(crate) tied: bool,
    pub(crate) pad: Option<i64>,
    /// The gated unit of some layers is one of experts.
    pub(crate) experts: Option<&'static Kinds>,
}

/// Sizes; those that are 0 follow from the others.
pub(crate) struct Sizes {
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) positions: usize,
}

/// Which layers have a window.
pub(crate) enum Windows {
    None,
    /// All, unless the size is null; the size where it is absent.
    All(Option<usize>),
    /// Where a field asks for it: by the list of the config, or else those that a function of the config and the layer tells.
    Asked(fn(&Config, usize) -> bool),
    /// By the list of the config, or else all but every so manyth, which a field may give.
    Mixed(usize),
}

/// Keys that a layer with a window sees where the config does not say.
const WINDOW: usize = 4096;

/// Llama (Touvron et al. 2023).
pub(crate) const LLAMA: Member = Member {
    sizes: Sizes { width: 4096, heads: 32, key_heads: 0, head_dim: 0, inner: 11008, layers: 32, positions: 2048 },
    epsilon: 1e-6,
    activation: ("hidden_act", "silu"),
    theta: THETA,
    local_turns: false,
    windows: Windows::None,
    fused: false,
    gemma: false,
    norms_behind: false,
    query_scale: None,
    softcaps: [("", None); 2],
    tied: false,
    pad: None,
    experts: None,
};

/// Mistral (Jiang et al. 2023).
pub(crate) const MISTRAL: Member = Member {
    sizes: Sizes { key_heads: 8, inner: 14336, positions: 4096 * 32, ..LLAMA.sizes },
    windows: Windows::All(Some(WINDOW)),
    ..LLAMA
};

/// Mixtral (Jiang et al. 2024).
pub(crate) const MIXTRAL: Member = Member {
    sizes: MISTRAL.sizes,
    epsilon: 1e-5,
    theta: 1e6,
    windows: Windows::All(None),
    experts: Some(&moe::MIXTRAL),
    ..LLAMA
};

/// Qwen2 (Yang et al. 2024).
pub(crate) const QWEN2: Member = Member {
    sizes: Sizes { key_heads: 32, inner: 22016, positions: 32768, ..LLAMA.sizes },
    windows: Windows::Asked(|c, i| i as i64 >= first_windowed(c)),
    ..LLAMA
};

/// Qwen2-MoE (Yang et al. 2024).
pub(crate) const QWEN2_MOE: Member = Member {
    sizes: Sizes { width: 2048, heads: 16, key_heads: 16, head_dim: 0, inner: 5632, layers: 24, positions: 32768 },
    windows: Windows::Asked(|c, i| i % 2 == 0 && (i as i64) < first_windowed(c)),
    experts: Some(&moe::QWEN2),
    ..LLAMA
};

/// Qwen3 (Yang et al. 2025).
pub(crate) const QWEN3: Member = Member { sizes: Sizes { head_dim: 128, ..QWEN2.sizes }, ..QWEN2 };

/// Qwen3-MoE (Yang et al. 2025).
pub(crate) const QWEN3_MOE: Member = Member {
    sizes: Sizes { width: 2048, heads: 32, key_heads: 4, head_dim: 0, inner: 6144, layers: 24, positions: 32768 },
    windows: Windows::Asked(|_, _| true),
    experts: Some(&moe::QWEN3),
    ..LLAMA
};

/// Gemma (Mesnard et al. 2024).
pub(crate) const GEMMA: Member = Member {
    sizes: Sizes { width: 3072, heads: 16, key_heads: 16, head_dim: 256, inner: 24576, layers: 28, positions: 8192 },
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    gemma: true,
    tied: true,
    pad: Some(0),
    ..LLAMA
};

/// Gemma 2 (Riviere et al. 2024).
pub(crate) const GEMMA2: Member = Member {
    sizes: Sizes { width: 2304, heads: 8, key_heads: 4, head_dim: 256, inner: 9216, layers: 26, positions: 8192 },
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    windows: Windows::Mixed(2),
    norms_behind: true,
    query_scale: Some(256.0),
    softcaps: [("attn_logit_softcapping", Some(50.0)), ("final_logit_softcapping", Some(30.0))],
    ..GEMMA
};

/// The texts of Gemma 3 (Kamath et al. 2025).
pub(crate) const GEMMA3: Member = Member {
    sizes: Sizes { positions: 131_072, ..GEMMA2.sizes },
    theta: 1e6,
    local_turns: true,
    windows: Windows::Mixed(6),
    softcaps: [("", None), ("final_logit_softcapping", None)],
    ..GEMMA2
};

/// Phi-3 (Abdin et al. 2024).
pub(crate) const PHI3: Member = Member {
    sizes: Sizes { width: 3072, heads: 32, key_heads: 0, head_dim: 0, inner: 8192, layers: 32, positions: 4096 },
    epsilon: 1e-5,
    windows: Windows::All(None),
    fused: true,
    pad: Some(32_000),
    ..LLAMA
};

/// The first layer of Qwen with a window, or without one in Qwen2-MoE.
fn first_windowed(c: &Config) -> i64 {
    c.id("max_window_layers", Some(28)).unwrap_or(28)
}

impl Windows {
    /// How many keys a layer with a window sees, itself included, and which layers have it; `None` if none has.
    pub(crate) fn read(&self, c: &Config, layers: usize) -> Result<Option<(usize, Vec<bool>)>> {
        let size = |absent: usize| c.count("sliding_window", absent, 1 << 30);
        let listed = |i: usize, other: bool| c.layer_type(i).map_or(other, |kind| kind == "sliding_attention");
        let none = c.is_null("sliding_window");
        let found = match self {
            Windows::All(absent) if !none && (absent.is_some() || c.field("sliding_window").is_some()) => {
                Some((size(absent.unwrap_or(WINDOW))?, vec![true; layers]))
            }
            Windows::Asked(which) if !none && c.flag("use_sliding_window") == Some(true) => {
                Some((size(WINDOW)?, (0..layers).map(|i| listed(i, which(c, i))).collect()))
            }
            Windows::Mixed(pattern) if !none => {
                let pattern = c.count("sliding_window_pattern", *pattern, layers.max(*pattern))?;
                Some((size(WINDOW)?, (0..layers).map(|i| listed(i, (i + 1) % pattern != 0)).collect()))
            }
            _ => None,
        };
        Ok(found.filter(|(_, which)| which.contains(&true)))
    }
}
