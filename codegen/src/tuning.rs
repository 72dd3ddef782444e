//! Measured choices of schedules. Lowering looks them up, so that code depends on what was measured once and not on a clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::template::matmul::{MatmulProblem, Schedule};
use crate::template::tile::TileShape;

/// Rows of a chunk that are tried.
const CHUNKS: [i64; 4] = [64, 128, 256, 512];

/// Schedules by problem; none by default, which leaves all to the cost table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning(Option<Arc<BTreeMap<String, String>>>);

impl Tuning {
    /// No choices.
    pub const NONE: Tuning = Tuning(None);

    /// Choices from `(problem, schedule)`.
    ///
    /// # Errors
    /// The first choice that no kernel for vectors of `lanes` floats has.
    pub fn new(lanes: u16, choices: impl IntoIterator<Item = (String, String)>) -> Result<Tuning, (String, String)> {
        let mut all = BTreeMap::new();
        for (problem, schedule) in choices {
            if !candidates(lanes).contains(&schedule) {
                return Err((problem, schedule));
            }
            all.insert(problem, schedule);
        }
        Ok(Tuning((!all.is_empty()).then(|| Arc::new(all))))
    }

    /// The choices, by problem.
    pub fn choices(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|all| all.iter()).map(|(p, s)| (p.as_str(), s.as_str()))
    }

    /// The schedule for a problem, where one was chosen.
    pub(crate) fn matmul(&self, problem: &str, default: Schedule) -> Schedule {
        let chosen = self.0.as_ref().and_then(|all| all.get(problem));
        chosen.and_then(|c| space(default).into_iter().find(|s| short(*s) == *c)).unwrap_or(default)
    }
}

/// What tells a product apart for tuning: its template, and the sizes that do not change from run to run.
pub(crate) fn problem(p: &MatmulProblem, template: &str) -> String {
    format!("{template} k={} n={}", p.k, p.n)
}

/// The schedules that can be chosen for vectors of `lanes` floats, as tuning files name them.
pub fn candidates(lanes: u16) -> Vec<String> {
    let any = Schedule::choose(lanes, &transc_ir::types::Dim::from(1));
    space(any).into_iter().map(short).collect()
}

fn space(like: Schedule) -> Vec<Schedule> {
    let tiles = TileShape::space(like.tile.lanes);
    let with = |tile, chunk| {
        let mut s = like;
        (s.tile, s.chunk) = (tile, chunk);
        s
    };
    tiles.into_iter().flat_map(|tile| CHUNKS.map(|chunk| with(tile, chunk))).collect()
}

/// A schedule without the name of its template.
pub(crate) fn short(s: Schedule) -> String {
    let name = s.to_string();
    name.rsplit_once('_').map_or(name.clone(), |(_, s)| s.to_string())
}

#[cfg(test)]
mod tests {
    use transc_ir::types::Dim;

    use super::*;

    #[test]
    fn choices_are_looked_up_and_unknown_ones_refused() {
        let p = MatmulProblem { batch: vec![], m: Dim::from(8), n: Dim::from(96), k: Dim::from(64) };
        let default = Schedule::choose(16, &p.n);
        let key = problem(&p, "matmul_f32");
        assert_eq!(key, "matmul_f32 k=64 n=96");
        for wanted in candidates(16) {
            let t = Tuning::new(16, [(key.clone(), wanted.clone())]).expect("a candidate");
            assert_eq!(short(t.matmul(&key, default)), wanted);
            assert_eq!(t.matmul("matmul_f32 k=64 n=97", default), default);
        }
        assert!(candidates(16).contains(&short(default)));
        let wrong = |s: &str| Tuning::new(8, [(key.clone(), s.into())]).is_err();
        assert!(wrong("m8n48c128") && wrong("m0n0c0") && wrong(""), "not for 8 lanes, or nothing at all");
    }
}
