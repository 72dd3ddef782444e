//! What can be asked for: `--mat` and `--prune-structured`.

use std::fmt;
use std::str::FromStr;

use super::{CutError, Masks};

/// Nested sub-models (Devvrit et al. 2023, "MatFormer"): the first hidden units of feed-forward layers. Later parts override earlier ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nested(pub(super) Vec<(Which, Size)>);

/// Layers that a part of `--mat` is about.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Which {
    All,
    /// By number, both included.
    Range(usize, usize),
    /// By a part of the user's name.
    Named(String),
}

/// How many units stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Size {
    Fraction(usize, usize),
    Units(usize),
}

impl Which {
    pub(super) fn matches(&self, index: usize, name: &str) -> bool {
        match self {
            Which::All => true,
            Which::Range(lo, hi) => (*lo..=*hi).contains(&index),
            Which::Named(part) => name.match_indices(part.as_str()).any(|(at, _)| {
                // Whole words: `layer.1` is not part of `layer.10`.
                let outside = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
                outside(name[..at].chars().next_back()) && outside(name[at + part.len()..].chars().next())
            }),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::All => f.write_str("all"),
            Which::Range(lo, hi) if lo == hi => write!(f, "l{lo}"),
            Which::Range(lo, hi) => write!(f, "l{lo}-{hi}"),
            Which::Named(name) => f.write_str(name),
        }
    }
}

impl FromStr for Nested {
    type Err = CutError;

    fn from_str(text: &str) -> Result<Self, CutError> {
        let wrong = |why: String| CutError::Spec { option: "--mat", text: text.into(), why };
        let size = |s: &str| {
            let number = |n: &str| n.trim().parse::<usize>().ok().filter(|n| *n > 0);
            let size = match s.split_once('/') {
                Some((p, q)) => number(p).zip(number(q)).filter(|(p, q)| p <= q).map(|(p, q)| Size::Fraction(p, q)),
                None => number(s).map(Size::Units),
            };
            size.ok_or_else(|| wrong(format!("`{s}` is neither a share such as 1/2 nor a number of units")))
        };
        let part = |p: &str| match p.rsplit_once('=') {
            None => Ok((Which::All, size(p)?)),
            Some((which, s)) => Ok((layers(which).ok_or_else(|| wrong(format!("`{which}` names no layers")))?, size(s)?)),
        };
        text.split(',').map(part).collect::<Result<Vec<_>, _>>().map(Nested)
    }
}

/// `all`, `l3`, `l0-3`, or a name.
fn layers(text: &str) -> Option<Which> {
    let numbers = text.strip_prefix('l').and_then(|r| {
        let (lo, hi) = r.split_once('-').unwrap_or((r, r));
        lo.parse().ok().zip(hi.strip_prefix('l').unwrap_or(hi).parse().ok())
    });
    match (text, numbers) {
        ("" | "l", _) => None,
        ("all", _) => Some(Which::All),
        (_, Some((lo, hi))) => (lo <= hi).then_some(Which::Range(lo, hi)),
        _ => Some(Which::Named(text.into())),
    }
}

/// Shares of units that go, those that count least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Of the hidden units of each feed-forward layer.
    pub ffn: f64,
    /// Of the heads of each attention.
    pub heads: f64,
    /// Of all attention and feed-forward blocks.
    pub layers: f64,
}

impl FromStr for Shares {
    type Err = CutError;

    fn from_str(text: &str) -> Result<Self, CutError> {
        let wrong = |why: String| CutError::Spec { option: "--prune-structured", text: text.into(), why };
        let mut shares = Shares::default();
        for part in text.split(',') {
            let (name, share) = part.split_once('=').ok_or_else(|| wrong(format!("`{part}` has no share")))?;
            let share: Option<f64> = share.parse().ok().filter(|s| (0.0..1.0).contains(s));
            let share = share.ok_or_else(|| wrong("a share lies between 0 and 1".into()))?;
            match name {
                "ffn" => shares.ffn = share,
                "heads" => shares.heads = share,
                "layers" => shares.layers = share,
                _ => return Err(wrong(format!("`{name}` is not one of ffn, heads and layers"))),
            }
        }
        Ok(shares)
    }
}

/// What is cut from a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CutSpec {
    /// Nested sub-models.
    pub nested: Option<Nested>,
    /// Pruned units.
    pub shares: Option<Shares>,
    /// Masks that were learnt.
    pub masks: Option<Masks>,
    /// Root mean square of each input of each layer, in order; empty without inputs to observe.
    pub seen: Vec<Vec<f32>>,
}

impl CutSpec {
    /// True if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.nested.is_none() && self.shares.is_none() && self.masks.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_by_layer() {
        let nested = |t: &str| t.parse::<Nested>().map(|n| n.0);
        assert_eq!(nested("1/2"), Ok(vec![(Which::All, Size::Fraction(1, 2))]));
        let parts = vec![(Which::Range(0, 3), Size::Fraction(1, 4)), (Which::Named("layer.7".into()), Size::Units(96))];
        assert_eq!(nested("l0-3=1/4,layer.7=96"), Ok(parts));
        for wrong in ["", "0", "0/2", "3/2", "1/0", "l0=", "=1/2", "l3-1=1/2", "l0=x", "1/2,"] {
            assert!(nested(wrong).is_err(), "{wrong}");
        }
        let named = Which::Named("layer.1".into());
        assert!(named.matches(0, "encoder.layer.1.output/dense") && !named.matches(0, "encoder.layer.10.output/dense"));
    }

    #[test]
    fn shares_of_units() {
        assert_eq!("ffn=0.5,heads=0.25".parse(), Ok(Shares { ffn: 0.5, heads: 0.25, layers: 0.0 }));
        for wrong in ["", "ffn", "ffn=1", "ffn=-0.1", "ffn=nan", "hidden=0.5"] {
            assert!(wrong.parse::<Shares>().is_err(), "{wrong}");
        }
    }
}
