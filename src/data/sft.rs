//! Makes masked token shards from prompts and answers: `warpsmith sft`.
//!
//! An example is one document: text that is given, then an answer and the end-of-text token, which
//! count in the loss; a conversation has several of these. Given text and answers are encoded
//! apart, as the prompt of a sample is. All examples are in memory, 5 bytes per token.

mod dialog;
mod example;
mod prompt;
mod template;

use crate::data::documents::{Source, Tally, find_sources};
use crate::data::filter::words::mix;
use crate::data::mask::MaskedShardWriter;
use crate::data::prepare::folder::{Folder, Split, own_shards, shard_name};
use crate::data::shard::ShardFormat;
use crate::data::tokenizer::Tokenizer;
use crate::files::CompleteFile;
use crate::words::count;
use anyhow::{Context, Result, bail, ensure};
pub use dialog::{Dialog, Form};
pub use example::Columns;
use example::Segment;
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
pub use template::Template;

/// Examples encoded at a time, in parallel.
const AT_A_TIME: usize = 1024;

/// Most examples that are drawn for validation by default.
const MOST_VAL_EXAMPLES: usize = 1000;

/// Options of [`prepare`].
#[derive(Clone, Debug)]
pub struct SftOptions {
    /// JSON lines or arrays, compressed or not, or folders of them, or `-` for standard input.
    pub inputs: Vec<PathBuf>,
    /// Files of examples to validate on. Without any, they are drawn from `inputs`.
    pub val: Vec<PathBuf>,
    /// Examples to draw for that; by default a twentieth.
    pub val_examples: Option<usize>,
    /// Seed of the draw.
    pub seed: u64,
    pub template: Template,
    pub columns: Columns,
    /// Whether examples that are not usable are left out.
    pub skip_bad_lines: bool,
    /// Folder for the shards, created if it is missing.
    pub output: PathBuf,
    /// Written beside the shards, unless it is built in.
    pub tokenizer: Tokenizer,
    /// Prefix of the shards' names.
    pub name: String,
    /// Most tokens per shard, unless an example alone has more.
    pub shard_size: u64,
    /// Whether to replace shards of that name.
    pub force: bool,
}

/// Examples of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitReport {
    pub examples: u64,
    pub tokens: u64,
    /// Tokens that count in the loss.
    pub counted: u64,
}

/// The result of [`prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SftReport {
    pub val: SplitReport,
    pub train: SplitReport,
    /// Tokens of each example, in ascending order.
    pub lengths: Vec<usize>,
    /// The validation shards, then the training shards.
    pub shards: Vec<PathBuf>,
}

/// An example as tokens, and for each whether it counts as a target.
#[derive(Debug, PartialEq, Eq)]
struct Encoded {
    tokens: Vec<u32>,
    counts: Vec<bool>,
}

/// Makes the shards. `progress` is called with the bytes read so far and the total (0 if unknown).
/// Files get their names at the very end; after an error the folder has nothing new.
///
/// # Errors
/// One line, if an input cannot be read, an example lacks a field or has one of another type, there
/// are too few examples, shards of that name exist already, or the disk fails.
pub fn prepare(options: &SftOptions, progress: &dyn Fn(u64, u64)) -> Result<SftReport> {
    let is_own = own_shards(&options.output, &options.name, ShardFormat::Bin);
    let inputs = find_sources(&options.inputs, &is_own)?;
    let val = match options.val.is_empty() {
        true => Vec::new(),
        false => find_sources(&options.val, &is_own).context("--val")?,
    };
    let folder = Folder::lock(&options.output, &options.name, ShardFormat::Bin)?;
    folder.check_tokenizer(&options.tokenizer, options.force)?;
    let stale = folder.shards()?;
    if let Some(path) = stale.first() {
        let why = "already exists; choose another --name or replace its shards with --force";
        ensure!(options.force, "{}: {why}", path.display());
    }
    let mut reading = Reading::new(options, inputs.iter().chain(&val), progress);
    let given = reading.read(&val)?;
    let examples = reading.read(&inputs)?;
    reading.warn_of_skipped();
    ensure!(
        !examples.is_empty(),
        "the input has no examples; give JSON lines with a prompt and a response each"
    );
    let (val, train) = match options.val.is_empty() {
        true => draw(options, examples)?,
        false => (given, examples),
    };
    let mut lengths: Vec<usize> = val.iter().chain(&train).map(|example| example.tokens.len()).collect();
    lengths.sort_unstable();
    let val_files = write(options, Split::Val, 0, &val)?;
    let train_files = write(options, Split::Train, val_files.len().max(1), &train)?;
    if !options.tokenizer.is_gpt2() {
        options.tokenizer.write_json(&options.output)?;
    }
    let mut shards = Vec::new();
    for (path, files) in val_files.into_iter().chain(train_files) {
        files.into_iter().try_for_each(CompleteFile::publish)?;
        shards.push(path);
    }
    for path in stale.iter().filter(|path| !shards.contains(&path.with_extension("bin"))) {
        fs::remove_file(path).with_context(|| format!("{}: cannot remove the old shard", path.display()))?;
    }
    Ok(SftReport { val: SplitReport::of(&val), train: SplitReport::of(&train), lengths, shards })
}

impl SplitReport {
    fn of(examples: &[Encoded]) -> Self {
        let counted = |example: &Encoded| example.counts.iter().filter(|counts| **counts).count() as u64;
        SplitReport {
            examples: examples.len() as u64,
            tokens: examples.iter().map(|example| example.tokens.len() as u64).sum(),
            counted: examples.iter().map(counted).sum(),
        }
    }
}

/// The reading of examples.
struct Reading<'a> {
    options: &'a SftOptions,
    progress: &'a dyn Fn(u64, u64),
    bytes: u64,
    done: Arc<AtomicU64>,
    skipped: Tally,
}

impl<'a> Reading<'a> {
    fn new<'s>(
        options: &'a SftOptions,
        sources: impl Iterator<Item = &'s Source>,
        progress: &'a dyn Fn(u64, u64),
    ) -> Self {
        let bytes = sources.map(|source| source.bytes).sum();
        Reading { options, progress, bytes, done: Arc::default(), skipped: Tally::default() }
    }

    /// Reads and encodes all examples of some files.
    fn read(&mut self, sources: &[Source]) -> Result<Vec<Encoded>> {
        let SftOptions { template, columns, tokenizer, skip_bad_lines, .. } = self.options;
        let (mut texts, mut examples) = (Vec::new(), Vec::new());
        let encode = |texts: &mut Vec<Vec<Segment>>, examples: &mut Vec<Encoded>| {
            examples.par_extend(texts.par_drain(..).map(|segments| Encoded::new(&segments, tokenizer)));
        };
        for source in sources {
            let (skipped, done) = (&mut self.skipped, Arc::clone(&self.done));
            source.read_objects(&done, &mut |object, place| {
                match example::segments(object, columns, template) {
                    Ok(segments) => texts.push(segments),
                    Err(fault) if *skip_bad_lines => skipped.add(|| format!("{}: {fault}", place())),
                    Err(fault) => bail!("{}: {fault}", place()),
                }
                if texts.len() == AT_A_TIME {
                    encode(&mut texts, &mut examples);
                    (self.progress)(done.load(Relaxed), self.bytes);
                }
                Ok(())
            })?;
        }
        encode(&mut texts, &mut examples);
        Ok(examples)
    }

    fn warn_of_skipped(&self) {
        let Tally { count: skipped, first } = &self.skipped;
        if *skipped > 0 {
            log::warn!("--skip-bad-lines: left out {}; the first is {first}", count(*skipped, "example"));
        }
    }
}

impl Encoded {
    fn new(segments: &[Segment], tokenizer: &Tokenizer) -> Self {
        let (mut tokens, mut counts) = (Vec::new(), Vec::new());
        for Segment { given, answer } in segments {
            tokens.extend(tokenizer.encode_ordinary(given));
            if tokens.is_empty() {
                // The first token of the answer needs one before it, as a sample without a prompt
                // does.
                tokens.push(tokenizer.eot());
            }
            counts.resize(tokens.len(), false);
            tokens.extend(tokenizer.encode_ordinary(answer));
            tokens.push(tokenizer.eot());
            counts.resize(tokens.len(), true);
        }
        Encoded { tokens, counts }
    }
}

/// Draws examples for validation. Returns those, and the others, in the order of the input.
fn draw(options: &SftOptions, examples: Vec<Encoded>) -> Result<(Vec<Encoded>, Vec<Encoded>)> {
    let found = examples.len();
    let default = || (found / 20).clamp(1, MOST_VAL_EXAMPLES);
    let wanted = options.val_examples.unwrap_or_else(default);
    ensure!(
        wanted < found,
        "the input has {}; {wanted} for validation would leave none for training; give more examples, a smaller \
         --val-examples, or 0",
        count(found as u64, "example")
    );
    let mut by_number: Vec<usize> = (0..found).collect();
    by_number.sort_by_key(|&index| (mix(mix(options.seed) ^ index as u64), index));
    let mut is_drawn = vec![false; found];
    by_number[..wanted].iter().for_each(|&index| is_drawn[index] = true);
    let mut is_drawn = is_drawn.into_iter();
    Ok(examples.into_iter().partition(|_| is_drawn.next().expect("one per example")))
}

/// Writes the shards of a split, numbered from `first` on.
fn write(
    options: &SftOptions,
    split: Split,
    first: usize,
    examples: &[Encoded],
) -> Result<Vec<(PathBuf, [CompleteFile; 2])>> {
    let mut sealed = Vec::new();
    let mut rest = examples;
    while !rest.is_empty() {
        let index = first + sealed.len();
        let path = options.output.join(shard_name(&options.name, split, index, ShardFormat::Bin));
        let mut shard = MaskedShardWriter::create(&path, options.tokenizer.id())?;
        while let [example, later @ ..] = rest
            && (shard.is_empty() || shard.len() + example.tokens.len() as u64 <= options.shard_size)
        {
            shard.write(&example.tokens, &example.counts)?;
            rest = later;
        }
        sealed.push((path, shard.seal()?));
    }
    Ok(sealed)
}

/// Reads the template at `path`.
///
/// # Errors
/// One line that names the file and the field.
pub fn template(path: &Path) -> Result<Template> {
    Template::open(path).context("--template")
}

#[cfg(test)]
mod tests;
