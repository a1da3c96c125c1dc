//! The mask of a token shard: a file `NAME.mask` beside `NAME.bin`. It has a header (field 2:
//! number of tokens, 3: CRC-32 of the tokens as they are on disk, 4: CRC-32 of what follows), then
//! a byte per token: 1 if the token counts as a target, plus 2 if it starts a document.
//!
//! Documents have borders of their own because a document may hold the end-of-text token, as the
//! turns of a conversation do. The shard itself is one like any other, which llm.c reads; the name
//! of its mask does not match the patterns of shards.

use super::shard::{Shard, ShardWriter, Width};
use super::tokenizer::TokenizerId;
use crate::files::{CompleteFile, NewFile};
use crate::llmc::{HEADER_BYTES, Header, MASK};
use anyhow::{Context, Result, ensure};
use crc32fast::Hasher;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The bit of a token that counts as a target.
const COUNTS: u8 = 1;

/// The bit of the first token of a document.
const STARTS: u8 = 2;

/// Header fields.
const TOKENS: usize = 2;
const TOKENS_CRC: usize = 3;
const MASK_CRC: usize = 4;

/// Tokens read at a time.
const BLOCK_TOKENS: usize = 1 << 18;

/// Returns the name of the mask of a shard.
pub fn path_of(shard: &Path) -> PathBuf {
    shard.with_extension("mask")
}

/// The mask of a shard, in memory.
#[derive(Debug)]
pub struct Mask {
    /// A byte per token.
    marks: Vec<u8>,
    crc: u32,
}

impl Mask {
    /// Reads the mask of a shard, and all of the shard to see that they belong together.
    ///
    /// # Errors
    /// One line, if the mask is missing, damaged, or that of other tokens.
    pub fn open(shard: &Shard) -> Result<Self> {
        let path = path_of(shard.path());
        let (name, of) = (path.display(), shard.path().display());
        ensure!(
            path.exists(),
            "{name}: missing, and {of} needs its mask to know which tokens count; copy it there, or make both \
             again with `warpsmith sft`"
        );
        let (header, mut file, bytes) = Header::open(&path, &MASK)?;
        let tokens = shard.len();
        let (found, expected) = (header.i32(TOKENS), HEADER_BYTES as u64 + tokens as u64);
        ensure!(
            found as usize == tokens && bytes == expected,
            "{name}: expected the mask of {tokens} tokens in {expected} bytes, found one of {found} in {bytes}; copy \
             it and {of} again, or make both again"
        );
        let mut marks = Vec::with_capacity(tokens);
        file.read_to_end(&mut marks).with_context(|| format!("{name}: cannot read"))?;
        let crc = crc32fast::hash(&marks);
        let is_whole = crc == header.i32(MASK_CRC).cast_unsigned()
            && marks.len() == tokens
            && marks.iter().all(|mark| mark & !(COUNTS | STARTS) == 0)
            && marks[0] & STARTS != 0;
        ensure!(is_whole, "{name}: damaged; copy it again, or make it and {of} again");
        ensure!(
            crc_of(shard)? == header.i32(TOKENS_CRC).cast_unsigned(),
            "{name}: the mask of other tokens than those of {of}; copy both again, or make both again"
        );
        Ok(Mask { marks, crc })
    }

    /// Whether the token at an index counts as a target.
    pub fn counts(&self, index: usize) -> bool {
        self.marks[index] & COUNTS != 0
    }

    /// CRC-32 of the mask.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Returns the first token of each document, and the end of the last.
    pub fn borders(&self) -> Vec<usize> {
        let starts = self.marks.iter().enumerate().filter(|(_, mark)| **mark & STARTS != 0);
        starts.map(|(index, _)| index).chain([self.marks.len()]).collect()
    }
}

fn crc_of(shard: &Shard) -> Result<u32> {
    let (mut hasher, mut block, mut bytes) = (Hasher::new(), vec![0; BLOCK_TOKENS], Vec::new());
    for start in (0..shard.len()).step_by(BLOCK_TOKENS) {
        let block = &mut block[..BLOCK_TOKENS.min(shard.len() - start)];
        shard.read(start, block)?;
        bytes.clear();
        shard.width().encode(block, &mut bytes);
        hasher.update(&bytes);
    }
    Ok(hasher.finalize())
}

/// Writes a shard and its mask, both under temporary names. If dropped early, it leaves nothing
/// behind.
pub struct MaskedShardWriter {
    shard: ShardWriter,
    mask: NewFile,
    path: PathBuf,
    width: Width,
    tokens_crc: Hasher,
    mask_crc: Hasher,
}

impl MaskedShardWriter {
    /// Starts the shard whose final name is `path`, and its mask.
    ///
    /// # Errors
    /// If a file cannot be created.
    pub fn create(path: &Path, tokenizer: TokenizerId) -> Result<Self> {
        let mut shard = ShardWriter::create(path, tokenizer)?;
        shard.set_masked();
        let path = path_of(path);
        let mut mask = NewFile::create(&path)?;
        mask.write_all(&[0; HEADER_BYTES]).with_context(|| failure(&path))?;
        let (width, tokens_crc, mask_crc) = (Width::of(tokenizer.vocab_size), Hasher::new(), Hasher::new());
        Ok(MaskedShardWriter { shard, mask, path, width, tokens_crc, mask_crc })
    }

    /// Appends a document, of which `counts` says for each token whether it is a target.
    ///
    /// # Errors
    /// Those of [`ShardWriter::write`].
    pub fn write(&mut self, tokens: &[u32], counts: &[bool]) -> Result<()> {
        assert_eq!(tokens.len(), counts.len());
        self.shard.write(tokens)?;
        let mut bytes = Vec::new();
        self.width.encode(tokens, &mut bytes);
        self.tokens_crc.update(&bytes);
        let start = |index| if index == 0 { STARTS } else { 0 };
        let marks = counts.iter().enumerate().map(|(index, counts)| u8::from(*counts) | start(index));
        let marks: Vec<u8> = marks.collect();
        self.mask_crc.update(&marks);
        self.mask.write_all(&marks).with_context(|| failure(&self.path))
    }

    /// Returns the number of tokens written so far.
    pub fn len(&self) -> u64 {
        self.shard.len()
    }

    pub fn is_empty(&self) -> bool {
        self.shard.is_empty()
    }

    /// Completes both files, still under their temporary names: the mask, then the shard. Published
    /// in this order, no shard is ever without its mask.
    ///
    /// # Errors
    /// Those of [`ShardWriter::seal`].
    pub fn seal(mut self) -> Result<[CompleteFile; 2]> {
        let mut header = Header::new(&MASK, 1);
        header.set(TOKENS, self.shard.len() as i32);
        header.set(TOKENS_CRC, self.tokens_crc.finalize().cast_signed());
        header.set(MASK_CRC, self.mask_crc.finalize().cast_signed());
        let written = self.mask.rewind().and_then(|()| header.write(&mut self.mask));
        written.with_context(|| failure(&self.path))?;
        Ok([self.mask.complete()?, self.shard.seal()?])
    }
}

fn failure(path: &Path) -> String {
    format!("{}: cannot write the mask", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn write(dir: &TempDir, name: &str, documents: &[(&[u32], &[bool])]) -> PathBuf {
        let path = dir.path().join(name);
        let mut writer = MaskedShardWriter::create(&path, TokenizerId::GPT2).unwrap();
        documents.iter().for_each(|(tokens, counts)| writer.write(tokens, counts).unwrap());
        writer.seal().unwrap().into_iter().for_each(|file| file.publish().unwrap());
        path
    }

    const DOCUMENTS: [(&[u32], &[bool]); 2] =
        [(&[5, 50256, 7], &[false, true, true]), (&[8, 9], &[false, true])];

    #[test]
    fn tokens_and_marks_are_read_as_written() {
        let dir = TempDir::new().unwrap();
        let shard = Shard::open(&write(&dir, "a.bin", &DOCUMENTS)).unwrap();
        assert!(shard.is_masked());
        assert_eq!(shard.tokens(), [5, 50256, 7, 8, 9]);
        let mask = Mask::open(&shard).unwrap();
        assert_eq!(mask.borders(), [0, 3, 5]);
        assert_eq!((0..5).map(|i| mask.counts(i)).collect::<Vec<_>>(), [false, true, true, false, true]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_mask_that_does_not_fit_is_refused_in_one_line() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, "a.bin", &DOCUMENTS);
        let mask = path_of(&path);
        let good = fs::read(&mask).unwrap();
        let refuse = |expected: &str| {
            let error = format!("{:#}", Mask::open(&Shard::open(&path).unwrap()).unwrap_err());
            assert!(error.contains(mask.to_str().unwrap()) && !error.contains('\n'), "{error}");
            assert!(error.contains(expected), "{error}");
        };
        fs::write(&mask, &good[..good.len() - 1]).unwrap();
        refuse("expected the mask of 5 tokens in 1029 bytes, found one of 5 in 1028");
        fs::write(&mask, &good[..100]).unwrap();
        refuse("expected a header of 1024 bytes");
        let mut bytes = good.clone();
        bytes[HEADER_BYTES + 1] ^= COUNTS;
        fs::write(&mask, bytes).unwrap();
        refuse("damaged");
        fs::write(&mask, fs::read(&path).unwrap()).unwrap();
        refuse("expected a mask of a token shard (magic 20261127), found a token shard");
        // That of another shard of the same length.
        write(&dir, "b.bin", &[(&[5, 50256, 8, 8, 9], &[false, true, true, false, true])]);
        fs::copy(dir.path().join("b.mask"), &mask).unwrap();
        refuse("the mask of other tokens");
        fs::remove_file(&mask).unwrap();
        refuse("missing, and ");
    }
}
