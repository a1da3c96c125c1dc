//! Makes token shards from text: `warpsmith data`.
//!
//! Shard 0 is for validation, all others for training, cut from one stream of tokens in which each document follows
//! an end-of-text token. Documents go on across shards.

use crate::data::documents::{Format, Piece, find_sources};
use crate::data::shard::{SealedShard, ShardWriter};
use crate::data::tokenizer::{EOT, encode_ordinary};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Text that is encoded at once, in parallel, in bytes. With its tokens it is what this needs of memory.
const BATCH_BYTES: usize = 1 << 24;

/// Tokens of a shard, unless told otherwise.
pub const DEFAULT_SHARD_SIZE: u64 = 100_000_000;

/// What to read, and what to make of it.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Text files, `.jsonl` files, folders of them, or `-` for text from standard input.
    pub inputs: Vec<PathBuf>,
    /// The folder for the shards; made if missing.
    pub output: PathBuf,
    /// Shards are called `{name}_val_000000.bin`, `{name}_train_000001.bin` and so on.
    pub name: String,
    /// What separates documents in text files. If it is white space, the documents keep it at their end; any other is
    /// dropped with the white space around it. Without it a file is a document.
    pub split_on: Option<String>,
    /// The field of a JSON line that holds the text.
    pub json_field: String,
    /// Tokens of each training shard but the last.
    pub shard_size: u64,
    /// Tokens for validation; see [`default_val_tokens`].
    pub val_tokens: Option<u64>,
    /// Whether to replace shards of that name.
    pub force: bool,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareReport {
    pub input_bytes: u64,
    pub documents: u64,
    pub val_tokens: u64,
    pub train_tokens: u64,
    /// The validation shard, then the training shards.
    pub shards: Vec<PathBuf>,
}

/// How many tokens are for validation if nobody says: a power of two, 6 to 12 % of usual English text, but no more than
/// a shard.
pub fn default_val_tokens(input_bytes: u64, shard_size: u64) -> u64 {
    (input_bytes / 64).max(1).next_power_of_two().min(shard_size)
}

/// Makes the shards. `progress` is told the bytes read so far and in all (0 if unknown).
///
/// The tokens do not depend on the number of threads. Shards get their names when all is done; after an error
/// there is nothing new in the folder.
///
/// # Errors
/// If an option makes no sense, there are shards of that name already, an input cannot be read or is not text, there is
/// too little of it for both splits, or the disk fails.
pub fn prepare(options: &PrepareOptions, progress: &dyn Fn(u64, u64)) -> Result<PrepareReport> {
    check(options)?;
    let sources = find_sources(&options.inputs)?;
    let input_bytes = sources.iter().map(|s| s.bytes).sum();
    let val_tokens = match options.val_tokens {
        Some(tokens) => tokens,
        None => {
            let piped = options.inputs.iter().any(|p| p.as_os_str() == "-");
            ensure!(!piped, "--val-tokens is needed with standard input, whose size is not known beforehand");
            default_val_tokens(input_bytes, options.shard_size)
        }
    };
    let stale = existing_shards(options)?;
    if let Some(path) = stale.first() {
        let why = "already exists; choose another --name or replace its shards with --force";
        ensure!(options.force, "{}: {why}", path.display());
    }
    fs::create_dir_all(&options.output)
        .with_context(|| format!("{}: cannot make folder", options.output.display()))?;

    let format = Format { split_on: options.split_on.clone(), json_field: options.json_field.clone() };
    let mut encoder =
        Encoder { batch: Vec::new(), batch_bytes: 0, documents: 0, shards: Shards::new(options, val_tokens) };
    let mut done = 0;
    for source in &sources {
        let mut source_bytes = 0;
        source.read(&format, &mut |piece| {
            source_bytes += piece.text.len() as u64;
            if encoder.add(piece)? {
                progress((done + source_bytes).min(input_bytes), input_bytes);
            }
            Ok(())
        })?;
        done += source.bytes;
    }
    encoder.flush()?;
    progress(input_bytes, input_bytes);
    let Encoder { shards, documents, .. } = encoder;
    let (tokens, shards) = shards.publish(val_tokens)?;
    for path in stale.iter().filter(|path| !shards.contains(path)) {
        fs::remove_file(path).with_context(|| format!("{}: cannot remove the old shard", path.display()))?;
    }
    Ok(PrepareReport { input_bytes, documents, val_tokens, train_tokens: tokens - val_tokens, shards })
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
        "--split-on: expected the text between documents, found nothing"
    );
    Ok(())
}

/// Shards of this name from an earlier run, in the order of their names.
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
    let folder = || format!("{}: cannot list output folder", options.output.display());
    for entry in fs::read_dir(&options.output).with_context(folder)? {
        let entry = entry.with_context(folder)?;
        if entry.file_name().to_str().is_some_and(is_shard) {
            shards.push(entry.path());
        }
    }
    shards.sort();
    Ok(shards)
}

/// Collects pieces, encodes many at once, writes their tokens in order.
struct Encoder {
    batch: Vec<Piece>,
    batch_bytes: usize,
    documents: u64,
    shards: Shards,
}

impl Encoder {
    /// Returns whether the batch was full and is written.
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
    sealed: Vec<(PathBuf, SealedShard)>,
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

    /// Gives all shards their names; returns the number of tokens, and the names.
    fn publish(mut self, val_tokens: u64) -> Result<(u64, Vec<PathBuf>)> {
        ensure!(
            self.tokens > val_tokens,
            "the input has {} tokens, of which {val_tokens} would be for validation, leaving none for training; \
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

/// Brings new names to the disk, where folders can be synchronised.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = fs::File::open(path).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("{}: cannot synchronise folder", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::Shard;
    use crate::data::tokenizer::Decoder;
    use std::cell::Cell;
    use tempfile::TempDir;

    /// A folder with `in/`, and options that read it into `out/`.
    fn corpus(files: &[(&str, &str)]) -> (TempDir, PrepareOptions) {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            let path = dir.path().join("in").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let options = PrepareOptions {
            inputs: vec![dir.path().join("in")],
            output: dir.path().join("out"),
            name: "c".to_owned(),
            split_on: None,
            json_field: "text".to_owned(),
            shard_size: 100,
            val_tokens: Some(30),
            force: false,
        };
        (dir, options)
    }

    fn run(options: &PrepareOptions) -> Result<PrepareReport> {
        prepare(options, &|_, _| {})
    }

    fn tokens(report: &PrepareReport) -> Vec<Vec<u16>> {
        report.shards.iter().map(|path| Shard::open(path).unwrap().tokens().to_vec()).collect()
    }

    fn names(report: &PrepareReport) -> Vec<&str> {
        report.shards.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
    }

    fn refusal(options: &PrepareOptions) -> String {
        let message = format!("{:#}", run(options).unwrap_err());
        assert!(!message.contains('\n'), "{message}");
        message
    }

    fn story(seed: usize) -> String {
        (0..40 + seed).map(|i| format!("word{} and {}, ", i * seed, i % 7)).collect()
    }

    #[test]
    fn shards_are_cut_exactly_and_hold_all_text() {
        let (a, b) = (story(1), story(2));
        let (_dir, options) = corpus(&[("b/2.md", &b), ("a.txt", &a), (".hidden", "\u{0}"), ("z.txt", "")]);
        let report = run(&options).unwrap();
        let shards = tokens(&report);
        let expected = [&[EOT], &encode_ordinary(&a)[..], &[EOT], &encode_ordinary(&b)[..]].concat();
        assert_eq!(shards.concat(), expected);
        assert_eq!(names(&report)[..3], ["c_val_000000.bin", "c_train_000001.bin", "c_train_000002.bin"]);
        let (last, full) = shards[1..].split_last().unwrap();
        assert_eq!(shards[0].len(), 30);
        assert!(full.len() >= 3 && full.iter().all(|s| s.len() == 100) && last.len() <= 100);
        assert_eq!((report.documents, report.input_bytes), (2, (a.len() + b.len()) as u64));
        assert_eq!(report.val_tokens + report.train_tokens, expected.len() as u64);
        let text = Decoder::gpt2().decode_bytes(&shards.concat());
        assert_eq!(text, format!("<|endoftext|>{a}<|endoftext|>{b}").as_bytes());
        assert_eq!(fs::read_dir(&options.output).unwrap().count(), shards.len());
    }

    #[test]
    fn a_stream_that_ends_with_a_shard_makes_no_empty_one() {
        let text = "a ".repeat(228);
        let (_dir, options) = corpus(&[("a.txt", text.trim_end())]);
        let report = run(&options).unwrap();
        assert_eq!(tokens(&report).iter().map(Vec::len).collect::<Vec<_>>(), [30, 100, 99]);
        let (_dir, options) = corpus(&[("a.txt", &"a ".repeat(229)[..457])]);
        assert_eq!(tokens(&run(&options).unwrap()).iter().map(Vec::len).collect::<Vec<_>>(), [30, 100, 100]);
    }

    #[test]
    fn text_and_json_lines_mix_in_the_order_given() {
        let (dir, mut options) = corpus(&[
            ("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two <|endoftext|>\"}\n"),
            ("b.txt", "three ### four"),
        ]);
        options.inputs = vec![dir.path().join("in/b.txt"), dir.path().join("in/a.jsonl")];
        options.split_on = Some("###".to_owned());
        options.val_tokens = Some(1);
        let report = run(&options).unwrap();
        assert_eq!(report.documents, 4);
        let text = Decoder::gpt2().decode_bytes(&tokens(&report).concat());
        let e = "<|endoftext|>";
        assert_eq!(String::from_utf8(text).unwrap(), format!("{e}three{e}four{e}one{e}two {e}"));
        assert_eq!(tokens(&report).concat().iter().filter(|&&t| t == EOT).count(), 4);
    }

    #[test]
    fn tokens_do_not_depend_on_threads_and_progress_reaches_the_end() {
        let long: String = (0..2000).map(|i| story(i % 90 + 1) + "\n").collect();
        assert!(long.len() > 1 << 21);
        let (dir, mut options) = corpus(&[("a.txt", &long), ("b.txt", &long)]);
        options.shard_size = 300_000;
        let last = Cell::new((0, 0));
        let report = prepare(&options, &|done, total| {
            assert!(done >= last.get().0 && done <= total);
            last.set((done, total));
        });
        let many = tokens(&report.unwrap());
        assert_eq!(last.get(), (2 * long.len() as u64, 2 * long.len() as u64));
        options.output = dir.path().join("single");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let single = pool.install(|| tokens(&run(&options).unwrap()));
        assert!(many == single);
        let whole = [&[EOT], &encode_ordinary(&long)[..]].concat();
        assert!(many.concat() == [&whole[..], &whole[..]].concat());
    }

    #[test]
    fn existing_shards_are_only_replaced_by_force_and_then_all_of_them() {
        let (dir, mut options) = corpus(&[("a.txt", &story(1))]);
        options.shard_size = 20;
        let many = run(&options).unwrap();
        assert!(many.shards.len() > 5);
        let error = refusal(&options);
        assert!(error.contains("c_train_000001.bin: already exists") && error.contains("--force"), "{error}");
        fs::write(dir.path().join("out/cc_train_000001.bin"), "another's").unwrap();
        options.force = true;
        options.shard_size = 1000;
        let few = run(&options).unwrap();
        assert_eq!(names(&few), ["c_val_000000.bin", "c_train_000001.bin"]);
        assert_eq!(fs::read_dir(&options.output).unwrap().count(), 3);
        assert_eq!(tokens(&few).concat(), [&[EOT], &encode_ordinary(&story(1))[..]].concat());
        options.force = false;
        options.name = "d".to_owned();
        run(&options).unwrap();
    }

    #[test]
    fn an_error_leaves_the_folder_as_it_was() {
        let (dir, mut options) = corpus(&[("a.txt", &story(3))]);
        let before = run(&options).unwrap();
        let kept = tokens(&before);
        fs::write(dir.path().join("in/b.txt"), b"bad \xff").unwrap();
        options.force = true;
        assert!(refusal(&options).contains("b.txt: byte 4 is not UTF-8"));
        assert_eq!(tokens(&before), kept);
        assert_eq!(fs::read_dir(&options.output).unwrap().count(), kept.len());
    }

    #[test]
    fn senseless_requests_are_refused() {
        let (dir, good) = corpus(&[("a.txt", "just a few words")]);
        let refuse = |change: &dyn Fn(&mut PrepareOptions)| {
            let mut options = good.clone();
            change(&mut options);
            refusal(&options)
        };
        assert!(refuse(&|_| {}).contains("5 tokens, of which 30 would be for validation"));
        assert!(refuse(&|o| o.val_tokens = Some(5)).contains("none for training"));
        assert!(refuse(&|o| o.val_tokens = Some(0)).contains("--val-tokens 0"));
        assert!(refuse(&|o| o.shard_size = 0).contains("--shard-size 0"));
        assert!(refuse(&|o| o.shard_size = 1 << 31).contains("--shard-size 2147483648"));
        assert!(refuse(&|o| o.split_on = Some(String::new())).contains("--split-on"));
        for name in ["", "a/b", ".a"] {
            assert!(refuse(&|o| o.name = name.to_owned()).contains("--name"));
        }
        assert!(refuse(&|o| o.inputs = vec![dir.path().join("none")]).contains("none: cannot read"));
        assert!(refuse(&|o| o.inputs.clear()).contains("no files"));
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(refuse(&|o| o.inputs = vec![dir.path().join("empty")]).contains("no files in"));
        let piped = refuse(&|o| (o.inputs, o.val_tokens) = (vec!["-".into()], None));
        assert!(piped.contains("--val-tokens is needed"));
        assert!(refuse(&|o| o.output = dir.path().join("in/a.txt")).contains("cannot list output folder"));
        assert_eq!(fs::read_dir(&good.output).unwrap().count(), 0);
    }

    #[test]
    fn validation_is_a_power_of_two_up_to_a_shard() {
        assert_eq!(default_val_tokens(0, 100), 1);
        // tinyshakespeare: as llm.c splits it.
        assert_eq!(default_val_tokens(1_115_394, DEFAULT_SHARD_SIZE), 32_768);
        assert_eq!(default_val_tokens(50_000_000_000, DEFAULT_SHARD_SIZE), DEFAULT_SHARD_SIZE);
    }
}
