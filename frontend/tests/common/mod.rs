//! Running imported models on the reference interpreter and comparing with stored outputs.

use transc_ir::Module;
use transc_ir::interp::{Tensor, eval_module};

/// How far a result may be off.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub atol: f64,
    pub rtol: f64,
}

/// Evaluates a module on named inputs.
pub fn evaluate(m: &Module, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, String> {
    let mut ordered = Vec::new();
    for (name, _) in m.main.params() {
        let found = inputs.iter().find(|(n, _)| n == name);
        ordered.push(found.ok_or_else(|| format!("there is no input `{name}`"))?.1.clone());
    }
    let results = eval_module(m, &ordered).map_err(|e| format!("evaluation: {e}"))?;
    Ok(m.main.results().iter().map(|(n, _)| n.clone()).zip(results).collect())
}

/// Compares one result with what is expected: `|got - want| <= atol + rtol * |want|`, integers exactly.
pub fn compare(name: &str, got: &Tensor, want: &Tensor, t: Tolerance) -> Result<(), String> {
    if got.dtype != want.dtype || got.dims != want.dims {
        return Err(format!("output `{name}` is {}, expected {}", got.ty(), want.ty()));
    }
    for i in 0..want.count() {
        let (g, w) = (got.get(i), want.get(i));
        let ok = if want.dtype.is_float() {
            let (g, w) = (g.to_f64(), w.to_f64());
            g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= t.atol + t.rtol * w.abs()
        } else {
            g == w
        };
        if !ok {
            return Err(format!("output `{name}`, element {i} of {}: got {}, expected {}", want.ty(), g.to_f64(), w.to_f64()));
        }
    }
    Ok(())
}
