//! A layer of attention and a feed-forward part, as most encoders and the first decoders have it.

use transc_ir::Value;

use super::Result;
use super::activations::Activation;
use super::attention::Sight;
use super::layers::Layers;

/// Where the parts of a layer are in the file.
pub(crate) struct Names {
    /// Query, key and value, or all three in one.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) out: &'static str,
    /// The norms of attention and of the feed-forward part.
    pub(crate) norms: [&'static str; 2],
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// The factors of what both parts give, in models that have them.
    pub(crate) scales: Option<[&'static str; 2]>,
    /// Weights are stored as `[in, out]`.
    pub(crate) in_out: bool,
}

/// Sizes of a layer, and what it does where.
pub(crate) struct Block {
    pub(crate) names: &'static Names,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) inner: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
    /// The norms stand before the parts, not behind the sums.
    pub(crate) norm_first: bool,
    /// The feed-forward part is a gated unit.
    pub(crate) gated: bool,
}

impl Block {
    /// `layers` such layers in a row, which are `at.0`, `at.1`, ..
    pub(crate) fn stack(&self, l: &mut Layers<'_>, at: &str, layers: usize, mut x: Value, sight: Sight) -> Result<Value> {
        for i in 0..layers {
            x = l.scope(&format!("{at}.{i}"), |l| self.layer(l, x, sight))?;
        }
        Ok(x)
    }

    /// One layer.
    pub(crate) fn layer(&self, l: &mut Layers<'_>, x: Value, sight: Sight) -> Result<Value> {
        let x = self.residual(l, 0, x, |l, h| {
            let qkv = self.heads_of(l, h)?;
            let y = l.attend(qkv, sight)?;
            self.linear(l, self.names.out, y, self.width)
        })?;
        self.residual(l, 1, x, |l, h| {
            let up = self.inner * (1 + usize::from(self.gated));
            let h = self.linear(l, self.names.up, h, up)?;
            let h = if self.gated { l.gated(self.activation, h)? } else { l.activate(self.activation, h)? };
            self.linear(l, self.names.down, h, self.width)
        })
    }

    /// A part with its norm, added to what came in.
    fn residual<'a>(
        &self,
        l: &mut Layers<'a>,
        part: usize,
        x: Value,
        f: impl FnOnce(&mut Layers<'a>, Value) -> Result<Value>,
    ) -> Result<Value> {
        let norm = self.names.norms[part];
        let h = if self.norm_first { l.layer_norm(norm, x, self.epsilon)? } else { x };
        let mut h = f(l, h)?;
        if let Some(scales) = self.names.scales {
            let scale = l.weight(scales[part], &[self.width])?;
            h = l.times(h, scale)?;
        }
        let sum = l.plus(h, x)?;
        if self.norm_first { Ok(sum) } else { l.layer_norm(norm, sum, self.epsilon) }
    }

    fn heads_of(&self, l: &mut Layers<'_>, x: Value) -> Result<[Value; 3]> {
        let mut qkv = [x; 3];
        if let [all] = self.names.qkv {
            let all = self.linear(l, all, x, 3 * self.width)?;
            qkv = l.split(all, [self.width; 3])?;
        } else {
            for (v, name) in qkv.iter_mut().zip(self.names.qkv) {
                *v = self.linear(l, name, x, self.width)?;
            }
        }
        for v in &mut qkv {
            *v = l.split_heads(*v, self.heads)?;
        }
        Ok(qkv)
    }

    fn linear(&self, l: &mut Layers<'_>, name: &str, x: Value, out: usize) -> Result<Value> {
        if self.names.in_out { l.linear_in_out(name, x, out) } else { l.linear(name, x, out) }
    }
}
