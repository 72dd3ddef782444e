//! What is measured on the calibration inputs: activations, errors of layers and of the outputs, and what a budget leaves.

use transc_ir::{Module, Value};
use transc_passes::{CutSpec, Observed, PassCx, PassError, WeightError, WeightSpec};
use transc_runtime::{Session, SessionOptions, Tensor};

use crate::{Compiled, Compiler, Error};

/// Outputs by name.
pub(crate) type Outputs = Vec<(String, Tensor)>;

impl Compiler {
    /// What is to be cut, with the mean squares of the inputs of each layer.
    pub(crate) fn observed_cuts(&self, module: &Module) -> Result<CutSpec, Error> {
        let mut spec = self.cuts.clone();
        if spec.shares.is_none() || self.calibration.is_empty() {
            return Ok(spec);
        }
        let mut watched = before("cut-layers", module, CutSpec::default(), WeightSpec::default())?;
        let layers = transc_passes::layers(&watched.main);
        let seen = self.observe(&mut watched, layers.iter().map(|l| l.activation))?;
        let mean_square =
            |(l, x): (&transc_passes::Layer, &Observed<'_>)| transc_passes::root_mean_squares(x, l.axes[1 - l.weight]);
        spec.seen = layers.iter().zip(&observed(&seen)).map(mean_square).collect();
        Ok(spec)
    }

    /// Values on the calibration inputs.
    fn observe(&self, module: &mut Module, values: impl Iterator<Item = Value>) -> Result<Outputs, Error> {
        let outputs = module.main.results().len();
        for (i, v) in values.enumerate() {
            module.main.add_result(&format!("activation {i}"), v);
        }
        Ok(self.on_calibration(&self.exact().compile(module)?.session(self.threads)?)?.split_off(outputs))
    }

    /// What is asked for, with what the calibration inputs say of each layer.
    pub(crate) fn measured(&self, module: &Module, cuts: &CutSpec) -> Result<WeightSpec, Error> {
        let mut spec = self.weights.clone();
        if spec.is_empty() || self.calibration.is_empty() {
            return Ok(spec);
        }
        // The layers as the pass that compresses them will find them.
        let mut watched = before("compress-weights", module, cuts.clone(), WeightSpec::default())?;
        if spec.wants_facts() {
            let sites = transc_passes::sites(&watched.main);
            let seen = self.observe(&mut watched.clone(), sites.iter().map(|s| s.activation))?;
            spec.facts = transc_passes::facts(&watched, &sites, &spec, &observed(&seen));
        }
        let layers = transc_passes::probe(&mut watched, &spec)?;
        let results = self.on_calibration(&self.exact().compile(&watched)?.session(self.threads)?)?;
        spec.errors = layers.into_iter().zip(results.chunks_exact(2).map(error_of_pair)).collect();
        self.measure_attention(module, cuts, &mut spec)?;
        Ok(spec)
    }

    /// The ranges of what attention multiplies behind compressed layers, and the error of each attention on codes.
    fn measure_attention(&self, module: &Module, cuts: &CutSpec, spec: &mut WeightSpec) -> Result<(), Error> {
        let mut watched = before("code-attention", module, cuts.clone(), spec.clone())?;
        let operands: Vec<Value> = transc_passes::attentions(&watched.main, spec).into_iter().flat_map(|a| a.1).collect();
        if operands.is_empty() {
            return Ok(());
        }
        let seen = self.observe(&mut watched.clone(), operands.into_iter())?;
        spec.attention = transc_passes::attention_ranges(spec, &observed(&seen));
        let outputs = watched.main.results().len();
        let attentions = transc_passes::probe_attention(&mut watched, spec)?;
        let results = self.on_calibration(&self.exact().compile(&watched)?.session(self.threads)?)?.split_off(outputs);
        spec.errors.extend(attentions.into_iter().zip(results.chunks_exact(2).map(error_of_pair)));
        Ok(())
    }

    fn on_calibration(&self, session: &Session) -> Result<Outputs, Error> {
        let inputs: Vec<_> = self.calibration.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        Ok(session.run(&inputs)?)
    }

    /// How far the outputs are from those of the model without lossy steps: the relative error in the mean square, over all float outputs. What
    /// these are is found once, and kept in `exact`.
    pub(crate) fn error(&self, module: &Module, lossy: &Compiled, exact: &mut Option<Outputs>) -> Result<Option<f64>, Error> {
        if self.calibration.is_empty() {
            return Ok(None);
        }
        let exact = match exact {
            Some(known) => known,
            None => exact.insert(self.on_calibration(&self.exact().compile(module)?.session(self.threads)?)?),
        };
        let session = if self.is_device() {
            // What a device will run is measured here, as the compiler needs none.
            let (_, code) = self.exact().generate(&lossy.module, &mut || ())?;
            Session::new(code.jit()?, SessionOptions { threads: self.threads, ..SessionOptions::default() })?
        } else {
            lossy.session(self.threads)?
        };
        Ok(relative_error(exact, &self.on_calibration(&session)?))
    }

    /// Compiles with ever more layers left as they are, those with the largest errors of their own first, until the error of the outputs is within the
    /// budget.
    pub(crate) fn within(
        &self,
        budget: f64,
        module: &Module,
        mut weights: WeightSpec,
        cx: &mut PassCx,
        on_phase: &mut dyn FnMut(&str),
    ) -> Result<Compiled, Error> {
        if self.calibration.is_empty() {
            return Err(PassError::from(WeightError::NoCalibration("a budget")).into());
        }
        let layers = weights.errors.len();
        let mut order: Vec<usize> = (0..layers).collect();
        order.sort_by(|a, b| weights.errors[*b].1.total_cmp(&weights.errors[*a].1));
        let (fresh, mut exact) = (cx.clone(), None);
        let mut nearest = (f64::INFINITY, 0);
        let steps = std::iter::once(0).chain((0..).map(|i| 1usize << i).take_while(|kept| *kept < layers));
        for kept in steps.chain((layers > 1).then_some(layers - 1)) {
            weights.keep = order[..kept].iter().copied().collect();
            *cx = fresh.clone();
            let compiled = self.build(module, weights.clone(), &mut exact, cx, on_phase)?;
            let error = compiled.error.unwrap_or(0.0);
            if error <= budget {
                return Ok(compiled);
            }
            if error < nearest.0 {
                nearest = (error, kept);
            }
        }
        let (error, kept) = nearest;
        // Rounded up, so that the error itself is within what is said.
        let error = format!("{:.2e}", error * 1.005);
        let budget = format!("{budget}");
        Err(PassError::from(WeightError::Budget { budget, error, compressed: layers - kept, layers }).into())
    }
}

/// Values as observers take them.
fn observed(seen: &Outputs) -> Vec<Observed<'_>> {
    seen.iter().map(|(_, t)| Observed { values: t.as_slice().unwrap_or(&[]), dims: t.shape() }).collect()
}

/// The relative error of the second of two results.
fn error_of_pair(p: &[(String, Tensor)]) -> f64 {
    relative_error(&p[..1], &p[1..]).unwrap_or(0.0)
}

/// A module as a pass will find it.
fn before(pass: &str, module: &Module, cuts: CutSpec, weights: WeightSpec) -> Result<Module, Error> {
    let (mut m, mut cx) = (module.clone(), PassCx::default());
    (cx.cuts, cx.weights) = (cuts, weights);
    let passes = transc_passes::pipeline::until(pass);
    transc_passes::run(&mut m, &passes[..passes.len() - 1], &mut cx)?;
    Ok(m)
}

/// `|want - got| / |want|` in the mean square over all `f32` outputs; `None` if all that is wanted is 0.
pub fn relative_error(want: &[(String, Tensor)], got: &[(String, Tensor)]) -> Option<f64> {
    let pairs = want.iter().zip(got);
    transc_passes::relative_error_of(pairs.filter_map(|((_, w), (_, g))| Some((w.as_slice().ok()?, g.as_slice().ok()?))))
}
