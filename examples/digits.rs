//! The demo: compile the digits model to a library, classify the held-out images with it, and show what came out.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use transc::runtime::{DType, Model, Session, SessionOptions, Tensor};
use transc::{Compiler, ir::interp::Tensor as Plain};

const SHOWN: [usize; 4] = [0, 7, 19, 42];
const SHADES: [char; 5] = [' ', '.', 'o', 'O', '@'];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = Path::new("examples/digits-vit");
    let clock = Instant::now();
    let module = transc::load(dir.join("model.onnx"))?;
    let compiled = Compiler::new().compile(&module)?;
    let library = std::env::temp_dir().join(format!("transc-digits-{}.so", std::process::id()));
    compiled.write_so(&library)?;
    let compile_ms = clock.elapsed().as_secs_f64() * 1e3;
    let size = std::fs::metadata(&library)?.len();
    let session = Session::new(Model::open(&library)?, SessionOptions::default())?;

    let arrays = transc_frontend::npz::read_file(&dir.join("heldout.npz"), &Default::default()).map_err(|p| p.to_string())?;
    let array = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t).ok_or(format!("no `{name}`"));
    let (pixels, images, labels) = (array("pixel_values")?, array("images")?, array("labels")?);
    let count = pixels.dims[0];
    let batch = Tensor::from_bytes(DType::F32, &pixels.dims, &pixels.data)?;
    let outputs = session.run(&[("pixel_values", batch.view())])?;
    let logits = outputs[0].1.to_vec::<f32>()?;
    let classes: Vec<usize> = logits.chunks(logits.len() / count).map(argmax).collect();
    let right = (0..count).filter(|i| classes[*i] as f64 == labels.get_f64(*i)).count();

    for i in SHOWN {
        println!("image {i}: label {}, predicted {}", labels.get_f64(i), classes[i]);
        show(images, i);
    }
    let latency = latency_ms(&session, pixels)?;
    println!("accuracy   {right} of {count} held-out images ({:.1} %)", right as f64 * 100.0 / count as f64);
    println!("latency    {latency:.3} ms for one image, median, {} threads", session.threads());
    println!("kernels    {} for {} launches", compiled.program.kernels.len(), compiled.program.launches.len());
    println!("fusion     {} tensor ops in {} launches", op_count(&module), compiled.program.launches.len());
    println!("artefact   {:.2} MB, compiled in {compile_ms:.0} ms", size as f64 / 1e6);
    println!();
    println!("next: ./target/release/transc inspect examples/digits-vit/model.onnx");
    println!("      ./target/release/transc compile examples/digits-vit/model.onnx -o digits_vit.so");
    println!("      ./target/release/transc opt examples/digits-vit/model.onnx --until fuse | less");
    std::fs::remove_file(&library)?;
    Ok(())
}

fn op_count(module: &transc::ir::Module) -> usize {
    module.main.node_count()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0)
}

/// An 8x8 image of grey values 0 to 16, two characters a pixel.
fn show(images: &Plain, i: usize) {
    for row in 0..8 {
        let line: String = (0..8)
            .flat_map(|column| {
                let grey = images.get_f64((i * 8 + row) * 8 + column);
                [SHADES[((grey / 16.0) * (SHADES.len() - 1) as f64).round() as usize]; 2]
            })
            .collect();
        println!("    {line}");
    }
}

fn latency_ms(session: &Session, pixels: &Plain) -> Result<f64, Box<dyn Error>> {
    let mut dims = pixels.dims.clone();
    let one = pixels.data.len() / dims[0];
    dims[0] = 1;
    let image = Tensor::from_bytes(DType::F32, &dims, &pixels.data[..one])?;
    let mut samples = Vec::new();
    for _ in 0..100 {
        let t = Instant::now();
        session.run(&[("pixel_values", image.view())])?;
        samples.push(t.elapsed().as_secs_f64() * 1e3);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
