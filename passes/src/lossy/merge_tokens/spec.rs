//! What the user asks for: `tome:r=8`.

use std::fmt;
use std::str::FromStr;

use transc_ir::op::Planner;

use super::MergeError;

/// How tokens are merged, block by block.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeSpec {
    /// How a plan is found.
    pub planner: Planner,
    /// Tokens that vanish per block, in the mean over all blocks.
    pub remove: usize,
    /// Slope of the schedule over the blocks: 0 for the same everywhere, -1 for most at first, 1 for most at last.
    pub inflect: f64,
}

impl MergeSpec {
    /// How many tokens each of `blocks` blocks removes (Bolya et al. 2023, section 4.2).
    pub fn schedule(&self, blocks: usize) -> Vec<usize> {
        let r = self.remove as f64;
        let lo = (r * (1.0 - self.inflect)).trunc();
        let step = if blocks > 1 { (2.0 * r - 2.0 * lo) / (blocks - 1) as f64 } else { 0.0 };
        let first = if blocks > 1 { lo } else { r };
        (0..blocks).map(|l| (first + step * l as f64) as usize).collect()
    }
}

impl FromStr for MergeSpec {
    type Err = MergeError;

    fn from_str(text: &str) -> Result<Self, MergeError> {
        let bad = |why: &str| MergeError::Spec { text: text.into(), why: why.into() };
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        let planner = Planner::from_name(name).ok_or_else(|| MergeError::Codec { name: name.into() })?;
        let (mut remove, mut inflect) = (None, 0.0);
        for p in parameters.split(',').filter(|p| !p.is_empty()) {
            match p.split_once('=') {
                Some(("r", v)) => remove = Some(v.parse().map_err(|_| bad("`r` is not a number of tokens"))?),
                Some(("inflect", v)) => {
                    inflect =
                        v.parse().ok().filter(|v| (-1.0..=1.0).contains(v)).ok_or_else(|| bad("`inflect` is not in -1..1"))?;
                }
                _ => return Err(bad(&format!("`{p}` is no parameter of it"))),
            }
        }
        let remove = remove.ok_or_else(|| bad("it has no `r`"))?;
        Ok(Self { planner, remove, inflect })
    }
}

impl fmt::Display for MergeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:r={}", self.planner.name(), self.remove)?;
        if self.inflect == 0.0 { Ok(()) } else { write!(f, ",inflect={}", self.inflect) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, blocks: usize) -> Vec<usize> {
        text.parse::<MergeSpec>().expect("a codec").schedule(blocks)
    }

    #[test]
    fn schedules_of_the_method() {
        assert_eq!(schedule("tome:r=13", 12), [13; 12]);
        assert_eq!(schedule("tome:r=13,inflect=-1", 12), [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]);
        assert_eq!(schedule("tome:r=13,inflect=1", 12), [0, 2, 4, 7, 9, 11, 14, 16, 18, 21, 23, 26]);
        let falling = [16, 15, 14, 13, 13, 12, 11, 11, 10, 9, 9, 8, 7, 6, 6, 5, 4, 4, 3, 2, 2, 1, 0, 0];
        assert_eq!(schedule("tome:r=8,inflect=-1", 24), falling);
        assert_eq!(schedule("tome:r=8,inflect=-1", 1), [8]);
    }

    #[test]
    fn what_is_no_codec_is_refused() {
        for text in ["", "tome", "tome:r=", "tome:r=-1", "tome:r=x", "tome:r=2,inflect=2", "tome:r=2,k=1", "tomato:r=2"] {
            assert!(text.parse::<MergeSpec>().is_err(), "{text}");
        }
        assert_eq!("tome:r=8,inflect=-1".parse::<MergeSpec>().map(|s| s.to_string()), Ok("tome:r=8,inflect=-1".into()));
    }
}
