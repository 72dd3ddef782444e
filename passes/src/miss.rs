//! Why a rewrite rule did not fire; shared by the e-graph's rules and the rules on merged tokens.

/// Why a rule did not fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The site does not look like the left side at all.
    Other,
    /// It nearly does: the condition that fails, as a sentence for the author of the model.
    Near(String),
}

/// Turns the absence of something that the left side needs into a miss.
pub(crate) trait OrMiss<T> {
    /// Not the left side at all.
    fn or_other(self) -> Result<T, Miss>;
    /// Nearly the left side.
    fn or_near(self, why: impl FnOnce() -> String) -> Result<T, Miss>;
}

impl<T> OrMiss<T> for Option<T> {
    fn or_other(self) -> Result<T, Miss> {
        self.ok_or(Miss::Other)
    }

    fn or_near(self, why: impl FnOnce() -> String) -> Result<T, Miss> {
        self.ok_or_else(|| Miss::Near(why()))
    }
}
