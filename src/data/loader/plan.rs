//! The order of a loader: that of llm.c, that of packed documents, or one of sources that are mixed
//! and documents that are shuffled.

use super::packed::Packed;
use super::patterns::Source as Pattern;
use super::{LoaderOptions, LoaderState, Sample};
use crate::data::order::documents::Documents;
use crate::data::order::mixed::{MixedOrder, MixedPosition, Source, Text};
use crate::data::order::packed::PackedPosition;
use crate::data::order::{Order, Place, Position as FilePosition};
use crate::data::shard::Shard;
use crate::rng::Mt19937;
use anyhow::{Context, Result, bail, ensure};
use std::sync::Arc;

/// The order of samples.
#[derive(Debug)]
pub(super) enum Plan {
    /// Shard by shard, as in llm.c.
    Files(Order),
    Mixed(Arc<MixedOrder>),
    Packed(Arc<Packed>),
}

/// A position in it.
#[derive(Clone, Debug)]
pub(super) enum Position {
    Files(FilePosition),
    Mixed(MixedPosition),
    Packed(PackedPosition),
}

/// Positions and orders are made by the same loader.
const SAME: &str = "the position is one of this order";

impl Plan {
    /// Plans the order of the samples in `shards`, which are those of `patterns`.
    ///
    /// # Errors
    /// One line, if no shard of a pattern is long enough for a sample, samples are batches and
    /// there are several patterns, or documents cannot be found.
    pub fn new(
        options: &LoaderOptions,
        patterns: &[Pattern],
        shards: &[Shard],
        sample_tokens: usize,
    ) -> Result<Self> {
        let LoaderOptions { pattern, flag, sample, .. } = options;
        if let ([Pattern { weight: None, .. }], Sample::Sequence | Sample::Batch) = (patterns, sample) {
            let samples = samples_of(options, shards, sample_tokens)?;
            return Ok(Plan::Files(Order { samples }));
        }
        if *sample == Sample::Batch {
            bail!(
                "{flag} {pattern}: weights are for training data with --shuffle sequences, documents or off; \
                 give one pattern"
            );
        }
        let mut sources = Vec::new();
        let mut first = 0;
        for pattern in patterns {
            let range = first..first + pattern.paths.len();
            first = range.end;
            let text = text_of(options, &shards[range.clone()], sample_tokens)?;
            sources.push(Source { shards: range, weight: pattern.weight.unwrap_or(1.0), text });
        }
        Ok(Plan::Mixed(Arc::new(MixedOrder { sources, sample_tokens: sample_tokens as u64 })))
    }

    /// Plans the order of packed documents.
    ///
    /// # Errors
    /// If sources have weights, or text is shuffled in another unit than sequences.
    pub fn packed(options: &LoaderOptions, patterns: &[Pattern], packed: &Arc<Packed>) -> Result<Self> {
        let LoaderOptions { pattern, flag, sample, shuffle, .. } = options;
        ensure!(
            matches!(patterns, [Pattern { weight: None, .. }]),
            "{flag} {pattern}: packed documents are not mixed by weight; give one pattern"
        );
        ensure!(
            !(*sample == Sample::Document || *sample == Sample::Batch && *shuffle),
            "--shuffle: packed documents are shuffled by the sequences that they make; use sequences or off"
        );
        Ok(Plan::Packed(Arc::clone(packed)))
    }

    /// The order, if documents are shuffled in it: the reader then looks them up.
    pub fn documents(&self) -> Option<Arc<MixedOrder>> {
        match self {
            Plan::Files(_) | Plan::Packed(_) => None,
            Plan::Mixed(order) => Some(Arc::clone(order)),
        }
    }

    pub fn start(&self, shuffle: bool) -> Position {
        match self {
            Plan::Files(order) => Position::Files(order.start(shuffle.then(|| Mt19937::new(42)))),
            Plan::Mixed(order) => Position::Mixed(order.start()),
            Plan::Packed(_) => Position::Packed(PackedPosition::default()),
        }
    }

    /// Starts a new epoch; a mix starts over.
    pub fn reset(&self, position: &mut Position) {
        match (self, position) {
            (Plan::Files(order), Position::Files(position)) => order.reset(position),
            (Plan::Mixed(order), Position::Mixed(position)) => *position = order.start(),
            (Plan::Packed(_), Position::Packed(position)) => *position = PackedPosition::default(),
            _ => unreachable!("{SAME}"),
        }
    }

    /// Moves past the next sample and returns it.
    pub fn step(&self, position: &mut Position) -> Place {
        match (self, position) {
            (Plan::Files(order), Position::Files(position)) => order.step(position),
            (Plan::Mixed(order), Position::Mixed(position)) => order.step(position),
            (Plan::Packed(packed), Position::Packed(position)) => {
                Place::Sequence(packed.order.step(position))
            }
            _ => unreachable!("{SAME}"),
        }
    }

    /// Samples of an epoch.
    pub fn samples(&self) -> usize {
        match self {
            Plan::Files(order) => order.samples.iter().sum(),
            Plan::Mixed(order) => usize::try_from(order.samples()).unwrap_or(usize::MAX),
            Plan::Packed(packed) => packed.order.sequences() as usize,
        }
    }

    /// The weights of several sources.
    pub fn weights(&self) -> Vec<f64> {
        match self {
            Plan::Mixed(order) if order.sources.len() > 1 => {
                order.sources.iter().map(|source| source.weight).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a shard is too short for a sample.
    pub fn is_skipped(&self, shard: usize) -> bool {
        match self {
            Plan::Files(order) => order.samples[shard] == 0,
            Plan::Mixed(order) => order.sources.iter().any(|source| match &source.text {
                Text::Samples { before, .. } if source.shards.contains(&shard) => {
                    let shard = shard - source.shards.start;
                    before[shard] == before[shard + 1]
                }
                _ => false,
            }),
            Plan::Packed(_) => false,
        }
    }

    /// The position as llm.c's state file holds it. In a mix, and with shuffled documents, it is
    /// the number of samples read so far.
    pub fn state(&self, position: &Position) -> LoaderState {
        match (self, position) {
            (Plan::Files(_), Position::Files(position)) => LoaderState {
                current_shard_idx: position.shard as u64,
                current_sample_idx: position.sample as u64,
                shuffle: position.shuffle.as_deref().cloned(),
            },
            (Plan::Mixed(order), Position::Mixed(position)) => order.state(position),
            (Plan::Packed(packed), Position::Packed(position)) => packed.order.state(*position),
            _ => unreachable!("{SAME}"),
        }
    }

    /// Converts a saved state to a position of the kind of `now`.
    ///
    /// # Errors
    /// If the state does not fit this order.
    pub fn check(&self, state: &LoaderState, now: &Position) -> Result<Position> {
        match (self, now) {
            (Plan::Files(order), Position::Files(now)) => {
                Ok(Position::Files(order.check(state, now.shuffle.is_some())?))
            }
            (Plan::Mixed(order), Position::Mixed(_)) => Ok(Position::Mixed(order.check(state)?)),
            (Plan::Packed(packed), Position::Packed(_)) => Ok(Position::Packed(packed.order.check(state)?)),
            _ => unreachable!("{SAME}"),
        }
    }

    /// Converts a saved state of samples of `theirs` tokens to a position here, where they have
    /// `ours`. Returns whether the text that follows is exactly that which had not been read.
    ///
    /// # Errors
    /// Those of [`Self::check`].
    pub fn near(
        &self,
        state: &LoaderState,
        theirs: usize,
        ours: usize,
        now: &Position,
    ) -> Result<(Position, bool)> {
        match (self, now) {
            (Plan::Files(order), Position::Files(now)) => {
                let shuffles = now.shuffle.is_some();
                let position = order.near(state, theirs, ours, shuffles)?;
                let read = state.current_sample_idx as u128 * theirs as u128;
                let is_exact = !shuffles && read == position.sample as u128 * ours as u128;
                Ok((Position::Files(position), is_exact))
            }
            (Plan::Mixed(order), Position::Mixed(_)) => {
                let (position, is_exact) = order.near(state, theirs as u64)?;
                Ok((Position::Mixed(position), is_exact))
            }
            (Plan::Packed(_), Position::Packed(_)) => bail!(
                "-t {ours}: the checkpoint's documents are packed into sequences of {theirs} tokens; resume with -t \
                 {theirs}"
            ),
            _ => unreachable!("{SAME}"),
        }
    }
}

/// The text of a source.
fn text_of(options: &LoaderOptions, shards: &[Shard], sample_tokens: usize) -> Result<Text> {
    if options.sample != Sample::Document {
        let mut before = vec![0];
        for samples in samples_of(options, shards, sample_tokens)? {
            before.push(before[before.len() - 1] + samples as u64);
        }
        return Ok(Text::Samples { before, is_shuffled: options.shuffle });
    }
    let documents = Documents::find(shards).with_context(|| options.flag.to_owned())?;
    let (tokens, needed) = (documents.tokens(), sample_tokens as u64);
    let LoaderOptions { pattern, flag, T, .. } = options;
    ensure!(
        documents.len() > 1,
        "{flag}: --shuffle documents needs an end-of-text token before each document, found a single document"
    );
    ensure!(
        tokens > needed,
        "{flag} {pattern}: expected more than {T} tokens for one sequence, found {tokens}; lower -t, or use more data"
    );
    log::info!("{flag}: {} documents in {tokens} tokens are shuffled", documents.len());
    Ok(Text::Documents { documents: Arc::new(documents), samples: (tokens - 1) / needed })
}

/// The number of samples in each shard.
fn samples_of(options: &LoaderOptions, shards: &[Shard], sample_tokens: usize) -> Result<Vec<usize>> {
    let samples: Vec<usize> = shards.iter().map(|s| (s.len() - 1) / sample_tokens).collect();
    let LoaderOptions { pattern, flag, B, T, .. } = options;
    let sample = match options.sample {
        Sample::Batch => format!("batch of {B} x {T} tokens"),
        _ => format!("sequence of {T} tokens"),
    };
    ensure!(
        samples.iter().any(|&n| n > 0),
        "{flag} {pattern}: no shard is long enough for one {sample} (the longest has {} tokens, {} are needed); \
         lower -b or -t, or use more data",
        shards.iter().map(|s| s.len()).max().unwrap_or(0),
        sample_tokens + 1
    );
    Ok(samples)
}
