//! A trained model, as commands read it; `warpsmith convert`.

use crate::app::{corpus, note, print};
use crate::checkpoint::{self, Adapter, FoundModel, ModelFile, gguf};
use crate::cli::flags::warpsmith::{ConvertArgs, NumberArgs};
use crate::config::{ModelConfig, may_be_gpt2};
use crate::data::imported;
use crate::data::tokenizer::{FILE_NAME, Tokenizer, TokenizerId};
use crate::device::open::{DeviceOptions, start_threads};
use crate::eval::tasks::{Questions, Task};
use crate::hub;
use crate::model::Weights;
use crate::model::decode::Decoder;
use crate::ops::{Limits, Ops, plan_scratch};
use crate::params::frozen::Frozen;
use crate::report::progress::saying;
use crate::sharding::Sharding;
use crate::tensor::{Dtype, MemoryPlan};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// A model on a device, with its weights in place.
pub(super) struct Loaded<M> {
    pub dev: Box<dyn Ops>,
    pub model: M,
}

impl<M> Loaded<M> {
    /// Opens the device and uploads the weights of `file`. `plan` lays out the model for an element
    /// type, and returns it with its weights and the largest operations that its parts ask of the
    /// device.
    pub fn open(
        args: &NumberArgs,
        file: ModelFile,
        plan: impl FnOnce(Dtype, &mut MemoryPlan) -> (M, Weights, Vec<Limits>),
    ) -> Result<Self> {
        let mut dev =
            DeviceOptions::new(args.device, args.dtype.on(args.device, None), args.threads).open()?;
        let mut memory = MemoryPlan::new();
        let (model, weights, limits) = plan(dev.float_dtype(), &mut memory);
        plan_scratch(dev.as_ref(), &limits, &mut memory)?;
        dev.allocate(&memory)?;
        weights.params.upload(dev.as_mut(), 0, &file.params)?;
        Ok(Loaded { dev, model })
    }
}

/// Opens a model to continue texts with, as long as its positions reach.
pub(super) fn open_decoder(args: &NumberArgs, file: ModelFile) -> Result<Loaded<Decoder>> {
    let config = file.config;
    Loaded::open(args, file, |dtype, plan| {
        let weights = Weights::plan(&config, dtype, Sharding::NONE, &Frozen::default(), plan);
        let decoder = Decoder::plan(&weights, config.maxT, plan);
        let limits = vec![decoder.limits()];
        (decoder, weights, limits)
    })
}

/// Reads the model at `path`, with the adapters in the folder `adapter` merged into it, and its
/// tokenizer, and says which files these are.
pub(super) fn load(
    path: &Path,
    adapter: Option<&Path>,
    args: &NumberArgs,
) -> Result<(ModelFile, ModelTokenizer)> {
    // Adapters are multiplied before there is a device.
    start_threads(args.threads).context("--threads")?;
    let found = find(path)?;
    let model = read(&found, adapter)?;
    let tokenizer = ModelTokenizer::find(&found, &model.config)?;
    let merged = adapter.map_or(String::new(), |dir| format!(", with the adapters in {}", dir.display()));
    note(format_args!("model: {found}{merged}"));
    Ok((model, tokenizer))
}

/// Reads a model, and merges the adapters in the folder `adapter` into it.
fn read(found: &FoundModel, adapter: Option<&Path>) -> Result<ModelFile> {
    let mut model = saying("reading the model", false, || found.read())?;
    if let Some(dir) = adapter {
        Adapter::read(dir, &model.config).context("--adapter")?.merge_into(&mut model);
    }
    Ok(model)
}

/// The tokenizer of a model: that beside it, or GPT-2's if it has GPT-2's vocabulary, padded or
/// not.
pub(super) struct ModelTokenizer {
    folder: PathBuf,
    V: usize,
    found: Option<Tokenizer>,
}

impl ModelTokenizer {
    fn find(model: &FoundModel, &ModelConfig { V, .. }: &ModelConfig) -> Result<Self> {
        let folder = model.folder().to_owned();
        let mut found = model.tokenizer()?;
        if let Some(tokenizer) = &found {
            ensure!(
                tokenizer.vocab_size() <= V,
                "{}: {} tokens, but the model knows {V}; it is not that of this model",
                tokenizer.name(),
                tokenizer.vocab_size()
            );
        } else if may_be_gpt2(V) {
            found = Some(Tokenizer::gpt2());
        }
        Ok(ModelTokenizer { folder, V, found })
    }

    /// The tokenizer, for texts.
    ///
    /// # Errors
    /// One line, if it is not known.
    pub fn known(&self) -> Result<&Tokenizer> {
        self.found.as_ref().with_context(|| {
            format!(
                "{}: the tokenizer of the model, of {} tokens, is unknown; put its {FILE_NAME} there",
                self.folder.display(),
                self.V
            )
        })
    }

    /// Refuses shards of another tokenizer.
    pub fn check(&self, shards: TokenizerId, flag: &str) -> Result<()> {
        match &self.found {
            Some(tokenizer) => tokenizer.ensure_is(shards, flag),
            // Shards of others do not name their tokenizer.
            None => {
                ensure!(
                    shards == TokenizerId::GPT2 || shards.vocab_size as usize <= self.V,
                    "{flag}: tokens of the tokenizer {shards}, but the model knows {} tokens",
                    self.V
                );
                Ok(())
            }
        }
    }
}

/// Finds the model at `path`, or where there is nothing, the model of the hub that has this name.
pub(super) fn find(path: &Path) -> Result<FoundModel> {
    let name = path.to_str().filter(|name| hub::is_model_name(name) && !path.exists());
    let folder = name.map(|name| hub::model(name, 0)).transpose()?;
    checkpoint::find_model(folder.as_deref().unwrap_or(path))
}

pub fn convert(args: &ConvertArgs) -> Result<()> {
    let ConvertArgs { input, output, dtype, force, adapter, .. } = args;
    checkpoint::ensure_free(output, *force)?;
    let is_npy = imported::is_npy(input) || output.extension().is_some_and(|end| end == "npy");
    let is_model = !args.raw_tokens && !is_npy && !args.is_hellaswag();
    ensure!(is_model || adapter.is_none(), "--adapter: expected a model as IN, to merge the adapters into");
    if args.raw_tokens || is_npy {
        return corpus::convert_tokens(args);
    }
    if args.is_hellaswag() {
        let tokenizer = Tokenizer::open(&args.tokenizer).context("--tokenizer")?;
        let questions = Questions::open(Task::HellaSwagLlmc, input, &tokenizer)?;
        questions.write_bin(output)?;
        print(format_args!("{}: {} examples\n", output.display(), questions.examples.len()))?;
        return Ok(());
    }
    let found = find(input)?;
    let model = read(&found, adapter.as_deref())?;
    let tokenizer = ModelTokenizer::find(&found, &model.config)?;
    if gguf::is_named(output) {
        gguf::write(output, &model, *dtype, tokenizer.known()?)?;
    } else {
        write_model(args, &model, tokenizer.found.as_ref(), &found)?;
    }
    print(format_args!("{}: {} parameters from {found}\n", output.display(), model.params.len()))
}

/// Writes a model in a format that has its tokenizer in files beside it.
fn write_model(
    args: &ConvertArgs,
    model: &ModelFile,
    tokenizer: Option<&Tokenizer>,
    found: &FoundModel,
) -> Result<()> {
    let (output, dtype) = (&args.output, args.float_dtype()?);
    if !args.force {
        checkpoint::ensure_same_files(output, model, dtype, tokenizer)?;
    }
    match tokenizer {
        Some(tokenizer) => checkpoint::export_model(output, model, dtype, tokenizer),
        None => {
            checkpoint::save_model(output, model, dtype)?;
            let folder = found.folder().display();
            log::warn!("{folder}: no {FILE_NAME}, so {} has no tokenizer beside it", output.display());
            Ok(())
        }
    }
}
