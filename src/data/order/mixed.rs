//! An order of samples of several sources that are mixed by weight, and of documents that are
//! shuffled. It follows from the number of samples read so far, so that this number alone is the
//! state of a loader.
//!
//! The next sample comes from the source that lags behind its weight most, as in Megatron-LM's
//! blending; the first of several. Each source goes through its own epochs.

use super::documents::{Cursor, Documents};
use super::permutation::Permutation;
use super::{LoaderState, Place, lags_most};
use crate::data::filter::words::mix;
use anyhow::{Result, ensure};
use std::ops::Range;
use std::sync::Arc;

/// Seed of all orders, as in llm.c.
const SEED: u64 = 42;

/// The text of a source.
#[derive(Clone, Debug)]
pub(in crate::data) enum Text {
    /// Samples that lie in one shard each: the number before each shard, and of all.
    Samples { before: Vec<u64>, is_shuffled: bool },
    /// Shuffled documents, one after another, and how many samples they make.
    Documents { documents: Arc<Documents>, samples: u64 },
}

/// A source: consecutive shards.
#[derive(Clone, Debug)]
pub(in crate::data) struct Source {
    /// Indices of its shards among all.
    pub shards: Range<usize>,
    pub weight: f64,
    pub text: Text,
}

impl Source {
    /// Samples in an epoch.
    fn samples(&self) -> u64 {
        match &self.text {
            Text::Samples { before, .. } => before[before.len() - 1],
            Text::Documents { samples, .. } => *samples,
        }
    }
}

/// See the [module](self). Each source has at least one sample.
#[derive(Debug)]
pub(in crate::data) struct MixedOrder {
    pub sources: Vec<Source>,
    pub sample_tokens: u64,
}

/// A position in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) struct MixedPosition(Vec<Progress>);

/// How far a source has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    samples: u64,
    /// The place in its documents, if those are shuffled.
    cursor: Cursor,
}

impl MixedOrder {
    pub fn start(&self) -> MixedPosition {
        MixedPosition(vec![Progress::default(); self.sources.len()])
    }

    /// Samples of all sources together.
    pub fn samples(&self) -> u64 {
        self.sources.iter().map(Source::samples).sum()
    }

    /// The order of documents or samples of a source in an epoch.
    pub fn permutation(&self, source: usize, epoch: u64) -> Permutation {
        let len = match &self.sources[source].text {
            Text::Samples { before, .. } => before[before.len() - 1],
            Text::Documents { documents, .. } => documents.len(),
        };
        Permutation::new(len, mix(SEED ^ mix(source as u64)) ^ epoch)
    }

    /// Moves past the next sample and returns it.
    pub fn step(&self, position: &mut MixedPosition) -> Place {
        let index = self.next_source(position);
        let (source, progress) = (&self.sources[index], &mut position.0[index]);
        let (epoch, sample) = (progress.samples / source.samples(), progress.samples % source.samples());
        progress.samples += 1;
        match &source.text {
            Text::Samples { before, is_shuffled } => {
                let sample = if *is_shuffled { self.permutation(index, epoch).at(sample) } else { sample };
                let shard = before.partition_point(|&first| first <= sample) - 1;
                Place::Sample { file: source.shards.start + shard, sample: (sample - before[shard]) as usize }
            }
            Text::Documents { documents, .. } => {
                if sample == 0 {
                    progress.cursor = Cursor::default();
                }
                let place = Place::Run { source: index, epoch, cursor: progress.cursor };
                let order = self.permutation(index, epoch);
                documents.advance(order, &mut progress.cursor, self.sample_tokens);
                place
            }
        }
    }

    fn next_source(&self, position: &MixedPosition) -> usize {
        let samples = position.0.iter().map(|progress| progress.samples);
        lags_most(samples.zip(self.sources.iter().map(|source| source.weight)))
    }

    /// The state at a position.
    pub fn state(&self, position: &MixedPosition) -> LoaderState {
        let samples = position.0.iter().map(|progress| progress.samples).sum();
        LoaderState { current_shard_idx: 0, current_sample_idx: samples, shuffle: None }
    }

    /// Converts a saved state to a position.
    ///
    /// # Errors
    /// If the state belongs to an order of another kind.
    pub fn check(&self, state: &LoaderState) -> Result<MixedPosition> {
        ensure!(
            state.shuffle.is_none() && state.current_shard_idx == 0,
            "the checkpoint comes from a run that read its data in another order; resume with the -i and --shuffle \
             of that run"
        );
        Ok(self.position_at(state.current_sample_idx))
    }

    /// The position as far into the text as that of a loader whose samples have `theirs` tokens.
    /// Returns also whether it is exactly as far.
    ///
    /// # Errors
    /// Those of [`Self::check`].
    pub fn near(&self, state: &LoaderState, theirs: u64) -> Result<(MixedPosition, bool)> {
        let read = u128::from(state.current_sample_idx) * u128::from(theirs);
        let ours = u128::from(self.sample_tokens);
        let mut state = state.clone();
        state.current_sample_idx = u64::try_from(read.div_ceil(ours)).unwrap_or(u64::MAX);
        let packed = matches!(&self.sources[..], [source] if matches!(source.text, Text::Documents { .. }));
        let is_exact = packed && read % ours == 0 && state.current_sample_idx <= self.samples();
        Ok((self.check(&state)?, is_exact))
    }

    /// The position after a number of samples.
    fn position_at(&self, samples: u64) -> MixedPosition {
        let weights: f64 = self.sources.iter().map(|source| source.weight).sum();
        // A source's samples are taken when the others have as much by weight. Those that lag by
        // less than this number of samples are surely taken, and the others are gone through.
        let sure = (samples as f64 - 4.0 * self.sources.len() as f64) / weights;
        let taken = |source: &Source| (sure * source.weight).floor().max(0.0) as u64;
        let mut position = MixedPosition(
            self.sources.iter().map(|s| Progress { samples: taken(s), cursor: Cursor::default() }).collect(),
        );
        let so_far: u64 = position.0.iter().map(|progress| progress.samples).sum();
        for _ in so_far..samples {
            let next = self.next_source(&position);
            position.0[next].samples += 1;
        }
        for (index, progress) in position.0.iter_mut().enumerate() {
            let source = &self.sources[index];
            if let Text::Documents { documents, .. } = &source.text {
                // At the end of an epoch the cursor is replaced before it is used.
                let (epoch, sample) =
                    (progress.samples / source.samples(), progress.samples % source.samples());
                let order = self.permutation(index, epoch);
                documents.advance(order, &mut progress.cursor, sample * self.sample_tokens);
            }
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(samples: &[u64], weight: f64, is_shuffled: bool) -> Source {
        let mut before = vec![0];
        before.extend(samples.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }));
        Source { shards: 0..samples.len(), weight, text: Text::Samples { before, is_shuffled } }
    }

    fn mixed(weights: &[f64]) -> MixedOrder {
        let sources = weights.iter().map(|&weight| source(&[7, 0, 5], weight, true)).collect();
        MixedOrder { sources, sample_tokens: 4 }
    }

    #[test]
    fn the_number_of_samples_is_the_position() {
        for weights in [&[1.0][..], &[0.7, 0.3], &[1.0, 1.0, 1.0], &[1e-3, 5.0, 0.5], &[3.0, 1e9]] {
            let order = mixed(weights);
            let mut position = order.start();
            for samples in 0..300 {
                assert_eq!(order.position_at(samples), position, "{weights:?} after {samples}");
                assert_eq!(order.state(&position).current_sample_idx, samples);
                order.step(&mut position);
            }
        }
        // Far on, and without going through all of it.
        let order = mixed(&[0.7, 0.2, 0.1]);
        let far = 1 << 40;
        let position = order.position_at(far);
        let samples: Vec<u64> = position.0.iter().map(|progress| progress.samples).collect();
        assert_eq!(samples.iter().sum::<u64>(), far);
        assert!((samples[0] as f64 / far as f64 - 0.7).abs() < 1e-9);
    }

    #[test]
    fn sources_keep_to_their_weights_and_read_each_sample_once_an_epoch() {
        let order = MixedOrder {
            sources: vec![source(&[7, 0, 5], 3.0, true), source(&[6], 1.0, false)],
            sample_tokens: 4,
        };
        let mut position = order.start();
        let mut places = Vec::new();
        for _ in 0..6 {
            let before = position.clone();
            for _ in 0..4 {
                places.push(order.step(&mut position));
            }
            let taken = |i: usize| position.0[i].samples - before.0[i].samples;
            assert_eq!((taken(0), taken(1)), (3, 1));
        }
        let mut first: Vec<(usize, usize)> = places
            .iter()
            .filter_map(|place| match place {
                Place::Sample { file, sample } => Some((*file, *sample)),
                _ => None,
            })
            .collect();
        assert_eq!(first.len(), 24);
        first.sort_unstable();
        let all = (0..7).map(|i| (0, i)).chain((0..5).map(|i| (2, i)));
        let mut expected: Vec<(usize, usize)> = all.chain((0..6).map(|i| (0, i))).collect();
        expected.sort_unstable();
        // 18 of the first source are one epoch and a half.
        for place in &expected {
            assert!(first.contains(place), "{place:?}");
        }
    }
}
