//! Hugging Face model folders: `config.json` and safetensors.
//!
//! Inputs and outputs are named as in the model's `forward` in transformers, dims `batch` and `seq`, `choices` of answers, and `images` where
//! a batch of texts stands beside one of them. Nothing in the folder is executed; Python files and `auto_map` entries are ignored. Outputs at
//! padded positions are those of transformers with eager attention, except that in causal models a padded query on the left, which sees no
//! token, attends to the padding before it and not to all positions.

mod activations;
mod attention;
mod bert;
mod block;
mod buckets;
mod clip;
mod config;
mod gpt2;
mod heads;
mod layers;
mod llama;
mod members;
mod modernbert;
mod moe;
mod neox;
mod opt;
mod rope;
mod vision;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use transc_ir::diag::{Diagnostic, Fault, Place};
use transc_ir::tensor::Builder;
use transc_ir::types::Ranges;
use transc_ir::{Func, Module};

use crate::{FrontendError, ImportOptions, Problem};
use config::{Config, FILE};
use heads::Head;
use layers::Layers;
use weights::Weights;

/// What goes wrong while importing a folder. The first structural problem ends the import, since later ones would follow from it.
pub(crate) type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Builds the model of a config with its head.
type Recipe = fn(&mut Layers<'_>, &Config, Head) -> Result<()>;

/// The kinds of models as `model_type` names them, what people call them (parts of another have no name), and their recipes.
const FAMILIES: &[(&str, &str, Recipe)] = &[
    ("bert", "BERT", |l, c, h| bert::build(l, c, h, &bert::BERT)),
    ("roberta", "RoBERTa", |l, c, h| bert::build(l, c, h, &bert::ROBERTA)),
    ("xlm-roberta", "XLM-RoBERTa", |l, c, h| bert::build(l, c, h, &bert::ROBERTA)),
    ("camembert", "CamemBERT", |l, c, h| bert::build(l, c, h, &bert::ROBERTA)),
    ("distilbert", "DistilBERT", |l, c, h| bert::build(l, c, h, &bert::DISTIL)),
    ("electra", "ELECTRA", |l, c, h| bert::build(l, c, h, &bert::ELECTRA)),
    ("albert", "ALBERT", |l, c, h| bert::build(l, c, h, &bert::ALBERT)),
    ("mpnet", "MPNet", |l, c, h| bert::build(l, c, h, &bert::MPNET)),
    ("modernbert", "ModernBERT", modernbert::build),
    ("vit", "ViT", |l, c, h| vision::build(l, c, h, &vision::VIT)),
    ("deit", "DeiT", |l, c, h| vision::build(l, c, h, &vision::DEIT)),
    ("dinov2", "DINOv2", |l, c, h| vision::build(l, c, h, &vision::DINO)),
    ("dinov2_with_registers", "DINOv2 with registers", |l, c, h| vision::build(l, c, h, &vision::DINO_REGISTERS)),
    ("clip", "CLIP", |l, c, h| clip::build(l, c, h, &clip::CLIP)),
    ("clip_text_model", "", |l, c, h| clip::build_text(l, c, h, &clip::CLIP)),
    ("clip_vision_model", "", |l, c, h| vision::build(l, c, h, &vision::CLIP)),
    ("siglip", "SigLIP", |l, c, h| clip::build(l, c, h, &clip::SIGLIP)),
    ("siglip_text_model", "", |l, c, h| clip::build_text(l, c, h, &clip::SIGLIP)),
    ("siglip_vision_model", "", |l, c, h| vision::build(l, c, h, &vision::SIGLIP)),
    ("gpt2", "GPT-2", gpt2::build),
    ("opt", "OPT", opt::build),
    ("gpt_neox", "GPT-NeoX", |l, c, h| neox::build(l, c, h, &neox::NEOX)),
    ("falcon", "Falcon", |l, c, h| neox::build(l, c, h, &neox::FALCON)),
    ("llama", "Llama", |l, c, h| llama::build(l, c, h, &members::LLAMA)),
    ("mistral", "Mistral", |l, c, h| llama::build(l, c, h, &members::MISTRAL)),
    ("mixtral", "Mixtral", |l, c, h| llama::build(l, c, h, &members::MIXTRAL)),
    ("qwen2", "Qwen2", |l, c, h| llama::build(l, c, h, &members::QWEN2)),
    ("qwen2_moe", "Qwen2-MoE", |l, c, h| llama::build(l, c, h, &members::QWEN2_MOE)),
    ("qwen3", "Qwen3", |l, c, h| llama::build(l, c, h, &members::QWEN3)),
    ("qwen3_moe", "Qwen3-MoE", |l, c, h| llama::build(l, c, h, &members::QWEN3_MOE)),
    ("gemma", "Gemma", |l, c, h| llama::build(l, c, h, &members::GEMMA)),
    ("gemma2", "Gemma 2", |l, c, h| llama::build(l, c, h, &members::GEMMA2)),
    ("gemma3_text", "Gemma 3", |l, c, h| llama::build(l, c, h, &members::GEMMA3)),
    ("phi3", "Phi-3", |l, c, h| llama::build(l, c, h, &members::PHI3)),
];

/// Reads a folder.
///
/// # Errors
/// A missing or invalid file (T04xx), or an architecture without a recipe (T0401).
pub(crate) fn load(dir: &Path, options: &ImportOptions) -> std::result::Result<Module, FrontendError> {
    let module = Config::read(dir).and_then(|config| build(dir, &config, Weights::open(dir)?));
    let mut module = module.map_err(|d| {
        let place = d.place.unwrap_or_default();
        let file = dir.join(&place.file);
        FrontendError::one(&file, Problem::new(d.code, d.fault, d.message).help(d.help))
    })?;
    options.apply_dims(&mut module).map_err(|p| FrontendError::one(dir, p))?;
    Ok(module)
}

fn build(dir: &Path, config: &Config, weights: Weights) -> Result<Module> {
    let name = dir.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let family = FAMILIES.iter().find(|(kind, ..)| *kind == config.text("model_type"));
    let ((.., recipe), head) = family.zip(Head::of(config.architecture())).ok_or_else(|| no_recipe(config))?;
    let mut module = Module::new(&name);
    let mut func = Func::new("main");
    let mut consts = Arc::clone(&module.consts);
    let mut layers = Layers {
        b: Builder::new(&mut func, &mut consts),
        weights,
        prefix: String::new(),
        round: String::new(),
        symbols: Ranges::new(),
        known: BTreeMap::new(),
    };
    recipe(&mut layers, config, head)?;
    module.symbols = layers.symbols;
    module.consts = consts;
    module.main = func;
    Ok(module)
}

/// The error for an architecture without a recipe.
pub(crate) fn no_recipe(config: &Config) -> Box<Diagnostic> {
    let (architecture, model_type) = (config.architecture(), config.text("model_type"));
    let message = format!("describes `{architecture}` (model_type `{model_type}`), which has no importer");
    let titles: Vec<&str> = FAMILIES.iter().map(|(_, title, _)| *title).filter(|t| !t.is_empty()).collect();
    let help = format!("folders of these can be imported: {}; export other models to ONNX", titles.join(", "));
    problem("T0401", Fault::Unsupported, FILE, message, &help)
}

/// A problem in a file of the folder.
pub(crate) fn problem(code: &'static str, fault: Fault, file: &str, message: impl Into<String>, help: &str) -> Box<Diagnostic> {
    let place = Place { file: file.into(), ..Place::default() };
    Box::new(Diagnostic { code, fault, message: message.into(), place: Some(place), help: help.into() })
}
