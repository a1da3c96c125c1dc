//! Makes token shards from text: `warpsmith data`.
//!
//! Shard 0 is for validation and all others are for training. They are cut from one stream of
//! tokens in which an end-of-text token precedes each document. Documents may span shards.

mod folder;

pub use crate::data::documents::Split;
use crate::data::documents::{Format, Notes, Piece, find_sources};
use crate::data::shard::ShardWriter;
use crate::data::tokenizer::{Tokenizer, TokenizerId};
use crate::files::CompleteFile;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use folder::Folder;
use rayon::prelude::*;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

/// Bytes of text encoded at a time, in parallel. This text and its tokens determine the use of
/// memory.
const BATCH_BYTES: usize = if cfg!(test) { 1 << 18 } else { 1 << 23 };

/// Default number of tokens per shard.
pub const DEFAULT_SHARD_SIZE: u64 = 100_000_000;

/// Options of [`prepare`].
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Text files, JSON files, folders of them, or `-` for standard input. Files may be compressed.
    pub inputs: Vec<PathBuf>,
    /// Folder for the shards, created if it is missing.
    pub output: PathBuf,
    /// Written beside the shards, unless it is built in.
    pub tokenizer: Tokenizer,
    /// Prefix of the shards' names: `{name}_val_000000.bin`, `{name}_train_000001.bin` and so on.
    pub name: String,
    /// The places where text files are split into documents.
    pub split: Split,
    /// Field of a JSON object that holds the text, if the user named one. All inputs are then JSON.
    pub json_field: Option<String>,
    /// Whether JSON objects that are not usable are left out.
    pub skip_bad_lines: bool,
    /// Whether `<|endoftext|>` within a document is that token instead of text.
    pub allow_special: bool,
    /// Tokens per training shard, except the last.
    pub shard_size: u64,
    /// Tokens for validation; see [`default_val_tokens`].
    pub val_tokens: Option<u64>,
    /// Whether to replace shards of that name.
    pub force: bool,
}

/// The result of [`prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareReport {
    /// Bytes of the inputs, compressed if they are.
    pub input_bytes: u64,
    pub documents: u64,
    /// Places where text was split, because it has `<|endoftext|>` there.
    pub end_of_text_marks: u64,
    pub val_tokens: u64,
    pub train_tokens: u64,
    /// The validation shard, then the training shards.
    pub shards: Vec<PathBuf>,
}

/// Returns the default number of validation tokens: a power of two, 6 to 12 % of typical English
/// text, and at most one shard.
pub fn default_val_tokens(input_bytes: u64, shard_size: u64) -> u64 {
    (input_bytes / 64).max(1).next_power_of_two().min(shard_size)
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
    let sources = find_sources(&options.inputs, &folder::own_shards(&options.output, &options.name))?;
    let input_bytes = sources.iter().map(|s| s.bytes).sum();
    let val_tokens = match options.val_tokens {
        Some(tokens) => tokens,
        None => {
            let piped = options.inputs.iter().any(|p| p.as_os_str() == "-");
            ensure!(
                !piped,
                "--val-tokens is required with standard input, as its size is not known in advance"
            );
            default_val_tokens(input_bytes, options.shard_size)
        }
    };
    let folder = Folder::lock(&options.output, &options.name)?;
    folder.check_tokenizer(&options.tokenizer, options.force)?;
    let stale = folder.shards()?;
    if let Some(path) = stale.first() {
        let why = "already exists; choose another --name or replace its shards with --force";
        ensure!(options.force, "{}: {why}", path.display());
    }

    let format = Format {
        split: options.split.clone(),
        json_field: options.json_field.clone(),
        skip_bad_lines: options.skip_bad_lines,
        cuts: options.tokenizer.cuts(),
    };
    let mut encoder = Encoder::new(options, val_tokens);
    let (done, mut notes) = (Rc::new(Cell::new(0)), Notes::default());
    for source in &sources {
        source.read(&format, &mut notes, &done, &mut |piece| {
            if encoder.add(piece)? {
                progress(done.get(), input_bytes);
            }
            Ok(())
        })?;
    }
    encoder.flush()?;
    progress(done.get(), input_bytes);
    warn(options, &notes, encoder.marks);
    let Encoder { shards, documents, .. } = encoder;
    let (tokens, shards) = shards.publish(val_tokens, &options.tokenizer)?;
    for path in stale.iter().filter(|path| !shards.contains(path)) {
        fs::remove_file(path).with_context(|| format!("{}: cannot remove the old shard", path.display()))?;
    }
    let splits_at_marks = options.split == Split::EndOfText;
    Ok(PrepareReport {
        input_bytes: done.get(),
        documents,
        end_of_text_marks: if splits_at_marks { notes.separators } else { 0 },
        val_tokens,
        train_tokens: tokens - val_tokens,
        shards,
    })
}

/// Warns about findings in the text; `marks` are those that became ordinary tokens.
fn warn(options: &PrepareOptions, notes: &Notes, marks: u64) {
    if notes.skipped.count > 0 {
        let objects = count(notes.skipped.count, "JSON object");
        log::warn!("--skip-bad-lines: left out {objects}; the first is {}", notes.skipped.first);
    }
    if notes.odd.count > 1 {
        let more = count(notes.odd.count - 1, "more file");
        log::warn!("after {}, {more} looked like JSON or markup, read as text", notes.odd.first);
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

/// Collects pieces, encodes many in parallel, and writes their tokens in order.
struct Encoder {
    batch: Vec<Piece>,
    batch_bytes: usize,
    documents: u64,
    tokenizer: Tokenizer,
    allow_special: bool,
    /// Occurrences of `<|endoftext|>` that became ordinary tokens.
    marks: u64,
    shards: Shards,
}

impl Encoder {
    fn new(options: &PrepareOptions, val_tokens: u64) -> Self {
        let shards = Shards::new(options, val_tokens);
        let (tokenizer, allow_special) = (options.tokenizer.clone(), options.allow_special);
        Encoder {
            batch: Vec::new(),
            batch_bytes: 0,
            documents: 0,
            tokenizer,
            allow_special,
            marks: 0,
            shards,
        }
    }

    /// Adds a piece. Returns whether that filled the batch, which was then written.
    fn add(&mut self, piece: Piece) -> Result<bool> {
        self.batch_bytes += piece.text.len();
        self.documents += u64::from(piece.starts_document);
        if !self.allow_special {
            // Pieces are never cut within a mark, as it has no white space.
            self.marks += piece.text.matches(self.tokenizer.eot_text()).count() as u64;
        }
        self.batch.push(piece);
        let full = self.batch_bytes >= BATCH_BYTES;
        if full {
            self.flush()?;
        }
        Ok(full)
    }

    fn flush(&mut self) -> Result<()> {
        let encode = if self.allow_special { Tokenizer::encode } else { Tokenizer::encode_ordinary };
        let tokenizer = &self.tokenizer;
        let encoded: Vec<Vec<u32>> =
            self.batch.par_iter().map(|piece| encode(tokenizer, &piece.text)).collect();
        for (piece, tokens) in self.batch.iter().zip(encoded) {
            if piece.starts_document {
                self.shards.write(&[self.tokenizer.eot()])?;
            }
            self.shards.write(&tokens)?;
        }
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }
}

/// Cuts the stream of tokens into shards.
struct Shards {
    output: PathBuf,
    name: String,
    tokenizer: TokenizerId,
    val_tokens: u64,
    shard_size: u64,
    tokens: u64,
    /// The shard being written.
    open: Option<ShardWriter>,
    sealed: Vec<(PathBuf, CompleteFile)>,
}

impl Shards {
    fn new(options: &PrepareOptions, val_tokens: u64) -> Self {
        let PrepareOptions { output, name, shard_size, .. } = options.clone();
        let tokenizer = options.tokenizer.id();
        Shards { output, name, tokenizer, val_tokens, shard_size, tokens: 0, open: None, sealed: Vec::new() }
    }

    fn next_path(&self) -> PathBuf {
        let index = self.sealed.len();
        let split = if index == 0 { "val" } else { "train" };
        self.output.join(format!("{}_{split}_{index:06}.bin", self.name))
    }

    fn write(&mut self, mut tokens: &[u32]) -> Result<()> {
        self.tokens += tokens.len() as u64;
        while !tokens.is_empty() {
            let size = if self.sealed.is_empty() { self.val_tokens } else { self.shard_size };
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => ShardWriter::create(&self.next_path(), self.tokenizer)?,
            };
            let room = usize::try_from(size - shard.len()).unwrap_or(usize::MAX);
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            shard.write(now)?;
            let full = shard.len() == size;
            self.open = Some(shard);
            if full {
                self.seal()?;
            }
            tokens = later;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        if let Some(shard) = self.open.take() {
            let path = self.next_path();
            self.sealed.push((path, shard.seal()?));
        }
        Ok(())
    }

    /// Gives all shards their final names, after a tokenizer that is not built in. Returns the number of tokens, and the names.
    fn publish(mut self, val_tokens: u64, tokenizer: &Tokenizer) -> Result<(u64, Vec<PathBuf>)> {
        ensure!(self.tokens > 0, "the input is empty");
        ensure!(
            self.tokens > val_tokens,
            "the input has {} tokens; {val_tokens} for validation would leave none for training; \
             give more text or a smaller --val-tokens",
            self.tokens
        );
        self.seal()?;
        let mut paths = Vec::new();
        if !tokenizer.is_gpt2() {
            tokenizer.write_json(&self.output)?;
        }
        for (path, shard) in self.sealed {
            shard.publish()?;
            paths.push(path);
        }
        Ok((self.tokens, paths))
    }
}

#[cfg(test)]
mod tests;
