//! Batches from token shards, in an order that ranks share.
//!
//! A *sample* is a run of tokens that is read as a whole, plus one more token as the last target:
//! either a sequence of T tokens, or a batch of B*T. Samples of a shard overlap in that token
//! alone, and the remainder at the end of a shard is not read. A shuffling loader shuffles the
//! shards, and the samples in each, again every epoch.
//!
//! All ranks go through the same samples in the same order and take a batch of them in turn. So a
//! step reads the same text however many ranks share it, no two ranks read the same sample, and
//! ranks stay in step whatever the lengths of the shards. If a sample is a sequence, a step reads
//! the same sequences for every B, too.
//!
//! Several patterns with weights (`web_*.bin=0.7,code_*.bin=0.3`) are mixed: the next sample comes
//! from the source that lags behind its weight most, and each source starts over when it is used
//! up. Shuffled documents are put one after another, in a new order every epoch, and cut into
//! samples. The position in both is the number of samples read so far.
//!
//! Documents of masked shards, and of others if asked, are packed whole into sequences, which are
//! the samples; see `data/order/packed.rs`. A document is then read from position 0 on, and
//! sees itself alone.
//!
//! With batches as samples, a single rank reads in llm.c's order, bit for bit. Several ranks share
//! that same order, whereas each rank of llm.c shuffles on its own.

mod check;
mod packed;
mod patterns;
mod plan;
mod reader;

use crate::data::order::Place;
pub use crate::data::order::{LoaderState, ShuffleState};
use crate::data::shard::Shard;
use crate::data::tokenizer::TokenizerId;
use anyhow::{Context, Result, ensure};
use check::VocabularyCheck;
use packed::Packed;
pub use packed::{PackedRows, Packing};
use plan::{Plan, Position};
use reader::Reader;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The unit in which text is shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// T tokens: B samples make a batch.
    Sequence,
    /// T tokens of documents that are put one after another in a random order.
    Document,
    /// B*T tokens, as in llm.c.
    Batch,
}

/// Options of [`DataLoader::open`].
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions<'a> {
    /// A file name, or a pattern with `*`, `?`, `[...]`. Shards are ordered by name. Several,
    /// divided by commas, are mixed by weight: `a_*.bin=0.7,b.bin=0.3`.
    pub pattern: &'a str,
    /// The flag that set `pattern`, for error messages: `-i`.
    pub flag: &'a str,
    pub B: usize,
    pub T: usize,
    pub rank: usize,
    pub num_processes: usize,
    pub sample: Sample,
    pub shuffle: bool,
    pub packing: Packing,
    /// Vocabulary size; every token has to be below it.
    pub V: usize,
}

/// A place in the data to come back to, cheap to take.
#[derive(Clone, Debug)]
pub struct Bookmark(Position);

/// One micro-batch of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// (B, T)
    pub inputs: Vec<i32>,
    /// (B, T): the token after each input, or a negative number where that does not count.
    pub targets: Vec<i32>,
    /// (B T): rows of the inputs sorted by token, see [`crate::data::buckets::rows_by_token`].
    pub rows_by_token: Vec<i32>,
    /// If the inputs are packed documents.
    pub packed: Option<PackedRows>,
}

/// Serves batches; see the [module](self).
#[derive(Debug)]
pub struct DataLoader {
    flag: String,
    plan: Plan,
    rank: usize,
    num_processes: usize,
    samples_per_batch: usize,
    position: Position,
    /// The position after the batch that is being fetched.
    fetching: Option<Position>,
    fetcher: Fetcher,
    check: VocabularyCheck,
}

impl DataLoader {
    /// Opens and checks all shards. Shards too short for one sample are skipped; see
    /// [`Self::short_shards`]. Their tokens are checked in the background while batches are read.
    ///
    /// # Errors
    /// If no file matches, a file is not a token shard, or none is long enough for one sample.
    pub fn open(options: LoaderOptions) -> Result<Self> {
        let LoaderOptions { pattern, flag, B, T, rank, num_processes, .. } = options;
        assert!(rank < num_processes, "rank {rank} of {num_processes}");
        ensure!(B > 0 && T > 0, "batch of {B} sequences of {T} tokens; expected at least 1 of each");
        let batch_tokens = B.checked_mul(T).context("a batch has too many tokens to count")?;
        let (sources, mut shards) = (patterns::sources(pattern, flag)?, Vec::<Shard>::new());
        for path in sources.iter().flat_map(|source| &source.paths) {
            let shard = Shard::open(path).with_context(|| flag.to_owned())?;
            let (found, expected) =
                (shard.tokenizer(), shards.first().map_or(shard.tokenizer(), Shard::tokenizer));
            ensure!(
                found.agrees(&expected),
                "{flag}: {} has tokens of the tokenizer {found}, and {} of {expected}; give shards of one tokenizer",
                shard.path().display(),
                shards[0].path().display()
            );
            shards.push(shard);
        }
        let packed = Packed::find(&options, &shards)?.map(Arc::new);
        let (samples_per_batch, sample_tokens) = match (options.sample, &packed) {
            (Sample::Batch, None) => (1, batch_tokens),
            _ => (B, T),
        };
        let plan = match &packed {
            Some(packed) => Plan::packed(&options, &sources, packed)?,
            None => Plan::new(&options, &sources, &shards, sample_tokens)?,
        };
        let position = plan.start(options.shuffle);
        let documents = plan.documents();
        let reader = Arc::new(Reader { shards, sample_tokens, V: options.V, documents, packed });
        let fetcher = Fetcher::new(Arc::clone(&reader))?;
        let check = VocabularyCheck::start(reader, rank, num_processes)?;
        Ok(DataLoader {
            flag: flag.to_owned(),
            plan,
            rank,
            num_processes,
            samples_per_batch,
            position,
            fetching: None,
            fetcher,
            check,
        })
    }

    /// Returns the first shard that matches, and its tokenizer.
    ///
    /// # Errors
    /// If no file matches, or the first is not a token shard.
    pub fn first_shard(pattern: &str, flag: &str) -> Result<(std::path::PathBuf, TokenizerId)> {
        let path = patterns::sources(pattern, flag)?.remove(0).paths.remove(0);
        let tokenizer = Shard::open(&path).with_context(|| flag.to_owned())?.tokenizer();
        Ok((path, tokenizer))
    }

    /// Returns the next batch, and starts to read the one after it in the background.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, in this batch or in any that has been checked so far,
    /// or a shard cannot be read. The position then stays as it was.
    pub fn next_batch(&mut self) -> Result<Batch> {
        self.check.found().with_context(|| self.flag.clone())?;
        let after = match self.fetching.take() {
            Some(after) => after,
            None => self.fetch(),
        };
        let batch = self.fetcher.receive().with_context(|| self.flag.clone())?;
        self.position = after;
        self.fetching = Some(self.fetch());
        Ok(batch)
    }

    /// Returns the number of rows that count in the next `batches` of all ranks together.
    pub fn counted(&self, batches: usize) -> usize {
        let samples = batches * self.samples_per_batch;
        let Some(packed) = &self.fetcher.reader.packed else {
            return samples * self.fetcher.reader.sample_tokens;
        };
        let mut position = self.position.clone();
        (0..samples).map(|_| packed.counted(&self.plan.step(&mut position))).sum()
    }

    /// Starts to read this rank's next batch. Returns the position after the next batches of all
    /// ranks.
    fn fetch(&self) -> Position {
        let mut after = self.position.clone();
        for rank in 0..self.num_processes {
            let places = (0..self.samples_per_batch).map(|_| self.plan.step(&mut after)).collect();
            if rank == self.rank {
                self.fetcher.send(places);
            }
        }
        after
    }

    /// Discards the batch that is being fetched, if any.
    fn cancel(&mut self) {
        if self.fetching.take().is_some() {
            // An error in that batch is reported when the batch is requested again.
            let _ = self.fetcher.receive();
        }
    }

    /// Starts a new epoch from its first batch. A shuffling loader continues its random sequence,
    /// as at the end of an epoch.
    pub fn reset(&mut self) {
        self.cancel();
        self.plan.reset(&mut self.position);
    }

    /// Returns the tokenizer that the shards name.
    pub fn tokenizer(&self) -> TokenizerId {
        self.fetcher.reader.shards[0].tokenizer()
    }

    /// Returns the number of tokens in all shards.
    pub fn num_tokens(&self) -> u64 {
        self.fetcher.reader.shards.iter().map(|s| s.len() as u64).sum()
    }

    /// Returns the number of tokens in the samples of an epoch; with packed documents, those that
    /// fill up sequences included.
    pub fn epoch_tokens(&self) -> u64 {
        match self.packed_documents() {
            Some(_) => (self.plan.samples() * self.fetcher.reader.sample_tokens) as u64,
            None => self.num_tokens(),
        }
    }

    /// Returns the number of documents that are packed into sequences, if they are.
    pub fn packed_documents(&self) -> Option<usize> {
        self.fetcher.reader.packed.as_ref().map(|packed| packed.order.documents().len())
    }

    /// Returns which documents are packed, if they are; the position depends on it.
    pub fn packing(&self) -> Option<&'static str> {
        self.fetcher.reader.packed.as_ref().map(|packed| packed.describe())
    }

    /// Returns a checksum of some tokens of every shard, by which other data of the same size is
    /// recognized.
    ///
    /// # Errors
    /// If a shard cannot be read.
    pub fn checksum(&self) -> Result<u32> {
        let (mut hasher, mut block, mut bytes) = (crc32fast::Hasher::new(), [0; 4096], Vec::new());
        for shard in &self.fetcher.reader.shards {
            let n = block.len().min(shard.len());
            let last = shard.len() - n;
            for start in [0, last / 2, last] {
                shard.read(start, &mut block[..n])?;
                bytes.clear();
                shard.width().encode(&block[..n], &mut bytes);
                hasher.update(&bytes);
            }
        }
        let masks = self.fetcher.reader.packed.iter().flat_map(|packed| &packed.masks);
        masks.for_each(|mask| hasher.update(&mask.crc().to_le_bytes()));
        Ok(hasher.finalize())
    }

    pub fn num_shards(&self) -> usize {
        self.fetcher.reader.shards.len()
    }

    /// Returns the number of whole batches per epoch, of all ranks together. In an epoch of a mix
    /// there are as many as all sources have.
    pub fn batches_per_epoch(&self) -> usize {
        self.plan.samples() / self.samples_per_batch
    }

    /// Returns the weights of the sources that are mixed; of a single source, none.
    pub fn weights(&self) -> Vec<f64> {
        self.plan.weights()
    }

    /// Indices, among the next `batches` of all ranks together, of those that this rank reads.
    pub fn turns(&self, batches: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
        (self.rank..batches.max(self.rank)).step_by(self.num_processes)
    }

    /// Returns the largest number of those that any rank reads.
    pub fn most_turns(&self, batches: usize) -> usize {
        batches.div_ceil(self.num_processes)
    }

    /// Returns the shards that are too short for a sample and are never read.
    pub fn short_shards(&self) -> Vec<&Path> {
        let shards = self.fetcher.reader.shards.iter().enumerate();
        shards.filter(|(index, _)| self.plan.is_skipped(*index)).map(|(_, shard)| shard.path()).collect()
    }

    /// Returns a shard that `other` reads too, if there is one.
    pub fn shared_shard(&self, other: &DataLoader) -> Option<&Path> {
        let theirs = &other.fetcher.reader.shards;
        let is_shared = |shard: &&Shard| theirs.iter().any(|their| shard.is_same_file(their));
        self.fetcher.reader.shards.iter().find(is_shared).map(Shard::path)
    }

    /// Returns the place of the next batch.
    pub fn bookmark(&self) -> Bookmark {
        Bookmark(self.position.clone())
    }

    /// Goes back, or on, to a place of this loader.
    pub fn go_to(&mut self, place: &Bookmark) {
        self.cancel();
        self.position = place.0.clone();
    }

    /// Returns the position of the loader, for a checkpoint.
    pub fn state(&self) -> LoaderState {
        self.plan.state(&self.position)
    }

    /// Continues from the position of another loader of the same data and samples.
    ///
    /// # Errors
    /// If the state does not fit these shards and the length of a sample. The loader then stays
    /// where it is.
    pub fn restore(&mut self, state: &LoaderState) -> Result<()> {
        self.move_to(self.plan.check(state, &self.position))
    }

    /// Continues near the position of another loader of the same data, whose samples had
    /// `sample_tokens` tokens. Returns whether the text that follows in this shard is exactly that
    /// which the other loader had not read.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_near(&mut self, state: &LoaderState, sample_tokens: usize) -> Result<bool> {
        let ours = self.fetcher.reader.sample_tokens;
        let (position, is_exact) = match self.plan.near(state, sample_tokens, ours, &self.position) {
            Ok((position, is_exact)) => (Ok(position), is_exact),
            Err(error) => (Err(error), false),
        };
        self.move_to(position)?;
        Ok(is_exact)
    }

    fn move_to(&mut self, position: Result<Position>) -> Result<()> {
        let position = position.with_context(|| format!("{}: cannot resume with these shards", self.flag))?;
        self.cancel();
        self.position = position;
        Ok(())
    }
}

/// A thread that reads batches on request, so that the disk is read while the device computes.
#[derive(Debug)]
struct Fetcher {
    reader: Arc<Reader>,
    /// `None` once the thread has been told to end.
    requests: Option<Sender<Vec<Place>>>,
    batches: Receiver<Result<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetcher {
    fn new(reader: Arc<Reader>) -> Result<Self> {
        let (requests, requested) = channel::<Vec<Place>>();
        let (answers, batches) = channel();
        let thread = std::thread::Builder::new()
            .name("data loader".to_owned())
            .spawn({
                let reader = Arc::clone(&reader);
                move || {
                    for places in requested {
                        if answers.send(reader.read(&places)).is_err() {
                            break;
                        }
                    }
                }
            })
            .context("cannot start the data loader's thread")?;
        Ok(Fetcher { reader, requests: Some(requests), batches, thread: Some(thread) })
    }

    fn send(&self, places: Vec<Place>) {
        let requests = self.requests.as_ref().expect("open until dropped");
        requests.send(places).expect("the data loader's thread lives as long as its requests");
    }

    /// Waits for the result of the oldest request.
    fn receive(&self) -> Result<Batch> {
        self.batches.recv().expect("the data loader's thread answers every request")
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic in the thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
