//! Token shards in llm.c's formats: a header (field 2: number of tokens), then each token as a u16,
//! or for vocabularies of more than 65,536 tokens as a u32. Fields 3 to 6 identify the tokenizer;
//! llm.c leaves them zero, which stands for GPT-2's, or Llama 3's in shards of 32-bit tokens. Field
//! 7 is 1 if a file beside the shard says which tokens count, see [`mask`](super::mask).

use crate::data::imported;
use crate::data::tokenizer::TokenizerId;
use crate::files::{self, CompleteFile, NewFile};
use crate::llmc::{HEADER_BYTES, Header, Kind, SHARD, WIDE_SHARD};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Header field that holds the number of tokens.
const TOKENS: usize = 2;

/// First of the header fields that hold a [`TokenizerId`].
const TOKENIZER: usize = 3;

/// Header field that says whether the shard has a mask.
const MASKED: usize = 7;

/// The type of tokens on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    U16,
    U32,
}

impl Width {
    /// Returns the smaller width that holds every id of a vocabulary.
    pub fn of(vocab_size: u32) -> Self {
        if vocab_size <= 1 << 16 { Width::U16 } else { Width::U32 }
    }

    /// Bytes of a token.
    pub fn bytes(self) -> usize {
        match self {
            Width::U16 => 2,
            Width::U32 => 4,
        }
    }

    fn kind(self) -> &'static Kind {
        match self {
            Width::U16 => &SHARD,
            Width::U32 => &WIDE_SHARD,
        }
    }

    fn version(self) -> i32 {
        match self {
            Width::U16 => 1,
            Width::U32 => 7,
        }
    }

    /// The tokenizer of llm.c's shards of this width.
    fn default_tokenizer(self) -> TokenizerId {
        match self {
            Width::U16 => TokenizerId::GPT2,
            Width::U32 => TokenizerId::LLAMA3,
        }
    }

    /// Appends tokens to `out` as they are on disk. They fit the width.
    pub fn encode(self, tokens: &[u32], out: &mut Vec<u8>) {
        match self {
            Width::U16 => out.extend(tokens.iter().flat_map(|&token| (token as u16).to_le_bytes())),
            Width::U32 => out.extend_from_slice(bytemuck::cast_slice(tokens)),
        }
    }

    /// Widens tokens in place, which are at the start of `tokens` as they are on disk.
    fn widen(self, tokens: &mut [u32]) {
        if self == Width::U16 {
            for i in (0..tokens.len()).rev() {
                let narrow: &[u16] = bytemuck::cast_slice(tokens);
                tokens[i] = u32::from(narrow[i]);
            }
        }
    }
}

/// The form of a file of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShardFormat {
    /// llm.c's: a header of 1024 bytes.
    #[default]
    Bin,
    /// A NumPy array of one dimension, as build-nanogpt reads it.
    Npy,
    /// Tokens without a header, as nanoGPT reads them.
    Raw,
}

impl ShardFormat {
    /// Returns the ending of a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            ShardFormat::Bin | ShardFormat::Raw => "bin",
            ShardFormat::Npy => "npy",
        }
    }
}

/// An open shard. Its tokens are read on request, not mapped into memory: a file that is cut short
/// while it is mapped ends the process with a signal, whereas a read returns an error.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    /// Offset of the first token in the file.
    start: usize,
    width: Width,
    tokenizer: TokenizerId,
    tokens: usize,
    is_masked: bool,
}

impl Shard {
    /// Opens a shard, or a NumPy array of uint16, and checks its header and size, without reading a
    /// token.
    ///
    /// # Errors
    /// If the file cannot be read, is not a token shard, is empty, or is not as long as its header
    /// says.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some((start, tokens)) = imported::npy_of_u16(path) {
            let (file, width) = (files::open(path)?.0, Width::U16);
            let (path, tokenizer) = (path.to_owned(), width.default_tokenizer());
            return Ok(Shard { path, file, start, width, tokenizer, tokens, is_masked: false });
        }
        let (header, file, bytes) = Header::open_any(path, &[&SHARD, &WIDE_SHARD]).map_err(|error| {
            let found = imported::describe(path);
            found.map_or(error, |found| anyhow!("{}: expected a token shard, found {found}", path.display()))
        })?;
        let width = if header.magic() == SHARD.magic { Width::U16 } else { Width::U32 };
        let tokens = header.i32(TOKENS);
        let checked = check_size(tokens, width, bytes)
            .and_then(|()| TokenizerId::read(&header, TOKENIZER, width.default_tokenizer()));
        let tokenizer = checked.with_context(|| path.display().to_string())?;
        let (path, start) = (path.to_owned(), HEADER_BYTES);
        let (tokens, is_masked) = (tokens as usize, header.i32(MASKED) != 0);
        Ok(Shard { path, file, start, width, tokenizer, tokens, is_masked })
    }

    /// Whether a mask beside the shard says which of its tokens count.
    pub fn is_masked(&self) -> bool {
        self.is_masked
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn width(&self) -> Width {
        self.width
    }

    /// Returns the tokenizer that the header names.
    pub fn tokenizer(&self) -> TokenizerId {
        self.tokenizer
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Fills `tokens` with those of the shard from index `start` on.
    ///
    /// # Errors
    /// If the file was cut short after it was opened, or cannot be read.
    pub fn read(&self, start: usize, tokens: &mut [u32]) -> Result<()> {
        let at = (self.start + self.width.bytes() * start) as u64;
        let bytes = self.width.bytes() * tokens.len();
        let narrow: &mut [u8] = &mut bytemuck::cast_slice_mut(tokens)[..bytes];
        match self.file.read_exact_at(narrow, at) {
            Ok(()) => {
                self.width.widen(tokens);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let expected = self.start + self.width.bytes() * self.tokens;
                let found = self.file.metadata().map_or(0, |m| m.len());
                let advice = "it was cut short while in use: copy it again or recreate it";
                bail!("{}: expected {expected} bytes, found {found}; {advice}", self.path.display())
            }
            Err(e) => Err(e).with_context(|| format!("{}: cannot read", self.path.display())),
        }
    }

    /// Whether both are the same file, by whatever name.
    pub fn is_same_file(&self, other: &Shard) -> bool {
        let id = |shard: &Shard| shard.file.metadata().map(|m| files::identity(&m)).ok();
        id(self).is_some_and(|file| Some(file) == id(other))
    }

    /// Returns all tokens.
    #[cfg(test)]
    pub fn tokens(&self) -> Vec<u32> {
        let mut tokens = vec![0; self.tokens];
        self.read(0, &mut tokens).unwrap();
        tokens
    }
}

fn check_size(tokens: i32, width: Width, file_bytes: u64) -> Result<()> {
    ensure!(tokens > 0, "token shard of {tokens} tokens; expected at least 1; recreate the shard");
    let expected = HEADER_BYTES as u64 + width.bytes() as u64 * tokens as u64;
    ensure!(
        file_bytes == expected,
        "token shard of {tokens} tokens has {file_bytes} bytes, expected {expected}; \
         it was truncated or damaged: copy it again or recreate it"
    );
    Ok(())
}

/// Writes a shard under a temporary name. If dropped early, it leaves nothing behind.
pub struct ShardWriter {
    file: NewFile,
    format: ShardFormat,
    width: Width,
    tokenizer: TokenizerId,
    tokens: u64,
    is_masked: bool,
    path: PathBuf,
    /// Kept between calls to avoid allocating.
    bytes: Vec<u8>,
}

impl ShardWriter {
    /// Starts the shard whose final name is `path`, for tokens of `tokenizer`. Its vocabulary
    /// decides on the width of a token.
    pub fn create(path: &Path, tokenizer: TokenizerId) -> Result<Self> {
        Self::create_as(path, tokenizer, ShardFormat::Bin)
    }

    /// As [`Self::create`], in any form.
    pub fn create_as(path: &Path, tokenizer: TokenizerId, format: ShardFormat) -> Result<Self> {
        let (file, width) = (NewFile::create(path)?, Width::of(tokenizer.vocab_size));
        let path = path.to_owned();
        let (tokens, is_masked, bytes) = (0, false, Vec::new());
        let mut writer = ShardWriter { file, format, width, tokenizer, tokens, is_masked, path, bytes };
        writer.write_header().with_context(|| writer.failure())?;
        Ok(writer)
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// If they cannot be written, or exceed what llm.c's format can count (2³¹ - 1).
    ///
    /// # Panics
    /// If a token does not fit the width.
    pub fn write(&mut self, tokens: &[u32]) -> Result<()> {
        let total = self.tokens + tokens.len() as u64;
        ensure!(
            total <= i32::MAX as u64 || self.format != ShardFormat::Bin,
            "{}: a token shard holds at most {} tokens; use smaller shards",
            self.path.display(),
            i32::MAX
        );
        let fit = self.width == Width::U32 || tokens.iter().all(|&token| token <= u32::from(u16::MAX));
        assert!(fit, "tokens outside the vocabulary of {}", self.tokenizer);
        self.bytes.clear();
        self.width.encode(tokens, &mut self.bytes);
        self.file.write_all(&self.bytes).with_context(|| self.failure())?;
        self.tokens = total;
        Ok(())
    }

    /// Says in the header that a mask lies beside the shard.
    pub(super) fn set_masked(&mut self) {
        self.is_masked = true;
    }

    /// Returns the number of tokens written so far.
    pub fn len(&self) -> u64 {
        self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Completes the header and syncs the file to the disk, still under its temporary name.
    ///
    /// # Errors
    /// If the shard is empty, which no reader accepts, or the disk fails.
    pub fn seal(mut self) -> Result<CompleteFile> {
        ensure!(self.tokens > 0, "{}: no tokens to write", self.path.display());
        self.write_header().with_context(|| self.failure())?;
        self.file.complete()
    }

    fn write_header(&mut self) -> std::io::Result<()> {
        match self.format {
            ShardFormat::Bin => {}
            ShardFormat::Npy => {
                self.file.rewind()?;
                return self.file.write_all(&imported::npy_header(self.width.bytes(), self.tokens));
            }
            ShardFormat::Raw => return Ok(()),
        }
        let mut header = Header::new(self.width.kind(), self.width.version());
        header.set(TOKENS, self.tokens as i32);
        header.set(MASKED, self.is_masked.into());
        self.tokenizer.write(&mut header, TOKENIZER, self.width.default_tokenizer());
        self.file.rewind()?;
        header.write(&mut self.file)
    }

    fn failure(&self) -> String {
        format!("{}: cannot write token shard", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn write_raw(dir: &TempDir, header: [i32; 3], tokens: &[u16]) -> PathBuf {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..12].copy_from_slice(bytemuck::cast_slice(&header));
        bytes.extend_from_slice(bytemuck::cast_slice(tokens));
        let path = dir.path().join("shard.bin");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn refusal(path: &Path) -> String {
        let message = format!("{:#}", Shard::open(path).unwrap_err());
        assert!(message.contains(path.to_str().unwrap()) && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.bin");
        let mut writer = ShardWriter::create(&path, TokenizerId::GPT2).unwrap();
        writer.write(&[1, 2, 65535]).unwrap();
        writer.write(&[0]).unwrap();
        assert_eq!(writer.len(), 4);
        let sealed = writer.seal().unwrap();
        assert!(!path.exists());
        sealed.publish().unwrap();
        let shard = Shard::open(&path).unwrap();
        assert_eq!(shard.tokens(), [1, 2, 65535, 0]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 1024 + 8);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_vocabulary_decides_on_the_width_and_is_named() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.bin");
        let custom = TokenizerId { vocab_size: 300, eot: 7, digest: 0x0123_4567_89ab_cdef };
        let large = TokenizerId { vocab_size: 65_537, ..custom };
        for (id, magic, width, fields) in [
            (TokenizerId::GPT2, 20240520, Width::U16, [1, 2, 0, 0, 0, 0, 0]),
            (custom, 20240520, Width::U16, [1, 2, 300, 7, 0x89ab_cdefu32 as i32, 0x0123_4567, 0]),
            (large, 20240801, Width::U32, [7, 2, 65_537, 7, 0x89ab_cdefu32 as i32, 0x0123_4567, 0]),
            (TokenizerId::LLAMA3, 20240801, Width::U32, [7, 2, 0, 0, 0, 0, 0]),
        ] {
            let mut writer = ShardWriter::create(&path, id).unwrap();
            writer.write(&[id.eot, 3]).unwrap();
            writer.seal().unwrap().publish().unwrap();
            let shard = Shard::open(&path).unwrap();
            assert_eq!((shard.tokenizer(), shard.width()), (id, width));
            assert_eq!(shard.tokens(), [id.eot, 3]);
            let bytes = fs::read(&path).unwrap();
            let header: &[i32] = &bytemuck::pod_collect_to_vec(&bytes[..HEADER_BYTES]);
            assert_eq!((header[0], &header[1..8]), (magic, &fields[..]));
            assert!(header[8..].iter().all(|&field| field == 0));
            assert_eq!(bytes.len(), HEADER_BYTES + 2 * width.bytes());
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[12..20].copy_from_slice(bytemuck::cast_slice(&[5i32, 5]));
        fs::write(&path, bytes).unwrap();
        assert!(refusal(&path).contains("a tokenizer of 5 tokens whose end-of-text token is 5"));
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let mut writer = ShardWriter::create(&dir.path().join("a.bin"), TokenizerId::GPT2).unwrap();
        writer.write(&[1; 10]).unwrap();
        drop(writer);
        let sealed = {
            let mut writer = ShardWriter::create(&dir.path().join("b.bin"), TokenizerId::GPT2).unwrap();
            writer.write(&[1; 10]).unwrap();
            writer.seal().unwrap()
        };
        drop(sealed);
        assert!(ShardWriter::create(&dir.path().join("c.bin"), TokenizerId::GPT2).unwrap().seal().is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(ShardWriter::create(&dir.path().join("missing/a.bin"), TokenizerId::GPT2).is_err());
    }

    #[test]
    fn bad_shards_are_refused_with_the_reason() {
        let dir = TempDir::new().unwrap();
        let tokens = [7; 10];
        assert!(refusal(&dir.path().join("none.bin")).contains("cannot read"));
        assert!(refusal(dir.path()).contains("not a regular file"));
        let refuse = |header| refusal(&write_raw(&dir, header, &tokens));
        assert!(
            refuse([20_240_326, 3, 10])
                .contains("expected a token shard (magic 20240520), found a model (magic 20240326)")
        );
        assert!(refuse([20_240_801, 7, 10]).contains("1044 bytes, expected 1064"));
        assert!(refuse([20_240_801, 6, 10]).contains("of version 7, found version 6"));
        assert!(refuse([0x1234, 1, 10]).contains("found magic 4660"));
        assert!(refuse([SHARD.magic, 2, 10]).contains("version 2"));
        assert!(refuse([SHARD.magic, 1, 0]).contains("of 0 tokens"));
        assert!(refuse([SHARD.magic, 1, -10]).contains("of -10 tokens"));
        assert!(refuse([SHARD.magic, 1, 11]).contains("1044 bytes, expected 1046"));
        assert!(refuse([SHARD.magic, 1, 9]).contains("truncated or damaged"));
        let path = dir.path().join("short.bin");
        fs::write(&path, [0; 1023]).unwrap();
        assert!(refusal(&path).contains("found 1023 bytes"));
        fs::write(&path, []).unwrap();
        assert!(refusal(&path).contains("an empty file"));
    }

    /// The format counts with 31 bits. A sparse file stands in for one of 4 GiB.
    #[test]
    fn shards_beyond_two_gigabytes_are_read_to_the_end() {
        let dir = TempDir::new().unwrap();
        let path = write_raw(&dir, [SHARD.magic, 1, i32::MAX], &[]);
        let bytes = HEADER_BYTES as u64 + 2 * i32::MAX as u64;
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        let shard = Shard::open(&path).unwrap();
        assert_eq!(shard.len(), i32::MAX as usize);
        let mut last = [7; 2];
        shard.read(shard.len() - 2, &mut last).unwrap();
        assert_eq!(last, [0, 0]);
    }

    #[test]
    fn a_shard_cut_short_while_it_is_open_is_an_error() {
        let dir = TempDir::new().unwrap();
        let path = write_raw(&dir, [SHARD.magic, 1, 10], &[7; 10]);
        let shard = Shard::open(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(HEADER_BYTES as u64 + 9).unwrap();
        shard.read(0, &mut [0; 4]).unwrap();
        let message = format!("{:#}", shard.read(2, &mut [0; 4]).unwrap_err());
        let expected = format!("{}: expected 1044 bytes, found 1033; it was cut short", path.display());
        assert!(message.starts_with(&expected) && !message.contains('\n'), "{message}");
    }
}
