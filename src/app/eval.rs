//! `warpsmith eval`: the quality of a model on text and on tasks.

use crate::app::model::{Loaded, ModelTokenizer, load};
use crate::app::print;
use crate::cli::flags::warpsmith::{EvalArgs, STORED};
use crate::config::{DropoutRates, ModelConfig};
use crate::data::loader::{DataLoader, LoaderOptions, Packing, Sample};
use crate::eval::tasks::{self, Norm, Questions, Task, TaskFile};
use crate::eval::validation::{perplexity, validation_loss};
use crate::files;
use crate::hub;
use crate::model::activations::Recompute;
use crate::model::hooks::NoHooks;
use crate::model::{BatchShape, GPT2, ModelOptions};
use crate::params::frozen::Frozen;
use crate::report::progress::{Passing, Progress};
use crate::sharding::Sharding;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use std::path::Path;

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
    let questions = open_tasks(args, &tokenizer)?;
    for questions in &questions {
        if let Some(warning) = questions.check(&config)? {
            log::warn!("{warning}");
        }
    }
    let options = ModelOptions {
        B: shape.B,
        T,
        min_rows: questions.iter().map(|q| q.longest().min(config.maxT)).max().unwrap_or(0),
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
    for questions in &questions {
        answer(&mut loaded, questions, &mut results)?;
    }
    results.finish()
}

/// Reads the questions of all tasks, llm.c's HellaSwag first.
fn open_tasks(args: &EvalArgs, tokenizer: &ModelTokenizer) -> Result<Vec<Questions>> {
    let open = |task: Task, path: &Path| Questions::open(task, path, tokenizer.known()?);
    let hellaswag = args.hellaswag.as_deref().map(|path| hub::hellaswag_at(path, STORED));
    let mut all = Vec::new();
    if let Some(path) = hellaswag {
        all.push(open(Task::HellaSwagLlmc, &path)?);
    }
    for TaskFile { task, path } in &args.tasks {
        all.push(open(*task, path).context("--task")?);
    }
    Ok(all)
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

/// Prints and records the score on a task.
fn answer(
    Loaded { dev, model }: &mut Loaded<GPT2>,
    questions: &Questions,
    results: &mut Results,
) -> Result<()> {
    let task = questions.task;
    let mut progress = Progress::new(task.title(), questions.examples.len() as u64, "examples");
    let mut show = |done, _| progress.set(done as u64);
    let evaluation = tasks::evaluate(model, dev.as_mut(), &mut NoHooks, questions, (0, 1), &mut show)?;
    progress.finish();
    let score = evaluation.score();
    for line in score.lines(task).iter().rev() {
        results.print(format_args!("{line}\n"))?;
    }
    if evaluation.truncated > 0 {
        let examples = count(evaluation.truncated, "example");
        results.print(format_args!("{examples} cut at the start of the context, to fit the model\n"))?;
    }
    for (name, value) in score.measures(task) {
        results.summary.insert(format!("{}_{name}", task.key()), value.into());
    }
    for item in &evaluation.items {
        results.items += &(item_line(task, item).to_string() + "\n");
    }
    Ok(())
}

/// One example and the answer to it, for `-o`.
fn item_line(task: Task, item: &tasks::Item) -> serde_json::Value {
    let mut line = serde_json::json!({
        "task": task.name(), "index": item.index, "label": item.gold,
        "sum": item.sum_loss, "mean": item.avg_loss,
    });
    if task.is_greedy() {
        line["greedy"] = item.greedy.into();
    } else {
        line["pred"] = item.pred().into();
    }
    if task.norm() != Norm::None {
        line["pred_norm"] = item.pred_norm().into();
    }
    line
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
