//! The places where documents start, for an order in which they are shuffled.

use super::permutation::Permutation;
use crate::data::shard::Shard;
use anyhow::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens searched at a time.
const BLOCK_TOKENS: usize = if cfg!(test) { 16 } else { 1 << 20 };

/// The documents in consecutive shards. It takes 8 bytes per document.
#[derive(Debug)]
pub(in crate::data) struct Documents {
    /// The first token of each document in all shards, and the end of the last.
    starts: Vec<u64>,
    /// The first token of each shard, and the end of the last.
    shards: Vec<u64>,
}

/// A place in the text that shuffled documents make up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct Cursor {
    /// Place of the document in the order of this epoch.
    pub document: u64,
    /// Tokens of it that have been read.
    pub offset: u64,
}

impl Documents {
    /// Reads all shards and finds the end-of-text tokens, which begin documents. A shard goes on
    /// where the one before ends.
    ///
    /// # Errors
    /// If a shard cannot be read.
    pub fn find(shards: &[Shard]) -> Result<Self> {
        let (mut starts, mut ends) = (Vec::new(), vec![0]);
        for shard in shards {
            let eot = shard.tokenizer().eot;
            let before = ends[ends.len() - 1];
            let in_block = |start: usize| {
                let mut block = vec![0; BLOCK_TOKENS.min(shard.len() - start)];
                shard.read(start, &mut block)?;
                let found = block.iter().enumerate().filter(|(_, token)| **token == eot);
                Ok(found.map(|(i, _)| before + (start + i) as u64).collect::<Vec<_>>())
            };
            let blocks: Vec<usize> = (0..shard.len()).step_by(BLOCK_TOKENS).collect();
            // Groups of blocks, so that few are in memory.
            for group in blocks.chunks(rayon::current_num_threads().max(1)) {
                let found: Vec<Vec<u64>> =
                    group.par_iter().map(|&start| in_block(start)).collect::<Result<_>>()?;
                starts.extend(found.into_iter().flatten());
            }
            ends.push(before + shard.len() as u64);
        }
        if starts.first() != Some(&0) {
            // The first shard begins within a document.
            starts.insert(0, 0);
        }
        starts.push(ends[ends.len() - 1]);
        starts.shrink_to_fit();
        Ok(Documents { starts, shards: ends })
    }

    pub fn len(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// The tokens of a document, by their places in all shards.
    pub fn range(&self, document: u64) -> Range<u64> {
        self.starts[document as usize]..self.starts[document as usize + 1]
    }

    pub fn tokens(&self) -> u64 {
        self.shards[self.shards.len() - 1]
    }

    fn length(&self, document: u64) -> u64 {
        let Range { start, end } = self.range(document);
        end - start
    }

    /// Moves a cursor on by some tokens, within an epoch.
    pub fn advance(&self, order: Permutation, cursor: &mut Cursor, tokens: u64) {
        cursor.offset += tokens;
        while cursor.document < self.len() {
            let length = self.length(order.at(cursor.document));
            if cursor.offset < length {
                break;
            }
            cursor.offset -= length;
            cursor.document += 1;
        }
    }

    /// Fills `tokens` with those that follow a cursor. `read` reads tokens of a shard, by its place
    /// among these shards.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read(
        &self,
        order: Permutation,
        mut cursor: Cursor,
        mut tokens: &mut [u32],
        read: &mut impl FnMut(usize, usize, &mut [u32]) -> Result<()>,
    ) -> Result<()> {
        while !tokens.is_empty() {
            let document = order.at(cursor.document);
            let start = self.starts[document as usize] + cursor.offset;
            let shard = self.shards.partition_point(|&first| first <= start) - 1;
            let end = self.starts[document as usize + 1].min(self.shards[shard + 1]);
            let now = usize::try_from(end - start).unwrap_or(usize::MAX).min(tokens.len());
            let (these, rest) = tokens.split_at_mut(now);
            read(shard, (start - self.shards[shard]) as usize, these)?;
            tokens = rest;
            self.advance(order, &mut cursor, now as u64);
        }
        Ok(())
    }
}
