//! Which weights become zero.

use super::{Matrix, Prune};

/// Sets elements to zero by their magnitude; of equals the first ones go.
pub(super) fn prune(w: &mut [f32], m: Matrix, p: Prune) -> (&'static str, String) {
    let smallest = |scores: Vec<f32>, count: usize| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        order.truncate(count);
        order
    };
    match p {
        Prune::Blocks(share) => {
            let blocks = m.outputs.div_ceil(4);
            let columns = |i: usize| i % blocks * 4..m.outputs.min(i % blocks * 4 + 4);
            let scores: Vec<f32> =
                (0..m.inputs * blocks).map(|i| columns(i).map(|o| w[m.at(i / blocks, o)].abs()).sum()).collect();
            let count = (share * scores.len() as f64).round() as usize;
            for i in smallest(scores, count) {
                columns(i).for_each(|o| w[m.at(i / blocks, o)] = 0.0);
            }
            ("prune-4x1", format!("{:.0} % of the blocks", share * 100.0))
        }
        Prune::TwoOfFour => {
            for output in 0..m.outputs {
                for start in (0..m.inputs).step_by(4) {
                    let group: Vec<usize> = (start..m.inputs.min(start + 4)).map(|k| m.at(k, output)).collect();
                    let drop = smallest(group.iter().map(|i| w[*i].abs()).collect(), group.len() / 2);
                    drop.into_iter().for_each(|i| w[group[i]] = 0.0);
                }
            }
            ("prune-2:4", "two of four inputs".into())
        }
        Prune::Unstructured(share) => {
            let count = (share * w.len() as f64).round() as usize;
            for i in smallest(w.iter().map(|v| v.abs()).collect(), count) {
                w[i] = 0.0;
            }
            ("prune-unstructured", format!("{:.0} % of the weights", share * 100.0))
        }
    }
}
