//! `warpsmith eval`: the quality of a model on text and on tasks.

use crate::app::model::{Loaded, ModelTokenizer, load};
use crate::app::print;
use crate::checkpoint::ModelFile;
use crate::cli::flags::warpsmith::{EvalArgs, STORED};
use crate::config::{DropoutRates, ModelConfig};
use crate::data::loader::{DataLoader, LoaderOptions, Packing, Sample};
use crate::data::tokenizer::Tokenizer;
use crate::eval::generated::{Prompt, Prompts, Rouge, bleu, rouge};
use crate::eval::tasks::{self, Norm, Questions, Task, TaskFile};
use crate::eval::text::Text;
use crate::eval::validation::{perplexity, validation_loss};
use crate::files;
use crate::hub;
use crate::model::activations::Recompute;
use crate::model::decode::Decoder;
use crate::model::hooks::NoHooks;
use crate::model::{BatchShape, GPT2, ModelOptions};
use crate::params::frozen::Frozen;
use crate::report::progress::{Passing, Progress};
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use crate::sharding::Sharding;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// The two forms of a model that evaluations need; both use the same weights.
struct Forms {
    model: GPT2,
    /// Only for text to write.
    decoder: Option<Decoder>,
}

type Evaluated = Loaded<Forms>;

/// All that is to be measured.
struct Inputs {
    loader: Option<DataLoader>,
    text: Option<Text>,
    questions: Vec<Questions>,
    prompts: Option<Prompts>,
}

pub fn eval(args: &EvalArgs) -> Result<()> {
    let (file, tokenizer) = load(&args.model, args.adapter.as_deref(), &args.numbers)?;
    let config = file.config;
    let T = args.sequence_length.unwrap_or(config.maxT);
    config.check_batch(args.batch_size, T)?;
    let shape = BatchShape::new(args.batch_size, T);
    let stride = args.stride.unwrap_or(T);
    ensure!(stride <= T, "--stride: expected at most -t {T}, the tokens of a window, found {stride}");
    let inputs = Inputs::open(args, shape, &config, &tokenizer)?;
    let mut loaded = open_model(args, file, shape, &inputs)?;

    let mut results = Results { output: args.output.as_deref(), ..Results::default() };
    if let Some(loader) = inputs.loader {
        validate(&mut loaded, loader, shape, args.max_batches, &mut results)?;
    }
    if let Some(text) = &inputs.text {
        score_text(&mut loaded, text, (T, stride), &mut results)?;
    }
    for questions in &inputs.questions {
        answer(&mut loaded, questions, &mut results)?;
    }
    if let Some(prompts) = &inputs.prompts {
        let max_new = args.max_tokens.unwrap_or(EvalArgs::MAX_TOKENS);
        write_texts(&mut loaded, prompts, tokenizer.known()?, max_new, &mut results)?;
    }
    results.finish()
}

impl Inputs {
    fn open(
        args: &EvalArgs,
        shape: BatchShape,
        config: &ModelConfig,
        tokenizer: &ModelTokenizer,
    ) -> Result<Self> {
        let loader =
            args.val.as_deref().map(|pattern| open_validation(pattern, shape, config)).transpose()?;
        if let Some(loader) = &loader {
            tokenizer.check(loader.tokenizer(), "-j/--val")?;
        }
        let text = |path: &PathBuf| Text::open(path, tokenizer.known()?).context("--text");
        let text = args.text.as_ref().map(text).transpose()?;
        let questions = open_tasks(args, tokenizer)?;
        for questions in &questions {
            if let Some(warning) = questions.check(config)? {
                log::warn!("{warning}");
            }
        }
        let prompts =
            args.generate.as_ref().map(|path| Prompts::open(path).context("--generate")).transpose()?;
        Ok(Inputs { loader, text, questions, prompts })
    }
}

/// Opens the device with buffers for all that is to be measured.
fn open_model(args: &EvalArgs, file: ModelFile, shape: BatchShape, inputs: &Inputs) -> Result<Evaluated> {
    let config = file.config;
    let longest = inputs.questions.iter().map(|q| q.longest().min(config.maxT)).max();
    let options = ModelOptions {
        B: shape.B,
        T: shape.T,
        min_rows: longest.unwrap_or(0),
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes: 64 << 20,
        sharding: Sharding::NONE,
        frozen: Frozen::default(),
    };
    Loaded::open(&args.numbers, file, |dtype, plan| {
        let model = GPT2::plan_for_evaluation(&config, &options, dtype, plan);
        let weights = model.weights.clone();
        let decoder = inputs.prompts.as_ref().map(|_| Decoder::plan(&weights, config.maxT, plan));
        let limits = [model.limits()].into_iter().chain(decoder.as_ref().map(Decoder::limits)).collect();
        (Forms { model, decoder }, weights, limits)
    })
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
    Loaded { dev, model: Forms { model, .. } }: &mut Evaluated,
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

/// Prints and records perplexity and bits per byte of a text.
fn score_text(
    Loaded { dev, model: Forms { model, .. } }: &mut Evaluated,
    text: &Text,
    windows: (usize, usize),
    results: &mut Results,
) -> Result<()> {
    let mut progress = Passing::new("text", "windows", false);
    let show = &mut |done, total| progress.show(done, total);
    let score = text.score(model, dev.as_mut(), windows, show)?;
    drop(progress);
    let [(_, perplexity), (_, bits), _, (_, per_word)] = score.measures();
    results.print(format_args!(
        "text perplexity {perplexity:.4} per token, {per_word:.4} per word; {bits:.4} bits per byte; {}, {}\n",
        count(score.tokens, "token"),
        count(score.bytes, "byte")
    ))?;
    for (name, value) in score.measures() {
        results.summary.insert(format!("text_{name}"), value.into());
    }
    results.summary.insert("text_tokens".into(), score.tokens.into());
    results.summary.insert("text_bytes".into(), score.bytes.into());
    Ok(())
}

/// Continues each prompt greedily; prints and records BLEU and ROUGE.
fn write_texts(
    Loaded { dev, model: Forms { decoder, .. } }: &mut Evaluated,
    Prompts { path, prompts }: &Prompts,
    tokenizer: &Tokenizer,
    max_new: usize,
    results: &mut Results,
) -> Result<()> {
    let decoder = decoder.as_mut().expect("planned where there are prompts");
    let mut sampler = Sampler::new(SamplerOptions { temperature: 0.0, top_k: None, top_p: None, seed: 0 })?;
    let mut progress = Progress::new("writing", prompts.len() as u64, "texts");
    let (mut texts, mut scores) = (Vec::new(), Vec::new());
    for (index, Prompt { prompt, references }) in prompts.iter().enumerate() {
        let (eot, tokens) = (tokenizer.eot(), tokenizer.encode(prompt));
        let what = Continuation { prompt: &tokens, eot, max_new, kv_cache: true };
        let mut written = Vec::new();
        let keep = &mut |token| {
            written.push(token);
            Ok(())
        };
        generate(dev.as_mut(), &mut NoHooks, decoder, &mut sampler, what, keep)
            .with_context(|| format!("{}: prompt {}", path.display(), index + 1))?;
        let text = String::from_utf8_lossy(&tokenizer.decode_bytes(&written)).trim().to_owned();
        let score = rouge(&text, references);
        let line = serde_json::json!({
            "task": "generate", "index": index, "prompt": prompt, "prediction": text,
            "rouge1": score.rouge1, "rouge2": score.rouge2, "rougeL": score.rouge_l,
        });
        results.items += &(line.to_string() + "\n");
        texts.push(text);
        scores.push(score);
        progress.set(index as u64 + 1);
    }
    progress.finish();
    let pairs = texts.iter().map(String::as_str).zip(prompts.iter().map(|p| p.references.as_slice()));
    let mean = |of: fn(&Rouge) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
    let means = [mean(|s| s.rouge1), mean(|s| s.rouge2), mean(|s| s.rouge_l)];
    let bleu = bleu(pairs);
    results.print(format_args!(
        "BLEU {bleu:.2}, ROUGE-1 {:.4}, ROUGE-2 {:.4}, ROUGE-L {:.4}; {}\n",
        means[0],
        means[1],
        means[2],
        count(texts.len(), "text")
    ))?;
    results.summary.insert("bleu".into(), bleu.into());
    for (name, mean) in ["rouge1", "rouge2", "rougeL"].into_iter().zip(means) {
        results.summary.insert(name.into(), mean.into());
    }
    Ok(())
}

/// Prints and records the score on a task.
fn answer(
    Loaded { dev, model: Forms { model, .. } }: &mut Evaluated,
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
