//! Cuts streams of tokens into shards.

use super::PrepareOptions;
use super::draw::Passage;
use super::folder::{Split, shard_name};
use crate::data::shard::{ShardFormat, ShardWriter};
use crate::files::CompleteFile;
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// The shards of one split, which are written one after another.
pub(super) struct Shards {
    options: PrepareOptions,
    split: Split,
    /// Number of the first shard.
    first: usize,
    /// Most tokens of a shard.
    size: u64,
    pub tokens: u64,
    /// The passage that was written last.
    last: Option<u64>,
    /// The shard being written.
    open: Option<ShardWriter>,
    sealed: Vec<(PathBuf, CompleteFile)>,
}

impl Shards {
    pub fn new(options: &PrepareOptions, split: Split, first: usize, size: u64) -> Self {
        // nanoGPT reads one file per split.
        let size = if options.format == ShardFormat::Raw { u64::MAX } else { size };
        let (options, sealed) = (options.clone(), Vec::new());
        Shards { options, split, first, size, tokens: 0, last: None, open: None, sealed }
    }

    /// Appends a passage. One that begins within a document, and comes after other text, is
    /// preceded by the end of text.
    pub fn write(&mut self, passage: &Passage) -> Result<()> {
        let follows = passage.index.checked_sub(1) == self.last;
        if !passage.starts_document && !follows && self.last.is_some() {
            self.write_tokens(&[self.options.tokenizer.eot()])?;
        }
        self.last = Some(passage.index);
        self.write_tokens(&passage.tokens)
    }

    fn write_tokens(&mut self, mut tokens: &[u32]) -> Result<()> {
        self.tokens += tokens.len() as u64;
        while !tokens.is_empty() {
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => {
                    let PrepareOptions { tokenizer, format, .. } = &self.options;
                    ShardWriter::create_as(&self.next_path(), tokenizer.id(), *format)?
                }
            };
            let room = usize::try_from(self.size - shard.len()).unwrap_or(usize::MAX);
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            shard.write(now)?;
            let full = shard.len() == self.size;
            self.open = Some(shard);
            if full {
                self.seal()?;
            }
            tokens = later;
        }
        Ok(())
    }

    fn next_path(&self) -> PathBuf {
        let PrepareOptions { output, name, format, .. } = &self.options;
        output.join(shard_name(name, self.split, self.first + self.sealed.len(), *format))
    }

    fn seal(&mut self) -> Result<()> {
        if let Some(shard) = self.open.take() {
            let path = self.next_path();
            self.sealed.push((path, shard.seal()?));
        }
        Ok(())
    }

    /// Completes the last shard. Returns the number of shards.
    pub fn finish(&mut self) -> Result<usize> {
        self.seal()?;
        Ok(self.sealed.len())
    }

    /// Gives all shards their final names, and returns those.
    pub fn publish(self) -> Result<Vec<PathBuf>> {
        ensure!(self.open.is_none(), "a shard is not complete");
        let mut paths = Vec::new();
        for (path, shard) in self.sealed {
            shard.publish()?;
            paths.push(path);
        }
        Ok(paths)
    }
}
