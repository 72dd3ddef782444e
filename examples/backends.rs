//! What each backend costs and gives: `cargo run --release --example backends [MODEL] [DIM=N]..`.
//!
//! Per backend the time to generate code, the time from module to first result, and a run; then a session in two tiers.

use std::time::Instant;

use transc::runtime::DType;
use transc::{Backend, Compiler, Session, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| "examples/digits-vit/model.onnx".into());
    let dims: Vec<(String, i64)> =
        args.filter_map(|a| a.split_once('=').map(|(n, v)| v.parse().map(|v| (n.to_string(), v)))).collect::<Result<_, _>>()?;
    let module = transc::load(&path)?;
    println!("{path}: code generation, first result (passes included), best of 20 runs, in ms");
    let ms = |t: Instant| t.elapsed().as_secs_f64() * 1e3;
    let mut inputs = Vec::new();
    for backend in Backend::built() {
        let clock = Instant::now();
        let compiled = Compiler::new().backend(backend).compile(&module)?;
        let codegen = compiled.phases.iter().find(|(n, _)| *n == "codegen").map_or(0.0, |(_, t)| t.as_secs_f64() * 1e3);
        let session = compiled.session(0)?;
        inputs = ones(&session, &dims)?;
        let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
        session.run(&views)?;
        let first = ms(clock);
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let clock = Instant::now();
            session.run(&views)?;
            best = best.min(ms(clock));
        }
        println!("{:<8} {codegen:>9.1} {first:>9.1} {best:>9.2}", backend.name());
    }
    let views: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let clock = Instant::now();
    let mut tiered = Compiler::new().tiered(&module, 0)?;
    let (backend, _) = tiered.run(&views)?;
    println!("tiered: first result after {:.1} ms from {backend}", ms(clock));
    tiered.finish()?;
    let swapped = ms(clock);
    println!("tiered: from {} after {swapped:.1} ms", tiered.run(&views)?.0);
    Ok(())
}

/// Inputs of ones at the dims of the command line, the smallest for others.
fn ones(session: &Session, dims: &[(String, i64)]) -> Result<Vec<(String, Tensor)>, transc::Error> {
    let value = |name: &str, min: i64| dims.iter().find(|(n, _)| n == name).map_or(min.max(1), |(_, v)| *v);
    let dims: Vec<(&str, i64)> = session.symbols().iter().map(|s| (s.name.as_str(), value(&s.name, s.min))).collect();
    let sizes = session.bind(&dims)?;
    let one = |(spec, dims): (&transc::runtime::TensorSpec, &Vec<usize>)| {
        let bytes: Vec<u8> = match spec.dtype {
            DType::F32 => 1f32.to_le_bytes().into(),
            d => [vec![1], vec![0; d.size_bytes() - 1]].concat(),
        };
        let data = bytes.repeat(dims.iter().product());
        Ok((spec.name.clone(), Tensor::from_bytes(spec.dtype, dims, &data)?))
    };
    session.inputs().iter().zip(&sizes.inputs).map(one).collect()
}
