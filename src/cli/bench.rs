//! `transc bench`: latency of one model at one size.

use std::time::Instant;

use serde_json::json;
use transc::runtime::{Session, Tensor};

use super::Failure;
use super::args::BenchArgs;
use super::report::{Progress, clean};
use super::{source, tensors};

/// Runs the command.
pub fn run(a: &BenchArgs, quiet: bool) -> Result<(), Failure> {
    let mut progress = Progress::new(quiet || a.json);
    let session = source::open_session(&a.model, &a.target, a.device, a.threads, &mut progress)?;
    let inputs = if a.inputs.is_empty() { random_inputs(&session, a)? } else { read(&session, a)? };
    let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let once = || session.run(&views).map(drop).map_err(|e| Failure::from(transc::Error::from(e)));
    for _ in 0..a.warmup.max(1) {
        once()?;
    }
    let mut samples = Vec::new();
    let start = Instant::now();
    loop {
        let done = match a.duration {
            Some(limit) => start.elapsed().as_secs_f64() >= limit,
            None => samples.len() >= a.iters.max(1),
        };
        if done && !samples.is_empty() {
            break;
        }
        let t = Instant::now();
        once()?;
        samples.push(t.elapsed().as_secs_f64() * 1e3);
    }
    samples.sort_by(f64::total_cmp);
    let dims: Vec<String> = inputs.iter().map(|(n, t)| format!("{}{:?}", clean(n), t.shape())).collect();
    let at = |q: f64| samples[((samples.len() - 1) as f64 * q).round() as usize];
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    if a.json {
        source::print_json(&json!({
            "schema_version": 1,
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "min_ms": samples[0], "mean_ms": mean,
            "iters": samples.len(), "threads": session.threads(), "dims": dims,
        }));
    } else {
        source::print_text(&format!(
            "{}\np50 {:.3} ms   p90 {:.3} ms   p99 {:.3} ms   min {:.3} ms   mean {mean:.3} ms   ({} runs, {} threads)\n",
            dims.join(" "),
            at(0.5),
            at(0.9),
            at(0.99),
            samples[0],
            samples.len(),
            session.threads()
        ));
    }
    if a.profile {
        profile(&session, &views)?;
    }
    Ok(())
}

fn profile(session: &Session, views: &[(&str, transc::TensorView<'_>)]) -> Result<(), Failure> {
    let launches = session.profile_run(views).map_err(transc::Error::from)?;
    let total: u64 = launches.iter().map(|(_, ns)| ns).sum();
    let mut text = String::new();
    for (node, ns) in launches {
        text.push_str(&format!(
            "{:>9.1} us  {:>5.1} %  {}\n",
            ns as f64 / 1e3,
            ns as f64 * 100.0 / total.max(1) as f64,
            clean(&node)
        ));
    }
    source::print_text(&text);
    Ok(())
}

fn read(session: &Session, a: &BenchArgs) -> Result<Vec<(String, Tensor)>, Failure> {
    let known: Vec<&str> = session.inputs().iter().map(|s| s.name.as_str()).collect();
    let all = tensors::read_inputs(&a.inputs)?;
    all.iter().filter(|(n, _)| known.contains(&n.as_str())).map(|(n, t)| Ok((n.clone(), tensors::to_runtime(t)?))).collect()
}

/// Inputs of the sizes of `--dim` (1 for other dims): floats from a fixed pseudo-random sequence in [-1, 1), integers all 1, which is a valid
/// token, segment and mask entry.
fn random_inputs(session: &Session, a: &BenchArgs) -> Result<Vec<(String, Tensor)>, Failure> {
    let dims: Vec<(&str, i64)> = session
        .symbols()
        .iter()
        .map(|s| (s.name.as_str(), a.model.dims.iter().find(|d| d.name == s.name).map_or(s.min.max(1), |d| d.max)))
        .collect();
    let sizes = session.bind(&dims).map_err(transc::Error::from)?;
    let mut seed = 1u32;
    let mut out = Vec::new();
    for (spec, dims) in session.inputs().iter().zip(&sizes.inputs) {
        let count: usize = dims.iter().product();
        let data: Vec<u8> = if spec.dtype == transc::runtime::DType::F32 {
            (0..count)
                .flat_map(|_| {
                    {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (f64::from(seed) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
                    }
                    .to_le_bytes()
                })
                .collect()
        } else {
            let mut one = vec![0u8; spec.dtype.size_bytes()];
            one[0] = 1;
            one.repeat(count)
        };
        let t = Tensor::from_bytes(spec.dtype, dims, &data).map_err(transc::Error::from)?;
        out.push((spec.name.clone(), t));
    }
    Ok(out)
}
