//! A trained model, as commands read it; `warpsmith convert`.

use crate::app::{corpus, note, print};
use crate::checkpoint::{self, Adapter, FoundModel, ModelFile};
use crate::cli::flags::warpsmith::{ConvertArgs, NumberArgs};
use crate::config::{ModelConfig, may_be_gpt2};
use crate::data::imported;
use crate::data::tokenizer::{FILE_NAME, Tokenizer, TokenizerId};
use crate::device::open::DeviceOptions;
use crate::eval::tasks::{Questions, Task};
use crate::hub;
use crate::model::Weights;
use crate::ops::{Limits, Ops, plan_scratch};
use crate::report::progress::saying;
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

/// Reads the model at `path` and its tokenizer, and says which file that is.
pub(super) fn load(path: &Path) -> Result<(ModelFile, ModelTokenizer)> {
    let found = find(path)?;
    let model = saying("reading the model", false, || found.read())?;
    let tokenizer = ModelTokenizer::find(&found, &model.config)?;
    note(format_args!("model: {found}"));
    Ok((model, tokenizer))
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
        let mut found = Tokenizer::find_in(&folder)?;
        if let Some(tokenizer) = &found {
            ensure!(
                tokenizer.vocab_size() <= V,
                "{}: {} tokens, but the model knows {V}; it is not that of this model",
                folder.join(FILE_NAME).display(),
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
    let mut model = saying("reading the model", false, || found.read())?;
    if let Some(dir) = adapter {
        Adapter::read(dir, &model.config).context("--adapter")?.merge_into(&mut model);
    }
    let tokenizer = ModelTokenizer::find(&found, &model.config)?.found;
    if !force {
        checkpoint::ensure_same_files(output, &model, *dtype, tokenizer.as_ref())?;
    }
    match &tokenizer {
        Some(tokenizer) => checkpoint::export_model(output, &model, *dtype, tokenizer)?,
        None => {
            checkpoint::save_model(output, &model, *dtype)?;
            let folder = found.folder().display();
            log::warn!("{folder}: no {FILE_NAME}, so {} has no tokenizer beside it", output.display());
        }
    }
    print(format_args!("{}: {} parameters from {found}\n", output.display(), model.params.len()))?;
    Ok(())
}
