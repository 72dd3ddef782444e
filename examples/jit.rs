//! Compile a model in process and run it: `cargo run --release --example jit [model.onnx]`.

use transc::{Compiler, Tensor};

fn main() -> Result<(), transc::Error> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/digits-vit/model.onnx".into());
    let module = transc::load(path)?;
    let session = Compiler::new().compile(&module)?.session(2)?;

    let image = vec![0.0f32; 32 * 32];
    let x = Tensor::from_slice(&[1, 1, 32, 32], &image)?;
    for (name, output) in session.run(&[("pixel_values", x.view())])? {
        println!("{name}: {:?} = {:?}", output.shape(), output.to_vec::<f32>()?);
    }
    Ok(())
}
