//! Hugging Face model folders: `config.json` and safetensors.
//!
//! Inputs and outputs are named as in the model's `forward` in transformers, dims `batch` and `seq`. Nothing in the folder is executed;
//! Python files and `auto_map` entries are ignored. Outputs at padded positions are those of transformers with eager attention, except that in
//! causal models a padded query on the left, which sees no token, attends to the padding before it and not to all positions.

mod activations;
mod bert;
mod clip;
mod config;
mod gpt2;
mod layers;
mod llama;
mod rope;
mod vit;
mod weights;

use std::path::Path;
use std::sync::Arc;

use transc_ir::diag::{Diagnostic, Fault, Place};
use transc_ir::tensor::Builder;
use transc_ir::types::{DType, Dim, Symbol, SymbolRange, TensorType};
use transc_ir::{Func, Module, Value};

use crate::{FrontendError, ImportOptions, Problem};
use config::Config;
use layers::Layers;
use weights::Weights;

/// What goes wrong while importing a folder. The first structural problem ends the import, since later ones would follow from it.
pub(crate) type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Largest batch of the imported module's `batch` dim.
const MAX_BATCH: i64 = 4096;

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
    let mut module = Module::new(&name);
    let recipe = config.recipe()?;
    let mut func = Func::new("main");
    let mut consts = Arc::clone(&module.consts);
    let mut layers = Layers { b: Builder::new(&mut func, &mut consts), weights, prefix: String::new() };
    match recipe {
        Recipe::Bert(model) => bert::build(&mut layers, config, model)?,
        Recipe::Clip(model) => clip::build(&mut layers, config, model)?,
        Recipe::Gpt2(model) => gpt2::build(&mut layers, config, model)?,
        Recipe::Llama(model) => llama::build(&mut layers, config, model)?,
        Recipe::Vit(model) => vit::build(&mut layers, config, model)?,
    }
    let seq = config.max_seq();
    module.consts = consts;
    module.main = func;
    module.symbols.insert(Symbol::new("batch"), SymbolRange { min: 1, max: MAX_BATCH });
    if let Some(max) = seq {
        module.symbols.insert(Symbol::new("seq"), SymbolRange { min: 1, max });
    }
    Ok(module)
}

/// The architectures with a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipe {
    Bert(bert::Model),
    Clip(clip::Model),
    Gpt2(gpt2::Model),
    Llama(llama::Model),
    Vit(vit::Model),
}

/// A problem in a file of the folder.
pub(crate) fn problem(code: &'static str, fault: Fault, file: &str, message: impl Into<String>, help: &str) -> Box<Diagnostic> {
    let place = Place { file: file.into(), ..Place::default() };
    Box::new(Diagnostic { code, fault, message: message.into(), place: Some(place), help: help.into() })
}

/// `i64[batch, seq]`, the type of token inputs.
pub(crate) fn tokens() -> TensorType {
    TensorType::new(DType::I64, vec![Dim::sym("batch"), Dim::sym("seq")])
}

/// Declares an input.
pub(crate) fn input(layers: &mut Layers<'_>, name: &str, ty: TensorType) -> Value {
    layers.b.func.add_param(name, ty)
}
