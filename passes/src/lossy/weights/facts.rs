//! What follows from activations that were observed.

use std::collections::BTreeMap;

use transc_ir::{Module, Value};

use super::{Codes, Matrix, Range, Site, WeightSpec, weight_of};

/// The values of an activation.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Dims.
    pub dims: &'a [usize],
}

/// What was observed at a site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The range of the activation without `outliers`, after its columns were divided by `smooth`.
    pub range: Range,
    /// What the columns of the activation are divided by, powers of two; empty for nothing.
    pub smooth: Vec<f32>,
    /// Columns that stay in `f32`, ascending.
    pub outliers: Vec<usize>,
    /// The root of the mean square of each column; empty where nothing weighs columns.
    pub spread: Vec<f32>,
}

/// The root of the mean square of each index of an axis; NaN and infinities do not count.
pub fn root_mean_squares(x: &Observed<'_>, axis: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; x.dims[axis]];
    for (i, v) in x.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        sums[column(x.dims, axis, i)] += f64::from(*v).powi(2);
    }
    let each = (x.values.len() / sums.len().max(1)).max(1) as f64;
    sums.iter().map(|s| (s / each).sqrt() as f32).collect()
}

/// What the codes that are asked for need to know of each site, given its activation.
pub fn facts(module: &Module, sites: &[Site], spec: &WeightSpec, seen: &[Observed<'_>]) -> Vec<Facts> {
    let largest: Vec<Vec<f32>> = sites.iter().zip(seen).map(|(s, x)| column_magnitudes(x, s.input)).collect();
    let (observer, alpha) = match spec.codes {
        Some(Codes::Static { observer, smooth, .. }) => (Some(observer), smooth),
        _ => (None, None),
    };
    let threshold = spec.codes.and_then(Codes::threshold).unwrap_or(f32::INFINITY);
    let smooth = alpha.map_or_else(BTreeMap::new, |alpha| smoothing(module, sites, &largest, alpha));
    let one = |((site, x), largest): ((&Site, &Observed<'_>), &Vec<f32>)| {
        let smooth = smooth.get(&site.activation).cloned().unwrap_or_default();
        let outliers: Vec<usize> = (0..largest.len()).filter(|k| largest[*k] >= threshold).collect();
        let range = observer.map_or_else(Range::default, |o| {
            let scale = |k: usize| smooth.get(k).copied().unwrap_or(1.0);
            let columns = x.values.iter().enumerate().map(|(i, v)| (column(x.dims, site.input, i), v));
            let coded: Vec<f32> = columns.filter(|(k, _)| largest[*k] < threshold).map(|(k, v)| v / scale(k)).collect();
            o.range(&coded)
        });
        let weighs = matches!(spec.codes, Some(Codes::Factored(_)));
        let spread = if weighs { root_mean_squares(x, site.input) } else { Vec::new() };
        Facts { range, smooth, outliers, spread }
    };
    sites.iter().zip(seen).zip(&largest).map(one).collect()
}

/// The position of an element along an axis.
fn column(dims: &[usize], axis: usize, i: usize) -> usize {
    i / dims[axis + 1..].iter().product::<usize>() % dims[axis]
}

/// The largest magnitude of each column; NaN does not count.
fn column_magnitudes(x: &Observed<'_>, axis: usize) -> Vec<f32> {
    let mut largest = vec![0.0f32; x.dims[axis]];
    for (i, v) in x.values.iter().enumerate() {
        let m = &mut largest[column(x.dims, axis, i)];
        *m = m.max(v.abs());
    }
    largest
}

/// By activation: the scale of each column, `a^alpha / w^(1 - alpha)` for the largest magnitudes `a` of the column and `w` of what it is multiplied by in
/// all layers that read it, rounded to a power of two, so that scaling by it loses nothing.
fn smoothing(module: &Module, sites: &[Site], largest: &[Vec<f32>], alpha: f64) -> BTreeMap<Value, Vec<f32>> {
    let mut weights: BTreeMap<Value, Vec<f32>> = BTreeMap::new();
    for (site, largest) in sites.iter().zip(largest) {
        let Some((_, data)) = weight_of(&module.main, &module.consts, site) else { continue };
        let (m, values) = (Matrix::of(&data.dims(), site), super::floats(data));
        let all = weights.entry(site.activation).or_insert_with(|| vec![0.0; largest.len()]);
        for (i, v) in values.iter().enumerate() {
            let w = &mut all[m.input(i)];
            *w = w.max(v.abs());
        }
    }
    let scale = |(a, w): (&f32, f32)| {
        let s = f64::from(*a).powf(alpha) / f64::from(w).powf(1.0 - alpha);
        if s.is_normal() { s.log2().round().clamp(-32.0, 32.0).exp2() as f32 } else { 1.0 }
    };
    let of = |x: Value| sites.iter().position(|s| s.activation == x).map_or(&[][..], |i| &largest[i]);
    weights.into_iter().map(|(x, w)| (x, of(x).iter().zip(w).map(scale).collect())).collect()
}
