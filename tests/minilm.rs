//! The trained MiniLM sentence encoder, where `./x models` has fetched it.

use crate::kit;

#[test]
fn one_session_serves_every_size_of_real_sentences() {
    let model = kit::root().join("models/minilm");
    if !model.join("model.safetensors").exists() {
        println!("skipped: the MiniLM weights are not here (./x models fetches them)");
        return;
    }
    let session = kit::jit(&model, 2).expect("MiniLM compiles");
    let data = kit::root().join("tests/data/minilm");
    for batch in [1, 4] {
        let inputs = kit::npz(&data.join(format!("inputs_b{batch}.npz")));
        let want = kit::npz(&data.join(format!("outputs_b{batch}.npz")));
        let got = kit::run(&session, &inputs).expect("MiniLM runs");
        assert_eq!(kit::outputs_differ(&got, &want, 0.0, 1e-4), None, "batch {batch}");
    }
}
