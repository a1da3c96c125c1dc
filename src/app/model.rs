//! `warpsmith sample`, `eval` and `convert`: what can be done with a trained model.

use crate::app::print;
use crate::checkpoint;
use crate::cli::flags::warpsmith::{ConvertArgs, EvalArgs, NumberArgs, SampleArgs};
use crate::config::ModelConfig;
use crate::data::loader::{DataLoader, LoaderOptions};
use crate::data::tokenizer::{self, TextStream, encode_ordinary};
use crate::device::open::DeviceOptions;
use crate::eval::hellaswag::{self, HellaSwag};
use crate::eval::validation::{perplexity, validation_loss};
use crate::model::activations::Recompute;
use crate::model::decode::Decoder;
use crate::model::hooks::NoHooks;
use crate::model::{BatchShape, GPT2, ModelOptions, Weights};
use crate::ops::{Ops, plan_scratch};
use crate::report::progress::Progress;
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use crate::sharding::Sharding;
use crate::tensor::MemoryPlan;
use anyhow::{Result, ensure};

pub fn sample(args: &SampleArgs) -> Result<()> {
    let file = checkpoint::load_model(&args.model)?;
    let mut dev = open_device(&args.numbers)?;
    let mut plan = MemoryPlan::new();
    let weights = Weights::plan(&file.config, dev.float_dtype(), Sharding::NONE, &mut plan);
    let mut decoder = Decoder::plan(&weights, file.config.maxT, &mut plan);
    plan_scratch(dev.as_ref(), &[decoder.limits()], &mut plan)?;
    dev.allocate(&plan)?;
    weights.params.upload(dev.as_mut(), 0, &file.params)?;
    drop(file);

    let text = args.prompt.as_deref().unwrap_or_default();
    let prompt: Vec<i32> = encode_ordinary(text).into_iter().map(i32::from).collect();
    if prompt.len() > decoder.context() {
        eprintln!(
            "warning: the prompt has {} tokens, of which the model reads the last {}",
            prompt.len(),
            decoder.context()
        );
    }
    for index in 0..args.count {
        if args.count > 1 {
            print(format_args!("--- sample {} of {}\n", index + 1, args.count))?;
        }
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: args.temperature,
            top_k: (args.top_k > 0).then_some(args.top_k),
            top_p: (args.top_p < 1.0).then_some(args.top_p),
            seed: args.seed.wrapping_add(index as u64),
        })?;
        print_sample(dev.as_mut(), &mut decoder, &mut sampler, text, &prompt, args)?;
    }
    Ok(())
}

/// Writes one sample to standard output as it comes into being. A reader that has seen enough ends it.
fn print_sample(
    dev: &mut dyn Ops,
    decoder: &mut Decoder,
    sampler: &mut Sampler,
    text: &str,
    prompt: &[i32],
    args: &SampleArgs,
) -> Result<()> {
    let vocabulary = tokenizer::Vocabulary::gpt2();
    let mut stream = TextStream::new();
    print(text)?;
    let what = Continuation { prompt, max_new: args.max_tokens, kv_cache: !args.no_kv_cache };
    generate(dev, &mut NoHooks, decoder, sampler, what, &mut |token| {
        print(stream.push(vocabulary.token_bytes(token).unwrap_or_default()))
    })?;
    print(stream.finish() + "\n")
}

pub fn eval(args: &EvalArgs) -> Result<()> {
    let file = checkpoint::load_model(&args.model)?;
    let config = file.config;
    let T = args.sequence_length.unwrap_or(config.maxT);
    ensure!(T <= config.maxT, "-t {T}: longer than the {} positions of the model", config.maxT);
    let shape = BatchShape { B: args.batch_size, T };
    let loader = args.val.as_deref().map(|pattern| open_validation(pattern, shape, &config)).transpose()?;
    let questions = args.hellaswag.as_ref().map(HellaSwag::open).transpose()?;

    let mut dev = open_device(&args.numbers)?;
    let mut plan = MemoryPlan::new();
    let min_rows = questions.as_ref().map_or(0, |q| q.longest().min(config.maxT));
    let options = ModelOptions {
        B: shape.B,
        T,
        min_rows,
        recompute: Recompute::Gelu,
        logits_bytes: 64 << 20,
        sharding: Sharding::NONE,
    };
    let model = GPT2::plan_for_evaluation(&config, &options, dev.float_dtype(), &mut plan);
    plan_scratch(dev.as_ref(), &[model.limits()], &mut plan)?;
    dev.allocate(&plan)?;
    model.weights.params.upload(dev.as_mut(), 0, &file.params)?;
    drop(file);

    let mut summary = serde_json::Map::new();
    let mut lines = String::new();
    if let Some(mut loader) = loader {
        let split = loader.samples_per_epoch() as usize;
        let batches = args.max_batches.map(|batches| batches.min(split));
        let loss = validation_loss(&model, dev.as_mut(), &mut NoHooks, &mut loader, shape, batches)?;
        print(format_args!("val loss {loss:.6}, perplexity {:.4}\n", perplexity(loss)))?;
        summary.insert("val_loss".into(), loss.into());
        summary.insert("val_perplexity".into(), perplexity(loss).into());
    }
    if let Some(questions) = questions {
        let mut progress = Progress::new("HellaSwag", questions.examples.len() as u64, "examples");
        let mut show = |done, _| progress.set(done as u64);
        let evaluation =
            hellaswag::evaluate(&model, dev.as_mut(), &mut NoHooks, &questions, (0, 1), &mut show)?;
        progress.finish();
        let score = evaluation.score();
        print(format_args!(
            "HellaSwag acc_norm {}/{} = {:.4}\n",
            score.correct_norm,
            score.total,
            score.acc_norm()
        ))?;
        print(format_args!("HellaSwag acc      {}/{} = {:.4}\n", score.correct, score.total, score.acc()))?;
        if evaluation.truncated > 0 {
            let lost = "examples are longer than the model's context and lost the start of theirs";
            print(format_args!("{} {lost}\n", evaluation.truncated))?;
        }
        summary.insert("hellaswag_acc_norm".into(), score.acc_norm().into());
        summary.insert("hellaswag_acc".into(), score.acc().into());
        for item in &evaluation.items {
            lines += &(item_line(item).to_string() + "\n");
        }
    }
    if let Some(path) = &args.output {
        lines += &(serde_json::to_string(&summary)? + "\n");
        checkpoint::atomic::write(path, |out| Ok(out.write_all(lines.as_bytes())?))?;
    }
    Ok(())
}

/// What became of one question, for `-o`.
fn item_line(item: &hellaswag::Item) -> serde_json::Value {
    serde_json::json!({
        "index": item.index, "label": item.label, "sum": item.sum_loss, "mean": item.avg_loss,
        "pred": item.pred(), "pred_norm": item.pred_norm(),
    })
}

fn open_validation(pattern: &str, shape: BatchShape, config: &ModelConfig) -> Result<DataLoader> {
    let BatchShape { B, T } = shape;
    let V = config.V;
    DataLoader::open(LoaderOptions {
        pattern,
        flag: "--val",
        B,
        T,
        rank: 0,
        num_processes: 1,
        shuffle: false,
        V,
    })
}

pub fn convert(args: &ConvertArgs) -> Result<()> {
    if args.is_hellaswag() {
        let questions = HellaSwag::open(&args.input)?;
        questions.write_bin(&args.output)?;
        print(format_args!("{}: {} questions\n", args.output.display(), questions.examples.len()))?;
        return Ok(());
    }
    let model = checkpoint::load_model(&args.input)?;
    checkpoint::save_model(&args.output, &model, args.dtype)?;
    print(format_args!("{}: {} parameters\n", args.output.display(), model.params.len()))?;
    Ok(())
}

fn open_device(args: &NumberArgs) -> Result<Box<dyn Ops>> {
    DeviceOptions::new(args.device, args.dtype.on(args.device, None), args.threads).open()
}
