//! `warpsmith data` and `warpsmith stories`: text to token shards.

use crate::app::arrivals::{Arrivals, source_of};
use crate::app::print;
use crate::cli::flags::warpsmith::{Amount, ConvertArgs, DataArgs, StoriesArgs};
use crate::data::filter::{Dedup, FilterOptions, Removed};
use crate::data::imported;
use crate::data::prepare::{Mixed, PrepareOptions, PrepareReport, Split, prepare};
use crate::data::remote::is_remote;
use crate::data::shard::ShardFormat;
use crate::data::stories::story;
use crate::data::tokenizer::{EOT_TEXT, Tokenizer};
use crate::files;
use crate::report::progress::{Progress, counting};
use crate::words::count;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn data(args: &DataArgs) -> Result<()> {
    let (inputs, val) = inputs_of(args)?;
    let is_fetched = inputs.iter().chain(&val).any(|input| is_remote(input));
    let tokenizer = Tokenizer::open(&args.tokenizer).context("--tokenizer")?;
    let options = PrepareOptions {
        val,
        format: match args.format.as_str() {
            "npy" => ShardFormat::Npy,
            "raw" => ShardFormat::Raw,
            _ => ShardFormat::Bin,
        },
        split: match args.split_on.as_deref() {
            None => Split::EndOfText,
            Some("none") => Split::Never,
            Some(separator) => Split::On(separator.to_owned()),
        },
        text_column: args.text_column.clone(),
        skip_bad_lines: args.skip_bad_lines,
        filter: FilterOptions {
            dedup: args.dedup.as_deref().map(|kind| match kind {
                "minhash" => Dedup::Minhash,
                _ => Dedup::Exact,
            }),
            decontaminate: args.decontaminate.clone(),
            min_chars: args.min_chars,
            max_chars: args.max_chars,
            scripts: args.scripts.clone(),
        },
        allow_special: args.allow_special,
        shard_size: args.shard_size as u64,
        val_tokens: args.val_tokens.map(|tokens| tokens as u64),
        seed: args.seed,
        force: args.force,
        remote: match is_fetched {
            true => Some(Arc::new(Arrivals::new()?)),
            false => None,
        },
        ..PrepareOptions::new(inputs, args.output.clone(), &args.name, tokenizer)
    };
    let report = counting("tokenizing", |progress| prepare(&options, progress))?;
    print_left_out(&report)?;
    print_mix(&report)?;
    print_report(&options, &report)
}

/// The inputs, and those for validation. A name of the hub that has a file for validation stands
/// for both splits, unless the flags ask for another one.
fn inputs_of(args: &DataArgs) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    if let [input] = args.inputs.as_slice()
        && (is_remote(input) && args.val.is_empty() && args.val_tokens.is_none())
        && let Some((train, val)) =
            source_of(&input.to_string_lossy()).ok().and_then(|source| source.splits())
    {
        return Ok((vec![train.into()], vec![val.into()]));
    }
    Ok((args.inputs.clone(), args.val.clone()))
}

/// Prints what was left out and why, with examples.
fn print_left_out(report: &PrepareReport) -> Result<()> {
    let (texts, short) = report.evaluation_texts;
    if texts > 0 {
        let texts = count(texts, "text");
        print(format_args!(
            "evaluation sets: {texts}; {short} have fewer than 13 words and cannot be recognized\n"
        ))?;
    }
    for Removed { reason, documents, bytes, examples } in &report.removed {
        let documents = count(*documents, "document");
        print(format_args!("left out {documents}, {}: {reason}\n", count(*bytes, "byte")))?;
        for example in examples {
            print(format_args!("  {example}\n"))?;
        }
    }
    Ok(())
}

/// Prints how much text came from each part of a mix.
fn print_mix(report: &PrepareReport) -> Result<()> {
    let total: u64 = report.mixed.iter().map(|part| part.bytes).sum();
    for Mixed { name, bytes, is_used_up, .. } in &report.mixed {
        let share = *bytes as f64 / total.max(1) as f64 * 100.0;
        let end = if *is_used_up { ", used up: the mix ends here" } else { ", not used up" };
        print(format_args!("{name}: {} of text, {share:.1} %{end}\n", count(*bytes, "byte")))?;
    }
    Ok(())
}

fn print_report(options: &PrepareOptions, report: &PrepareReport) -> Result<()> {
    let PrepareReport { input_bytes, val_tokens, train_tokens, shards, .. } = report;
    if report.end_of_text_marks > 0 {
        let marks = report.end_of_text_marks;
        print(format_args!("split at {marks} {EOT_TEXT}; --split-on none keeps them as text\n"))?;
    }
    let documents = count(report.documents, "document");
    let (bytes, train) = (count(*input_bytes, "byte"), count(*train_tokens, "training token"));
    print(format_args!("{documents}, {bytes}: {val_tokens} validation and {train}\n"))?;
    if options.val.is_empty() {
        let seed = options.seed;
        print(format_args!("validation text: drawn from all of the input with seed {seed}\n"))?;
    }
    for path in shards {
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Makes a token shard of another program's tokens, or the reverse.
pub fn convert_tokens(args: &ConvertArgs) -> Result<()> {
    let ConvertArgs { input, output, raw_tokens, .. } = args;
    let out = output.display();
    let ends = |end: &str| output.extension().is_some_and(|e| e == end);
    let is_shard = imported::is_shard(input);
    let tokens = match () {
        () if ends("npy") && is_shard && !raw_tokens => imported::export(input, output, ShardFormat::Npy)?,
        () if ends("bin") && is_shard => imported::export(input, output, ShardFormat::Raw)?,
        () if ends("bin") => imported::convert(input, output, *raw_tokens)?,
        () => bail!("convert: expected OUT to end in .bin for tokens, or in .npy for a shard, found {out}"),
    };
    print(format_args!("{out}: {}\n", count(tokens, "token")))
}

/// Stories that are tokenized to estimate how many make up a number of tokens.
const MEASURED_STORIES: u64 = 200;

pub fn stories(args: &StoriesArgs) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.tokenizer).context("--tokenizer")?;
    let amount = match args.amount() {
        Amount::Stories(count) => count as u64,
        Amount::Tokens(tokens) => stories_for(tokens, args.seed, &tokenizer),
    };
    if args.is_text() {
        refuse_to_replace(&args.output, args.force)?;
        files::make_room(&args.output)?;
        write_stories(&args.output, args.seed, amount)?;
        let stories = if amount == 1 { "story" } else { "stories" };
        print(format_args!("{}: {amount} {stories}\n", args.output.display()))?;
        return Ok(());
    }
    let text = args.output.join("stories.txt");
    refuse_to_replace(&text, args.force)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("-o {}: cannot create the directory", args.output.display()))?;
    write_stories(&text, args.seed, amount)?;
    let options = PrepareOptions {
        split: Split::On(EOT_TEXT.into()),
        force: args.force,
        ..PrepareOptions::new(vec![text], args.output.clone(), "stories", tokenizer)
    };
    let report = counting("tokenizing", |progress| prepare(&options, progress))?;
    print_report(&options, &report)
}

/// Returns the number of stories that have about `tokens` tokens.
fn stories_for(tokens: usize, seed: u64, tokenizer: &Tokenizer) -> u64 {
    let measure = |index| tokenizer.encode_ordinary(&story(seed, index)).len() as u64 + 1;
    let measured: u64 = (0..MEASURED_STORIES).into_par_iter().map(measure).sum();
    (tokens as u64 * MEASURED_STORIES).div_ceil(measured)
}

fn refuse_to_replace(path: &Path, force: bool) -> Result<()> {
    ensure!(
        force || !path.exists(),
        "{}: already exists; choose another -o or replace it with --force",
        path.display()
    );
    Ok(())
}

/// Writes `count` stories, generated in parallel and written in order.
fn write_stories(path: &Path, seed: u64, count: u64) -> Result<()> {
    const AT_A_TIME: u64 = 4096;
    let mut progress = Progress::new("writing stories", count, "stories");
    files::write(path, |file| {
        for start in (0..count).step_by(AT_A_TIME as usize) {
            let end = count.min(start + AT_A_TIME);
            let stories: Vec<String> = (start..end).into_par_iter().map(|index| story(seed, index)).collect();
            for (index, story) in (start..).zip(&stories) {
                // Corpora of stories have the separator on a line of its own.
                let separator = if index == 0 { String::new() } else { format!("{EOT_TEXT}\n") };
                writeln!(file, "{separator}{story}")?;
            }
            progress.set(end);
        }
        Ok(())
    })?;
    progress.finish();
    Ok(())
}
