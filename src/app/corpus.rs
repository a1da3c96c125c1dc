//! `warpsmith data` and `warpsmith stories`: text to token shards.

use crate::app::print;
use crate::cli::flags::warpsmith::{Amount, DataArgs, StoriesArgs};
use crate::data::prepare::{DEFAULT_SHARD_SIZE, PrepareOptions, PrepareReport, prepare};
use crate::data::stories::story;
use crate::data::tokenizer::encode_ordinary;
use crate::files;
use crate::report::progress::Progress;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use std::cell::RefCell;
use std::path::Path;

pub fn data(args: &DataArgs) -> Result<()> {
    let report = prepare_with_progress(&PrepareOptions {
        inputs: args.inputs.clone(),
        output: args.output.clone(),
        name: args.name.clone(),
        split_on: args.split_on.clone(),
        json_field: args.json_field.clone(),
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
    let PrepareReport { input_bytes, documents, val_tokens, train_tokens, shards } = report;
    let tokens = format!("{val_tokens} validation and {train_tokens} training tokens");
    print(format_args!("{documents} documents, {input_bytes} bytes: {tokens}\n"))?;
    for path in shards {
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Separator of stories in a text file, on a line of its own, as corpora of stories have it.
const SEPARATOR: &str = "<|endoftext|>";

/// Stories that are tokenized to estimate how many make up a number of tokens.
const MEASURED_STORIES: u64 = 200;

pub fn stories(args: &StoriesArgs) -> Result<()> {
    let count = match args.amount() {
        Amount::Stories(count) => count as u64,
        Amount::Tokens(tokens) => stories_for(tokens, args.seed),
    };
    if args.is_text() {
        refuse_to_replace(&args.output, args.force)?;
        write_stories(&args.output, args.seed, count)?;
        print(format_args!("{}: {count} stories\n", args.output.display()))?;
        return Ok(());
    }
    let text = args.output.join("stories.txt");
    refuse_to_replace(&text, args.force)?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("-o {}: cannot create the directory", args.output.display()))?;
    write_stories(&text, args.seed, count)?;
    let report = prepare_with_progress(&PrepareOptions {
        inputs: vec![text],
        output: args.output.clone(),
        name: "stories".into(),
        split_on: Some(SEPARATOR.into()),
        json_field: "text".into(),
        shard_size: DEFAULT_SHARD_SIZE,
        val_tokens: None,
        force: args.force,
    })?;
    print_report(&report)
}

/// Returns the number of stories that have about `tokens` tokens.
fn stories_for(tokens: usize, seed: u64) -> u64 {
    let measure = |index| encode_ordinary(&story(seed, index)).len() as u64 + 1;
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
                let separator = if index == 0 { String::new() } else { format!("{SEPARATOR}\n") };
                writeln!(file, "{separator}{story}")?;
            }
            progress.set(end);
        }
        Ok(())
    })?;
    progress.finish();
    Ok(())
}
