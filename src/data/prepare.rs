//! Makes token shards from text: `warpsmith data`.
//!
//! An end-of-text token precedes each document. Validation documents are drawn from all of the
//! input, unless they come from files of their own; the others are for training, in the order of
//! the input. Documents may span shards.

mod draw;
mod encode;
pub(super) mod folder;
mod mix;
mod shards;
mod stream;

pub use crate::data::documents::Split;
use crate::data::documents::{Format, Notes, Piece, ReadAhead, Source, find_sources};
use crate::data::filter::{Filter, FilterOptions, Removed};
use crate::data::remote::{self, Remote, is_remote};
use crate::data::shard::ShardFormat;
use crate::data::tokenizer::Tokenizer;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use draw::{Draw, Passage};
use encode::Encoder;
use folder::Folder;
use mix::{Part, Shares};
use shards::Shards;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stream::Stream;

/// Default number of tokens per shard.
pub const DEFAULT_SHARD_SIZE: u64 = 100_000_000;

/// Default seed of the draw of validation documents.
pub const DEFAULT_SEED: u64 = 42;

/// Most tokens that are drawn for validation by default. They are held in memory, 4 bytes each.
const MOST_VAL_TOKENS: u64 = 1 << 24;

/// Options of [`prepare`].
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Text, JSON and parquet files, folders of them, patterns, or `-` for standard input. Files
    /// may be compressed. With weights, `PATH=WEIGHT`, they are mixed; otherwise they are read one
    /// after another. What [`remote`](Self::remote) fetches has a name such as `hub:NAME`.
    pub inputs: Vec<PathBuf>,
    /// Files of validation text. Without any, validation documents are drawn from `inputs`.
    pub val: Vec<PathBuf>,
    /// Folder for the shards, created if it is missing.
    pub output: PathBuf,
    /// Written beside the shards, unless it is built in.
    pub tokenizer: Tokenizer,
    /// Prefix of the shards' names: `{name}_val_000000.bin`, `{name}_train_000001.bin` and so on.
    pub name: String,
    pub format: ShardFormat,
    /// The places where text files are split into documents.
    pub split: Split,
    /// Column of a parquet file, or field of a JSON object, that holds the text, if the user named
    /// one. No input is then plain text.
    pub text_column: Option<String>,
    /// Whether JSON objects and rows that are not usable are left out.
    pub skip_bad_lines: bool,
    /// Documents to leave out of `inputs`.
    pub filter: FilterOptions,
    /// Whether `<|endoftext|>` within a document is that token instead of text.
    pub allow_special: bool,
    /// Tokens per training shard, except the last.
    pub shard_size: u64,
    /// Tokens drawn for validation; see [`default_val_tokens`].
    pub val_tokens: Option<u64>,
    /// Seed of that draw.
    pub seed: u64,
    /// Whether to replace shards of that name.
    pub force: bool,
    /// Fetches inputs that are not here.
    pub remote: Option<Arc<dyn Remote>>,
}

impl PrepareOptions {
    /// Options that read `inputs` as they are.
    pub fn new(inputs: Vec<PathBuf>, output: PathBuf, name: &str, tokenizer: Tokenizer) -> Self {
        PrepareOptions {
            inputs,
            val: Vec::new(),
            output,
            tokenizer,
            name: name.to_owned(),
            format: ShardFormat::Bin,
            split: Split::EndOfText,
            text_column: None,
            skip_bad_lines: false,
            filter: FilterOptions::default(),
            allow_special: false,
            shard_size: DEFAULT_SHARD_SIZE,
            val_tokens: None,
            seed: DEFAULT_SEED,
            force: false,
            remote: None,
        }
    }
}

/// The text that came from one of several weighted inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    pub name: String,
    pub weight: f64,
    /// Bytes of text.
    pub bytes: u64,
    /// Whether it was used up, which ended the mix.
    pub is_used_up: bool,
}

/// The result of [`prepare`].
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareReport {
    /// Bytes of the inputs, compressed if they are; of a mix, those of its text.
    pub input_bytes: u64,
    /// Documents that were kept.
    pub documents: u64,
    /// Places where text was split, because it has `<|endoftext|>` there.
    pub end_of_text_marks: u64,
    /// The documents left out, by reason.
    pub removed: Vec<Removed>,
    /// Texts of evaluation sets to decontaminate, and how many of them are too short for that.
    pub evaluation_texts: (u64, u64),
    /// The parts of the mix, if the inputs had weights.
    pub mixed: Vec<Mixed>,
    pub val_tokens: u64,
    pub train_tokens: u64,
    /// The validation shards, then the training shards.
    pub shards: Vec<PathBuf>,
}

/// Returns the default number of validation tokens: a power of two, 6 to 12 % of typical English
/// text, at most one shard and 2²⁴.
pub fn default_val_tokens(input_bytes: u64, shard_size: u64) -> u64 {
    (input_bytes / 64).max(1).next_power_of_two().min(shard_size).min(MOST_VAL_TOKENS)
}

/// Makes the shards. `progress` is called with the bytes read so far and the total (0 if unknown).
///
/// The tokens do not depend on the number of threads. Shards get their names at the very end; after
/// an error the folder has nothing new.
///
/// # Errors
/// If an option is invalid, shards of that name exist already or are being made by another process,
/// an input cannot be read, is not text or changes while it is read, the text is too short for both
/// splits, or the disk fails.
pub fn prepare(options: &PrepareOptions, progress: &dyn Fn(u64, u64)) -> Result<PrepareReport> {
    check(options)?;
    let inputs = Inputs::find(options)?;
    let val_tokens = inputs.val_tokens(options)?;
    let mut filter = match options.filter.is_empty() {
        true => None,
        false => Some(Filter::new(&options.filter)?),
    };
    let folder = Folder::lock(&options.output, &options.name, options.format)?;
    folder.check_tokenizer(&options.tokenizer, options.force)?;
    let stale = folder.shards()?;
    if let Some(path) = stale.first() {
        let why = "already exists; choose another --name or replace its shards with --force";
        ensure!(options.force, "{}: {why}", path.display());
    }
    let mut run = Run::new(options, &inputs, val_tokens, progress);
    run.write_given_validation(inputs.val)?;
    let mixed = run.write_text(&inputs.parts, inputs.sources, filter.as_mut())?;
    let mut report = run.publish(&stale)?;
    if !mixed.is_empty() {
        // How far the others were read ahead is a matter of time.
        report.input_bytes = mixed.iter().map(|part| part.bytes).sum();
    }
    report.mixed = mixed;
    report.evaluation_texts = filter.as_ref().map(Filter::evaluation_texts).unwrap_or_default();
    report.removed = filter.map(Filter::finish).unwrap_or_default();
    Ok(report)
}

/// The files to read.
struct Inputs {
    parts: Vec<Part>,
    /// Those of each part.
    sources: Vec<Vec<Source>>,
    val: Vec<Source>,
    bytes: u64,
}

impl Inputs {
    fn find(options: &PrepareOptions) -> Result<Self> {
        let is_own = folder::own_shards(&options.output, &options.name, options.format);
        let parts = mix::parts(&options.inputs)?;
        let sources: Vec<Vec<Source>> =
            parts.iter().map(|part| find_all(options, &part.inputs, &is_own)).collect::<Result<_>>()?;
        let val = match options.val.is_empty() {
            true => Vec::new(),
            false => find_all(options, &options.val, &is_own).context("--val")?,
        };
        // A missing column is found now rather than hours later.
        let (format, val_format) = (format_of(options), format_of_val(options));
        sources.iter().flatten().try_for_each(|source| source.check(&format))?;
        val.iter().try_for_each(|source| source.check(&val_format))?;
        let bytes = sources.iter().flatten().map(|source| source.bytes).sum();
        Ok(Inputs { parts, sources, val, bytes })
    }

    /// The number of tokens to draw; 0 if validation text is given.
    fn val_tokens(&self, options: &PrepareOptions) -> Result<u64> {
        if !self.val.is_empty() {
            ensure!(
                options.val_tokens.is_none(),
                "--val-tokens: expected this or --val, which gives the validation text, found both"
            );
            return Ok(0);
        }
        let piped = options.inputs.iter().any(|path| path.as_os_str() == "-");
        ensure!(
            !piped || options.val_tokens.is_some(),
            "--val-tokens or --val is required with standard input, as its size is not known in advance"
        );
        let default = || default_val_tokens(self.bytes, options.shard_size);
        Ok(options.val_tokens.unwrap_or_else(default))
    }
}

/// Lists the files of inputs, those that are fetched and those that are here, in their order.
fn find_all(
    options: &PrepareOptions,
    inputs: &[PathBuf],
    is_own: &dyn Fn(&Path) -> bool,
) -> Result<Vec<Source>> {
    if inputs.is_empty() {
        return find_sources(inputs, is_own);
    }
    let mut sources = Vec::new();
    for alike in inputs.chunk_by(|a, b| is_remote(a) == is_remote(b)) {
        if !is_remote(&alike[0]) {
            sources.extend(find_sources(alike, is_own)?);
            continue;
        }
        for input in alike {
            sources.extend(remote::sources(input, options.remote.as_ref())?);
        }
    }
    Ok(sources)
}

fn format_of(options: &PrepareOptions) -> Format {
    Format {
        split: options.split.clone(),
        text_column: options.text_column.clone(),
        allow_text: false,
        skip_bad_lines: options.skip_bad_lines,
        cuts: options.tokenizer.cuts(),
    }
}

/// The format of the text that `--val` gives, which may be plain beside training text in columns.
fn format_of_val(options: &PrepareOptions) -> Format {
    Format { allow_text: true, ..format_of(options) }
}

/// The making of shards.
struct Run<'a> {
    options: &'a PrepareOptions,
    progress: &'a dyn Fn(u64, u64),
    /// Bytes of the inputs, and those read so far.
    input_bytes: u64,
    done: Arc<AtomicU64>,
    encoder: Encoder,
    notes: Notes,
    draw: Option<Draw>,
    val: Shards,
    train: Shards,
}

impl<'a> Run<'a> {
    fn new(
        options: &'a PrepareOptions,
        inputs: &Inputs,
        val_tokens: u64,
        progress: &'a dyn Fn(u64, u64),
    ) -> Self {
        let draw = inputs.val.is_empty().then(|| Draw::new(val_tokens, options.seed));
        // The drawn text makes one shard.
        let val_size = if draw.is_some() { i32::MAX as u64 } else { options.shard_size };
        Run {
            options,
            progress,
            input_bytes: inputs.bytes + inputs.val.iter().map(|source| source.bytes).sum::<u64>(),
            done: Arc::default(),
            encoder: Encoder::new(options),
            notes: Notes::default(),
            draw,
            val: Shards::new(options, folder::Split::Val, 0, val_size),
            train: Shards::new(options, folder::Split::Train, 1, options.shard_size),
        }
    }

    /// Writes validation text that the user gave.
    fn write_given_validation(&mut self, sources: Vec<Source>) -> Result<()> {
        if sources.is_empty() {
            return Ok(());
        }
        let mut pieces = ReadAhead::start(sources, &format_of_val(self.options), &self.done)?;
        while let Some(batch) = pieces.next()? {
            for piece in batch {
                if let Some(passages) = self.encoder.add(piece) {
                    passages.iter().try_for_each(|passage| self.val.write(passage))?;
                    (self.progress)(self.done.load(Relaxed), self.input_bytes);
                }
            }
        }
        let passages = self.encoder.flush();
        passages.iter().try_for_each(|passage| self.val.write(passage))?;
        self.notes.append(pieces.notes);
        let shards = self.val.finish()?;
        ensure!(shards > 0, "--val: the input is empty; give a file with text");
        self.train = Shards::new(self.options, folder::Split::Train, shards, self.options.shard_size);
        Ok(())
    }

    /// Writes the text of all parts, document by document from the part that lags behind most,
    /// until one is used up. Returns what came from each, if there are several.
    fn write_text(
        &mut self,
        parts: &[Part],
        sources: Vec<Vec<Source>>,
        mut filter: Option<&mut Filter>,
    ) -> Result<Vec<Mixed>> {
        let format = format_of(self.options);
        let start = |sources| Ok(Stream::new(ReadAhead::start(sources, &format, &self.done)?));
        let mut streams: Vec<Stream> = sources.into_iter().map(start).collect::<Result<_>>()?;
        let mut shares = Shares::new(parts);
        let used_up = loop {
            let part = shares.next();
            let stream = &mut streams[part];
            let Some(mut piece) = stream.next(filter.as_deref_mut())? else { break part };
            loop {
                shares.bytes[part] += piece.text.len() as u64;
                self.add(piece)?;
                if !stream.continues(filter.as_deref_mut())? {
                    break;
                }
                piece = stream.next(filter.as_deref_mut())?.expect("the document continues");
            }
        };
        let passages = self.encoder.flush();
        self.write(passages)?;
        for stream in streams {
            self.notes.append(stream.ahead.notes);
        }
        let mixed = parts.iter().zip(&shares.bytes).enumerate();
        let mixed = mixed.filter_map(|(index, (part, &bytes))| {
            let (name, weight) = (part.name.clone(), part.weight?);
            Some(Mixed { name, weight, bytes, is_used_up: index == used_up })
        });
        Ok(mixed.collect())
    }

    fn add(&mut self, piece: Piece) -> Result<()> {
        if let Some(passages) = self.encoder.add(piece) {
            self.write(passages)?;
            (self.progress)(self.done.load(Relaxed), self.input_bytes);
        }
        Ok(())
    }

    fn write(&mut self, passages: Vec<Passage>) -> Result<()> {
        for passage in passages {
            match &mut self.draw {
                Some(draw) => draw.add(passage).iter().try_for_each(|passage| self.train.write(passage))?,
                None => self.train.write(&passage)?,
            }
        }
        Ok(())
    }

    /// Writes what was drawn, gives all shards their names, and removes older ones.
    fn publish(mut self, stale: &[PathBuf]) -> Result<PrepareReport> {
        let done = self.done.load(Relaxed);
        (self.progress)(done, self.input_bytes.max(done));
        warn(self.options, &self.notes, self.encoder.marks);
        if let Some(draw) = self.draw.take() {
            let wanted = draw.wanted();
            let (drawn, rest) = draw.finish();
            drawn.iter().try_for_each(|passage| self.val.write(passage))?;
            rest.iter().try_for_each(|passage| self.train.write(passage))?;
            let found = self.val.tokens + self.train.tokens;
            ensure!(found > 0, "the input is empty, or all of it was left out");
            ensure!(
                self.train.tokens > 0,
                "the input has {found} tokens; {wanted} for validation would leave none for training; \
                 give more text or a smaller --val-tokens"
            );
        }
        ensure!(self.train.tokens > 0, "the input is empty, or all of it was left out");
        self.val.finish()?;
        self.train.finish()?;
        let (val_tokens, train_tokens) = (self.val.tokens, self.train.tokens);
        if !self.options.tokenizer.is_gpt2() {
            self.options.tokenizer.write_json(&self.options.output)?;
        }
        let mut shards = self.val.publish()?;
        shards.extend(self.train.publish()?);
        for path in stale.iter().filter(|path| !shards.contains(path)) {
            fs::remove_file(path)
                .with_context(|| format!("{}: cannot remove the old shard", path.display()))?;
        }
        let splits_at_marks = self.options.split == Split::EndOfText;
        Ok(PrepareReport {
            input_bytes: done,
            documents: self.encoder.documents,
            end_of_text_marks: if splits_at_marks { self.notes.separators } else { 0 },
            removed: Vec::new(),
            evaluation_texts: (0, 0),
            mixed: Vec::new(),
            val_tokens,
            train_tokens,
            shards,
        })
    }
}

/// Warns about findings in the text; `marks` are those that became ordinary tokens.
fn warn(options: &PrepareOptions, notes: &Notes, marks: u64) {
    notes.warn_of_skipped();
    if notes.empty_rows.count > 0 {
        let rows = count(notes.empty_rows.count, "row");
        log::warn!("left out {rows} without text; the first is {}", notes.empty_rows.first);
    }
    if notes.odd.count > 0 {
        let more = match notes.odd.count {
            1 => String::new(),
            odd => format!("; so do {}", count(odd - 1, "more file")),
        };
        log::warn!("{}, and is read as text{more}", notes.odd.first);
    }
    if let Split::On(separator) = &options.split
        && (notes.texts > 0 && notes.separators == 0)
    {
        let crlf = notes.crlf && separator.contains('\n') && !separator.contains('\r');
        let why = if crlf { "; lines of this text end in \\r\\n: add \\r before each \\n" } else { "" };
        log::warn!(
            "--split-on {}: not found, so each text file is one document{why}",
            separator.escape_debug()
        );
    }
    if marks > 0 && options.split != Split::Never {
        let times = count(marks, "time");
        let eot = options.tokenizer.eot_text();
        log::warn!("{eot} is ordinary text {times}; --allow-special makes it the end-of-text token");
    }
}

fn check(options: &PrepareOptions) -> Result<()> {
    let PrepareOptions { name, shard_size, val_tokens, split, .. } = options;
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
    ensure!(plain, "--name {name}: expected the start of a file name");
    let sizes = 1..=i32::MAX as u64;
    ensure!(sizes.contains(shard_size), "--shard-size {shard_size}: expected 1 to {} tokens", i32::MAX);
    if let Some(tokens) = val_tokens {
        ensure!(sizes.contains(tokens), "--val-tokens {tokens}: expected 1 to {} tokens", i32::MAX);
    }
    ensure!(
        *split != Split::On(String::new()),
        "--split-on: expected a separator of documents, found an empty text"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
