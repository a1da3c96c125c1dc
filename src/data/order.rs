//! The order in which samples are read, as state that can be saved.

pub(super) mod documents;
pub(super) mod mixed;
pub(super) mod packed;
mod permutation;

use crate::rng::{Mt19937, identity_permutation};
use anyhow::{Result, bail, ensure};
use documents::Cursor;
use std::sync::Arc;

/// Index of the source that lags behind its weight most, the first of several, by what was read of
/// each and its weight.
pub(super) fn lags_most(sources: impl Iterator<Item = (u64, f64)>) -> usize {
    let lags = sources.map(|(read, weight)| read as f64 / weight).enumerate();
    lags.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there is a source").0
}

/// Position of a loader, in the fields of llm.c's state file: that of the next batch a caller gets.
/// Samples are runs of B*T tokens, as there, or sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderState {
    /// Position in the (shuffled) order of shards.
    pub current_shard_idx: u64,
    /// Position in the (shuffled) order of the shard's samples. At the end of that order, the next
    /// batch comes from the next shard.
    pub current_sample_idx: u64,
    pub shuffle: Option<ShuffleState>,
}

/// The order of samples in an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShuffleState {
    /// The order of shards, as indices into the sorted list of files.
    pub shard_indices: Vec<i32>,
    /// The order of samples in the current shard.
    pub intra_shard_indices: Vec<i32>,
    pub rng: Mt19937,
}

/// Position of a loader in an epoch. Cheap to clone: a shuffle is copied only when it changes.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) shard: usize,
    pub(super) sample: usize,
    pub(super) shuffle: Option<Arc<ShuffleState>>,
}

impl LoaderState {
    /// Checks the state by itself, without the data it belongs to.
    ///
    /// # Errors
    /// If an order of samples is not a permutation, or the position is outside of it.
    pub fn check(&self) -> Result<()> {
        let Some(shuffle) = &self.shuffle else { return Ok(()) };
        check_permutation(&shuffle.shard_indices, "shards")?;
        check_permutation(&shuffle.intra_shard_indices, "samples")?;
        let (shard, shards) = (self.current_shard_idx, shuffle.shard_indices.len());
        ensure!(shard < shards as u64, "found the loader in shard {shard} of {shards}, counted from 0");
        let (sample, samples) = (self.current_sample_idx, shuffle.intra_shard_indices.len());
        ensure!(sample <= samples as u64, "found the loader {sample} samples into a shard of {samples}");
        Ok(())
    }
}

fn check_permutation(indices: &[i32], of_what: &str) -> Result<()> {
    let mut seen = vec![false; indices.len()];
    for &index in indices {
        let slot = usize::try_from(index).ok().and_then(|i| seen.get_mut(i));
        ensure!(
            slot.is_some_and(|slot| !std::mem::replace(slot, true)),
            "the order of {} {of_what} has {index}, which is out of range or repeated",
            indices.len()
        );
    }
    Ok(())
}

impl Position {
    /// Returns the shard to read from, as an index into the sorted list of files.
    fn file(&self) -> usize {
        self.shuffle.as_ref().map_or(self.shard, |s| s.shard_indices[self.shard] as usize)
    }
}

/// The place of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A shard and an index in it.
    Sample { file: usize, sample: usize },
    /// A place in the shuffled documents of a source, in an epoch.
    Run { source: usize, epoch: u64, cursor: Cursor },
    /// A sequence of packed documents.
    Sequence(usize),
}

/// The order of reading, which follows from the number of samples per shard. At least one shard has
/// a sample.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) samples: Vec<usize>,
}

impl Order {
    pub(super) fn start(&self, rng: Option<Mt19937>) -> Position {
        let shuffle = rng.map(|rng| {
            let shard_indices = identity_permutation(self.samples.len());
            Arc::new(ShuffleState { shard_indices, intra_shard_indices: Vec::new(), rng })
        });
        let mut position = Position { shard: 0, sample: 0, shuffle };
        self.reset(&mut position);
        position
    }

    /// Starts a new epoch: shuffles the shards, then the samples of the first one.
    pub(super) fn reset(&self, position: &mut Position) {
        if let Some(shuffle) = &mut position.shuffle {
            let ShuffleState { shard_indices, rng, .. } = Arc::make_mut(shuffle);
            rng.random_permutation(shard_indices);
        }
        self.enter(position, 0);
    }

    fn enter(&self, position: &mut Position, shard: usize) {
        position.shard = shard;
        position.sample = 0;
        let samples = self.samples[position.file()];
        if let Some(shuffle) = &mut position.shuffle {
            let ShuffleState { intra_shard_indices, rng, .. } = Arc::make_mut(shuffle);
            *intra_shard_indices = identity_permutation(samples);
            rng.random_permutation(intra_shard_indices);
        }
    }

    /// Moves past the next sample and returns it. Like llm.c, this enters a new shard only when it
    /// needs a sample of that shard.
    pub(super) fn step(&self, position: &mut Position) -> Place {
        while position.sample >= self.samples[position.file()] {
            match position.shard + 1 {
                end if end == self.samples.len() => self.reset(position),
                next => self.enter(position, next),
            }
        }
        let sample = position
            .shuffle
            .as_ref()
            .map_or(position.sample, |s| s.intra_shard_indices[position.sample] as usize);
        position.sample += 1;
        Place::Sample { file: position.file(), sample }
    }

    /// The position as far into the same shard as that of a loader whose samples have `theirs`
    /// tokens where these have `ours`, rounded up to whole samples. In file order the text goes on
    /// there. The samples of a shuffled shard are drawn anew, so some of its text may be read twice
    /// and some not at all.
    ///
    /// # Errors
    /// Those of [`Order::check`], apart from the number of samples.
    pub(super) fn near(
        &self,
        state: &LoaderState,
        theirs: usize,
        ours: usize,
        shuffles: bool,
    ) -> Result<Position> {
        let read = u128::from(state.current_sample_idx) * theirs as u128;
        let sample = u64::try_from(read.div_ceil(ours as u128))?;
        let mut state = state.clone();
        state.check()?;
        let file = match &state.shuffle {
            Some(shuffle) => shuffle.shard_indices[state.current_shard_idx as usize] as u64,
            None => state.current_shard_idx,
        };
        let samples =
            usize::try_from(file).ok().and_then(|file| self.samples.get(file).copied()).unwrap_or(0);
        state.current_sample_idx = sample.min(samples as u64);
        if let Some(ShuffleState { intra_shard_indices, rng, .. }) = &mut state.shuffle {
            *intra_shard_indices = identity_permutation(samples);
            rng.random_permutation(intra_shard_indices);
        }
        self.check(&state, shuffles)
    }

    /// Converts a saved state to a position, if it fits this order.
    pub(super) fn check(&self, state: &LoaderState, shuffles: bool) -> Result<Position> {
        const HINT: &str = "resume with the data, batch size and sequence length of that run";
        match (&state.shuffle, shuffles) {
            (Some(_), false) => {
                bail!("the checkpoint comes from a run that shuffled its data, and this run does not")
            }
            (None, true) => {
                bail!("the checkpoint comes from a run that did not shuffle its data, and this run does")
            }
            _ => {}
        }
        state.check()?;
        let shards = self.samples.len();
        if let Some(shuffle) = &state.shuffle {
            let saved = shuffle.shard_indices.len();
            ensure!(saved == shards, "the checkpoint has {saved} shards, this run has {shards}; {HINT}");
        }
        ensure!(
            state.current_shard_idx < shards as u64,
            "the checkpoint is at shard {}, but this run has {shards}; {HINT}",
            state.current_shard_idx
        );
        let position = Position {
            shard: state.current_shard_idx as usize,
            sample: usize::try_from(state.current_sample_idx).unwrap_or(usize::MAX),
            shuffle: state.shuffle.clone().map(Arc::new),
        };
        let samples = self.samples[position.file()];
        if let Some(shuffle) = &position.shuffle {
            let saved = shuffle.intra_shard_indices.len();
            ensure!(
                saved == samples,
                "the checkpoint's shard has {saved} samples, here it has {samples}; {HINT}"
            );
        }
        ensure!(
            position.sample <= samples,
            "the checkpoint is at sample {} of a shard of {samples}; {HINT}",
            position.sample
        );
        Ok(position)
    }
}
