//! `warpsmith eval` and `convert`: uses of a trained model.

use crate::app::{corpus, note, print};
use crate::checkpoint::{self, Adapter, FoundModel, ModelFile};
use crate::cli::flags::warpsmith::{ConvertArgs, EvalArgs, NumberArgs, STORED};
use crate::config::{DropoutRates, ModelConfig, may_be_gpt2};
use crate::data::imported;
use crate::data::loader::{DataLoader, LoaderOptions, Packing, Sample};
use crate::data::tokenizer::{FILE_NAME, Tokenizer, TokenizerId};
use crate::device::open::DeviceOptions;
use crate::eval::hellaswag::{self, HellaSwag};
use crate::eval::validation::{perplexity, validation_loss};
use crate::files;
use crate::hub;
use crate::model::activations::Recompute;
use crate::model::hooks::NoHooks;
use crate::model::{BatchShape, GPT2, ModelOptions, Weights};
use crate::ops::{Limits, Ops, plan_scratch};
use crate::params::frozen::Frozen;
use crate::report::progress::{Passing, Progress, saying};
use crate::sharding::Sharding;
use crate::tensor::{Dtype, MemoryPlan};
use crate::words::count;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// A model on a device, with its weights in place.
pub(super) struct Loaded<M> {
    pub dev: Box<dyn Ops>,
    pub model: M,
}

impl<M> Loaded<M> {
    /// Opens the device and uploads the weights of `file`. `plan` lays out the model for an element
    /// type, and returns it with its weights and the largest operations that it asks of the device.
    pub fn open(
        args: &NumberArgs,
        file: ModelFile,
        plan: impl FnOnce(Dtype, &mut MemoryPlan) -> (M, Weights, Limits),
    ) -> Result<Self> {
        let mut dev =
            DeviceOptions::new(args.device, args.dtype.on(args.device, None), args.threads).open()?;
        let mut memory = MemoryPlan::new();
        let (model, weights, limits) = plan(dev.float_dtype(), &mut memory);
        plan_scratch(dev.as_ref(), &[limits], &mut memory)?;
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
    fn check(&self, shards: TokenizerId, flag: &str) -> Result<()> {
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

pub fn eval(args: &EvalArgs) -> Result<()> {
    let (file, tokenizer) = load(&args.model)?;
    let config = file.config;
    let T = args.sequence_length.unwrap_or(config.maxT);
    config.check_batch(args.batch_size, T)?;
    let shape = BatchShape::new(args.batch_size, T);
    let loader = args.val.as_deref().map(|pattern| open_validation(pattern, shape, &config)).transpose()?;
    if let Some(loader) = &loader {
        tokenizer.check(loader.tokenizer(), "-j/--val")?;
    }
    let open = |path: &Path| HellaSwag::open(hub::hellaswag_at(path, STORED), tokenizer.known()?);
    let questions = args.hellaswag.as_deref().map(open).transpose()?;
    if let Some(warning) = questions.as_ref().map(|q| q.check(&config)).transpose()?.flatten() {
        log::warn!("{warning}");
    }
    let options = ModelOptions {
        B: shape.B,
        T,
        min_rows: questions.as_ref().map_or(0, |q| q.longest().min(config.maxT)),
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes: 64 << 20,
        sharding: Sharding::NONE,
        frozen: Frozen::default(),
    };
    let mut loaded = Loaded::open(&args.numbers, file, |dtype, plan| {
        let model = GPT2::plan_for_evaluation(&config, &options, dtype, plan);
        let (weights, limits) = (model.weights.clone(), model.limits());
        (model, weights, limits)
    })?;

    let mut results = Results { output: args.output.as_deref(), ..Results::default() };
    if let Some(loader) = loader {
        validate(&mut loaded, loader, shape, args.max_batches, &mut results)?;
    }
    if let Some(questions) = questions {
        answer_hellaswag(&mut loaded, &questions, &mut results)?;
    }
    results.finish()
}

/// Results, printed as they come and written to the file of `-o` at the end.
#[derive(Default)]
struct Results<'a> {
    output: Option<&'a Path>,
    /// One line per example.
    items: String,
    summary: serde_json::Map<String, serde_json::Value>,
    /// The first error of standard output, kept until the file is written.
    unprinted: Option<anyhow::Error>,
}

impl Results<'_> {
    /// Prints a result. Where standard output fails, the evaluation goes on for the file of `-o`.
    fn print(&mut self, text: impl std::fmt::Display) -> Result<()> {
        let printed = print(text);
        if self.output.is_none() {
            return printed;
        }
        if let Err(error) = printed {
            self.unprinted.get_or_insert(error);
        }
        Ok(())
    }

    /// Writes the file.
    fn finish(self) -> Result<()> {
        if let Some(path) = self.output {
            let summary = serde_json::to_string(&self.summary)?;
            files::write(path, |out| Ok(writeln!(out, "{}{summary}", self.items)?))?;
        }
        self.unprinted.map_or(Ok(()), Err)
    }
}

/// Prints and records the validation loss over at most `max_batches` batches.
fn validate(
    Loaded { dev, model }: &mut Loaded<GPT2>,
    mut loader: DataLoader,
    shape: BatchShape,
    max_batches: Option<usize>,
    results: &mut Results,
) -> Result<()> {
    let split = loader.batches_per_epoch();
    let batches = max_batches.map(|batches| batches.min(split));
    let mut progress = Passing::new("validation", "batches", false);
    let show = &mut |done, total| progress.show(done, total);
    let loss = validation_loss(model, dev.as_mut(), &mut NoHooks, &mut loader, shape, batches, show)?;
    drop(progress);
    ensure!(loss.is_finite(), "the model's loss is {loss}, not finite; it has diverged or is damaged");
    results.summary.insert("val_loss".into(), loss.into());
    results.summary.insert("val_perplexity".into(), perplexity(loss).into());
    results.print(format_args!("val loss {loss:.6}, perplexity {:.4}\n", perplexity(loss)))
}

/// Prints and records the accuracy on HellaSwag.
fn answer_hellaswag(
    Loaded { dev, model }: &mut Loaded<GPT2>,
    questions: &HellaSwag,
    results: &mut Results,
) -> Result<()> {
    let mut progress = Progress::new("HellaSwag", questions.examples.len() as u64, "examples");
    let mut show = |done, _| progress.set(done as u64);
    let evaluation = hellaswag::evaluate(model, dev.as_mut(), &mut NoHooks, questions, (0, 1), &mut show)?;
    progress.finish();
    let score = evaluation.score();
    let (acc_norm, acc) = (score.acc_norm(), score.acc());
    results
        .print(format_args!("HellaSwag acc_norm {}/{} = {acc_norm:.4}\n", score.correct_norm, score.total))?;
    results.print(format_args!("HellaSwag acc      {}/{} = {acc:.4}\n", score.correct, score.total))?;
    if evaluation.truncated > 0 {
        let examples = count(evaluation.truncated, "example");
        results.print(format_args!("{examples} cut at the start of the context, to fit the model\n"))?;
    }
    results.summary.insert("hellaswag_acc_norm".into(), acc_norm.into());
    results.summary.insert("hellaswag_acc".into(), acc.into());
    for item in &evaluation.items {
        results.items += &(item_line(item).to_string() + "\n");
    }
    Ok(())
}

/// One example and the answer to it, for `-o`.
fn item_line(item: &hellaswag::Item) -> serde_json::Value {
    serde_json::json!({
        "index": item.index, "label": item.label, "sum": item.sum_loss, "mean": item.avg_loss,
        "pred": item.pred(), "pred_norm": item.pred_norm(),
    })
}

fn open_validation(pattern: &str, shape: BatchShape, config: &ModelConfig) -> Result<DataLoader> {
    let BatchShape { B, T, .. } = shape;
    let V = config.V;
    DataLoader::open(LoaderOptions {
        pattern,
        flag: "--val",
        B,
        T,
        rank: 0,
        num_processes: 1,
        sample: Sample::Batch,
        shuffle: false,
        packing: Packing::default(),
        V,
    })
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
        let questions = HellaSwag::open(input, &Tokenizer::open(&args.tokenizer).context("--tokenizer")?)?;
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
