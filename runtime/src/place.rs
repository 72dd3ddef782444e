//! The memory plan: where each temporary lies in the arena.

use crate::abi::{Arg, Plan};
use crate::mem::ALIGN;

/// First and last launch that touches a buffer.
type Life = (usize, usize);

/// The lives of the plan's temporaries; `None` for one that no launch names.
pub(crate) fn lives(plan: &Plan) -> Vec<Option<Life>> {
    let mut all: Vec<Option<Life>> = vec![None; plan.temps.len()];
    for (at, launch) in plan.launches.iter().enumerate() {
        for arg in &launch.args {
            if let Arg::Temp(t) = arg {
                let life = &mut all[*t as usize];
                *life = Some((life.map_or(at, |(first, _)| first), at));
            }
        }
    }
    all
}

/// Offsets in bytes such that buffers that live at the same time do not overlap, and the size of the arena; `None` if it overflows.
///
/// Greedy: largest buffer first, each into the smallest gap that holds it, else at the end.
pub(crate) fn place(sizes: &[usize], lives: &[Option<Life>]) -> Option<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..sizes.len()).filter(|i| lives[*i].is_some()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let mut offsets = vec![0; sizes.len()];
    // Start, end and life of each placed buffer, by start.
    let mut placed: Vec<(usize, usize, Life)> = Vec::new();
    let mut total = 0;
    for i in order {
        let Some((first, last)) = lives[i] else { continue };
        let size = sizes[i].checked_next_multiple_of(ALIGN)?;
        let mut best: Option<(usize, usize)> = None;
        let mut free_from = 0;
        for (start, end, (f, l)) in &placed {
            if *f > last || first > *l {
                continue;
            }
            let gap = start.saturating_sub(free_from);
            if gap >= size && best.is_none_or(|(g, _)| gap < g) {
                best = Some((gap, free_from));
            }
            free_from = free_from.max(*end);
        }
        let at = best.map_or(free_from, |(_, at)| at);
        let end = at.checked_add(size)?;
        offsets[i] = at;
        total = total.max(end);
        let position = placed.partition_point(|(start, ..)| *start <= at);
        placed.insert(position, (at, end, (first, last)));
    }
    Some((offsets, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_together_do_not_overlap() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) % n) as usize
        };
        for _ in 0..500 {
            let n = 1 + next(40);
            let sizes: Vec<usize> = (0..n).map(|_| next(5000)).collect();
            let lives: Vec<Life> = (0..n).map(|_| (next(40), next(10))).map(|(first, more)| (first, first + more)).collect();
            let given: Vec<Option<Life>> = lives.iter().map(|l| Some(*l)).collect();
            let (offsets, total) = place(&sizes, &given).expect("small numbers");
            assert_eq!((offsets.clone(), total), place(&sizes, &given).expect("small numbers"));
            for i in 0..n {
                assert!(offsets[i].is_multiple_of(ALIGN) && offsets[i] + sizes[i] <= total);
                for j in 0..i {
                    let together = lives[i].0 <= lives[j].1 && lives[j].0 <= lives[i].1;
                    let apart = offsets[i] + sizes[i] <= offsets[j] || offsets[j] + sizes[j] <= offsets[i];
                    assert!(!together || apart, "{i} and {j} overlap");
                }
            }
            let live = |t: usize| {
                (0..n).filter(|i| lives[*i].0 <= t && t <= lives[*i].1).map(|i| sizes[i].next_multiple_of(ALIGN)).sum::<usize>()
            };
            let floor = (0..50).map(live).max().unwrap_or(0);
            assert!((floor..=2 * floor).contains(&total), "{total} bytes where {floor} are alive");
        }
    }

    #[test]
    fn buffers_that_follow_each_other_share_memory() {
        let lives = [Some((0, 1)), Some((2, 3)), Some((4, 5)), None];
        assert_eq!(place(&[100, 128, 64, 1 << 40], &lives), Some((vec![0; 4], 128)));
        assert_eq!(place(&[usize::MAX, 1], &[Some((0, 0)); 2]), None);
    }
}
