//! Masks that training has learnt, by tensor name: `layer.3.heads.mask`.

use std::collections::BTreeMap;

use transc_ir::interp::Tensor;

use super::CutError;

/// What each unit is multiplied by; 0 drops it. By layer number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Masks {
    pub(super) attention: BTreeMap<usize, Vec<f32>>,
    pub(super) ffn: BTreeMap<usize, Vec<f32>>,
    pub(super) heads: BTreeMap<usize, Vec<f32>>,
    pub(super) ffn_units: BTreeMap<usize, Vec<f32>>,
    /// Of the hidden dims, if there is one.
    pub(super) hidden: Option<Vec<f32>>,
    /// True if norms take dropped hidden dims for zeros, false if they look at the kept ones alone.
    pub(super) dense_zeros: bool,
}

/// The keys of the header.
const HEADER: [&str; 4] = ["version", "threshold", "multiplier", "ln_semantics"];

impl Masks {
    /// Masks from the header and the tensors of a file. A tensor `X.mask` holds multipliers; `X.mu` with `X.logvar` holds what they were drawn
    /// from: a unit goes where `logvar - ln mu^2` reaches the header's `threshold`, and is multiplied by `mu` otherwise. With the header's
    /// `multiplier = ignore`, units that stay are not multiplied. With a mask of hidden dims, `ln_semantics` must say what norms do about those
    /// that go.
    ///
    /// # Errors
    /// An unknown name, a number that is not finite, a header that does not say what it must.
    pub fn new(header: &BTreeMap<String, String>, tensors: &[(String, Tensor)]) -> Result<Self, CutError> {
        let wrong = |name: &str, why: &str| CutError::Mask { name: name.into(), why: why.into() };
        if let Some((k, _)) = header.iter().find(|(k, _)| !HEADER.contains(&k.as_str())) {
            return Err(wrong(k, "is no key of the header: these are version, threshold, multiplier and ln_semantics"));
        }
        if header.get("version").is_some_and(|v| v != "1") {
            return Err(wrong("version", "is not 1"));
        }
        let fold = match header.get("multiplier").map(String::as_str) {
            None | Some("fold") => true,
            Some("ignore") => false,
            Some(_) => return Err(wrong("multiplier", "is neither `fold` nor `ignore`")),
        };
        let dense_zeros = match header.get("ln_semantics").map(String::as_str) {
            None => None,
            Some("kept_only") => Some(false),
            Some("dense_zeros") => Some(true),
            Some(_) => return Err(wrong("ln_semantics", "is neither `kept_only` nor `dense_zeros`")),
        };
        let threshold = header.get("threshold").map(|t| t.parse::<f64>().ok().filter(|t| t.is_finite()));
        let mut masks = Masks::default();
        for (name, t) in tensors {
            let Some((unit, part)) = name.rsplit_once('.') else { return Err(wrong(name, "is no tensor of a mask file")) };
            let mut values = t.to_f64();
            match part {
                "mask" => {}
                "mu" => {
                    let logvar = tensors.iter().find(|(n, _)| *n == format!("{unit}.logvar")).map(|(_, t)| t.to_f64());
                    let logvar = logvar.filter(|l| l.len() == values.len());
                    let logvar = logvar.ok_or_else(|| wrong(name, "has no `logvar` of its length"))?;
                    let threshold =
                        threshold.flatten().ok_or_else(|| wrong("threshold", "is needed for `mu` and `logvar`, a number"))?;
                    for (m, l) in values.iter_mut().zip(logvar) {
                        if l.is_nan() || m.is_finite() && l - (*m * *m).ln() >= threshold {
                            *m = if l.is_nan() { f64::NAN } else { 0.0 };
                        }
                    }
                }
                "logvar" if tensors.iter().any(|(n, _)| *n == format!("{unit}.mu")) => continue,
                _ => return Err(wrong(name, "is no tensor of a mask file")),
            }
            if values.iter().any(|v| !(*v as f32).is_finite()) {
                return Err(wrong(name, "holds numbers that are not finite"));
            }
            let values = values.iter().map(|v| if fold || *v == 0.0 { *v as f32 } else { 1.0 }).collect();
            let known = match unit {
                "hidden" => Some(masks.hidden.replace(values).is_none()),
                _ => masks.group(unit).map(|(group, layer)| group.insert(layer, values).is_none()),
            };
            if known != Some(true) {
                return Err(wrong(name, "is no tensor of a mask file, or masks what another one masks"));
            }
        }
        if masks.hidden.is_some() {
            let why = "is needed with `hidden.mask`: `kept_only` or `dense_zeros`, as in training";
            masks.dense_zeros = dense_zeros.ok_or_else(|| wrong("ln_semantics", why))?;
        }
        Ok(masks)
    }

    /// The masks of a kind, and the layer: of `layer.3.heads`.
    fn group(&mut self, unit: &str) -> Option<(&mut BTreeMap<usize, Vec<f32>>, usize)> {
        let (layer, kind) = unit.strip_prefix("layer.")?.split_once('.')?;
        let group = match kind {
            "attn" => &mut self.attention,
            "ffn" => &mut self.ffn,
            "heads" => &mut self.heads,
            "ffn_units" => &mut self.ffn_units,
            _ => return None,
        };
        Some((group, layer.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(header: &[(&str, &str)], tensors: &[(&str, &[f32])]) -> Result<Masks, CutError> {
        let header = header.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let tensors: Vec<_> = tensors.iter().map(|(n, v)| ((*n).into(), Tensor::from_f32(&[v.len()], v))).collect();
        Masks::new(&header, &tensors)
    }

    #[test]
    fn multipliers_and_what_they_are_drawn_from() {
        let m = masks(&[], &[("layer.1.heads.mask", &[1.0, 0.0, 0.5, -2.0])]).expect("a mask");
        assert_eq!(m.heads[&1], [1.0, 0.0, 0.5, -2.0]);
        let ignore = masks(&[("multiplier", "ignore")], &[("layer.1.heads.mask", &[1.0, 0.0, 0.5])]).expect("a mask");
        assert_eq!(ignore.heads[&1], [1.0, 0.0, 1.0]);
        // The noise of the second one drowns it.
        let drawn: [(&str, &[f32]); 2] = [("layer.0.ffn_units.mu", &[0.5, 0.1]), ("layer.0.ffn_units.logvar", &[-4.0, 1.0])];
        assert_eq!(masks(&[("threshold", "0")], &drawn).expect("a mask").ffn_units[&0], [0.5, 0.0]);
        assert!(masks(&[], &drawn).is_err(), "a threshold is needed");
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        for (name, values) in [
            ("layer.0.heads.mask", [f32::NAN]),
            ("layer.0.heads.mask", [f32::INFINITY]),
            ("layer.x.heads.mask", [1.0]),
            ("layer.0.tails.mask", [1.0]),
            ("heads", [1.0]),
            ("layer.0.heads.mu", [1.0]),
            ("layer.0.heads.logvar", [1.0]),
        ] {
            assert!(masks(&[("threshold", "0")], &[(name, &values)]).is_err(), "{name} {values:?}");
        }
        for header in [("version", "2"), ("multiplier", "x"), ("unknown", "1"), ("ln_semantics", "x")] {
            assert!(masks(&[header], &[]).is_err(), "{header:?}");
        }
        assert!(masks(&[], &[("hidden.mask", &[1.0, 0.0])]).is_err(), "norms could mean two things");
    }
}
