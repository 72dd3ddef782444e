//! `transc compare`: two models on the same inputs.

use transc::ir::diag::Fault;

use super::Failure;
use super::args::{CompareArgs, ModelArgs};
use super::report::Progress;
use super::run::{check, print_differences, run_session};
use super::tensors::Difference;
use super::{source, tensors};

/// Runs the command.
pub fn run(a: &CompareArgs, quiet: bool) -> Result<(), Failure> {
    let inputs = tensors::read_inputs(&a.inputs)?;
    let mut progress = Progress::new(quiet || a.json);
    let mut results = Vec::new();
    for path in [&a.a, &a.b] {
        let model = ModelArgs { model: path.clone(), dims: Vec::new() };
        let session = source::open_session(&model, &a.target, None, a.threads, &mut progress)?;
        results.push(run_session(&session, &inputs)?);
    }
    let differences = check(&results[1], &results[0], a.tolerance);
    print_differences(&differences, a.json);
    if differences.iter().all(Difference::ok) { Ok(()) } else { Err(Failure::silent(Fault::Verify)) }
}
