//! Reads samples from shards.

use super::packed::{Packed, Rows};
use super::{Batch, PackedRows};
use crate::data::buckets::rows_by_token;
use crate::data::order::Place;
use crate::data::order::mixed::{MixedOrder, Text};
use crate::data::shard::Shard;
use anyhow::{Context, Result, bail};
use std::sync::Arc;

/// Reads samples from shards.
#[derive(Debug)]
pub(super) struct Reader {
    pub shards: Vec<Shard>,
    pub sample_tokens: usize,
    pub V: usize,
    /// The sources, if their documents are shuffled.
    pub documents: Option<Arc<MixedOrder>>,
    /// The documents that are packed, if they are.
    pub packed: Option<Arc<Packed>>,
}

impl Reader {
    /// Reads the samples of a batch.
    pub fn read(&self, places: &[Place]) -> Result<Batch> {
        let mut rows = Rows::default();
        // The tokens of a sample, and the one after it.
        let mut sample = vec![0; self.sample_tokens + 1];
        for place in places {
            if let (Some(packed), &Place::Sequence(sequence)) = (&self.packed, place) {
                let read = &mut |shard, start, tokens: &mut [u32]| self.read_checked(shard, start, tokens);
                packed.read(sequence, self.sample_tokens, &mut rows, read)?;
                continue;
            }
            self.read_sample(place, &mut sample)?;
            rows.inputs.extend(sample[..self.sample_tokens].iter().map(|&t| t.cast_signed()));
            rows.targets.extend(sample[1..].iter().map(|&t| t.cast_signed()));
        }
        let Rows { inputs, targets, positions } = rows;
        let rows_by_token = rows_by_token(&inputs);
        let packed = self.packed.is_some().then(|| PackedRows::new(positions));
        Ok(Batch { inputs, targets, rows_by_token, packed })
    }

    /// Fills `tokens` with those of a sample, and the one after it.
    fn read_sample(&self, place: &Place, tokens: &mut [u32]) -> Result<()> {
        match *place {
            Place::Sample { file, sample } => self.read_checked(file, sample * self.sample_tokens, tokens),
            Place::Sequence(_) => bail!("documents are not packed"),
            Place::Run { source: index, epoch, cursor } => {
                let order = self.documents.as_ref().context("documents are not shuffled")?;
                let source = &order.sources[index];
                let Text::Documents { documents, .. } = &source.text else {
                    bail!("documents are not shuffled")
                };
                let permutation = order.permutation(index, epoch);
                documents.read(permutation, cursor, tokens, &mut |shard, start, tokens| {
                    self.read_checked(source.shards.start + shard, start, tokens)
                })
            }
        }
    }

    /// Fills `tokens` with those of a shard from index `start` on.
    ///
    /// # Errors
    /// If the shard cannot be read, or a token is outside the vocabulary.
    pub fn read_checked(&self, shard: usize, start: usize, tokens: &mut [u32]) -> Result<()> {
        let shard = &self.shards[shard];
        shard.read(start, tokens)?;
        // The maximum is found at the speed of memory, unlike the first token past a limit.
        let largest = tokens.iter().copied().fold(0, u32::max);
        if (largest as usize) < self.V {
            return Ok(());
        }
        let bad = tokens.iter().position(|&t| t as usize >= self.V).unwrap_or(0);
        bail!(
            "{}: token {} is {}, outside the vocabulary of {}; recreate the shard with the model's tokenizer",
            shard.path().display(),
            start + bad,
            tokens[bad],
            self.V
        )
    }
}
