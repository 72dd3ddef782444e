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
        Prune::Blocks(block, share) => {
            let across = m.outputs.div_ceil(block.outputs);
            let members = |i: usize| {
                let (k, o) = (i / across * block.inputs, i % across * block.outputs);
                let columns = o..m.outputs.min(o + block.outputs);
                (k..m.inputs.min(k + block.inputs)).flat_map(move |k| columns.clone().map(move |o| m.at(k, o)))
            };
            let count = m.inputs.div_ceil(block.inputs) * across;
            let scores: Vec<f32> = (0..count).map(|i| members(i).map(|at| w[at].abs()).sum()).collect();
            for i in smallest(scores, (share * count as f64).round() as usize) {
                members(i).for_each(|at| w[at] = 0.0);
            }
            (block.name, format!("{:.0} % of the blocks", share * 100.0))
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
