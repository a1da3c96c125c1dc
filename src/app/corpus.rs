//! `warpsmith data` and `warpsmith stories`: text to token shards.

use crate::app::print;
use crate::cli::flags::warpsmith::{Amount, ConvertArgs, DataArgs, StoriesArgs};
use crate::data::imported;
use crate::data::prepare::{DEFAULT_SHARD_SIZE, PrepareOptions, PrepareReport, Split, prepare};
use crate::data::stories::story;
use crate::data::tokenizer::{EOT_TEXT, Tokenizer};
use crate::files;
use crate::report::progress::Progress;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use std::cell::RefCell;
use std::path::Path;

pub fn data(args: &DataArgs) -> Result<()> {
    let report = prepare_with_progress(&PrepareOptions {
        inputs: args.inputs.clone(),
        output: args.output.clone(),
        tokenizer: Tokenizer::open(&args.tokenizer).context("--tokenizer")?,
        name: args.name.clone(),
        split: match args.split_on.as_deref() {
            None => Split::EndOfText,
            Some("none") => Split::Never,
            Some(separator) => Split::On(separator.to_owned()),
        },
        json_field: args.json_field.clone(),
        skip_bad_lines: args.skip_bad_lines,
        allow_special: args.allow_special,
        shard_size: args.shard_size as u64,
        val_tokens: args.val_tokens.map(|tokens| tokens as u64),
        force: args.force,
    })?;
    print_report(&report)
}

fn prepare_with_progress(options: &PrepareOptions) -> Result<PrepareReport> {
    let progress = RefCell::new(None);
    let report = prepare(options, &|done, total| {
        progress.borrow_mut().get_or_insert_with(|| Progress::new("tokenizing", total, "bytes")).set(done);
    })?;
    if let Some(progress) = progress.into_inner() {
        progress.finish();
    }
    Ok(report)
}

fn print_report(report: &PrepareReport) -> Result<()> {
    let PrepareReport { input_bytes, val_tokens, train_tokens, shards, .. } = report;
    if report.end_of_text_marks > 0 {
        let marks = report.end_of_text_marks;
        print(format_args!("split at {marks} {EOT_TEXT}; --split-on none keeps them as text\n"))?;
    }
    let documents = count(report.documents, "document");
    let (bytes, train) = (count(*input_bytes, "byte"), count(*train_tokens, "training token"));
    print(format_args!("{documents}, {bytes}: {val_tokens} validation and {train}\n"))?;
    for path in shards {
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Makes a token shard of another program's tokens.
pub fn convert_tokens(args: &ConvertArgs) -> Result<()> {
    let out = args.output.display();
    let is_shard = args.output.extension().is_some_and(|end| end == "bin");
    ensure!(is_shard, "convert: expected OUT to end in .bin for tokens, found {out}");
    let tokens = imported::convert(&args.input, &args.output, args.raw_tokens)?;
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
    let report = prepare_with_progress(&PrepareOptions {
        inputs: vec![text],
        output: args.output.clone(),
        tokenizer,
        name: "stories".into(),
        split: Split::On(EOT_TEXT.into()),
        json_field: None,
        skip_bad_lines: false,
        allow_special: false,
        shard_size: DEFAULT_SHARD_SIZE,
        val_tokens: None,
        force: args.force,
    })?;
    print_report(&report)
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
