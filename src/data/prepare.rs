//! Makes token shards from text: `warpsmith data`.
//!
//! Shard 0 is for validation and all others are for training. They are cut from one stream of
//! tokens in which an end-of-text token precedes each document. Documents may span shards.

use crate::data::documents::{Format, Piece, find_sources};
use crate::data::shard::ShardWriter;
use crate::data::tokenizer::{EOT, encode_ordinary};
use crate::files::CompleteFile;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of text encoded at a time, in parallel. This text and its tokens determine the use of
/// memory.
const BATCH_BYTES: usize = if cfg!(test) { 1 << 18 } else { 1 << 23 };

/// Default number of tokens per shard.
pub const DEFAULT_SHARD_SIZE: u64 = 100_000_000;

/// Options of [`prepare`].
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Text files, `.jsonl` files, folders of them, or `-` for text from standard input.
    pub inputs: Vec<PathBuf>,
    /// Folder for the shards, created if it is missing.
    pub output: PathBuf,
    /// Prefix of the shards' names: `{name}_val_000000.bin`, `{name}_train_000001.bin` and so on.
    pub name: String,
    /// Separator between documents in text files. Documents keep a separator of white space at
    /// their end; any other is dropped with the white space around it. Without it a file is one
    /// document.
    pub split_on: Option<String>,
    /// Field of a JSON line that holds the text.
    pub json_field: String,
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
    pub input_bytes: u64,
    pub documents: u64,
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
/// If an option is invalid, shards of that name exist already, an input cannot be read or is not
/// text, the text is too short for both splits, or the disk fails.
pub fn prepare(options: &PrepareOptions, progress: &dyn Fn(u64, u64)) -> Result<PrepareReport> {
    check(options)?;
    let sources = find_sources(&options.inputs)?;
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
    let stale = existing_shards(options)?;
    if let Some(path) = stale.first() {
        let why = "already exists; choose another --name or replace its shards with --force";
        ensure!(options.force, "{}: {why}", path.display());
    }
    fs::create_dir_all(&options.output)
        .with_context(|| format!("{}: cannot create the folder", options.output.display()))?;

    let format = Format { split_on: options.split_on.clone(), json_field: options.json_field.clone() };
    let mut encoder =
        Encoder { batch: Vec::new(), batch_bytes: 0, documents: 0, shards: Shards::new(options, val_tokens) };
    let mut done = 0;
    for source in &sources {
        let mut source_bytes = 0;
        source.read(&format, &mut |piece| {
            source_bytes += piece.text.len() as u64;
            if encoder.add(piece)? {
                progress(done + source_bytes, input_bytes);
            }
            Ok(())
        })?;
        // The size of standard input is known only now.
        done += source.bytes.max(source_bytes);
    }
    encoder.flush()?;
    progress(done, input_bytes);
    let Encoder { shards, documents, .. } = encoder;
    let (tokens, shards) = shards.publish(val_tokens)?;
    for path in stale.iter().filter(|path| !shards.contains(path)) {
        fs::remove_file(path).with_context(|| format!("{}: cannot remove the old shard", path.display()))?;
    }
    Ok(PrepareReport { input_bytes: done, documents, val_tokens, train_tokens: tokens - val_tokens, shards })
}

fn check(options: &PrepareOptions) -> Result<()> {
    let PrepareOptions { name, shard_size, val_tokens, split_on, .. } = options;
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
    ensure!(plain, "--name {name}: expected the start of a file name");
    let sizes = 1..=i32::MAX as u64;
    ensure!(sizes.contains(shard_size), "--shard-size {shard_size}: expected 1 to {} tokens", i32::MAX);
    if let Some(tokens) = val_tokens {
        ensure!(sizes.contains(tokens), "--val-tokens {tokens}: expected 1 to {} tokens", i32::MAX);
    }
    ensure!(
        split_on.as_deref() != Some(""),
        "--split-on: expected a separator of documents, found an empty text"
    );
    Ok(())
}

/// Returns the shards of this name from an earlier run, sorted by name.
fn existing_shards(options: &PrepareOptions) -> Result<Vec<PathBuf>> {
    let is_shard = |file: &str| {
        let rest = file.strip_prefix(&options.name).and_then(|rest| rest.strip_suffix(".bin"));
        let index = rest.and_then(|r| r.strip_prefix("_val_").or_else(|| r.strip_prefix("_train_")));
        index.is_some_and(|i| i.len() >= 6 && i.bytes().all(|b| b.is_ascii_digit()))
    };
    if !options.output.exists() {
        return Ok(Vec::new());
    }
    let mut shards = Vec::new();
    let folder = || format!("{}: cannot list the output folder", options.output.display());
    for entry in fs::read_dir(&options.output).with_context(folder)? {
        let entry = entry.with_context(folder)?;
        if entry.file_name().to_str().is_some_and(is_shard) {
            shards.push(entry.path());
        }
    }
    shards.sort();
    Ok(shards)
}

/// Collects pieces, encodes many in parallel, and writes their tokens in order.
struct Encoder {
    batch: Vec<Piece>,
    batch_bytes: usize,
    documents: u64,
    shards: Shards,
}

impl Encoder {
    /// Adds a piece. Returns whether that filled the batch, which was then written.
    fn add(&mut self, piece: Piece) -> Result<bool> {
        self.batch_bytes += piece.text.len();
        self.documents += u64::from(piece.starts_document);
        self.batch.push(piece);
        let full = self.batch_bytes >= BATCH_BYTES;
        if full {
            self.flush()?;
        }
        Ok(full)
    }

    fn flush(&mut self) -> Result<()> {
        let encoded: Vec<Vec<u16>> =
            self.batch.par_iter().map(|piece| encode_ordinary(&piece.text)).collect();
        for (piece, tokens) in self.batch.iter().zip(encoded) {
            if piece.starts_document {
                self.shards.write(&[EOT])?;
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
        Shards { output, name, val_tokens, shard_size, tokens: 0, open: None, sealed: Vec::new() }
    }

    fn next_path(&self) -> PathBuf {
        let index = self.sealed.len();
        let split = if index == 0 { "val" } else { "train" };
        self.output.join(format!("{}_{split}_{index:06}.bin", self.name))
    }

    fn write(&mut self, mut tokens: &[u16]) -> Result<()> {
        self.tokens += tokens.len() as u64;
        while !tokens.is_empty() {
            let size = if self.sealed.is_empty() { self.val_tokens } else { self.shard_size };
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => ShardWriter::create(&self.next_path())?,
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

    /// Gives all shards their final names. Returns the number of tokens, and the names.
    fn publish(mut self, val_tokens: u64) -> Result<(u64, Vec<PathBuf>)> {
        ensure!(
            self.tokens > val_tokens,
            "the input has {} tokens; {val_tokens} for validation would leave none for training; \
             give more text or a smaller --val-tokens",
            self.tokens
        );
        self.seal()?;
        let mut paths = Vec::new();
        for (path, shard) in self.sealed {
            shard.publish()?;
            paths.push(path);
        }
        sync_folder(&self.output)?;
        Ok((self.tokens, paths))
    }
}

/// Syncs new names to the disk, where folders can be synced.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = fs::File::open(path).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("{}: cannot sync the folder", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
