//! Hugging Face folders with configs that ask for something else than their weights, or for what no recipe does.

use std::path::Path;

use serde_json::{Value as Json, json};
use transc_frontend::{FrontendError, ImportOptions, load};
use transc_ir::Module;
use transc_ir::diag::Fault;

/// Imports a folder of the tree with other fields in its config.
fn with(name: &str, fields: &[(&str, Json)]) -> Result<Module, FrontendError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/zoo").join(name);
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a config");
    let mut config: Json = serde_json::from_str(&text).expect("JSON");
    for (field, value) in fields {
        config[*field] = value.clone();
    }
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("it is written");
    std::fs::copy(folder.join("model.safetensors"), dir.path().join("model.safetensors")).expect("it is copied");
    load(dir.path(), &ImportOptions::default())
}

fn fails(name: &str, fields: &[(&str, Json)], fault: Fault, code: &str, gist: &str) {
    let e = with(name, fields).expect_err("it is refused");
    let [p] = e.problems.as_slice() else { panic!("{e}") };
    assert!(p.fault == fault && p.code == code && format!("{e}").contains(gist), "{e}");
}

#[test]
fn a_head_of_its_own_is_not_taken_from_the_embedding() {
    let words = json!(["GPT2LMHeadModel"]);
    let tied = with("gpt2-classes-hf", &[("architectures", words.clone())]).expect("the table stands in");
    assert_eq!(tied.main.results()[0].0, "logits");
    let untied = [("architectures", words), ("tie_word_embeddings", json!(false))];
    fails("gpt2-classes-hf", &untied, Fault::Invalid, "T0407", "`lm_head.weight` is missing");
    let fields = [("tie_word_embeddings", json!(false))];
    fails("gemma2-hf", &fields, Fault::Invalid, "T0407", "`lm_head.weight` is missing");
    fails("bert-words-hf", &fields, Fault::Invalid, "T0407", "`cls.predictions.decoder.weight` is missing");
}

#[test]
fn architectures_without_a_recipe_are_named() {
    let fields = [("architectures", json!(["BertForSolvingPuzzles"]))];
    fails("bert-words-hf", &fields, Fault::Unsupported, "T0401", "`BertForSolvingPuzzles` (model_type `bert`)");
    let fields = [("architectures", json!(["ViTForMaskedLM"]))];
    fails("vit-wide-hf", &fields, Fault::Unsupported, "T0401", "which has no importer");
    let fields = [("model_type", json!("abacus"))];
    fails("llama-hf", &fields, Fault::Unsupported, "T0401", "model_type `abacus`");
}

#[test]
fn variants_without_a_recipe_are_refused() {
    fails("falcon-groups-hf", &[("alibi", json!(true))], Fault::Unsupported, "T0401", "alibi");
    fails("bert-words-hf", &[("position_embedding_type", json!("relative_key"))], Fault::Unsupported, "T0401", "relative_key");
    fails("gemma2-hf", &[("use_bidirectional_attention", json!(true))], Fault::Unsupported, "T0401", "looks ahead");
    fails("opt-behind-hf", &[("layer_norm_elementwise_affine", json!(false))], Fault::Unsupported, "T0401", "without weights");
    fails("dinov2-gated-hf", &[("image_size", json!([28, 35]))], Fault::Unsupported, "T0401", "no squares");
}

#[test]
fn configs_that_do_not_fit_are_refused() {
    fails("mixtral-hf", &[("num_experts_per_tok", json!(5))], Fault::Invalid, "T0405", "takes 5 of 4 experts");
    fails("mixtral-hf", &[("num_local_experts", json!(5))], Fault::Invalid, "T0407", "asks for [5, 32]");
    fails("falcon-groups-hf", &[("num_kv_heads", json!(3))], Fault::Invalid, "T0405", "num_kv_heads");
    let short =
        json!({"rope_type": "longrope", "partial_rotary_factor": 0.75, "short_factor": [1.0], "long_factor": [1.0, 1.0, 1.0]});
    fails("phi3-long-hf", &[("rope_parameters", short)], Fault::Invalid, "T0405", "rope_scaling.short_factor");
    fails("phi3-long-hf", &[("hidden_size", json!(48))], Fault::Invalid, "T0405", "9 features, which are no pairs");
    fails("llama-long-hf", &[("num_key_value_heads", json!(3))], Fault::Invalid, "T0405", "does not divide the 4 heads");
    fails("gemma2-hf", &[("final_logit_softcapping", json!(-1))], Fault::Invalid, "T0405", "is not a positive number");
    fails("albert-words-hf", &[("embedding_size", json!(8))], Fault::Invalid, "T0407", "asks for [any, 8]");
    // A field that is absent has the value that it has in transformers, which the weights then do not fit.
    fails("bert-words-hf", &[("hidden_size", Json::Null)], Fault::Invalid, "T0407", "asks for [any, 768]");
}

#[test]
fn texts_are_as_long_as_the_table_of_places() {
    let seq = |name: &str| with(name, &[]).expect("it is imported").symbols.last().map(|(s, r)| (s.name().to_string(), r.max));
    assert_eq!(seq("roberta-spans-hf"), Some(("seq".into(), 62)));
    assert_eq!(seq("distilbert-choice-hf"), Some(("seq".into(), 64)));
    assert_eq!(seq("opt-behind-hf"), Some(("seq".into(), 64)));
}
